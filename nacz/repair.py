"""What can still be had from a damaged archive: every segment that is intact, and which plain bytes are lost.

Records are looked for by their checksums wherever the one that should come next does not. What comes out of a segment
is proved by its checksum, so nothing recovered is a guess; only places of plain bytes can be unknown, where the index
is lost as well. Knows records and their order; does not know files by name.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from nacz.errors import CorruptDataError, LimitError, UnsupportedVersionError
from nacz.formats.records import (
    CRC_SIZE,
    END_TAG,
    MAGIC,
    MAX_END_BODY,
    MAX_HEADER_BODY,
    MAX_MODELS,
    MAX_SEGMENT_BODY,
    SEGMENT_TAG,
    SOLE,
    VERSION,
    EndRecord,
    MemberHeader,
    SegmentHeader,
    parse_sole,
)
from nacz.formats.varint import MAX_VARINT_BYTES, decode_varint
from nacz.formats.writer import Writer
from nacz.segments import SegmentDecoder

__all__ = ["Lost", "Recovered", "Salvage", "salvage"]


@dataclass(frozen=True, slots=True)
class Recovered:
    """A segment that was written. `plain_start`: where its bytes belong, None if nothing tells."""

    archive_start: int
    archive_end: int
    plain_start: int | None
    plain_size: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Something that was not recovered: a range of the archive, and the plain bytes it held as far as that is known."""

    archive_start: int
    archive_end: int
    plain_start: int | None
    plain_end: int | None
    cause: str


@dataclass(frozen=True, slots=True)
class Salvage:
    """What came of it, both in the order of the archive."""

    recovered: tuple[Recovered, ...]
    lost: tuple[Lost, ...]

    @property
    def plain_size(self) -> int:
        """Plain bytes that were written."""
        return sum(part.plain_size for part in self.recovered)


@dataclass(frozen=True, slots=True)
class _Found:
    """A record with the right checksum, or a range in which there is none (`record` is None). `sole`: the header of a
    member that is this segment alone."""

    start: int
    end: int
    record: MemberHeader | SegmentHeader | EndRecord | None
    payload_start: int = 0
    is_intact: bool = True
    sole: MemberHeader | None = None


class _Limited:
    """A writer, and how many plain bytes may still go there."""

    def __init__(self, writer: Writer, max_output: int | None) -> None:
        self._writer = writer
        self._max_output = max_output
        self._written = 0

    def check(self, size: int) -> None:
        if self._max_output is not None and self._written + size > self._max_output:
            raise LimitError(f"more can be recovered than allowed: more than {self._max_output} bytes")

    def write(self, plain: bytes) -> None:
        self._writer.write(plain)
        self._written += len(plain)


def salvage(data: bytes, writer: Writer, decoder: SegmentDecoder, max_output: int | None = None) -> Salvage:
    """Write the plain bytes of every intact segment of the archive `data` (bytes, or a map of a file) to `writer`.

    Lost bytes are left out. Raises ModelError when the weights cannot be had, LimitError before a segment is decoded
    that needs more memory than `decoder` may take or makes more than `max_output` bytes in all, and what `writer`
    raises.
    """
    out = _Limited(writer, max_output)
    recovered: list[Recovered] = []
    lost: list[Lost] = []
    plain: int | None = 0
    for member in _members(_walk(data)):
        plain = _salvage_member(data, member, plain, out, decoder, recovered, lost)
    if not data:
        lost.append(Lost(0, 0, 0, None, "the archive is empty"))
    return Salvage(tuple(recovered), tuple(lost))


# -- finding records --------------------------------------------------------------------------------------------------


def _walk(data: bytes) -> Iterator[_Found]:
    at = 0
    while at < len(data):
        found = _record_at(data, at)
        if found is None:
            following = next(_records_after(data, at + 1), None)
            end = len(data) if following is None else following.start
            yield _Found(at, end, None)
            at = end
            continue
        if not found.is_intact and found.end != len(data) and _record_at(data, found.end) is None:
            # What follows is not where it should be: some of it may lie inside of what the header claims.
            following = next(_records_after(data, found.payload_start), None)
            end = len(data) if following is None else following.start
            found = _Found(found.start, end, found.record, found.payload_start, False)
        yield found
        at = found.end


