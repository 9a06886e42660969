"""How a matrix moves by its gradient, compiled: the two versions of docs/learning.md.

Version 1 is Adam. Version 2 has no moments of its own for each weight: a gradient is divided by the root mean square of
its row, and before that every input of the matrix by its own, so that what is kept beside masters is a number for each
row and each column (second moments in factors: Adafactor, arXiv 1804.04235, section 3). Both end by rounding masters
and writing both packed orders.

Products are the integer kernels', all else is elementwise or a sum in a written order, so how panels are shared out
cannot change a bit.

Knows one matrix at a time. Does not know layers, threads or schedules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.columns import COLUMN, add_squares, mix_block, place_block, sums_to_floats, take_off
from nacz.kernels.columns import ROWS as BLOCK
from nacz.kernels.compile import compiled, inner
from nacz.kernels.gemm import panel_sums
from nacz.kernels.gradients import EPSILON, PANEL, adam_moves, pack_columns, pack_terms, rms_inverse
from nacz.kernels.rows import mix_rows
from nacz.kernels.tiles import address

DECAY, KEEP = np.float32(0.9), np.float32(0.99)  # Adam's beta 1 and beta 2; the latter of version 2 too
ONE = np.float32(1.0)


class Matrix(NamedTuple):
    """One matrix of one layer: n outputs, k inputs. `packed`, `sums` and `step` are views into the weights.

    Moves are made in the basis that rows have after `mix_rows` with `mixing` (sizes of factors of two and three, and a
    scale): (1, 1, 1) is that of the weights. A move is in a column's unit float32[k]; times inverse float32[n] it is in
    steps of its row. Masters are blocks of sixteen rows (`nacz.kernels.columns`), as are the moments `first` and
    `second` of version 1. Those of version 2 are mean squares, float32[k] of inputs and float32[n] of rows of the
    gradient. size: the root of the units' summed squares, float64."""

    n: int
    k: int
    packed: Any
    sums: Any
    step: Any
    turned: Any
    turned_sums: Any
    part: Any
    master: Any
    first: Any
    second: Any
    unit: Any
    inverse: Any
    mixing: Any
    size: float


class Terms(NamedTuple):
    """The inputs of a matrix in all rows of a block, as terms of its gradient: signed bytes around 128, uint8
    [k][rows], a step for each row, and sums int32[k]."""

    value: Any
    step: Any
    sums: Any


class Panels(NamedTuple):
    """Work space of one thread for panels of matrices: a panel of gradients of outputs as bytes and `Columns` about
    them, int32 sums of a product with them, and of sixteen rows at a time moves, paces and rounded weights."""

    packed: Any
    columns: Any
    sums: Any
    block: Any
    pace: Any
    q: Any


@compiled
def plain_terms(
    m: int, rows: int, k: int, eps: float, is_normed: bool, x: Any, work: Any, terms: Any, step: Any
) -> None:
    """Terms of version 1: rows of x (float32 [m, k]) as they are; a norm before the matrix only enters the step.

    work: float32[m + 3]."""
    pack_terms(0, m, rows, k, x, work, terms, step)
    if is_normed:
        rms_inverse(m, k, eps, x, work)
        for r in range(m):
            step[r] = step[r] * work[r]


@compiled
def scaled_terms(
    m: int, rows: int, eps: float, is_normed: bool, w: Any, started: Any, x: Any, u: Any, work: Any, total: Any,
    terms: Any, step: Any,
) -> None:  # fmt: skip
    """Terms of version 2: rows of x (float32 [m, k]), normed as the matrix reads them, each column in units of its root
    mean square until now and times the matrix's unit, in the basis of moves.

    started: the share of a mean square that has been seen, 1 - KEEP^t. u: float32 [m, k]; work: float32[m + 3];
    total: float32[k].
    """
    k = w.k
    two, three, scale = w.mixing
    if is_normed:
        rms_inverse(m, k, eps, x, work)
    for r in range(m):
        row, source, factor = u[r * k : (r + 1) * k], x[r * k : (r + 1) * k], work[r] if is_normed else ONE
        for j in range(k):
            row[j] = source[j] * factor
    if two > 1:
        mix_rows(m, k, two, three, scale, u)
    total[:k] = np.float32(0.0)
    for r in range(m):
        row = u[r * k : (r + 1) * k]
        for j in range(k):
            total[j] = total[j] + row[j] * row[j]
    for j in range(k):
        v = KEEP * w.first[j] + (ONE - KEEP) * total[j]
        w.first[j] = v
        total[j] = w.unit[j] / (np.sqrt(v / started) + EPSILON)
    for r in range(m):
        row = u[r * k : (r + 1) * k]
        for j in range(k):
            row[j] = row[j] * total[j]
    if two > 1:
        mix_rows(m, k, two, three, scale, u)
    pack_terms(0, m, rows, k, u, work, terms, step)


