"""Grouped-query attention over a blocked int8 cache of keys and values, exact.

Keys and values live in blocks of 128 consecutive positions. The first block of a stream is pinned (attention sinks,
arXiv 2309.17453); the others form a ring. Which blocks a query sees depends on its position alone: block 0 and the last
`slots - 1` blocks up to its own. Scores are integer sums scaled elementwise to fixed point; probabilities are integers with
2^23 for one; the product with the values runs on bytes, whose step is a power of two per row and block; block results are
added as float64 integers below 2^53 (see `_weighted_values`), so no rounding happens before the last division.

Knows one stream and one layer at a time. Does not know weights, layers or where rows come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.compile import compiled
from nacz.kernels.ops import (
    bits_of,
    float_of,
    iadd,
    imax,
    imin,
    imul,
    isub,
    round_near,
    sar,
    shl,
    to_float,
    trunc,
)  # fmt: skip
from nacz.kernels.rows import int_exp2, largest
from nacz.kernels.tiles import SUMS, tile

BLOCK = 128  # positions per cache block; also what one step of the power-of-two probability scale covers
HEAD = 64  # width of a head
BYTES = BLOCK * HEAD  # int8 per block and kv head
FRACTION = 14  # fixed-point bits of a score in units of log2
MASKED = -(1 << 30)
LIMIT = np.float32(2.0**28)  # scores are clamped here, before the conversion that would differ between machines
LEAST = 24  # a block whose largest weight is 2^-24 of the row's largest adds nothing


@compiled
def _turn(x: Any, at: int, cos: Any, sin: Any, angle: int, out: Any) -> None:
    """RoPE of one head: pairs (i, i + 32) turned by the angles cos/sin[angle + i]; float32[64] into out."""
    half = HEAD // 2
    first, second = x[at : at + half], x[at + half : at + HEAD]
    c, s = cos[angle : angle + half], sin[angle : angle + half]
    for i in range(half):
        out[i] = first[i] * c[i] - second[i] * s[i]
        out[half + i] = second[i] * c[i] + first[i] * s[i]


@compiled
def put_query(x: Any, at: int, cos: Any, sin: Any, angle: int, unit: Any, turned: Any, q: Any, q_at: int) -> Any:
    """Turn and quantise one query head to bytes around 128; returns its step times `unit` (float32)."""
    _turn(x, at, cos, sin, angle, turned)
    top = largest(turned, 0, HEAD)
    inverse = np.float32(127.0) / max(top, np.float32(2.0**-60))
    out = q[q_at : q_at + HEAD]
    for i in range(HEAD):
        out[i] = np.uint8(iadd(round_near(turned[i] * inverse), 128))
    return (top / np.float32(127.0)) * unit


@compiled
def put_key(
    x: Any, at: int, cos: Any, sin: Any, angle: int, turned: Any, keys: Any, block_at: int, j: int,
    key_step: Any, key_sum: Any, index: int,
) -> None:
    """Turn and quantise one key into row j of its block, laid out as packed columns ([j/16][16][j%16][4])."""
    _turn(x, at, cos, sin, angle, turned)
    top = largest(turned, 0, HEAD)
    inverse = np.float32(127.0) / max(top, np.float32(2.0**-60))
    out = keys[block_at + (j >> 4) * 16 * HEAD + (j & 15) * 4 :]
    total = np.int32(0)
    for i in range(HEAD):
        v = round_near(turned[i] * inverse)
        out[(i >> 2) * 64 + (i & 3)] = np.int8(v)
        total = iadd(total, v)
    key_step[index] = top / np.float32(127.0)
    key_sum[index] = imul(total, 128)


@compiled
def put_value(x: Any, at: int, values: Any, block_at: int, j: int, value_step: Any, index: int) -> None:
    """Quantise one value into column j of its block: packed with the 128 positions as terms ([d/16][32][d%16][4])."""
    top = largest(x, at, HEAD)
    inverse = np.float32(127.0) / max(top, np.float32(2.0**-60))
    row, out = x[at : at + HEAD], values[block_at + (j >> 2) * 64 + (j & 3) :]
    for d in range(HEAD):
        out[(d >> 4) * 16 * BLOCK + (d & 15) * 4] = np.int8(round_near(row[d] * inverse))
    value_step[index] = top / np.float32(127.0)


@compiled
def _sums(kern: Any, mr: int, a: Any, a_at: int, a_row: int, b: Any, b_at: int, terms: int, out: Any, out_at: int, out_row: int) -> None:
    """Integer sums of mr rows with 64 packed columns over `terms` terms."""
    w, k4 = 16 * terms, terms >> 2
    # The epilogue is off (SUMS); `out` stands in for its arrays, which are not read.
    if mr == 6:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 6, 4, out, out, 0, out, out, 0, SUMS, 0)
    elif mr == 5:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 5, 4, out, out, 0, out, out, 0, SUMS, 0)
    elif mr == 4:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 4, 4, out, out, 0, out, out, 0, SUMS, 0)
    elif mr == 3:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 3, 4, out, out, 0, out, out, 0, SUMS, 0)
    elif mr == 2:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 2, 4, out, out, 0, out, out, 0, SUMS, 0)
    else:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 1, 4, out, out, 0, out, out, 0, SUMS, 0)


@compiled
def _scores(
    sums: Any, at: int, seen: int, key_sum: Any, key_step: Any, index: int, step: Any, scores: Any, to: int
) -> Any:
    """A block of sums of one row to fixed-point scores; returns their maximum. Keys from `seen` on are masked.

    Loops run over slices of a constant length: a variable one leaves up to 63 keys to a scalar tail (6 times slower), and
    an index that could be negative is not vectorised at all (40 times).
    """
    dot, offset, unit, out = sums[at : at + BLOCK], key_sum[index:], key_step[index:], scores[to : to + BLOCK]
    top = np.int32(MASKED)
    for j in range(BLOCK):
        v = (to_float(isub(dot[j], offset[j])) * unit[j]) * step
        t = trunc(min(max(v, -LIMIT), LIMIT))
        out[j] = t
        top = imax(top, t)
    if seen < BLOCK:
        top = np.int32(MASKED)
        for j in range(seen):
            top = imax(top, out[j])
        for j in range(seen, BLOCK):
            out[j] = MASKED
    return top


@compiled
def _weights(scores: Any, at: int, top: Any, value_step: Any, index: int) -> Any:
    """Scores to the bits of float32 weights (probability x value step), in place; returns (sum of integer
    exponentials, largest bits). Masked scores become 0."""
    row, unit = scores[at : at + BLOCK], value_step[index : index + BLOCK]
    total = np.int32(0)
    high = np.int32(0)
    for j in range(BLOCK):
        e = int_exp2(isub(top, row[j]), FRACTION)
        total = iadd(total, e)
        w = bits_of(to_float(e) * unit[j])
        row[j] = w
        high = imax(high, w)
    return total, high


@compiled
def _to_bytes(scores: Any, at: int, unit: Any, p: Any, p_at: int) -> None:
    row, out = scores[at : at + BLOCK], p[p_at : p_at + BLOCK]
    for j in range(BLOCK):
        out[j] = np.uint8(imin(trunc(float_of(row[j]) * unit + np.float32(0.5)), 255))


@compiled
def _weighted_values(kern: Any, mr: int, p: Any, values: Any, v_at: int, sums: Any, factor: Any, acc: Any) -> None:
    """acc[r] += factor[r] * (p[r] . values) for 64 dimensions.

    |sum| <= 128 * 255 * 127 < 2^22, factor is a power of two in [2^-24, 1]: all terms are multiples of 2^-24 below 2^22,
    and with at most 2^7 blocks the float64 accumulator needs 53 bits: it is exact, so the order of blocks is free.
    """
    _sums(kern, mr, p, 0, BLOCK, values, v_at, BLOCK, sums, 0, HEAD)
    for r in range(mr):
        f = factor[r]
        if f != 0.0:
            row, out = sums[r * HEAD : (r + 1) * HEAD], acc[r * HEAD : (r + 1) * HEAD]
            for d in range(HEAD):
                out[d] = out[d] + np.float64(row[d]) * f


@compiled
def attend(
    kern: Any, rows: int, position: int, group: int, slots: int, q: Any, q_step: Any, q_sink: Any, q_sink_step: Any,
    keys: Any, key_step: Any, key_sum: Any, values: Any, value_step: Any, cache_at: int,
    scores: Any, sums: Any, p: Any, acc: Any, out: Any, out_at: int, out_row: int,
) -> None:
    """Attention of `rows` consecutive positions from `position` on, all in one block, for one kv head.

    q, q_sink: uint8 [rows, group, 64] as `put_query` makes them (q_sink turned for the pinned block), with steps per row and
    head. keys/values: int8, this kv head's `slots` blocks from slot index `cache_at` on; steps and sums alike per position.
    scores int32[6, slots * 128], sums int32[6 * 128], p uint8[6 * 128], acc float64[6 * 64]: scratch. out: float32, the
    group's heads of row r at out_at + r * out_row.
    """
    current = position // BLOCK
    oldest = max(1, current - (slots - 2))
    blocks = 1 + max(0, current - oldest + 1)
    width = slots * BLOCK
    high = np.empty((6, slots), np.int32)
    top = np.empty(6, np.int32)
    total = np.empty(6, np.int64)
    peak = np.empty(6, np.int32)
    factor = np.empty(6, np.float64)
    n_rows = rows * group
    tiles = (n_rows + 5) // 6
    row = 0
    for t in range(tiles):
        mr = (n_rows - row + (tiles - t) - 1) // (tiles - t)
        for r in range(mr):
            top[r] = MASKED
        for i in range(blocks):
            block = 0 if i == 0 else oldest + i - 1
            slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
            source, steps = (q_sink, q_sink_step) if i == 0 else (q, q_step)
            for half in range(2):
                _sums(kern, mr, source, row * HEAD, HEAD, keys, slot * BYTES + half * (BYTES >> 1), HEAD, sums, half * 64, BLOCK)
            for r in range(mr):
                seen = BLOCK if block < current else position + (row + r) // group - block * BLOCK + 1
                high_r = _scores(
                    sums, r * BLOCK, seen, key_sum, key_step, slot * BLOCK, steps[row + r], scores, r * width + i * BLOCK
                )
                top[r] = imax(top[r], high_r)
        for r in range(mr):
            total[r] = 0
            peak[r] = 0
            for i in range(blocks):
                block = 0 if i == 0 else oldest + i - 1
                slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
                some, bits = _weights(scores, r * width + i * BLOCK, top[r], value_step, slot * BLOCK)
                total[r] += np.int64(some)
                high[r, i] = bits
                peak[r] = imax(peak[r], sar(bits, 23))
        for d in range(mr * HEAD):
            acc[d] = 0.0
        for i in range(blocks):
            block = 0 if i == 0 else oldest + i - 1
            slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
            for r in range(mr):
                exponent = sar(high[r, i], 23)
                below = isub(peak[r], exponent)
                if exponent < 16 or below > LEAST:
                    factor[r] = 0.0
                    for j in range(r * BLOCK, (r + 1) * BLOCK):
                        p[j] = 0
                else:
                    factor[r] = np.float64(float_of(shl(isub(127, below), 23)))
                    unit = float_of(shl(isub(2 * 127 + 7, exponent), 23))
                    _to_bytes(scores, r * width + i * BLOCK, unit, p, r * BLOCK)
            _weighted_values(kern, mr, p, values, slot * BYTES, sums, factor, acc)
        for r in range(mr):
            to = out_at + ((row + r) // group) * out_row + ((row + r) % group) * HEAD
            # A weight of 2^(exponent - 127) became 2^7: undo it with the row's largest exponent.
            back = np.float64(float_of(shl(isub(peak[r], 7), 23))) / np.float64(total[r]) if peak[r] > 7 else 0.0
            row_acc, row_out = acc[r * HEAD : (r + 1) * HEAD], out[to : to + HEAD]
            for d in range(HEAD):
                row_out[d] = np.float32(row_acc[d] * back)
        row += mr
