"""From the gradients that coding told back through layers, compiled.

Rows are those of a block, lane after lane, of which the forward pass kept what it computed. Products run on its
integer kernels, everything else is elementwise or a sum of integers (`nacz.kernels.gradients`), so how rows are shared
out cannot change a bit.

Knows one layer, rows and caches. Does not know how weights move (`nacz.predictors.steps`), threads, or where its arrays
come from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.attention import HEAD
from nacz.kernels.attention_gradient import attention_gradient
from nacz.kernels.cdf import total_bits
from nacz.kernels.compile import compiled, inner
from nacz.kernels.gemm import scaled_product
from nacz.kernels.gradients import add_scattered, gate_gradient, norm_gradient, quantise_scaled, scattered_bytes
from nacz.kernels.ops import to_float
from nacz.kernels.rope import angles
from nacz.kernels.rows import gated_rows, largest, rotate_rows

# One of a distribution's total, where that has 24 bits, and 28.
SHARE, WIDE_SHARE = np.float32(2.0**-24), np.float32(2.0**-28)


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


class Kept(NamedTuple):
    """What a forward pass kept of a layer, of all rows of a block: see `Trace`."""

    x: Any
    qkv: Any
    out: Any
    mid: Any
    gate_up: Any


class Block(NamedTuple):
    """Numbers of all rows of a block, one layer at a time: the mixed hidden vectors, and gradients of outputs."""

    hidden: Any
    dx: Any
    d_down: Any
    d_gate_up: Any
    d_out: Any
    d_heads: Any
    d_qkv: Any


class Work(NamedTuple):
    """Work space of one thread."""

    hidden: Any
    a: Any
    zero: Any
    step: Any
    row: Any
    y: Any
    unit: Any


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
    # A token's step holds the change to binary logarithms: a constant factor, which does not matter.
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


@compiled
def backward_rows(
    kern: Any, shape: Any, out: Any, gate_up: Any, down: Any, first: int, m: int, kept: Any, b: Any, s: Any
) -> None:
    """Rows first .. first + m - 1 from the gradient in a layer's output back to that in its attention's result."""
    d, f = shape.dim, shape.ffn
    some, wide = slice(first * d, (first + m) * d), slice(first * 2 * f, (first + m) * 2 * f)
    mid, gates, dx, d_heads = kept.mid[some], kept.gate_up[wide], b.dx[some], b.d_heads[some]
    gated_rows(m, f, gates, s.hidden)
    rotate_rows(m, f, shape.two, shape.three, s.hidden)
    _copy(s.hidden[: m * f], b.hidden[first * f : (first + m) * f])
    # Back through the feed-forward block. The rotation is symmetric: it is its own transpose.
    _copy(dx, b.d_down[some])
    quantise_scaled(m, d, dx, down.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, f, d, s.a, s.zero, s.step, down.turned, 0, down.turned_sums, s.unit, 0, s.hidden)
    rotate_rows(m, f, shape.two, shape.three, s.hidden)
    d_gate_up = b.d_gate_up[wide]
    gate_gradient(m, f, gates, s.hidden, d_gate_up)
    quantise_scaled(m, 2 * f, d_gate_up, gate_up.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, 2 * f, s.a, s.zero, s.step, gate_up.turned, 0, gate_up.turned_sums, s.unit, 0, s.y)
    norm_gradient(m, d, shape.eps, mid, s.y, dx)
    # And through the attention's output.
    _copy(dx, b.d_out[some])
    quantise_scaled(m, d, dx, out.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, d, s.a, s.zero, s.step, out.turned, 0, out.turned_sums, s.unit, 0, d_heads)


@compiled
def input_rows(kern: Any, shape: Any, qkv: Any, first: int, m: int, x: Any, b: Any, s: Any) -> None:
    """Adds what comes through queries, keys and values to the gradient, which is then that in the layer's input."""
    d, n = shape.dim, qkv.n
    quantise_scaled(m, n, b.d_qkv[first * n : (first + m) * n], qkv.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, n, s.a, s.zero, s.step, qkv.turned, 0, qkv.turned_sums, s.unit, 0, s.y)
    norm_gradient(m, d, shape.eps, x[first * d : (first + m) * d], s.y, b.dx[first * d : (first + m) * d])


@compiled
def attend_back(
    kern: Any, shape: Any, rope: Any, lane: int, layer: int, h: int, first: int, n: int, position: int, cache: Any,
    kept: Any, b: Any, cos: Any, sin: Any, s: Any,
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
        kern, n, position, group, slots, cache, cache_at, s, kept.qkv[wide], qkv, h * group * HEAD,
        (shape.heads + h) * HEAD, (shape.heads + shape.kv_heads + h) * HEAD, kept.out[rows], b.d_heads[rows], shape.dim,
        cos, sin, b.d_qkv[wide],
    )  # fmt: skip
