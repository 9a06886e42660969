"""A stream of plain bytes to one member of an archive, pushed in pieces of any size.

Knows options, predictors as things that code segments, and the order of records; does not know where the bytes come
from or go to. What an earlier attempt has already written can be passed over (see nacz.resume).
"""

from __future__ import annotations

from typing import Protocol

import xxhash

from nacz.choosing import SegmentEncoder
from nacz.cutting import Cutter
from nacz.errors import ModelMismatchError
from nacz.formats.records import MemberHeader, SegmentHeader
from nacz.formats.writer import MemberWriter, Writer
from nacz.segment_coder import BYTE_MODEL, CodecOptions, as_recorded
from nacz.segments import Meter, count_threads, describe_model
from nacz.workers.crew import Crew, ExecutorLike
from nacz.workers.encoding import SegmentQueue
from nacz.workers.jobs import Encoded
from nacz.workers.sizing import crew_for_encoding

__all__ = ["Earlier", "MemberEncoder"]


class Earlier(Protocol):
    """What an earlier attempt at the same member left in the file that is being written."""

    @property
    def member(self) -> MemberHeader | None: ...

    def look(self, data: bytes, only: bool) -> tuple[SegmentHeader, bytes] | None:
        """Return the next segment in the file if it is complete and stands for `data`."""
        ...

    def accept(self) -> None:
        """Keep the segment that was looked at."""
        ...

    def drop(self) -> None:
        """Cut the file after what was kept, and let writing go on there."""
        ...


class MemberEncoder:
    """Takes plain bytes with `write`, writes segments as they are complete, and the end at `finish`.

    The result does not depend on how the bytes are cut into calls, nor on `threads` or `executor` (see nacz.workers),
    which is None for this thread alone; with one, `close` must be called in the end. `extras`: extra fields of the
    member header. `verify`: decode every segment before it is written; None where only this machine can decode it.
    """

    def __init__(
        self,
        writer: Writer,
        options: CodecOptions,
        *,
        threads: int = 0,
        meter: Meter | None = None,
        extras: tuple[tuple[int, bytes], ...] = (),
        verify: bool | None = None,
        earlier: Earlier | None = None,
        executor: ExecutorLike = None,
    ) -> None:
        self._writer = writer
        self._options = options
        self._threads = count_threads(threads)
        self._coder = SegmentEncoder(options, self._threads)
        self._executor = executor
        self._crew: Crew | None = None
        self._queue: SegmentQueue | None = None
        self._meter = Meter("compress", None, None) if meter is None else meter
        self._extras = extras
        self._verify = options.is_float if verify is None else verify
        self._earlier = earlier
        self._plain_hash = xxhash.xxh3_64()
        self._cutter: Cutter | None = None
        self._member: MemberWriter | None = None

    @property
    def archive_size(self) -> int:
        """Bytes of the member so far."""
        return self._member.size if self._member is not None else 0

    def write(self, data: bytes | memoryview) -> None:
        """Take some plain bytes. Raises UsageError at the first ones, ModelError when some need a model."""
        if not len(data):
            return
        if self._cutter is None:
            self._cutter = Cutter(*self._coder.sizes)
            self._crew = crew_for_encoding(self._executor, self._threads, self._options, self._coder.sizes[0])
        if self._crew is not None and self._queue is None and self._earlier is None:
            self._queue = self._make_queue(self._cutter, self._crew)
        if self._queue is not None:
            self._queue.feed(data)
            return
        for segment, is_only in self._cutter.feed(data):
            self._encode(segment, is_only)

    def end_segment(self) -> None:
        """Let a segment end here, so that everything so far can be decoded from what is written."""
        self._rest(is_end=False)

    def finish(self) -> None:
        """Write what is left and the end of the member."""
        self._rest(is_end=True)
        if self._earlier is not None:
            self._earlier.drop()
        if self._member is None:
            self._member = MemberWriter(self._writer, MemberHeader((), self._extras))
        self._member.finish(self._plain_hash.intdigest())

    def close(self) -> None:
        """Let go of workers. What is not finished is lost."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _rest(self, is_end: bool) -> None:
        if self._queue is not None:
            self._queue.rest(is_end)
        elif self._cutter is not None:
            for segment, is_only in self._cutter.rest(is_end):
                self._encode(segment, is_only)

    def _make_queue(self, cutter: Cutter, crew: Crew) -> SegmentQueue:
        # Weights are looked for here first: it can show their download, and fails before any work.
        return SegmentQueue(
            cutter, crew, self._options, self._verify, self._meter, self._take, self._coder.sizes[1],
            lambda: self._coder.identity(self._meter.model()),
        )  # fmt: skip

    def _take(self, data: bytes, encoded: Encoded, is_only: bool, ahead: tuple[int, int, int]) -> None:
        """Write a segment that a worker encoded."""
        self._plain_hash.update(data)
        if encoded.identity is not None:
            here = self._coder.identity(self._meter.model())
            if here is None or as_recorded(encoded.identity) != here:
                raise ModelMismatchError(
                    f"a worker has model {describe_model(encoded.identity)}; here is {describe_model(here)}"
                )
        if self._member is None:
            self._member = MemberWriter(self._writer, self._header(encoded.header, is_only))
        before = self._meter.coded = self._member.size
        self._member.segment(encoded.header, encoded.payload, is_only)
        self._meter.advance(len(data), self._member.size - before, encoded.tokens, ahead)

    def _encode(self, data: bytes, is_only: bool) -> None:
        self._plain_hash.update(data)
        found = self._from_earlier(data, is_only)
        if found is not None:
            self._count(data, found, None, is_only)
            return
        header, payload = self._coder.encode(data, self._meter.inside(), self._meter.model(), self._verify)
        if self._member is None:
            self._member = MemberWriter(self._writer, self._header(header, is_only))
        self._count(data, header, payload, is_only)

    def _header(self, first: SegmentHeader, is_only: bool) -> MemberHeader:
        # An archive that holds nothing but one segment without a model needs none.
        identity = None if is_only and first.model == 0 else self._coder.identity(self._meter.model())
        return MemberHeader(() if identity is None else (identity,), self._extras)

    def _from_earlier(self, data: bytes, is_only: bool) -> SegmentHeader | None:
        if self._earlier is None:
            return None
        found = self._earlier.look(data, is_only)
        if found is not None and self._member is None:
            header = self._header(found[0], is_only)
            if self._earlier.member == header:
                self._member = MemberWriter(self._writer, header, written=True)
            else:
                found = None
        if found is not None and self._verify and not self._coder.decodes(*found, data):
            found = None
        if found is None:
            self._earlier.drop()
            self._earlier = None
            if self._member is not None and self._member.n_segments == 0:
                self._member = None
            return None
        self._earlier.accept()
        return found[0]

    def _count(self, data: bytes, header: SegmentHeader, payload: bytes | None, is_only: bool) -> None:
        assert self._member is not None and self._cutter is not None
        self._cutter.learn(header.predictor == BYTE_MODEL)
        self._meter.coded = self._member.size
        if payload is None:
            self._member.passed(header, is_only)
        else:
            self._member.segment(header, payload, is_only)
        self._meter.advance(len(data), self._member.size - self._meter.coded)
