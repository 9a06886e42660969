"""Memory for compiled code: arrays that begin where vector loads want them.

Knows the operating system's pages. Does not know what arrays are for.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 20  # bytes from which an array has pages of its own


def aligned(n: int, dtype: Any) -> NDArray[Any]:
    """Zeros whose first byte lies on a 64-byte boundary. Raises MemoryError.

    Large ones are pages of their own, which take memory when they are first written to and give it back when they are
    freed. From the heap, where what was freed is used again and has to be cleared, an encoder that learned took half a
    gigabyte more (docs/experiments.md).
    """
    size = n * np.dtype(dtype).itemsize
    raw = _pages(size) if size >= LARGE and hasattr(mmap, "MAP_PRIVATE") else np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype)


def _pages(size: int) -> NDArray[np.uint8]:
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"no memory for {size} bytes") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a wish only; not every system has huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
