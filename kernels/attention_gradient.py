"""The gradient of attention for the newest positions of one stream, one kv head and the queries that share it.

Queries are those of the last `n` positions; the keys and values of these positions get gradients, older ones in the
cache are constants (truncation as in Transformer-XL, arXiv 1901.02860, section 3.2). Probabilities are computed anew
over the pinned block and the newest ones: what lies further back changes the gradient little and costs most of the
time. Products run on the integer kernels, block by block of 128 positions in the order of
the positions; the rest is elementwise float32, or sums of integers.

Knows one stream and one layer at a time, and the cache's layout. Does not know weights or layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from nacz.kernels.attention import BLOCK, BYTES, HEAD, put_query
from nacz.kernels.compile import inner
from nacz.kernels.gemm import scaled_product
from nacz.kernels.gradients import exact_dot
from nacz.kernels.ops import iadd, iand, imax, ior, isub, sar, shl, to_float, trunc
from nacz.kernels.rows import int_exp2, quantise_rows
from nacz.kernels.spans import signed_bytes

HALF = HEAD // 2
SCORE_BITS = 14
TOGETHER = 16
NEWEST = 16  # blocks that a gradient looks at, the pinned one included (docs/learning.md)
CHUNK = 16  # positions whose scores are at hand together, so that they stay in the second-level cache
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
    own_p: Any
    own_ds: Any
    bytes: Any
    zero: Any
    step: Any
    columns: Any
    small: Any
    sums: Any
    values: Any
    value_sums: Any
    keys: Any
    key_sums: Any
    turned: Any
    near: Any
    sink: Any
    out: Any
    unit: Any


def scratch_floats(n: int, group: int, slots: int) -> int:
    """About how many float32 the scratch for such a call takes."""
    rows = -(-n * group // 4) * 4
    return BLOCK * (min(slots, NEWEST) * (CHUNK * group + HEAD) + 2 * _own_blocks(n) * rows + 2 * rows)


def _own_blocks(n: int) -> int:
    """Most blocks that n consecutive positions lie in."""
    return (n + 2 * BLOCK - 2) // BLOCK


def make_attention_scratch(aligned: Any, n: int, group: int, slots: int) -> AttentionScratch:
    """Work space for up to n positions of `group` heads in a window of `slots` blocks. `aligned(count, dtype)`."""
    rows = -(-n * group // 4) * 4
    most, slots = max(rows, BLOCK), min(slots, NEWEST)
    own = _own_blocks(n) * rows * BLOCK
    return AttentionScratch(
        q=aligned(2 * rows * HEAD, np.uint8),
        q_step=aligned(2 * rows, np.float32),
        ones=np.ones(rows, np.int32),
        d_out=aligned(rows * HEAD, np.uint8),
        d_zero=np.full(rows, 128, np.int32),
        d_step=aligned(rows, np.float32),
        inner=aligned(rows, np.float32),
        p=aligned(slots * CHUNK * group * BLOCK, np.float32),
        ds=aligned(CHUNK * group * BLOCK, np.float32),
        own_p=aligned(own, np.float32),
        own_ds=aligned(own, np.float32),
        bytes=aligned(rows * BLOCK, np.uint8),
        zero=aligned(most, np.int32),
        step=aligned(most, np.float32),
        columns=aligned(rows * BLOCK, np.float32),
        small=aligned(HEAD, np.int8),
        sums=aligned(HEAD, np.int32),
        values=aligned(slots * BYTES, np.int8),
        value_sums=aligned(slots * BLOCK, np.int32),
        keys=aligned(slots * BYTES, np.int8),
        key_sums=aligned(slots * HEAD, np.int32),
        turned=aligned(rows * HEAD, np.int8),
        near=aligned(rows * HEAD, np.float32),
        sink=aligned(rows * HEAD, np.float32),
        out=aligned(most * HEAD, np.float32),
        unit=np.ones(HEAD, np.float32),
    )


@inner
def _byte(word: Any, i: int) -> Any:
    """Signed byte i of an int32, as int32."""
    return sar(shl(word, 24 - 8 * i), 24)


@inner
def _four(w0: Any, w1: Any, w2: Any, w3: Any, i: int) -> Any:
    """Bytes i of four int32 in one."""
    low = ior(iand(sar(w0, 8 * i), 255), shl(iand(sar(w1, 8 * i), 255), 8))
    return ior(low, ior(shl(iand(sar(w2, 8 * i), 255), 16), shl(sar(w3, 8 * i), 24)))


@inner
def _values_as_columns(blocks: Any, at: int, packed: Any, to: int, sums: Any, sums_at: int) -> None:
    """A block of values, packed with positions as terms, to one with positions as columns; and sums per position.

    Both orders hold four positions of four dimensions in 16 consecutive bytes, one the transposed of the other.
    """
    source, out = blocks[at : at + BYTES].view(np.int32), packed[to : to + BYTES].view(np.int32)
    some = sums[sums_at : sums_at + BLOCK]
    some[:] = 0
    for j in range(BLOCK // 4):
        for d in range(HEAD // 4):
            i, o = j * 64 + d * 4, (j >> 4) * 1024 + d * 64 + (j & 15) * 4
            w0, w1, w2, w3 = source[i], source[i + 1], source[i + 2], source[i + 3]
            for k in range(4):
                out[o + k] = _four(w0, w1, w2, w3, k)
                total = iadd(iadd(_byte(w0, k), _byte(w1, k)), iadd(_byte(w2, k), _byte(w3, k)))
                some[4 * j + k] = iadd(some[4 * j + k], total)


@inner
def _keys_as_terms(blocks: Any, at: int, packed: Any, to: int, sums: Any, sums_at: int) -> None:
    """A block of keys, packed with positions as columns, to one with positions as terms; and sums per dimension."""
    source, out = blocks[at : at + BYTES].view(np.int32), packed[to : to + BYTES].view(np.int32)
    some = sums[sums_at : sums_at + HEAD]
    some[:] = 0
    for j in range(BLOCK // 4):
        for d in range(HEAD // 4):
            i, o = (j >> 4) * 1024 + d * 64 + (j & 15) * 4, j * 64 + d * 4
            w0, w1, w2, w3 = source[i], source[i + 1], source[i + 2], source[i + 3]
            for k in range(4):
                out[o + k] = _four(w0, w1, w2, w3, k)
                total = iadd(iadd(_byte(w0, k), _byte(w1, k)), iadd(_byte(w2, k), _byte(w3, k)))
                some[4 * d + k] = iadd(some[4 * d + k], total)


@inner
def _bytes_as_terms(rows: int, padded: int, q: Any, packed: Any, sums: Any) -> None:
    """Bytes around 128 (uint8 [rows, 64]) to signed terms [padded / 4][64][4], zero beyond rows; and their sums."""
    sums[:HEAD] = 0
    for i in range(padded):
        for d in range(HEAD):
            v = isub(np.int32(q[i * HEAD + d]), 128) if i < rows else np.int32(0)
            packed[(i >> 2) * 256 + d * 4 + (i & 3)] = np.int8(v)
            sums[d] = iadd(sums[d], v)


@inner
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


@inner
def _turn_back(x: Any, at: int, cos: Any, sin: Any, angle: int, unit: Any, out: Any, to: int) -> None:
    """Add `unit` times 64 float32 turned by minus the angles to out."""
    for i in range(HALF):
        a, b, c, s = x[at + i], x[at + HALF + i], cos[angle + i], sin[angle + i]
        out[to + i] = out[to + i] + (a * c + b * s) * unit
        out[to + HALF + i] = out[to + HALF + i] + (b * c - a * s) * unit


@inner
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


@inner
def _add_span(into: Any, at: int, x: Any, n: int) -> None:
    """into[at + i] += x[i] for n floats."""
    some = into[at : at + n]
    for i in range(n):
        some[i] = some[i] + x[i]


@inner
def _copy_span(x: Any, to: Any, at: int, n: int) -> None:
    some = to[at : at + n]
    for i in range(n):
        some[i] = x[i]


@inner
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
    oldest = max(1, last - (min(slots, NEWEST) - 2))
    blocks = 1 + max(0, last - oldest + 1)
    first_own = position // BLOCK
    for b in range(blocks):
        number = 0 if b == 0 else oldest + b - 1
        slot = cache_at + (0 if b == 0 else 1 + (number - 1) % (slots - 1))
        _values_as_columns(blocks_, (slot * 2 + 1) * BYTES, s.values, b * BYTES, s.value_sums, b * BLOCK)
        _keys_as_terms(blocks_, slot * 2 * BYTES, s.keys, b * BYTES, s.key_sums, b * HEAD)
    s.near[: rows * HEAD] = np.float32(0.0)
    s.sink[: rows * HEAD] = np.float32(0.0)
    s.own_p[: (last - first_own + 1) * rows * BLOCK] = np.float32(0.0)
    s.own_ds[: (last - first_own + 1) * rows * BLOCK] = np.float32(0.0)
    for first in range(0, n, CHUNK):
        row, m = first * group, min(CHUNK, n - first) * group
        current = (position + min(first + CHUNK, n) - 1) // BLOCK
        seen = 1 + max(0, current - oldest + 1)  # later blocks have no keys that these positions see
        for b in range(seen):
            number = 0 if b == 0 else oldest + b - 1
            slot = cache_at + (0 if b == 0 else 1 + (number - 1) % (slots - 1))
            turned = row + (sink_row if b == 0 else 0)
            scaled_product(
                kern, m, BLOCK, HEAD, q[turned * HEAD :], s.ones, q_step[turned:], blocks_, slot * 2 * BYTES, key_sum,
                key_step, slot * BLOCK, p[b * m * BLOCK :],
            )  # fmt: skip
        _probabilities(m, group, position + first, oldest, seen, p)
        for b in range(seen):
            number = 0 if b == 0 else oldest + b - 1
            slot = cache_at + (0 if b == 0 else 1 + (number - 1) % (slots - 1))
            probabilities = p[b * m * BLOCK : (b + 1) * m * BLOCK]
            scaled_product(
                kern, m, BLOCK, HEAD, s.d_out[row * HEAD :], s.d_zero, s.d_step[row:], s.values, b * BYTES,
                s.value_sums[b * BLOCK :], value_step[slot * BLOCK :], 0, ds,
            )  # fmt: skip
            steps = key_step[slot * BLOCK : (slot + 1) * BLOCK]
            for i in range(m):
                inner = s.inner[row + i]
                grad, prob = ds[i * BLOCK : (i + 1) * BLOCK], probabilities[i * BLOCK : (i + 1) * BLOCK]
                scaled = s.columns[i * BLOCK : (i + 1) * BLOCK]
                for j in range(BLOCK):
                    grad[j] = prob[j] * (grad[j] - inner)
                    scaled[j] = grad[j] * steps[j]
            quantise_rows(m, BLOCK, s.columns, s.bytes, s.zero, s.step)
            scaled_product(
                kern, m, HEAD, BLOCK, s.bytes, s.zero, s.step, s.keys, b * BYTES, s.key_sums[b * HEAD :], s.unit, 0,
                s.out,
            )  # fmt: skip
            into = s.sink if b == 0 else s.near
            _add_span(into, row * HEAD, s.out, m * HEAD)
            if number >= first_own:
                to = ((number - first_own) * rows + row) * BLOCK
                _copy_span(probabilities, s.own_p, to, m * BLOCK)
                _copy_span(ds, s.own_ds, to, m * BLOCK)
    for r in range(n):
        for g in range(group):
            i, to, angle = r * group + g, r * qkv_row + q_at + g * HEAD, r * 2 * HALF
            d_qkv[to : to + HEAD] = np.float32(0.0)
            _turn_back(s.near, i * HEAD, cos, sin, angle, EIGHTH, d_qkv, to)
            _turn_back(s.sink, i * HEAD, cos, sin, angle + HALF, EIGHTH, d_qkv, to)
    # Keys and values of the positions themselves: sums over the queries.
    for number in range(first_own, last + 1):
        if 0 < number < oldest:
            continue  # what lies there by now is another block
        b = number - first_own
        turned = sink_row if number == 0 else 0
        begin, end = max(position, number * BLOCK), min(position + n, (number + 1) * BLOCK)
        for which in range(2):
            source, undo = (s.own_ds, UNDO) if which == 0 else (s.own_p, np.float32(1.0))
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
