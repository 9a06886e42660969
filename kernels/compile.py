"""How nacz compiles: one decorator around Numba's `njit`, and where the machine code is kept.

Numba notices a change in a function's own file, but not in the functions it calls: an upgraded kernel could run as old
machine code inside an unchanged caller, which for a codec means wrong bytes. So the cache folder carries a hash of all
sources of the package: any change starts afresh. `NACZ_CACHE_DIR` moves the folder; where none is writable, functions
are compiled in memory.

`fastmath` is never set: no contraction, no reassociation. Division follows IEEE (`error_model="numpy"`), without the
test for zero that would keep loops from being vectorised.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.core.cgutils
import numba.core.config
import numba.extending

F = TypeVar("F", bound=Callable[..., Any])

# Numba's own annotations fit calls from Python; these names are called from compiled code, where the typing context
# is implied.
intrinsic: Callable[..., Callable[..., Any]] = numba.extending.intrinsic
cgutils: Any = numba.core.cgutils
njit: Any = numba.njit
numba_types: Any = numba.types
config: Any = numba.core.config


def _sources() -> list[Path]:
    import nacz.coder
    import nacz.formats

    import nacz

    roots = {Path(p) for m in (nacz, nacz.coder, nacz.formats) for p in m.__path__} | {Path(__file__).parent}
    return sorted(file for root in roots for file in root.rglob("*.py"))


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """Folder for machine code of exactly these sources; None where nothing can be written."""
    digest = hashlib.sha256()
    for file in _sources():
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    base = os.environ.get("NACZ_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nacz"
    )
    folder = Path(base) / "jit" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def compiled(function: F) -> F:
    """Compile with Numba: no GIL, no fast-math, machine code cached on disk per state of the sources."""
    folder = cache_folder()
    if folder is None:
        in_memory: F = njit(nogil=True, error_model="numpy")(function)
        return in_memory
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        kept: F = njit(nogil=True, error_model="numpy", cache=True)(function)
    finally:
        config.CACHE_DIR = before
    return kept
