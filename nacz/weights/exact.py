"""The exact integer model: its architecture, its arrays, and how a GGUF of the Llama family becomes one.

Orthogonal rotations are folded into the weights so that 8-bit activations are enough (QuaRot, arXiv 2404.00456): norm
gains go into the next matrix, the residual stream and the hidden vector of the feed-forward block are mixed by
Walsh-Hadamard blocks and the rational 3 x 3 matrix (1/3)[[1,2,2],[2,1,-2],[2,-2,1]], values per head by a 64-point
Hadamard. Weights are then rounded to int8 with one step per output channel, embeddings to int16 with one step per row.

The result is bit-deterministic: elementwise float64 in a fixed order, no sums over an axis, no BLAS, no libm.

Knows tensors of GGUF files by name. Does not know files of its own (`nacz.weights.store`) nor how the model is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError
from nacz.kernels.gemm import pack
from nacz.kernels.rope import STEP, rope_tables
from nacz.weights.gguf import GGUFFile, dequantise

Floats = NDArray[np.float64]
HEAD = 64
CONVERSION = 1  # version of the conversion: part of the names of converted files, raised when the result changes


@dataclass(frozen=True)
class Architecture:
    """Shape of a Llama-family model. All sizes in elements; `rope_base` and `eps` as in the model card."""

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
        # The head adds vocab frequencies of at least 1 to a total of 2^24; int32 sums of the GEMM hold to K = 66,000.
        in_range = 0 < self.dim <= 2048 and 0 < self.ffn <= 65536 and 0 < self.vocab <= 1 << 20
        if not (in_range and 0 < self.layers <= 256):
            problems.append("a size is out of range")
        if not (1.0 <= self.rope_base <= 1e9 and 0.0 < self.eps < 1.0 and 0 < self.context <= 1 << 30):
            problems.append("rope_base, eps or context is out of range")
        if problems:
            raise ModelError("architecture not supported by the exact engine: " + "; ".join(problems))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    matrices = {
        "qkv": (arch.layers * (arch.dim + 2 * arch.kv_heads * HEAD), arch.dim),
        "out": (arch.layers * arch.dim, arch.dim),
        "gate_up": (arch.layers * 2 * arch.ffn, arch.dim),
        "down": (arch.layers * arch.dim, arch.ffn),
        "head": (arch.vocab, arch.dim),
    }
    layout = {"embed": ("<i2", arch.vocab * arch.dim), "embed_step": ("<f4", arch.vocab)}
    for name, (channels, terms) in matrices.items():
        layout |= {name: ("|i1", channels * terms), f"{name}_step": ("<f4", channels), f"{name}_sum": ("<i4", channels)}
    layout["rope"] = ("<f4", 2 * STEP * 2 * (HEAD // 2))
    return layout


def factors(n: int) -> tuple[int, int, int]:
    """n = two * three^k * rest with `two` its power-of-two part; returns (two, k up to 2, rest)."""
    two = n & -n
    rest, k = n // two, 0
    while rest % 3 == 0 and k < 2:
        rest, k = rest // 3, k + 1
    return two, k, rest


def _hadamard(x: Floats, axis: int) -> Floats:
    """Unscaled Walsh-Hadamard transform over one axis whose length is a power of two."""
    x = np.moveaxis(x, axis, -1)
    n = x.shape[-1]
    span = 1
    while span < n:
        y = x.reshape(*x.shape[:-1], n // (2 * span), 2, span)
        a, b = y[..., 0, :], y[..., 1, :]
        x = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        span *= 2
    return np.moveaxis(x, -1, axis)


def _three(x: Floats, axis: int) -> Floats:
    """Unscaled [[1,2,2],[2,1,-2],[2,-2,1]] over an axis of length 3."""
    x = np.moveaxis(x, axis, 0)
    a, b, c = x[0], x[1], x[2]
    y = np.stack([(a + 2.0 * b) + 2.0 * c, (2.0 * a + b) - 2.0 * c, (2.0 * a - 2.0 * b) + c])
    return np.moveaxis(y, 0, axis)


def mix_residual(x: Floats) -> Floats:
    """The orthogonal, symmetric rotation of the residual stream, over the last axis."""
    n = x.shape[-1]
    two, threes, rest = factors(n)
    y = x.reshape(*x.shape[:-1], *([3] * threes), two, rest)
    y = _hadamard(y, -2)
    for axis in range(threes):
        y = _three(y, x.ndim - 1 + axis)
    return y.reshape(x.shape) / (np.sqrt(np.float64(two)) * 3.0**threes)


def ffn_mixing(ffn: int) -> tuple[int, int]:
    """(two, three): the axes over which `kernels.rows.rotate_rows` mixes a feed-forward vector of this length."""
    two, threes, _ = factors(ffn // 16)
    return two, 3 if threes else 1


def mix_hidden(x: Floats) -> Floats:
    """The inverse of the run-time rotation of the feed-forward vector, over the last axis."""
    n = x.shape[-1]
    two, three = ffn_mixing(n)
    y = x.reshape(*x.shape[:-1], three, two, n // (two * three))
    y = _hadamard(y, -2)
    if three == 3:
        y = _three(y, -3)
    return y.reshape(x.shape) / np.float64(two * (9 if three == 3 else 1))


def _mix_heads(x: Floats) -> Floats:
    """64-point Hadamard per head over the last axis, scaled to be orthogonal."""
    y = _hadamard(x.reshape(*x.shape[:-1], x.shape[-1] // HEAD, HEAD), -1)
    return y.reshape(x.shape) / 8.0


def _channels(name: str, weights: Floats) -> dict[str, NDArray[Any]]:
    """[N, K] to packed int8 with one float32 step per row, and the integer row sums that undo a zero point."""
    step = (np.max(np.abs(weights), axis=1) / 127.0).astype(np.float32)
    step = np.where(step == 0, np.float32(1.0), step)
    q = np.rint(weights / step.astype(np.float64)[:, None])
    q = np.clip(q, -127, 127).astype(np.int8)
    return {name: pack(q), f"{name}_step": step, f"{name}_sum": q.sum(axis=1, dtype=np.int32)}


def _half_split(weights: Floats, heads: int) -> Floats:
    """Rows from GGUF's interleaved rotary pairs (2 i, 2 i + 1) to halves (i, i + 32) within each head."""
    n, k = weights.shape
    return weights.reshape(heads, HEAD // 2, 2, k).swapaxes(1, 2).reshape(n, k)


def architecture_of(gguf: GGUFFile) -> Architecture:
    """The shape that a GGUF file declares. Raises ModelError for another architecture or an unsupported shape."""
    kind = gguf.text("general.architecture")
    if kind != "llama":
        raise ModelError(f"{gguf.path}: architecture {kind!r} is not supported, only 'llama'")
    arch = Architecture(
        layers=gguf.integer("llama.block_count"),
        dim=gguf.integer("llama.embedding_length"),
        heads=gguf.integer("llama.attention.head_count"),
        kv_heads=gguf.integer("llama.attention.head_count_kv"),
        ffn=gguf.integer("llama.feed_forward_length"),
        vocab=gguf.tensor("token_embd.weight").shape[0],
        context=gguf.integer("llama.context_length"),
        rope_base=gguf.number("llama.rope.freq_base"),
        eps=gguf.number("llama.attention.layer_norm_rms_epsilon"),
    )
    arch.check()
    return arch


def convert(gguf: GGUFFile, tokenizer: bytes, progress: Callable[[int, int], None] | None = None) -> ExactModel:
    """Turn a Llama-family GGUF into an exact model. `progress(done, total)` counts layers, the embedding being two."""
    arch = architecture_of(gguf)

    def get(name: str, *shape: int) -> Floats:
        tensor = gguf.tensor(name)
        if tensor.shape != shape:
            raise ModelError(f"{gguf.path}: tensor {name} has shape {tensor.shape}, expected {shape}")
        return dequantise(tensor).astype(np.float64)

    def done(count: int) -> None:
        if progress is not None:
            progress(count, arch.layers + 2)

    parts: dict[str, list[NDArray[Any]]] = {}

    def add(arrays: dict[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)

    kv = arch.kv_heads * HEAD
    for layer in range(arch.layers):
        p = f"blk.{layer}."
        gain = get(p + "attn_norm.weight", arch.dim)
        q = _half_split(get(p + "attn_q.weight", arch.dim, arch.dim), arch.heads)
        k = _half_split(get(p + "attn_k.weight", kv, arch.dim), arch.kv_heads)
        v = _mix_heads(get(p + "attn_v.weight", kv, arch.dim).T).T
        add(_channels("qkv", mix_residual(np.concatenate([q, k, v]) * gain)))
        o = _mix_heads(get(p + "attn_output.weight", arch.dim, arch.dim))
        add(_channels("out", mix_residual(o.T).T))
        gain = get(p + "ffn_norm.weight", arch.dim)
        gate, up = (get(p + f"ffn_{s}.weight", arch.ffn, arch.dim) for s in ("gate", "up"))
        add(_channels("gate_up", mix_residual(np.concatenate([gate, up]) * gain)))
        down = mix_hidden(get(p + "ffn_down.weight", arch.dim, arch.ffn))
        add(_channels("down", mix_residual(down.T).T))
        done(layer + 1)
    arrays = {name: np.concatenate(some) for name, some in parts.items()}
    embedding = get("token_embd.weight", arch.vocab, arch.dim)
    head = get("output.weight", arch.vocab, arch.dim) if "output.weight" in gguf.tensors else embedding
    arrays.update(_channels("head", mix_residual(head * get("output_norm.weight", arch.dim))))
    done(arch.layers + 1)
    embedding = mix_residual(embedding)
    step = (np.max(np.abs(embedding), axis=1) / 32767.0).astype(np.float32)
    step = np.where(step == 0, np.float32(1.0), step)
    arrays["embed"] = np.rint(embedding / step.astype(np.float64)[:, None]).astype(np.int16).reshape(-1)
    arrays["embed_step"] = step
    arrays["rope"] = rope_tables(arch.rope_base, HEAD // 2).reshape(-1)
    done(arch.layers + 2)
    return ExactModel(arch, arrays, tokenizer)
