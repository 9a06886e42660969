"""The network learns while it codes: one exact step of Adam on the last layers after each block of coded tokens.

After a block both sides know its tokens. They run backward through the last layers with the integer products of the
forward pass (gradients rounded to bytes, `nacz.kernels.gradients`) and move masters in float32, elementwise; the int8
weights that predict the next block are the rounded masters. Keys and values that are already in the cache stay as they
were computed. Every number is a function of weights and tokens alone, so that a decoder repeats the encoder's steps to
the bit. docs/learning.md has the method.

Knows weights, traces of a forward pass, caches and threads. Does not know text, coding or the container.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.kernels.attention import HEAD
from nacz.kernels.attention_gradient import attention_gradient, make_attention_scratch, scratch_floats
from nacz.kernels.compile import compiled
from nacz.kernels.gemm import pack, scaled_product, unpack
from nacz.kernels.gradients import (
    PANEL,
    adam_moves,
    adam_rows,
    add_scattered,
    column_units,
    dithered,
    gate_gradient,
    gather_columns,
    norm_gradient,
    pack_terms,
    panel_sums,
    place_rows,
    quantise_scaled,
    rms_inverse,
    scattered_bytes,
    take_off,
)
from nacz.kernels.ops import to_float
from nacz.kernels.rope import angles
from nacz.kernels.rows import add_rows, gated_rows, largest, mix_rows, normalise_rows, quantise_rows, rotate_rows
from nacz.predictors.transformer import Cache, Shape, Weights, aligned, make_trace
from nacz.weights.exact import factors

MAX_ROWS = 1024  # of a block: bounds what a decoder may be asked to allocate
SLICE = 32  # rows per job of a thread
DECAY, KEEP = np.float32(0.9), np.float32(0.99)  # Adam's beta 1 and beta 2
MATRICES = ("qkv", "out", "gate_up", "down")
NATIVE = ("qkv", "gate_up")  # read the residual stream: Adam steps in its basis before the mixing


class Learning(NamedTuple):
    """How a segment learns: the number of last layers that do, Adam's step in thousandths of a weight's int8 step, and
    how many rows, of all lanes together, one step of learning takes."""

    layers: int
    rate: int
    rows: int


def learning_bytes(shape: Shape, learning: Learning, lanes: int) -> int:
    """About how much memory learning takes beside the weights that stay, with two threads, in bytes."""
    d, f, q = shape.dim, shape.ffn, (shape.heads + 2 * shape.kv_heads) * HEAD
    layer = (q + d + 3 * f) * d
    rows, layers = max(learning.rows, lanes), min(learning.layers, shape.layers)
    kept = 2 * layers * d + 3 * q + 6 * f + 6 * d
    scores = 2 * scratch_floats(rows // lanes + 1, shape.heads // shape.kv_heads, int(shape.reach.max()))
    return shape.layers * layer + 13 * layers * layer + shape.vocab * d + 4 * (rows * kept + scores)


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


class Matrix(NamedTuple):
    """One matrix of one layer: n outputs, k inputs. `packed`, `sums` and `step` are views into the weights.

    unit: float32[k] where Adam steps in the basis that the residual stream had before it was mixed (`mixing`: sizes of
    its factors of two and three, and a scale); empty where it steps in the basis of the weights."""

    n: int
    k: int
    packed: Any
    sums: Any
    step: Any
    turned: Any
    turned_sums: Any
    part: Any
    master: Any
    first: Any
    second: Any
    unit: Any
    mixing: Any


class _Block(NamedTuple):
    """Numbers of all rows of a block, one layer at a time: inputs of the products and gradients of their outputs."""

    mid: Any
    qkv: Any
    gate_up: Any
    dx: Any
    d_down: Any
    d_gate_up: Any
    d_out: Any
    d_heads: Any
    d_qkv: Any
    terms: Any
    term_step: Any


class _Work(NamedTuple):
    """Work space of one thread."""

    hidden: Any
    a: Any
    zero: Any
    step: Any
    row: Any
    y: Any
    unit: Any


@compiled
def tell_outcome(o: Any, lane: int, step: int, symbol: Any, freq: Any, work: Any, places: Any, values: Any) -> None:
    """Keep the gradient in the last normalised row from the distribution that a token was coded with.

    o: Outcomes; freq: int32[vocab], of a total of 2^24; symbol: what came. work float32[vocab], places, values
    int32[vocab]: work space. Nothing is done where nothing learns.
    """
    if o.steps == 0:
        return
    v, d = o.step.size, o.gradient.size // (o.total.shape[0] * o.steps)
    # A token's step holds the change to binary logarithms: a constant factor, which Adam does not see.
    for i in range(v):
        work[i] = (to_float(freq[i]) * np.float32(2.0**-24)) * o.step[i]
    work[symbol] = (to_float(freq[symbol]) * np.float32(2.0**-24) - np.float32(1.0)) * o.step[symbol]
    top, row = largest(work, 0, v), lane * o.steps + step % o.steps
    count = scattered_bytes(row, v, work, top, o.total[lane], places, values)
    unit, gradient = top * np.float32(1.0 / 126.0), o.gradient[row * d : (row + 1) * d]
    add_scattered(count, places, values, d, o.head, unit, o.total[lane], gradient)


@compiled
def _head_rows(shape: Any, first: int, m: int, x: Any, gradient: Any, dx: Any) -> None:
    """Gradient in the last layer's output x of rows first .. first + m - 1 into dx."""
    d = shape.dim
    some = slice(first * d, (first + m) * d)
    dx[some] = np.float32(0.0)
    norm_gradient(m, d, shape.eps, x[some], gradient[some], dx[some])


