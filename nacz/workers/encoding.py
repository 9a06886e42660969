"""A stream of plain bytes to segments that a crew encodes, in the order of the stream.

Where the next segment is cut may depend on how the last one was coded, which is not known yet when workers shall have
both. So it is guessed, and where the guess was wrong everything after it is cut and coded again: the segments are those
that one worker alone would make. Knows cutting and crews; does not know records nor executors.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nacz.cutting import Cutter
from nacz.kinds import WINDOW, is_mostly_text
from nacz.segment_coder import BYTE_MODEL, CodecOptions
from nacz.segments import Meter
from nacz.workers.crew import Crew
from nacz.workers.jobs import Encoded, encode_segment, setup_for

__all__ = ["SegmentQueue"]

_PIECE = 1 << 20

# Called with a segment's plain bytes, what became of them, whether it is the only one, and what is ahead of it.
Take = Callable[[bytes, Encoded, bool, tuple[int, int, int]], None]


class _Pending(NamedTuple):
    """A segment that a worker has. `after`: the cutter as it was when this segment was cut, None where it does not
    matter; `guess`: what it was told of the segment."""

    data: bytes
    is_only: bool
    after: Cutter | None
    guess: bool


class SegmentQueue:
    """Cuts with `cutter`, whose size for what is not text is `binary_size`, lets `crew` encode, and gives every segment
    to `take`. `prepare` is called before the first segment that may need a model."""

    def __init__(
        self,
        cutter: Cutter,
        crew: Crew,
        options: CodecOptions,
        verify: bool,
        meter: Meter,
        take: Take,
        binary_size: int | None,
        prepare: Callable[[], object],
    ) -> None:
        self._cutter = cutter
        self._crew = crew
        self._setup = setup_for(options)
        self._verify = verify
        self._meter = meter
        self._taken = take
        self._prepare: Callable[[], object] | None = prepare
        # How a segment was coded makes a difference to the cutter only where not all are of one size.
        self._learns = binary_size is not None
        self._pending: deque[_Pending] = deque()

    def feed(self, data: bytes | memoryview) -> None:
        """Take some more bytes; return when no more segments than the crew can hold are waiting."""
        view = memoryview(data)
        backlog = deque(view[at : at + _PIECE] for at in range(0, len(view), _PIECE))
        while backlog:
            self._put(self._cutter.feed(backlog.popleft()))
            while self._crew.is_full:
                again = self._take()
                if again is not None:
                    backlog.appendleft(memoryview(again))
                    break

    def rest(self, is_end: bool) -> None:
        """Encode what is left, and wait for everything."""
        self._put(self._cutter.rest(is_end))
        while self._pending:
            again = self._take()
            if again is not None:
                self.feed(again)
                self._put(self._cutter.rest(is_end))

    def _put(self, cuts: Iterator[tuple[bytes, bool]]) -> None:
        for data, is_only in cuts:
            guess = self._learns and len(data) >= WINDOW and not is_mostly_text(data)
            if self._prepare is not None and not guess:
                self._prepare()
                self._prepare = None
            self._pending.append(_Pending(data, is_only, copy.deepcopy(self._cutter) if self._learns else None, guess))
            self._crew.put(encode_segment, (self._setup, data, self._verify), len(data))
            self._cutter.learn(guess)

    def _take(self) -> bytes | None:
        """Wait for the oldest segment and pass it on. If others were cut wrongly after it, forget them and return the
        bytes that must be fed again."""
        encoded: Encoded = self._crew.take(self._tick)
        pending = self._pending.popleft()
        was_binary = encoded.header.predictor == BYTE_MODEL
        again = None
        if pending.after is not None and was_binary != pending.guess and _matters(pending.after, pending.guess):
            known = b"".join([*(other.data for other in self._pending), self._cutter.held])
            again = known[len(pending.after.held) :]
            self._crew.drop()
            self._pending.clear()
            self._cutter = pending.after
            self._cutter.learn(was_binary)
        self._taken(pending.data, encoded, pending.is_only, self._crew.ahead())
        return again

    def _tick(self, ahead: tuple[int, int, int]) -> None:
        self._meter.ahead(*ahead)


def _matters(cutter: Cutter, guess: bool) -> bool:
    """Whether a cutter goes on differently if it is told the opposite."""
    one, other = copy.copy(cutter), copy.copy(cutter)
    one.learn(guess)
    other.learn(not guess)
    return vars(one) != vars(other)
