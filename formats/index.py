"""Finds the segments of an archive from its end, for readers that can seek.

Reads the end record of the last member without touching what is before it, so that a part of the plain data
costs only the segments that hold it. Knows where things are; does not know what they hold.
"""

from __future__ import annotations

import os
from typing import Protocol

from nacz.formats.records import CRC_SIZE, END_TAG, MAX_END_BODY, EndRecord, check_crc
from nacz.formats.varint import MAX_VARINT_BYTES, decode_varint, encode_varint

from nacz.errors import CorruptDataError

__all__ = ["SeekableReader", "read_last_end"]


class SeekableReader(Protocol):
    """A binary file that can seek."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...


def read_last_end(reader: SeekableReader, archive_end: int | None = None) -> tuple[int, EndRecord]:
    """Return (offset of the member's header, its end record) of the last member before `archive_end`.

    `archive_end` is an offset in bytes, None for the end of the file; the offset returned is where the member
    before it ends. Raises CorruptDataError.
    """
    end = reader.seek(0, os.SEEK_END) if archive_end is None else archive_end
    tail_size = min(MAX_VARINT_BYTES, end)
    reader.seek(end - tail_size)
    length, used = decode_varint(reader.read(tail_size)[::-1], 0, "the length at the end")
    # tag, length, body, checksum, length again
    record_size = 1 + used + length + CRC_SIZE
    start = end - used - record_size
    if length > MAX_END_BODY or start < 0:
        raise CorruptDataError("no end record at the end of the archive")
    reader.seek(start)
    record = reader.read(record_size)
    if len(record) != record_size or record[: 1 + used] != bytes([END_TAG]) + encode_varint(length):
        raise CorruptDataError("no end record at the end of the archive")
    check_crc(record, "the end record")
    parsed = EndRecord.parse(record[1 + used : -CRC_SIZE])
    if parsed.member_size > start or sum(e.record_size for e in parsed.entries) > parsed.member_size:
        raise CorruptDataError("the end record does not fit the archive")
    return start - parsed.member_size, parsed
