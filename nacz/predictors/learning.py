"""The network learns while it codes: one exact step of the last layers after each block of coded tokens.

After a block both sides know its tokens. They run backward through the last layers with the integer products of the
forward pass (gradients rounded to bytes, `nacz.kernels.gradients`) and move masters in float32, elementwise; the int8
weights that predict the next block are the rounded masters. Keys and values that are already in the cache stay as they
were computed. Every number is a function of weights and tokens alone, so that a decoder repeats the encoder's steps to
the bit. docs/learning.md has the method.

Knows weights, traces of a forward pass, caches and threads. Does not know text, coding or the container.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.attention import HEAD
from nacz.kernels.attention_gradient import make_attention_scratch, scratch_floats
from nacz.kernels.columns import ROWS as BLOCK
from nacz.kernels.gemm import pack, unpack
from nacz.kernels.gradients import PANEL, column_units, dithered, make_columns, term_sums
from nacz.predictors.backward import Block, Kept, Outcomes, Work, attend_back, backward_rows, head_rows, input_rows
from nacz.predictors.steps import (
    DECAY,
    KEEP,
    Matrix,
    Panels,
    Terms,
    adam_panels,
    plain_terms,
    scaled_panels,
    scaled_terms,
)  # fmt: skip
from nacz.predictors.transformer import Cache, Shape, Weights, make_trace
from nacz.weights.exact import factors

MAX_ROWS = 1024  # of a block: bounds what a decoder may be asked to allocate
SLICE = 32  # rows per job of a thread
MATRICES = ("qkv", "out", "gate_up", "down")
NATIVE = ("qkv", "gate_up")  # read the residual stream, behind a norm: moves are in its basis before the mixing
ADAM, SCALED = 1, 2  # versions of docs/learning.md
RATE_UNITS = {ADAM: 1000.0, SCALED: 10_000.0}  # a weight's int8 step in units of a rate: the largest


class Learning(NamedTuple):
    """How a segment learns: the number of last layers that do, the rate (in thousandths of a weight's int8 step in
    version 1, in ten-thousandths in version 2), how many rows, of all lanes together, one step of learning takes, and
    the method's version."""

    layers: int
    rate: int
    rows: int
    version: int = SCALED


