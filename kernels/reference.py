"""Every kernel once more, slowly: what each computes, to the bit, in numpy and without a thought for speed.

Functions take and return arrays with real shapes where the compiled ones work on flat memory, and sums are int64. Where
the fast code uses a trick (packed weights, bit patterns that compare like floats, rings of cache blocks), this has the
plain definition, so that comparing the two tests the trick. Floats are float32 unless said otherwise; every operation
is elementwise and in the order written, because its rounding is part of the definition.

Knows what the kernels compute. Does not know how they do it, nor models or files. Only tests use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

F = np.float32
BLOCK, HEAD = 128, 64
# 2^-f on [0, 1]: see kernels.rows
POWER = [F(float.fromhex(c)) for c in ("0x1.ffffa8p-1", "-0x1.62d4dap-1", "0x1.ea2ba8p-3", "-0x1.b2c862p-5")]
POWER.append(F(float.fromhex("0x1.bb7cd4p-8")))


def half_power(f: Any) -> Any:
    """2^-f for float32 f in [0, 1]: a polynomial of degree 4, by Horner's rule."""
    y = POWER[4]
    for c in POWER[3::-1]:
        y = y * f + c
    return y


def int_exp2(distance: Any, fraction_bits: int) -> Any:
    """floor(2^23 * 2^-(d / 2^bits)) up to the polynomial's error, for int32 d >= 0; 0 from 2^-31 on."""
    d = np.asarray(distance, np.int64)
    f = (d % (1 << fraction_bits)).astype(F) * F(2.0**-fraction_bits)
    return np.trunc(half_power(f) * F(2.0**23)).astype(np.int64) >> np.minimum(d >> fraction_bits, 31)


def rounded(x: Any) -> Any:
    """Nearest integer, halves to even, int64."""
    return np.rint(x).astype(np.int64)


def exponent(x: Any) -> Any:
    """Biased exponent of non-negative float32: 127 + floor(log2 x), 0 for zero and subnormal numbers."""
    return np.asarray(x, F).view(np.int32) >> 23


def power_of_two(n: Any) -> Any:
    """2^n as float32."""
    return np.ldexp(F(1.0), n).astype(F)


# -- rows -------------------------------------------------------------------------------------------------------------


def quantise_row(x: Floats) -> tuple[Bytes, int, np.float32]:
    """float32[k] to (uint8[k], zero point, step): x ~ (a - zero) * step, the range including 0."""
    low, high = min(F(0.0), x.min()), max(F(0.0), x.max())
    span = high - low
    if span < F(2.0**-60):
        return np.zeros(len(x), np.uint8), 0, F(0.0)
    inverse = F(255.0) / span
    zero = int(rounded(-low * inverse))
    return np.clip(rounded(x * inverse) + zero, 0, 255).astype(np.uint8), zero, span / F(255.0)


def quantise_rows(x: Floats) -> tuple[Bytes, Ints, Floats]:
    """float32 [m, k] to (uint8 [m, k], zero points int32[m], steps float32[m])."""
    rows = [quantise_row(row) for row in x]
    return np.stack([r[0] for r in rows]), np.array([r[1] for r in rows], np.int32), np.array([r[2] for r in rows], F)


def normalise_rows(x: Floats, eps: float) -> tuple[Bytes, Ints, Floats]:
    """RMSNorm without a gain and quantisation: like `quantise_rows` of x / sqrt(mean(x^2) + eps).

    The squares are of x in units of 2^-20 of the power of two at or below its largest magnitude; the rest is float64.
    """
    a, zero, step = quantise_rows(x)
    for r, row in enumerate(x):
        top = np.abs(row).max()
        if top < F(2.0**-60):
            a[r], zero[r], step[r] = 0, 0, 0.0
            continue
        fixed = power_of_two(20 - (int(exponent(top)) - 127))
        squares = int((rounded(row * fixed) ** 2).sum())
        mean = np.float64(squares) / (np.float64(fixed) * np.float64(fixed) * np.float64(len(row)))
        step[r] = F(np.float64(step[r]) / np.sqrt(mean + eps))
    return a, zero, step


def gated_rows(gate_up: Floats) -> Floats:
    """SwiGLU: float32 [m, 2 f], gates first, to [m, f]. e = 2^-min(|g| log2 e, 60) by `half_power`."""
    g, up = np.split(gate_up, 2, axis=1)
    u = np.minimum(np.abs(g) * F(float.fromhex("0x1.715476p+0")), F(60.0))
    whole = np.trunc(u)
    e = np.ldexp(half_power(u - whole), -whole.astype(np.int32)).astype(F)
    h: Floats = g * (np.where(g >= 0, F(1.0), e) / (F(1.0) + e)) * up
    return h


