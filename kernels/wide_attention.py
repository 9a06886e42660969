"""Attention as in `nacz.kernels.attention` for heads of any width that is a multiple of 64, and for local layers.

Blocks of 128 positions, scores, byte weights and the order of additions are the same. A head of `width` has its keys as
128 packed columns of `width` terms and its values as `width` packed columns of 128 terms. Turned queries and keys are
mixed alike before they are rounded, so that no single number takes all of the 8 bits. They may have a norm of their
own: its gains multiply before the turning, the norm itself enters the step. A local layer sees the newest
`local` positions, exactly, and pins nothing: its blocks are one ring.

Knows one stream and one layer at a time. Does not know weights, layers or where rows come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.attention import BLOCK, ROWS, TOGETHER
from nacz.kernels.compile import compiled, inner
from nacz.kernels.gemm import sums_product
from nacz.kernels.ops import bits_of, float_of, iadd, imul, isub, power_of_two, round_near, sar, shl
from nacz.kernels.rows import TINY, largest, rotate_rows
from nacz.kernels.spans import add_span, scale_span, weigh_span, weigh_whole
from nacz.kernels.wide_spans import weigh_part


@inner
def root_mean_square(x: Any, at: int, n: int, count: int, eps: float) -> Any:
    """sqrt(mean of x^2 + eps), float64, of n float32 that are `count` numbers and zeros; as `normalise_rows` does it.
    The largest magnitude must be at least 2^-60."""
    exponent = isub(sar(bits_of(largest(x, at, n)), 23), 127)
    fixed = float_of(shl(isub(127 + 20, exponent), 23))
    squares = np.int64(0)
    row = x[at : at + n]
    for i in range(n):
        v = np.int64(round_near(row[i] * fixed))
        squares += v * v
    return np.sqrt(np.float64(squares) / (np.float64(fixed) * np.float64(fixed) * np.float64(count)) + eps)


@inner
def turn(x: Any, at: int, width: int, two: int, cos: Any, sin: Any, angle: int, out: Any) -> None:
    """RoPE of one head: pairs (i, i + width / 2); then mixed over `two` of [two][width / two] and not scaled. Into out
    float32[width]."""
    half = width // 2
    p, q = x[at : at + half], x[at + half : at + width]
    c, s = cos[angle : angle + half], sin[angle : angle + half]
    low, high = out[:half], out[half:width]
    for i in range(half):
        low[i] = p[i] * c[i] - q[i] * s[i]
        high[i] = q[i] * c[i] + p[i] * s[i]
    rotate_rows(1, width, two, 1, out)


@inner
def gained(x: Any, at: int, width: int, gain: Any, gain_at: int) -> None:
    """Multiply one head by gains, in place."""
    row, some = x[at : at + width], gain[gain_at : gain_at + width]
    for i in range(width):
        row[i] = row[i] * some[i]


@compiled
def rounded(x: Any, at: int, width: int, small: Any) -> Any:
    """One head to signed bytes in `small`; returns (largest magnitude / 127, sum of the bytes)."""
    top = largest(x, at, width)
    inverse = np.float32(127.0) / max(top, TINY)
    total = np.int32(0)
    row = x[at : at + width]
    for i in range(width):
        v = round_near(row[i] * inverse)
        small[i] = np.int8(v)
        total = iadd(total, v)
    return top / np.float32(127.0), total


@inner
def put_wide_query(
    x: Any, at: int, width: int, two: int, cos: Any, sin: Any, angle: int, rms: float, unit: Any, turned: Any,
    small: Any, q: Any, q_at: int,
) -> Any:  # fmt: skip
    """Turn and round one query to bytes around 128; returns its step, divided by `rms`, times `unit` (float32)."""
    turn(x, at, width, two, cos, sin, angle, turned)
    step, _ = rounded(turned, 0, width, small)
    out = q[q_at : q_at + width]
    for i in range(width):
        out[i] = np.uint8(np.int32(small[i]) + 128)
    return np.float32(np.float64(step) / rms) * unit


@inner
def put_wide_key(
    x: Any, at: int, width: int, two: int, cos: Any, sin: Any, angle: int, rms: float, turned: Any, small: Any, c: Any,
    block_at: int, j: int, index: int,
) -> None:  # fmt: skip
    """Turn and round one key into row j of its block, laid out as packed columns ([j / 64][width / 4][j % 64][4])."""
    turn(x, at, width, two, cos, sin, angle, turned)
    step, total = rounded(turned, 0, width, small)
    base = block_at + (j >> 6) * 64 * width + (j & 63) * 4
    out = c.blocks[base : base + 64 * width - 252]
    for i in range(width):
        out[(i >> 2) * 256 + (i & 3)] = small[i]
    c.key_step[index] = np.float32(np.float64(step) / rms)
    c.key_sum[index] = imul(total, 128)


@inner
def put_wide_value(x: Any, at: int, width: int, small: Any, c: Any, block_at: int, j: int, index: int) -> None:
    """Round one value into term j of its block: packed columns ([width / 64][32][64][4])."""
    step, _ = rounded(x, at, width, small)
    for panel in range(width // 64):
        base = block_at + panel * 64 * BLOCK + (j >> 2) * 256 + (j & 3)
        out = c.blocks[base : base + 253]
        some = small[64 * panel : 64 * panel + 64]
        for d in range(64):
            out[d * 4] = some[d]
    c.value_step[index] = step


@inner
def slot_of(block: int, slots: int, local: int) -> Any:
    """Where a block lies among those of its head: one ring, or the pinned block and a ring."""
    if local:
        return block % slots
    return 0 if block == 0 else 1 + (block - 1) % (slots - 1)


@inner
def attend_wide(
    kern: Any, rows: int, position: int, group: int, slots: int, width: int, local: int, c: Any, cache_at: int, s: Any,
    out: Any, out_at: int, out_row: int,
) -> None:  # fmt: skip
    """Attention of `rows` consecutive positions from `position` on, all in one block, for one kv head.

    As `nacz.kernels.attention.attend`, with `width` for the width of a head; `local`: positions that a query sees, 0
    for the pinned block and all that the other slots hold.
    """
    kv, key_sum, key_step, value_step = c.blocks, c.key_sum, c.key_step, c.value_step
    q, q_step, sums, p, acc, total, factor = s.q, s.q_step, s.sums, s.p, s.acc, s.total, s.factor
    sink_row, size = q_step.size // 2, BLOCK * width
    current = position // BLOCK
    if local:
        oldest = max(0, position - local + 1) // BLOCK
        blocks = current - oldest + 1
    else:
        oldest = max(1, current - (slots - 2)) - 1
        blocks = 1 + max(0, current - oldest)
    n_rows = rows * group
    row = 0
    while row < n_rows:
        together = min(TOGETHER, n_rows - row)
        for r in range(together):
            total[r] = 0.0
            for d in range(r * width, (r + 1) * width):
                acc[d] = 0.0
        for i in range(blocks):
            block = oldest + i if local or i > 0 else 0
            slot = cache_at + slot_of(block, slots, local)
            turned = 0 if local or i > 0 else sink_row
            at = slot * 2 * size
            for first in range(0, together, ROWS):
                mr = min(ROWS, together - first)
                q_at = (turned + row + first) * width
                sums_product(kern, mr, q, q_at, width, kv, at, width, sums, 0, BLOCK, 0)
                sums_product(kern, mr, q, q_at, width, kv, at + (size >> 1), width, sums, 64, BLOCK, 0)
                for r in range(mr):
                    j = row + first + r
                    where = position + j // group - block * BLOCK
                    seen, begin = min(BLOCK, where + 1), max(0, where - local + 1) if local else 0
                    factor[r] = 0.0
                    if begin >= BLOCK:
                        continue  # this row is already too far from the block
                    if begin == 0 and seen == BLOCK:
                        whole, some, exponent = weigh_whole(
                            sums, r * BLOCK, key_sum, key_step, value_step, slot * BLOCK, q_step[turned + j],
                            p, r * BLOCK,
                        )  # fmt: skip
                    elif begin == 0:
                        whole, some, exponent = weigh_span(
                            sums, r * BLOCK, key_sum, key_step, value_step, slot * BLOCK, q_step[turned + j],
                            np.int32(seen), p, r * BLOCK,
                        )  # fmt: skip
                    else:
                        whole, some, exponent = weigh_part(
                            sums, r * BLOCK, key_sum, key_step, value_step, slot * BLOCK, q_step[turned + j],
                            np.int32(begin), np.int32(seen), p, r * BLOCK,
                        )  # fmt: skip
                    total[first + r] += np.float64(some) * power_of_two(whole)
                    factor[r] = power_of_two(isub(iadd(whole, exponent), 134))
                # |sum| <= 128 * 255 * 127 < 2^22
                for panel in range(width // 64):
                    sums_product(kern, mr, p, 0, BLOCK, kv, at + size + panel * 64 * BLOCK, BLOCK, sums, 0, 64, 0)
                    for r in range(mr):
                        if factor[r] != 0.0:
                            add_span(sums, r * 64, factor[r], acc, (first + r) * width + panel * 64)
        for r in range(together):
            to = out_at + ((row + r) // group) * out_row + ((row + r) % group) * width
            for d in range(0, width, 64):
                scale_span(acc, r * width + d, 1.0 / total[r], out, to + d)
        row += together