@compiled
def _copy(x: Any, to: Any) -> None:
    for i in range(x.size):
        to[i] = x[i]


@compiled
def _times(m: int, step: Any, factor: Any) -> None:
    for r in range(m):
        step[r] = step[r] * factor[r]


@compiled
def _backward_rows(
    kern: Any, shape: Any, w: Any, layer: int, out: Any, gate_up: Any, down: Any, rows: int, first: int, m: int,
    x_in: Any, heads: Any, b: Any, s: Any,
) -> None:  # fmt: skip
    """Rows first .. first + m - 1 from the gradient in a layer's output back to that in its attention's result."""
    d, f = shape.dim, shape.ffn
    qkv = (shape.heads + 2 * shape.kv_heads) * HEAD
    some, wide = slice(first * d, (first + m) * d), slice(first * 2 * f, (first + m) * 2 * f)
    x_in, heads, mid, dx, d_heads = x_in[some], heads[some], b.mid[some], b.dx[some], b.d_heads[some]
    # What the forward pass computed, again.
    normalise_rows(m, d, shape.eps, x_in, s.a, s.zero, s.step)
    scaled_product(
        kern, m, qkv, d, s.a, s.zero, s.step, w.qkv, layer * qkv * d, w.qkv_sum, w.qkv_step, layer * qkv,
        b.qkv[first * qkv :],
    )  # fmt: skip
    quantise_rows(m, d, heads, s.a, s.zero, s.step)
    scaled_product(kern, m, d, d, s.a, s.zero, s.step, w.out, layer * d * d, w.out_sum, w.out_step, layer * d, mid)
    add_rows(m * d, mid, x_in)
    normalise_rows(m, d, shape.eps, mid, s.a, s.zero, s.step)
    scaled_product(
        kern, m, 2 * f, d, s.a, s.zero, s.step, w.gate_up, layer * 2 * f * d, w.gate_up_sum, w.gate_up_step,
        layer * 2 * f, b.gate_up[wide],
    )  # fmt: skip
    gated_rows(m, f, b.gate_up[wide], s.hidden)
    rotate_rows(m, f, shape.two, shape.three, s.hidden)
    # Inputs of the four products as terms of the weights' gradients; a norm only enters the step.
    pack_terms(first, m, rows, d, x_in, b.terms[0], b.term_step[0])
    pack_terms(first, m, rows, d, heads, b.terms[1], b.term_step[1])
    pack_terms(first, m, rows, d, mid, b.terms[2], b.term_step[2])
    pack_terms(first, m, rows, f, s.hidden, b.terms[3], b.term_step[3])
    rms_inverse(m, d, shape.eps, x_in, s.row)
    _times(m, b.term_step[0][first:], s.row)
    rms_inverse(m, d, shape.eps, mid, s.row)
    _times(m, b.term_step[2][first:], s.row)
    # Back through the feed-forward block. The rotation is symmetric: it is its own transpose.
    _copy(dx, b.d_down[some])
    quantise_scaled(m, d, dx, down.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, f, d, s.a, s.zero, s.step, down.turned, 0, down.turned_sums, s.unit, 0, s.hidden)
    rotate_rows(m, f, shape.two, shape.three, s.hidden)
    d_gate_up = b.d_gate_up[wide]
    gate_gradient(m, f, b.gate_up[wide], s.hidden, d_gate_up)
    quantise_scaled(m, 2 * f, d_gate_up, gate_up.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, 2 * f, s.a, s.zero, s.step, gate_up.turned, 0, gate_up.turned_sums, s.unit, 0, s.y)
    norm_gradient(m, d, shape.eps, mid, s.y, dx)
    # And through the attention's output.
    _copy(dx, b.d_out[some])
    quantise_scaled(m, d, dx, out.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, d, s.a, s.zero, s.step, out.turned, 0, out.turned_sums, s.unit, 0, d_heads)


