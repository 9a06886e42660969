"""The exact integer model: its architecture, its arrays, and how a model of the Llama family becomes one.

Orthogonal rotations are folded into the weights so that 8-bit activations are enough (QuaRot, arXiv 2404.00456): norm
gains go into the next matrix, the residual stream and the hidden vector of the feed-forward block are mixed by
Walsh-Hadamard blocks and the rational 3 x 3 matrix (1/3)[[1,2,2],[2,1,-2],[2,-2,1]], values per head by a 64-point
Hadamard. Weights are then rounded to int8 with one step per output channel, embeddings to int16 with one step per row.

The result is bit-deterministic: elementwise float64 in a fixed order, no sums over an axis, no BLAS, no libm.

This is the plain kind: heads of 64, as many as fill the residual stream, no biases. `nacz.weights.general` has more.

Knows tensors of a checkpoint by name. Does not know files of its own (`nacz.weights.store`) nor how the model is run.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError
from nacz.kernels.gemm import pack
from nacz.kernels.rope import STEP, tables_of
from nacz.weights.checkpoint import Checkpoint

Floats = NDArray[np.float64]
HEAD = 64
CONVERSION = 1  # version of the conversion: part of the names of converted files, raised when the result changes

PIECE = 2048  # rows of the embedding or the head that are converted at a time


@dataclass(frozen=True)
class Architecture:
    """Shape of a Llama-family model. All sizes in elements; `rope_base` and `eps` as in the model card.

    `FILE_VERSION`, `SHAPE`: of files that hold such a model (see nacz.weights.store).
    """

    FILE_VERSION: ClassVar[int] = 1
    SHAPE: ClassVar[struct.Struct] = struct.Struct("<7Idd")

    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int
    rope_base: float
    eps: float

    def check(self) -> None:
        """Raise ModelError unless the exact engine can run this shape."""
        problems = []
        if self.heads * HEAD != self.dim or self.heads % max(self.kv_heads, 1):
            problems.append("head width is not 64 or heads are not grouped evenly")
        if self.dim % 64 or self.ffn % 64 or self.vocab % 64:
            problems.append("dim, ffn and vocab must be multiples of 64")
        # The head adds vocab frequencies of at least 1 to the total; int32 sums of the GEMM hold to K = 66,000.
        in_range = 0 < self.dim <= 2048 and 0 < self.ffn <= 65536 and 0 < self.vocab <= 1 << 20
        if not (in_range and 0 < self.layers <= 256):
            problems.append("a size is out of range")
        if not (1.0 <= self.rope_base <= 1e9 and 0.0 < self.eps < 1.0 and 0 < self.context <= 1 << 30):
            problems.append("rope_base, eps or context is out of range")
        if problems:
            raise ModelError("architecture not supported by the exact engine: " + "; ".join(problems))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_bytes(self) -> bytes:
        """The shape as files hold it: sizes, then rope_base and eps."""
        sizes = self.layers, self.dim, self.heads, self.kv_heads, self.ffn, self.vocab, self.context
        return self.SHAPE.pack(*sizes, self.rope_base, self.eps)

    @classmethod
    def from_bytes(cls, data: bytes) -> Architecture:
        """Read what `to_bytes` wrote; anything else of this size gives a shape that `check` refuses or not."""
        return cls(*cls.SHAPE.unpack(data))

    def layout(self) -> dict[str, tuple[str, int]]:
        """See `array_layout`."""
        matrices = {
            "qkv": (self.layers * (self.dim + 2 * self.kv_heads * HEAD), self.dim),
            "out": (self.layers * self.dim, self.dim),
            "gate_up": (self.layers * 2 * self.ffn, self.dim),
            "down": (self.layers * self.dim, self.ffn),
            "head": (self.vocab, self.dim),
        }
        layout = {"embed": ("<i2", self.vocab * self.dim), "embed_step": ("<f4", self.vocab)}
        for name, (channels, terms) in matrices.items():
            layout |= of_matrix(name, channels, terms)
        layout["rope"] = ("<f4", 2 * STEP * 2 * (HEAD // 2))
        return layout


@dataclass(frozen=True)
class ExactModel:
    """An exact model in memory. `arrays` by name (see `array_layout`); `tokenizer` is the serialised tokenizer."""

    architecture: Architecture
    arrays: dict[str, NDArray[Any]]
    tokenizer: bytes


def array_layout(arch: Architecture) -> dict[str, tuple[str, int]]:
    """Every array of an exact model: name to (dtype, number of elements), in the order in which files hold them.

    All arrays are flat. Weights are packed per layer (`kernels.gemm.pack`), `_step` and `_sum` are per output channel.
    """
    return arch.layout()


def of_matrix(name: str, channels: int, terms: int) -> dict[str, tuple[str, int]]:
    """The arrays of one matrix, or of one in each layer."""
    return {name: ("|i1", channels * terms), f"{name}_step": ("<f4", channels), f"{name}_sum": ("<i4", channels)}


def factors(n: int) -> tuple[int, int, int]:
    """n = two * three^k * rest with `two` its power-of-two part; returns (two, k up to 2, rest)."""
    two = n & -n
    rest, k = n // two, 0
    while rest % 3 == 0 and k < 2:
        rest, k = rest // 3, k + 1
    return two, k, rest


def _hadamard(x: Floats) -> None:
    """Unscaled Walsh-Hadamard transform over the middle axis (a power of two) of a C-ordered [a, n, b]; in place."""
    outer, n, inner = x.shape
    total = np.empty(x.size // 2)
    span = 1
    while span < n:
        y = x.reshape(outer * n // (2 * span), 2, span * inner)
        a, b = y[:, 0], y[:, 1]
        s = np.add(a, b, out=total.reshape(a.shape))
        np.subtract(a, b, out=b)
        a[:] = s
        span *= 2


def _three(x: Floats) -> None:
    """Unscaled [[1,2,2],[2,1,-2],[2,-2,1]] over the middle axis (3) of [a, 3, b]; in place."""
    a, b, c = x[:, 0], x[:, 1], x[:, 2]
    a2, b2, c2 = 2.0 * a, 2.0 * b, 2.0 * c
    x[:, 0], x[:, 1], x[:, 2] = (a + b2) + c2, (a2 + b) - c2, (a2 - b2) + c


def _over_last_axis(x: Floats, mix: Callable[[Floats], None], scale: np.float64) -> Floats:
    """[N, K] with each row mixed and divided by `scale`. `mix` works in place on a C-ordered [K, some of N].

    A few columns at a time stay in the cache, and every elementwise operation runs over neighbours in memory: the bits
    are those of any other order, the time is not.
    """
    out = np.empty_like(x)
    for at in range(0, len(x), 64):
        piece = np.ascontiguousarray(x[at : at + 64].T)
        mix(piece)
        piece /= scale
        out[at : at + 64] = piece.T
    return out


def mix_residual(x: Floats, most: int = 2) -> Floats:
    """[N, K] with the orthogonal, symmetric rotation of the residual stream applied over the last axis, which uses at
    most so many factors of three."""
    n = x.shape[-1]
    two, threes, _ = factors(n)
    threes = min(threes, most)
    rest = n // (two * 3**threes)

    def mix(y: Floats) -> None:
        _hadamard(y.reshape(n // (two * rest), two, -1))
        for axis in range(threes):
            _three(y.reshape(3**axis, 3, -1))

    return _over_last_axis(x, mix, np.float64(np.sqrt(np.float64(two)) * 3.0**threes))


def ffn_mixing(ffn: int) -> tuple[int, int]:
    """(two, three): the axes over which `kernels.rows.rotate_rows` mixes a feed-forward vector of this length."""
    two, threes, _ = factors(ffn // 16)
    return two, 3 if threes else 1


def mix_hidden(x: Floats) -> Floats:
    """[N, K] with the inverse of the run-time rotation of the feed-forward vector applied over the last axis."""
    two, three = ffn_mixing(x.shape[-1])

    def mix(y: Floats) -> None:
        _hadamard(y.reshape(three, two, -1))
        if three == 3:
            _three(y.reshape(1, 3, -1))

    return _over_last_axis(x, mix, np.float64(two * (9 if three == 3 else 1)))


def _mix_heads(x: Floats) -> Floats:
    """[N, K] with a 64-point Hadamard per head over the last axis, scaled to be orthogonal."""
    heads = x.shape[-1] // HEAD
    return _over_last_axis(x, lambda y: _hadamard(y.reshape(heads, HEAD, -1)), np.float64(8.0))


def steps_of(weights: Floats, largest: float) -> tuple[NDArray[np.float32], Floats]:
    """Per row of [N, K]: (float32[N] steps that bring the largest magnitude to `largest`, weights / step rounded)."""
    step = (np.max(np.abs(weights), axis=1) / largest).astype(np.float32)
    step = np.where(step == 0, np.float32(1.0), step)
    return step, np.rint(weights / step.astype(np.float64)[:, None])


class Arrays:
    """The arrays of a model that is being made, by name."""

    def __init__(self, layout: dict[str, tuple[str, int]]) -> None:
        self.arrays = {name: np.zeros(count, dtype) for name, (dtype, count) in layout.items()}

    def put(self, name: str, first: int, weights: Floats) -> None:
        """Channels from `first` on (a multiple of 64): [N, K] to packed int8, and row sums that undo a zero point."""
        n, k = weights.shape
        step, rounded = steps_of(weights, 127.0)
        q = np.clip(rounded, -127, 127).astype(np.int8)
        self.arrays[name][first * k : (first + n) * k] = pack(q)
        self.arrays[f"{name}_step"][first : first + n] = step
        self.arrays[f"{name}_sum"][first : first + n] = q.sum(axis=1, dtype=np.int32)

    def put_embedding(self, first: int, rows: Floats) -> None:
        """Rows of the embedding from `first` on, as int16."""
        n, k = rows.shape
        step, rounded = steps_of(rows, 32767.0)
        self.arrays["embed"][first * k : (first + n) * k] = rounded.astype(np.int16).reshape(-1)
        self.arrays["embed_step"][first : first + n] = step


def convert(
    checkpoint: Checkpoint, arch: Architecture, tokenizer: bytes, progress: Callable[[int, int], None] | None = None
) -> ExactModel:
    """Turn a checkpoint of a plain shape into an exact model. `progress(done, total)` counts layers, the embedding
    being two."""

    def get(name: str, *shape: int) -> Floats:
        return checkpoint.get(name, *shape).astype(np.float64)

    def done(count: int) -> None:
        if progress is not None:
            progress(count, arch.layers + 2)

    made = Arrays(array_layout(arch))
    put = made.put
    kv = arch.kv_heads * HEAD
    for layer in range(arch.layers):
        p = f"blk.{layer}."
        gain = get(p + "attn_norm.weight", arch.dim)
        q = get(p + "attn_q.weight", arch.dim, arch.dim)
        k = get(p + "attn_k.weight", kv, arch.dim)
        v = _mix_heads(get(p + "attn_v.weight", kv, arch.dim).T).T
        put("qkv", layer * (arch.dim + 2 * kv), mix_residual(np.concatenate([q, k, v]) * gain))
        o = _mix_heads(get(p + "attn_output.weight", arch.dim, arch.dim))
        put("out", layer * arch.dim, mix_residual(o.T).T)
        gain = get(p + "ffn_norm.weight", arch.dim)
        gate, up = (get(p + f"ffn_{s}.weight", arch.ffn, arch.dim) for s in ("gate", "up"))
        put("gate_up", layer * 2 * arch.ffn, mix_residual(np.concatenate([gate, up]) * gain))
        down = mix_hidden(get(p + "ffn_down.weight", arch.dim, arch.ffn))
        put("down", layer * arch.dim, mix_residual(down.T).T)
        done(layer + 1)
    made.arrays["rope"][:] = tables_of(list(checkpoint.frequencies)).reshape(-1)
    # The two large tables go in pieces: in float64 each would take 226 MB, several times.
    embedding = checkpoint.get("token_embd.weight", arch.vocab, arch.dim)
    for at in range(0, arch.vocab, PIECE):
        made.put_embedding(at, mix_residual(embedding[at : at + PIECE].astype(np.float64)))
    done(arch.layers + 1)
    head = checkpoint.get("output.weight", arch.vocab, arch.dim) if checkpoint.has("output.weight") else embedding
    gain = get("output_norm.weight", arch.dim)
    for at in range(0, arch.vocab, PIECE):
        put("head", at, mix_residual(head[at : at + PIECE].astype(np.float64) * gain))
    done(arch.layers + 2)
    return ExactModel(arch, made.arrays, tokenizer)
