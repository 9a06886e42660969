"""Heads that see less than the window: the same in the fast engine, the slow one, and both decoders."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import slow_model
import tiny
from hypothesis import given
from hypothesis import strategies as st
from nacz.coder.range_coder import encode_intervals
from nacz.kernels.dispatch import KERNELS, usable

from nacz.errors import CorruptDataError, UnsupportedVersionError
from nacz.lane_decoding import decode_lanes
from nacz.lane_encoding import encode_lanes
from nacz.predictors.language_model import LanguageModelCoder, Params
from nacz.predictors.networks import cache_bytes, fitted, make_shape, make_weights
from nacz.predictors.reach import EXPLICIT, TABLES, Near, near_of, reaches
from nacz.segment_coder import CodecOptions
from nacz.weights import store

WINDOW = 512
NEAR = Near(EXPLICIT, bytes([3, 2]))  # the tiny model has two layers of one key head


@pytest.fixture(scope="module")
def model() -> store.LoadedModel:
    return store.in_memory(tiny.model())


def some_tokens(count: int) -> np.ndarray:
    i = np.arange(count, dtype=np.int64)
    return (17 + (i * i * 5 + i // 3) % 235).astype(np.int32)


def test_tables_are_of_the_model_and_known_to_the_reference(reference: ModuleType) -> None:
    assert [list(table) for table in reference.NEAR_HEADS] == [list(TABLES[i]) for i in sorted(TABLES)]
    for number, table in TABLES.items():
        assert len(table) == 90 and 1 not in table
        assert near_of("smollm2-135m", number, 64) == Near(number, table)
        assert near_of("another", number, 64) is None
        assert near_of("smollm2-135m", number, 3) is None
    assert near_of("smollm2-135m", 0, 64) is None


@given(heads=st.binary(max_size=300).map(lambda b: b.replace(b"\1", b"\2")), after=st.binary(max_size=9))
def test_parameters_come_back(heads: bytes, after: bytes) -> None:
    for near in (Near(EXPLICIT, heads), Near(1, TABLES[1])):
        data = b"abc" + near.to_bytes()
        assert Near.from_bytes(data + after, 3) == (near, len(data))


def test_bad_tables_are_refused(model: store.LoadedModel) -> None:
    for bad in (b"", b"\0", b"\0\2\2", b"\0\2\2\1"):
        with pytest.raises(CorruptDataError):
            Near.from_bytes(bad, 0)
    with pytest.raises(UnsupportedVersionError):
        Near.from_bytes(bytes([1 + max(TABLES)]), 0)
    coder = LanguageModelCoder(CodecOptions())
    coder._model = model
    for heads in (b"\2", b"\2\2\2", TABLES[1]):
        with pytest.raises(CorruptDataError, match="another model"):
            coder.decode(Params(512, 1, 9, near=Near(EXPLICIT, heads)).to_bytes(), b"abc", 9, threads=1, progress=None)


def test_near_heads_take_less_cache(model: store.LoadedModel) -> None:
    shape = make_shape(model.architecture, WINDOW, NEAR)
    assert reaches(2, 4, NEAR).tolist() == [3, 2]
    assert reaches(3, 4, Near(EXPLICIT, bytes([0, 9, 2]))).tolist() == [4, 4, 2]
    assert cache_bytes(shape, 3) * 8 == cache_bytes(make_shape(model.architecture, WINDOW), 3) * 5
    assert fitted(shape, 200).reach.tolist() == [2, 2]


def test_the_slow_model_sees_the_same(model: store.LoadedModel) -> None:
    tokens = some_tokens(700)
    kern, bos = KERNELS[usable()[0]], np.zeros(1, np.int32)
    shape = make_shape(model.architecture, WINDOW, NEAR)
    low, freq = encode_lanes(kern, shape, make_weights(model), 0, tokens, 1, 1)
    logits = slow_model.SlowModel(model, WINDOW, [3, 2]).logits(np.concatenate([bos, tokens[:-1]]))
    from nacz.kernels.cdf import GROUP, fix_logits, interval, spread

    vocab = shape.vocab
    fixed, f = np.empty(vocab, np.int32), np.empty(vocab, np.int32)
    sums = np.empty(vocab // GROUP, np.int32)
    for i, token in enumerate(tokens):
        fix_logits(vocab, logits[i], 0, fixed)
        spread(vocab, fixed, f, sums)
        assert interval(f, sums, int(token)) == (low[i], freq[i]), i
    everywhere = encode_lanes(kern, make_shape(model.architecture, WINDOW), make_weights(model), 0, tokens, 1, 1)[1]
    assert np.array_equal(freq[:256], everywhere[:256]) and not np.array_equal(freq, everywhere)


@pytest.mark.parametrize("lanes", [1, 3])
def test_any_cut_of_the_work_gives_the_same_bits(model: store.LoadedModel, lanes: int) -> None:
    tokens = some_tokens(790 * lanes)
    shape, weights = make_shape(model.architecture, WINDOW, NEAR), make_weights(model)
    kern = KERNELS[usable()[0]]
    one = encode_lanes(kern, shape, weights, 0, tokens, lanes, 1)
    assert np.array_equal(one, encode_lanes(kern, shape, weights, 0, tokens, lanes, 2, rows=50))
    stream = np.frombuffer(encode_intervals(*one), np.uint8)
    for threads in (1, 2):
        assert np.array_equal(decode_lanes(kern, shape, weights, 0, stream, tokens.size, lanes, threads), tokens)


def test_the_reference_decodes_it(model: store.LoadedModel, tmp_path: Path, reference: ModuleType) -> None:
    tokens = some_tokens(500)
    shape, weights = make_shape(model.architecture, WINDOW, NEAR), make_weights(model)
    payload = encode_intervals(*encode_lanes(KERNELS[usable()[0]], shape, weights, 0, tokens, 1, 1))
    plain = tiny.tokenizer().decode(tokens)
    params = reference.Fields(Params(WINDOW, 1, tokens.size, near=NEAR).to_bytes())
    slow = reference.Model(tiny.write(tmp_path).read_bytes())
    assert reference.decode_language_model(slow, params, payload, len(plain)) == plain