@compiled
def _input_rows(kern: Any, shape: Any, qkv: Any, first: int, m: int, x_in: Any, b: Any, s: Any) -> None:
    """Adds what comes through queries, keys and values to the gradient, which is then that in the layer's input."""
    d, n = shape.dim, qkv.n
    quantise_scaled(m, n, b.d_qkv[first * n : (first + m) * n], qkv.step, s.row, s.a, s.zero, s.step)
    scaled_product(kern, m, d, n, s.a, s.zero, s.step, qkv.turned, 0, qkv.turned_sums, s.unit, 0, s.y)
    norm_gradient(m, d, shape.eps, x_in[first * d : (first + m) * d], s.y, b.dx[first * d : (first + m) * d])


@compiled
def _attend_back(
    kern: Any, shape: Any, rope: Any, lane: int, layer: int, h: int, first: int, n: int, position: int, cache: Any,
    heads: Any, b: Any, cos: Any, sin: Any, s: Any,
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
        kern, n, position, group, slots, cache, cache_at, s, b.qkv[wide], qkv, h * group * HEAD,
        (shape.heads + h) * HEAD, (shape.heads + shape.kv_heads + h) * HEAD, heads[rows], b.d_heads[rows], shape.dim,
        cos, sin, b.d_qkv[wide],
    )  # fmt: skip


@compiled
def _update(
    kern: Any, w: Any, begin: int, end: int, rows: int, m: int, dy: Any, terms: Any, term_step: Any, term_sums: Any,
    rate: Any, work: Any, a: Any, zero: Any, step: Any, gradient: Any, q: Any, unit: Any,
) -> None:  # fmt: skip
    """Panels begin .. end - 1 of a matrix: gradient, Adam, rounding, both packed orders."""
    n, k = w.n, w.k
    for panel in range(begin, end):
        at = panel * PANEL
        gather_columns(at, n, rows, m, dy, term_step, work)
        quantise_rows(PANEL, rows, work, a, zero, step)
        scaled_product(kern, PANEL, k, rows, a, zero, step, terms, 0, term_sums, unit, 0, gradient)
        for i in range(PANEL):
            some, row, rounded = slice((at + i) * k, (at + i + 1) * k), gradient[i * k :], q[i * k : (i + 1) * k]
            if w.unit.size > 0:
                two, three, scale = w.mixing
                mix_rows(1, k, two, three, scale, row)
                adam_moves(k, row, w.unit, w.first[some], w.second[some], DECAY, KEEP, rate)
                mix_rows(1, k, two, three, scale, row)
                take_off(k, row, np.float32(1.0) / w.step[at + i], w.master[some], rounded)
            else:
                adam_rows(k, row, w.master[some], w.first[some], w.second[some], DECAY, KEEP, rate, rounded)
        place_rows(at, n, k, q, w.packed, w.turned, w.sums, w.part[panel * k : (panel + 1) * k])


