"""What a step of learning computes, compiled: from the gradients that coding told back through layers to new weights.

Rows are those of a block, lane after lane. Products run on the integer kernels of the forward pass, everything else is
elementwise or a sum of integers (`nacz.kernels.gradients`), so how rows and panels are shared out cannot change a bit.

Knows one layer, rows, caches and one matrix at a time. Does not know threads, schedules or where its arrays come from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.attention import HEAD
from nacz.kernels.attention_gradient import attention_gradient
from nacz.kernels.cdf import total_bits
from nacz.kernels.columns import COLUMN, mix_block, place_block, sums_to_floats, take_off
from nacz.kernels.columns import ROWS as BLOCK
from nacz.kernels.compile import compiled, inner
from nacz.kernels.gemm import panel_sums, scaled_product
from nacz.kernels.gradients import (
    PANEL,
    adam_moves,
    add_scattered,
    gate_gradient,
    norm_gradient,
    pack_columns,
    pack_terms,
    quantise_scaled,
    rms_inverse,
    scattered_bytes,
)  # fmt: skip
from nacz.kernels.ops import to_float
from nacz.kernels.rope import angles
from nacz.kernels.rows import add_rows, gated_rows, largest, normalise_rows, quantise_rows, rotate_rows
from nacz.kernels.tiles import address

# One of a distribution's total, where that has 24 bits, and 28.
SHARE, WIDE_SHARE = np.float32(2.0**-24), np.float32(2.0**-28)
DECAY, KEEP = np.float32(0.9), np.float32(0.99)  # Adam's beta 1 and beta 2


class Outcomes(NamedTuple):
    """What coding tells the network of each row of a block: row l * steps + i for step i of lane l.

    head: int8 [vocab, dim], flat, with step float32[vocab]; gradient: float32 [rows, dim], flat, in the last layer's
    normalised output; total: int32 [lanes, dim], work space. steps: 0 where nothing learns.
    """

    head: Any
    step: Any
    gradient: Any
    total: Any
    steps: int


def no_outcomes() -> Outcomes:
    """For a network that does not learn."""
    return Outcomes(
        np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.float32), np.empty((0, 0), np.int32), 0
    )


class Matrix(NamedTuple):
    """One matrix of one layer: n outputs, k inputs. `packed`, `sums` and `step` are views into the weights.

    Adam steps in the basis that rows have after `mix_rows` with `mixing` (sizes of factors of two and three, and a
    scale): (1, 1, 1) is that of the weights. A move is in a column's unit float32[k]; times inverse float32[n] it is in
    steps of its row. Masters and moments are blocks of sixteen rows (`nacz.kernels.columns`)."""

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


class Block(NamedTuple):
    """Numbers of all rows of a block, one layer at a time: inputs of the products and gradients of their outputs."""

    mid: Any
    qkv: Any
    gate_up: Any
    dx: Any
    d_down: Any
    d_gate_up: Any
    d_out: Any
    d_heads: Any
    d_qkv: Any
    terms: Any
    term_step: Any


class Work(NamedTuple):
    """Work space of one thread."""

    hidden: Any
    a: Any
    zero: Any
    step: Any
    row: Any
    y: Any
    unit: Any


class Panels(NamedTuple):
    """Work space of one thread for panels of matrices: a panel of gradients of outputs as bytes and `Columns` about
    them, int32 sums of a product with them, and of sixteen rows at a time moves, paces and rounded weights."""

    packed: Any
    columns: Any
    sums: Any
    block: Any
    pace: Any
    q: Any


@inner
def tell_outcome(o: Any, lane: int, step: int, symbol: Any, freq: Any, work: Any, places: Any, values: Any) -> None:
    """Keep the gradient in the last normalised row from the distribution that a token was coded with.

    o: Outcomes; freq: int32[vocab], of a total of 2^total_bits(vocab); symbol: what came. work float32[vocab], places,
    values int32[vocab]: work space. Nothing is done where nothing learns.
    """
    if o.steps == 0:
        return
    v, d = o.step.size, o.gradient.size // (o.total.shape[0] * o.steps)
    share = SHARE if total_bits(v) == 24 else WIDE_SHARE
    # A token's step holds the change to binary logarithms: a constant factor, which Adam does not see.
    for i in range(v):
        work[i] = (to_float(freq[i]) * share) * o.step[i]
    work[symbol] = (to_float(freq[symbol]) * share - np.float32(1.0)) * o.step[symbol]
    top, row = largest(work, 0, v), lane * o.steps + step % o.steps
    count = scattered_bytes(row, v, work, top, o.total[lane], places, values)
    unit, gradient = top * np.float32(1.0 / 126.0), o.gradient[row * d : (row + 1) * d]
    add_scattered(count, places, values, d, o.head, unit, o.total[lane], gradient)


@compiled
def head_rows(shape: Any, first: int, m: int, x: Any, gradient: Any, dx: Any) -> None:
    """Gradient in the last layer's output x of rows first .. first + m - 1 into dx."""
    d = shape.dim
    some = slice(first * d, (first + m) * d)
    dx[some] = np.float32(0.0)
    norm_gradient(m, d, shape.eps, x[some], gradient[some], dx[some])


