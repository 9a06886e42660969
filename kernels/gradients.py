"""Exact gradients: what a step of learning needs beside the products of the forward pass.

Backward products run on the same integer kernels as forward ones (`nacz.kernels.gemm`): gradients are rounded to bytes
by the extremes of their row, sums are exact. Everything else here is elementwise IEEE float32 in a written order or a
sum of integers, so that threads, vectors and the cut into blocks cannot change a bit.

Knows flat arrays of rows. Does not know layers, tokens or optimiser schedules.
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
    imul,
    ior,
    isub,
    round_near,
    sar,
    shl,
    to_float,
    trunc,
)  # fmt: skip
from nacz.kernels.rows import LOG2_E, TINY, half_power, largest, mix_rows, quantise_rows

TOGETHER = 16  # rows that a transposition takes at a time, so that both sides stay in the cache
PANEL = 64  # rows of a matrix that one step of the update takes
LARGEST = np.float32(127.0)  # of a weight in units of its row's step
GOLDEN = np.int32(0x9E3779B1 - (1 << 32))  # 2^32 over the golden ratio: its multiples fill the circle evenly
FRACTION_UNIT = np.float32(2.0**-24)
EPSILON = np.float32(2.0**-60)  # keeps 0 / 0 out of the optimiser


@inner
def gate_gradient(m: int, f: int, gate_up: Any, dh: Any, out: Any) -> None:
    """Through h = silu(gate) * up: dh float32 [m, f] to out float32 [m, 2 f] (gates first). `gate_up` as forward."""
    one = np.float32(1.0)
    for r in range(m):
        gate, up = gate_up[2 * f * r : 2 * f * r + f], gate_up[2 * f * r + f : 2 * f * (r + 1)]
        d_gate, d_up = out[2 * f * r : 2 * f * r + f], out[2 * f * r + f : 2 * f * (r + 1)]
        d = dh[f * r : f * (r + 1)]
        for i in range(f):
            g = gate[i]
            magnitude = float_of(iand(bits_of(g), 0x7FFFFFFF)) * LOG2_E
            u = min(magnitude, np.float32(60.0))
            whole = trunc(u)
            y = half_power(u - to_float(whole))
            e = float_of(isub(bits_of(y), shl(whole, 23)))
            top = one if g >= np.float32(0.0) else e
            logistic = top / (one + e)
            d_up[i] = d[i] * (g * logistic)
            d_gate[i] = (d[i] * up[i]) * (logistic * (one + g * (one - logistic)))


@inner
def _fixed_scale(top: Any) -> Any:
    """The power of two that brings a float32 of magnitude `top` to between 2^20 and 2^21."""
    return float_of(shl(isub(127 + 20, isub(sar(bits_of(top), 23), 127)), 23))


@inner
def exact_dot(x: Any, x_at: int, y: Any, y_at: int, n: int) -> Any:
    """Sum of x * y over n <= 2,048 float32, both rounded to 21 bits of their largest, as float64. No order matters."""
    a, b = largest(x, x_at, n), largest(y, y_at, n)
    if a < TINY or b < TINY:
        return 0.0
    p, q = _fixed_scale(a), _fixed_scale(b)
    total = np.int64(0)
    left, right = x[x_at : x_at + n], y[y_at : y_at + n]
    for i in range(n):
        total += np.int64(round_near(left[i] * p)) * np.int64(round_near(right[i] * q))
    return np.float64(total) / (np.float64(p) * np.float64(q))


@inner
def norm_gradient(m: int, k: int, eps: float, x: Any, dy: Any, dx: Any) -> None:
    """Through y = x / sqrt(mean(x^2) + eps), added to dx: x, dy, dx float32 [m, k].

    dx += r dy - x r^3 (x . dy) / k with r = 1 / sqrt(mean(x^2) + eps).
    """
    for r in range(m):
        at = r * k
        square = exact_dot(x, at, x, at, k) / np.float64(k) + eps
        inverse = 1.0 / np.sqrt(square)
        first = np.float32(inverse)
        second = np.float32((exact_dot(x, at, dy, at, k) / np.float64(k)) * (inverse / square))
        row, grad, out = x[at : at + k], dy[at : at + k], dx[at : at + k]
        for i in range(k):
            out[i] = out[i] + (first * grad[i] - second * row[i])


@inner
def rms_inverse(m: int, k: int, eps: float, x: Any, out: Any) -> None:
    """out[r] = 1 / sqrt(mean(x^2) + eps) of each row of x (float32 [m, k]) as float32."""
    for r in range(m):
        out[r] = np.float32(1.0 / np.sqrt(exact_dot(x, r * k, x, r * k, k) / np.float64(k) + eps))


@inner
def quantise_scaled(m: int, n: int, dy: Any, column: Any, work: Any, a: Any, zero: Any, scale: Any) -> None:
    """Rows of dy (float32 [m, n]) times float32[n] `column`, to bytes as `quantise_rows`. work: float32[n]."""
    for r in range(m):
        row = dy[r * n : (r + 1) * n]
        for i in range(n):
            work[i] = row[i] * column[i]
        quantise_rows(1, n, work, a[r * n : (r + 1) * n], zero[r:], scale[r:])


@inner
def scattered_bytes(row: int, n: int, x: Any, top: Any, work: Any, place: Any, value: Any) -> Any:
    """float32[n] x to signed bytes; those that are not 0 and where they are: into value, place int32[n]; how many.

    x ~ value * top / 126 with `top` the largest magnitude. A fraction between -1/2 and 1/2 that depends on the column
    and on the row's number `row` is added before rounding: the tail of a softmax, small probabilities of many tokens,
    would else round to zero and bias every sum over the vocabulary (docs/experiments.md). Of a distribution's gradient
    some hundred are left. n: a multiple of 64; work: int32[64].
    """
    inverse = np.float32(126.0) / max(top, TINY)
    start = imul(np.int32(row), 40503)
    count = 0
    for at in range(0, n, PANEL):
        some, most = x[at : at + PANEL], np.int32(0)
        for i in range(PANEL):
            fraction = to_float(sar(imul(iadd(start, np.int32(at + i)), GOLDEN), 8)) * FRACTION_UNIT
            v = round_near(some[i] * inverse + fraction)
            work[i] = v
            most = imax(most, imul(v, v))
        if most > 0:
            for i in range(PANEL):
                if work[i] != 0:
                    place[count] = at + i
                    value[count] = work[i]
                    count += 1
    return count


@inner
def add_scattered(count: int, place: Any, value: Any, k: int, matrix: Any, unit: Any, total: Any, out: Any) -> None:
    """Sum of value[i] times row place[i] of `matrix` (int8 [n, k]), exact, times `unit`: out float32[k]. total:
    int32[k]."""
    total[:k] = 0
    for i in range(count):
        v, at = value[i], np.int64(place[i]) * k
        line = matrix[at : at + k]
        for j in range(k):
            total[j] = iadd(total[j], imul(v, np.int32(line[j])))
    for j in range(k):
        out[j] = to_float(total[j]) * unit


@inner
def pack_terms(first: int, m: int, rows: int, k: int, x: Any, packed: Any, step: Any) -> None:
    """Round m rows of x (float32 [m, k]) to signed bytes and place them as terms first .. first + m - 1 of a product.

    packed: int8 [k / 64][rows / 4][64][4], `rows` a multiple of 4; step: float32 per term. Rows are rounded by their
    largest magnitude.
    """
    for i in range(m):
        r = first + i
        top = largest(x, i * k, k)
        row = x[i * k : (i + 1) * k]
        if top < TINY:
            step[r] = np.float32(0.0)
            inverse = np.float32(0.0)
        else:
            step[r] = top / LARGEST
            inverse = LARGEST / top
        for panel in range(k // PANEL):
            base = (panel * (rows >> 2) + (r >> 2)) * 4 * PANEL + (r & 3)
            out, some = packed[base : base + 4 * PANEL - 3], row[panel * PANEL : (panel + 1) * PANEL]
            for j in range(PANEL):
                out[4 * j] = np.int8(round_near(some[j] * inverse))


@compiled
def panel_sums(rows: int, k: int, packed: Any, out: Any) -> None:
    """Sums over the terms of packed int8 [k / 64][rows / 4][64][4]: int32[k]."""
    for panel in range(k // PANEL):
        sums = out[panel * PANEL : (panel + 1) * PANEL]
        sums[:] = 0
        for q in range(rows >> 2):
            base = (panel * (rows >> 2) + q) * 4 * PANEL
            some = packed[base : base + 4 * PANEL]
            for i in range(PANEL):
                four = iadd(iadd(np.int32(some[4 * i]), np.int32(some[4 * i + 1])), np.int32(some[4 * i + 2]))
                sums[i] = iadd(sums[i], iadd(four, np.int32(some[4 * i + 3])))


@inner
def gather_columns(first: int, n: int, rows: int, m: int, dy: Any, step: Any, out: Any) -> None:
    """Columns first .. first + 63 of dy (float32 [m, n]), each row times step[row]: out float32 [64, rows], rows >= m.

    What lies between m and rows becomes zero.
    """
    for at in range(0, m, TOGETHER):
        some = min(TOGETHER, m - at)
        for i in range(PANEL):
            line = out[i * rows + at : i * rows + at + some]
            for r in range(some):
                line[r] = dy[(at + r) * n + first + i] * step[at + r]
    for r in range(m, rows):
        for i in range(PANEL):
            out[i * rows + r] = np.float32(0.0)


@compiled
def column_units(n: int, k: int, two: int, three: int, scale: Any, q: Any, step: Any, part: Any, out: Any) -> None:
    """A tenth of the root mean square of each column of a matrix that is mixed back: out float32[k].

    q: int8 [n, k] in units of step float32[n]; part: float32[k]. Squares are added row after row, in float64.
    """
    total = np.zeros(k, np.float64)
    for i in range(n):
        line = q[i * k : (i + 1) * k]
        for j in range(k):
            part[j] = to_float(np.int32(line[j])) * step[i]
        mix_rows(1, k, two, three, scale, part)
        for j in range(k):
            total[j] += np.float64(part[j]) * np.float64(part[j])
    for j in range(k):
        out[j] = np.float32(0.1 * np.sqrt(total[j] / np.float64(n)))


@inner
def adam_moves(
    count: int, gradient: Any, unit: Any, first: Any, second: Any, decay: Any, keep: Any, rate: Any
) -> None:
    """One Adam step (arXiv 1412.6980) of `count` weights, each in its own float32 unit: the gradient becomes what is to
    be taken off.

    gradient, first and second moment: float32; decay and keep: float32 beta 1 and beta 2; rate: float32, with the
    correction of the moments' start.
    """
    one = np.float32(1.0)
    fresh, new = one - decay, one - keep
    for i in range(count):
        g = gradient[i]
        m = decay * first[i] + fresh * g
        v = keep * second[i] + new * (g * g)
        first[i] = m
        second[i] = v
        gradient[i] = (rate * unit[i]) * (m / (np.sqrt(v) + EPSILON))


@inner
def take_off(count: int, move: Any, inverse: Any, master: Any, out: Any) -> None:
    """Take float32 moves times `inverse` off the masters, and round these to bytes (int8)."""
    for i in range(count):
        w = master[i] - move[i] * inverse
        w = min(max(w, -LARGEST), LARGEST)
        master[i] = w
        out[i] = np.int8(round_near(w))


@inner
def place_rows(row: int, n: int, k: int, q: Any, packed: Any, turned: Any, sums: Any, part: Any) -> None:
    """64 rows of int8 weights q [64, k], from row `row` (a multiple of 64) of n on, into both packed orders.

    packed: int8 [n/64][k/4][64][4]; turned: int8 [k/64][n/4][64][4], the transposed matrix; sums: int32[n], row sums;
    part: int32[k], this panel's sums of the columns.
    """
    part[:] = 0
    for i in range(PANEL):
        line = q[i * k : (i + 1) * k]
        total = np.int32(0)
        for j in range(k):
            total = iadd(total, np.int32(line[j]))
        sums[row + i] = total
        for j in range(k):
            part[j] = iadd(part[j], np.int32(line[j]))
    # Four neighbours of a row go together, so words are transposed; a few rows at a time, to stay in the cache.
    words, fours = k >> 2, q.view(np.int32)
    out = packed[row * k : (row + PANEL) * k].view(np.int32)
    for first in range(0, PANEL, TOGETHER):
        for j in range(words):
            for i in range(first, first + TOGETHER):
                out[j * PANEL + i] = fours[i * words + j]
    for i in range(0, PANEL, 4):
        for panel in range(k // PANEL):
            at = (panel * (n >> 2) + ((row + i) >> 2)) * 4 * PANEL
            woven, left = turned[at : at + 4 * PANEL].view(np.int32), i * k + panel * PANEL
            a, b = q[left : left + PANEL], q[left + k : left + k + PANEL]
            c, d = q[left + 2 * k : left + 2 * k + PANEL], q[left + 3 * k : left + 3 * k + PANEL]
            for j in range(PANEL):
                low = ior(iand(np.int32(a[j]), 255), shl(iand(np.int32(b[j]), 255), 8))
                woven[j] = ior(low, ior(shl(iand(np.int32(c[j]), 255), 16), shl(np.int32(d[j]), 24)))


@compiled
def dithered(count: int, first: int, q: Any, out: Any) -> None:
    """Masters for int8 weights: q plus a fraction between -0.49 and 0.49 that depends on first + i alone.

    Rounding gives back q, yet a step far below one already moves the share of weights that it should.
    """
    for i in range(count):
        h = np.uint64(first + i) * np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        fraction = np.float32(np.int64(h >> np.uint64(40))) * FRACTION_UNIT
        out[i] = np.float32(q[i]) + (fraction - np.float32(0.5)) * np.float32(0.98)
