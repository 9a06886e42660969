"""NaczCompressor and NaczDecompressor: bytes in, bytes out, in pieces of any size, for callers with their own loop.

The shape is that of `compression.zstd`; a frame there is a member here. Knows what is complete enough to go on with;
does not know records beyond their length.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import xxhash

from nacz.codec import MemberInfo, archive_info, as_bytes
from nacz.encoder import MemberEncoder
from nacz.errors import CorruptDataError, LimitError
from nacz.formats.reader import ArchiveReader
from nacz.formats.records import (
    CRC_SIZE,
    END_TAG,
    MAGIC,
    MAX_END_BODY,
    MAX_HEADER_BODY,
    MAX_SEGMENT_BODY,
    MemberHeader,
    SegmentHeader,
)
from nacz.formats.varint import MAX_VARINT_BYTES, decode_varint
from nacz.segment_coder import CodecOptions
from nacz.segments import SegmentDecoder
from nacz.workers.crew import ExecutorLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["NaczCompressor", "NaczDecompressor", "get_frame_info", "get_frame_size"]


class NaczCompressor:
    """Compresses data that comes in pieces. After the end of a member the next data begin another one.

    CONTINUE        keep data until a segment is full
    FLUSH_BLOCK     end a segment here, so that all data so far can be decoded from what was returned
    FLUSH_FRAME     end the member here

    With an `executor` (as for `compress`) a call returns while others code its data; the archive is the same.
    """

    CONTINUE = 0
    FLUSH_BLOCK = 1
    FLUSH_FRAME = 2

    def __init__(
        self,
        level: int | None = None,
        options: CodecOptions | None = None,
        *,
        threads: int = 0,
        executor: ExecutorLike = None,
    ) -> None:
        self._options = CodecOptions.at(level, options)
        self._threads, self._executor = threads, executor
        self._out = io.BytesIO()
        self._encoder: MemberEncoder | None = None
        self._last_mode = self.FLUSH_FRAME

    @property
    def last_mode(self) -> int:
        """The mode of the last call."""
        return self._last_mode

    def compress(self, data: Buffer, mode: int = CONTINUE) -> bytes:
        """Take data (any buffer) and return what is ready, which may be nothing."""
        if mode not in (self.CONTINUE, self.FLUSH_BLOCK, self.FLUSH_FRAME):
            raise ValueError(f"invalid mode: {mode!r}")
        if self._encoder is None:
            self._encoder = MemberEncoder(
                self._out, self._options, threads=self._threads, executor=self._executor
            )
        self._encoder.write(as_bytes(data))
        if mode == self.FLUSH_BLOCK:
            self._encoder.end_segment()
        elif mode == self.FLUSH_FRAME:
            self._encoder.finish()
            self.close()
        self._last_mode = mode
        ready = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return ready

    def flush(self, mode: int = FLUSH_FRAME) -> bytes:
        """Return what is left; FLUSH_FRAME ends the member, FLUSH_BLOCK the segment."""
        if mode not in (self.FLUSH_BLOCK, self.FLUSH_FRAME):
            raise ValueError(f"invalid mode: {mode!r}")
        return self.compress(b"", mode)

    def close(self) -> None:
        """Let go of workers. Data that were not flushed are lost; the next ones begin a member."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


