"""`nacz.open` and NaczFile: an archive as a file of its plain bytes.

Reading decodes a segment when it is needed, and seeks at the cost of one segment where the archive can be sought.
Knows the file protocols of Python's io; does not know how archives are made.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from nacz.codec import as_bytes
from nacz.encoder import MemberEncoder
from nacz.random_access import RandomReader, plain_segments
from nacz.segment_coder import CodecOptions
from nacz.segments import SegmentDecoder
from nacz.workers.crew import ExecutorLike

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

__all__ = ["NaczFile", "open"]

_PEEK = 8192


class NaczFile(io.BufferedIOBase):
    """A binary file of the plain bytes of an archive.

    `file`: a path, or a binary file, which is read or written from where it stands and left open. `mode`: "r", "w",
    "x" or "a" (a member is added to the archive), with or without "b". `level`, `options` and `executor` as for
    `compress` (reading decodes one segment at a time, in the calling thread); `memory_limit` as for `decompress`.
    Errors are those of `compress` and `decompress`, and OSError.
    """

    def __init__(
        self,
        file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
        /,
        mode: str = "r",
        *,
        level: int | None = None,
        options: CodecOptions | None = None,
        threads: int = 0,
        memory_limit: int | None = None,
        executor: ExecutorLike = None,
    ) -> None:
        self._raw: IO[bytes] | None = None
        kind = mode.removesuffix("b")
        if kind not in ("r", "w", "x", "a"):
            raise ValueError(f"invalid mode: {mode!r}")
        options = CodecOptions.at(level, options)
        self._owns = isinstance(file, (str, bytes, os.PathLike))
        self._raw = builtins.open(file, kind + "b") if isinstance(file, (str, bytes, os.PathLike)) else file
        self._mode = "rb" if kind == "r" else "wb"
        self._position = 0
        self._start, self._segment = 0, b""
        self._encoder: MemberEncoder | None = None
        self._random: RandomReader | None = None
        self._stream: Iterator[bytes] | None = None
        self._decoder: SegmentDecoder | None = None
        if kind == "r":
            self._decoder = SegmentDecoder(options, threads, memory_limit=memory_limit)
        else:
            self._encoder = MemberEncoder(self._raw, options, threads=threads, executor=executor)

    @property
    def mode(self) -> str:
        """ "rb" or "wb"."""
        return self._mode

    @property
    def name(self) -> object:
        """What the underlying file calls itself."""
        return getattr(self._file(), "name", "")

    def close(self) -> None:
        """Write what is left, and close the file if it was opened here."""
        if self._raw is None:
            return
        try:
            if self._encoder is not None:
                self._encoder.finish()
        finally:
            if self._encoder is not None:
                self._encoder.close()
            raw, self._raw, self._encoder = self._raw, None, None
            self._segment, self._random, self._stream = b"", None, None
            if self._owns:
                raw.close()
            super().close()

    @property
    def closed(self) -> bool:
        return self._raw is None

    def fileno(self) -> int:
        return self._file().fileno()

    def readable(self) -> bool:
        self._file()
        return self._mode == "rb"

    def writable(self) -> bool:
        self._file()
        return self._mode == "wb"

    def seekable(self) -> bool:
        return self.readable() and self._file().seekable()

    def tell(self) -> int:
        self._file()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a plain byte. Nothing is decoded before the next read."""
        if not self.seekable():
            raise io.UnsupportedOperation("seek needs a file that is read and can be sought")
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._index().size
        elif whence != io.SEEK_SET:
            raise ValueError(f"invalid whence: {whence!r}")
        self._position = max(0, offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_readable()
        if size is None or size < 0:
            pieces = []
            while piece := self._take(None):
                pieces.append(piece)
            return b"".join(pieces)
        first = self._take(size)
        if len(first) == size or not first:
            return first
        joined = bytearray(first)
        while len(joined) < size and (piece := self._take(size - len(joined))):
            joined += piece
        return bytes(joined)

    def read1(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, decoding at most one segment."""
        self._check_readable()
        return self._take(None if size < 0 else size)

    def readinto(self, buffer: Buffer, /) -> int:
        return _into(buffer, self.read)

    def readinto1(self, buffer: Buffer, /) -> int:
        return _into(buffer, self.read1)

    def peek(self, size: int = -1, /) -> bytes:
        """Return some of the next bytes without passing them; nothing only at the end."""
        self._check_readable()
        at = self._fill()
        return self._segment[at : at + _PEEK]

    def write(self, data: Buffer, /) -> int:
        if self._mode != "wb":
            raise io.UnsupportedOperation("the file is open for reading")
        self._file()
        assert self._encoder is not None
        plain = as_bytes(data)
        self._encoder.write(plain)
        self._position += len(plain)
        return len(plain)

    def flush(self) -> None:
        """Pass on what is complete. A segment is not ended: that would make the archive larger."""
        if self._raw is not None and self._mode == "wb":
            self._raw.flush()

    def __enter__(self) -> Self:
        self._file()
        return super().__enter__()

    def _file(self) -> IO[bytes]:
        if self._raw is None:
            raise ValueError("I/O operation on closed file")
        return self._raw

    def _check_readable(self) -> None:
        if not self.readable():
            raise io.UnsupportedOperation("the file is open for writing")

    def _index(self) -> RandomReader:
        if self._random is None:
            assert self._decoder is not None
            self._random = RandomReader(_FromHere(cast(BinaryIO, self._file())), self._decoder)
        return self._random

    def _fill(self) -> int:
        """Have the segment of the current position at hand; return where in it the position is."""
        at = self._position - self._start
        if 0 <= at < len(self._segment):
            return at
        if self.seekable():
            index = self._index()
            if self._position < index.size:
                self._start, self._segment = index.segment_at(self._position)
                return self._position - self._start
        else:
            if self._stream is None:
                assert self._decoder is not None
                self._stream = plain_segments(self._file(), self._decoder)
            segment = next(self._stream, None)
            if segment is not None:
                self._start, self._segment = self._position, segment
                return 0
        return len(self._segment)

    def _take(self, size: int | None) -> bytes:
        if size == 0:
            return b""
        at = self._fill()
        piece = self._segment[at:] if size is None else self._segment[at : at + size]
        self._position += len(piece)
        return piece


def _into(buffer: Buffer, read: Callable[[int], bytes]) -> int:
    with memoryview(buffer) as view, view.cast("B") as target:
        data = read(len(target))
        target[: len(data)] = data
        return len(data)


class _FromHere:
    """A file whose offset 0 is where it stands now."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._base = file.tell()

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset + self._base if whence == 0 else offset, whence) - self._base

    def seekable(self) -> bool:
        return True


def open(  # noqa: A001
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
    /,
    mode: str = "rb",
    *,
    level: int | None = None,
    options: CodecOptions | None = None,
    threads: int = 0,
    memory_limit: int | None = None,
    executor: ExecutorLike = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> NaczFile | io.TextIOWrapper:
    """Open an archive as a file of its plain bytes, or of text with "t" in `mode`. See NaczFile."""
    is_text = "t" in mode
    if is_text and "b" in mode:
        raise ValueError(f"invalid mode: {mode!r}")
    if not is_text and not (encoding is None and errors is None and newline is None):
        raise ValueError("encoding, errors and newline are for text")
    binary = NaczFile(
        file, mode.replace("t", ""), level=level, options=options, threads=threads, memory_limit=memory_limit,
        executor=executor,
    )  # fmt: skip
    if not is_text:
        return binary
    return io.TextIOWrapper(binary, io.text_encoding(encoding), errors, newline)