def _records_after(data: bytes, start: int) -> Iterator[_Found]:
    tags = {bytes([tag]): data.find(bytes([tag]), start) for tag in (SEGMENT_TAG, END_TAG)}
    tags[MAGIC] = data.find(MAGIC, start)
    while places := {tag: at for tag, at in tags.items() if at >= 0}:
        tag, at = min(places.items(), key=lambda item: item[1])
        found = _record_at(data, at)
        if found is not None:
            yield found
        tags[tag] = data.find(tag, at + 1)


def _record_at(data: bytes, at: int) -> _Found | None:
    """Return the record that begins here if its checksum is right. Of a segment the payload is compared too."""
    tag = data[at : at + 1]
    if data[at : at + len(MAGIC)] == MAGIC:
        version = data[at + len(MAGIC) : at + len(MAGIC) + 1]
        if version == bytes([SOLE | VERSION]):
            return _sole_at(data, at)
        if version != bytes([VERSION]):
            return None
        start, limit = len(MAGIC) + 1, MAX_HEADER_BODY
    elif tag == bytes([SEGMENT_TAG]):
        start, limit = 1, MAX_SEGMENT_BODY
    elif tag == bytes([END_TAG]):
        start, limit = 1, MAX_END_BODY
    else:
        return None
    try:
        length, used = decode_varint(data[at + start : at + start + MAX_VARINT_BYTES], 0, "a length")
        end = at + start + used + length + CRC_SIZE
        if length > limit or end > len(data):
            return None
        if tag[0] == END_TAG and data[end : end + used] != data[at + start : at + start + used][::-1]:
            return None  # cheaper to see than a wrong checksum of a long record
        record = data[at:end]
        if not _ends_with_its_crc(record):
            return None
        body = record[start + used : -CRC_SIZE]
        if tag[0] == END_TAG:
            return _Found(at, end + used, EndRecord.parse(body))
        if start > 1:
            return _Found(at, end, MemberHeader.parse(body))
        header = SegmentHeader.parse(body, MAX_MODELS)
    except (CorruptDataError, UnsupportedVersionError):
        return None
    after = min(end + header.payload_size + CRC_SIZE, len(data))
    is_intact = after - end == header.payload_size + CRC_SIZE and _ends_with_its_crc(data[end:after])
    return _Found(at, after, header, end, is_intact)


def _sole_at(data: bytes, at: int) -> _Found | None:
    """Return the member of one segment that begins here if its checksum is right, which is for all of it."""
    start = at + len(MAGIC) + 1
    try:
        length, used = decode_varint(data[start : start + MAX_VARINT_BYTES], 0, "a length")
        payload_start = start + used + length
        if length > MAX_SEGMENT_BODY:
            return None
        member, header = parse_sole(data[start + used : payload_start])
    except CorruptDataError:
        return None
    end = payload_start + header.payload_size + CRC_SIZE
    if end > len(data) or not _ends_with_its_crc(data[at:end]):
        return None
    return _Found(at, end, header, payload_start, True, member)


def _ends_with_its_crc(record: bytes) -> bool:
    return zlib.crc32(record[:-CRC_SIZE]) == int.from_bytes(record[-CRC_SIZE:], "little")


def _members(records: Iterator[_Found]) -> Iterator[list[_Found]]:
    """Group records: a member begins with a header, or after the end of another."""
    member: list[_Found] = []
    for found in records:
        if (isinstance(found.record, MemberHeader) or found.sole is not None) and member:
            yield member
            member = []
        member.append(found)
        if isinstance(found.record, EndRecord) or found.sole is not None:
            yield member
            member = []
    if member:
        yield member


# -- one member -------------------------------------------------------------------------------------------------------


