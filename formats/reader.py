"""Reads archives front to back: members, their segments, their ends. Never seeks unless asked to skip.

Everything is checked before it is believed, and nothing is allocated on the word of a length alone: long
fields are read in pieces, so that memory grows with what is really there. Knows the order of records; does
not know what a payload means.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from nacz.formats.records import (
    CRC_SIZE,
    END_TAG,
    MAGIC,
    MAX_END_BODY,
    MAX_HEADER_BODY,
    MAX_SEGMENT_BODY,
    SEGMENT_TAG,
    SOLE,
    VERSION,
    EndRecord,
    IndexEntry,
    MemberHeader,
    SegmentHeader,
    check_crc,
    end_body_size,
    parse_sole,
)
from nacz.formats.varint import MAX_VARINT_BYTES, decode_varint, encode_varint

from nacz.errors import CorruptDataError, UnsupportedVersionError

__all__ = ["ArchiveReader", "Reader"]

_PIECE = 1 << 20


class Reader(Protocol):
    """Anything with the `read` of a binary file; short reads are fine, none at all means the end."""

    def read(self, size: int, /) -> bytes: ...


class ArchiveReader:
    """Walks through an archive: `next_member`, then `next_segment` until None, and so on until None.

    After each segment header the payload must be taken with `payload` or passed with `skip_payload`. All
    methods raise CorruptDataError for data that no encoder writes.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._position = 0
        self._members = 0
        self._member_start = 0
        self._entries: list[IndexEntry] = []
        self._n_models = 0
        self._pending: SegmentHeader | None = None
        self._in_member = False
        self._is_sole = False
        self._sole: SegmentHeader | None = None  # read with the start of its member
        self._crc = 0  # of what a payload's checksum is for beside the payload
        self._end: EndRecord | None = None

    @classmethod
    def at_segment(cls, reader: Reader, position: int, n_models: int) -> ArchiveReader:
        """Return a reader for which the next byte is that of a segment's record, at `position` in the archive."""
        archive = cls(reader)
        archive._position = archive._member_start = position
        archive._n_models = n_models
        archive._members = 1
        archive._in_member = True
        return archive

    @property
    def position(self) -> int:
        """Bytes of the archive that were read or passed."""
        return self._position

    @property
    def n_segments(self) -> int:
        """Segments of the current member whose headers were read."""
        return len(self._entries)

    @property
    def end(self) -> EndRecord:
        """The end record of the last member, known once `next_segment` has returned None. A member without a
        header has none."""
        if self._end is None:
            raise ValueError("the member has not ended, or has no end record")
        return self._end

    def next_member(self) -> MemberHeader | None:
        """Return the header of the next member, or None where the archive properly ends."""
        if self._in_member:
            raise ValueError("the last member has not ended")
        self._member_start = self._position
        magic = self._some(len(MAGIC))
        if not magic:
            if self._members == 0:
                raise CorruptDataError("not a nacz archive: it is empty")
            return None
        if magic != MAGIC:
            if self._members:
                raise CorruptDataError(f"trailing garbage after the archive, at byte {self._member_start}")
            if MAGIC.startswith(magic):
                raise CorruptDataError(f"the archive is cut off at byte {self._position}")
            raise CorruptDataError("not a nacz archive")
        version = self._exactly(1)
        if version[0] & ~SOLE != VERSION:
            raise UnsupportedVersionError(
                f"the archive has format version {version[0] & ~SOLE}; this release reads version {VERSION}"
            )
        self._is_sole = bool(version[0] & SOLE)
        self._sole, self._crc = None, 0
        if self._is_sole:
            start, body = self._length_and(MAGIC + version, MAX_SEGMENT_BODY, 0, "the header")
            header, self._sole = parse_sole(body)
            self._crc = zlib.crc32(start + body)
        else:
            header = MemberHeader.parse(self._body(MAGIC + version, MAX_HEADER_BODY, "the header"))
        self._members += 1
        self._n_models = len(header.models)
        self._entries = []
        self._end = None
        self._in_member = True
        return header

    @property
    def is_sole(self) -> bool:
        """Whether the member whose header was read last is one segment without a header of its own."""
        return self._is_sole

    def next_segment(self) -> SegmentHeader | None:
        """Return the header of the next segment, or None after the member's end was read and checked.

        The end is compared with all that was read, except for the hash of the plain bytes, which is the
        caller's to compare (`end.plain_hash`, when there are two segments or more). The header of a sole segment is
        proved together with its payload, by `payload` or `skip_payload`.
        """
        if not self._in_member or self._pending is not None:
            raise ValueError("no segment can be read here")
        if self._is_sole:
            header, self._sole = self._sole, None
            if header is None:
                self._in_member = False
            else:
                size = self._position - self._member_start + header.payload_size + CRC_SIZE
                self._entries.append(IndexEntry(size, header.plain_size))
                self._pending = header
            return header
        start = self._position
        tag = self._exactly(1)
        if tag[0] == END_TAG:
            self._read_end(start - self._member_start)
            return None
        if tag[0] != SEGMENT_TAG:
            raise CorruptDataError(f"neither a segment nor the end of the archive at byte {start}")
        body = self._body(tag, MAX_SEGMENT_BODY, f"segment {len(self._entries) + 1}")
        header = SegmentHeader.parse(body, self._n_models)
        size = self._position - start + header.payload_size + CRC_SIZE
        self._entries.append(IndexEntry(size, header.plain_size))
        self._pending = header
        return header

    def payload(self) -> bytes:
        """Return the payload of the segment whose header was read last, its checksum compared."""
        payload = self._exactly(self._take_pending().payload_size)
        self._check_payload(zlib.crc32(payload, self._crc))
        return payload

    def skip_payload(self) -> None:
        """Pass the payload, without looking at it where the reader can seek and the header is proved already."""
        left = self._take_pending().payload_size
        seek = getattr(self._reader, "seek", None)
        seekable = getattr(self._reader, "seekable", None)
        if not self._is_sole and seek is not None and seekable is not None and seekable():
            # Seeking past the end of a file is no error, so the checksum is read to see that it is there.
            seek(left, 1)
            self._position += left
            self._exactly(CRC_SIZE)
            return
        crc = self._crc
        while left:
            piece = self._exactly(min(left, _PIECE))
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        self._check_payload(crc)

    def _check_payload(self, crc: int) -> None:
        if int.from_bytes(self._exactly(CRC_SIZE), "little") != crc:
            what = "the archive" if self._is_sole else f"segment {len(self._entries)}"
            raise CorruptDataError(f"{what} is damaged (checksum differs)")

    def _take_pending(self) -> SegmentHeader:
        if self._pending is None:
            raise ValueError("no payload can be read here")
        header, self._pending = self._pending, None
        return header

    def _read_end(self, member_size: int) -> None:
        expected = end_body_size(member_size, self._entries)
        what = "the end record"
        body = self._body(bytes([END_TAG]), min(expected, MAX_END_BODY), what)
        end = EndRecord.parse(body)
        entries = tuple(self._entries) if len(self._entries) >= 2 else ()
        if end != EndRecord(member_size, len(self._entries), entries, end.plain_hash):
            raise CorruptDataError("the end record does not fit the segments before it")
        length_again = encode_varint(len(body))[::-1]
        if self._exactly(len(length_again)) != length_again:
            raise CorruptDataError(f"{what} is damaged (its length differs from its copy)")
        self._end = end
        self._in_member = False

    def _body(self, start: bytes, limit: int, what: str) -> bytes:
        """Read length, body and checksum that follow `start`; return the body."""
        start, rest = self._length_and(start, limit, CRC_SIZE, what)
        check_crc(start + rest, what)
        return rest[:-CRC_SIZE]

    def _length_and(self, start: bytes, limit: int, more: int, what: str) -> tuple[bytes, bytes]:
        """Read the length that follows `start`, and so many bytes and `more`. Return start with length, and those."""
        length_bytes = b""
        while True:
            length_bytes += self._exactly(1)
            if length_bytes[-1] < 128 or len(length_bytes) == MAX_VARINT_BYTES:
                break
        length, _ = decode_varint(length_bytes, 0, f"the length of {what}")
        if length > limit:
            raise CorruptDataError(f"{what} is damaged: its length is {length}, beyond {limit}")
        return start + length_bytes, self._exactly(length + more)

    def _exactly(self, size: int) -> bytes:
        data = self._some(size)
        if len(data) < size:
            raise CorruptDataError(f"the archive is cut off at byte {self._position}")
        return data

    def _some(self, size: int) -> bytes:
        """Read `size` bytes, or fewer where the reader ends."""
        pieces = []
        left = size
        while left:
            piece = self._reader.read(min(left, _PIECE))
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        self._position += size - left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
