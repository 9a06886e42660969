"""Grouped-query attention over a blocked int8 cache of keys and values, exact.

Keys and values live in blocks of 128 consecutive positions. The first block of a stream is pinned (attention sinks,
arXiv 2309.17453); the others form a ring. Which blocks a query sees depends on its position alone: block 0 and the last
`slots - 1` blocks up to its own. Scores are integer sums scaled elementwise to fixed point. Within a block,
probabilities are integers relative to a whole power of two at or above the largest, and their product with the values
runs on bytes, exact in int32. Blocks are added in the order of their positions, elementwise in float64, each times a
power of two: a fixed order of IEEE additions that no grouping of rows, lanes or vectors touches.

Knows one stream and one layer at a time. Does not know weights, layers or where rows come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.amx import ROWS as TILE_ROWS
from nacz.kernels.amx import configure, release
from nacz.kernels.compile import inner
from nacz.kernels.gemm import by_tiles, sums_by_tiles, sums_product
from nacz.kernels.ops import iadd, imul, isub, power_of_two
from nacz.kernels.spans import (
    add_span,
    scale_span,
    signed_bytes,
    turned_bytes,
    turned_signed,
    weigh_span,
    weigh_whole,
)  # fmt: skip

BLOCK = 128  # positions per cache block; also what one step of the power-of-two probability scale covers
HEAD = 64  # width of a head
BYTES = BLOCK * HEAD  # int8 of keys, or of values, per block and kv head
AHEAD = BYTES  # how far to prefetch where a tile has the rows of one query, in bytes: a decoder waits for its cache
ROWS = 6  # rows per tile
TOGETHER = 12  # rows that walk the blocks together
MOST_ROWS, MOST_TOGETHER = TILE_ROWS, 3 * TILE_ROWS  # the same with tile registers: what work space is made for


@inner
def put_query(x: Any, at: int, cos: Any, sin: Any, angle: int, unit: Any, q: Any, q_at: int) -> Any:
    """Turn and quantise one query head to bytes around 128; returns its step times `unit` (float32)."""
    top, _ = turned_bytes(x, at, cos, sin, angle, q, q_at)
    return (top / np.float32(127.0)) * unit


@inner
def put_key(
    x: Any, at: int, cos: Any, sin: Any, angle: int, small: Any, c: Any, block_at: int, j: int, index: int
) -> None:
    """Turn and quantise one key into row j of its block, laid out as packed columns ([j/64][16][j%64][4])."""
    top, total = turned_signed(x, at, cos, sin, angle, small, 0)
    base = block_at + (j >> 6) * 64 * HEAD + (j & 63) * 4
    out = c.blocks[base : base + 64 * HEAD - 252]
    for i in range(HEAD):
        out[(i >> 2) * 256 + (i & 3)] = small[i]
    c.key_step[index] = top / np.float32(127.0)
    c.key_sum[index] = imul(total, 128)


@inner
def put_value(x: Any, at: int, small: Any, c: Any, block_at: int, j: int, index: int) -> None:
    """Quantise one value into column j of its block: packed with the 128 positions as terms ([32][64][4])."""
    top, _ = signed_bytes(x, at, small, 0)
    base = block_at + (j >> 2) * 256 + (j & 3)
    out = c.blocks[base : base + 253]
    for d in range(HEAD):
        out[d * 4] = small[d]
    c.value_step[index] = top / np.float32(127.0)


@inner
def attend(
    kern: Any, rows: int, position: int, group: int, slots: int, c: Any, cache_at: int, s: Any,
    out: Any, out_at: int, out_row: int,
) -> None:  # fmt: skip
    """Attention of `rows` consecutive positions from `position` on, all in one block, for one kv head.

    c: a cache (blocks: int8, keys then values of each block; key_step, key_sum, value_step per position), of which this
    kv head owns `slots` blocks from `cache_at` on. s: scratch with q (uint8 [2][rows, group, 64] as `put_query` makes
    them, the second half turned for the pinned block), their steps, and the work space of `Scratch`. out: float32; the
    group's heads of row r go to out_at + r * out_row.
    """
    # Taken out of their tuples once: each access inside the loops would count references.
    kv, key_sum, key_step, value_step = c.blocks, c.key_sum, c.key_step, c.value_step
    q, q_step, sums, p, acc, total, factor = s.q, s.q_step, s.sums, s.p, s.acc, s.total, s.factor
    sink_row = q_step.size // 2
    current = position // BLOCK
    oldest = max(1, current - (slots - 2))
    blocks = 1 + max(0, current - oldest + 1)
    n_rows = rows * group
    tiles = by_tiles(kern, n_rows, HEAD)
    row, most, configured = 0, MOST_ROWS if tiles else ROWS, 0
    while row < n_rows:
        together = min(MOST_TOGETHER if tiles else TOGETHER, n_rows - row)
        if tiles:
            # Full tiles, or in the end one that is not full.
            together = max(together // most * most, min(together, most))
            if configured != min(together, most):
                configured = min(together, most)
                configure(kern, configured)
        for r in range(together):
            total[r] = 0.0
            for d in range(r * HEAD, (r + 1) * HEAD):
                acc[d] = 0.0
        for i in range(blocks):
            block = 0 if i == 0 else oldest + i - 1
            slot = cache_at + (0 if i == 0 else 1 + (block - 1) % (slots - 1))
            turned = sink_row if i == 0 else 0
            at = slot * 2 * BYTES
            for first in range(0, together, most):
                mr = min(most, together - first)
                q_at = (turned + row + first) * HEAD
                if tiles:
                    sums_by_tiles(kern, q, q_at, HEAD, kv, at, HEAD, sums, 0, BLOCK)
                    sums_by_tiles(kern, q, q_at, HEAD, kv, at + (BYTES >> 1), HEAD, sums, 64, BLOCK)
                else:
                    sums_product(kern, mr, q, q_at, HEAD, kv, at, HEAD, sums, 0, BLOCK, AHEAD)
                    sums_product(kern, mr, q, q_at, HEAD, kv, at + (BYTES >> 1), HEAD, sums, 64, BLOCK, AHEAD)
                for r in range(mr):
                    j = row + first + r
                    if block < current:
                        whole, some, exponent = weigh_whole(
                            sums, r * BLOCK, key_sum, key_step, value_step, slot * BLOCK, q_step[turned + j],
                            p, r * BLOCK,
                        )  # fmt: skip
                    else:
                        whole, some, exponent = weigh_span(
                            sums, r * BLOCK, key_sum, key_step, value_step, slot * BLOCK, q_step[turned + j],
                            np.int32(position + j // group - block * BLOCK + 1), p, r * BLOCK,
                        )  # fmt: skip
                    total[first + r] += np.float64(some) * power_of_two(whole)
                    factor[r] = power_of_two(isub(iadd(whole, exponent), 134))
                # |sum| <= 128 * 255 * 127 < 2^22
                if tiles:
                    sums_by_tiles(kern, p, 0, BLOCK, kv, at + BYTES, BLOCK, sums, 0, HEAD)
                else:
                    sums_product(kern, mr, p, 0, BLOCK, kv, at + BYTES, BLOCK, sums, 0, HEAD, AHEAD)
                for r in range(mr):
                    add_span(sums, r * HEAD, factor[r], acc, (first + r) * HEAD)
        for r in range(together):
            to = out_at + ((row + r) // group) * out_row + ((row + r) % group) * HEAD
            scale_span(acc, r * HEAD, 1.0 / total[r], out, to)
        row += together
    if tiles:
        release(kern)
