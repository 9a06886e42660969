"""Finds the segments of an archive without reading them, for readers that can seek.

An archive of one member tells it in its end record, so that a part of the plain data costs only the segments that hold
it. Any other archive is walked from header to header. Knows where things are; does not know what they hold.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from nacz.formats.reader import ArchiveReader
from nacz.formats.records import (
    CRC_SIZE,
    END_TAG,
    MAX_END_BODY,
    EndRecord,
    MemberHeader,
    SegmentHeader,
    check_crc,
)  # fmt: skip
from nacz.formats.varint import MAX_VARINT_BYTES, decode_varint, encode_varint

from nacz.errors import CorruptDataError

__all__ = ["ArchiveMap", "Place", "SeekableReader", "read_last_end", "read_map", "read_segment"]


class SeekableReader(Protocol):
    """A binary file that can seek."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Place:
    """One segment: offset and size of its record with its payload, the plain bytes that it holds, and its member.

    `is_sole`: the record is all of its member."""

    offset: int
    record_size: int
    plain_start: int
    plain_size: int
    member: int
    is_sole: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveMap:
    """Where everything is. `plain_hashes`: of each member with two or more segments, else None."""

    headers: tuple[MemberHeader, ...]
    places: tuple[Place, ...]
    plain_hashes: tuple[int | None, ...]

    @property
    def plain_size(self) -> int:
        """Plain bytes of the archive."""
        return self.places[-1].plain_start + self.places[-1].plain_size if self.places else 0


def read_map(reader: SeekableReader) -> ArchiveMap:
    """Return the map of the archive in `reader`, which begins at offset 0. Raises CorruptDataError.

    Only an index that accounts for every byte of the file is believed. Otherwise, as for several members or damage,
    the headers are walked, and what is wrong with the archive is found there.
    """
    try:
        return _from_index(reader)
    except CorruptDataError:
        reader.seek(0)
        return _from_headers(reader)


def read_segment(reader: SeekableReader, place: Place, header: MemberHeader) -> tuple[SegmentHeader, bytes]:
    """Return header and payload of the segment at `place` in a member with this header. Raises CorruptDataError."""
    reader.seek(place.offset)
    if place.is_sole:
        archive, start = ArchiveReader(reader), 0
        archive.next_member()
    else:
        archive, start = ArchiveReader.at_segment(reader, place.offset, len(header.models)), place.offset
    segment = archive.next_segment()
    if segment is None or segment.plain_size != place.plain_size:
        raise CorruptDataError(f"the index does not fit the segment at byte {place.offset}")
    payload = archive.payload()
    if archive.position != start + place.record_size:
        raise CorruptDataError(f"the index does not fit the segment at byte {place.offset}")
    return segment, payload


def _from_index(reader: SeekableReader) -> ArchiveMap:
    start, end = read_last_end(reader)
    reader.seek(0)
    archive = ArchiveReader(reader)
    header = archive.next_member()
    expected = archive.position + sum(entry.record_size for entry in end.entries)
    if start != 0 or header is None or len(end.entries) != end.n_segments or expected != end.member_size:
        raise CorruptDataError("the end record is not that of a whole archive")
    places, offset, plain = [], archive.position, 0
    for entry in end.entries:
        places.append(Place(offset, entry.record_size, plain, entry.plain_size, 0))
        offset += entry.record_size
        plain += entry.plain_size
    return ArchiveMap((header,), tuple(places), (end.plain_hash if places else None,))


def _from_headers(reader: SeekableReader) -> ArchiveMap:
    archive = ArchiveReader(reader)
    headers: list[MemberHeader] = []
    places: list[Place] = []
    hashes: list[int | None] = []
    plain = 0
    start = 0
    while (header := archive.next_member()) is not None:
        offset, is_sole = start if archive.is_sole else archive.position, archive.is_sole
        while (segment := archive.next_segment()) is not None:
            archive.skip_payload()
            size = archive.position - offset
            places.append(Place(offset, size, plain, segment.plain_size, len(headers), is_sole))
            offset = archive.position
            plain += segment.plain_size
        start = archive.position
        headers.append(header)
        hashes.append(archive.end.plain_hash if archive.n_segments >= 2 else None)
    return ArchiveMap(tuple(headers), tuple(places), tuple(hashes))


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