def rotate_rows(h: Floats, two: int, three: int) -> Floats:
    """float32 [m, f], seen as [m, three, two, rest], mixed over two axes and not scaled.

    Walsh-Hadamard butterflies over `two`, neighbours first: pairs (i, i + 1), then (i, i + 2), and so on. Then, if
    `three` is 3, the matrix [[1,2,2],[2,1,-2],[2,-2,1]].
    """
    m, f = h.shape
    x = h.reshape(m, three, two, f // (two * three)).copy()
    span = 1
    while span < two:
        for i in range(two):
            if i & span == 0:
                p, q = x[:, :, i].copy(), x[:, :, i + span].copy()
                x[:, :, i], x[:, :, i + span] = p + q, p - q
        span *= 2
    if three == 3:
        p, q, s = x[:, 0], x[:, 1], x[:, 2]
        two_p, two_q, two_s = p + p, q + q, s + s
        x = np.stack([(p + two_q) + two_s, (two_p + q) - two_s, (two_p - two_q) + s], axis=1)
    return x.reshape(m, f)


# -- products ---------------------------------------------------------------------------------------------------------


def pack(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """int8 [N, K] to flat: for each 64 columns, for each 4 terms, 4 terms of each of the 64 columns."""
    n, k = weights.shape
    out = [weights[i : i + 64, j : j + 4].reshape(-1) for i in range(0, n, 64) for j in range(0, k, 4)]
    return np.concatenate(out)


def scaled_product(a: Bytes, zero: Ints, step: Floats, weights: NDArray[np.int8], column_step: Floats) -> Floats:
    """uint8 [m, K] times int8 [N, K]: ((sum of (a - zero) * b) * column_step) * step, float32 [m, N]."""
    sums = (a.astype(np.int64) - zero[:, None]) @ weights.astype(np.int64).T
    return (sums.astype(np.int32).astype(F) * column_step) * step[:, None]


# -- positions and attention ------------------------------------------------------------------------------------------


def angles(tables: Floats, position: int) -> tuple[Floats, Floats]:
    """Cosines and sines, float32[32] each, from the tables [2, 1024, 2, 32] by one angle sum."""
    (c, s), (d, t) = tables[0, position % 1024], tables[1, position // 1024]
    return c * d - s * t, s * d + c * t


def turn(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """RoPE of one head: float32[64], pairs (i, i + 32)."""
    first, second = x[: HEAD // 2], x[HEAD // 2 :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin])


def quantise_head(x: Floats) -> tuple[NDArray[np.int64], np.float32]:
    """float32[64] to (integers -127..127, step)."""
    top = np.abs(x).max()
    return rounded(x * (F(127.0) / max(top, F(2.0**-60)))), top / F(127.0)


def put_query(x: Floats, cos: Floats, sin: Floats, unit: np.float32) -> tuple[Bytes, np.float32]:
    """(uint8[64] around 128, step times unit)."""
    q, step = quantise_head(turn(x, cos, sin))
    return (q + 128).astype(np.uint8), step * unit


def put_key(x: Floats, cos: Floats, sin: Floats) -> tuple[NDArray[np.int8], np.float32]:
    """(int8[64], step)."""
    k, step = quantise_head(turn(x, cos, sin))
    return k.astype(np.int8), step


def put_value(x: Floats) -> tuple[NDArray[np.int8], np.float32]:
    """(int8[64], step)."""
    v, step = quantise_head(x)
    return v.astype(np.int8), step


def visible_blocks(position: int, slots: int) -> list[int]:
    """Blocks of 128 positions that a query at `position` sees: the first, and the last slots - 1 up to its own."""
    current = position // BLOCK
    return [0, *range(max(1, current - (slots - 2)), current + 1)]


def attend_one(
    position: int, slots: int, q: Bytes, q_step: np.float32, q_sink: Bytes, q_sink_step: np.float32,
    keys: NDArray[np.int8], key_step: Floats, values: NDArray[np.int8], value_step: Floats,
) -> Floats:  # fmt: skip
    """One query of one head at `position` over a stream's keys and values int8 [positions, 64]: float32[64]."""
    result, total = np.zeros(HEAD), 0.0
    for block in visible_blocks(position, slots):
        span = slice(block * BLOCK, min((block + 1) * BLOCK, position + 1))
        query, step = (q_sink, q_sink_step) if block == 0 else (q, q_step)
        dots = keys[span].astype(np.int64) @ (query.astype(np.int64) - 128)
        v = (dots.astype(F) * key_step[span]) * step
        score = np.trunc(np.clip(v, F(-(2.0**23)), F(2.0**23))).astype(np.int64)
        whole = (int(score.max()) + (1 << 14) - 1) >> 14
        e = int_exp2((whole << 14) - score, 14)
        w = e.astype(F) * value_step[span]
        # The largest weight of a block becomes 128 to 255, so its bytes are worth a power of two.
        own = max(16, int(exponent(w).max()))
        p = np.minimum(np.trunc(w * power_of_two(134 - own) + F(0.5)), 255).astype(np.int64)
        result += (p @ values[span].astype(np.int64)) * 2.0 ** (whole + own - 134)
        total += float(e.sum()) * 2.0**whole
    return (result * (1.0 / total)).astype(F)


# -- distributions ----------------------------------------------------------------------------------------------------


def fix_logits(logits: Floats) -> Ints:
    """float32 in units of log2 to int32 with 16 fraction bits, clamped to +-4096, towards zero."""
    fixed: Ints = np.trunc(np.clip(logits, F(-4096.0), F(4096.0)) * F(65536.0)).astype(np.int32)
    return fixed


def spread(fixed: Ints) -> Ints:
    """Fixed-point logits int32[n] to frequencies int32[n] of total 2^24 (2^28 of more than 2^16), each at least 1."""
    total = 1 << (24 if len(fixed) <= 1 << 16 else 28)
    top = int(fixed.max())
    e = int_exp2(top - fixed.astype(np.int64), 16)
    r = F(np.float64(total - len(fixed)) / np.float64(int(e.sum())))
    freq = np.trunc(e.astype(F) * r).astype(np.int64) + 1
    freq[int(np.argmax(fixed == top))] += total - int(freq.sum())
    out: Ints = freq.astype(np.int32)
    return out


def interval(freq: Ints, symbol: int) -> tuple[int, int]:
    """(cumulative frequency below `symbol`, its frequency)."""
    return int(freq[:symbol].sum(dtype=np.int64)), int(freq[symbol])


def find(freq: Ints, target: int) -> tuple[int, int, int]:
    """(symbol, cumulative frequency below it, its frequency) of the symbol whose interval holds `target`."""
    ends = np.cumsum(freq, dtype=np.int64)
    symbol = int(np.searchsorted(ends, target, side="right"))
    return symbol, *interval(freq, symbol)
