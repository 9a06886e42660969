"""The transformer of nacz.predictors.transformer on the reference kernels: one lane, from tokens to logits, slowly.

Knows how the layers follow each other. Remembers all positions and picks the visible ones: no ring, no blocks of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels import reference as ref
from nacz.kernels.gemm import unpack
from numpy.typing import NDArray

from nacz.weights.exact import HEAD, ExactModel, ffn_mixing

LOG2_E = 1.4426950408889634
QUERY_UNIT = np.float32(LOG2_E / 8.0 * 16384.0)
BLOCK = 128


class SlowModel:
    """A model and what one lane has seen. `window` in positions, a multiple of 128; `reach` in blocks of as many, for
    each key head of each layer, where some see less."""

    def __init__(self, model: ExactModel, window: int, reach: list[int] | None = None) -> None:
        self.model, self.arch, self.window = model, model.architecture, window
        layers, kv_heads = self.arch.layers, self.arch.kv_heads
        self.keys: list[list[list[Any]]] = [[[] for _ in range(kv_heads)] for _ in range(layers)]
        self.values: list[list[list[Any]]] = [[[] for _ in range(kv_heads)] for _ in range(layers)]
        self.reach = reach or [window // BLOCK] * (layers * kv_heads)
        self.position = 0

    def _product(self, name: str, layer: int, rows: Any, k: int) -> NDArray[np.float32]:
        arrays = self.model.arrays
        steps = arrays[f"{name}_step"]
        if name == "head":
            n, steps = self.arch.vocab, steps * np.float32(LOG2_E)
        else:
            n = len(steps) // self.arch.layers
        weights = unpack(arrays[name][layer * n * k : (layer + 1) * n * k], n, k)
        return ref.scaled_product(*rows, weights, steps[layer * n : (layer + 1) * n])

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits after each of the next tokens, float32 [tokens, vocab], in units of log2."""
        arch, arrays = self.arch, self.model.arrays
        embed = arrays["embed"].reshape(arch.vocab, arch.dim)[tokens]
        x = embed.astype(np.float32) * arrays["embed_step"][tokens][:, None]
        two, three = ffn_mixing(arch.ffn)
        for layer in range(arch.layers):
            wide = self._product("qkv", layer, ref.normalise_rows(x, arch.eps), arch.dim)
            mixed = np.stack([self.attention(layer, self.position + r, row) for r, row in enumerate(wide)])
            x = x + self._product("out", layer, ref.quantise_rows(mixed), arch.dim)
            wide = self._product("gate_up", layer, ref.normalise_rows(x, arch.eps), arch.dim)
            hidden = ref.rotate_rows(ref.gated_rows(wide), two, three)
            x = x + self._product("down", layer, ref.quantise_rows(hidden), arch.ffn)
        self.position += len(tokens)
        return self._product("head", 0, ref.normalise_rows(x, arch.eps), arch.dim)

    def remember(self, layer: int, position: int, row: NDArray[np.float32]) -> None:
        """Append the keys and values of one row of [queries, keys, values]."""
        arch = self.arch
        heads = row.reshape(-1, HEAD)
        for kv in range(arch.kv_heads):
            self.keys[layer][kv].append(ref.put_key(heads[arch.heads + kv], *self._angles(position)))
            self.values[layer][kv].append(ref.put_value(heads[arch.heads + arch.kv_heads + kv]))

    def attention(self, layer: int, position: int, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Remember one row and attend: the heads' results, float32 [dim]."""
        self.remember(layer, position, row)
        arch, heads = self.arch, row.reshape(-1, HEAD)
        near, far = self._angles(position), self._angles(min(position, self.window))
        group, out = arch.heads // arch.kv_heads, []
        for kv in range(arch.kv_heads):
            slots = self.reach[layer * arch.kv_heads + kv]
            keys, values = self.keys[layer][kv], self.values[layer][kv]
            k, k_step = np.stack([e[0] for e in keys]), np.array([e[1] for e in keys])
            v, v_step = np.stack([e[0] for e in values]), np.array([e[1] for e in values])
            for h in range(kv * group, (kv + 1) * group):
                query = ref.put_query(heads[h], *near, QUERY_UNIT) + ref.put_query(heads[h], *far, QUERY_UNIT)
                out.append(ref.attend_one(position, slots, *query, k, k_step, v, v_step))
        return np.concatenate(out)

    def _angles(self, position: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return ref.angles(self.model.arrays["rope"].reshape(2, -1, 2, HEAD // 2), position)
