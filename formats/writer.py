"""Writes one member front to back: header, segments as they come, end. Never seeks, so a pipe will do.

Knows the order of records and what the end must say about them; does not know how payloads are made.
"""

from __future__ import annotations

from typing import Protocol

from nacz.formats.records import EndRecord, IndexEntry, MemberHeader, SegmentHeader

__all__ = ["MemberWriter", "Writer"]


class Writer(Protocol):
    """Anything with the `write` of a binary file."""

    def write(self, data: bytes, /) -> object: ...


class MemberWriter:
    """Writes the header at once, then segments, then the end.

    `written` says that the header is there already, from an earlier attempt; see also `passed`.
    """

    def __init__(self, writer: Writer, header: MemberHeader, written: bool = False) -> None:
        self._writer = writer
        self._entries: list[IndexEntry] = []
        self._is_only = False
        encoded = header.encode()
        self._size = len(encoded)
        if not written:
            writer.write(encoded)

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
        self._writer.write(self._count(header, len(payload), only))
        self._writer.write(payload)

    def passed(self, header: SegmentHeader, only: bool = False) -> None:
        """Count one segment that an earlier attempt has written."""
        self._count(header, header.payload_size, only)

    def finish(self, plain_hash: int) -> None:
        """Write the end, if there must be one; `plain_hash` is the XXH3-64 of all plain bytes."""
        if not self._is_only:
            end = EndRecord(self._size, len(self._entries), tuple(self._entries), plain_hash)
            encoded = end.encode()
            self._size += len(encoded)
            self._writer.write(encoded)

    def _count(self, header: SegmentHeader, payload_size: int, only: bool) -> bytes:
        if self._is_only or (only and self._entries):
            raise ValueError("a segment that is all of its member has no neighbours")
        encoded = header.encode(only)
        self._is_only = only
        self._entries.append(IndexEntry(len(encoded) + payload_size, header.plain_size))
        self._size += len(encoded) + payload_size
        return encoded
