"""An archive's segments to plain bytes, in order, some of them decoded ahead by a crew.

What is wrong with the archive is raised where it would be without workers: after everything before it was given. Knows
segments and crews; does not know where archives come from and plain bytes go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from nacz.formats.records import MemberHeader, ModelIdentity, SegmentHeader
from nacz.segment_coder import CodecOptions
from nacz.segments import Meter, SegmentDecoder
from nacz.workers.crew import Crew, ExecutorLike
from nacz.workers.jobs import decode_segment, setup_for
from nacz.workers.sizing import crew_for_decoding

__all__ = ["Decoded", "LateCrew", "Payload", "Record", "decoded"]


class Payload(NamedTuple):
    """A segment to decode: `number` is its place in its member, for messages; `position` that of its payload."""

    header: SegmentHeader
    payload: bytes
    identity: ModelIdentity | None
    number: int
    position: int
    is_sole: bool


class Decoded(NamedTuple):
    """A segment's plain bytes. `tokens`: None for as many as the meter has heard of; `ahead`: what workers have done of
    other segments; `is_new`: they were decoded and not known already."""

    plain: bytes
    payload_size: int
    position: int
    tokens: int | None = None
    ahead: tuple[int, int, int] = (0, 0, 0)
    is_new: bool = True


# What an archive consists of: members, segments, and the checksum of a member's plain bytes.
Record = MemberHeader | Payload | Decoded | int


class LateCrew:
    """A crew that is made for the first segment that is worth it, if any."""

    def __init__(
        self, executor: ExecutorLike, threads: int, options: CodecOptions, memory_limit: int | None
    ) -> None:
        self._wanted = (executor, threads, options, memory_limit)
        self._crew: Crew | None = None

    def get(self, segment: Payload) -> Crew | None:
        """Return the crew if there is one, or if this segment deserves it."""
        if self._crew is None:
            self._crew = crew_for_decoding(*self._wanted, segment.header, segment.is_sole)
        return self._crew

    def close(self) -> None:
        """Let go of workers."""
        if self._crew is not None:
            self._crew.close()


def decoded(
    records: Iterator[Record],
    late: LateCrew,
    decoder: SegmentDecoder,
    options: CodecOptions,
    memory_limit: int | None,
    meter: Meter,
) -> Iterator[Record]:
    """Yield what `records` yields, in its order, with Decoded in the place of Payload."""
    setup = setup_for(options)
    waiting: deque[Record | Exception] = deque()
    crew: Crew | None = None
    source = _with_failure(records)
    ended = False
    while waiting or not ended:
        while not ended and (not waiting or (crew is not None and not crew.is_full)):
            item = next(source, None)
            ended = item is None
            if item is None:
                break
            waiting.append(item)
            if isinstance(item, Payload):
                crew = late.get(item)
                if crew is not None:
                    if crew.is_local:
                        # Weights are looked for here first: it can show their download, and fails before any work.
                        decoder.ready(item.header, item.identity)
                    arguments = (setup, item.header, item.payload, item.identity, item.number, memory_limit)
                    crew.put(decode_segment, arguments, item.header.plain_size + len(item.payload))
        if not waiting:
            break
        item = waiting.popleft()
        if isinstance(item, Exception):
            raise item
        if not isinstance(item, Payload):
            yield item
        elif crew is None:
            meter.coded = item.position
            plain = decoder.plain(item.header, item.payload, item.identity, item.number)
            yield Decoded(plain, len(item.payload), item.position)
        else:
            plain, tokens = crew.take(lambda ahead: meter.ahead(*ahead))
            yield Decoded(plain, len(item.payload), item.position, tokens, crew.ahead())


def _with_failure(records: Iterator[Record]) -> Iterator[Record | Exception]:
    """Yield the records, and last what reading them raised."""
    try:
        yield from records
    except Exception as error:
        yield error
