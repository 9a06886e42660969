"""What an interrupted attempt left behind, as far as it can be used by the next one.

A partial archive is used segment by segment as long as each is intact and stands for the bytes of the input; partial
plain data as long as it has the checksums of the archive. Nothing is believed because it is there. Knows files that
can be read, written and cut; does not know their names.
"""

from __future__ import annotations

from typing import BinaryIO

import xxhash

from nacz.errors import CorruptDataError
from nacz.formats.reader import ArchiveReader
from nacz.formats.records import MemberHeader, SegmentHeader, can_be_sole

__all__ = ["PartialArchive", "PartialPlain"]


class PartialArchive:
    """The beginning of one member in a file that can be read and written (see nacz.encoder.Earlier).

    The file is not read further than asked for, and stands where writing must go on after `drop`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._kept = 0
        self._next = 0
        self.member: MemberHeader | None = None
        file.seek(0)
        self._archive = ArchiveReader(file)
        try:
            self.member = self._archive.next_member()
        except CorruptDataError:
            pass

    def look(self, data: bytes, only: bool) -> tuple[SegmentHeader, bytes] | None:
        if self.member is None:
            return None
        try:
            header = self._archive.next_segment()
            if header is None or self._archive.is_sole != (only and can_be_sole(self.member, header)):
                return None
            payload = self._archive.payload()
        except (CorruptDataError, ValueError):
            return None
        if header.plain_size != len(data) or header.plain_hash != xxhash.xxh3_64_intdigest(data):
            return None
        self._next = self._archive.position
        return header, payload

    def accept(self) -> None:
        self._kept = self._next

    def drop(self) -> None:
        self._file.seek(self._kept)
        self._file.truncate()


class PartialPlain:
    """The beginning of the plain data in a file that can be read and written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._kept = 0
        self._ended = False
        file.seek(0)

    def take(self, header: SegmentHeader) -> bytes | None:
        """Return the plain bytes of the next segment if the file has them. If not, cut the file there: from now on
        it is for writing."""
        if self._ended:
            return None
        plain = self._file.read(header.plain_size)
        if len(plain) == header.plain_size and xxhash.xxh3_64_intdigest(plain) == header.plain_hash:
            self._kept += len(plain)
            return plain
        self.end()
        return None

    def end(self) -> None:
        """Cut the file after what was taken."""
        if not self._ended:
            self._ended = True
            self._file.seek(self._kept)
            self._file.truncate()
