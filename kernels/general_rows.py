"""Row operations that only general models have: biases, GELU, and norms with gains behind a matrix product.

Elementwise IEEE float32 in a written order, or integer reductions, as in `nacz.kernels.rows`.

Knows flat arrays of rows. Does not know layers, heads or weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.compile import inner
from nacz.kernels.ops import bits_of, float_of, iand, isub, shl, to_float, trunc
from nacz.kernels.rows import LOG2_E, TINY, half_power, largest, quantise_rows, rotate_rows
from nacz.kernels.wide_attention import root_mean_square

# GELU's tanh form is g times the logistic function of 2 sqrt(2 / pi) (g + 0.044715 g^3).
GELU_1 = np.float32(float.fromhex("0x1.988454p+0"))
GELU_3 = np.float32(float.fromhex("0x1.2444f2p-4"))
FAR = np.float32(16.0)  # beyond it the logistic function is 0 or 1 to the last bit


@inner
def add_bias(m: int, n: int, bias: Any, at: int, x: Any) -> None:
    """x[r, i] += bias[at + i] over float32 [m, n], flat."""
    some = bias[at : at + n]
    for r in range(m):
        row = x[r * n : (r + 1) * n]
        for i in range(n):
            row[i] = row[i] + some[i]


@inner
def gelu_rows(m: int, f: int, gate_up: Any, h: Any) -> None:
    """GeGLU: h = gelu(gate) * up. gate_up float32 [m, 2 f] (gates first), h float32 [m, f]; flat arrays."""
    for r in range(m):
        gate, up = gate_up[2 * f * r : 2 * f * r + f], gate_up[2 * f * r + f : 2 * f * (r + 1)]
        out = h[f * r : f * (r + 1)]
        for i in range(f):
            g = gate[i]
            t = min(max(g, -FAR), FAR)
            z = t * (GELU_1 + GELU_3 * (t * t))
            u = min(float_of(iand(bits_of(z), 0x7FFFFFFF)) * LOG2_E, np.float32(60.0))
            whole = trunc(u)
            y = half_power(u - to_float(whole))
            e = float_of(isub(bits_of(y), shl(whole, 23)))
            top = np.float32(1.0) if z >= np.float32(0.0) else e
            out[i] = g * (top / (np.float32(1.0) + e)) * up[i]


@inner
def prepare_rows(
    m: int, n: int, eps: float, gain: Any, at: int, two: int, three: int, x: Any, h: Any, a: Any, zero: Any, scale: Any
) -> None:
    """RMSNorm with gains, mixed by `rotate_rows` over two and three, and quantised: as `normalise_rows`, where gains
    differ too much to be part of the matrix. h: float32 [m, n], work space."""
    some = gain[at : at + n]
    for r in range(m):
        row, out = x[r * n : (r + 1) * n], h[r * n : (r + 1) * n]
        for i in range(n):
            out[i] = row[i] * some[i]
    rotate_rows(m, n, two, three, h)
    quantise_rows(m, n, h, a, zero, scale)
    for r in range(m):
        if largest(x, r * n, n) >= TINY:
            scale[r] = np.float32(np.float64(scale[r]) / root_mean_square(x, r * n, n, n, eps))


@inner
def renormalise_rows(m: int, n: int, eps: float, gain: Any, at: int, x: Any) -> None:
    """RMSNorm with gains, in place: x = (x * gain) * float32(1 / sqrt(mean(x^2) + eps)); a row of nothing stays 0."""
    some = gain[at : at + n]
    for r in range(m):
        row = x[r * n : (r + 1) * n]
        if largest(x, r * n, n) < TINY:
            row[:] = np.float32(0.0)
            continue
        factor = np.float32(1.0 / root_mean_square(x, r * n, n, n, eps))
        for i in range(n):
            row[i] = (row[i] * some[i]) * factor
