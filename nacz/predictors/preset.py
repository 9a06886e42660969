"""The weights that the ensemble starts from: files of the format, one for each version, never changed.

They were learned from other texts (docs/experiments.md says which), in units of 1/256 bit. Knows files; does not know
what a weight is for.
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
from numpy.typing import NDArray

UNIT = 1.0 / 256.0
VERSIONS = 1


@functools.cache
def preset(version: int) -> NDArray[np.float64]:
    """The starting weights of a version below VERSIONS, float64[numbers], read-only."""
    raw = resources.files("nacz.formats").joinpath(f"ensemble-{version}.bin").read_bytes()
    weights = np.frombuffer(raw, "<i2").astype(np.float64) * UNIT
    weights.setflags(write=False)
    return weights
