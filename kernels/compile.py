"""How nacz compiles: one decorator around Numba's `njit`, and where the machine code is kept.

Numba notices a change in a function's own file, but not in the functions it calls: an upgraded kernel could run as old
machine code inside an unchanged caller, which for a codec means wrong bytes. So the cache folder carries a hash of all
sources of the package: any change starts afresh. `NACZ_CACHE_DIR` moves the folder; where none is writable, functions
are compiled in memory.

Numba writes a function's index and then the numbered file that the index promises. Two processes that keep two
signatures of one function at the same moment would choose the same number, and one of them would later run the code of
the other. So whoever keeps machine code holds a lock on the folder.

`fastmath` is never set: no contraction, no reassociation. Division follows IEEE (`error_model="numpy"`), without the
test for zero that would keep loops from being vectorised.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
overload: Callable[..., Callable[..., Any]] = numba.extending.overload
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    with open(folder / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives it back
        yield


def _keep_alone(dispatcher: Any, folder: Path) -> None:
    """Let one process at a time keep machine code of this function."""
    files = dispatcher._cache._cache_file
    save = files.save

    def locked(key: Any, data: Any) -> None:
        with _alone(folder):
            save(key, data)

    files.save = locked


_setting = threading.Lock()  # the folder is a setting of the process, and threads may ask for functions at once


def _dispatcher(function: Any, folder: Path | None, **options: Any) -> Any:
    """Numba's compiler of `function`, which keeps its machine code in `folder`."""
    if folder is None:
        return njit(nogil=True, error_model="numpy", **options)(function)
    with _setting:
        before = config.CACHE_DIR
        config.CACHE_DIR = str(folder)
        try:
            kept = njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        finally:
            config.CACHE_DIR = before
    _keep_alone(kept, folder)
    return kept


def compiled(function: F) -> F:
    """Compile with Numba: no GIL, no fast-math, machine code cached on disk per state of the sources."""
    kept: F = _dispatcher(function, cache_folder())
    return kept


def inner(function: F) -> F:
    """`compiled` for what compiled code calls.

    Numba makes two more functions of each, which take Python's arguments apart; with arguments of fifty arrays these
    are most of the code, and a third of the time that compiling takes. Here they are left out. Where Python calls such
    a function all the same, as tests do, it is compiled once more with them.
    """
    folder = cache_folder()
    kept = _dispatcher(function, folder, no_cpython_wrapper=True, no_cfunc_wrapper=True)

    @lru_cache(maxsize=1)
    def callable_one() -> Any:
        apart = None  # Numba names files by the function, so the two must not share a folder
        if folder is not None:
            apart = folder / "calls"
            apart.mkdir(exist_ok=True)
        return _dispatcher(function, apart)

    # What Numba would enter into the table of calls from Python has no address: nothing is entered, and whoever finds
    # nothing there asks for a function to call.
    kept._insert = lambda *entry: None
    kept._compile_for_args = lambda *args, **named: callable_one()
    result: F = kept
    return result
