"""Lanes and the language-model predictor on a tiny random model: any cut of the work gives the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from nacz.coder.range_coder import encode_intervals
from nacz.formats.varint import encode_varint
from nacz.kernels.dispatch import KERNELS, usable
from nacz.kernels.rope import POSITIONS

from nacz.errors import CorruptDataError, UnsupportedVersionError, UsageError
from nacz.lane_decoding import decode_lanes
from nacz.lane_encoding import encode_lanes
from nacz.lanes import lane_lengths
from nacz.predictors.language_model import LanguageModelCoder, Params, default_lanes
from nacz.predictors.transformer import fitted, make_shape, make_weights
from nacz.segment_coder import CodecOptions
from nacz.weights import store

WINDOW = 256
BOS = 0


@pytest.fixture(scope="module")
def model() -> store.LoadedModel:
    return store.in_memory(tiny.model())


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelCoder:
    path = tiny.write(tmp_path_factory.mktemp("model"))
    return LanguageModelCoder(CodecOptions(model=str(path)))


def some_tokens(n: int) -> Any:
    """n token ids that repeat themselves now and then."""
    i = np.arange(n, dtype=np.int64)
    return (17 + (i * i * 7 + i // 5) % 250).astype(np.int32)


def stream_of(model: store.LoadedModel, tokens: Any, lanes: int, kern: str = "plain", **how: Any) -> bytes:
    shape, weights = make_shape(model.architecture, WINDOW), make_weights(model)
    return encode_intervals(*encode_lanes(KERNELS[kern], shape, weights, BOS, tokens, lanes, **{"threads": 1, **how}))


def tokens_of(model: store.LoadedModel, stream: bytes, n: int, lanes: int, kern: str, threads: int) -> Any:
    shape, weights = make_shape(model.architecture, WINDOW), make_weights(model)
    data = np.frombuffer(stream, np.uint8)
    return decode_lanes(KERNELS[kern], shape, weights, BOS, data, n, lanes, threads)


def test_blocks_threads_and_kernels_change_nothing(model: store.LoadedModel) -> None:
    tokens = some_tokens(1_201)  # three lanes of 400: beyond the window of 256
    expected = stream_of(model, tokens, 3)
    for rows in (1, 7, 64, 512):
        assert stream_of(model, tokens, 3, rows=rows) == expected, f"blocks of {rows}"
    for threads in (2, 4):
        assert stream_of(model, tokens, 3, threads=threads) == expected, f"{threads} threads"
    for kern in usable():
        assert stream_of(model, tokens, 3, kern=kern) == expected, kern
    for kern, threads in ((usable()[0], 1), ("plain", 2), (usable()[0], 4)):
        assert np.array_equal(tokens_of(model, expected, tokens.size, 3, kern, threads), tokens)


def test_lanes_are_in_lockstep() -> None:
    assert lane_lengths(11, 4).tolist() == [3, 3, 3, 2]
    assert lane_lengths(4, 4).tolist() == [1, 1, 1, 1]
    assert default_lanes(26_415, 2_048, 6_000) == 4
    assert default_lanes(10, 2_048, 6_000) == 1
    assert default_lanes(10**7, 2_048, 6_000) == 16


def test_no_lane_outgrows_the_position_tables() -> None:
    assert default_lanes(4 * POSITIONS, 8_192, 100_000) == 4
    assert default_lanes(4 * POSITIONS + 1, 8_192, 100_000) == 5
    longest = b"".join(encode_varint(v) for v in (0, 2, 2, 2 * POSITIONS))
    too_long = b"".join(encode_varint(v) for v in (0, 2, 2, 2 * POSITIONS + 1))
    assert Params.from_bytes(longest, 1 << 28).tokens == 2 * POSITIONS
    with pytest.raises(CorruptDataError):
        Params.from_bytes(too_long, 1 << 28)


def test_a_short_lane_needs_no_long_cache(model: store.LoadedModel) -> None:
    shape = make_shape(model.architecture, 8_192)
    assert [int(fitted(shape, longest).reach.max()) for longest in (100, 300, 10**6)] == [2, 3, 64]
    tokens = some_tokens(500)
    weights, kern = make_weights(model), KERNELS["plain"]
    short = encode_lanes(kern, fitted(shape, 500), weights, BOS, tokens, 1, 1)
    assert np.array_equal(short, encode_lanes(kern, shape, weights, BOS, tokens, 1, 1))


def test_damage_is_noticed_or_decodes_to_something_else(model: store.LoadedModel) -> None:
    tokens = some_tokens(300)
    stream = stream_of(model, tokens, 2)
    for at in range(0, len(stream), 17):
        damaged = bytearray(stream)
        damaged[at] ^= 0x40
        try:
            found = tokens_of(model, bytes(damaged), 300, 2, usable()[0], 1)
        except CorruptDataError:
            continue
        assert not np.array_equal(found, tokens)
    with pytest.raises(CorruptDataError):
        tokens_of(model, stream + b"\1\2\3\4\5\6\7\10\11", 300, 2, usable()[0], 1)


def test_progress_counts_to_the_end_and_may_cancel(model: store.LoadedModel) -> None:
    tokens = some_tokens(600)
    seen: list[tuple[int, int]] = []
    stream = stream_of(model, tokens, 2, progress=lambda done, ids, coded: seen.append((int(done.sum()), coded)))
    assert seen[-1][0] == 600 and abs(seen[-1][1] - len(stream)) < 4

    def cancel(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_of(model, tokens, 2, progress=cancel)


@given(data=st.binary(min_size=1, max_size=600), lanes=st.integers(1, 5), threads=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_any_bytes_come_back(coder: LanguageModelCoder, data: bytes, lanes: int, threads: int) -> None:
    options = CodecOptions(window=WINDOW, lanes=lanes)
    params, payload = coder.encode(data, options=options, threads=threads, progress=None)
    assert coder.decode(params, payload, len(data), threads=2, progress=None) == data


def test_hostile_parameters_are_refused_before_any_work(coder: LanguageModelCoder) -> None:
    def params(*values: int) -> bytes:
        return b"".join(encode_varint(v) for v in values)

    good = params(0, 2, 1, 10)
    assert Params.from_bytes(good, 10) == Params(256, 1, 10)
    for bad in (
        params(0, 1, 1, 10), params(0, 129, 1, 10), params(0, 1 << 40, 1, 10), params(0, 2, 0, 10),
        params(0, 2, 11, 10), params(0, 2, 1, 0), params(0, 2, 1, 21), params(0, 2, 1 << 32, 1 << 60), good + b"\0",
        good[:-1], b"",
    ):  # fmt: skip
        with pytest.raises(CorruptDataError):
            coder.decode(bad, b"abc", 10, threads=1, progress=None)
    with pytest.raises(UnsupportedVersionError):
        coder.decode(params(8, 2, 1, 10), b"abc", 10, threads=1, progress=None)
    with pytest.raises(UsageError, match="window"):
        coder.encode(b"abc", options=CodecOptions(window=300), threads=1, progress=None)


def test_model_is_identified(coder: LanguageModelCoder, tmp_path: Path) -> None:
    other = LanguageModelCoder(CodecOptions(model=str(tiny.write(tmp_path, 2))))
    mine, theirs = coder.model_identity(), other.model_identity()
    assert mine.digest != theirs.digest
