"""A small predictor for tests: adaptive byte counts and the range coder, nothing to download, exact.

Tests let it stand for the byte model and, with an identity to compare, for the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from nacz.coder import range_coder as rc
from nacz.coder.cdf import cdf_from_weights, find_symbol

from nacz import segment_coder
from nacz.errors import CorruptDataError, ModelMissingError
from nacz.segment_coder import BYTE_MODEL, LANGUAGE_MODEL, CodecOptions, ModelIdentity, ModelProgress, SegmentProgress

IDENTITY = ModelIdentity("order0-test", b"ord0")


class Order0Coder:
    predictor_id = BYTE_MODEL
    default_segment_size = 4096
    needs_model = False

    def __init__(self, options: CodecOptions) -> None:
        self.options = options

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        return None

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        weights, cdf = np.ones(256, np.uint32), np.empty(257, np.uint32)
        encoder = rc.RangeEncoder()
        for i, symbol in enumerate(data):
            cdf_from_weights(weights, cdf)
            encoder.encode(cdf[symbol], cdf[symbol + 1] - cdf[symbol])
            weights[symbol] += 24
            if progress is not None:
                progress(i + 1, encoder.size, i + 1)
        return bytes([24]), encoder.finish()

    def decode(
        self,
        params: bytes,
        payload: bytes,
        plain_size: int,
        *,
        threads: int,
        progress: SegmentProgress | None,
    ) -> bytes:
        if params != bytes([24]):
            raise CorruptDataError("unknown parameters")
        weights, cdf = np.ones(256, np.uint32), np.empty(257, np.uint32)
        decoder = rc.RangeDecoder(payload)
        plain = bytearray()
        for i in range(plain_size):
            cdf_from_weights(weights, cdf)
            symbol = find_symbol(cdf, decoder.target())
            decoder.advance(int(cdf[symbol]), int(cdf[symbol + 1] - cdf[symbol]))
            plain.append(symbol)
            weights[symbol] += 24
            if progress is not None:
                progress(i + 1, 0, i + 1)
        if not decoder.consistent():
            raise CorruptDataError("the coded stream does not end where it should")
        return bytes(plain)


class Order0ModelCoder(Order0Coder):
    """The same with a model to name; `identity` and `missing` are what tests turn."""

    predictor_id = LANGUAGE_MODEL
    needs_model = True
    identity = IDENTITY
    missing = False

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        if progress is not None:
            progress("fetch", 1, 2)
        if self.missing:
            raise ModelMissingError("weights of `order0-test` are not on this machine")
        return self.identity


@contextmanager
def installed() -> Iterator[None]:
    """Let the two stand for the byte model and the language model for a while."""
    before = dict(segment_coder._factories)
    install()
    try:
        yield
    finally:
        segment_coder._factories.clear()
        segment_coder._factories.update(before)


def install() -> None:
    segment_coder.register_predictor(BYTE_MODEL, Order0Coder)
    segment_coder.register_predictor(LANGUAGE_MODEL, Order0ModelCoder, models=[IDENTITY.name])
