"""The network in float64 with nothing rounded: what exact gradients are compared with.

Knows one lane of up to 128 tokens: everything is seen, nothing has left the window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.gemm import unpack
from numpy.typing import NDArray

from nacz.weights.exact import HEAD, ExactModel, ffn_mixing

Floats = NDArray[np.float64]


class FloatNetwork:
    """Weights in float64, by name and layer; `loss` in natural units, the sum over all tokens."""

    def __init__(self, model: ExactModel) -> None:
        self.arch = arch = model.architecture
        arrays = model.arrays
        sizes = {
            "qkv": ((arch.heads + 2 * arch.kv_heads) * HEAD, arch.dim),
            "out": (arch.dim, arch.dim),
            "gate_up": (2 * arch.ffn, arch.dim),
            "down": (arch.dim, arch.ffn),
        }
        self.weights: dict[tuple[str, int], Floats] = {}
        for layer in range(arch.layers):
            for name, (n, k) in sizes.items():
                q = unpack(arrays[name][layer * n * k : (layer + 1) * n * k], n, k).astype(np.float64)
                self.weights[name, layer] = q * arrays[f"{name}_step"][layer * n : (layer + 1) * n, None]
        head = unpack(arrays["head"], arch.vocab, arch.dim).astype(np.float64)
        self.head = head * arrays["head_step"][:, None]
        self.embed = arrays["embed"].reshape(arch.vocab, arch.dim) * arrays["embed_step"][:, None].astype(np.float64)
        self.frequency = float(arch.rope_base) ** (-np.arange(HEAD // 2) / (HEAD // 2))

    def loss(self, inputs: Any, targets: Any) -> float:
        arch, n = self.arch, len(inputs)
        angle = np.arange(n)[:, None] * self.frequency
        cos, sin = np.cos(angle), np.sin(angle)
        two, three = ffn_mixing(arch.ffn)
        x = self.embed[inputs]
        for layer in range(arch.layers):
            wide = (norm(x, arch.eps) @ self.weights["qkv", layer].T).reshape(n, -1, HEAD)
            heads = []
            for h in range(arch.heads):
                kv = arch.heads + h // (arch.heads // arch.kv_heads)
                scores = turn(wide[:, h], cos, sin) @ turn(wide[:, kv], cos, sin).T / np.sqrt(HEAD)
                scores[np.triu_indices(n, 1)] = -np.inf
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                heads.append(weights / weights.sum(axis=1, keepdims=True) @ wide[:, kv + arch.kv_heads])
            x = x + np.concatenate(heads, axis=1) @ self.weights["out", layer].T
            gate, up = np.split(norm(x, arch.eps) @ self.weights["gate_up", layer].T, 2, axis=1)
            hidden = rotate(gate / (1.0 + np.exp(-gate)) * up, two, three)
            x = x + hidden @ self.weights["down", layer].T
        logits = norm(x, arch.eps) @ self.head.T
        top = logits.max(axis=1)
        logs = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return float(np.sum(logs - logits[np.arange(n), targets]))

    def difference(self, name: str, layer: int, direction: Floats, inputs: Any, targets: Any) -> float:
        """Derivative of the loss along `direction`, by central differences."""
        original, size = self.weights[name, layer], 1e-5
        both = []
        for sign in (1.0, -1.0):
            self.weights[name, layer] = original + sign * size * direction
            both.append(self.loss(inputs, targets))
        self.weights[name, layer] = original
        return (both[0] - both[1]) / (2.0 * size)


def norm(x: Floats, eps: float) -> Floats:
    return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)


def turn(x: Floats, cos: Floats, sin: Floats) -> Floats:
    a, b = np.split(x, 2, axis=1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


def rotate(h: Floats, two: int, three: int) -> Floats:
    """The unscaled mixing of `nacz.kernels.rows.rotate_rows`, as matrices."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < two:
        hadamard = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    third = np.array([[1.0, 2.0, 2.0], [2.0, 1.0, -2.0], [2.0, -2.0, 1.0]]) if three == 3 else np.ones((1, 1))
    mixed = np.kron(third, hadamard)
    return np.einsum("ij,njw->niw", mixed, h.reshape(len(h), two * three, -1)).reshape(h.shape)
