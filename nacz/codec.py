"""Bytes to segments to an archive, and back.

Cuts a stream into segments, lets a predictor code each of them, keeps the bytes where that is no gain, and
writes the container; the way back checks all of it. Holds one segment and its neighbour in memory, never the
file. Knows segments, checksums and which model an archive names; does not know how predictors work, where
streams come from, nor the terminal.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import xxhash

from nacz.errors import CorruptDataError, LimitError, ModelMismatchError, ModelMissingError, UsageError
from nacz.formats.reader import ArchiveReader, Reader
from nacz.formats.records import MAX_SEGMENT_PLAIN, MemberHeader, ModelIdentity, SegmentHeader
from nacz.formats.writer import MemberWriter, Writer
from nacz.progress import Progress, ProgressCallback
from nacz.segment_coder import (
    STORED,
    CodecOptions,
    ModelProgress,
    SegmentCoder,
    SegmentProgress,
    make_coder,
    model_is_known,
    predictor_name,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CodecOptions",
    "MemberInfo",
    "Totals",
    "archive_info",
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

    models: tuple[ModelIdentity, ...]
    segments: tuple[SegmentHeader, ...]
    archive_size: int

    @property
    def plain_size(self) -> int:
        return sum(segment.plain_size for segment in self.segments)


class _Meter:
    """Turns counts inside a segment into counts of the whole work, and passes them on."""

    def __init__(self, phase: str, total: int | None, callback: ProgressCallback | None) -> None:
        self._phase = phase
        self._total = total
        self._callback = callback
        self.done = 0
        self.coded = 0
        self.tokens = 0
        self._tokens_in_segment = 0

    def inside(self) -> SegmentProgress | None:
        """Return what a coder shall call during the next segment."""
        if self._callback is None:
            return None
        return self._inside

    def model(self) -> ModelProgress | None:
        """Return what a coder shall call while it makes its model ready."""
        callback = self._callback
        if callback is None:
            return None
        return lambda stage, done, total: callback(Progress(stage, done, total, 0, 0))

    def _inside(self, done: int, coded: int, tokens: int) -> None:
        self._tokens_in_segment = tokens
        self._report(self.done + done, self.coded + coded, self.tokens + tokens)

    def advance(self, done: int, coded: int) -> None:
        """Count a finished segment, its coded bytes with their header."""
        self.done += done
        self.coded += coded
        self.tokens += self._tokens_in_segment
        self._tokens_in_segment = 0
        self._report(self.done, self.coded, self.tokens)

    def _report(self, done: int, coded: int, tokens: int) -> None:
        if self._callback is not None:
            self._callback(Progress(self._phase, done, self._total, coded, tokens))


def compress_stream(
    reader: Reader,
    writer: Writer,
    options: CodecOptions | None = None,
    *,
    threads: int = 0,
    progress: ProgressCallback | None = None,
    total: int | None = None,
) -> Totals:
    """Read plain bytes to the end of `reader` and write one member to `writer`.

    `threads` (0: all cores) and `total` (plain bytes expected, for progress only) do not change the result.
    Raises UsageError, ModelError, and whatever reader, writer and progress raise.
    """
    options = CodecOptions() if options is None else options
    meter = _Meter("compress", total, progress)
    plain_hash = xxhash.xxh3_64()
    threads = _threads(threads)
    start = reader.read(_PIECE)
    if not start:
        # Nothing to predict: no predictor is made, no model is loaded.
        member = MemberWriter(writer, MemberHeader())
        member.finish(plain_hash.intdigest())
        return Totals(0, member.size, 0)
    coder = make_coder(options.predictor, options)
    identity = coder.model_identity(meter.model()) if coder.needs_model else None
    models = () if identity is None else (identity,)
    unopened = True
    for data, is_only in _cut(start, reader, _segment_size(coder, options)):
        plain_hash.update(data)
        header, payload = _encode_segment(coder, data, options, threads, meter)
        if unopened:
            # An archive that holds nothing but one stored segment needs no model.
            member = MemberWriter(writer, MemberHeader(() if is_only and header.model == 0 else models))
            unopened = False
        meter.coded = member.size
        member.segment(header, payload)
        meter.advance(len(data), member.size - meter.coded)
    member.finish(plain_hash.intdigest())
    return Totals(meter.done, member.size, meter.tokens)


def decompress_stream(
    reader: Reader,
    writer: Writer,
    options: CodecOptions | None = None,
    *,
    threads: int = 0,
    progress: ProgressCallback | None = None,
    total: int | None = None,
    max_output: int | None = None,
) -> Totals:
    """Read an archive of one or more members from `reader` and write the plain bytes to `writer`.

    A segment is written only after its checksums were compared. Of the options only `model` (where to find
    the weights) and `offline` have a meaning here. Raises CorruptDataError, LimitError before more than
    `max_output` bytes are decoded, ModelError, and whatever reader, writer and progress raise.
    """
    options = CodecOptions() if options is None else options
    threads = _threads(threads)
    archive = ArchiveReader(reader)
    meter = _Meter("decompress", total, progress)
    coders: dict[tuple[int, ModelIdentity | None], SegmentCoder] = {}
    while (member := archive.next_member()) is not None:
        plain_hash = xxhash.xxh3_64()
        while (header := archive.next_segment()) is not None:
            if max_output is not None and meter.done + header.plain_size > max_output:
                raise LimitError(f"the plain data is larger than allowed: more than {max_output} bytes")
            identity = member.models[header.model - 1] if header.model else None
            key = (header.predictor, identity)
            if key not in coders:
                coders[key] = _decoder_for(header.predictor, identity, options, meter)
            payload = archive.payload()
            meter.coded = archive.position - len(payload)
            plain = coders[key].decode(
                header.params, payload, header.plain_size, threads=threads, progress=meter.inside()
            )
            if len(plain) != header.plain_size or xxhash.xxh3_64_intdigest(plain) != header.plain_hash:
                raise CorruptDataError(
                    f"segment {archive.n_segments} does not decode to its plain data (checksum differs)"
                )
            plain_hash.update(plain)
            writer.write(plain)
            meter.advance(len(plain), len(payload))
        if archive.n_segments >= 2 and plain_hash.intdigest() != archive.end.plain_hash:
            raise CorruptDataError("the checksum of the whole plain data differs")
    return Totals(meter.done, archive.position, meter.tokens)


def archive_info(reader: Reader) -> tuple[MemberInfo, ...]:
    """Return what the headers of an archive say, without decoding and without any model.

    Payloads are passed by seeking where `reader` can. Raises CorruptDataError; damage inside of payloads is
    not seen.
    """
    archive = ArchiveReader(reader)
    members = []
    start = 0
    while (header := archive.next_member()) is not None:
        segments = []
        while (segment := archive.next_segment()) is not None:
            archive.skip_payload()
            segments.append(segment)
        members.append(MemberInfo(header.models, tuple(segments), archive.position - start))
        start = archive.position
    return tuple(members)


def compress(
    data: Buffer,
    level: int | None = None,
    options: CodecOptions | None = None,
    *,
    threads: int = 0,
    progress: ProgressCallback | None = None,
) -> bytes:
    """Return the archive of `data` (any buffer). `level`, 1 to 9, replaces the level of `options`."""
    options = CodecOptions() if options is None else options
    if level is not None:
        options = replace(options, level=level)
    plain = _as_bytes(data)
    out = io.BytesIO()
    compress_stream(io.BytesIO(plain), out, options, threads=threads, progress=progress, total=len(plain))
    return out.getvalue()


def decompress(
    data: Buffer,
    options: CodecOptions | None = None,
    *,
    max_output: int | None = None,
    threads: int = 0,
    progress: ProgressCallback | None = None,
) -> bytes:
    """Return the plain bytes of an archive (any buffer), at most `max_output` of them.

    Raises CorruptDataError, LimitError and ModelError.
    """
    out = io.BytesIO()
    decompress_stream(
        io.BytesIO(_as_bytes(data)), out, options, threads=threads, progress=progress, max_output=max_output
    )
    return out.getvalue()


def _as_bytes(data: Buffer) -> bytes:
    return data if isinstance(data, bytes) else memoryview(data).tobytes()


def _threads(asked: int) -> int:
    if asked < 0:
        raise UsageError(f"threads must be 0 (all) or more: {asked}")
    if asked:
        return asked
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _segment_size(coder: SegmentCoder, options: CodecOptions) -> int:
    size = coder.default_segment_size if options.segment_size is None else options.segment_size
    # A last segment may be half as large again, see _cut.
    limit = MAX_SEGMENT_PLAIN * 2 // 3
    if not 1 <= size <= limit:
        raise UsageError(f"segment size must be 1 to {limit}: {size}")
    return size


def _cut(start: bytes, reader: Reader, size: int) -> Iterator[tuple[bytes, bool]]:
    """Yield (segment, whether it is the only one) of `start` and all that follows it.

    Each has `size` bytes, but the last of several has between a half and one and a half of it, so that no
    short rest has to be learned from nothing. Depends on the bytes only, not on how they arrive.
    """
    buffer = bytearray(start)
    wanted = size + size // 2 + 1
    is_first = True
    while True:
        while len(buffer) < wanted:
            piece = reader.read(min(_PIECE, wanted - len(buffer)))
            if not piece:
                yield bytes(buffer), is_first
                return
            buffer += piece
        yield bytes(buffer[:size]), False
        del buffer[:size]
        is_first = False


def _encode_segment(
    coder: SegmentCoder, data: bytes, options: CodecOptions, threads: int, meter: _Meter
) -> tuple[SegmentHeader, bytes]:
    params, payload = coder.encode(data, options=options, threads=threads, progress=meter.inside())
    predictor, model = coder.predictor_id, 1 if coder.needs_model else 0
    if len(params) + len(payload) >= len(data):
        predictor, model, params, payload = STORED, 0, b"", data
    header = SegmentHeader(
        predictor=predictor,
        model=model,
        params=params,
        plain_size=len(data),
        payload_size=len(payload),
        payload_crc=zlib.crc32(payload),
        plain_hash=xxhash.xxh3_64_intdigest(data),
    )
    return header, payload


def _decoder_for(predictor: int, recorded: ModelIdentity | None, options: CodecOptions, meter: _Meter) -> SegmentCoder:
    """Return a coder whose model is the recorded one, to the bit."""
    model = options.model if options.model != "none" else None
    if model is None and recorded is not None and recorded.name:
        if not model_is_known(recorded.name):
            raise ModelMissingError(
                f"the archive needs model {_describe(recorded)}, which is not known here; name its file with --model"
            )
        model = recorded.name
    coder = make_coder(predictor, replace(options, model=model))
    if coder.needs_model != (recorded is not None):
        needs = "must name a model" if coder.needs_model else "has no model to name"
        raise CorruptDataError(f"a segment of the {predictor_name(predictor)} {needs}")
    if recorded is not None:
        here = coder.model_identity(meter.model())
        # The name is a hint: the same weights under another name are the same weights.
        if here is None or replace(here, name="") != replace(recorded, name=""):
            raise ModelMismatchError(
                f"the archive was written with model {_describe(recorded)}; here is {_describe(here)}"
            )
    return coder


def _describe(model: ModelIdentity | None) -> str:
    if model is None:
        return "none"
    weights, tokenizer = model.weights_hash.hex(), model.tokenizer_hash.hex()
    name = model.name or "unnamed"
    return f"{name} (weights {weights}, tokenizer {tokenizer}, contract {model.contract})"