def _salvage_member(
    data: bytes,
    member: list[_Found],
    base: int | None,
    out: _Limited,
    decoder: SegmentDecoder,
    recovered: list[Recovered],
    lost: list[Lost],
) -> int | None:
    """Recover one member whose plain bytes begin at `base`; return where those of the next one do, if that is known."""
    last = member[-1]
    header = next((found.record for found in member if isinstance(found.record, MemberHeader)), last.sole)
    end = last.record if isinstance(last.record, EndRecord) else None
    segments = [found for found in member if isinstance(found.record, SegmentHeader)]
    header_start = member[0].start if isinstance(member[0].record, MemberHeader) else None
    numbers = _numbers(segments, end, last.start, header_start)
    starts = [0]
    for entry in end.entries if end is not None else ():
        starts.append(starts[-1] + entry.plain_size)
    done: set[int] = set()
    plain = base
    losses: list[Lost] = []
    for found in member:
        if found.record is None:
            losses.append(Lost(found.start, found.end, None, None, "no record with a right checksum"))
            if end is None or not end.entries:
                plain = None
        if not isinstance(found.record, SegmentHeader):
            continue
        number = numbers.get(found.start)
        if number is not None:
            plain = None if base is None else base + starts[number]
        cause = _recover(data, found, header, out, decoder)
        after = None if plain is None else plain + found.record.plain_size
        if cause is None:
            recovered.append(Recovered(found.start, found.end, plain, found.record.plain_size))
            if number is not None:
                done.add(number)
        elif number is None:
            losses.append(Lost(found.start, found.end, plain, after, cause))
        else:
            losses.append(Lost(found.start, found.end, None, None, cause))
        plain = after
    if end is not None and end.entries:
        losses = _by_index(losses, [n for n in range(len(end.entries)) if n not in done], starts, base)
        plain = None if base is None else base + starts[-1]
    elif end is None and last.sole is None:
        losses.append(Lost(last.end, last.end, plain, None, "the end of the archive is missing"))
        plain = None
    lost += losses
    return plain


def _recover(
    data: bytes, found: _Found, member: MemberHeader | None, out: _Limited, decoder: SegmentDecoder
) -> str | None:
    """Write the plain bytes of a segment; return why not, if not."""
    assert isinstance(found.record, SegmentHeader)
    if not found.is_intact:
        return "the payload is damaged (checksum differs)"
    header = found.record
    identity, is_unknown = None, member is None and header.model > 0
    if member is not None and header.model:
        if header.model > len(member.models):
            return "the segment names a model that the header does not have"
        identity = member.models[header.model - 1]
    try:
        decoder.check_sizes(header)
        out.check(header.plain_size)
        payload = data[found.payload_start : found.end - CRC_SIZE]
        plain = decoder.plain(header, payload, identity, 0, trust=is_unknown)
    except CorruptDataError as error:
        return str(error).replace("segment 0 ", "the segment ")
    out.write(plain)
    return None


def _numbers(
    segments: list[_Found], end: EndRecord | None, end_start: int, header_start: int | None
) -> dict[int, int]:
    """Return which entry of the index each segment is: by the place of its record, or, where bytes have come or gone,
    by the order of sizes (of several neighbours with equal sizes one may stand for another then)."""
    if end is None or not end.entries:
        return {}
    offset = end_start - sum(entry.record_size for entry in end.entries)
    offsets = {}
    for number, entry in enumerate(end.entries):
        offsets[offset] = number
        offset += entry.record_size
    is_in_place = header_start is None or header_start == end_start - end.member_size
    if is_in_place and all(found.start in offsets for found in segments):
        return {found.start: offsets[found.start] for found in segments}
    wanted = [(entry.record_size, entry.plain_size) for entry in end.entries]
    sizes = []
    for found in segments:
        assert isinstance(found.record, SegmentHeader)
        size = found.payload_start - found.start + found.record.payload_size + CRC_SIZE
        sizes.append((size, found.record.plain_size))
    blocks = difflib.SequenceMatcher(None, sizes, wanted, autojunk=False).get_matching_blocks()
    return {segments[block.a + i].start: block.b + i for block in blocks for i in range(block.size)}


def _by_index(losses: list[Lost], missing: list[int], starts: list[int], base: int | None) -> list[Lost]:
    """Give losses the plain ranges of the entries that are missing: runs of them, in the order of both."""
    runs: list[list[int]] = []
    for number in missing:
        if runs and runs[-1][1] == starts[number]:
            runs[-1][1] = starts[number + 1]
        else:
            runs.append([starts[number], starts[number + 1]])
    if not runs:
        return losses
    merged: list[Lost] = []
    for loss in losses:
        if merged and merged[-1].archive_end == loss.archive_start:
            before = merged.pop()
            loss = Lost(before.archive_start, loss.archive_end, None, None, before.cause)
        merged.append(loss)
    out = []
    for i in range(max(len(runs), len(merged))):
        place = merged[min(i, len(merged) - 1)] if merged else Lost(0, 0, None, None, "a segment is missing")
        if i >= len(runs) or base is None:
            out.append(place)
        else:
            start, stop = runs[i]
            out.append(Lost(place.archive_start, place.archive_end, base + start, base + stop, place.cause))
    return out
