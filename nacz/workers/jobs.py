"""What runs in a worker: one segment to its payload, or back. All of it can be sent to another process or machine.

A worker keeps the coders that it has made ready, so that weights are loaded once per process. Knows segments and
options; does not know executors, nor the order of segments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from nacz._version import __version__
from nacz.choosing import SegmentEncoder
from nacz.errors import WorkerError
from nacz.formats.records import ModelIdentity, SegmentHeader
from nacz.segment_coder import CodecOptions, Registered, SegmentCoder, register_predictor, registered
from nacz.segments import SegmentDecoder

__all__ = ["Encoded", "Setup", "decode_segment", "encode_segment", "report_to", "setup_for"]

Report = Callable[[int, int, int], None]

_KEPT = 4  # setups whose coders a worker keeps: a shared worker may serve several archives at a time


class Setup(NamedTuple):
    """What a worker must know before it can work like the process that asks it: version of nacz, options, and
    predictors that were registered there."""

    version: str
    options: CodecOptions
    predictors: Registered


class Encoded(NamedTuple):
    """A segment as `encode_segment` returns it. `identity`: of the model that made it, if one did."""

    header: SegmentHeader
    payload: bytes
    identity: ModelIdentity | None
    tokens: int


def setup_for(options: CodecOptions) -> Setup:
    """Return what workers must know to work like this process."""
    return Setup(__version__, options, registered())


K = TypeVar("K")
V = TypeVar("V")

_lock = threading.Lock()
_encoders: dict[Setup, dict[int, SegmentCoder]] = {}
_decoders: dict[Setup, dict[tuple[int, ModelIdentity | None], SegmentCoder]] = {}
_here = threading.local()


def report_to(report: Report | None) -> None:
    """Let jobs of this thread tell how far they are: plain bytes, coded bytes and tokens of the segment so far."""
    _here.report = report


class _Counting:
    """A SegmentProgress that keeps the tokens, and passes on what is reported if anybody listens."""

    def __init__(self) -> None:
        self.tokens = 0
        self._report: Report | None = getattr(_here, "report", None)

    def __call__(self, done: int, coded: int, tokens: int) -> None:
        self.tokens = tokens
        if self._report is not None:
            self._report(done, coded, tokens)


def encode_segment(setup: Setup, data: bytes, verify: bool, *, threads: int, attempt: int) -> Encoded:
    """Encode one segment. `attempt` has no meaning here: it makes a second try another job to executors that remember
    what they have done. Raises what nacz.choosing raises."""
    _prepare(setup)
    encoder = SegmentEncoder(setup.options, threads, _kept(_encoders, setup))
    with _lock:
        encoder.sizes  # noqa: B018  # makes the coders, which other threads shall share
    count = _Counting()
    header, payload = encoder.encode(data, count, None, verify)
    identity = encoder.identity(None) if header.model else None
    return Encoded(header, payload, identity, count.tokens)


def decode_segment(
    setup: Setup,
    header: SegmentHeader,
    payload: bytes,
    identity: ModelIdentity | None,
    number: int,
    memory_limit: int | None,
    *,
    threads: int,
    attempt: int,
) -> tuple[bytes, int]:
    """Return the plain bytes of one segment, their checksum compared, and its tokens. Raises what nacz.segments
    raises."""
    _prepare(setup)
    count = _Counting()
    decoder = SegmentDecoder(
        setup.options, threads, memory_limit=memory_limit, coders=_kept(_decoders, setup), inside=count
    )
    if memory_limit is None:  # with a limit nothing may be loaded before it is looked at
        with _lock:
            decoder.ready(header, identity)  # weights are loaded once, and other threads share them
    return decoder.plain(header, payload, identity, number), count.tokens


def _prepare(setup: Setup) -> None:
    if setup.version != __version__:
        raise WorkerError(f"a worker has nacz {__version__}, not {setup.version}")
    for predictor in setup.predictors:
        register_predictor(*predictor)


def _kept(kept: dict[Setup, dict[K, V]], setup: Setup) -> dict[K, V]:
    with _lock:
        found = kept.pop(setup, None)
        while len(kept) >= _KEPT:
            kept.pop(next(iter(kept)))
        kept[setup] = {} if found is None else found
        return kept[setup]
