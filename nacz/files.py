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
import threading
from collections.abc import Iterator
from types import FrameType
from typing import BinaryIO

from nacz.errors import OutputExistsError, UsageError

__all__ = ["Terminated", "atomic_output", "copy_times_and_mode", "terminate_as_exception"]

_TEMPORARY_SUFFIX = ".nacz-part"


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt no Exception, so that only cleaning up sees it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextlib.contextmanager
def terminate_as_exception() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Terminated in the main thread, so that files are cleaned up.

    Signals that the caller's parent set to be ignored (nohup) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    previous = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            previous[number] = signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def atomic_output(
    path: str | os.PathLike[str], *, overwrite: bool = False, like: os.stat_result | None = None
) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, and leaves nothing when it raises.

    With `like` the output gets the mode and the modification time of that stat result. A device or a pipe
    under `path` is written to directly. Raises OutputExistsError when `path` is there and may not be
    replaced, and OSError for what the system refuses.
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
    temporary, file = _create_beside(path, 0o600 if like is not None else 0o666)
    try:
        with file:
            yield file
            file.flush()
            if like is not None:
                copy_times_and_mode(file.fileno(), like)
            os.fsync(file.fileno())
        _publish(temporary, path, overwrite)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


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


def _create_beside(path: str, mode: int) -> tuple[str, BinaryIO]:
    """Create a file of a new name in the folder of `path`."""
    folder, name = os.path.split(path)
    while True:
        # A long name is cut so that the temporary one is still legal; the token keeps it apart.
        temporary = os.path.join(folder, f".{name[:120]}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            return temporary, os.fdopen(os.open(temporary, flags, mode), "wb")
        except FileExistsError:
            continue


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
