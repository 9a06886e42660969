"""The general kind of exact model: any width of heads, biases, norms of queries and keys, local layers, GELU.

What the plain kind (`nacz.weights.exact`) does not have, and how a checkpoint becomes one. Sizes that kernels cannot
take are padded with zeros, which changes no result: heads to a multiple of 64 (pairs that are never turned, values that
are nothing), the feed-forward layer, the vocabulary (words that get no probability beyond the least), and the residual
stream, whose norm is then of more numbers than before: its gain and `eps` make up for that.

Where a norm follows a block's output ("sandwich"), the residual stream is not rotated: that norm's gains belong to
single channels, and such models have channels so large that 8 bits would hold nothing else, were they not taken down by
the gains of the next norm first. So gains and rotation are both applied at run time.

Knows tensors of a checkpoint by name. Does not know files nor how the model is run.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError
from nacz.kernels.rope import STEP, rope_frequencies, tables_of
from nacz.weights.checkpoint import Checkpoint
from nacz.weights.exact import PIECE, Architecture, Arrays, ExactModel, factors, mix_hidden, mix_residual, of_matrix

__all__ = ["FEATURES", "GeneralArchitecture", "convert_general", "general_architecture"]

Floats = NDArray[np.float64]

# Bits of `features`: biases of queries, keys and values; of the attention's output; norms of queries and keys; norms
# after each block; GELU in place of SiLU.
QKV_BIAS, OUT_BIAS, QK_NORM, SANDWICH, GELU = 1, 2, 4, 8, 16
FEATURES = QKV_BIAS | OUT_BIAS | QK_NORM | SANDWICH | GELU
_GRAIN = 64


def padded(n: int) -> int:
    """The next multiple of 64."""
    return -(-n // _GRAIN) * _GRAIN


@dataclass(frozen=True)
class GeneralArchitecture(Architecture):
    """Sizes of the plain kind, padded, and more.

    `width` of a head, padded, of which `turned` are in use; `words` of the vocabulary that exist; `features` as above;
    `local`: positions that a local layer sees, 0 if there are none; `every`: of so many layers the last one is not
    local; `query_scale` multiplies scores.
    """

    FILE_VERSION: ClassVar[int] = 2
    SHAPE: ClassVar[struct.Struct] = struct.Struct("<7Idd6Id")

    width: int
    turned: int
    words: int
    features: int
    local: int
    every: int
    query_scale: float

    def check(self) -> None:
        problems = []
        sizes = (self.dim, self.ffn, self.vocab, self.width)
        if any(size % _GRAIN or size <= 0 for size in sizes):
            problems.append("dim, ffn, vocab and width must be multiples of 64")
        if not 0 < self.kv_heads <= self.heads <= 256 or self.heads % max(self.kv_heads, 1):
            problems.append("heads are not grouped evenly")
        # The head adds vocab frequencies of at least 1 to the total; int32 sums of the GEMM hold to K = 66,000.
        in_range = self.dim <= 8192 and self.ffn <= 65536 and self.heads * self.width <= 65536 and self.width <= 512
        if not (in_range and self.vocab <= 1 << 20 and 0 < self.words <= self.vocab and 0 < self.layers <= 256):
            problems.append("a size is out of range")
        if not (0 < self.turned <= self.width and self.turned % 2 == 0):
            problems.append("width of heads is odd")
        if not (1.0 <= self.rope_base <= 1e9 and 0.0 < self.eps < 1.0 and 0 < self.context <= 1 << 30):
            problems.append("rope_base, eps or context is out of range")
        if self.features & ~FEATURES or not 0.0 < self.query_scale <= 1.0:
            problems.append("features or query_scale are not known")
        if self.local and not (64 <= self.local <= 1 << 20 and 1 <= self.every <= 256):
            problems.append("the local layers are out of range")
        if problems:
            raise ModelError("architecture not supported by the exact engine: " + "; ".join(problems))

    def to_bytes(self) -> bytes:
        sizes = self.layers, self.dim, self.heads, self.kv_heads, self.ffn, self.vocab, self.context
        more = self.width, self.turned, self.words, self.features, self.local, self.every, self.query_scale
        return self.SHAPE.pack(*sizes, self.rope_base, self.eps, *more)

    def layout(self) -> dict[str, tuple[str, int]]:
        n, heads, channels = self.layers, self.heads * self.width, (self.heads + 2 * self.kv_heads) * self.width

        def some(feature: int, count: int) -> tuple[str, int]:
            return "<f4", count if self.features & feature else 0

        layout = {"embed": ("<i2", self.vocab * self.dim), "embed_step": ("<f4", self.vocab)}
        layout["qkv_gain"] = layout["gate_up_gain"] = some(SANDWICH, n * self.dim)
        layout["head_gain"] = some(SANDWICH, self.dim)
        layout |= of_matrix("qkv", n * channels, self.dim)
        layout["qkv_bias"] = some(QKV_BIAS, n * channels)
        layout["query_gain"] = layout["key_gain"] = some(QK_NORM, n * self.width)
        layout |= of_matrix("out", n * self.dim, heads)
        layout["out_bias"] = some(OUT_BIAS, n * self.dim)
        layout["out_gain"] = layout["down_gain"] = some(SANDWICH, n * self.dim)
        layout |= of_matrix("gate_up", n * 2 * self.ffn, self.dim)
        layout |= of_matrix("down", n * self.dim, self.ffn)
        layout |= of_matrix("head", self.vocab, self.dim)
        layout["rope"] = ("<f4", (2 if self.local else 1) * 2 * STEP * self.width)
        return layout


def general_architecture(c: Checkpoint) -> GeneralArchitecture:
    """The shape of a checkpoint as a general model. Raises ModelError when it cannot be one."""
    features = GELU if c.gelu else 0
    for feature, name in (
        (QKV_BIAS, "attn_q.bias"), (OUT_BIAS, "attn_output.bias"), (QK_NORM, "attn_q_norm.weight"),
        (SANDWICH, "post_attention_norm.weight"),
    ):  # fmt: skip
        features |= feature if c.has(f"blk.0.{name}") else 0
    dim = padded(c.dim)
    if features & SANDWICH and dim != c.dim:
        raise ModelError("architecture not supported by the exact engine: norms after blocks need a multiple of 64")
    arch = GeneralArchitecture(
        layers=c.layers, dim=dim, heads=c.heads, kv_heads=c.kv_heads, ffn=padded(c.ffn), vocab=padded(c.rows),
        context=c.context, rope_base=c.rope_base, eps=c.eps * c.dim / dim, width=padded(c.width), turned=c.width,
        words=c.rows, features=features, local=c.local, every=c.every, query_scale=c.query_scale,
    )  # fmt: skip
    arch.check()
    return arch


def residual_scale(arch: GeneralArchitecture) -> np.float64:
    """What the unscaled rotation of the residual stream, with at most one factor of three, makes vectors longer by."""
    two, threes, _ = factors(arch.dim)
    return np.float64(np.sqrt(np.float64(two)) * 3.0 ** min(threes, 1))


def convert_general(
    c: Checkpoint, arch: GeneralArchitecture, tokenizer: bytes, progress: Callable[[int, int], None] | None = None
) -> ExactModel:
    """Turn a checkpoint into a general model. `progress(done, total)` counts layers, the embedding being two."""
    made = Arrays(arch.layout())
    arrays, put = made.arrays, made.put
    width, half, used = arch.width, arch.width // 2, c.width // 2
    sandwich = bool(arch.features & SANDWICH)
    most = 1 if sandwich else 2
    wider = np.sqrt(np.float64(c.dim) / np.float64(arch.dim))  # a norm over more numbers, all of the new ones 0

    def get(name: str, *shape: int) -> Floats:
        return c.get(name, *shape).astype(np.float64)

    def columns(weights: Floats, to: int) -> Floats:
        out = np.zeros((len(weights), to))
        out[:, : weights.shape[1]] = weights
        return out

    def gain_of(name: str) -> Floats:
        gain: Floats = columns(get(name, c.dim)[None] * wider, arch.dim)[0]
        return gain

    def turned(weights: Floats) -> Floats:
        """Rows of heads, their halves apart: [heads * width, n] padded."""
        heads, n = len(weights) // c.width, weights.shape[1]
        out = np.zeros((heads, 2, half, n))
        out[:, :, :used] = weights.reshape(heads, 2, used, n)
        return out.reshape(heads * width, n)

    def mixed(weights: Floats) -> Floats:
        """Columns of heads, [n, heads * width] padded and mixed within each head."""
        n, heads = len(weights), weights.shape[1] // c.width
        wide = columns(weights.reshape(n * heads, c.width), width)
        out: Floats = mix_residual(wide).reshape(n, heads * width)
        return out

    def done(count: int) -> None:
        if progress is not None:
            progress(count, arch.layers + 2)

    def input_of(name: str, layer: int, weights: Floats, gain: Floats) -> Floats:
        """A matrix behind a norm, rotated: with the gains in it, or with them as an array of their own."""
        if not sandwich:
            return mix_residual(weights * gain, most)
        arrays[f"{name}_gain"][layer * arch.dim : (layer + 1) * arch.dim] = gain / residual_scale(arch)
        return mix_residual(weights, most)

    def output(name: str, layer: int, weights: Floats, gain: str) -> None:
        """A matrix that adds to the residual stream: rotated, or with a norm and its gains behind it."""
        first = layer * arch.dim
        if sandwich:
            found = get(f"blk.{layer}.{gain}.weight", c.dim)
            arrays[f"{name}_gain"][first : first + arch.dim] = found.astype(np.float32)
            put(name, first, weights)
        else:
            put(name, first, mix_residual(columns(weights.T, arch.dim), most).T)

    q_rows, kv_rows = c.heads * c.width, c.kv_heads * c.width
    channels = (arch.heads + 2 * arch.kv_heads) * width
    for layer in range(arch.layers):
        p = f"blk.{layer}."
        q, k, v = (
            get(p + f"attn_{s}.weight", n, c.dim) for s, n in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
        )
        qkv = columns(np.concatenate([turned(q), turned(k), mixed(v.T).T]), arch.dim)
        put("qkv", layer * channels, input_of("qkv", layer, qkv, gain_of(p + "attn_norm.weight")))
        if arch.features & QKV_BIAS:
            q, k, v = (
                get(p + f"attn_{s}.bias", n)[:, None] for s, n in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
            )
            bias = np.concatenate([turned(q), turned(k), mixed(v.T).T])[:, 0]
            arrays["qkv_bias"][layer * channels : (layer + 1) * channels] = bias.astype(np.float32)
        if arch.features & QK_NORM:
            for s, name in (("q", "query_gain"), ("k", "key_gain")):
                gain = turned(get(p + f"attn_{s}_norm.weight", c.width)[:, None])[:, 0]
                arrays[name][layer * width : (layer + 1) * width] = gain.astype(np.float32)
        output("out", layer, mixed(get(p + "attn_output.weight", c.dim, q_rows)), "post_attention_norm")
        if arch.features & OUT_BIAS:
            bias = mix_residual(columns(get(p + "attn_output.bias", c.dim)[None], arch.dim), most)[0]
            arrays["out_bias"][layer * arch.dim : (layer + 1) * arch.dim] = bias.astype(np.float32)
        gate_up = np.zeros((2, arch.ffn, arch.dim))
        for i, s in enumerate(("gate", "up")):
            gate_up[i, : c.ffn, : c.dim] = get(p + f"ffn_{s}.weight", c.ffn, c.dim)
        both = gate_up.reshape(2 * arch.ffn, arch.dim)
        put("gate_up", layer * 2 * arch.ffn, input_of("gate_up", layer, both, gain_of(p + "ffn_norm.weight")))
        down = mix_hidden(columns(get(p + "ffn_down.weight", c.dim, c.ffn), arch.ffn))
        output("down", layer, down, "post_ffw_norm")
        done(layer + 1)
    tables = [tables_of([*c.frequencies, *[Decimal(0)] * (half - used)])]
    if arch.local:
        tables.append(tables_of([*rope_frequencies(c.local_base, used), *[Decimal(0)] * (half - used)]))
    arrays["rope"][:] = np.concatenate(tables).reshape(-1)
    gain = gain_of("output_norm.weight")
    if sandwich:
        arrays["head_gain"][:] = gain / residual_scale(arch)
    _tables_of_words(c, arch, made, most, gain, done)
    return ExactModel(arch, arrays, tokenizer)


def _tables_of_words(
    c: Checkpoint, arch: GeneralArchitecture, made: Arrays, most: int, gain: Floats, done: Callable[[int], None]
) -> None:
    """Embedding and head, in pieces."""

    def piece(table: NDArray[np.float32], at: int) -> Floats:
        some = table[at : at + PIECE]
        out = np.zeros((min(PIECE, arch.vocab - at), arch.dim))
        out[: len(some), : c.dim] = some
        return out

    sandwich = arch.features & SANDWICH
    embedding = c.get("token_embd.weight", c.rows, c.dim)
    for at in range(0, arch.vocab, PIECE):
        some = piece(embedding, at) * c.embed_scale
        made.put_embedding(at, some if sandwich else mix_residual(some, most))
    done(arch.layers + 1)
    head: Any = c.get("output.weight", c.rows, c.dim) if c.has("output.weight") else embedding
    for at in range(0, arch.vocab, PIECE):
        some = piece(head, at)
        made.put("head", at, mix_residual(some if sandwich else some * gain, most))
    done(arch.layers + 2)
