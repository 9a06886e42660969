"""From plain bytes to a segment by the predictor that makes it smallest, as far as the level's time allows to try.

Knows predictors as things that code segments, and which of them is worth trying on what; does not know how they
predict, the order of records, nor where bytes come from.
"""

from __future__ import annotations

from dataclasses import replace

import xxhash

from nacz.errors import InternalError, UsageError
from nacz.formats.records import MAX_SEGMENT_PLAIN, ModelIdentity, SegmentHeader
from nacz.kinds import WINDOW, is_mostly_text
from nacz.segment_coder import (
    BYTE_MODEL,
    STORED,
    CodecOptions,
    ModelProgress,
    SegmentCoder,
    SegmentProgress,
    as_recorded,
    make_coder,
    trial_progress,
)

__all__ = ["SegmentEncoder"]

# The byte model's first level is a quick trial of its best one, which needs a tenth less room on text and up to half
# less on tables.
_QUICK = 1
_BEST_OF_QUICK = 2
# Where the quick trial leaves so little the language model, slower by two hundred times, has nothing to win.
_ALMOST_NOTHING = 400
# Before it gets a segment, the language model must show on a sample that it is better than the byte model by a
# twentieth: on letters or digits at random it is not, on text in languages that it hardly knows by a sixth. Asked where
# the quick trial leaves more than half of the bytes, or where the sample is next to nothing of the segment.
_PIECES, _PIECE = 4, 1024
_MUST_WIN = 20
_DOUBTFUL, _LONG = 4, 64  # least size of a segment, in samples


class SegmentEncoder:
    """Encodes segments of one member, with the predictors and the model that it has made ready.

    The result is a function of data and options. `threads`: at least 1. `coders`: those that are ready already, and
    where those that are made are kept.
    """

    def __init__(self, options: CodecOptions, threads: int, coders: dict[int, SegmentCoder] | None = None) -> None:
        self._options = options
        self._threads = threads
        self._coders: dict[int, SegmentCoder] = {} if coders is None else coders
        self._identity: ModelIdentity | None = None

    @property
    def sizes(self) -> tuple[int, int | None]:
        """Plain bytes per segment: of any segment, and of one that is no text where that makes a difference. Raises
        UsageError."""
        asked = self._options.segment_size
        size = self._coder(self._options.predictor).default_segment_size if asked is None else asked
        # A last segment may be half as large again, see nacz.cutting.
        limit = MAX_SEGMENT_PLAIN * 2 // 3
        if not 1 <= size <= limit:
            raise UsageError(f"segment size must be 1 to {limit}: {size}")
        if self._options.predictor == BYTE_MODEL:
            return size, None
        return size, self._coder(BYTE_MODEL).default_segment_size if asked is None else asked

    def identity(self, progress: ModelProgress | None) -> ModelIdentity | None:
        """Return the model that segments may name, as archives record it. Raises ModelError if it cannot be had."""
        coder = self._coder(self._options.predictor)
        if self._identity is None and coder.needs_model:
            identity = coder.model_identity(progress)
            self._identity = None if identity is None else as_recorded(identity)
        return self._identity

    def encode(
        self, data: bytes, progress: SegmentProgress | None, model_progress: ModelProgress | None, verify: bool
    ) -> tuple[SegmentHeader, bytes]:
        """Return header and payload of one segment. `verify`: decode it again, InternalError if it differs."""
        predictor, params, payload = self._smallest(data, progress, model_progress)
        if len(params) + len(payload) >= len(data):
            predictor, params, payload = STORED, b"", data
        header = SegmentHeader(
            predictor=predictor,
            model=1 if self._coder(predictor).needs_model else 0,
            params=params,
            plain_size=len(data),
            payload_size=len(payload),
            plain_hash=xxhash.xxh3_64_intdigest(data),
        )
        if verify and not self.decodes(header, payload, data):
            raise InternalError("a segment does not decode to what was encoded; nothing was written of it")
        return header, payload

    def decodes(self, header: SegmentHeader, payload: bytes, data: bytes) -> bool:
        """Tell whether the segment stands for `data`."""
        coder = self._coder(header.predictor)
        return coder.decode(header.params, payload, len(data), threads=self._threads, progress=None) == data

    def _smallest(
        self, data: bytes, progress: SegmentProgress | None, model_progress: ModelProgress | None
    ) -> tuple[int, bytes, bytes]:
        """Return (predictor, parameters, payload), the smallest that is worth trying for."""
        if self._options.predictor == BYTE_MODEL:
            return self._by(BYTE_MODEL, data, progress)
        if len(data) >= WINDOW and not is_mostly_text(data):
            return self._by(BYTE_MODEL, data, progress)
        quick = len(self._by(BYTE_MODEL, data, _trial(progress, len(data)), level=_QUICK)[2])
        if quick * _ALMOST_NOTHING <= len(data):
            return self._by(BYTE_MODEL, data, progress)
        self.identity(model_progress)
        if self._is_hopeless(data, quick, progress):
            return self._by(BYTE_MODEL, data, progress)
        found = self._by(self._options.predictor, data, progress)
        if quick < _BEST_OF_QUICK * len(found[2]):
            other = self._by(BYTE_MODEL, data, _trial(progress, len(data)))
            if len(other[1]) + len(other[2]) < len(found[1]) + len(found[2]):
                found = other
        return found

    def _is_hopeless(self, data: bytes, quick: int, progress: SegmentProgress | None) -> bool:
        """Tell whether the language model has nothing to win, as far as a sample can tell."""
        least = _LONG if 2 * quick <= len(data) else _DOUBTFUL
        if len(data) < least * _PIECES * _PIECE:
            return False
        sample = b"".join(data[at : at + _PIECE] for at in range(0, len(data) - _PIECE, len(data) // _PIECES))
        trial = _trial(progress, len(sample))
        model = len(self._by(self._options.predictor, sample, trial, lanes=None, learn=0)[2])
        return model * _MUST_WIN > len(self._by(BYTE_MODEL, sample, trial)[2]) * (_MUST_WIN - 1)

    def _by(
        self, predictor: int, data: bytes, progress: SegmentProgress | None, **changes: int | None
    ) -> tuple[int, bytes, bytes]:
        options = replace(self._options, **changes)  # type: ignore[arg-type]
        coder = self._coder(predictor)
        return predictor, *coder.encode(data, options=options, threads=self._threads, progress=progress)

    def _coder(self, predictor: int) -> SegmentCoder:
        if predictor not in self._coders:
            self._coders[predictor] = make_coder(predictor, self._options)
        return self._coders[predictor]


def _trial(progress: SegmentProgress | None, size: int) -> SegmentProgress | None:
    """What a coder shall call whose result may be thrown away."""
    trying = trial_progress(progress)
    return None if trying is None else lambda done, coded, tokens: trying(done, size)
