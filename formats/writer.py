"""Writes one member front to back: header, segments as they come, end. Never seeks, so a pipe will do.

Knows the order of records and what the end must say about them; does not know how payloads are made.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from nacz.formats.records import (
    CRC_SIZE,
    EndRecord,
    IndexEntry,
    MemberHeader,
    SegmentHeader,
    can_be_sole,
    encode_sole,
)

__all__ = ["MemberWriter", "Writer"]


class Writer(Protocol):
    """Anything with the `write` of a binary file."""

    def write(self, data: bytes, /) -> object: ...


class MemberWriter:
    """Writes the header with the first segment, then more segments, then the end.

    `written` says that the header is there already, from an earlier attempt; see also `passed`.
    """

    def __init__(self, writer: Writer, header: MemberHeader, written: bool = False) -> None:
        self._writer = writer
        self._header = header
        self._written = written
        self._entries: list[IndexEntry] = []
        self._is_sole = False
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of the member so far."""
        return self._size

    @property
    def n_segments(self) -> int:
        """Segments of the member so far."""
        return len(self._entries)

    def segment(self, header: SegmentHeader, payload: bytes, only: bool = False) -> None:
        """Write one segment; `payload` must be the one that the header describes. `only`: it is all of the member."""
        start = self._count(header, only)
        # A sole segment's checksum is for all of the member, any other one's for the payload.
        crc = zlib.crc32(payload, zlib.crc32(start) if self._is_sole else 0)
        self._writer.write(start)
        self._writer.write(payload)
        self._writer.write(crc.to_bytes(CRC_SIZE, "little"))

    def passed(self, header: SegmentHeader, only: bool = False) -> None:
        """Count one segment that an earlier attempt has written."""
        self._count(header, only)

    def finish(self, plain_hash: int) -> None:
        """Write the end, if there must be one; `plain_hash` is the XXH3-64 of all plain bytes."""
        if not self._is_sole:
            self._begin()
            end = EndRecord(self._size, len(self._entries), tuple(self._entries), plain_hash)
            encoded = end.encode()
            self._size += len(encoded)
            self._writer.write(encoded)

    def _begin(self) -> None:
        """Write the member header unless it is there."""
        if self._size == 0:
            encoded = self._header.encode()
            self._size = len(encoded)
            if not self._written:
                self._writer.write(encoded)

    def _count(self, header: SegmentHeader, only: bool) -> bytes:
        """Count a segment; return what stands before its payload."""
        if self._is_sole or (only and self._entries):
            raise ValueError("a segment that is all of its member has no neighbours")
        self._is_sole = only and can_be_sole(self._header, header)
        if self._is_sole:
            start = encode_sole(self._header, header)
        else:
            self._begin()
            start = header.encode()
        size = len(start) + header.payload_size + CRC_SIZE
        self._entries.append(IndexEntry(size, header.plain_size))
        self._size += size
        return start