class NaczDecompressor:
    """Decompresses one member that comes in pieces.

    `eof`: the member has ended. `needs_input`: nothing more comes without more data. `unused_data`: what followed the
    member. Whether the data ended too early only the caller can know: `eof` is False then.
    """

    def __init__(
        self,
        options: CodecOptions | None = None,
        *,
        max_output: int | None = None,
        memory_limit: int | None = None,
        threads: int = 0,
    ) -> None:
        self._decoder = SegmentDecoder(options, threads, memory_limit=memory_limit)
        self._max_output = max_output
        self._queue = _Queue()
        self._archive = ArchiveReader(self._queue)
        self._member: MemberHeader | None = None
        self._pending: SegmentHeader | None = None
        self._plain_hash = xxhash.xxh3_64()
        self._ready = bytearray()
        self._done = 0
        self._eof = False

    @property
    def eof(self) -> bool:
        return self._eof and not self._ready

    @property
    def needs_input(self) -> bool:
        return not self._ready and not self._eof and not self._can_step()

    @property
    def unused_data(self) -> bytes:
        return self._queue.rest() if self.eof else b""

    def decompress(self, data: Buffer, max_length: int = -1) -> bytes:
        """Take data (any buffer) and return what is ready, at most `max_length` bytes if that is not negative.

        Raises EOFError after the end, and what `nacz.decompress` raises.
        """
        if self.eof:
            raise EOFError("the member has ended already")
        self._queue.add(as_bytes(data))
        while not self._eof and (max_length < 0 or len(self._ready) < max(max_length, 1)) and self._step():
            pass
        size = len(self._ready) if max_length < 0 else min(max_length, len(self._ready))
        out = bytes(self._ready[:size])
        del self._ready[:size]
        return out

    def _can_step(self) -> bool:
        """Tell whether the next record or payload is there."""
        if self._pending is not None:
            return len(self._queue) >= self._pending.payload_size + CRC_SIZE
        if self._member is None:
            return self._queue.has_record(len(MAGIC) + 1, MAX_HEADER_BODY)
        return self._archive.is_sole or self._queue.has_record(1, MAX_SEGMENT_BODY)

    def _step(self) -> bool:
        """Go on by one record or one payload if it is there."""
        if not self._can_step():
            return False
        if self._pending is not None:
            self._decode(self._pending)
            self._pending = None
        elif self._member is None:
            self._member = self._archive.next_member()
        else:
            self._pending = self._archive.next_segment()
            if self._pending is None:
                self._eof = True
                if self._archive.n_segments >= 2 and self._plain_hash.intdigest() != self._archive.end.plain_hash:
                    raise CorruptDataError("the checksum of the whole plain data differs")
        return True

    def _decode(self, header: SegmentHeader) -> None:
        assert self._member is not None
        if self._max_output is not None and self._done + header.plain_size > self._max_output:
            raise LimitError(f"the plain data is larger than allowed: more than {self._max_output} bytes")
        identity = self._member.models[header.model - 1] if header.model else None
        self._decoder.check_sizes(header)
        plain = self._decoder.plain(header, self._archive.payload(), identity, self._archive.n_segments)
        self._done += len(plain)
        self._plain_hash.update(plain)
        self._ready += plain


class _Queue:
    """Bytes that came and were not read yet."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        self._data += data

    def read(self, size: int, /) -> bytes:
        piece = bytes(self._data[:size])
        del self._data[:size]
        return piece

    def rest(self) -> bytes:
        return bytes(self._data)

    def has_record(self, start: int, limit: int) -> bool:
        """Tell whether the record that begins here is complete, or bad enough to be refused without the rest.

        `start`: bytes before its length. An end record has its length once more after it; what begins a sole segment
        has no checksum there, but more bytes than one has.
        """
        data = self._data
        if start > 1 and data and not MAGIC.startswith(data[: len(MAGIC)]):
            return not data.startswith(MAGIC) or _has(data, start, limit, False)
        is_end = start == 1 and data[:1] == bytes([END_TAG])
        return _has(data, start, MAX_END_BODY if is_end else limit, is_end)


def _has(data: bytearray, start: int, limit: int, is_end: bool) -> bool:
    digits = data[start : start + MAX_VARINT_BYTES]
    last = next((i for i, digit in enumerate(digits) if digit < 128), None)
    if last is None:
        return len(digits) == MAX_VARINT_BYTES
    try:
        length, used = decode_varint(bytes(digits), 0, "a length")
    except CorruptDataError:
        return True
    return length > limit or len(data) >= start + used + length + CRC_SIZE + (used if is_end else 0)


def get_frame_info(data: Buffer) -> MemberInfo:
    """Return what the headers of the first member in `data` (any buffer) say. Raises CorruptDataError."""
    return archive_info(io.BytesIO(as_bytes(data)), only_first=True)[0]


def get_frame_size(data: Buffer) -> int:
    """Return how many bytes the first member in `data` (any buffer) takes. Raises CorruptDataError."""
    return get_frame_info(data).archive_size
