"""Bytes to an archive, and back: whole streams and whole buffers.

Holds one segment and its neighbour in memory, or as many as workers are busy with, never the file. Knows members and
their checksums; does not know how segments are coded (nacz.segments), where streams come from, nor the terminal.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from nacz.encoder import Earlier, MemberEncoder
from nacz.errors import CorruptDataError, LimitError
from nacz.formats.reader import ArchiveReader, Reader
from nacz.formats.records import MemberHeader, ModelIdentity, SegmentHeader
from nacz.formats.writer import Writer
from nacz.progress import ProgressCallback
from nacz.resume import PartialPlain
from nacz.segment_coder import CodecOptions
from nacz.segments import Meter, SegmentDecoder, count_threads
from nacz.workers.crew import ExecutorLike
from nacz.workers.decoding import Decoded, LateCrew, Payload, Record, decoded

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CodecOptions",
    "MemberInfo",
    "Totals",
    "archive_info",
    "as_bytes",
    "compress",
    "compress_stream",
    "decompress",
    "decompress_stream",
]

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Totals:
    """What passed through: plain bytes, archive bytes, and tokens (0 for predictors without tokens)."""

    plain_size: int
    archive_size: int
    tokens: int


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member of an archive as its headers describe it; nothing was decoded."""

    header: MemberHeader
    segments: tuple[SegmentHeader, ...]
    archive_size: int

    @property
    def models(self) -> tuple[ModelIdentity, ...]:
        return self.header.models

    @property
    def plain_size(self) -> int:
        return sum(segment.plain_size for segment in self.segments)


def compress_stream(
    reader: Reader,
    writer: Writer,
    options: CodecOptions | None = None,
    *,
    threads: int = 0,
    progress: ProgressCallback | None = None,
    total: int | None = None,
    extras: tuple[tuple[int, bytes], ...] = (),
    verify: bool | None = None,
    earlier: Earlier | None = None,
    executor: ExecutorLike = None,
) -> Totals:
    """Read plain bytes to the end of `reader` and write one member to `writer`.

    `threads` (0: all cores), `executor` (who codes segments: any of concurrent.futures, "processes", "threads",
    "dask://HOST:PORT", None for the calling thread) and `total` (plain bytes expected, for progress only) do not change
    the result. `extras` are extra fields of the header (see nacz.formats.metadata), `verify` decodes every segment
    before it is written (None: those that only this machine can decode), `earlier` is what `writer` holds already (see
    nacz.resume). Raises UsageError, ModelError, InternalError, and whatever reader, writer and progress raise.
    """
    meter = Meter("compress", total, progress)
    encoder = MemberEncoder(
        writer,
        CodecOptions() if options is None else options,
        threads=threads,
        meter=meter,
        extras=extras,
        verify=verify,
        earlier=earlier,
        executor=executor,
    )
    try:
        while data := reader.read(_PIECE):
            encoder.write(data)
        encoder.finish()
    finally:
        encoder.close()
    return Totals(meter.done, encoder.archive_size, meter.tokens)


def decompress_stream(
    reader: Reader,
    writer: Writer,
    options: CodecOptions | None = None,
    *,
    threads: int = 0,
    progress: ProgressCallback | None = None,
    total: int | None = None,
    max_output: int | None = None,
    memory_limit: int | None = None,
    earlier: PartialPlain | None = None,
    executor: ExecutorLike = None,
) -> Totals:
    """Read an archive of one or more members from `reader` and write the plain bytes to `writer`.

    A segment is written only after its checksums were compared. Of the options only `model` (where to find
    the weights) and `offline` have a meaning here; `earlier` is what `writer` holds already; `threads` and `executor`
    as for `compress_stream`. Raises CorruptDataError, LimitError before more than `max_output` bytes are decoded or
    more than `memory_limit` bytes of memory are needed, ModelError, WorkerError, and whatever reader, writer and
    progress raise.
    """
    archive = ArchiveReader(reader)
    options = CodecOptions() if options is None else options
    meter = Meter("decompress", total, progress)
    decoder = SegmentDecoder(options, threads, meter, memory_limit)
    plain_hash = xxhash.xxh3_64()
    records = _records(archive, decoder, max_output, earlier)
    crew = LateCrew(executor, count_threads(threads), options, memory_limit)
    try:
        for item in decoded(records, crew, decoder, options, memory_limit, meter):
            if isinstance(item, MemberHeader):
                plain_hash.reset()
            elif isinstance(item, Decoded):
                plain_hash.update(item.plain)
                if item.is_new:
                    writer.write(item.plain)
                meter.coded = item.position
                meter.advance(len(item.plain), item.payload_size, item.tokens, item.ahead)
            elif item != plain_hash.intdigest():
                raise CorruptDataError("the checksum of the whole plain data differs")
    finally:
        crew.close()
    if earlier is not None:
        earlier.end()
    return Totals(meter.done, archive.position, meter.tokens)


