"""The range coder: round trips, exact bytes, cost against the ideal code length, and damaged ends.

Run with `pytest tests/test_range_coder.py`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacz.coder import range_coder as rc
from nacz.coder.cdf import TOTAL, cdf_from_weights, find_symbol

WIDE = 1 << 28
MOST_LIKELY = TOTAL - 49_151  # the largest count that a vocabulary of 49,152 symbols leaves to one of them


@st.composite
def intervals(draw: st.DrawFn, total: int = TOTAL) -> tuple[int, int]:
    freq = draw(
        st.one_of(
            st.sampled_from([1, 2, 3, MOST_LIKELY, total - 1, total]),
            st.integers(1, total),
            st.integers(1, 300),
        )
    )
    cum = draw(st.one_of(st.sampled_from([0, total - freq]), st.integers(0, total - freq)))
    return cum, freq


def decode(stream: bytes, wanted: list[tuple[int, int]], bits: int = 24) -> tuple[bool, bool]:
    """Return whether every target lies in the wanted interval, and whether the end is consistent."""
    decoder = rc.RangeDecoder(stream, bits)
    for cum, freq in wanted:
        if not cum <= decoder.target() < cum + freq:
            return False, False
        decoder.advance(cum, freq)
    return True, decoder.consistent()


def encode(wanted: list[tuple[int, int]], bits: int = 24) -> bytes:
    return rc.encode_intervals([cum for cum, _ in wanted], [freq for _, freq in wanted], bits)


def ideal_bytes(freq: np.ndarray) -> float:
    return float(np.sum(24 - np.log2(freq.astype(np.float64)))) / 8


@given(st.lists(intervals(), max_size=200))
@settings(deadline=None)
def test_round_trip(wanted: list[tuple[int, int]]) -> None:
    assert decode(encode(wanted), wanted) == (True, True)


@given(st.lists(intervals(WIDE), max_size=200))
@settings(deadline=None)
def test_round_trip_with_a_larger_total(wanted: list[tuple[int, int]]) -> None:
    stream = encode(wanted, 28)
    assert decode(stream, wanted, 28) == (True, True)
    assert len(stream) <= rc.max_encoded_size(len(wanted), 28)
    for other in (stream + b"\0", stream[:-1]):
        assert other == stream or decode(other, wanted, 28) != (True, True)


@given(st.lists(intervals(), max_size=60), st.lists(st.integers(0, 60), max_size=4))
@settings(deadline=None)
def test_batches_do_not_matter(wanted: list[tuple[int, int]], cuts: list[int]) -> None:
    encoder = rc.RangeEncoder()
    edges = [0, *sorted(min(cut, len(wanted)) for cut in cuts), len(wanted)]
    for start, stop in zip(edges, edges[1:], strict=False):
        part = wanted[start:stop]
        encoder.encode([cum for cum, _ in part], [freq for _, freq in part])
    assert encoder.finish() == encode(wanted)


@given(st.lists(intervals(), max_size=30), st.binary(max_size=12))
@settings(deadline=None)
def test_only_one_stream_is_accepted(wanted: list[tuple[int, int]], other: bytes) -> None:
    stream = encode(wanted)
    for candidate in (other, stream + other, stream + b"\0", stream[:-1], stream[:-1] + other):
        if candidate != stream:
            assert decode(candidate, wanted) != (True, True)


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_any_bytes_give_targets_in_range(stream: bytes) -> None:
    decoder = rc.RangeDecoder(stream)
    for _ in range(40):
        target = decoder.target()
        assert 0 <= target < TOTAL
        decoder.advance(target, 1)


@pytest.mark.parametrize("length", [1, 2, 9, 1000, 100_000])
def test_long_carry_chains(length: int) -> None:
    """Stay just below one half with every symbol, so that only the last one decides whether a carry comes."""
    half = TOTAL // 2
    for last in (0, TOTAL - 1):
        wanted = [(half - 1, 1)] + [(TOTAL - 1, 1)] * length + [(last, 1)]
        stream = encode(wanted)
        assert decode(stream, wanted) == (True, True)


def test_a_carry_runs_through_the_whole_stream() -> None:
    """Build `out` of 255s by steering low with exact arithmetic, then push it over the edge."""
    state = rc.encoder_init()
    out = np.zeros(2000, np.uint8)
    wanted: list[tuple[int, int]] = []

    def step(cum: int, freq: int) -> None:
        rc.encode_step(state, out, cum, freq)
        wanted.append((cum, freq))

    step(0, TOTAL)
    for _ in range(400):
        # The count whose interval holds 0.0111... (base 2), so that bytes 127, 255, 255, ... come out.
        low, width = int(state[0]), int(state[1]) >> 24
        written = int(state[2])
        boundary = (1 << 63) if written == 0 else (1 << 64)
        cum = min((boundary - 1 - low) // width, TOTAL - 1)
        step(cum, 1)
    size_before = int(state[2])
    assert out[0] == 127 and np.all(out[1 : size_before - 8] == 255)
    low, width = int(state[0]), int(state[1]) >> 24
    over = -(-((1 << 64) - low) // width)
    assert over < TOTAL, "the interval must reach over the boundary"
    step(over, 1)
    assert out[0] == 128 and np.all(out[1 : size_before - 8] == 0)
    stream = out[: rc.encoder_finish(state, out)].tobytes()
    assert decode(stream, wanted) == (True, True)


def test_pinned_bytes() -> None:
    assert rc.encode_intervals([], []) == b""
    assert rc.encode_intervals([0], [TOTAL]) == b""
    assert rc.encode_intervals([0] * 5, [1] * 5) == b""
    assert rc.encode_intervals([TOTAL - 1], [1]).hex() == "ffffff"
    assert rc.encode_intervals([0x123456, 0xABCDEF, 7], [1, 1, 9]).hex() == "123456abcddccba95c"
    assert rc.encode_intervals([0x123456, 0xABCDEF, WIDE - 1], [1, 1, 1], 28).hex() == "01234560abbbbba9543201"
    freq = np.array([1, 2, 300, 70_000, TOTAL // 2, MOST_LIKELY] * 5, np.uint32)
    cum = ((TOTAL - freq.astype(np.int64)) * np.arange(1, 31) // 31).astype(np.uint32)
    assert rc.encode_intervals(cum, freq).hex() == (
        "084210108417ef7c651071180add81327029396278c7c778f36c1788674a476ce7cb9a127a7cdb30e8a4d87817"
    )


@pytest.mark.parametrize("bits", [0.01, 0.1, 1.0, 4.0, 24.0])
def test_overhead_against_the_ideal(bits: float) -> None:
    rng = np.random.default_rng(7)
    n = 200_000
    freq = np.clip(TOTAL * 2.0 ** -(rng.exponential(bits, n)), 1, TOTAL).astype(np.uint32)
    cum = (rng.random(n) * (TOTAL - freq)).astype(np.uint32)
    ideal = ideal_bytes(freq)
    size = len(rc.encode_intervals(cum, freq))
    assert ideal <= size <= ideal * (1 + 1e-7) + 2


def test_very_predictable_stream() -> None:
    freq = np.full(1_000_000, round(TOTAL * 2**-0.01), np.uint32)
    ideal = ideal_bytes(freq)
    size = len(rc.encode_intervals(TOTAL - freq, freq))
    assert abs(size - ideal) <= 2


def test_size_against_constriction() -> None:
    """An independent range coder with the same distribution must not be smaller by more than its words."""
    constriction = pytest.importorskip("constriction")
    rng = np.random.default_rng(3)
    weights = rng.exponential(1.0, 200) ** 4
    cdf = np.empty(201, np.uint32)
    cdf_from_weights(np.maximum(1, weights * 10_000).astype(np.uint32), cdf)
    freq = np.diff(cdf)
    symbols = rng.choice(200, 50_000, p=freq / TOTAL)
    ours = len(rc.encode_intervals(cdf[symbols], freq[symbols]))
    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(freq / TOTAL, perfect=False)
    encoder.encode(symbols.astype(np.int32), model)
    theirs = encoder.get_compressed().nbytes
    assert ours <= theirs * 1.0001 + 8
    assert theirs <= ours * 1.001 + 8, "the yardstick is off by more than its rounding of probabilities"


@pytest.mark.parametrize(
    ("cum", "freq"),
    [([0], [0]), ([TOTAL], [1]), ([1], [TOTAL]), ([2**32 - 1], [2**32 - 1]), ([0, 1], [1]), ([[0]], [[1]])],
)
def test_bad_intervals(cum: list[int], freq: list[int]) -> None:
    with pytest.raises(ValueError):
        rc.encode_intervals(cum, freq)


def test_a_finished_encoder_takes_no_more() -> None:
    encoder = rc.RangeEncoder()
    encoder.encode(5, 9)
    encoder.finish()
    with pytest.raises(ValueError):
        encoder.encode(5, 9)
    with pytest.raises(ValueError):
        encoder.finish()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300))
@settings(deadline=None)
def test_distributions_sum_exactly(weights: list[int]) -> None:
    cdf = np.empty(len(weights) + 1, np.uint32)
    cdf_from_weights(np.array(weights, np.uint32), cdf)
    assert cdf[0] == 0 and cdf[-1] == TOTAL
    assert np.all(np.diff(cdf.astype(np.int64)) >= 1)
    for symbol in {0, len(weights) // 2, len(weights) - 1}:
        assert find_symbol(cdf, int(cdf[symbol])) == symbol
        assert find_symbol(cdf, int(cdf[symbol + 1]) - 1) == symbol


def test_a_distribution_is_in_proportion() -> None:
    cdf = np.empty(4, np.uint32)
    cdf_from_weights(np.array([1, 1, 2], np.uint32), cdf)
    assert math.isclose(int(cdf[1]) / TOTAL, 0.25, abs_tol=1e-6)
    light = 1 + (TOTAL - 3) // 4
    assert list(np.diff(cdf)) == [light, light, TOTAL - 2 * light]