@inner
def _copy(x: Any, to: Any) -> None:
    for i in range(x.size):
        to[i] = x[i]


@inner
def _times(m: int, step: Any, factor: Any) -> None:
    for r in range(m):
        step[r] = step[r] * factor[r]


@compiled
def backward_rows(
    kern: Any, shape: Any, w: Any, layer: int, out: Any, gate_up: Any, down: Any, rows: int, first: int, m: int,
    x_in: Any, heads: Any, b: Any, s: Any,
) -> None:  # fmt: skip
    """Rows first .. first + m - 1 from the gradient in a layer's output back to that in its attention's result."""
    d, f = shape.dim, shape.ffn
    qkv = (shape.heads + 2 * shape.kv_heads) * HEAD
    some, wide = slice(first * d, (first + m) * d), slice(first * 2 * f, (first + m) * 2 * f)
    x_in, heads, mid, dx, d_heads = x_in[some], heads[some], b.mid[some], b.dx[some], b.d_heads[some]
    # What the forward pass computed, again.
    normalise_rows(m, d, shape.eps, x_in, s.a, s.zero, s.step)
    scaled_product(
        kern, m, qkv, d, s.a, s.zero, s.step, w.qkv, layer * qkv * d, w.qkv_sum, w.qkv_step, layer * qkv,
        b.qkv[first * qkv :],
    )  # fmt: skip
    quantise_rows(m, d, heads, s.a, s.zero, s.step)
    scaled_product(kern, m, d, d, s.a, s.zero, s.step, w.out, layer * d * d, w.out_sum, w.out_step, layer * d, mid)
    add_rows(m * d, mid, x_in)
    normalise_rows(m, d, shape.eps, mid, s.a, s.zero, s.step)
    scaled_product(
        kern, m, 2 * f, d, s.a, s.zero, s.step, w.gate_up, layer * 2 * f * d, w.gate_up_sum, w.gate_up_step,
        layer * 2 * f, b.gate_up[wide],
    )  # fmt: skip
    gated_rows(m, f, b.gate_up[wide], s.hidden)
    rotate_rows(m, f, shape.two, shape.three, s.hidden)
    # Inputs of the four products as terms of the weights' gradients; a norm only enters the step.
    pack_terms(first, m, rows, d, x_in, s.row, b.terms[0], b.term_step[0])
    pack_terms(first, m, rows, d, heads, s.row, b.terms[1], b.term_step[1])
    pack_terms(first, m, rows, d, mid, s.row, b.terms[2], b.term_step[2])
    pack_terms(first, m, rows, f, s.hidden, s.row, b.terms[3], b.term_step[3])
    rms_inverse(m, d, shape.eps, x_in, s.row)
    _times(m, b.term_step[0][first:], s.row)
    rms_inverse(m, d, shape.eps, mid, s.row)
    _times(m, b.term_step[2][first:], s.row)
    # Back through the feed-forward block. The rotation is symmetric: it is its own transpose.
    _copy(dx, b.d_down[some])
    quantise_scaled(m, d, dx, down.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, f, d, s.a, s.zero, s.step, down.turned, 0, down.turned_sums, s.unit, 0, s.hidden)
    rotate_rows(m, f, shape.two, shape.three, s.hidden)
    d_gate_up = b.d_gate_up[wide]
    gate_gradient(m, f, b.gate_up[wide], s.hidden, d_gate_up)
    quantise_scaled(m, 2 * f, d_gate_up, gate_up.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, 2 * f, s.a, s.zero, s.step, gate_up.turned, 0, gate_up.turned_sums, s.unit, 0, s.y)
    norm_gradient(m, d, shape.eps, mid, s.y, dx)
    # And through the attention's output.
    _copy(dx, b.d_out[some])
    quantise_scaled(m, d, dx, out.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, d, s.a, s.zero, s.step, out.turned, 0, out.turned_sums, s.unit, 0, d_heads)


