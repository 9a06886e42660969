"""General models of docs/numeric-contract.md, slowly and readably: one lane, one token at a time.

Part of docs/reference_decoder.py, whose arithmetic it uses. Imports nothing of nacz; needs numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from reference_decoder import (
    F,
    Lane,
    exp2_minus,
    floor_log2,
    gate,
    mix,
    mix_over,
    normalise,
    product,
    quantise,
    round_even,
    two_to,
    weigh_block,
)

if TYPE_CHECKING:
    from reference_decoder import Model

QKV_BIAS, OUT_BIAS, QK_NORM, SANDWICH, GELU = 1, 2, 4, 8, 16
GELU_1, GELU_3 = F(float.fromhex("0x1.988454p+0")), F(float.fromhex("0x1.2444f2p-4"))
TINY = F(2.0**-60)
# Integers of a key or value and their step.
Small = tuple[np.ndarray, np.float32]


def power_in(n: int) -> tuple[int, int]:
    """The power of two in n, and 3 if the rest is a multiple of 3, else 1."""
    two = n & -n
    return two, 3 if n // two % 3 == 0 else 1


def root(x: np.ndarray, count: int, eps: float) -> float:
    """sqrt(mean + eps) over `count` numbers; x may have zeros more."""
    scale = two_to(20 - (int(floor_log2(np.abs(x).max())) - 127))
    squares = int((round_even(x * scale) ** 2).sum())
    return float(np.sqrt(np.float64(squares) / (np.float64(scale) * np.float64(scale) * np.float64(count)) + eps))


def gelu_gate(gate_up: np.ndarray) -> np.ndarray:
    """GELU of the first half times the second half."""
    g, up = np.split(gate_up, 2)
    t = np.clip(g, F(-16), F(16))
    z = t * (GELU_1 + GELU_3 * (t * t))
    u = np.minimum(np.abs(z) * F(float.fromhex("0x1.715476p+0")), F(60))
    whole = np.trunc(u)
    e = np.ldexp(exp2_minus(u - whole), -whole.astype(np.int32)).astype(F)
    return g * (np.where(z >= 0, F(1), e) / (F(1) + e)) * up


class GeneralLane:
    """One stream of tokens through a general model. Remembers all keys and values and looks at those in reach."""

    def __init__(self, model: Model, window: int) -> None:
        self.model, self.window, self.position = model, window, 0
        self.width, self.turned_of, _, self.features, self.local, self.every, query_scale = model.more
        self.rope = model.arrays["rope"].reshape(-1, 2, 1024, 2, self.width // 2)
        self.two, _ = power_in(self.width // 16)
        self.query_unit = F(1.4426950408889634 * query_scale * 16384.0 / self.two)  # all float64 until F
        self.seen: dict[tuple[int, int], list[tuple[np.ndarray, np.float32, np.ndarray, np.float32]]] = {}

    def part(self, name: str, layer: int) -> np.ndarray:
        """A layer's part of an array that all layers share."""
        found = self.model.arrays[name]
        n = found.size // (1 if name.startswith("head") else self.model.n_layers)
        return found[layer * n : (layer + 1) * n]

    def hidden(self, token: int) -> Small:
        """The last hidden state after `token`, quantised: what the head is applied to. Keeps what is recalled by."""
        m = self.model
        x = m.embed[token].astype(F) * m.embed_step[token]
        act = gelu_gate if self.features & GELU else gate
        for number, layer in enumerate(m.layers):
            state = self.prepared("qkv", number, x)
            if number == m.n_layers * 4 // 5:
                self.key = state
            wide = product(layer["qkv"], state)
            if self.features & QKV_BIAS:
                wide = wide + self.part("qkv_bias", number)
            y = product(layer["out"], quantise(self.attention(number, wide)))
            if self.features & OUT_BIAS:
                y = y + self.part("out_bias", number)
            x = x + self.after("out_gain", number, y)
            y = product(layer["gate_up"], self.prepared("gate_up", number, x))
            x = x + self.after("down_gain", number, product(layer["down"], quantise(mix(act(y)))))
        self.position += 1
        return self.prepared("head", 0, x)

    def prepared(self, name: str, layer: int, x: np.ndarray) -> Small:
        """The norm before a matrix, quantised."""
        if not self.features & SANDWICH:
            return normalise(x, self.model.eps)
        a, step = quantise(mix_over(x * self.part(f"{name}_gain", layer), *power_in(len(x))))
        if np.abs(x).max() >= TINY:
            step = F(np.float64(step) / root(x, len(x), self.model.eps))
        return a, step

    def after(self, name: str, layer: int, y: np.ndarray) -> np.ndarray:
        """The norm after a block, if there is one."""
        if not self.features & SANDWICH:
            return y
        if np.abs(y).max() < TINY:
            return np.zeros_like(y)
        return (y * self.part(name, layer)) * F(1.0 / root(y, len(y), self.model.eps))

    def turned(self, x: np.ndarray, table: np.ndarray, position: int) -> Small:
        (c, s), (d, t) = table[0, position % 1024], table[1, position // 1024]
        cos, sin = c * d - s * t, s * d + c * t
        a, b = np.split(x, 2)
        return Lane.small(mix_over(np.concatenate([a * cos - b * sin, b * cos + a * sin]), self.two, 1))

    def normed(self, name: str, layer: int, x: np.ndarray) -> tuple[np.ndarray, float]:
        """A query or key times its gains, and the root that its step is divided by."""
        if not self.features & QK_NORM:
            return x, 1.0
        divisor = root(x, self.turned_of, self.model.eps) if np.abs(x).max() >= TINY else 1.0
        return x * self.part(name, layer), divisor

    def attention(self, layer: int, wide: np.ndarray) -> np.ndarray:
        m, heads = self.model, wide.reshape(-1, self.width)
        local = self.local if self.local and (layer + 1) % self.every else 0
        table, group, out = self.rope[1 if local else 0], m.heads // m.kv_heads, []
        for kv in range(m.kv_heads):
            key, divisor = self.normed("key_gain", layer, heads[m.heads + kv])
            k, k_step = self.turned(key, table, self.position)
            past = self.seen.setdefault((layer, kv), [])
            value = Lane.small(heads[m.heads + m.kv_heads + kv])
            past.append((k, F(np.float64(k_step) / divisor), *value))
            for head in range(kv * group, (kv + 1) * group):
                query, divisor = self.normed("query_gain", layer, heads[head])
                # The first block of layers that are not local is seen from no further away than the window is long.
                near, far = (
                    (q, F(np.float64(step) / divisor) * self.query_unit)
                    for q, step in (
                        self.turned(query, table, p) for p in (self.position, min(self.position, self.window))
                    )
                )
                out.append(self.attend(local, near, far, past))
        return np.concatenate(out)

    def attend(self, local: int, near: Small, far: Small, past: list) -> np.ndarray:
        current = self.position // 128
        first = max(0, self.position - local + 1)
        blocks = [0, *range(max(1, current - (self.window // 128 - 2)), current + 1)]
        if local:
            blocks = list(range(first // 128, current + 1))
        result, total = np.zeros(self.width), 0.0
        for block in blocks:
            some = past[max(first if local else 0, block * 128) : (block + 1) * 128]
            taken, weight = weigh_block(*(far if block == 0 and not local else near), some)
            result += taken
            total += weight
        return (result * (1.0 / total)).astype(F)
