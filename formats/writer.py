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
    """Writes the header at once, then segments, then the end."""

    def __init__(self, writer: Writer, header: MemberHeader) -> None:
        self._writer = writer
        self._entries: list[IndexEntry] = []
        encoded = header.encode()
        self._size = len(encoded)
        writer.write(encoded)

    @property
    def size(self) -> int:
        """Bytes of the member so far."""
        return self._size

    def segment(self, header: SegmentHeader, payload: bytes) -> None:
        """Write one segment; `payload` must be the one that the header describes."""
        encoded = header.encode()
        self._entries.append(IndexEntry(len(encoded) + len(payload), header.plain_size))
        self._size += len(encoded) + len(payload)
        self._writer.write(encoded)
        self._writer.write(payload)

    def finish(self, plain_hash: int) -> None:
        """Write the end; `plain_hash` is the XXH3-64 of all plain bytes."""
        end = EndRecord(self._size, len(self._entries), tuple(self._entries), plain_hash)
        encoded = end.encode()
        self._size += len(encoded)
        self._writer.write(encoded)