class Learner:
    """The changing weights of a segment, and the steps that change them.

    kern: an implementation of the kernels; base: weights that are never written to. `weights` are those to predict
    with, `trace` what a forward pass must fill, `steps` how many positions of every lane make a block; row r of lane l
    is row l * steps + r of the trace.
    """

    def __init__(
        self, kern: Any, shape: Shape, base: Weights, learning: Learning, lanes: int, threads: int
    ) -> None:
        self._kern, self._shape, self._rate = kern, shape, learning.rate / 1000.0
        self.steps = count = max(1, learning.rows // lanes)
        rows, first = lanes * count, max(0, shape.layers - learning.layers)
        self._layers = range(first, shape.layers)
        self._powers = (1.0, 1.0)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        own = {name: _copied(getattr(base, name)) for m in MATRICES for name in (m, f"{m}_sum")}
        shown = {name: array.view() for name, array in own.items()}
        for view in shown.values():
            view.setflags(write=False)
        self.weights = base._replace(**shown)
        self.trace = make_trace(shape, first, rows)
        d, f, q = shape.dim, shape.ffn, (shape.heads + 2 * shape.kv_heads) * HEAD
        sizes = {"qkv": (q, d), "out": (d, d), "gate_up": (2 * f, d), "down": (d, f)}
        self._matrices = [
            {name: _matrix(own, base, name, layer, *sizes[name]) for name in MATRICES}
            for layer in self._layers
        ]
        self.outcomes = Outcomes(
            unpack(np.asarray(base.head), shape.vocab, d).reshape(-1), base.head_step, aligned(rows * d, np.float32),
            np.zeros((lanes, max(d, PANEL)), np.int32), count,
        )  # fmt: skip
        padded = -(-rows // 4) * 4

        def floats(width: int) -> Any:
            return aligned(rows * width, np.float32)

        self._block = _Block(
            mid=floats(d), qkv=floats(q), gate_up=floats(2 * f), dx=floats(d), d_down=floats(d),
            d_gate_up=floats(2 * f), d_out=floats(d), d_heads=floats(d), d_qkv=floats(q),
            terms=tuple(aligned(padded * k, np.int8) for k in (d, d, d, f)),
            term_step=tuple(aligned(padded, np.float32) for _ in range(4)),
        )  # fmt: skip
        widest = max(2 * f, q)
        self._work = [
            _Work(
                hidden=aligned(SLICE * max(d, f), np.float32), a=aligned(SLICE * widest, np.uint8),
                zero=aligned(SLICE, np.int32), step=aligned(SLICE, np.float32), row=aligned(widest, np.float32),
                y=aligned(SLICE * d, np.float32), unit=np.ones(widest, np.float32),
            )
            for _ in range(threads)
        ]  # fmt: skip
        group = shape.heads // shape.kv_heads
        most = int(shape.reach.max())
        self._attention = [make_attention_scratch(aligned, count, group, most) for _ in range(threads)]
        self._angles = [(aligned(count * HEAD, np.float32), aligned(count * HEAD, np.float32)) for _ in range(threads)]
        self._panel = [
            (
                aligned(PANEL * padded, np.float32), aligned(PANEL * padded, np.uint8), aligned(PANEL, np.int32),
                aligned(PANEL, np.float32), aligned(PANEL * max(d, f), np.float32),
                aligned(PANEL * max(d, f), np.int8),
            )
            for _ in range(threads)
        ]  # fmt: skip
        self._term_sums = [aligned(k, np.int32) for k in (d, d, d, f)]

    def matrix(self, name: str, layer: int) -> Matrix:
        """State of one matrix of a layer that learns."""
        return self._matrices[layer - self._layers.start][name]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def learn(self, lanes: Sequence[tuple[Cache, int]], position: int) -> None:
        """One step from a block whose rows are in `trace` and of which `outcomes` were told.

        lanes: the cache of each lane and the lane's place in it; position: where the block begins in its lanes.
        """
        shape, b, m = self._shape, self._block, len(lanes) * self.steps
        d = shape.dim
        rows = -(-m // 4) * 4
        kept = self.trace.end.size // d
        b1, b2 = self._powers = self._powers[0] * float(DECAY), self._powers[1] * float(KEEP)
        rate = np.float32(self._rate * float(np.sqrt(1.0 - b2)) / (1.0 - b1))
        self._each(
            lambda i, at: _head_rows(
                shape, at, min(SLICE, m - at), self.trace.end, self.outcomes.gradient, b.dx
            ),
            range(0, m, SLICE),
        )  # fmt: skip
        for layer in reversed(self._layers):
            w = self._matrices[layer - self._layers.start]
            at = (layer - self._layers.start) * kept * d
            x_in, heads = self.trace.x[at : at + kept * d], self.trace.out[at : at + kept * d]
            self._layer(layer, w, lanes, position, m, rows, x_in, heads)
            self._step(w, m, rows, rate)

    def _each(self, job: Callable[[int, Any], None], work: Sequence[Any]) -> None:
        """job(thread, item) for every item, shared out among the threads."""

        def share(i: int) -> None:
            for item in work[i :: self._threads]:
                job(i, item)

        for future in [self._pool.submit(share, i) for i in range(min(self._threads, len(work)))]:
            future.result()

    def _layer(
        self, layer: int, w: dict[str, Matrix], lanes: Sequence[tuple[Cache, int]], position: int, m: int, rows: int,
        x_in: Any, heads: Any,
    ) -> None:  # fmt: skip
        """Gradients of one layer's products, and in its input."""
        kern, shape, b = self._kern, self._shape, self._block
        slices = range(0, m, SLICE)
        self._each(
            lambda i, at: _backward_rows(
                kern, shape, self.weights, layer, w["out"], w["gate_up"], w["down"], rows, at, min(SLICE, m - at),
                x_in, heads, b, self._work[i],
            ),
            slices,
        )  # fmt: skip
        self._each(
            lambda i, unit: _attend_back(
                kern, shape, self.weights.rope, lanes[unit[0]][1], layer, unit[1], unit[0] * self.steps, self.steps,
                position, lanes[unit[0]][0], heads, b, *self._angles[i], self._attention[i],
            ),
            [(lane, h) for lane in range(len(lanes)) for h in range(shape.kv_heads)],
        )  # fmt: skip
        if layer > self._layers.start:
            self._each(
                lambda i, at: _input_rows(kern, shape, w["qkv"], at, min(SLICE, m - at), x_in, b, self._work[i]),
                slices,
            )

    def _step(self, matrices: dict[str, Matrix], m: int, rows: int, rate: Any) -> None:
        """Adam on the four matrices of a layer."""
        b = self._block
        gradients = dict(zip(MATRICES, (b.d_qkv, b.d_out, b.d_gate_up, b.d_down), strict=True))
        jobs = []
        for index, name in enumerate(MATRICES):
            w = matrices[name]
            panel_sums(rows, w.k, b.terms[index], self._term_sums[index])
            jobs += [(index, name, at, min(at + 4, w.n // PANEL)) for at in range(0, w.n // PANEL, 4)]

        def update(i: int, job: tuple[int, str, int, int]) -> None:
            index, name, begin, end = job
            _update(
                self._kern, matrices[name], begin, end, rows, m, gradients[name], b.terms[index], b.term_step[index],
                self._term_sums[index], rate, *self._panel[i], self._work[i].unit,
            )  # fmt: skip

        self._each(update, jobs)
        for w in matrices.values():
            np.sum(w.part.reshape(-1, w.k), axis=0, dtype=np.int32, out=w.turned_sums)


def _copied(array: Any) -> Any:
    """A copy that begins on a 64-byte boundary, as vector loads need it."""
    copy = aligned(array.size, array.dtype)
    copy[:] = array
    return copy


def _matrix(own: dict[str, Any], base: Weights, name: str, layer: int, n: int, k: int) -> Matrix:
    at = layer * n * k
    packed = own[name][at : at + n * k]
    q = unpack(packed, n, k)
    master = aligned(n * k, np.float32)
    dithered(n * k, at, q.reshape(-1), master)
    step = _copied(getattr(base, f"{name}_step")[layer * n : (layer + 1) * n])
    mixing, unit = mixing_of(k), aligned(k if name in NATIVE else 0, np.float32)
    if name in NATIVE:
        column_units(n, k, *mixing, q.reshape(-1), step, aligned(k, np.float32), unit)
    part = q.reshape(n // PANEL, PANEL, k).sum(axis=1, dtype=np.int32)
    return Matrix(
        n, k, packed, own[f"{name}_sum"][layer * n : (layer + 1) * n],
        step, _copied(pack(np.ascontiguousarray(q.T))),
        _copied(part.sum(axis=0, dtype=np.int32)), part.reshape(-1), master, aligned(n * k, np.float32),
        aligned(n * k, np.float32), unit, mixing,
    )  # fmt: skip


def mixing_of(dim: int) -> tuple[int, int, np.float32]:
    """(two, three, scale) that `mix_rows` takes for a residual stream of this width."""
    two, threes, _ = factors(dim)
    return two, 3**threes, np.float32(1.0 / (np.sqrt(np.float64(two)) * 3.0**threes))
