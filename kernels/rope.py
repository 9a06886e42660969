"""Rotary position tables, made without libm.

Angles are position * base^(-i / half), or other frequencies that are given. Decimal arithmetic of 60 digits gives the
first angle of each frequency and its cosine and sine by Taylor series; big-integer rotations give all multiples. The
float32 roundings of these are the same on every machine; a test pins their hash.

Knows frequencies and positions. Does not know queries or keys.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
from nacz.kernels.compile import compiled
from numpy.typing import NDArray

STEP = 1024  # positions = high * STEP + low
POSITIONS = STEP * STEP
_BITS = 128


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """Cosine and sine of an angle in [0, 1] by Taylor series to the precision of the context."""
    cos = sin = Decimal(0)
    term, n = Decimal(1), 0
    while abs(term) > Decimal(10) ** -58:
        if n % 2 == 0:
            cos += term if n % 4 == 0 else -term
        else:
            sin += term if n % 4 == 1 else -term
        n += 1
        term = term * angle / n
    return cos, sin


def rope_frequencies(base: float, half: int) -> list[Decimal]:
    """The first angle of each pair: base^(-i / half)."""
    with localcontext() as context:
        context.prec = 60
        return [Decimal(base) ** (Decimal(-i) / Decimal(half)) for i in range(half)]


def rope_tables(base: float, half: int) -> NDArray[np.float32]:
    """float32 [2, STEP, 2, half]: cosines and sines at positions 0 .. STEP-1, and at multiples of STEP."""
    return tables_of(rope_frequencies(base, half))


def tables_of(frequencies: list[Decimal]) -> NDArray[np.float32]:
    """The same for given frequencies, each in [0, 1]; one of 0 is a pair that is never turned."""
    half = len(frequencies)
    out = np.empty((2, STEP, 2, half), np.float64)
    one = 1 << _BITS
    with localcontext() as context:
        context.prec = 60
        for i, angle in enumerate(frequencies):
            cos, sin = _cos_sin(angle)
            c1, s1 = int(cos * one), int(sin * one)
            for table in range(2):
                c, s = one, 0
                for position in range(STEP):
                    out[table, position, 0, i], out[table, position, 1, i] = c / one, s / one
                    c, s = (c * c1 - s * s1) >> _BITS, (s * c1 + c * s1) >> _BITS
                c1, s1 = c, s
    return out.astype(np.float32)


@compiled
def angles(tables: Any, half: int, position: int, cos: Any, sin: Any, at: int) -> None:
    """cos/sin[at : at + half] for a position below STEP^2; `tables` is the flat table.

    The angle sum is two multiplications and one addition in float32, error below 2^-22.
    """
    low = (position % STEP) * 2 * half
    high = (STEP + position // STEP) * 2 * half
    for i in range(half):
        c, s = tables[low + i], tables[low + half + i]
        d, t = tables[high + i], tables[high + half + i]
        cos[at + i] = c * d - s * t
        sin[at + i] = s * d + c * t