def _records(
    archive: ArchiveReader, decoder: SegmentDecoder, max_output: int | None, earlier: PartialPlain | None
) -> Iterator[Record]:
    """Yield members, their segments, known ones as decoded, and the checksum of a whole member that has one."""
    promised = 0
    while (member := archive.next_member()) is not None:
        yield member
        while (header := archive.next_segment()) is not None:
            promised += header.plain_size
            if max_output is not None and promised > max_output:
                raise LimitError(f"the plain data is larger than allowed: more than {max_output} bytes")
            decoder.check_sizes(header)
            known = earlier.take(header) if earlier is not None else None
            payload = archive.payload()
            position = archive.position - len(payload)
            if known is not None:
                yield Decoded(known, len(payload), position, is_new=False)
            else:
                # What a sole segment says of itself is proved by its payload's checksum, not before.
                identity = member.models[header.model - 1] if header.model else None
                yield Payload(header, payload, identity, archive.n_segments, position, archive.is_sole)
        if archive.n_segments >= 2:
            yield archive.end.plain_hash


def archive_info(reader: Reader, *, only_first: bool = False) -> tuple[MemberInfo, ...]:
    """Return what the headers of an archive say, without decoding and without any model; one entry for each member.

    Payloads are passed by seeking where `reader` can, but for that of a member's sole segment, whose checksum proves
    what is said of it. Raises CorruptDataError; damage inside of other payloads is not seen.
    """
    archive = ArchiveReader(reader)
    members = []
    start = 0
    while (header := archive.next_member()) is not None:
        segments = []
        while (segment := archive.next_segment()) is not None:
            archive.skip_payload()
            segments.append(segment)
        members.append(MemberInfo(header, tuple(segments), archive.position - start))
        start = archive.position
        if only_first:
            break
    return tuple(members)


def compress(
    data: Buffer,
    level: int | None = None,
    options: CodecOptions | None = None,
    *,
    threads: int = 0,
    progress: ProgressCallback | None = None,
    executor: ExecutorLike = None,
) -> bytes:
    """Return the archive of `data` (any buffer). `level`, 1 to 9, replaces the level of `options`; `executor` as for
    `compress_stream`."""
    options = CodecOptions.at(level, options)
    plain = as_bytes(data)
    out = io.BytesIO()
    compress_stream(
        io.BytesIO(plain), out, options, threads=threads, progress=progress, total=len(plain), executor=executor
    )
    return out.getvalue()


def decompress(
    data: Buffer,
    options: CodecOptions | None = None,
    *,
    max_output: int | None = None,
    threads: int = 0,
    memory_limit: int | None = None,
    progress: ProgressCallback | None = None,
    executor: ExecutorLike = None,
) -> bytes:
    """Return the plain bytes of an archive (any buffer), at most `max_output` of them, decoded in `memory_limit` bytes;
    `executor` as for `compress_stream`.

    Raises CorruptDataError, LimitError and ModelError.
    """
    out = io.BytesIO()
    decompress_stream(
        io.BytesIO(as_bytes(data)),
        out,
        options,
        threads=threads,
        progress=progress,
        max_output=max_output,
        memory_limit=memory_limit,
        executor=executor,
    )
    return out.getvalue()


def as_bytes(data: Buffer) -> bytes:
    """Return the bytes of any buffer."""
    return data if isinstance(data, bytes) else memoryview(data).tobytes()