@inner
def _gradient(k: int, i: int, t: Any, s: Any) -> None:
    """Rows i .. i + 15 of a panel whose sums are there, as float32 into the block."""
    c, block = s.columns, address(s.block, 0)
    less, more, unit = address(c.less, i), address(c.more, i), address(c.unit, i)
    for j in range(k):
        sums_to_floats(address(s.sums, j * PANEL + i), less, more, t.sums[j], unit, block + COLUMN * j)


@inner
def _take_off(w: Any, row: int, scale: Any, inverse: int, s: Any) -> None:
    """What the block holds, times scale and inverse (float32 of sixteen rows at an address), off the masters from row
    `row` on; the rounded ones into both packed orders and their sums."""
    n, k = w.n, w.k
    block, master, q = address(s.block, 0), address(w.master, row * k), address(s.q, 0)
    for j in range(k):
        take_off(block + COLUMN * j, scale, inverse, master + COLUMN * j, q + BLOCK * j)
    part = address(w.part, row // PANEL * k)
    place_block(row, n, k, q, address(w.packed, 0), address(w.turned, 0), address(w.sums, row), part)


@inner
def _begin_panel(kern: Any, w: Any, panel: int, rows: int, m: int, dy: Any, t: Any, s: Any) -> None:
    """Sums of a panel's gradient, and none yet of its new weights."""
    k = w.k
    pack_columns(panel * PANEL, w.n, rows, m, dy, t.step, s.packed, s.columns)
    panel_sums(kern, k, rows, address(t.value, 0), address(s.packed, 0), address(s.sums, 0))
    w.sums[panel * PANEL : (panel + 1) * PANEL] = 0
    w.part[panel * k : (panel + 1) * k] = 0


@compiled
def adam_panels(
    kern: Any, w: Any, begin: int, end: int, rows: int, m: int, dy: Any, t: Any, rate: Any, s: Any
) -> None:
    """Version 1 for panels begin .. end - 1 of a matrix, of which dy is the gradient in its outputs, float32 [m, n].

    t: Terms; s: Panels. rate: with the correction of the moments' start.
    """
    k = w.k
    two, three, scale = w.mixing
    for j in range(k):
        s.pace[j * BLOCK : (j + 1) * BLOCK] = rate * w.unit[j]
    block = address(s.block, 0)
    for panel in range(begin, end):
        _begin_panel(kern, w, panel, rows, m, dy, t, s)
        for i in range(0, PANEL, BLOCK):
            row = panel * PANEL + i
            some = slice(row * k, (row + BLOCK) * k)
            _gradient(k, i, t, s)
            mix_block(k, two, three, block)
            adam_moves(k * BLOCK, s.block, scale, s.pace, w.first[some], w.second[some], DECAY, KEEP)
            mix_block(k, two, three, block)
            _take_off(w, row, scale, address(w.inverse, row), s)


@compiled
def scaled_panels(
    kern: Any, w: Any, begin: int, end: int, rows: int, m: int, dy: Any, t: Any, rate: Any, started: Any, s: Any
) -> None:
    """Version 2 for panels begin .. end - 1 of a matrix, of which dy is the gradient in its outputs, float32 [m, n].

    t: Terms from `scaled_terms`; s: Panels. rate: what a row's root of summed squares becomes; started: as there.
    """
    k = w.k
    block, pace = address(s.block, 0), address(s.pace, 0)
    for panel in range(begin, end):
        _begin_panel(kern, w, panel, rows, m, dy, t, s)
        for i in range(0, PANEL, BLOCK):
            row = panel * PANEL + i
            _gradient(k, i, t, s)
            s.pace[:BLOCK] = np.float32(0.0)
            for j in range(0, k, 8):
                add_squares(block + COLUMN * j, pace)
            for c in range(BLOCK):
                v = KEEP * w.second[row + c] + (ONE - KEEP) * s.pace[c]
                w.second[row + c] = v
                s.pace[c] = (rate / (np.sqrt(v / started) + EPSILON)) * w.inverse[row + c]
            _take_off(w, row, ONE, pace, s)