@compiled
def input_rows(kern: Any, shape: Any, qkv: Any, first: int, m: int, x_in: Any, b: Any, s: Any) -> None:
    """Adds what comes through queries, keys and values to the gradient, which is then that in the layer's input."""
    d, n = shape.dim, qkv.n
    quantise_scaled(m, n, b.d_qkv[first * n : (first + m) * n], qkv.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, n, s.a, s.zero, s.step, qkv.turned, 0, qkv.turned_sums, s.unit, 0, s.y)
    norm_gradient(m, d, shape.eps, x_in[first * d : (first + m) * d], s.y, b.dx[first * d : (first + m) * d])


@compiled
def attend_back(
    kern: Any, shape: Any, rope: Any, lane: int, layer: int, h: int, first: int, n: int, position: int, cache: Any,
    heads: Any, b: Any, cos: Any, sin: Any, s: Any,
) -> None:  # fmt: skip
    """One lane and kv head through attention."""
    half = HEAD // 2
    qkv = (shape.heads + 2 * shape.kv_heads) * HEAD
    group = shape.heads // shape.kv_heads
    for r in range(n):
        angles(rope, half, position + r, cos, sin, r * 2 * half)
        angles(rope, half, min(position + r, shape.sink_reach), cos, sin, r * 2 * half + half)
    head, begin = layer * shape.kv_heads + h, shape.begin
    slots, cache_at = shape.reach[head], lane * begin[begin.size - 1] + begin[head]
    rows, wide = slice(first * shape.dim, (first + n) * shape.dim), slice(first * qkv, (first + n) * qkv)
    attention_gradient(
        kern, n, position, group, slots, cache, cache_at, s, b.qkv[wide], qkv, h * group * HEAD,
        (shape.heads + h) * HEAD, (shape.heads + shape.kv_heads + h) * HEAD, heads[rows], b.d_heads[rows], shape.dim,
        cos, sin, b.d_qkv[wide],
    )  # fmt: skip


@compiled
def update_panels(
    kern: Any, w: Any, begin: int, end: int, rows: int, m: int, dy: Any, terms: Any, term_step: Any, term_sums: Any,
    rate: Any, s: Any,
) -> None:  # fmt: skip
    """Panels begin .. end - 1 of a matrix: gradient, Adam, rounding, both packed orders. s: Panels."""
    n, k = w.n, w.k
    two, three, scale = w.mixing
    for j in range(k):
        s.pace[j * BLOCK : (j + 1) * BLOCK] = rate * w.unit[j]
    block, q = address(s.block, 0), address(s.q, 0)
    c = s.columns
    for panel in range(begin, end):
        pack_columns(panel * PANEL, n, rows, m, dy, term_step, s.packed, c)
        panel_sums(kern, k, rows, address(terms, 0), address(s.packed, 0), address(s.sums, 0))
        w.sums[panel * PANEL : (panel + 1) * PANEL] = 0
        w.part[panel * k : (panel + 1) * k] = 0
        for i in range(0, PANEL, BLOCK):
            row = panel * PANEL + i
            some = slice(row * k, (row + BLOCK) * k)
            less, more, unit = address(c.less, i), address(c.more, i), address(c.unit, i)
            for j in range(k):
                sums = address(s.sums, j * PANEL + i)
                sums_to_floats(sums, less, more, term_sums[j], unit, block + COLUMN * j)
            mix_block(k, two, three, block)
            adam_moves(k * BLOCK, s.block, scale, s.pace, w.first[some], w.second[some], DECAY, KEEP)
            mix_block(k, two, three, block)
            inverse, master = address(w.inverse, row), address(w.master, row * k)
            for j in range(k):
                take_off(block + COLUMN * j, scale, inverse, master + COLUMN * j, q + BLOCK * j)
            place_block(
                row, n, k, q, address(w.packed, 0), address(w.turned, 0), address(w.sums, row),
                address(w.part, panel * k),
            )  # fmt: skip
