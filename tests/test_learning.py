"""The network that learns while it codes: gradients against float64, and the same bits whatever computes them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import tiny
from float_network import FloatNetwork
from nacz.coder.range_coder import encode_intervals
from nacz.formats.varint import encode_varint
from nacz.kernels.dispatch import KERNELS, usable
from nacz.kernels.rows import mix_rows

from nacz.errors import CorruptDataError, UnsupportedVersionError
from nacz.lane_decoding import decode_lanes
from nacz.lane_encoding import LearningLosesError, Stake, bits_of, encode_lanes
from nacz.predictors import language_model
from nacz.predictors.language_model import LanguageModelCoder, Params, learning_of
from nacz.predictors.learning import ADAM, NATIVE, RATE_UNITS, SCALED, Learner, Learning, mixing_of
from nacz.predictors.members import ALL
from nacz.predictors.scratch import make_scratch
from nacz.predictors.transformer import (
    LOG2_E,
    Group,
    forward,
    make_cache,
    make_shape,
    make_weights,
)  # fmt: skip
from nacz.row_coding import intervals, make_bench
from nacz.segment_coder import CodecOptions
from nacz.weights import store
from nacz.weights.exact import mix_residual

WINDOW = 256
BOS = 0


@pytest.fixture(scope="module")
def model() -> store.LoadedModel:
    return store.in_memory(tiny.model())


def as_rows(blocks: Any, n: int, k: int) -> Any:
    """Masters or moments of a matrix (blocks of sixteen rows) as [n, k]."""
    return np.ascontiguousarray(blocks.reshape(n // 16, k, 16).transpose(0, 2, 1)).reshape(n, k)


def some_tokens(n: int) -> Any:
    """n token ids that repeat themselves now and then."""
    i = np.arange(n, dtype=np.int64)
    return (17 + (i * i * 7 + i // 5) % 250).astype(np.int32)


def encoded(
    model: store.LoadedModel, tokens: Any, lanes: int, learning: Learning, kern: str = "plain", **how: Any
) -> bytes:
    shape, weights = make_shape(model.architecture, WINDOW), make_weights(model)
    how = {"threads": 1, "learning": learning, **how}
    return encode_intervals(*encode_lanes(KERNELS[kern], shape, weights, BOS, tokens, lanes, **how))


def decoded(
    model: store.LoadedModel, stream: bytes, n: int, lanes: int, learning: Learning, kern: str, threads: int
) -> Any:
    shape, weights = make_shape(model.architecture, WINDOW), make_weights(model)
    data = np.frombuffer(stream, np.uint8)
    return decode_lanes(KERNELS[kern], shape, weights, BOS, data, n, lanes, threads, learning=learning)


@pytest.mark.parametrize(
    ("learning", "pinned"),
    [(Learning(2, 50, 150, version=1), "3eed0f95470b3ad8"), (Learning(2, 500, 150), "2596f35121ef26ac")],
)  # fmt: skip
def test_blocks_threads_and_kernels_change_nothing(
    model: store.LoadedModel, learning: Learning, pinned: str
) -> None:
    tokens = some_tokens(1_201)  # three lanes of 400: beyond the window of 256
    expected = encoded(model, tokens, 3, learning)
    assert hashlib.sha256(expected).hexdigest()[:16] == pinned
    for rows in (1, 7, 64, 512):
        assert encoded(model, tokens, 3, learning, rows=rows) == expected, f"blocks of {rows}"
    for threads in (2, 4):
        assert encoded(model, tokens, 3, learning, threads=threads) == expected, f"{threads} threads"
    for kern in usable():
        assert encoded(model, tokens, 3, learning, kern=kern) == expected, kern
    for kern, threads in ((usable()[0], 1), ("plain", 2), (usable()[0], 4)):
        assert np.array_equal(decoded(model, expected, tokens.size, 3, learning, kern, threads), tokens)


def test_without_an_ensemble_rates_are_twice_as_high() -> None:
    usual = Learning(layers=12, rate=50, rows=512)
    assert learning_of(None, usual, ALL) == usual
    assert learning_of(None, usual, 0) == usual._replace(rate=100)
    assert learning_of(None, None, 0) is None and learning_of(0, usual, ALL) is None
    beside, alone = learning_of(6, None, ALL), learning_of(6, usual, 0)
    assert beside is not None and beside.layers == 6
    assert alone == beside._replace(rate=2 * beside.rate)


@pytest.mark.parametrize("lanes", [1, 3])
def test_learning_must_beat_its_stake(model: store.LoadedModel, lanes: int) -> None:
    tokens, learning = some_tokens(1_201), Learning(layers=2, rate=500, rows=150)
    how: tuple[Any, ...] = (make_shape(model.architecture, WINDOW), make_weights(model), BOS, tokens, lanes, 1)
    kern, steps = KERNELS[usable()[0]], 300 // lanes
    whole, part = encode_lanes(kern, *how), encode_lanes(kern, *how, steps=steps)
    assert all(np.array_equal(some, every[: steps * lanes]) for some, every in zip(part, whole, strict=True))
    freely = encode_lanes(kern, *how, learning=learning)
    bits = bits_of(how[0], freely[1][: steps * lanes])
    beaten = encode_lanes(kern, *how, learning=learning, stake=Stake(steps, np.nextafter(bits, np.inf)))
    assert np.array_equal(beaten, freely)
    with pytest.raises(LearningLosesError):
        encode_lanes(kern, *how, learning=learning, stake=Stake(steps, bits))
    # A stake about more than there is is about all of it.
    with pytest.raises(LearningLosesError):
        encode_lanes(kern, *how, learning=learning, stake=Stake(10_000, bits_of(how[0], freely[1])))


def test_learning_makes_what_repeats_smaller(model: store.LoadedModel) -> None:
    tokens = np.tile(some_tokens(97), 20)
    shape, weights = make_shape(model.architecture, WINDOW), make_weights(model)

    def bits(learning: Learning | None) -> float:
        frequency = encode_lanes(KERNELS[usable()[0]], shape, weights, BOS, tokens, 1, 1, learning=learning)[1]
        return float(np.sum(24.0 - np.log2(frequency)))

    assert bits(Learning(layers=2, rate=500, rows=128)) < 0.97 * bits(None)


@pytest.mark.parametrize("width", [64, 128, 192, 320, 576])
def test_mixing_is_that_of_the_weights_and_its_own_inverse(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
    mixed = x.copy().reshape(-1)
    mix_rows(5, width, *mixing_of(width), mixed)
    assert np.allclose(mixed.reshape(5, width), mix_residual(x.astype(np.float64)), atol=1e-5)
    mix_rows(5, width, *mixing_of(width), mixed)
    assert np.allclose(mixed.reshape(5, width), x, atol=1e-5)


@pytest.mark.parametrize(("lanes", "version"), [(1, ADAM), (2, ADAM), (1, SCALED), (2, SCALED)])
def test_gradients_against_float64(model: store.LoadedModel, lanes: int, version: int) -> None:
    """A first move's gradients against differences of a float64 network's loss."""
    steps = 96 // lanes
    tokens = some_tokens(96).reshape(lanes, steps)
    inputs = np.concatenate([np.full((lanes, 1), BOS), tokens[:, :-1]], axis=1).astype(np.int32)
    kern, shape, weights = KERNELS[usable()[0]], make_shape(model.architecture, WINDOW), make_weights(model)
    # The largest rate: masters must be able to tell how far they have moved.
    learner = Learner(kern, shape, weights, Learning(2, int(RATE_UNITS[version]), 96, version), lanes, 1)
    network, rng = FloatNetwork(tiny.model()), np.random.default_rng(1)
    before = {place: learner.matrix(*place).master.copy() for place in network.weights}
    cache, lane = make_cache(shape, lanes), np.arange(lanes)
    groups = Group(lane, lane * steps, np.full(lanes, steps), np.zeros(lanes, np.int64))
    trace = learner.trace._replace(row=np.arange(96))
    scratch = make_scratch(shape, 96)
    forward(kern, shape, weights, cache, scratch, inputs.reshape(-1), groups, trace)
    low, freq, targets = np.empty(96, np.int64), np.empty(96, np.int64), tokens.reshape(-1)
    as_one_lane = learner.outcomes._replace(steps=96, total=learner.outcomes.total[:1])
    intervals(kern, shape, weights, scratch, 96, 0, 0, targets, make_bench(shape, 96), as_one_lane, low, freq)
    learner.learn([(cache, i) for i in range(lanes)], 0)
    learner.close()
    for (name, layer), w in network.weights.items():
        matrix = learner.matrix(name, layer)
        if version == ADAM:  # its first moment is a tenth of the gradient
            gradient = in_basis(name, as_rows(matrix.first, *w.shape)) * 10.0
        else:  # a move is the gradient in units of its rows' and columns' root mean squares
            moved = as_rows(before[name, layer] - matrix.master, *w.shape)
            gradient = moved * np.sqrt(matrix.second / 0.01)[:, None] / matrix.inverse[:, None] / matrix.size
            gradient = in_basis(name, gradient) * np.sqrt(matrix.first / 0.01) / matrix.unit
            gradient = in_basis(name, gradient)
        gradient = gradient.astype(np.float64) / LOG2_E  # gradients carry the head's change to binary logarithms
        noise = rng.standard_normal(w.shape)
        direction = noise / np.linalg.norm(noise) + gradient / np.linalg.norm(gradient)
        expected = sum(network.difference(name, layer, direction, *pair) for pair in zip(inputs, tokens, strict=True))
        assert float(np.sum(gradient * direction)) == pytest.approx(expected, rel=0.1), (name, layer)


def in_basis(name: str, x: Any) -> Any:
    """Rows of x [n, k] from the basis of the weights to that of moves, or back."""
    mixed = np.ascontiguousarray(x, np.float32).reshape(-1)
    if name in NATIVE:
        mix_rows(*x.shape, *mixing_of(x.shape[1]), mixed)
    return mixed.reshape(x.shape)


def test_parameters_of_learning() -> None:
    params = Params(256, 2, 1_000, 0, Learning(6, 20, 512))
    assert Params.from_bytes(params.to_bytes(), 10_000) == params
    earlier = params._replace(learning=Learning(6, 20, 512, 1))
    assert Params.from_bytes(earlier.to_bytes(), 10_000) == earlier
    for values, error in [
        ((8, 2, 2, 1_000), UnsupportedVersionError),
        ((2, 2, 2, 1_000, 0, 6, 20, 512), UnsupportedVersionError),
        ((2, 2, 2, 1_000, 1, 0, 20, 512), CorruptDataError),
        ((2, 2, 2, 1_000, 3, 6, 20, 512), UnsupportedVersionError),
        ((2, 2, 2, 1_000, 1, 6, 0, 512), CorruptDataError),
        ((2, 2, 2, 1_000, 1, 6, 1_001, 512), CorruptDataError),
        ((2, 2, 2, 1_000, 2, 6, 10_001, 512), CorruptDataError),
        ((2, 2, 2, 1_000, 1, 6, 20, 1 << 40), CorruptDataError),
    ]:
        with pytest.raises(error):
            Params.from_bytes(b"".join(map(encode_varint, values)), 10_000)


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelCoder:
    path = tiny.write(tmp_path_factory.mktemp("model"))
    return LanguageModelCoder(CodecOptions(model=str(path)))


def test_segments_learn_and_come_back(coder: LanguageModelCoder) -> None:
    data = b"the cat sat on the mat and the dog on the log; " * 80
    options = CodecOptions(level=9, learn=2, ensemble="none")
    params, payload = coder.encode(data, options=options, threads=2, progress=None)
    assert Params.from_bytes(params, len(data)).learning == Learning(2, 140, 512)  # nothing mixes in
    assert coder.decode(params, payload, len(data), threads=1, progress=None) == data
    still = coder.encode(data, options=CodecOptions(level=9, learn=0, ensemble="none"), threads=1, progress=None)
    assert len(payload) < len(still[1])


def test_noise_is_not_learned_from(coder: LanguageModelCoder) -> None:
    data = tiny.noise(3, "noise", 3_000).tobytes()
    options = CodecOptions(level=9, learn=2, ensemble="none")
    params, payload = coder.encode(data, options=options, threads=1, progress=None)
    still = coder.encode(data, options=CodecOptions(level=9, learn=0, ensemble="none"), threads=1, progress=None)
    assert len(params) + len(payload) <= len(still[0]) + len(still[1])
    assert coder.decode(params, payload, len(data), threads=1, progress=None) == data


def test_how_long_a_trial_is() -> None:
    """Whole blocks: at least four of them and 2,048 rows, a quarter of a longer segment, 16,384 rows at most."""
    for tokens, lanes, rows, steps in [
        (1_000, 1, 128, 2_048), (30_000, 1, 128, 7_552), (300_000, 1, 128, 16_384), (300_000, 3, 128, 42 * 131),
        (30_000, 4, 512, 15 * 128), (1_000, 1, 1_024, 4_096),
    ]:  # fmt: skip
        assert language_model._Trial(Learning(2, 5, rows), lanes, tokens, None).steps == steps
