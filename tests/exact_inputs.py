"""What the tests of the exact arithmetic share: the kernels of this machine, inputs that never change, comparisons."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import tiny
from nacz.kernels.dispatch import KERNELS as KERNELS_BY_NAME
from nacz.kernels.dispatch import usable
from numpy.typing import NDArray

from nacz.arrays import aligned

F = np.float32


KERNELS = [KERNELS_BY_NAME[name] for name in usable()]
each_kernel = pytest.mark.parametrize("kern", KERNELS, ids=lambda kern: type(kern).__name__)


def floats(label: str, *shape: int) -> NDArray[np.float32]:
    """Roughly normal float32, the same for ever."""
    return tiny.normal(1, label, int(np.prod(shape))).reshape(shape).astype(F)


def whole(label: str, low: int, high: int, *shape: int) -> NDArray[np.int64]:
    """Integers from low to high, the same for ever."""
    size = int(np.prod(shape))
    drawn = tiny.noise(1, label, 4 * size).view("<u4") % np.uint32(high - low + 1)
    return low + drawn.astype(np.int64).reshape(shape)


def put(array: NDArray[Any]) -> NDArray[Any]:
    """A flat copy on a 64-byte boundary."""
    out = aligned(array.size, array.dtype)
    out[:] = array.reshape(-1)
    return out


def same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal in every bit, but for the sign of zeros."""
    found = found.reshape(expected.shape)
    assert found.dtype == expected.dtype
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)


def sha(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update((array + array.dtype.type(0)).tobytes())  # -0.0 + 0.0 is 0.0
    return digest.hexdigest()[:16]
