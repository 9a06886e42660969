"""The gradient of attention for the newest positions of one stream, one kv head and the queries that share it.

Queries are those of the last `n` positions; the keys and values of these positions get gradients, older ones in the
cache are constants (truncation as in Transformer-XL, arXiv 1901.02860, section 3.2). Probabilities are computed anew
over what the cache still holds. Products run on the integer kernels, block by block of 128 positions in the order of
the positions; the rest is elementwise float32, or sums of integers.

Knows one stream and one layer at a time, and the cache's layout. Does not know weights or layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from nacz.kernels.attention import BLOCK, BYTES, HEAD, put_query
from nacz.kernels.compile import compiled
from nacz.kernels.gemm import scaled_product
from nacz.kernels.gradients import exact_dot
from nacz.kernels.ops import iadd, imax, isub, to_float, trunc
from nacz.kernels.rows import int_exp2, quantise_rows
from nacz.kernels.spans import signed_bytes

HALF = HEAD // 2
SCORE_BITS = 14
TOGETHER = 16
SCORE_LIMIT = np.float32(2.0**23)
UNIT = np.float32(1.4426950408889634 / 8.0 * 16384.0)  # of a query's step: 1/sqrt(64), binary logarithm, 14 bits
UNDO = np.float32(1.0 / (1.4426950408889634 * 16384.0))  # leaves the 1/sqrt(64)
EIGHTH = np.float32(0.125)


class AttentionScratch(NamedTuple):
    """Work space for one thread; see `make_attention_scratch`."""

    q: Any
    q_step: Any
    ones: Any
    d_out: Any
    d_zero: Any
    d_step: Any
    inner: Any
    p: Any
    ds: Any
    bytes: Any
    zero: Any
    step: Any
    columns: Any
    small: Any
    sums: Any
    packed: Any
    turned: Any
    near: Any
    sink: Any
    out: Any
    unit: Any


def make_attention_scratch(aligned: Any, n: int, group: int, slots: int) -> AttentionScratch:
    """Work space for up to n positions of `group` heads in a window of `slots` blocks. `aligned(count, dtype)`."""
    rows = -(-n * group // 4) * 4
    most = max(rows, BLOCK)
    return AttentionScratch(
        q=aligned(2 * rows * HEAD, np.uint8),
        q_step=aligned(2 * rows, np.float32),
        ones=np.ones(rows, np.int32),
        d_out=aligned(rows * HEAD, np.uint8),
        d_zero=np.full(rows, 128, np.int32),
        d_step=aligned(rows, np.float32),
        inner=aligned(rows, np.float32),
        p=aligned(slots * rows * BLOCK, np.float32),
        ds=aligned(slots * rows * BLOCK, np.float32),
        bytes=aligned(rows * BLOCK, np.uint8),
        zero=aligned(most, np.int32),
        step=aligned(most, np.float32),
        columns=aligned(rows * BLOCK, np.float32),
        small=aligned(HEAD, np.int8),
        sums=aligned(BLOCK, np.int32),
        packed=aligned(BYTES, np.int8),
        turned=aligned(rows * HEAD, np.int8),
        near=aligned(rows * HEAD, np.float32),
        sink=aligned(rows * HEAD, np.float32),
        out=aligned(most * HEAD, np.float32),
        unit=np.ones(HEAD, np.float32),
    )


@compiled
def _values_as_columns(blocks: Any, at: int, packed: Any, sums: Any) -> None:
    """A block of values, packed with positions as terms, to one with positions as columns; and sums per position."""
    for j in range(BLOCK):
        total = np.int32(0)
        base, to = at + (j >> 2) * 256 + (j & 3), (j >> 6) * 64 * HEAD + (j & 63) * 4
        for d in range(HEAD):
            v = blocks[base + d * 4]
            packed[to + (d >> 2) * 256 + (d & 3)] = v
            total = iadd(total, np.int32(v))
        sums[j] = total


@compiled
def _keys_as_terms(blocks: Any, at: int, packed: Any, sums: Any) -> None:
    """A block of keys, packed with positions as columns, to one with positions as terms; and sums per dimension."""
    for d in range(HEAD):
        total = np.int32(0)
        for j in range(BLOCK):
            k = blocks[at + (j >> 6) * 64 * HEAD + (d >> 2) * 256 + (j & 63) * 4 + (d & 3)]
            packed[(j >> 2) * 256 + d * 4 + (j & 3)] = k
            total = iadd(total, np.int32(k))
        sums[d] = total


@compiled
def _bytes_as_terms(rows: int, padded: int, q: Any, packed: Any, sums: Any) -> None:
    """Bytes around 128 (uint8 [rows, 64]) to signed terms [padded / 4][64][4], zero beyond rows; and their sums."""
    sums[:HEAD] = 0
    for i in range(padded):
        for d in range(HEAD):
            v = isub(np.int32(q[i * HEAD + d]), 128) if i < rows else np.int32(0)
            packed[(i >> 2) * 256 + d * 4 + (i & 3)] = np.int8(v)
            sums[d] = iadd(sums[d], v)


@compiled
def _turned_rows(rows: int, padded: int, x: Any, step: Any, undo: Any, out: Any) -> None:
    """x float32 [rows, 128], row i times step[i] * undo, transposed: out float32 [128, padded], zero beyond rows.

    Some rows at a time, so that both sides of the transposition stay in the cache.
    """
    for first in range(0, padded, TOGETHER):
        some = min(TOGETHER, padded - first)
        for j in range(BLOCK):
            line = out[j * padded + first : j * padded + first + some]
            for i in range(some):
                row = first + i
                line[i] = x[row * BLOCK + j] * (step[row] * undo) if row < rows else np.float32(0.0)


@compiled
def _turn_back(x: Any, at: int, cos: Any, sin: Any, angle: int, unit: Any, out: Any, to: int) -> None:
    """Add `unit` times 64 float32 turned by minus the angles to out."""
    for i in range(HALF):
        a, b, c, s = x[at + i], x[at + HALF + i], cos[angle + i], sin[angle + i]
        out[to + i] = out[to + i] + (a * c + b * s) * unit
        out[to + HALF + i] = out[to + HALF + i] + (b * c - a * s) * unit


@compiled
def _probabilities(rows: int, group: int, position: int, oldest: int, blocks: int, p: Any) -> None:
    """Scores in p (float32 [blocks][rows][128], 14 fraction bits of log2) to probabilities; later keys become 0."""
    for i in range(rows):
        own = position + i // group
        top = np.int32(-(1 << 30))
        for b in range(blocks):
            seen = min(own - (0 if b == 0 else oldest + b - 1) * BLOCK + 1, BLOCK)
            line = p[(b * rows + i) * BLOCK : (b * rows + i + 1) * BLOCK]
            for j in range(seen):
                top = imax(top, trunc(min(max(line[j], -SCORE_LIMIT), SCORE_LIMIT)))
        total = np.int64(0)
        for b in range(blocks):
            seen = max(0, min(own - (0 if b == 0 else oldest + b - 1) * BLOCK + 1, BLOCK))
            line = p[(b * rows + i) * BLOCK : (b * rows + i + 1) * BLOCK]
            some = np.int32(0)
            for j in range(seen):
                e = int_exp2(isub(top, trunc(min(max(line[j], -SCORE_LIMIT), SCORE_LIMIT))), SCORE_BITS)
                line[j] = to_float(e)
                some = iadd(some, e)
            total += np.int64(some)
            line[seen:] = np.float32(0.0)
        inverse = np.float32(1.0 / np.float64(total))
        for b in range(blocks):
            line = p[(b * rows + i) * BLOCK : (b * rows + i + 1) * BLOCK]
            for j in range(BLOCK):
                line[j] = line[j] * inverse


@compiled
def attention_gradient(
    kern: Any, n: int, position: int, group: int, slots: int, c: Any, cache_at: int, s: Any, qkv: Any, qkv_row: int,
    q_at: int, k_at: int, v_at: int, out: Any, d_out: Any, out_row: int, cos: Any, sin: Any, d_qkv: Any,
) -> None:  # fmt: skip
    """Gradients of queries, keys and values at the n positions from `position` on, for one kv head, into d_qkv.

    qkv, d_qkv: float32 rows of qkv_row numbers, the group's queries at q_at, keys at k_at, values at v_at, before
    turning. out, d_out: attention's result and the gradient in it, rows of out_row numbers, the group's at q_at. cos,
    sin: float32 [n][2][32], angles of the position and of its capped distance to the pinned block. c, cache_at as in
    `attend`; the cache holds the n positions already.
    """
    rows = n * group
    padded = (rows + 3) // 4 * 4
    blocks_, key_sum, key_step, value_step = c.blocks, c.key_sum, c.key_step, c.value_step
    q, q_step, p, ds, small = s.q, s.q_step, s.p, s.ds, s.small
    sink_row = q_step.size // 2
    for r in range(n):
        for g in range(group):
            i, at = r * group + g, r * qkv_row + q_at + g * HEAD
            angle = r * 2 * HALF
            q_step[i] = put_query(qkv, at, cos, sin, angle, UNIT, q, i * HEAD)
            q_step[sink_row + i] = put_query(qkv, at, cos, sin, angle + HALF, UNIT, q, (sink_row + i) * HEAD)
            at = r * out_row + q_at + g * HEAD
            top, _ = signed_bytes(d_out, at, small, 0)
            s.d_step[i] = top / np.float32(127.0)
            for d in range(HEAD):
                s.d_out[i * HEAD + d] = np.uint8(iadd(np.int32(small[d]), 128))
            s.inner[i] = np.float32(exact_dot(d_out, at, out, at, HEAD))
        # A cache shorter than these positions has dropped some keys already; they stay without a gradient.
        d_qkv[r * qkv_row + k_at : r * qkv_row + k_at + HEAD] = np.float32(0.0)
        d_qkv[r * qkv_row + v_at : r * qkv_row + v_at + HEAD] = np.float32(0.0)
    last = (position + n - 1) // BLOCK
    oldest = max(1, last - (slots - 2))
    blocks = 1 + max(0, last - oldest + 1)
    for b in range(blocks):
        number = 0 if b == 0 else oldest + b - 1
        slot = cache_at + (0 if b == 0 else 1 + (number - 1) % (slots - 1))
        turned = sink_row if b == 0 else 0
        scaled_product(
            kern, rows, BLOCK, HEAD, q[turned * HEAD :], s.ones, q_step[turned:], blocks_, slot * 2 * BYTES, key_sum,
            key_step, slot * BLOCK, p[b * rows * BLOCK :],
        )  # fmt: skip
    _probabilities(rows, group, position, oldest, blocks, p)
    s.near[: rows * HEAD] = np.float32(0.0)
    s.sink[: rows * HEAD] = np.float32(0.0)
    for b in range(blocks):
        number = 0 if b == 0 else oldest + b - 1
        slot = cache_at + (0 if b == 0 else 1 + (number - 1) % (slots - 1))
        line = ds[b * rows * BLOCK : (b + 1) * rows * BLOCK]
        _values_as_columns(blocks_, (slot * 2 + 1) * BYTES, s.packed, s.sums)
        scaled_product(
            kern, rows, BLOCK, HEAD, s.d_out, s.d_zero, s.d_step, s.packed, 0, s.sums, value_step[slot * BLOCK :], 0,
            line,
        )  # fmt: skip
        steps = key_step[slot * BLOCK : (slot + 1) * BLOCK]
        for i in range(rows):
            inner = s.inner[i]
            grad, prob = line[i * BLOCK : (i + 1) * BLOCK], p[(b * rows + i) * BLOCK : (b * rows + i + 1) * BLOCK]
            scaled = s.columns[i * BLOCK : (i + 1) * BLOCK]
            for j in range(BLOCK):
                grad[j] = prob[j] * (grad[j] - inner)
                scaled[j] = grad[j] * steps[j]
        quantise_rows(rows, BLOCK, s.columns, s.bytes, s.zero, s.step)
        _keys_as_terms(blocks_, slot * 2 * BYTES, s.packed, s.sums)
        scaled_product(
            kern, rows, HEAD, BLOCK, s.bytes, s.zero, s.step, s.packed, 0, s.sums, s.unit, 0, s.out
        )
        into = s.sink if b == 0 else s.near
        for i in range(rows * HEAD):
            into[i] = into[i] + s.out[i]
    for r in range(n):
        for g in range(group):
            i, to, angle = r * group + g, r * qkv_row + q_at + g * HEAD, r * 2 * HALF
            d_qkv[to : to + HEAD] = np.float32(0.0)
            _turn_back(s.near, i * HEAD, cos, sin, angle, EIGHTH, d_qkv, to)
            _turn_back(s.sink, i * HEAD, cos, sin, angle + HALF, EIGHTH, d_qkv, to)
    # Keys and values of the positions themselves: sums over the queries.
    for number in range(position // BLOCK, last + 1):
        if 0 < number < oldest:
            continue  # what lies there by now is another block
        b = 0 if number == 0 else number - oldest + 1
        turned = sink_row if number == 0 else 0
        begin, end = max(position, number * BLOCK), min(position + n, (number + 1) * BLOCK)
        for which in range(2):
            source, undo = (ds, UNDO) if which == 0 else (p, np.float32(1.0))
            step = q_step[turned:] if which == 0 else s.d_step
            _turned_rows(rows, padded, source[b * rows * BLOCK : (b + 1) * rows * BLOCK], step, undo, s.columns)
            quantise_rows(BLOCK, padded, s.columns, s.bytes, s.zero, s.step)
            _bytes_as_terms(rows, padded, q[turned * HEAD :] if which == 0 else s.d_out, s.turned, s.sums)
            scaled_product(
                kern, BLOCK, HEAD, padded, s.bytes, s.zero, s.step, s.turned, 0, s.sums, s.unit, 0, s.out
            )
            for pos in range(begin, end):
                j, r = pos - number * BLOCK, pos - position
                if which == 0:
                    to = r * qkv_row + k_at
                    _turn_back(s.out, j * HEAD, cos, sin, r * 2 * HALF, np.float32(1.0), d_qkv, to)
                else:
                    to = r * qkv_row + v_at
                    for d in range(HEAD):
                        d_qkv[to + d] = s.out[j * HEAD + d]
