"""Where the bits of a text went: its most expensive stretches, and bits over the file. Knows costs, shows nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.explain.costs import Costs

__all__ = ["Passage", "curve", "passages", "readable"]

_UNITS = 24  # of a passage


class Passage(NamedTuple):
    """`unit`: index of the first unit; `units`: how many; `start`, `size`: bytes; `bits`: of all of them."""

    unit: int
    units: int
    start: int
    size: int
    bits: float


def passages(costs: Costs, count: int = 20, units: int = _UNITS) -> list[Passage]:
    """Return the stretches of `units` units that cost most bits, none overlapping another, most expensive first."""
    n = costs.bits.size
    if n == 0:
        return []
    units = min(units, n)
    sums = np.concatenate([[0.0], np.cumsum(costs.bits, dtype=np.float64)])
    places = np.concatenate([[0], np.cumsum(costs.lengths, dtype=np.int64)])
    totals = sums[units:] - sums[:-units]
    found: list[Passage] = []
    free = np.ones(n, np.bool_)
    for unit in np.argsort(-totals, kind="stable"):
        if len(found) == count:
            break
        if free[unit] and free[unit + units - 1]:
            free[unit : unit + units] = False
            start, end = int(places[unit]), int(places[unit + units])
            found.append(Passage(int(unit), units, start, end - start, float(totals[unit])))
    return found


def curve(costs: Costs, bits: NDArray[np.float32], points: int = 300) -> list[float]:
    """Return bits per byte in each of at most `points` equal parts of the text."""
    if not costs.data:
        return []
    points = min(points, len(costs.data))
    ends = np.cumsum(costs.lengths, dtype=np.int64)
    # A unit counts where it ends.
    part = np.minimum((ends - 1) * points // len(costs.data), points - 1)
    sums = np.bincount(part, weights=bits.astype(np.float64), minlength=points)
    edges = np.arange(points + 1, dtype=np.int64) * len(costs.data) // points
    return [float(v) for v in sums / np.maximum(np.diff(edges), 1)]


def readable(piece: bytes) -> str:
    """Bytes as text; what is no text, and what no eye sees, as escapes such as \\x00."""
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
