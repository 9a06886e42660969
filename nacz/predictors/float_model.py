"""A predictor whose language model another program runs in floating point, with the exact ensemble behind it.

What it writes is bound to the program, its release, the processor and the number of threads: a fingerprint and a
checksum of known logits are recorded, and a decoder that has others refuses. Encoder and decoder do the same steps, one
token at a time, because floating point depends on how rows are grouped. Knows backends, symbols and the ensemble; does
not know files or the container.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import xxhash

from nacz.backends import Backend, Stream, open_backend
from nacz.backends.vocabulary import Vocabulary
from nacz.coder.range_coder import RangeDecoder, encode_intervals
from nacz.errors import CorruptDataError, InternalError, ModelMismatchError, UsageError
from nacz.formats.records import SegmentHeader
from nacz.kernels.cdf import GROUP, find, fix_logits, interval, spread, total_bits
from nacz.kernels.compile import compiled
from nacz.predictors.ensemble import Ensemble, adjust, frequencies, learn, make_ensemble, memory
from nacz.predictors.float_params import ENSEMBLE_VERSION, MAX_FINGERPRINT, MAX_WINDOW, MIN_WINDOW, FloatParams
from nacz.predictors.members import ALL, BYTES, RECALL, parse_members
from nacz.predictors.preset import preset
from nacz.segment_coder import LLAMA, TRANSFORMERS, CodecOptions, ModelIdentity, ModelProgress, SegmentProgress

__all__ = ["FloatModelCoder", "LlamaCoder", "TransformersCoder", "memory_of"]

SINKS = 4
WINDOW = 2048
CANARY = "The canary sings 3.14 times: café, naïve."
_CONTRACT = 256  # plus the predictor: no version of the numeric contract comes that far
_LOG2_E = np.float32(1.4426950408889634)


@compiled
def _mixed(e: Any, n: int, at: int, tokens: Any, none: Any, fixed: Any, freq: Any, sums: Any) -> None:
    """Frequencies of symbol number `at` with the ensemble, from fixed-point logits int32[n], which are changed."""
    adjust(e, n, 0, at, 0, 0, tokens, none, fixed)
    frequencies(e, n, freq, sums)


class FloatModelCoder:
    """Codes segments with the backend of a subclass (see SegmentCoder). Loads the model when first needed."""

    predictor_id: int
    backend: str
    default_segment_size = 1_000_000
    needs_model = True

    def __init__(self, options: CodecOptions) -> None:
        self._options = options
        self._backend: Backend | None = None
        self._vocabulary: Vocabulary | None = None
        self._canary: int | None = None
        self._lock = threading.Lock()

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity:
        backend, vocabulary = self._loaded(progress)
        known = backend.loaded
        return ModelIdentity.of(known.name, known.weights_hash, vocabulary.hash, _CONTRACT + self.predictor_id)

    def _loaded(self, progress: ModelProgress | None = None) -> tuple[Backend, Vocabulary]:
        with self._lock:
            if self._backend is None or self._vocabulary is None:
                self._backend = open_backend(self.backend, self._options.model, self._options.offline, progress)
                self._vocabulary = Vocabulary(self._backend.loaded.tokens, self._backend.tokenize)
            return self._backend, self._vocabulary

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        backend, vocabulary = self._loaded()
        known = backend.loaded
        window = options.window or min(WINDOW, known.context or WINDOW)
        if not MIN_WINDOW <= window <= min(MAX_WINDOW, known.context or MAX_WINDOW):
            raise UsageError(f"window must be {MIN_WINDOW} to {known.context or MAX_WINDOW}: {window}")
        if options.learn:
            raise UsageError(f"the backend `{self.backend}` cannot learn while it codes")
        members = ALL if options.ensemble is None else parse_members(options.ensemble)
        members &= ~(RECALL | BYTES)
        fingerprint = known.fingerprint.encode("utf-8")[:MAX_FINGERPRINT].decode("utf-8", "ignore")
        tokens = vocabulary.encode(data)
        sinks = min(SINKS, (window - 1) // 2)
        p = FloatParams(window, sinks, tokens.size, members, self._sing(), fingerprint)
        row = _Row(p, backend, vocabulary)
        low, width = np.empty(tokens.size, np.uint32), np.empty(tokens.size, np.uint32)
        bits = total_bits(vocabulary.size)
        done = 0
        for at, token in enumerate(tokens.tolist()):
            row.predict(at)
            low[at], width[at] = interval(row.freq, row.sums, token)
            row.take(at, token)
            done += len(vocabulary.bytes_of(token))
            if progress is not None:
                progress(done, int(np.sum(bits - np.log2(width[: at + 1])) / 8) if at % 64 == 0 else 0, at + 1)
        return p.to_bytes(), encode_intervals(low, width, bits)

    def decode(
        self, params: bytes, payload: bytes, plain_size: int, *, threads: int, progress: SegmentProgress | None
    ) -> bytes:
        p = FloatParams.from_bytes(params, plain_size)
        backend, vocabulary = self._loaded()
        self._check(p, backend)
        row = _Row(p, backend, vocabulary)
        decoder = RangeDecoder(payload, total_bits(vocabulary.size))
        parts: list[bytes] = []
        done = 0
        for at in range(p.tokens):
            row.predict(at)
            symbol, low, width = find(row.freq, row.sums, decoder.target())
            decoder.advance(int(low), int(width))
            parts.append(vocabulary.bytes_of(int(symbol)))
            done += len(parts[-1])
            if done > plain_size:
                raise CorruptDataError("a segment decodes to more than its plain size")
            row.take(at, int(symbol))
            if progress is not None:
                progress(done, 0, at + 1)
        if not decoder.consistent():
            raise CorruptDataError("the coded stream does not end where its tokens do")
        return b"".join(parts)

    def _check(self, p: FloatParams, backend: Backend) -> None:
        """Raise ModelMismatchError where this machine would most likely decode something else."""
        if self._options.ignore_fingerprint:
            return
        here = backend.loaded.fingerprint.encode("utf-8")[:MAX_FINGERPRINT].decode("utf-8", "ignore")
        hint = "floating point gives other bytes elsewhere; --ignore-fingerprint tries it (a checksum tells)"
        if here != p.fingerprint:
            raise ModelMismatchError(f"the archive was written by `{p.fingerprint}`; here is `{here}`: {hint}")
        if self._sing() != p.canary:
            raise ModelMismatchError(f"the program that wrote the archive computes other logits here: {hint}")

    def _sing(self) -> int:
        """Checksum of the logits after each symbol of a known text."""
        if self._canary is None:
            backend, vocabulary = self._loaded()
            p = FloatParams(min(256, backend.loaded.context or 256), SINKS, 1, 0, 0, "")
            row = _Row(p, backend, vocabulary)
            digest = xxhash.xxh3_64()
            for token in vocabulary.encode(CANARY.encode("utf-8")).tolist():
                row.take(0, token)
                digest.update(row.base.tobytes())
            self._canary = digest.intdigest()
        return self._canary


class LlamaCoder(FloatModelCoder):
    """Codes segments with llama.cpp."""

    predictor_id = LLAMA
    backend = "llama"


class TransformersCoder(FloatModelCoder):
    """Codes segments with transformers."""

    predictor_id = TRANSFORMERS
    backend = "transformers"


class _Row:
    """Predicts one symbol after another: `freq` and `sums` after `predict`."""

    def __init__(self, p: FloatParams, backend: Backend, vocabulary: Vocabulary) -> None:
        n = self.n = vocabulary.size
        self._n_tokens = vocabulary.n_tokens
        self.base = np.zeros(n, np.int32)
        self._fixed, self.freq, self.sums = np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(n // GROUP, np.int32)
        self._tokens, self._none = np.zeros(p.tokens, np.int32), np.zeros(1, np.float32)
        self._ensemble: Ensemble | None = None
        if p.members:
            starts = np.array([0, p.tokens], np.int64)
            self._ensemble = make_ensemble(p.members, starts, 1, 4, n, preset(ENSEMBLE_VERSION))
        self._stream: Stream = backend.start(p.window, p.sinks)
        if backend.loaded.bos is not None:
            self._show(backend.loaded.bos)

    def _show(self, token: int) -> None:
        logits = self._stream.feed(token)
        if logits.shape != (self._n_tokens,) or not np.isfinite(logits).all():
            raise InternalError("the backend gave logits that are not numbers, or not one for each token")
        scaled = logits * _LOG2_E
        fix_logits(self._n_tokens, scaled, 0, self.base)
        self.base[self._n_tokens :] = self.base[: self._n_tokens].min()

    def predict(self, at: int) -> None:
        if self._ensemble is None:
            spread(self.n, self.base, self.freq, self.sums)
            return
        self._fixed[:] = self.base
        _mixed(self._ensemble, self.n, at, self._tokens, self._none, self._fixed, self.freq, self.sums)

    def take(self, at: int, token: int) -> None:
        """Symbol number `at` is `token`."""
        self._tokens[at] = token
        if self._ensemble is not None:
            learn(self._ensemble, 0, at, token, self._tokens, self.freq)
        if token < self._n_tokens:
            self._show(token)


def memory_of(header: SegmentHeader, model: str | None, offline: bool) -> int:
    """About how many bytes decoding a segment takes beside the interpreter. The model's file counts, if it is one."""
    p = FloatParams.from_bytes(header.params, header.plain_size)
    from nacz.weights import fetch

    path = str(fetch.gguf_path(fetch.UNCHANGED)) if model is None else model
    size = _size(path)
    return 2 * size + 4096 * p.window + memory(p.members, p.tokens, 1, 4, 1 << 18)


def _size(path: str) -> int:
    if os.path.isdir(path):
        return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))
    return os.path.getsize(path) if os.path.exists(path) else 0
