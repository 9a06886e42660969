"""The general kind of transformer (`nacz.weights.general`) in exact arithmetic: from tokens to rows of logits.

The same functions as `nacz.predictors.transformer` has for the plain kind, with shapes and weights of their own type,
by which `nacz.predictors.networks` tells them apart. Such a model does not learn while it codes.

Knows weights as arrays and streams as lanes with a position each. Does not know text, coding, files or threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.attention import BLOCK, MOST_ROWS, MOST_TOGETHER
from nacz.kernels.cdf import LIMIT
from nacz.kernels.compile import compiled, inner
from nacz.kernels.gemm import scaled_product
from nacz.kernels.general_rows import add_bias, gelu_rows, prepare_rows, renormalise_rows
from nacz.kernels.rope import STEP, angles
from nacz.kernels.rows import TINY, add_rows, gated_rows, largest, normalise_rows, quantise_rows, rotate_rows
from nacz.kernels.sharing import follow, make_shares, pass_on
from nacz.kernels.wide_attention import (
    attend_wide,
    gained,
    put_wide_key,
    put_wide_query,
    put_wide_value,
    root_mean_square,
    slot_of,
)
from nacz.predictors.reach import starts_of
from nacz.predictors.transformer import LOG2_E, Cache, keep_key, key_layer
from nacz.weights.exact import ExactModel, factors, ffn_mixing
from nacz.weights.general import GELU, OUT_BIAS, QK_NORM, QKV_BIAS, SANDWICH, GeneralArchitecture


class GeneralShape(NamedTuple):
    """Sizes that the compiled code needs, as `nacz.predictors.transformer.Shape`, and more.

    local int64[layers]: positions that a query sees, 0 for the pinned block and all of the window. residual_two,
    residual_three: axes over which rows are mixed after a norm with gains. head_two: of turned queries and keys.
    """

    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    two: int
    three: int
    reach: Any
    begin: Any
    sink_reach: int
    eps: float
    width: int
    turned: int
    words: int
    features: int
    local: Any
    residual_two: int
    residual_three: int
    head_two: int
    query_unit: Any


class GeneralWeights(NamedTuple):
    """Arrays of an exact model, flat (see nacz.weights.general); those of absent features are empty."""

    embed: Any
    embed_step: Any
    qkv_gain: Any
    qkv: Any
    qkv_step: Any
    qkv_sum: Any
    qkv_bias: Any
    query_gain: Any
    key_gain: Any
    out: Any
    out_step: Any
    out_sum: Any
    out_bias: Any
    out_gain: Any
    gate_up_gain: Any
    gate_up: Any
    gate_up_step: Any
    gate_up_sum: Any
    down: Any
    down_step: Any
    down_sum: Any
    down_gain: Any
    head_gain: Any
    head: Any
    head_step: Any
    head_sum: Any
    rope: Any


class GeneralScratch(NamedTuple):
    """Work space for `rows` rows. cos, sin: for each row and table of angles, those of its position and of the pinned
    block."""

    x: Any
    y: Any
    wide: Any
    hidden: Any
    a: Any
    zero: Any
    step: Any
    key: Any
    key_zero: Any
    key_step: Any
    cos: Any
    sin: Any
    turned: Any
    small: Any
    q: Any
    q_step: Any
    total: Any
    factor: Any
    sums: Any
    p: Any
    acc: Any
    share: Any


def make_general_shape(arch: GeneralArchitecture, window: int) -> GeneralShape:
    """Shape for a window of `window` positions, a multiple of 128 from 256 to 16,384, of layers that are not local."""
    two, three = ffn_mixing(arch.ffn)
    residual_two, threes, _ = factors(arch.dim)
    layer = np.arange(1, arch.layers + 1)
    local = np.where(layer % max(arch.every, 1) != 0, arch.local, 0).astype(np.int64)
    slots = np.where(local > 0, 1 + -(-(local - 1) // BLOCK), window // BLOCK)
    reach = np.repeat(slots, arch.kv_heads).astype(np.int64)
    head_two, _, _ = factors(arch.width // 16)
    unit = np.float32(np.float64(LOG2_E) * np.float64(arch.query_scale) * np.float64(1 << 14) / np.float64(head_two))
    return GeneralShape(
        arch.layers, arch.dim, arch.heads, arch.kv_heads, arch.ffn, arch.vocab, two, three, reach,
        starts_of(reach), window, arch.eps, arch.width, arch.turned, arch.words, arch.features, local, residual_two,
        3 if threes else 1, head_two, unit,
    )  # fmt: skip


def make_general_weights(model: ExactModel) -> GeneralWeights:
    """Weights of a model; nothing is copied but the head's steps, which take the change to binary logarithms."""
    arrays = dict(model.arrays)
    arrays["head_step"] = arrays["head_step"] * np.float32(LOG2_E)
    arrays["head_step"].setflags(write=False)  # one type for all weights, or everything is compiled twice
    return GeneralWeights(**{name: arrays[name].reshape(-1) for name in GeneralWeights._fields})


