"""Any part of the plain data of an archive, at the cost of the segments that hold it; and all of it from a pipe.

Knows which segment holds which bytes; does not know files by name. What is read from front to back is also compared
with the checksum of its whole member.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

import xxhash

from nacz.errors import CorruptDataError, LimitError
from nacz.formats.index import SeekableReader, read_map, read_segment
from nacz.formats.reader import ArchiveReader, Reader
from nacz.segments import SegmentDecoder

__all__ = ["RandomReader", "plain_segments"]


class RandomReader:
    """The plain data of the archive that is all of `reader`.

    `size` is what the index promises: a segment is proved when it is read. Raises CorruptDataError.
    """

    def __init__(self, reader: SeekableReader, decoder: SegmentDecoder) -> None:
        self._reader = reader
        self._decoder = decoder
        self._map = read_map(reader)
        self._starts = [place.plain_start for place in self._map.places]
        self._hash = xxhash.xxh3_64()
        self._hashed = 0  # segments that were read in order from the first

    @property
    def size(self) -> int:
        """Plain bytes in all."""
        return self._map.plain_size

    def segment_at(self, position: int) -> tuple[int, bytes]:
        """Return (place of its first byte, the bytes) of the segment that holds byte `position` < `size`."""
        number = bisect.bisect_right(self._starts, position) - 1
        place = self._map.places[number]
        member = self._map.headers[place.member]
        header, payload = read_segment(self._reader, place, member)
        identity = member.models[header.model - 1] if header.model else None
        plain = self._decoder.plain(header, payload, identity, number + 1)
        self._check_whole(number, plain)
        return place.plain_start, plain

    def read_range(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes start .. stop - 1, as far as they exist."""
        stop = min(stop, self.size)
        while start < stop:
            first, plain = self.segment_at(start)
            yield plain[start - first : stop - first]
            start = first + len(plain)

    def _check_whole(self, number: int, plain: bytes) -> None:
        if number != self._hashed:
            return
        places = self._map.places
        if number and places[number].member != places[number - 1].member:
            self._hash.reset()
        self._hash.update(plain)
        self._hashed += 1
        is_last = number + 1 == len(places) or places[number + 1].member != places[number].member
        whole = self._map.plain_hashes[places[number].member]
        if is_last and whole is not None and self._hash.intdigest() != whole:
            raise CorruptDataError("the checksum of the whole plain data differs")


def plain_segments(reader: Reader, decoder: SegmentDecoder, max_output: int | None = None) -> Iterator[bytes]:
    """Yield the plain bytes of one segment after another, all checksums compared.

    Nothing of a segment is yielded before it is proved; the whole of a member is proved after its last segment. Raises
    CorruptDataError and LimitError.
    """
    archive = ArchiveReader(reader)
    done = 0
    while (member := archive.next_member()) is not None:
        plain_hash = xxhash.xxh3_64()
        while (header := archive.next_segment()) is not None:
            done += header.plain_size
            if max_output is not None and done > max_output:
                raise LimitError(f"the plain data is larger than allowed: more than {max_output} bytes")
            identity = member.models[header.model - 1] if header.model else None
            decoder.check_sizes(header)
            plain = decoder.plain(header, archive.payload(), identity, archive.n_segments)
            plain_hash.update(plain)
            yield plain
        if archive.n_segments >= 2 and plain_hash.intdigest() != archive.end.plain_hash:
            raise CorruptDataError("the checksum of the whole plain data differs")
