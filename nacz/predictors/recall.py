"""States of the language model at earlier positions, before a middle layer, and the tokens that came after them.

A position whose state is like that of an earlier one tends to be followed by the same token, in whatever words
the context was said (kNN-LM, arXiv 1911.00172, and the continuous cache, arXiv 1612.04426; here over one segment, all
lanes, and with learned weights instead of an interpolation). States have norm sqrt(dim), so a dot product is a cosine.
Keys are signed bytes in the layout of the matrix product's right-hand side, in a ring of columns.

Knows rows of states and tokens. Does not know logits or weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.compile import inner
from nacz.kernels.gemm import scaled_product
from nacz.kernels.ops import bits_of, float_of, imax, imin, isub, round_near, to_float
from nacz.kernels.rows import int_exp2

REMEMBERED = 1 << 16  # positions that a query sees
PANEL = 64
UNIT = np.float32(21.0)  # keys: multiples of 1/21 up to 6 in magnitude
SHARP = np.float32(40.0 * 65536.0)
NEAR = np.float32(0.12)
LEAST = np.float32(0.6)
MOST_VOTES = 1024
MOST_VOTED = 96


class Recall(NamedTuple):
    """key int8, packed in panels of 64 columns: ring of `columns` columns. total int32[columns], step float32[columns]:
    sums of columns and one over UNIT * dim. token int32[columns]: what came. Of the query at hand: voted int64[
    MOST_VOTED] tokens and vote int64 (2^23 for a state that is equal), size int64[1], and slot int32[vocab]. normal: 1
    where states have any norm and are divided by it, 0 where it is sqrt(dim)."""

    key: Any
    total: Any
    step: Any
    token: Any
    voted: Any
    vote: Any
    size: Any
    slot: Any
    dim: int
    columns: int
    normal: int


def make_recall(tokens: int, rows: int, dim: int, vocab: int, normal: int = 0) -> Recall:
    """An empty memory for a segment of `tokens` tokens of which up to `rows` are written ahead of the reading."""
    columns = min(tokens, REMEMBERED + rows) + PANEL - 1
    columns -= columns % PANEL
    return Recall(
        key=aligned(columns * dim, np.int8),
        total=aligned(columns, np.int32),
        step=np.full(columns, np.float32(1.0) / (UNIT * np.float32(dim)), np.float32),
        token=np.zeros(columns, np.int32),
        voted=np.zeros(MOST_VOTED, np.int64),
        vote=np.zeros(MOST_VOTED, np.int64),
        size=np.zeros(1, np.int64),
        slot=np.full(vocab, -1, np.int32),
        dim=dim,
        columns=columns,
        normal=normal,
    )


@inner
def one_over_norm(a: Any, at: int, d: int, zero: Any) -> Any:
    """sqrt(d) over the norm of d bytes less their zero point, float32; 0 if all are nothing."""
    total = np.int64(0)
    row = a[at : at + d]
    for i in range(d):
        v = np.int64(isub(np.int32(row[i]), zero))
        total += v * v
    if total == 0:
        return np.float32(0.0)
    return np.float32(1.0 / np.sqrt(np.float64(total) / np.float64(d)))


@inner
def remember(r: Any, entry: int, a: Any, row: int, zero: Any, step: Any) -> None:
    """Write the key of entry number `entry` (all entries are numbered in coding order): (a - zero) * step, rounded."""
    d = r.dim
    column = entry % r.columns
    base = (column // PANEL) * PANEL * d + 4 * (column % PANEL)
    unit = (one_over_norm(a, row * d, d, zero) if r.normal else step) * UNIT
    total = np.int32(0)
    key = r.key
    for i in range(d):
        v = round_near(to_float(isub(np.int32(a[row * d + i]), zero)) * unit)
        v = imin(imax(v, -127), 127)
        key[base + (i // 4) * 4 * PANEL + i % 4] = np.int8(v)
        total += v
    r.total[column] = total


@inner
def compare(kern: Any, r: Any, known: int, m: int, a: Any, zero: Any, step: Any, out: Any) -> None:
    """Cosines of m rows with the first `known` entries (or all columns): out float32 flat [m, columns of `width`]."""
    n = width(r, known)
    scaled_product(kern, m, n, r.dim, a, zero, step, r.key, 0, r.total, r.step, 0, out)
    if r.normal:
        for i in range(m):
            if step[i] > np.float32(0.0):
                factor = one_over_norm(a, i * r.dim, r.dim, zero[i]) / step[i]
                row = out[i * n : (i + 1) * n]
                for j in range(n):
                    row[j] = row[j] * factor


@inner
def width(r: Any, known: int) -> Any:
    """Columns that `compare` fills when `known` entries were written."""
    return min(r.columns, (known + PANEL - 1) // PANEL * PANEL)


@inner
def poll(r: Any, seen: int, cosines: Any) -> Any:
    """Votes of the last entries before number `seen` for the tokens that followed them; returns (all votes' sum, the
    largest cosine, at least LEAST).

    cosines: float32, one row of `compare`'s. Entries are asked from the latest to the earliest.
    """
    voted, vote, slot, columns = r.voted, r.vote, r.slot, r.columns
    r.size[0] = 0
    first = max(0, seen - REMEMBERED)
    # Bit patterns of positive float32 compare like their values, and below them come all negative ones.
    best = bits_of(LEAST)
    end = seen
    while end > first:
        # Runs that do not cross the ring's end nor a panel's, so that the loop over a slice can be vectorised.
        column = (end - 1) % columns
        n = min(column % PANEL + 1, end - first)
        some = cosines[column + 1 - n : column + 1]
        for i in range(n):
            best = imax(best, bits_of(some[i]))
        end -= n
    top = float_of(best)
    least = max(LEAST, top - NEAR)
    least_bits = bits_of(least)
    total = np.int64(0)
    votes = 0
    end = seen
    while end > first and votes < MOST_VOTES:
        column = (end - 1) % columns
        n = min(column % PANEL + 1, end - first)
        some = cosines[column + 1 - n : column + 1]
        high = np.int32(-1)
        for i in range(n):
            high = imax(high, bits_of(some[i]))
        if high > least_bits:
            for i in range(n - 1, -1, -1):
                if some[i] > least and votes < MOST_VOTES:
                    votes += 1
                    distance = max(np.float32(1.0) - some[i], np.float32(0.0))
                    v = np.int64(int_exp2(np.int32(np.int64(distance * SHARP)), 16))
                    total += v
                    token = np.int64(r.token[column + 1 - n + i])
                    k = np.int64(slot[token])
                    if k < 0:
                        if r.size[0] == MOST_VOTED:
                            continue
                        k = r.size[0]
                        r.size[0] = k + 1
                        slot[token] = k
                        voted[k] = token
                        vote[k] = 0
                    vote[k] += v
        end -= n
    for i in range(r.size[0]):
        slot[voted[i]] = -1
    return total, top
