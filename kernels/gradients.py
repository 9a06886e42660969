"""Exact gradients: what a step of learning needs beside the products of the forward pass.

Backward products run on the same integer kernels as forward ones (`nacz.kernels.gemm`): gradients are rounded to bytes
by the extremes of their row, sums are exact. Everything else here is elementwise IEEE float32 in a written order or a
sum of integers, so that threads, vectors and the cut into blocks cannot change a bit.

Knows flat arrays of rows. Does not know layers, tokens or optimiser schedules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from nacz.kernels.columns import ROWS as BLOCK
from nacz.kernels.compile import compiled, inner
from nacz.kernels.ops import (
    bits_of,
    float_of,
    iadd,
    iand,
    imax,
    imin,
    imul,
    ior,
    isub,
    ixor,
    round_near,
    sar,
    shl,
    to_float,
    trunc,
)  # fmt: skip
from nacz.kernels.rows import LOG2_E, TINY, half_power, largest, mix_rows, ordered, quantise_rows

PANEL = 64  # rows of a matrix that one step of the update takes
LARGEST = np.float32(127.0)  # of a signed byte
GOLDEN = np.int32(0x9E3779B1 - (1 << 32))  # 2^32 over the golden ratio: its multiples fill the circle evenly
FRACTION_UNIT = np.float32(2.0**-24)
EPSILON = np.float32(2.0**-60)  # keeps 0 / 0 out of the optimiser
MIDDLES = np.int32(0x80808080 - (1 << 32))  # moves four signed bytes to bytes around 128, and back


class Columns(NamedTuple):
    """Numbers of 64 columns while they become bytes: least and largest as ordered bits, step of the bytes and its
    inverse, zero point, and what takes 128s out of a product of bytes around 128 (see `sums_to_floats`)."""

    low: Any
    high: Any
    inverse: Any
    zero: Any
    unit: Any
    less: Any
    more: Any


def make_columns(aligned: Any) -> Columns:
    """Work space for one thread. `aligned(count, dtype)`."""
    kinds = np.int32, np.int32, np.float32, np.int32, np.float32, np.int32, np.int32
    return Columns(*(aligned(PANEL, kind) for kind in kinds))


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
def pack_terms(first: int, m: int, rows: int, k: int, x: Any, work: Any, terms: Any, step: Any) -> None:
    """Round m rows of x (float32 [m, k]) to signed bytes and place them as terms first .. first + m - 1 of a product.

    terms: uint8 [k][rows], bytes around 128, `first` and `rows` multiples of 4; step: float32 per term. Rows are
    rounded by their largest magnitude. Where the last four terms lack rows they are 0. work: float32[m + 3].
    """
    for r in range(m):
        top = largest(x, r * k, k)
        some = top >= TINY
        step[first + r] = top / LARGEST if some else np.float32(0.0)
        work[r] = LARGEST / top if some else np.float32(0.0)
    work[m : m + 3] = np.float32(0.0)
    words, last = terms.view(np.int32), m - 1
    for r in range(0, m, 4):
        a, b = x[r * k :], x[min(r + 1, last) * k :]
        c, d = x[min(r + 2, last) * k :], x[min(r + 3, last) * k :]
        a_unit, b_unit, c_unit, d_unit = work[r], work[r + 1], work[r + 2], work[r + 3]
        at, stride = (first + r) >> 2, rows >> 2
        for j in range(k):
            near = ior(iand(round_near(a[j] * a_unit), 255), shl(iand(round_near(b[j] * b_unit), 255), 8))
            far = ior(iand(round_near(c[j] * c_unit), 255), shl(iand(round_near(d[j] * d_unit), 255), 8))
            words[at + j * stride] = ixor(ior(near, shl(far, 16)), MIDDLES)


@compiled
def term_sums(rows: int, k: int, terms: Any, out: Any) -> None:
    """Sums of the signed terms of uint8 [k][rows], bytes around 128: int32[k]."""
    for j in range(k):
        total = np.int32(0)
        line = terms[j * rows : (j + 1) * rows]
        for i in range(rows):
            total = iadd(total, isub(np.int32(line[i]), 128))
        out[j] = total


@inner
def _column_byte(x: Any, step: Any, inverse: Any, zero: Any) -> Any:
    """x * step as a byte around 128, as bits of an int32."""
    return ixor(imin(imax(iadd(round_near((x * step) * inverse), zero), 0), 255), 128)


@inner
def _column(first: int, n: int, r: int, dy: Any) -> Any:
    """What row r of dy (float32 [m, n]) has from column `first` on, for a panel."""
    return dy[r * n + first : r * n + first + PANEL]


@inner
def pack_columns(first: int, n: int, rows: int, m: int, dy: Any, step: Any, packed: Any, s: Any) -> None:
    """Columns first .. first + 63 of dy (float32 [m, n]), each row times step[row], to bytes as `quantise_rows` does
    for each column, as one panel of a product over `rows` terms. step: float32[rows], 0 from m on.

    packed: int8 [rows / 4][64][4]. s: Columns, which then hold what `sums_to_floats` takes with sums of such a product.
    """
    low, high, inverse, zero = s.low, s.high, s.inverse, s.zero
    low[:] = 0
    high[:] = 0
    for r in range(m):
        row, factor = _column(first, n, r, dy), step[r]
        for c in range(PANEL):
            b = ordered(bits_of(row[c] * factor))
            low[c] = imin(low[c], b)
            high[c] = imax(high[c], b)
    for c in range(PANEL):
        least = float_of(ordered(low[c]))
        span = float_of(ordered(high[c])) - least
        some = span >= TINY
        inverse[c] = np.float32(255.0) / span if some else np.float32(0.0)
        s.unit[c] = span / np.float32(255.0) if some else np.float32(0.0)
        zero[c] = round_near(-least * inverse[c])
        s.more[c] = isub(128, zero[c])
        s.less[c] = 0
    words = packed.view(np.int32)
    for q in range(rows >> 2):
        r, last = 4 * q, m - 1
        a, b = _column(first, n, r, dy), _column(first, n, min(r + 1, last), dy)
        d, e = _column(first, n, min(r + 2, last), dy), _column(first, n, min(r + 3, last), dy)
        a_step, b_step, d_step, e_step = step[r], step[r + 1], step[r + 2], step[r + 3]
        out = words[q * PANEL : (q + 1) * PANEL]
        for c in range(PANEL):
            t, v = inverse[c], zero[c]
            near = ior(_column_byte(a[c], a_step, t, v), shl(_column_byte(b[c], b_step, t, v), 8))
            far = ior(_column_byte(d[c], d_step, t, v), shl(_column_byte(e[c], e_step, t, v), 8))
            out[c] = ior(near, shl(far, 16))
    for q in range(rows >> 2):
        out = words[q * PANEL : (q + 1) * PANEL]
        for c in range(PANEL):
            v = out[c]
            four = iadd(iadd(sar(shl(v, 24), 24), sar(shl(v, 16), 24)), iadd(sar(shl(v, 8), 24), sar(v, 24)))
            s.less[c] = iadd(s.less[c], shl(four, 7))


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
    count: int, gradient: Any, scale: Any, pace: Any, first: Any, second: Any, decay: Any, keep: Any
) -> None:
    """One Adam step (arXiv 1412.6980) of `count` weights: the gradient, times `scale`, becomes what is to be taken off.

    gradient, first and second moment: float32; decay and keep: float32 beta 1 and beta 2; pace: float32, the rate with
    the correction of the moments' start, in each weight's unit.
    """
    one = np.float32(1.0)
    fresh, new = one - decay, one - keep
    for i in range(count):
        g = gradient[i] * scale
        m = decay * first[i] + fresh * g
        v = keep * second[i] + new * (g * g)
        first[i] = m
        second[i] = v
        gradient[i] = pace[i] * (m / (np.sqrt(v) + EPSILON))


@compiled
def dithered(n: int, k: int, first: int, q: Any, out: Any) -> None:
    """Masters for int8 weights [n, k], in blocks of sixteen rows (`nacz.kernels.columns`): q plus a fraction between
    -0.49 and 0.49 that depends on the place, counted from `first` on, alone.

    Rounding gives back q, yet a step far below one already moves the share of weights that it should.
    """
    for block in range(0, n, BLOCK):
        for j in range(k):
            column = out[block * k + j * BLOCK : block * k + (j + 1) * BLOCK]
            for c in range(BLOCK):
                i = (block + c) * k + j
                h = np.uint64(first + i) * np.uint64(0x9E3779B97F4A7C15)
                h = (h ^ (h >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
                fraction = np.float32(np.int64(h >> np.uint64(40))) * FRACTION_UNIT
                column[c] = np.float32(q[i]) + (fraction - np.float32(0.5)) * np.float32(0.98)
