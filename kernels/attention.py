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
    float_of,
    imax,
    imul,
    isub,
    sar,
    shl,
)  # fmt: skip
from nacz.kernels.spans import (
    add_span,
    bytes_span,
    scale_span,
    scores_span,
    signed_bytes,
    turned_bytes,
    turned_signed,
    weights_span,
)  # fmt: skip
from nacz.kernels.tiles import SUMS, SUMS_AHEAD, tile

BLOCK = 128  # positions per cache block; also what one step of the power-of-two probability scale covers
HEAD = 64  # width of a head
BYTES = BLOCK * HEAD  # int8 per block and kv head
MASKED = -(1 << 30)
ROWS = 6  # rows per tile
TOGETHER = 12  # rows that walk the blocks together
LEAST = 24  # a block whose largest weight is 2^-24 of the row's largest adds nothing


@compiled
def put_query(x: Any, at: int, cos: Any, sin: Any, angle: int, unit: Any, q: Any, q_at: int) -> Any:
    """Turn and quantise one query head to bytes around 128; returns its step times `unit` (float32)."""
    top, _ = turned_bytes(x, at, cos, sin, angle, q, q_at)
    return (top / np.float32(127.0)) * unit


@compiled
def put_key(x: Any, at: int, cos: Any, sin: Any, angle: int, small: Any, c: Any, block_at: int, j: int, index: int) -> None:
    """Turn and quantise one key into row j of its block, laid out as packed columns ([j/16][16][j%16][4])."""
    top, total = turned_signed(x, at, cos, sin, angle, small, 0)
    base = block_at + (j >> 4) * 16 * HEAD + (j & 15) * 4
    out = c.keys[base : base + 16 * HEAD - 60]
    for i in range(HEAD):
        out[(i >> 2) * 64 + (i & 3)] = small[i]
    c.key_step[index] = top / np.float32(127.0)
    c.key_sum[index] = imul(total, 128)


@compiled
def put_value(x: Any, at: int, small: Any, c: Any, block_at: int, j: int, index: int) -> None:
    """Quantise one value into column j of its block: packed with the 128 positions as terms ([d/16][32][d%16][4])."""
    top, _ = signed_bytes(x, at, small, 0)
    base = block_at + (j >> 2) * 64 + (j & 3)
    out = c.values[base:]
    for d in range(HEAD):
        out[(d >> 4) * 16 * BLOCK + (d & 15) * 4] = small[d]
    c.value_step[index] = top / np.float32(127.0)


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
        # One query and its group of three heads: a decoder, whose time is spent reading the cache.
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 3, 4, out, out, 0, out, out, 0, SUMS_AHEAD, BYTES)
    elif mr == 2:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 2, 4, out, out, 0, out, out, 0, SUMS, 0)
    else:
        tile(kern, a, a_at, a_row, b, b_at, w, k4, out, out_at, out_row, 1, 4, out, out, 0, out, out, 0, SUMS, 0)


@compiled
def _scores(
    sums: Any, at: int, seen: int, key_sum: Any, key_step: Any, index: int, step: Any, scores: Any, to: int
) -> Any:
    """A block of sums of one row to fixed-point scores; returns their maximum. Keys from `seen` on are masked."""
    top = scores_span(sums, at, key_sum, key_step, index, step, scores, to)
    if seen < BLOCK:
        top = np.int32(MASKED)
        row = scores[to : to + BLOCK]
        for j in range(seen):
            top = imax(top, row[j])
        for j in range(seen, BLOCK):
            row[j] = MASKED
    return top


@compiled
def _weighted_values(
    kern: Any, mr: int, p: Any, values: Any, v_at: int, sums: Any, factor: Any, acc: Any, acc_at: int
) -> None:
    """acc[r] += factor[r] * (p[r] . values) for 64 dimensions.

    |sum| <= 128 * 255 * 127 < 2^22, factor is a power of two in [2^-24, 1]: all terms are multiples of 2^-24 below
    2^22, and with at most 2^7 blocks the float64 accumulator needs 53 bits: it is exact, so the order of blocks is free.
    """
    _sums(kern, mr, p, 0, BLOCK, values, v_at, BLOCK, sums, 0, HEAD)
    for r in range(mr):
        if factor[r] != 0.0:
            add_span(sums, r * HEAD, factor[r], acc, acc_at + r * HEAD)


