"""A Llama-family transformer in exact integer arithmetic: from tokens to rows of logits.

One function serves the encoder, which runs blocks of many tokens of a lane, and the decoder, which runs one token of
many lanes: every row's result depends on its own past alone, so how rows are grouped cannot change a bit.

Knows weights as arrays and streams as lanes with a position each. Does not know text, coding, files or threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.attention import (
    BLOCK,
    BYTES,
    HEAD,
    attend,
    put_key,
    put_query,
    put_value,
)  # fmt: skip
from nacz.kernels.compile import compiled, inner
from nacz.kernels.gemm import scaled_part, scaled_product
from nacz.kernels.rope import angles
from nacz.kernels.rows import add_rows, gated_rows, normalise_rows, quantise_rows, rotate_rows
from nacz.kernels.sharing import begin_of, end_of, follow, meet, pass_on
from nacz.predictors.reach import Near, reaches, starts_of
from nacz.weights.exact import Architecture, ExactModel, ffn_mixing

CONTRACT = 0  # version of this arithmetic; archives record it, and any change of a result raises it
LOG2_E = 1.4426950408889634
QUERY_UNIT = np.float32(LOG2_E / 8.0 * 16384.0)  # 1/sqrt(64), natural to binary logarithm, 14 fraction bits


class Shape(NamedTuple):
    """Sizes that the compiled code needs. `sink_reach` is the largest distance in positions at which a query may see
    the pinned block; reach int64[layers * kv_heads] how many cache blocks each key head sees and owns, and begin
    int64[layers * kv_heads + 1] where these begin among those of a lane."""

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


class Weights(NamedTuple):
    """Arrays of an exact model, flat (see nacz.weights.exact)."""

    embed: Any
    embed_step: Any
    qkv: Any
    qkv_step: Any
    qkv_sum: Any
    out: Any
    out_step: Any
    out_sum: Any
    gate_up: Any
    gate_up_step: Any
    gate_up_sum: Any
    down: Any
    down_step: Any
    down_sum: Any
    head: Any
    head_step: Any
    head_sum: Any
    rope: Any


class Cache(NamedTuple):
    """Keys and values of some lanes: int8 blocks, lane after lane, in each those of layer 0's key heads, then layer
    1's, as many as the head's reach, keys then values in each; and what undoes their rounding."""

    blocks: Any
    key_step: Any
    key_sum: Any
    value_step: Any


class Group(NamedTuple):
    """Consecutive rows of one lane: rows first .. first + count - 1 are positions position .. of `lane`. int64
    arrays."""

    lane: Any
    first: Any
    count: Any
    position: Any


class Trace(NamedTuple):
    """What learning needs of a forward pass, for layers from `first` on, float32 [layers - first][rows][...], flat: a
    layer's input, queries with keys and values, its attention's result, the stream between its halves, gates with what
    they are for; and the last layer's output. Row r of a call goes to row[r] (int64)."""

    first: int
    x: Any
    qkv: Any
    out: Any
    mid: Any
    gate_up: Any
    end: Any
    row: Any


def make_trace(shape: Shape, first: int, rows: int) -> Trace:
    """Room for `rows` rows of the layers from `first` on; with first = shape.layers nothing is kept."""
    d, qkv = shape.dim, (shape.heads + 2 * shape.kv_heads) * HEAD
    size, end = (shape.layers - first) * rows, rows * d if first < shape.layers else 0

    def floats(width: int) -> Any:
        return aligned(size * width, np.float32)

    return Trace(
        first, floats(d), floats(qkv), floats(d), floats(d), floats(2 * shape.ffn), aligned(end, np.float32),
        np.zeros(1, np.int64),
    )  # fmt: skip


