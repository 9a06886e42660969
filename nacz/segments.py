"""From segments back to plain bytes: the checks around a predictor, and what is reported meanwhile.

Knows segments, checksums, memory limits and which model a segment names; does not know how predictors work, the order
of records, nor where bytes come from.
"""

from __future__ import annotations

import os
from dataclasses import replace

import xxhash

from nacz.errors import CorruptDataError, LimitError, ModelMismatchError, ModelMissingError, UsageError
from nacz.formats.records import ModelIdentity, SegmentHeader
from nacz.progress import Progress, ProgressCallback
from nacz.segment_coder import (
    CodecOptions,
    ModelProgress,
    SegmentCoder,
    SegmentProgress,
    make_coder,
    model_is_known,
    model_of_digest,
    name_of_model,
    predictor_name,
)

__all__ = ["Meter", "SegmentDecoder", "count_threads", "describe_model"]


class Meter:
    """Turns counts inside a segment into counts of the whole work, and passes them on."""

    def __init__(self, phase: str, total: int | None, callback: ProgressCallback | None) -> None:
        self._phase = phase
        self._total = total
        self._callback = callback
        self.done = 0
        self.coded = 0
        self.tokens = 0
        self._tokens_in_segment = 0
        self._ahead = (0, 0, 0)

    def inside(self) -> SegmentProgress | None:
        """Return what a coder shall call during the next segment."""
        if self._callback is None:
            return None
        return _Inside(self)

    def model(self) -> ModelProgress | None:
        """Return what a coder shall call while it makes its model ready."""
        callback = self._callback
        if callback is None:
            return None
        return lambda stage, done, total: callback(Progress(stage, done, total, 0, 0))

    def within(self, done: int, coded: int, tokens: int) -> None:
        """Report a moment of the segment that is being coded."""
        self._tokens_in_segment = tokens
        self._report(self.done + done, self.coded + coded, self.tokens + tokens)

    def ahead(self, done: int, coded: int, tokens: int) -> None:
        """Report what workers have done of segments that are not finished, or finished before their turn."""
        self._ahead = (done, coded, tokens)
        self._report(self.done, self.coded, self.tokens)

    def trying(self, done: int, total: int) -> None:
        """Report a moment of a trial."""
        if self._callback is not None:
            self._callback(Progress("try", done, total, 0, 0))

    def advance(
        self, done: int, coded: int, tokens: int | None = None, ahead: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """Count a finished segment, its coded bytes with their header. `tokens`: those of the segment, None for as many
        as were reported last; `ahead`: what workers have done of others."""
        self.done += done
        self.coded += coded
        self.tokens += self._tokens_in_segment if tokens is None else tokens
        self._ahead = ahead
        self._tokens_in_segment = 0
        self._report(self.done, self.coded, self.tokens)

    def _report(self, done: int, coded: int, tokens: int) -> None:
        if self._callback is not None:
            done, coded, tokens = (a + b for a, b in zip((done, coded, tokens), self._ahead, strict=True))
            self._callback(Progress(self._phase, done, self._total, coded, tokens))


class _Inside:
    """A SegmentProgress that is told of trials too (see trial_progress)."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __call__(self, done: int, coded: int, tokens: int) -> None:
        self._meter.within(done, coded, tokens)

    def trying(self, done: int, total: int) -> None:
        self._meter.trying(done, total)


def count_threads(asked: int) -> int:
    """Return how many threads to use; 0 asks for all cores. Raises UsageError."""
    if asked < 0:
        raise UsageError(f"threads must be 0 (all) or more: {asked}")
    if asked:
        return asked
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SegmentDecoder:
    """Decodes segments, keeping the predictors and models that it has made ready.

    Of the options only `model` (where to find the weights) and `offline` have a meaning here. `memory_limit`: bytes
    that decoding one segment may take, None for no limit. `coders`: those that are ready already, and where those that
    are made are kept. `inside`: told of the moments of a segment, in place of the meter.
    """

    def __init__(
        self,
        options: CodecOptions | None = None,
        threads: int = 0,
        meter: Meter | None = None,
        memory_limit: int | None = None,
        coders: dict[tuple[int, ModelIdentity | None], SegmentCoder] | None = None,
        inside: SegmentProgress | None = None,
    ) -> None:
        self._options = CodecOptions() if options is None else options
        self._threads = count_threads(threads)
        self._meter = Meter("decompress", None, None) if meter is None else meter
        self._memory_limit = memory_limit
        self._coders: dict[tuple[int, ModelIdentity | None], SegmentCoder] = {} if coders is None else coders
        self._inside = inside

    def check_sizes(self, header: SegmentHeader) -> None:
        """Raise LimitError when the segment's own sizes are beyond the limit of memory; for before it is read."""
        self._compare(header.plain_size + header.payload_size)

    def _check_memory(self, header: SegmentHeader, identity: ModelIdentity | None) -> None:
        """Raise LimitError when decoding the segment would take more than the limit; nothing is allocated yet."""
        if self._memory_limit is not None:
            from nacz.memory import decoding_memory

            self._compare(decoding_memory(header, self._source_of_model(identity), self._options.offline))

    def _compare(self, needed: int) -> None:
        allowed = self._memory_limit
        if allowed is not None and needed > allowed:
            raise LimitError(f"decoding needs about {needed} bytes of memory, more than the {allowed} allowed")

    def plain(
        self, header: SegmentHeader, payload: bytes, identity: ModelIdentity | None, number: int, trust: bool = False
    ) -> bytes:
        """Return the plain bytes of segment `number` (for messages), its checksum compared.

        `trust`: the identity is unknown, so that only the checksum can tell. Raises CorruptDataError, ModelError, and
        LimitError before anything is allocated for the decoding.
        """
        self._check_memory(header, identity)
        coder = self.ready(header, identity, trust)
        progress = self._meter.inside() if self._inside is None else self._inside
        plain = coder.decode(
            header.params, payload, header.plain_size, threads=self._threads, progress=progress
        )
        if len(plain) != header.plain_size or xxhash.xxh3_64_intdigest(plain) != header.plain_hash:
            raise CorruptDataError(f"segment {number} does not decode to its plain data (checksum differs)")
        return plain

    def ready(self, header: SegmentHeader, identity: ModelIdentity | None, trust: bool = False) -> SegmentCoder:
        """Return what decodes the segment, its model loaded. Raises as `plain` does."""
        key = (header.predictor, identity)
        if key not in self._coders:
            self._coders[key] = self._make(header.predictor, identity, trust)
        return self._coders[key]

    def _source_of_model(self, recorded: ModelIdentity | None) -> str | None:
        """Return the name or path of the model to load, None for the default."""
        model = self._options.model if self._options.model != "none" else None
        if model is not None or recorded is None:
            return model
        name = name_of_model(recorded)
        if name and model_is_known(name):
            return name
        found = model_of_digest(recorded.digest)
        if found is None:
            needed = describe_model(recorded)
            raise ModelMissingError(
                f"the archive needs model {needed}, which is not known here; name its file with --model, or take it up "
                "with `nacz models import`"
            )
        return found

    def _make(self, predictor: int, recorded: ModelIdentity | None, trust: bool) -> SegmentCoder:
        """Return a coder whose model is the recorded one, to the bit."""
        coder = make_coder(predictor, replace(self._options, model=self._source_of_model(recorded)))
        if trust:
            return coder
        if coder.needs_model != (recorded is not None):
            needs = "must name a model" if coder.needs_model else "has no model to name"
            raise CorruptDataError(f"a segment of the {predictor_name(predictor)} {needs}")
        if recorded is not None:
            here = coder.model_identity(self._meter.model())
            # The name is a hint: the same weights under another name are the same weights.
            if here is None or replace(here, name="") != replace(recorded, name=""):
                raise ModelMismatchError(
                    f"the archive was written with model {describe_model(recorded)}; here is {describe_model(here)}"
                )
        return coder


def describe_model(model: ModelIdentity | None) -> str:
    """Return the identity of a model for people."""
    if model is None:
        return "none"
    return f"{name_of_model(model) or 'unnamed'} ({model.digest.hex()})"
