"""What the ensemble's weights start from: files of the format, with a number each, never changed.

Each was learned with another language model: the better that is, the less there is to add to it. An archive says which
one it was coded with.

Weights were learned from other texts by scripts/make_preset, in units of 1/256 bit. The slopes beside them, in units of
1/16, say how much was learned about each: the more, the slower a weight moves. Knows files; does not know what a weight
is for, and models by the hash of their tokenizer only.
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
from numpy.typing import NDArray

UNIT, SLOPE_UNIT = 1.0 / 256.0, 1.0 / 16.0
PRESETS = 2
# By tokenizer, in hex; 0, learned with smollm2-135m, is for all others.
_NUMBERS = {"f56b7dd413fd8308ef8c87c5d67e623527c92149cc4a1324f62d288b3b3f55ff": 1}  # of gemma3-270m


def preset_of(tokenizer_hash: bytes) -> int:
    """Number of the preset for a model with that tokenizer."""
    return _NUMBERS.get(tokenizer_hash.hex(), 0)


@functools.cache
def preset(number: int) -> NDArray[np.float64]:
    """Weights and slopes of a preset, its number below PRESETS: float64[2, numbers], read-only; slopes > 0."""
    raw = resources.files("nacz.formats").joinpath(f"ensemble-{number}.bin").read_bytes()
    numbers = len(raw) // 4
    start = np.empty((2, numbers))
    start[0] = np.frombuffer(raw, "<i2", numbers) * UNIT
    start[1] = np.frombuffer(raw, "<u2", numbers, 2 * numbers) * SLOPE_UNIT
    start.setflags(write=False)
    return start