def make_general_cache(shape: GeneralShape, lanes: int) -> Cache:
    """An empty cache; 2 x width bytes and 12 bytes of steps per position, kv head and layer."""
    blocks = lanes * int(shape.begin[-1])
    return Cache(
        aligned(blocks * 2 * BLOCK * shape.width, np.int8),
        aligned(blocks * BLOCK, np.float32),
        aligned(blocks * BLOCK, np.int32),
        aligned(blocks * BLOCK, np.float32),
    )


def make_general_scratch(shape: GeneralShape, rows: int) -> GeneralScratch:
    """Work space for calls of up to `rows` rows."""
    heads = shape.heads * shape.width
    widest = max(shape.dim, shape.ffn, heads)
    fused = max(2 * shape.ffn, heads + 2 * shape.kv_heads * shape.width)
    per_head = min(rows, BLOCK) * shape.heads
    tables = 2 if shape.local.any() else 1
    return GeneralScratch(
        x=aligned(rows * shape.dim, np.float32),
        y=aligned(rows * shape.dim, np.float32),
        wide=aligned(rows * fused, np.float32),
        hidden=aligned(rows * widest, np.float32),
        a=aligned(rows * widest, np.uint8),
        zero=aligned(rows, np.int32),
        step=aligned(rows, np.float32),
        key=aligned(rows * shape.dim, np.uint8),
        key_zero=aligned(rows, np.int32),
        key_step=aligned(rows, np.float32),
        cos=aligned(tables * rows * shape.width, np.float32),
        sin=aligned(tables * rows * shape.width, np.float32),
        turned=aligned(shape.width, np.float32),
        small=aligned(shape.width, np.int8),
        q=aligned(2 * per_head * shape.width, np.uint8),
        q_step=aligned(2 * per_head, np.float32),
        total=aligned(MOST_TOGETHER, np.float64),
        factor=aligned(MOST_ROWS, np.float64),
        sums=aligned(MOST_ROWS * BLOCK, np.int32),
        p=aligned(MOST_ROWS * BLOCK, np.uint8),
        acc=aligned(MOST_TOGETHER * shape.width, np.float64),
        share=make_shares(1)[0],
    )


@inner
def _prepare(m: int, shape: Any, gain: Any, layer: int, s: Any) -> None:
    """The norm before a matrix, quantised; gains are part of the matrix, or are multiplied here."""
    d = shape.dim
    if shape.features & SANDWICH:
        two, three = shape.residual_two, shape.residual_three
        prepare_rows(m, d, shape.eps, gain, layer * d, two, three, s.x, s.hidden, s.a, s.zero, s.step)
    else:
        normalise_rows(m, d, shape.eps, s.x, s.a, s.zero, s.step)


@inner
def _norm_of_head(shape: Any, layer: int, x: Any, at: int, gain: Any) -> Any:
    """The norm of a query or key, whose gains are multiplied in place; 1 where there is none."""
    if not shape.features & QK_NORM:
        return np.float64(1.0)
    rms = np.float64(1.0)
    if largest(x, at, shape.width) >= TINY:
        rms = root_mean_square(x, at, shape.width, shape.turned, shape.eps)
    gained(x, at, shape.width, gain, layer * shape.width)
    return rms


@inner
def _attention_rows(
    kern: Any, shape: Any, w: Any, cache: Any, s: Any, layer: int, lane: int, first: int, count: int, position: int,
    rows: int,
) -> None:  # fmt: skip
    """Append `count` of the `rows` rows (all in one cache block) of a lane to the cache and attend; into s.hidden."""
    width, local, two = shape.width, shape.local[layer], shape.head_two
    qkv = (shape.heads + 2 * shape.kv_heads) * width
    group = shape.heads // shape.kv_heads
    block, offset = position // BLOCK, position % BLOCK
    reach, begin = shape.reach, shape.begin
    wide, cos, sin, turned, small, q, q_step = s.wide, s.cos, s.sin, s.turned, s.small, s.q, s.q_step
    sink, half = q_step.size // 2, width // 2
    table = rows if local else 0  # angles of local layers lie behind those of all rows
    for h in range(shape.kv_heads):
        head = layer * shape.kv_heads + h
        slots, cache_at = reach[head], lane * begin[begin.size - 1] + begin[head]
        slot = cache_at + slot_of(block, slots, local)
        block_at = slot * 2 * BLOCK * width
        for r in range(count):
            row, j = first + r, offset + r
            angle, index = (table + row) * width, slot * BLOCK + j
            at = row * qkv + (shape.heads + h) * width
            rms = _norm_of_head(shape, layer, wide, at, w.key_gain)
            put_wide_key(wide, at, width, two, cos, sin, angle, rms, turned, small, cache, block_at, j, index)
            at += shape.kv_heads * width
            put_wide_value(wide, at, width, small, cache, block_at + BLOCK * width, j, index)
            for g in range(group):
                i = r * group + g
                at = row * qkv + (h * group + g) * width
                rms = _norm_of_head(shape, layer, wide, at, w.query_gain)
                q_step[i] = put_wide_query(
                    wide, at, width, two, cos, sin, angle, rms, shape.query_unit, turned, small, q, i * width
                )
                if local == 0:
                    q_step[sink + i] = put_wide_query(
                        wide, at, width, two, cos, sin, angle + half, rms, shape.query_unit, turned, small, q,
                        (sink + i) * width,
                    )  # fmt: skip
        out_row = shape.heads * width
        attend_wide(
            kern, count, position, group, slots, width, local, cache, cache_at, s, s.hidden,
            first * out_row + h * group * width, out_row,
        )  # fmt: skip