def make_shape(arch: Architecture, window: int, near: Near | None = None) -> Shape:
    """Shape for a window of `window` positions, a multiple of 128 from 256 to 16,384, of which near heads see the
    newest. Raises ValueError when `near` is of another model."""
    two, three = ffn_mixing(arch.ffn)
    reach = reaches(arch.layers * arch.kv_heads, window // BLOCK, near)
    return Shape(
        arch.layers, arch.dim, arch.heads, arch.kv_heads, arch.ffn, arch.vocab, two, three,
        reach, starts_of(reach), window, arch.eps,
    )  # fmt: skip


def fitted(shape: Shape, longest: int) -> Shape:
    """The shape with no more cache blocks than a lane of `longest` tokens fills; what is predicted stays the same."""
    reach = np.minimum(shape.reach, max(2, -(-longest // BLOCK)))
    return shape._replace(reach=reach, begin=starts_of(reach))


def make_weights(model: ExactModel) -> Weights:
    """Weights of a model; nothing is copied but the head's steps, which take the change to binary logarithms."""
    arrays = dict(model.arrays)
    arrays["head_step"] = arrays["head_step"] * np.float32(LOG2_E)
    arrays["head_step"].setflags(write=False)  # one type for all weights, or everything is compiled twice
    return Weights(**{name: arrays[name].reshape(-1) for name in Weights._fields})


def make_cache(shape: Shape, lanes: int) -> Cache:
    """An empty cache; 2 x 64 bytes and 12 bytes of steps per position, kv head and layer."""
    blocks = lanes * int(shape.begin[-1])
    return Cache(
        aligned(blocks * 2 * BYTES, np.int8),
        aligned(blocks * BLOCK, np.float32),
        aligned(blocks * BLOCK, np.int32),
        aligned(blocks * BLOCK, np.float32),
    )


@inner
def _attention_rows(
    kern: Any, shape: Any, cache: Any, s: Any, layer: int, lane: int, first: int, count: int, position: int
) -> None:
    """Append `count` rows (all in one cache block) of a lane to the cache and attend, this thread's heads; results in
    s.hidden."""
    half = HEAD // 2
    qkv = (shape.heads + 2 * shape.kv_heads) * HEAD
    group = shape.heads // shape.kv_heads
    block, offset = position // BLOCK, position % BLOCK
    reach, begin = shape.reach, shape.begin
    wide, cos, sin, small, q, q_step = s.wide, s.cos, s.sin, s.small, s.q, s.q_step
    sink = q_step.size // 2
    for h in range(shape.kv_heads):
        head = layer * shape.kv_heads + h
        if not s.mine[head]:
            continue
        slots, cache_at = reach[head], lane * begin[begin.size - 1] + begin[head]
        slot = 0 if block == 0 else 1 + (block - 1) % (slots - 1)
        for r in range(count):
            row, angle, j = first + r, (first + r) * 2 * half, offset + r
            index = (cache_at + slot) * BLOCK + j
            at = row * qkv + (shape.heads + h) * HEAD
            put_key(wide, at, cos, sin, angle, small, cache, (cache_at + slot) * 2 * BYTES, j, index)
            put_value(wide, at + shape.kv_heads * HEAD, small, cache, ((cache_at + slot) * 2 + 1) * BYTES, j, index)
            for g in range(group):
                i = r * group + g
                at = row * qkv + (h * group + g) * HEAD
                q_step[i] = put_query(wide, at, cos, sin, angle, QUERY_UNIT, q, i * HEAD)
                q_step[sink + i] = put_query(wide, at, cos, sin, angle + half, QUERY_UNIT, q, (sink + i) * HEAD)
        at = first * shape.dim + h * group * HEAD
        attend(kern, count, position, group, slots, cache, cache_at, s, s.hidden, at, shape.dim)


@inner
def _keep(begin: int, end: int, d: int, at: int, x: Any, row: Any, kept: Any) -> None:
    """Copy rows of x to the places of `row` in `kept`, from row `at` on."""
    for r in range(begin, end):
        to = (at + row[r]) * d
        some = kept[to : to + d]
        for i in range(d):
            some[i] = x[r * d + i]


@inner
def key_layer(layers: int) -> Any:
    """The layer whose input says best what comes next as it came before (docs/ensemble.md, Recall)."""
    return layers * 4 // 5


@inner
def keep_key(begin: int, end: int, d: int, s: Any) -> None:
    """Keep quantised rows at hand as those of the key layer's input."""
    key, a = s.key, s.a
    for i in range(begin * d, end * d):
        key[i] = a[i]
    for r in range(begin, end):
        s.key_zero[r] = s.zero[r]
        s.key_step[r] = s.step[r]


@inner
def _normalise(begin: int, end: int, d: int, eps: float, s: Any) -> None:
    """`normalise_rows` of some rows of the residual stream."""
    normalise_rows(end - begin, d, eps, s.x[begin * d :], s.a[begin * d :], s.zero[begin:], s.step[begin:])


@inner
def _quantise(begin: int, end: int, k: int, s: Any) -> None:
    """`quantise_rows` of some hidden rows."""
    quantise_rows(end - begin, k, s.hidden[begin * k :], s.a[begin * k :], s.zero[begin:], s.step[begin:])


@compiled
def forward(kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any) -> None:
    """Run all layers over rows of tokens (int32[m]); leaves the normalised, quantised rows in s.a, s.zero, s.step, and
    those of the key layer's input in s.key, s.key_zero, s.key_step."""
    kept = trace.end.size // shape.dim
    m, d, f = tokens.size, shape.dim, shape.ffn
    qkv = (shape.heads + 2 * shape.kv_heads) * HEAD
    half = HEAD // 2
    # Between two meetings a thread has rows of its own, or columns of a product.
    share = s.share
    begin, end = begin_of(m, share), end_of(m, share)
    for r in range(begin, end):
        token = np.int64(tokens[r])
        unit = w.embed_step[token]
        for i in range(d):
            s.x[r * d + i] = np.float32(w.embed[token * d + i]) * unit
    for g in range(groups.lane.size):
        for r in range(groups.count[g]):
            row = groups.first[g] + r
            if begin <= row < end:
                position, at = groups.position[g] + r, row * 2 * half
                angles(w.rope, half, position, s.cos, s.sin, at)
                # The pinned block is seen at no more than this distance, so that an endless stream stays in the range
                # of distances that the model was trained on (StreamingLLM's positions inside the cache).
                angles(w.rope, half, min(position, shape.sink_reach), s.cos, s.sin, at + half)
    for layer in range(shape.layers):
        keeps, at = layer >= trace.first, (layer - trace.first) * kept
        if keeps:
            _keep(begin, end, d, at, s.x, trace.row, trace.x)
        _normalise(begin, end, d, shape.eps, s)
        if layer == key_layer(shape.layers):
            keep_key(begin, end, d, s)
        meet(share)
        scaled_part(
            kern, share, m, qkv, d, s.a, s.zero, s.step, w.qkv, layer * qkv * d, w.qkv_sum, w.qkv_step, layer * qkv,
            s.wide,
        )  # fmt: skip
        meet(share)
        if keeps:
            _keep(begin, end, qkv, at, s.wide, trace.row, trace.qkv)
        follow(share, layer + 1)
        for g in range(groups.lane.size):
            done = 0
            while done < groups.count[g]:
                position = groups.position[g] + done
                count = min(groups.count[g] - done, BLOCK - position % BLOCK)
                _attention_rows(kern, shape, cache, s, layer, groups.lane[g], groups.first[g] + done, count, position)
                done += count
        pass_on(share, layer + 1)
        meet(share)
        if keeps:
            _keep(begin, end, d, at, s.hidden, trace.row, trace.out)
        _quantise(begin, end, d, s)
        meet(share)
        scaled_part(
            kern, share, m, d, d, s.a, s.zero, s.step, w.out, layer * d * d, w.out_sum, w.out_step, layer * d, s.y
        )
        meet(share)
        add_rows((end - begin) * d, s.x[begin * d :], s.y[begin * d :])
        if keeps:
            _keep(begin, end, d, at, s.x, trace.row, trace.mid)
        _normalise(begin, end, d, shape.eps, s)
        meet(share)
        scaled_part(
            kern, share, m, 2 * f, d, s.a, s.zero, s.step, w.gate_up, layer * 2 * f * d, w.gate_up_sum, w.gate_up_step,
            layer * 2 * f, s.wide,
        )  # fmt: skip
        meet(share)
        if keeps:
            _keep(begin, end, 2 * f, at, s.wide, trace.row, trace.gate_up)
        gated_rows(end - begin, f, s.wide[begin * 2 * f :], s.hidden[begin * f :])
        rotate_rows(end - begin, f, shape.two, shape.three, s.hidden[begin * f :])
        _quantise(begin, end, f, s)
        meet(share)
        scaled_part(
            kern, share, m, d, f, s.a, s.zero, s.step, w.down, layer * d * f, w.down_sum, w.down_step, layer * d, s.y
        )
        meet(share)
        add_rows((end - begin) * d, s.x[begin * d :], s.y[begin * d :])
    if trace.first < shape.layers:
        _keep(begin, end, d, 0, s.x, trace.row, trace.end)
    _normalise(begin, end, d, shape.eps, s)
    meet(share)


@compiled
def head(kern: Any, shape: Any, w: Any, s: Any, first: int, m: int, logits: Any) -> None:
    """Logits of rows first .. first + m - 1 after `forward`, in units of log2: float32 flat [m, vocab]."""
    d = shape.dim
    scaled_product(
        kern, m, shape.vocab, d, s.a[first * d :], s.zero[first:], s.step[first:], w.head, 0, w.head_sum, w.head_step,
        0, logits,
    )  # fmt: skip


@compiled
def head_part(kern: Any, shape: Any, w: Any, s: Any, first: int, m: int, logits: Any) -> None:
    """What this part of those who share a pass does of `head`."""
    d = shape.dim
    scaled_part(
        kern, s.share, m, shape.vocab, d, s.a[first * d :], s.zero[first:], s.step[first:], w.head, 0, w.head_sum,
        w.head_step, 0, logits,
    )  # fmt: skip
