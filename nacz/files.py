"""Output files that are there completely or not at all.

An output is written under a temporary name in the same folder, synced, and given its final name as the last
step; whatever goes wrong before that, signals included, the temporary file is removed. Knows files, modes and
times; does not know what is written.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import stat
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from types import FrameType
from typing import BinaryIO

from nacz.errors import OutputExistsError, UsageError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["Terminated", "atomic_output", "copy_times_and_mode", "terminate_as_exception"]

_TEMPORARY_SUFFIX = ".nacz-part"
_ALARM = getattr(signal, "SIGALRM", None)
_GRACE = 3.0  # seconds from a signal until the process ends without waiting any longer for its threads
_unfinished: set[str] = set()  # temporary files that then have to go
_FLAGS = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt no Exception, so that only cleaning up sees it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextlib.contextmanager
def terminate_as_exception() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Terminated in the main thread, as SIGINT raises KeyboardInterrupt, so that files
    are cleaned up.

    Signals that the caller's parent set to be ignored (nohup) stay ignored. What is raised in a callback of C code is
    dropped there, and while Numba compiles, much of the time passes in such callbacks: what was dropped is raised again
    until it gets through. And where threads cannot stop soon (Numba takes up to a minute for one function), temporary
    files are removed and the process ends without them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signalled, until = 0, 0.0
    previous = {}

    def wake(seconds: float) -> None:
        """SIGALRM after so many seconds, 0 for never, where nobody else waits for one."""
        if _ALARM in previous and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signalled, until
        if number != _ALARM:
            signalled, until = number, time.monotonic() + _GRACE
        elif time.monotonic() >= until:
            _leave(128 + (signalled or number))
        wake(max(until - time.monotonic(), 0.01))
        raise KeyboardInterrupt if signalled == signal.SIGINT else Terminated(signalled)

    def on_dropped(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, (KeyboardInterrupt, Terminated)):
            wake(0.01)  # what is raised in here would be dropped as well
        else:
            others(dropped)

    others, sys.unraisablehook = sys.unraisablehook, on_dropped
    for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGALRM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            previous[number] = signal.signal(number, on_signal)
    try:
        yield
    finally:
        wake(0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = others


def _leave(code: int) -> None:
    for path in _unfinished:
        with contextlib.suppress(OSError):
            os.unlink(path)
    os._exit(code)


@contextlib.contextmanager
def atomic_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    like: os.stat_result | None = None,
    kind: str = "",
    resume: bool = False,
) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, and leaves nothing when it raises.

    With `like` the output gets the mode and the modification time of that stat result. A device or a pipe
    under `path` is written to directly. Raises OutputExistsError when `path` is there and may not be
    replaced, and OSError for what the system refuses.

    `kind` (letters and digits) becomes a part of the temporary name. With `resume` the file may be what a process that
    was killed left of an output of the same name and kind, and an interrupt or an error of the system keeps it: the
    caller reads what is there and cuts it.
    """
    path = os.fspath(path)
    existing = _lstat(path)
    if existing is not None:
        target = os.stat(path) if stat.S_ISLNK(existing.st_mode) and os.path.exists(path) else existing
        if stat.S_ISDIR(target.st_mode):
            raise UsageError(f"{path} is a directory")
        if not stat.S_ISREG(target.st_mode) and not stat.S_ISLNK(target.st_mode):
            with open(path, "wb") as device:
                yield device
            return
        if not overwrite:
            raise OutputExistsError(f"{path} already exists; use -f to overwrite")
    left = _left_behind(path, kind) if resume else None
    temporary, file = left or _create_beside(path, 0o600 if like is not None else 0o666, kind)
    if not resume:
        _unfinished.add(temporary)
    try:
        with file:
            yield file
            file.flush()
            if like is not None:
                copy_times_and_mode(file.fileno(), like)
            os.fsync(file.fileno())
        _publish(temporary, path, overwrite)
    except BaseException as error:
        if not (resume and isinstance(error, (KeyboardInterrupt, Terminated, OSError))):
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise
    finally:
        _unfinished.discard(temporary)


def copy_times_and_mode(descriptor: int, like: os.stat_result) -> None:
    """Give an open file the permission bits and the times of `like`, as far as the system lets us."""
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(descriptor, stat.S_IMODE(like.st_mode) & 0o777)
    with contextlib.suppress(OSError):
        os.utime(descriptor, ns=(like.st_atime_ns, like.st_mtime_ns))


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _create_beside(path: str, mode: int, kind: str) -> tuple[str, BinaryIO]:
    """Create a file of a new name in the folder of `path`, locked as long as it is open."""
    folder, name = os.path.split(path)
    while True:
        temporary = os.path.join(folder, f"{_prefix(name, kind)}{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | _FLAGS, mode)
        except FileExistsError:
            continue
        except OSError as error:
            error.filename = path  # the name that somebody knows
            raise
        _lock(descriptor)
        return temporary, os.fdopen(descriptor, "r+b")


def _left_behind(path: str, kind: str) -> tuple[str, BinaryIO] | None:
    """Open the longest file that an output of this name and kind left, if nobody is writing it; remove the others."""
    folder, name = os.path.split(path)
    prefix = _prefix(name, kind)
    best: tuple[str, BinaryIO] | None = None
    size = -1
    for entry in sorted(os.listdir(folder or ".")):
        if not entry.startswith(prefix) or not entry.endswith(_TEMPORARY_SUFFIX):
            continue
        temporary = os.path.join(folder, entry)
        try:
            descriptor = os.open(temporary, _FLAGS | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue
        status = os.fstat(descriptor)
        is_own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
        if not stat.S_ISREG(status.st_mode) or not is_own or status.st_nlink != 1 or not _lock(descriptor):
            os.close(descriptor)
            continue
        file: BinaryIO = os.fdopen(descriptor, "r+b")
        if status.st_size > size:
            (temporary, file), best, size = best or ("", file), (temporary, file), status.st_size
        if temporary:
            file.close()
            os.unlink(temporary)
    return best


def _prefix(name: str, kind: str) -> str:
    # A long name is cut so that the temporary one is still legal; a digest of it keeps it apart.
    short = name if len(os.fsencode(name)) <= 120 else f"{name[:40]}{zlib.crc32(os.fsencode(name)):08x}"
    return f".{short}.{kind}-"


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process, if the system can; tell whether nobody else has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # not every file system has locks
    return True


def _publish(temporary: str, path: str, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
    else:
        _rename_to_new(temporary, path)
    _sync_folder(os.path.dirname(path) or ".")


def _rename_to_new(temporary: str, path: str) -> None:
    """Rename unless `path` has appeared meanwhile; a hard link can tell, where the file system has them."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OutputExistsError(f"{path} already exists; use -f to overwrite") from None
    except (OSError, NotImplementedError, AttributeError):
        if os.path.lexists(path):
            raise OutputExistsError(f"{path} already exists; use -f to overwrite") from None
        os.rename(temporary, path)
        return
    os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Make the new name itself durable. Not every file system can sync a folder; then the name is young."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
