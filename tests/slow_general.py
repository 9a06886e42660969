"""The transformer of nacz.predictors.general from its definition: one lane, from tokens to logits, slowly.

Uses the reference kernels where there are some, and the plain definition of what only general models have. Remembers
all positions and picks the visible ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels import reference as ref
from nacz.kernels.gemm import unpack
from numpy.typing import NDArray

from nacz.weights.exact import ExactModel, factors, ffn_mixing
from nacz.weights.general import GELU, OUT_BIAS, QK_NORM, QKV_BIAS, SANDWICH, GeneralArchitecture

F = np.float32
LOG2_E = 1.4426950408889634
GELU_1, GELU_3 = F(float.fromhex("0x1.988454p+0")), F(float.fromhex("0x1.2444f2p-4"))
BLOCK = 128


def rms(row: Any, count: int, eps: float) -> float:
    """sqrt(mean + eps) over `count` numbers, squares of 21 bits."""
    fixed = ref.power_of_two(20 - (int(ref.exponent(np.abs(row).max())) - 127))
    squares = int((ref.rounded(row * fixed) ** 2).sum())
    return float(np.sqrt(np.float64(squares) / (np.float64(fixed) * np.float64(fixed) * np.float64(count)) + eps))


def gelu(wide: Any) -> Any:
    g, up = np.split(wide, 2, axis=1)
    t = np.clip(g, F(-16.0), F(16.0))
    z = t * (GELU_1 + GELU_3 * (t * t))
    u = np.minimum(np.abs(z) * F(float.fromhex("0x1.715476p+0")), F(60.0))
    whole = np.trunc(u)
    e = np.ldexp(ref.half_power(u - whole), -whole.astype(np.int32)).astype(F)
    return g * (np.where(z >= 0, F(1.0), e) / (F(1.0) + e)) * up


class SlowGeneral:
    """A model and what one lane has seen; `window` in positions, of layers that are not local."""

    def __init__(self, model: ExactModel, window: int) -> None:
        assert isinstance(model.architecture, GeneralArchitecture)
        self.arch, self.arrays, self.window = model.architecture, model.arrays, window
        self.past: dict[tuple[int, int], list[Any]] = {}
        self.position = 0
        arch = self.arch
        self.rope = model.arrays["rope"].reshape(-1, 2, 1024, 2, arch.width // 2)
        self.two, _, _ = factors(arch.width // 16)
        self.unit = F(np.float64(LOG2_E) * np.float64(arch.query_scale) * np.float64(1 << 14) / np.float64(self.two))

    def part(self, name: str, layer: int, n: int) -> Any:
        return self.arrays[name][layer * n : (layer + 1) * n]

    def product(self, name: str, layer: int, n: int, rows: Any, k: int) -> Any:
        steps = self.part(f"{name}_step", layer, n) * (F(LOG2_E) if name == "head" else F(1.0))
        return ref.scaled_product(*rows, unpack(self.part(name, layer, n * k), n, k), steps)

    def prepared(self, name: str, layer: int, x: Any) -> Any:
        arch = self.arch
        if not arch.features & SANDWICH:
            return ref.normalise_rows(x, arch.eps)
        two, threes, _ = factors(arch.dim)
        mixed = ref.rotate_rows(x * self.part(f"{name}_gain", layer, arch.dim), two, 3 if threes else 1)
        a, zero, step = ref.quantise_rows(mixed)
        norms = [rms(row, arch.dim, arch.eps) for row in x]
        return a, zero, np.array([F(np.float64(s) / norm) for s, norm in zip(step, norms, strict=True)])

    def added(self, name: str, layer: int, y: Any) -> Any:
        arch = self.arch
        if not arch.features & SANDWICH:
            return y
        gain = self.part(f"{name}_gain", layer, arch.dim)
        return np.stack([(row * gain) * F(1.0 / rms(row, arch.dim, arch.eps)) for row in y])

    def turned(self, x: Any, angles: Any) -> Any:
        half = self.arch.width // 2
        (cos, sin), p, q = angles, x[:half], x[half:]
        row = np.concatenate([p * cos - q * sin, q * cos + p * sin])
        return ref.rotate_rows(row[None], self.two, 1)[0]

    def rounded(self, x: Any) -> Any:
        top = np.abs(x).max()
        return ref.rounded(x * (F(127.0) / max(top, F(2.0**-60)))), top / F(127.0)

    def head_norm(self, layer: int, x: Any, name: str) -> tuple[Any, float]:
        if not self.arch.features & QK_NORM:
            return x, 1.0
        return x * self.part(name, layer, self.arch.width), rms(x, self.arch.turned, self.arch.eps)

    def attention(self, layer: int, position: int, row: Any) -> Any:
        arch, heads = self.arch, row.reshape(-1, self.arch.width)
        local = arch.local if arch.local and (layer + 1) % arch.every else 0
        table = self.rope[1 if local else 0]
        near, far = ref.angles(table, position), ref.angles(table, min(position, self.window))
        group, out = arch.heads // arch.kv_heads, []
        for kv in range(arch.kv_heads):
            past = self.past.setdefault((layer, kv), [])
            key, norm = self.head_norm(layer, heads[arch.heads + kv], "key_gain")
            k, k_step = self.rounded(self.turned(key, near))
            v, v_step = self.rounded(heads[arch.heads + arch.kv_heads + kv])
            past.append((k, F(np.float64(k_step) / norm), v, v_step))
            for h in range(kv * group, (kv + 1) * group):
                query, norm = self.head_norm(layer, heads[h], "query_gain")
                both = []
                for angles in (near, far):
                    q, step = self.rounded(self.turned(query, angles))
                    both.append((q, F(np.float64(step) / norm) * self.unit))
                out.append(self.attend(position, local, both, past))
        return np.concatenate(out)

    def attend(self, position: int, local: int, queries: Any, past: Any) -> Any:
        current, result, total = position // BLOCK, np.zeros(self.arch.width), 0.0
        if local:
            first = max(0, position - local + 1)
            spans = [(b, max(first, b * BLOCK)) for b in range(first // BLOCK, current + 1)]
        else:
            spans = [(b, b * BLOCK) for b in ref.visible_blocks(position, self.window // BLOCK)]
        for block, begin in spans:
            some = past[begin : min((block + 1) * BLOCK, position + 1)]
            query, step = queries[1 if block == 0 and not local else 0]
            k_step, v_step = np.array([e[1] for e in some], F), np.array([e[3] for e in some], F)
            dots = np.stack([e[0] for e in some]) @ query
            score = np.trunc(np.clip((dots.astype(F) * k_step) * step, F(-(2.0**23)), F(2.0**23))).astype(np.int64)
            whole = (int(score.max()) + (1 << 14) - 1) >> 14
            e = ref.int_exp2((whole << 14) - score, 14)
            w = e.astype(F) * v_step
            own = max(16, int(ref.exponent(w).max()))
            p = np.minimum(np.trunc(w * ref.power_of_two(134 - own) + F(0.5)), 255).astype(np.int64)
            result += (p @ np.stack([x[2] for x in some])) * 2.0 ** (whole + own - 134)
            total += float(e.sum()) * 2.0**whole
        return (result * (1.0 / total)).astype(F)

    def logits(self, tokens: NDArray[np.int32]) -> Any:
        """Logits after each of the next tokens, float32 [tokens, vocab], in units of log2."""
        arch, arrays, d, f = self.arch, self.arrays, self.arch.dim, self.arch.ffn
        heads = arch.heads * arch.width
        qkv = heads + 2 * arch.kv_heads * arch.width
        x = arrays["embed"].reshape(-1, d)[tokens].astype(F) * arrays["embed_step"][tokens][:, None]
        for layer in range(arch.layers):
            wide = self.product("qkv", layer, qkv, self.prepared("qkv", layer, x), d)
            if arch.features & QKV_BIAS:
                wide = wide + self.part("qkv_bias", layer, qkv)
            mixed = np.stack([self.attention(layer, self.position + r, row) for r, row in enumerate(wide)])
            y = self.product("out", layer, d, ref.quantise_rows(mixed), heads)
            if arch.features & OUT_BIAS:
                y = y + self.part("out_bias", layer, d)
            x = x + self.added("out", layer, y)
            wide = self.product("gate_up", layer, 2 * f, self.prepared("gate_up", layer, x), d)
            hidden = gelu(wide) if arch.features & GELU else ref.gated_rows(wide)
            y = self.product("down", layer, d, ref.quantise_rows(ref.rotate_rows(hidden, *ffn_mixing(f))), f)
            x = x + self.added("down", layer, y)
        self.position += len(tokens)
        out = self.product("head", 0, arch.vocab, self.prepared("head", 0, x), d)
        out[:, arch.words :] = F(-4096.0)
        return out
