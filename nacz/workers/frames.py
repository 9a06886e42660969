"""Messages in a pipe: a length of eight bytes, then the message."""

from __future__ import annotations

import struct
from typing import IO

__all__ = ["read_frame", "write_frame"]

_LENGTH = struct.Struct("<Q")


def write_frame(pipe: IO[bytes], message: bytes) -> None:
    """Write a message and flush. Raises OSError."""
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes:
    """Return the next message. Raises EOFError where the pipe ends."""
    (size,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError("the pipe has ended")
    return data
