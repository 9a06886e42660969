"""What the ensemble's weights start from: files of the format, one for each version, never changed.

Weights were learned from other texts by scripts/make_preset, in units of 1/256 bit. The slopes beside them, in units of
1/16, say how much was learned about each: the more, the slower a weight moves. Knows files; does not know what a weight
is for.
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
from numpy.typing import NDArray

UNIT, SLOPE_UNIT = 1.0 / 256.0, 1.0 / 16.0
VERSIONS = 1


@functools.cache
def preset(version: int) -> NDArray[np.float64]:
    """Weights and slopes that a version below VERSIONS starts with, float64[2, numbers], read-only; slopes > 0."""
    raw = resources.files("nacz.formats").joinpath(f"ensemble-{version}.bin").read_bytes()
    numbers = len(raw) // 4
    start = np.empty((2, numbers))
    start[0] = np.frombuffer(raw, "<i2", numbers) * UNIT
    start[1] = np.frombuffer(raw, "<u2", numbers, 2 * numbers) * SLOPE_UNIT
    start.setflags(write=False)
    return start
