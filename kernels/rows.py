"""Row operations between the matrix products: exponential, normalise, quantise, rotate, SiLU.

Everything here is elementwise IEEE float32 in a written order, or an integer reduction (maxima of float bit patterns,
sums of squares in int64), so that vector width and order cannot matter. Numba never contracts a multiplication and an
addition unless `fastmath` is set, which it is not.

Loops index slices from 0: Numba wraps a negative index, and where it cannot exclude one it does not vectorise.

Knows flat arrays of rows. Does not know layers, heads or weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.compile import compiled, inner
from nacz.kernels.ops import (
    bits_of,
    float_of,
    iadd,
    iand,
    imax,
    imin,
    isub,
    ixor,
    round_near,
    sar,
    shl,
    to_float,
    trunc,
)  # fmt: skip

# 2^-f on [0, 1): degree 4, least maximal relative error (2.6e-6) found with Lawson's algorithm, rounded to float32.
E0 = np.float32(float.fromhex("0x1.ffffa80000000p-1"))
E1 = np.float32(float.fromhex("-0x1.62d4da0000000p-1"))
E2 = np.float32(float.fromhex("0x1.ea2ba80000000p-3"))
E3 = np.float32(float.fromhex("-0x1.b2c8620000000p-5"))
E4 = np.float32(float.fromhex("0x1.bb7cd40000000p-8"))
ONE_BITS = 23  # integer exponentials have 2^23 for one
LOG2_E = np.float32(float.fromhex("0x1.7154760000000p+0"))
TINY = np.float32(2.0**-60)  # rows whose largest magnitude is below this count as zero


@inner
def half_power(f: Any) -> Any:
    """2^-f for float32 f in [0, 1], as float32 in [0.4999, 1)."""
    return (((E4 * f + E3) * f + E2) * f + E1) * f + E0


@inner
def int_exp2(distance: Any, fraction_bits: Any) -> Any:
    """2^-(distance / 2^fraction_bits) as int32 with one = 2^23; 0 from 2^-31 on. `distance`: int32 >= 0."""
    whole = imin(sar(distance, fraction_bits), 31)
    mask = isub(shl(1, fraction_bits), 1)
    unit = float_of(shl(isub(127, fraction_bits), 23))
    y = half_power(to_float(iand(distance, mask)) * unit)
    return sar(trunc(y * np.float32(8388608.0)), whole)


@inner
def ordered(b: Any) -> Any:
    """Bits of a float32 to an int32 that compares like the float; its own inverse."""
    return ixor(b, iand(sar(b, 31), 0x7FFFFFFF))


@inner
def extremes(x: Any, at: int, n: int) -> Any:
    """(min(0, x...), max(0, x...)) of n float32 from `at`, found on integers: the order of comparison cannot matter."""
    low = np.int32(0)
    high = np.int32(0)
    row = x[at : at + n]
    for i in range(n):
        b = ordered(bits_of(row[i]))
        low = imin(low, b)
        high = imax(high, b)
    return float_of(ordered(low)), float_of(ordered(high))


@inner
def largest(x: Any, at: int, n: int) -> Any:
    """max |x| of n float32 from `at`."""
    high = np.int32(0)
    row = x[at : at + n]
    for i in range(n):
        high = imax(high, iand(bits_of(row[i]), 0x7FFFFFFF))
    return float_of(high)


@inner
def _to_bytes(x: Any, at: int, n: int, low: Any, high: Any, a: Any) -> Any:
    """Round x to bytes over [low, high]; returns (zero point, float32 step)."""
    span = high - low
    row, out = x[at : at + n], a[at : at + n]
    if span < TINY:
        out[:] = 0
        return np.int32(0), np.float32(0.0)
    inverse = np.float32(255.0) / span
    zero = round_near(-low * inverse)
    for i in range(n):
        out[i] = np.uint8(imin(imax(iadd(round_near(row[i] * inverse), zero), 0), 255))
    return zero, span / np.float32(255.0)


@compiled
def quantise_rows(m: int, k: int, x: Any, a: Any, zero: Any, scale: Any) -> None:
    """float32 [m, k] to uint8 with a zero point and a step per row: x ~ (a - zero) * scale. Flat arrays."""
    for r in range(m):
        low, high = extremes(x, r * k, k)
        zero[r], scale[r] = _to_bytes(x, r * k, k, low, high, a)


@inner
def normalise_rows(m: int, k: int, eps: float, x: Any, a: Any, zero: Any, scale: Any) -> None:
    """RMSNorm and quantisation in one: x / sqrt(mean(x^2) + eps) ~ (a - zero) * scale, without a gain.

    The norm divides a whole row by one number, so it only enters the step. The sum of squares is taken over x rounded
    to 21 bits relative to the row's largest magnitude, in int64: exact below 2^53 for k <= 2,048.
    """
    for r in range(m):
        at = r * k
        low, high = extremes(x, at, k)
        top = max(high, -low)
        if top < TINY:
            a[at : at + k] = 0
            zero[r], scale[r] = np.int32(0), np.float32(0.0)
            continue
        exponent = isub(sar(bits_of(top), 23), 127)
        fixed = float_of(shl(isub(127 + 20, exponent), 23))
        squares = np.int64(0)
        row = x[at : at + k]
        for i in range(k):
            v = np.int64(round_near(row[i] * fixed))
            squares += v * v
        mean = np.float64(squares) / (np.float64(fixed) * np.float64(fixed) * np.float64(k))
        rms = np.sqrt(mean + eps)
        z, step = _to_bytes(x, at, k, low, high, a)
        zero[r] = z
        scale[r] = np.float32(np.float64(step) / rms)


@inner
def add_rows(n: int, x: Any, y: Any) -> None:
    """x += y over n float32."""
    for i in range(n):
        x[i] = x[i] + y[i]


@inner
def gated_rows(m: int, f: int, gate_up: Any, h: Any) -> None:
    """SwiGLU: h = silu(gate) * up. gate_up float32 [m, 2 f] (gates first), h float32 [m, f]; flat arrays.

    The logistic function is e / (1 + e) or 1 / (1 + e) with e = exp(-|g|) from `half_power`; one IEEE division.
    """
    for r in range(m):
        gate, up = gate_up[2 * f * r : 2 * f * r + f], gate_up[2 * f * r + f : 2 * f * (r + 1)]
        out = h[f * r : f * (r + 1)]
        for i in range(f):
            g = gate[i]
            magnitude = float_of(iand(bits_of(g), 0x7FFFFFFF)) * LOG2_E
            u = min(magnitude, np.float32(60.0))
            whole = trunc(u)
            y = half_power(u - to_float(whole))
            e = float_of(isub(bits_of(y), shl(whole, 23)))
            top = np.float32(1.0) if g >= np.float32(0.0) else e
            out[i] = g * (top / (np.float32(1.0) + e)) * up[i]


@inner
def rotate_rows(m: int, f: int, two: int, three: int, h: Any) -> None:
    """Mix each row of h, seen as [three][two][f / (two three)], over its first two axes; in place, flat float32 [m, f].

    A Walsh-Hadamard transform over `two` (a power of two) and, if three is 3, the symmetric orthogonal matrix
    [[1,2,2],[2,1,-2],[2,-2,1]] over the first axis; neither is scaled (the inverse factor is folded into the next
    weights). Spreads outliers so that 8 bits are enough (QuaRot, arXiv 2404.00456, section 3); mixing whole vectors
    of lanes costs no shuffles.
    """
    width = f // (two * three)
    for r in range(m):
        base = r * f
        span = 1
        while span < two:
            for t in range(three):
                for i in range(0, two, 2 * span):
                    at, n = base + (t * two + i) * width, span * width
                    first, second = h[at : at + n], h[at + n : at + 2 * n]
                    for j in range(n):
                        p, q = first[j], second[j]
                        first[j] = p + q
                        second[j] = p - q
            span *= 2
        if three == 3:
            n = two * width
            x, y, z = h[base : base + n], h[base + n : base + 2 * n], h[base + 2 * n : base + 3 * n]
            for j in range(n):
                p, q, s = x[j], y[j], z[j]
                p2, q2, s2 = p + p, q + q, s + s
                x[j] = (p + q2) + s2
                y[j] = (p2 + q) - s2
                z[j] = (p2 - q2) + s


@inner
def _pairs(k: int, span: int, row: Any) -> None:
    """(a, b) to (a + b, a - b) for numbers that are `span` apart, in each 2 * span of a row of k."""
    for at in range(0, k, 2 * span):
        first, second = row[at : at + span], row[at + span : at + 2 * span]
        for j in range(span):
            p, q = first[j], second[j]
            first[j] = p + q
            second[j] = p - q


@inner
def _fours(k: int, span: int, row: Any) -> None:
    """`_pairs` for `span` and then for 2 * span, in one pass."""
    for at in range(0, k, 4 * span):
        first, second = row[at : at + span], row[at + span : at + 2 * span]
        third, fourth = row[at + 2 * span : at + 3 * span], row[at + 3 * span : at + 4 * span]
        for j in range(span):
            a, b, c, d = first[j], second[j], third[j], fourth[j]
            p, q, s, t = a + b, a - b, c + d, c - d
            first[j] = p + s
            second[j] = q + t
            third[j] = p - s
            fourth[j] = q - t


@inner
def _sixteens(k: int, row: Any) -> None:
    """`_pairs` for spans of 1, 2, 4 and 8. Loops of known lengths, which vectorise: a fifth of the time."""
    for i in range(k >> 2):
        a, b, c, d = row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]
        p, q, s, t = a + b, a - b, c + d, c - d
        row[4 * i] = p + s
        row[4 * i + 1] = q + t
        row[4 * i + 2] = p - s
        row[4 * i + 3] = q - t
    for i in range(k >> 4):
        x = row[16 * i : 16 * i + 16]
        for j in range(4):
            a, b, c, d = x[j], x[j + 4], x[j + 8], x[j + 12]
            p, q, s, t = a + b, a - b, c + d, c - d
            x[j] = p + s
            x[j + 4] = q + t
            x[j + 8] = p - s
            x[j + 12] = q - t


@inner
def mix_rows(m: int, k: int, two: int, three: int, scale: Any, x: Any) -> None:
    """Mix each row of x as the residual stream is mixed in the weights; in place, flat float32 [m, k].

    A row is seen as [three][two][k / (two three)], three being a power of 3: a Walsh-Hadamard transform over `two`,
    then [[1,2,2],[2,1,-2],[2,-2,1]] over each factor of `three`, and all times `scale`, which makes it orthogonal and
    its own inverse.
    """
    rest = k // (two * three)
    for r in range(m):
        row = x[r * k : (r + 1) * k]
        span = rest
        if rest == 1 and two >= 16:
            _sixteens(k, row)
            span = 16
        while 4 * span <= two * rest:
            _fours(k, span, row)
            span *= 4
        if span < two * rest:
            _pairs(k, span, row)
        n, parts = k, 1
        while parts < three:
            n //= 3
            for part in range(parts):
                at = part * 3 * n
                a, b, c = row[at : at + n], row[at + n : at + 2 * n], row[at + 2 * n : at + 3 * n]
                for j in range(n):
                    p, q, s = a[j], b[j], c[j]
                    p2, q2, s2 = p + p, q + q, s + s
                    a[j] = (p + q2) + s2
                    b[j] = (p2 + q) - s2
                    c[j] = (p2 - q2) + s
            parts *= 3
        for j in range(k):
            row[j] = row[j] * scale