def learning_bytes(shape: Shape, learning: Learning, lanes: int) -> int:
    """About how much memory learning takes beside the weights that stay, with two threads, in bytes."""
    d, f, q = shape.dim, shape.ffn, (shape.heads + 2 * shape.kv_heads) * HEAD
    layer = (q + d + 3 * f) * d
    rows, layers = max(learning.rows, lanes), min(learning.layers, shape.layers)
    kept = layers * (3 * d + q + 2 * f) + q + 5 * f + 7 * d
    scores = 2 * scratch_floats(rows // lanes + 1, shape.heads // shape.kv_heads, int(shape.reach.max()))
    each = 13 if learning.version == ADAM else 5  # bytes of a weight
    return shape.layers * layer + each * layers * layer + shape.vocab * d + 4 * (rows * kept + scores)


class Learner:
    """The changing weights of a segment, and the steps that change them.

    kern: an implementation of the kernels; base: weights that are never written to. `weights` are those to predict
    with, `trace` what a forward pass must fill, `steps` how many positions of every lane make a block; row r of lane l
    is row l * steps + r of the trace.
    """

    def __init__(
        self, kern: Any, shape: Shape, base: Weights, learning: Learning, lanes: int, threads: int
    ) -> None:
        self._kern, self._shape, self._rate = kern, shape, learning.rate / RATE_UNITS[learning.version]
        self._version = learning.version
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
        places = [(name, layer) for layer in self._layers for name in MATRICES]
        made = self._pool.map(lambda place: _matrix(own, base, place, sizes[place[0]], learning.version), places)
        self._matrices = dict(zip(places, made, strict=True))
        self.outcomes = Outcomes(
            unpack(np.asarray(base.head), shape.vocab, d).reshape(-1), base.head_step, aligned(rows * d, np.float32),
            np.zeros((lanes, max(d, PANEL)), np.int32), count,
        )  # fmt: skip
        padded = -(-rows // 4) * 4

        def floats(width: int) -> Any:
            return aligned(rows * width, np.float32)

        self._block = Block(
            hidden=floats(f), dx=floats(d), d_down=floats(d), d_gate_up=floats(2 * f), d_out=floats(d),
            d_heads=floats(d), d_qkv=floats(q),
        )  # fmt: skip
        self._terms = {
            name: Terms(aligned(padded * k, np.uint8), aligned(padded, np.float32), aligned(k, np.int32))
            for name, (_, k) in sizes.items()
        }
        widest = max(2 * f, q)
        self._work = [
            Work(
                hidden=aligned(SLICE * max(d, f), np.float32), a=aligned(SLICE * widest, np.uint8),
                zero=aligned(SLICE, np.int32), step=aligned(SLICE, np.float32), row=aligned(widest, np.float32),
                y=aligned(SLICE * d, np.float32), unit=np.ones(widest, np.float32),
            )
            for _ in range(threads)
        ]  # fmt: skip
        group = shape.heads // shape.kv_heads
        slots = int(shape.reach.max())
        self._attention = [make_attention_scratch(aligned, count, group, slots) for _ in range(threads)]
        self._angles = [(aligned(count * HEAD, np.float32), aligned(count * HEAD, np.float32)) for _ in range(threads)]
        most = max(d, f)
        self._panel = [
            Panels(
                packed=aligned(PANEL * padded, np.int8), columns=make_columns(aligned),
                sums=aligned(PANEL * most, np.int32), block=aligned(BLOCK * most, np.float32),
                pace=aligned(BLOCK * most, np.float32), q=aligned(BLOCK * most, np.int8),
            )
            for _ in range(threads)
        ]  # fmt: skip
        # Of one thread: inputs of a matrix in units of their columns, and what makes terms of them.
        self._scaled = [
            (floats(most), aligned(padded, np.float32), aligned(most, np.float32)) for _ in range(threads)
        ]

    def matrix(self, name: str, layer: int) -> Matrix:
        """State of one matrix of a layer that learns."""
        return self._matrices[name, layer]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def learn(self, lanes: Sequence[tuple[Cache, int]], position: int) -> None:
        """One step from a block whose rows are in `trace` and of which `outcomes` were told.

        lanes: the cache of each lane and the lane's place in it; position: where the block begins in its lanes.
        """
        shape, b, m = self._shape, self._block, len(lanes) * self.steps
        b1, b2 = self._powers = self._powers[0] * float(DECAY), self._powers[1] * float(KEEP)
        if self._version == ADAM:
            rate = self._rate * float(np.sqrt(1.0 - b2)) / (1.0 - b1)
        else:
            rate = self._rate
        self._each(
            lambda i, at: head_rows(
                shape, at, min(SLICE, m - at), self.trace.end, self.outcomes.gradient, b.dx
            ),
            range(0, m, SLICE),
        )  # fmt: skip
        for layer in reversed(self._layers):
            w = {name: self._matrices[name, layer] for name in MATRICES}
            kept = self._kept(layer)
            self._layer(layer, w, lanes, position, m, kept)
            self._step(w, m, (kept.x, kept.out, kept.mid, b.hidden), rate, np.float32(1.0 - b2))

    def _kept(self, layer: int) -> Kept:
        number, count = layer - self._layers.start, len(self._layers)
        arrays = (getattr(self.trace, name) for name in Kept._fields)
        return Kept(*(x[number * x.size // count : (number + 1) * x.size // count] for x in arrays))

    def _each(self, job: Callable[[int, Any], None], work: Sequence[Any]) -> None:
        """job(thread, item) for every item, shared out among the threads."""

        def share(i: int) -> None:
            for item in work[i :: self._threads]:
                job(i, item)

        if self._threads == 1:
            share(0)  # handing over 150 times in a block takes time where other processes want the core
            return
        for future in [self._pool.submit(share, i) for i in range(min(self._threads, len(work)))]:
            future.result()

    def _layer(
        self, layer: int, w: dict[str, Matrix], lanes: Sequence[tuple[Cache, int]], position: int, m: int, kept: Kept
    ) -> None:
        """Gradients of one layer's products, and in its input."""
        kern, shape, b = self._kern, self._shape, self._block
        slices = range(0, m, SLICE)
        self._each(
            lambda i, at: backward_rows(
                kern, shape, w["out"], w["gate_up"], w["down"], at, min(SLICE, m - at), kept, b, self._work[i]
            ),
            slices,
        )  # fmt: skip
        self._each(
            lambda i, unit: attend_back(
                kern, shape, self.weights.rope, lanes[unit[0]][1], layer, unit[1], unit[0] * self.steps, self.steps,
                position, lanes[unit[0]][0], kept, b, *self._angles[i], self._attention[i],
            ),
            [(lane, h) for lane in range(len(lanes)) for h in range(shape.kv_heads)],
        )  # fmt: skip
        if layer > self._layers.start:
            self._each(
                lambda i, at: input_rows(kern, shape, w["qkv"], at, min(SLICE, m - at), kept.x, b, self._work[i]),
                slices,
            )

    def _step(self, matrices: dict[str, Matrix], m: int, inputs: Sequence[Any], rate: float, started: Any) -> None:
        """Move the four matrices of a layer, of which `inputs` are those in all m rows."""
        b, kern, rows = self._block, self._kern, -(-m // 4) * 4
        gradients = dict(zip(MATRICES, (b.d_qkv, b.d_out, b.d_gate_up, b.d_down), strict=True))

        def prepare(i: int, job: tuple[str, Any]) -> None:
            name, x = job
            w, t, (u, work, total) = matrices[name], self._terms[name], self._scaled[i]
            eps, normed = self._shape.eps, name in NATIVE
            if self._version == ADAM:
                plain_terms(m, rows, w.k, eps, normed, x, work, t.value, t.step)
            else:
                scaled_terms(m, rows, eps, normed, w, started, x, u, work, total, t.value, t.step)
            term_sums(rows, w.k, t.value, t.sums)

        def update(i: int, job: tuple[str, int, int]) -> None:
            name, begin, end = job
            w, dy, t, panels = matrices[name], gradients[name], self._terms[name], self._panel[i]
            if self._version == ADAM:
                adam_panels(kern, w, begin, end, rows, m, dy, t, np.float32(rate), panels)
            else:
                pace = np.float32(rate * w.size)
                scaled_panels(kern, w, begin, end, rows, m, dy, t, pace, started, panels)

        self._each(prepare, list(zip(MATRICES, inputs, strict=True)))
        jobs = [
            (name, at, min(at + 4, w.n // PANEL)) for name, w in matrices.items() for at in range(0, w.n // PANEL, 4)
        ]
        self._each(update, jobs)
        for w in matrices.values():
            np.sum(w.part.reshape(-1, w.k), axis=0, dtype=np.int32, out=w.turned_sums)


def _copied(array: Any) -> Any:
    """A copy that begins on a 64-byte boundary, as vector loads need it."""
    copy = aligned(array.size, array.dtype)
    copy[:] = array
    return copy


def _matrix(
    own: dict[str, Any], base: Weights, place: tuple[str, int], size: tuple[int, int], version: int
) -> Matrix:
    (name, layer), (n, k) = place, size
    at = layer * n * k
    packed = own[name][at : at + n * k]
    q = unpack(packed, n, k)
    master = aligned(n * k, np.float32)
    dithered(n, k, at, q.reshape(-1), master)
    step = _copied(getattr(base, f"{name}_step")[layer * n : (layer + 1) * n])
    mixing, unit, inverse = (1, 1, np.float32(1.0)), np.ones(k, np.float32), np.ones(n, np.float32)
    if name in NATIVE:
        mixing, inverse = mixing_of(k), np.float32(1.0) / step
        column_units(n, k, *mixing, q.reshape(-1), step, aligned(k, np.float32), unit)
    first, second = (n * k, n * k) if version == ADAM else (k, n)
    part = q.reshape(n // PANEL, PANEL, k).sum(axis=1, dtype=np.int32)
    return Matrix(
        n, k, packed, own[f"{name}_sum"][layer * n : (layer + 1) * n],
        step, _copied(pack(np.ascontiguousarray(q.T))),
        _copied(part.sum(axis=0, dtype=np.int32)), part.reshape(-1), master, aligned(first, np.float32),
        aligned(second, np.float32), unit, inverse, mixing, math.sqrt(math.fsum(float(u) * float(u) for u in unit)),
    )  # fmt: skip


def mixing_of(dim: int) -> tuple[int, int, np.float32]:
    """(two, three, scale) that `mix_rows` takes for a residual stream of this width."""
    two, threes, _ = factors(dim)
    return two, 3**threes, np.float32(1.0 / (np.sqrt(np.float64(two)) * 3.0**threes))
