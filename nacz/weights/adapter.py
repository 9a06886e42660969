"""A small correction of a model's weights that was learned once and is part of nacz: low-rank matrices and gains.

A chat model reads raw text worse than it could. An adapter moves it back: to each matrix of each layer it adds a
product of two thin matrices (LoRA, arXiv 2106.09685), and it stretches the gains of the norms. It costs nothing while
coding, because it is added once, when the checkpoint becomes an exact model; that model has a name and hashes of its
own, so archives say whether they need it. `scripts/make_adapter.py` makes one, docs/weights.md describes the file.

Knows checkpoints and numbers. Does not know models by name, nor how an exact model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError
from nacz.weights.checkpoint import Checkpoint

__all__ = ["GAIN_UNIT", "MAGIC", "MATRICES", "NORMS", "adapted", "packaged", "parts"]

MAGIC = b"nacz adapter 1\n"
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS = ("attn_norm", "ffn_norm")
GAIN_UNIT = 1.0 / 16384.0

Floats = NDArray[np.float32]


def packaged(name: str) -> bytes:
    """The adapter file of that name among the formats of this release."""
    return resources.files("nacz.formats").joinpath(name).read_bytes()


def parts(c: Checkpoint) -> Iterator[tuple[str, int, int]]:
    """(tensor, outputs, inputs) of all that an adapter changes, in the file's order; a gain has no outputs."""
    heads, kv = c.heads * c.width, c.kv_heads * c.width
    shapes = {
        "attn_q": (heads, c.dim), "attn_k": (kv, c.dim), "attn_v": (kv, c.dim), "attn_output": (c.dim, heads),
        "ffn_gate": (c.ffn, c.dim), "ffn_up": (c.ffn, c.dim), "ffn_down": (c.dim, c.ffn),
    }  # fmt: skip
    for layer in range(c.layers):
        for kind in MATRICES:
            yield f"blk.{layer}.{kind}.weight", *shapes[kind]
        for kind in NORMS:
            yield f"blk.{layer}.{kind}.weight", 0, c.dim
    yield "output_norm.weight", 0, c.dim


def adapted(c: Checkpoint, data: bytes) -> Checkpoint:
    """The checkpoint with the adapter `data` added to it, the same bits on every machine. Raises ModelError when the
    adapter is damaged or for a model of another shape.

    A matrix gets, in float64 and in the order of the rank, sum of step[r] * b[:, r] a[r, :], and is rounded to float32
    once; a gain is multiplied by 1 + its number of `GAIN_UNIT`s, likewise.
    """
    changes: dict[str, Callable[[Floats], Floats]] = {}
    rank, at = data[len(MAGIC)] if data.startswith(MAGIC) and len(data) > len(MAGIC) else 0, len(MAGIC) + 1
    if rank == 0:
        raise ModelError("the adapter is not one of this release")

    def take(count: int, kind: str) -> NDArray[np.float64]:
        nonlocal at
        end = at + count * np.dtype(kind).itemsize
        if end > len(data):
            raise ModelError(f"{c.path}: the adapter is of a model of another shape")
        found = np.frombuffer(data, kind, count, at).astype(np.float64)
        at = end
        return found

    for name, outputs, inputs in parts(c):
        if outputs:
            step, a, b = take(rank, "<f4"), take(rank * inputs, "i1"), take(rank * outputs, "i1")
            changes[name] = _added(step, a.reshape(rank, inputs), b.reshape(rank, outputs))
        else:
            changes[name] = _stretched(take(inputs, "<i2"))
    if at != len(data):
        raise ModelError(f"{c.path}: the adapter is of a model of another shape")

    def read(name: str) -> Floats:
        found = c.read(name)
        return changes[name](found) if name in changes else found

    return replace(c, read=read)


def _added(step: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> Callable[[Floats], Floats]:
    def change(weights: Floats) -> Floats:
        if weights.shape != (b.shape[1], a.shape[1]):
            raise ModelError(f"the adapter is of a model of another shape: {weights.shape}")
        total = weights.astype(np.float64)
        for r in range(step.size):
            total += (b[r][:, None] * a[r]) * step[r]
        return total.astype(np.float32)

    return change


def _stretched(more: NDArray[np.float64]) -> Callable[[Floats], Floats]:
    def change(gain: Floats) -> Floats:
        return (gain.astype(np.float64) * (1.0 + more * GAIN_UNIT)).astype(np.float32)

    return change