@compiled
def attend(
    kern: Any, rows: int, position: int, group: int, slots: int, c: Any, cache_at: int, s: Any,
    out: Any, out_at: int, out_row: int,
) -> None:  # fmt: skip
    """Attention of `rows` consecutive positions from `position` on, all in one block, for one kv head.

    c: a cache (keys, values: int8 blocks; key_step, key_sum, value_step per position), of which this kv head owns `slots`
    blocks from `cache_at` on. s: scratch with q (uint8 [2][rows, group, 64] as `put_query` makes them, the second half
    turned for the pinned block), their steps, and the work space of `Scratch`. out: float32; the group's heads of row r
    go to out_at + r * out_row.
    """
    # Taken out of their tuples once: each access inside the loops would count references.
    keys, key_sum, key_step, values, value_step = c.keys, c.key_sum, c.key_step, c.values, c.value_step
    q, q_step, scores, sums, p, acc = s.q, s.q_step, s.scores, s.sums, s.p, s.acc
    top, total, peak, high, factor = s.top, s.total, s.peak, s.high, s.factor
    sink_row = q_step.size // 2
    current = position // BLOCK
    oldest = max(1, current - (slots - 2))
    blocks = 1 + max(0, current - oldest + 1)
    width = slots * BLOCK
    n_rows = rows * group
    # Each row tile walks all blocks three times: scores, weights, values. Several tiles go together, so that a block read
    # once from the second-level cache serves them all.
    row = 0
    while row < n_rows:
        together = min(TOGETHER, n_rows - row)
        for r in range(together):
            top[r] = MASKED
            total[r] = 0
            peak[r] = 0
        for i in range(blocks):
            block = 0 if i == 0 else oldest + i - 1
            slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
            turned = sink_row if i == 0 else 0
            for first in range(0, together, ROWS):
                mr = min(ROWS, together - first)
                at = (turned + row + first) * HEAD
                _sums(kern, mr, q, at, HEAD, keys, slot * BYTES, HEAD, sums, 0, BLOCK)
                _sums(kern, mr, q, at, HEAD, keys, slot * BYTES + (BYTES >> 1), HEAD, sums, 64, BLOCK)
                for r in range(mr):
                    j = first + r
                    seen = BLOCK if block < current else position + (row + j) // group - block * BLOCK + 1
                    found = _scores(
                        sums, r * BLOCK, seen, key_sum, key_step, slot * BLOCK, q_step[turned + row + j],
                        scores, j * width + i * BLOCK,
                    )  # fmt: skip
                    top[j] = imax(top[j], found)
        for i in range(blocks):
            block = 0 if i == 0 else oldest + i - 1
            slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
            for r in range(together):
                some, bits = weights_span(scores, r * width + i * BLOCK, top[r], value_step, slot * BLOCK)
                total[r] += np.int64(some)
                exponent = sar(bits, 23)
                high[r * slots + i] = exponent
                peak[r] = imax(peak[r], exponent)
        for d in range(together * HEAD):
            acc[d] = 0.0
        for i in range(blocks):
            block = 0 if i == 0 else oldest + i - 1
            slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
            for first in range(0, together, ROWS):
                mr = min(ROWS, together - first)
                for r in range(mr):
                    j = first + r
                    exponent = high[j * slots + i]
                    below = isub(peak[j], exponent)
                    if exponent < 16 or below > LEAST:
                        factor[r] = 0.0
                        bytes_span(scores, 0, np.float32(0.0), p, r * BLOCK)
                    else:
                        factor[r] = np.float64(float_of(shl(isub(127, below), 23)))
                        unit = float_of(shl(isub(2 * 127 + 7, exponent), 23))
                        bytes_span(scores, j * width + i * BLOCK, unit, p, r * BLOCK)
                _weighted_values(kern, mr, p, values, slot * BYTES, sums, factor, acc, first * HEAD)
        for r in range(together):
            to = out_at + ((row + r) // group) * out_row + ((row + r) % group) * HEAD
            # A weight of 2^(exponent - 127) became 2^7: undo it with the row's largest exponent.
            back = 0.0
            if peak[r] > 7:
                back = np.float64(float_of(shl(isub(peak[r], 7), 23))) / np.float64(total[r])
            scale_span(acc, r * HEAD, back, out, to)
        row += together