@compiled
def general_forward(kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any) -> None:
    """Run all layers over rows of tokens (int32[m]); leaves the normalised, quantised rows in s.a, s.zero, s.step."""
    m, d, f = tokens.size, shape.dim, shape.ffn
    width, heads = shape.width, shape.heads * shape.width
    qkv, half = heads + 2 * shape.kv_heads * width, width // 2
    for r in range(m):
        token = np.int64(tokens[r])
        unit = w.embed_step[token]
        for i in range(d):
            s.x[r * d + i] = np.float32(w.embed[token * d + i]) * unit
    tables = w.rope.size // (2 * STEP * width)
    for table in range(tables):
        some = w.rope[table * 2 * STEP * width : (table + 1) * 2 * STEP * width]
        for g in range(groups.lane.size):
            for r in range(groups.count[g]):
                position, at = groups.position[g] + r, (table * m + groups.first[g] + r) * width
                angles(some, half, position, s.cos, s.sin, at)
                angles(some, half, min(position, shape.sink_reach), s.cos, s.sin, at + half)
    for layer in range(shape.layers):
        _prepare(m, shape, w.qkv_gain, layer, s)
        if layer == key_layer(shape.layers):
            keep_key(0, m, d, s)
        scaled_product(
            kern, m, qkv, d, s.a, s.zero, s.step, w.qkv, layer * qkv * d, w.qkv_sum, w.qkv_step, layer * qkv, s.wide
        )
        if shape.features & QKV_BIAS:
            add_bias(m, qkv, w.qkv_bias, layer * qkv, s.wide)
        follow(s.share, layer + 1)
        for g in range(groups.lane.size):
            done = 0
            while done < groups.count[g]:
                position = groups.position[g] + done
                count = min(groups.count[g] - done, BLOCK - position % BLOCK)
                _attention_rows(
                    kern, shape, w, cache, s, layer, groups.lane[g], groups.first[g] + done, count, position, m
                )
                done += count
        pass_on(s.share, layer + 1)
        quantise_rows(m, heads, s.hidden, s.a, s.zero, s.step)
        scaled_product(
            kern, m, d, heads, s.a, s.zero, s.step, w.out, layer * d * heads, w.out_sum, w.out_step, layer * d, s.y
        )
        if shape.features & OUT_BIAS:
            add_bias(m, d, w.out_bias, layer * d, s.y)
        if shape.features & SANDWICH:
            renormalise_rows(m, d, shape.eps, w.out_gain, layer * d, s.y)
        add_rows(m * d, s.x, s.y)
        _prepare(m, shape, w.gate_up_gain, layer, s)
        scaled_product(
            kern, m, 2 * f, d, s.a, s.zero, s.step, w.gate_up, layer * 2 * f * d, w.gate_up_sum, w.gate_up_step,
            layer * 2 * f, s.wide,
        )  # fmt: skip
        if shape.features & GELU:
            gelu_rows(m, f, s.wide, s.hidden)
        else:
            gated_rows(m, f, s.wide, s.hidden)
        rotate_rows(m, f, shape.two, shape.three, s.hidden)
        quantise_rows(m, f, s.hidden, s.a, s.zero, s.step)
        scaled_product(
            kern, m, d, f, s.a, s.zero, s.step, w.down, layer * d * f, w.down_sum, w.down_step, layer * d, s.y
        )
        if shape.features & SANDWICH:
            renormalise_rows(m, d, shape.eps, w.down_gain, layer * d, s.y)
        add_rows(m * d, s.x, s.y)
    _prepare(m, shape, w.head_gain, 0, s)


@compiled
def general_head(kern: Any, shape: Any, w: Any, s: Any, first: int, m: int, logits: Any) -> None:
    """Logits of rows first .. first + m - 1 after `general_forward`, in units of log2: float32 flat [m, vocab]. Words
    that do not exist get the least."""
    d, v = shape.dim, shape.vocab
    scaled_product(
        kern, m, v, d, s.a[first * d :], s.zero[first:], s.step[first:], w.head, 0, w.head_sum, w.head_step, 0, logits
    )
    for r in range(m):
        for i in range(shape.words, v):
            logits[r * v + i] = -LIMIT
