"""Every kernel against its reference, bit for bit, on ordinary and on awkward inputs; and hashes that pin the results.

The hashes are what makes two machines comparable: whoever computes other bits sees it here, not in an archive.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
import slow_model
import tiny
from exact_inputs import F, each_kernel, floats, put, same, sha, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir
from nacz.kernels import cdf, dispatch, gemm, rope, rows, spans, tiles
from nacz.kernels import reference as ref
from nacz.kernels.compile import compiled
from numpy.typing import NDArray

from nacz.arrays import aligned
from nacz.errors import UsageError
from nacz.predictors import transformer
from nacz.predictors.scratch import make_scratch
from nacz.weights import store


def awkward_rows(k: int) -> NDArray[np.float32]:
    """Rows [m, k]: ordinary ones, zeros, huge and small magnitudes, one outlier, one sign, ties of rounding."""
    some = floats("rows", 4, k)
    outlier, ramp = floats("outlier", k), (np.arange(k) - k // 2).astype(F)
    outlier[k // 3] = 3000.0
    single = np.zeros(k, F)
    single[-1] = -1.0
    kinds = [
        *some, np.zeros(k), -np.zeros(k), some[0] * F(1e30), some[1] * F(1e-17), some[2] * F(1e-19), some[0] * F(1e-30),
        outlier, -outlier, np.abs(some[3]), -np.abs(some[2]), single, np.ones(k), ramp, ramp / F(255.0), ramp * F(0.5),
    ]  # fmt: skip
    return np.array(kinds, F)


# -- exponential ------------------------------------------------------------------------------------------------------


@compiled
def exp2_of(distances: Any, fraction_bits: Any, out: Any) -> None:
    for i in range(distances.size):
        out[i] = rows.int_exp2(distances[i], fraction_bits)


@pytest.mark.parametrize("bits", [14, 16])
def test_exp2_for_every_fraction(bits: int) -> None:
    one = 1 << bits
    distances = np.concatenate([np.arange(2 * one), np.arange(0, 33 * one, 997), [2**31 - 1, (1 << 30) + (1 << 28)]])
    out = np.empty(len(distances), np.int32)
    exp2_of(distances.astype(np.int32), np.int32(bits), out)
    np.testing.assert_array_equal(out, ref.int_exp2(distances, bits))
    # float64 powers are good to 1e-15, which is plenty to judge an error of 2.6e-6.
    exact = 2.0 ** (-distances[:one] / one)
    assert np.abs(out[:one] / 2.0**23 / exact - 1.0).max() < 2.9e-6  # 2.6e-6, and what is cut off below 2^-23
    assert out.min() == 0 and out[:one].min() >= (1 << 22) - 12
    assert sha(out) == {14: "15218ca2ad8426ce", 16: "eb9fd0e8c12d506c"}[bits]


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [64, 128, 192, 576, 1536])
def test_quantise_and_normalise_rows(k: int) -> None:
    x = awkward_rows(k)
    m = len(x)
    for normalise in (False, True):
        a, zero, step = aligned(m * k, np.uint8), np.full(m, 77, np.int32), np.full(m, 7.0, F)
        if normalise:
            rows.normalise_rows(m, k, 1e-5, put(x), a, zero, step)
            expected = ref.normalise_rows(x, 1e-5)
        else:
            rows.quantise_rows(m, k, put(x), a, zero, step)
            expected = ref.quantise_rows(x)
        for found, right in zip((a, zero, step), expected, strict=True):
            same(found, right)
        ordinary = slice(0, 4)
        restored = (expected[0].astype(np.float64) - expected[1][:, None]) * expected[2][:, None]
        scaled = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-5) if normalise else x
        assert np.abs(restored - scaled)[ordinary].max() <= 0.502 * expected[2][ordinary].max()


def test_add_rows() -> None:
    x, y = floats("x", 1000), floats("y", 1000)
    total = put(x)
    rows.add_rows(1000, total, y)
    same(total, x + y)


def test_gated_rows() -> None:
    f = 320
    ramp = np.linspace(-200, 200, f, dtype=F)[None]
    gate = np.concatenate([floats("gate", 2, f) * F(3.0), ramp, np.zeros((1, f), F)])
    gate_up = np.concatenate([gate, floats("up", 4, f)], axis=1)
    h = aligned(4 * f, F)
    rows.gated_rows(4, f, put(gate_up), h)
    expected = ref.gated_rows(gate_up)
    same(h, expected)
    g, up = gate.astype(np.float64), gate_up[:, f:].astype(np.float64)
    exact = g / (1.0 + np.exp(-np.clip(g, -600, 600))) * up
    assert np.abs(expected - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(("f", "two", "three"), [(192, 4, 3), (1536, 32, 3), (128, 8, 1), (64, 1, 1), (576, 4, 3)])
def test_rotate_rows(f: int, two: int, three: int) -> None:
    x = awkward_rows(f)
    h = put(x)
    rows.rotate_rows(len(x), f, two, three, h)
    same(h, ref.rotate_rows(x, two, three))
    # Twice is the identity times two * 9.
    rows.rotate_rows(len(x), f, two, three, h)
    back = h.reshape(x.shape) / (two * (9 if three == 3 else 1))
    assert (np.abs(back - x) <= 1e-5 * np.abs(x).max(axis=1, keepdims=True)).all()


def test_rows_are_pinned() -> None:
    x = awkward_rows(576)
    m = len(x)
    a, zero, step = aligned(m * 576, np.uint8), np.zeros(m, np.int32), np.zeros(m, F)
    rows.normalise_rows(m, 576, 1e-5, put(x), a, zero, step)
    gated = aligned(m * 288, F)
    ordinary = floats("gates", m, 576) * F(4.0)
    rows.gated_rows(m, 288, put(ordinary), gated)
    rotated = put(ordinary)
    rows.rotate_rows(m, 576, 4, 3, rotated)
    assert sha(a, zero, step) == "b9d78ae2628555f8"
    assert sha(gated) == "849f31adc0174e6b"
    assert sha(rotated) == "7b11ba109f63d493"


# -- products ---------------------------------------------------------------------------------------------------------


def test_pack() -> None:
    weights = whole("pack", -127, 127, 64, 192).astype(np.int8)
    packed = gemm.pack(weights)
    np.testing.assert_array_equal(packed, ref.pack(weights))
    np.testing.assert_array_equal(gemm.unpack(packed, 64, 192), weights)


def product(kern: Any, a: Any, zero: Any, step: Any, weights: Any, column_step: Any) -> NDArray[np.float32]:
    """The compiled product with the second half of two stacked matrices, so that the offsets are used."""
    (m, k), n = a.shape, len(weights)
    b = put(np.concatenate([gemm.pack(np.full_like(weights, 99)), gemm.pack(weights)]))
    b.setflags(write=False)
    sums = np.concatenate([np.full(n, 9, np.int32), weights.sum(axis=1, dtype=np.int32)])
    steps = np.concatenate([np.full(n, 9.0, F), column_step])
    out = aligned(m * n + 1, F)
    out[-1] = 42.0
    gemm.scaled_product(kern, m, n, k, put(a), zero, step, b, n * k, sums, steps, n, out)
    assert out[-1] == 42.0
    return out[:-1]


@each_kernel
@pytest.mark.parametrize(("n", "k"), [(64, 64), (128, 576), (192, 128), (64, 1536)])
def test_product(kern: Any, n: int, k: int) -> None:
    weights = whole("w", -127, 127, n, k).astype(np.int8)
    weights[0], weights[1], weights[2], weights[3, ::2] = 127, -127, 0, -127
    column_step = np.abs(floats("columns", n)) * F(0.01)
    for m in (*range(1, 14), 24, 59, 61):
        a = whole(f"a{m}", 0, 255, m, k).astype(np.uint8)
        a[0] = 255
        zero, step = whole("zero", 0, 255, m).astype(np.int32), np.abs(floats("steps", m))
        zero[0] = 0
        expected = ref.scaled_product(a, zero, step, weights, column_step)
        same(product(kern, a, zero, step, weights, column_step), expected)


@each_kernel
def test_product_with_the_largest_sums(kern: Any) -> None:
    """K x 255 x 127 for the longest K that an architecture may have is still below 2^31."""
    k = 65536
    a = np.full((2, k), 255, np.uint8)
    weights = np.full((64, k), 127, np.int8)
    weights[1::2] = -127
    zero, step, column_step = np.array([0, 255], np.int32), np.ones(2, F), np.ones(64, F)
    same(product(kern, a, zero, step, weights, column_step), ref.scaled_product(a, zero, step, weights, column_step))


@each_kernel
def test_product_is_pinned(kern: Any) -> None:
    a, weights = whole("a", 0, 255, 13, 576).astype(np.uint8), whole("w", -127, 127, 128, 576).astype(np.int8)
    zero, step = whole("zero", 0, 255, 13).astype(np.int32), np.abs(floats("steps", 13))
    assert sha(product(kern, a, zero, step, weights, np.abs(floats("columns", 128)))) == "2bd48e6939c60636"


def test_tile_registers_are_used_only_where_the_system_lets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "permitted", lambda: False)
    assert "amx" not in dispatch.usable()
    monkeypatch.setenv("NACZ_KERNEL", "amx")
    dispatch.chosen.cache_clear()
    try:
        with pytest.raises(UsageError, match="cannot run the kernel"):
            dispatch.chosen()
    finally:
        dispatch.chosen.cache_clear()


@pytest.mark.parametrize("name", tiles._STEPS)
def test_code_of_every_kernel_can_be_written(name: str) -> None:
    """Also of those that this processor cannot run."""
    names = ("a", "a_row", "b", "k4", "out", "out_row", "zero", "scale", "colsum", "colscale", "ahead")
    for mode, counts in tiles.MODE_ROWS.items():
        for count in counts:
            module = ir.Module()
            function = ir.Function(module, ir.FunctionType(ir.VoidType(), [tiles.I64] * len(names)), "tile")
            builder = ir.IRBuilder(function.append_basic_block())
            tiles._emit(builder, tiles._STEPS[name], count, mode, dict(zip(names, function.args, strict=True)))
            builder.ret_void()
            llvm.parse_assembly(str(module)).verify()


# -- positions --------------------------------------------------------------------------------------------------------


def test_rope_tables() -> None:
    for base, pin in ((10000.0, "4662d3e69317627c"), (100000.0, "7f69713904694606")):
        tables = rope.rope_tables(base, 32)
        assert tables.shape == (2, 1024, 2, 32) and tables.dtype == F
        assert sha(tables) == pin
        frequency = base ** (-np.arange(32) / 32)
        for table, unit in enumerate((1, 1024)):
            angle = (np.arange(1024) * unit)[:, None] * frequency
            # float64 angles up to 2^20 are good to 2e-10; float32 rounds by up to 2^-25.
            for part, exact in enumerate((np.cos(angle), np.sin(angle))):
                assert np.abs(tables[table, :, part] - exact).max() < 2.0**-25 + 1e-9


def test_angles() -> None:
    tables = rope.rope_tables(100000.0, 32)
    cos, sin = np.empty(96, F), np.empty(96, F)
    for position in (0, 1, 127, 1023, 1024, 1025, 8191, 100_000, (1 << 20) - 1):
        rope.angles(put(tables), 32, position, cos, sin, 32)
        c, s = ref.angles(tables, position)
        same(cos[32:64], c)
        same(sin[32:64], s)
        angle = position * 100000.0 ** (-np.arange(32) / 32)
        assert np.abs(c - np.cos(angle)).max() < 2.0**-22 and np.abs(s - np.sin(angle)).max() < 2.0**-22


@compiled
def sums_of_spans(sums: Any, key_sum: Any, ones: Any, least: int, masked: Any, whole: Any, out: Any) -> None:
    for d in range(masked.size):
        sums[1] = sums[0] - d
        masked[d] = spans.weigh_span(sums, 0, key_sum, ones, ones, 0, np.float32(1.0), np.int32(2), out, 0)[1]
        sums[2:] = least
        whole[d] = spans.weigh_whole(sums, 0, key_sum, ones, ones, 0, np.float32(1.0), out, 0)[1]
        sums[2:] = sums[0]


def test_exp2_of_spans_for_every_fraction() -> None:
    """A query with a key at the largest score and one at each distance below: the sum of both is what is returned. In
    the vector code the polynomial has other factors, all powers of two away, and must not differ in a bit."""
    distances = np.arange(34 << 14, dtype=np.int64)
    sums, zeros = np.full(128, 3 << 14, np.int32), np.zeros(128, np.int32)
    masked, whole = np.empty(distances.size, np.int32), np.empty(distances.size, np.int32)
    sums_of_spans(sums, zeros, np.ones(128, np.float32), -(500 << 14), masked, whole, np.zeros(128, np.uint8))
    expected = ref.int_exp2(distances * 0, 14) + ref.int_exp2(distances, 14)
    np.testing.assert_array_equal(masked, expected)
    np.testing.assert_array_equal(whole, expected)


# -- attention --------------------------------------------------------------------------------------------------------


def awkward_history(positions: int, width: int) -> NDArray[np.float32]:
    """Rows of queries, keys and values, float32 [positions, width], with stretches of unusual ones."""
    x = floats("history", positions, width) * F(2.0)
    x[3] = 0.0
    x[40:60] *= F(1e-25)
    x[100:130, -64:] *= F(300.0)  # values
    x[140:150] *= F(40.0)
    x[200, 5] = F(1e4)
    x[256:384, -64:] = 0.0  # a whole block of values
    x[390:420, -64:] *= F(1e-20)
    x[430:440, :64] *= F(500.0)  # one head's queries
    return x


ATTENTION = tiny.Architecture(
    layers=1, dim=192, heads=3, kv_heads=1, ffn=64, vocab=64, context=4096, rope_base=10000.0, eps=1e-5
)


@pytest.fixture(scope="module")
def attended() -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
    """700 positions at a window of 256, so that the ring turns over; the reference results of some of them."""
    model = store.in_memory(tiny.model(2, ATTENTION))
    history = awkward_history(700, 5 * 64)
    slow = slow_model.SlowModel(model, 256)
    wanted = {*range(12), *range(120, 136), *range(250, 262), *range(376, 446), *range(506, 520), *range(636, 700, 7)}
    out = {}
    for position, row in enumerate(history):
        if position in wanted:
            out[position] = slow.attention(0, position, row)
        else:
            slow.remember(0, position, row)
    return history, out


@each_kernel
@pytest.mark.parametrize("step", [1, 5, 128])
def test_attention(kern: Any, step: int, attended: tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]) -> None:
    """Any grouping of rows within a cache block; positions across block boundaries and far beyond the window."""
    history, expected = attended
    shape = transformer.make_shape(ATTENTION, 256)
    cache, s = transformer.make_cache(shape, 2), make_scratch(shape, 128)
    tables = put(rope.rope_tables(ATTENTION.rope_base, 32))
    at = 0
    while at < len(history):
        count = min(step, 128 - at % 128, len(history) - at)
        s.wide[: count * 320] = history[at : at + count].reshape(-1)
        for r in range(count):
            rope.angles(tables, 32, at + r, s.cos, s.sin, r * 64)
            rope.angles(tables, 32, min(at + r, shape.sink_reach), s.cos, s.sin, r * 64 + 32)
        transformer._attention_rows(kern, shape, cache, s, 0, 1, 0, count, at)
        for r in range(count):
            if at + r in expected:
                same(s.hidden[r * 192 : (r + 1) * 192], expected[at + r])
        at += count
    assert not cache.blocks[: cache.blocks.size // 2].any(), "another lane's cache was written to"


def test_attention_is_close_to_softmax() -> None:
    """The definition itself: 8-bit queries, keys, values and weights stay within a few percent of real numbers."""
    n = 200
    q, k, v = floats("q", 64), floats("k", n, 64), floats("v", n, 64)
    one, none = np.ones(32, F), np.zeros(32, F)
    query = ref.put_query(q, one, none, transformer.QUERY_UNIT)
    keys, values = [ref.put_key(row, one, none) for row in k], [ref.put_value(row) for row in v]
    found = ref.attend_one(
        n - 1, 4, *query, *query, np.stack([e[0] for e in keys]), np.array([e[1] for e in keys]),
        np.stack([e[0] for e in values]), np.array([e[1] for e in values]),
    )  # fmt: skip
    weights = np.exp(k.astype(np.float64) @ q / 8.0)
    exact = weights @ v / weights.sum()
    assert np.abs(found - exact).max() < 0.02 * np.abs(v).max()


# -- distributions ----------------------------------------------------------------------------------------------------


def distribution(logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(frequencies, group sums) by the compiled functions, compared with the reference."""
    n = len(logits)
    fixed, freq, sums = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n // 64, np.int32)
    cdf.fix_logits(n, np.concatenate([np.zeros(3, F), logits]), 3, fixed)
    np.testing.assert_array_equal(fixed, ref.fix_logits(logits))
    cdf.spread(n, fixed, freq, sums)
    np.testing.assert_array_equal(freq, ref.spread(fixed))
    np.testing.assert_array_equal(sums, freq.reshape(-1, 64).sum(axis=1))
    assert freq.min() >= 1 and freq.sum(dtype=np.int64) == 1 << (24 if n <= 65_536 else 28)
    return freq, sums


AWKWARD_LOGITS = {
    "equal": np.zeros(320, F),
    "equal and many": np.zeros(1 << 20, F),
    "one certain": np.where(np.arange(320) == 77, F(5000.0), F(-5000.0)),
    "two certain": np.where(np.arange(320) % 200 == 1, F(5000.0), F(-5000.0)),
    "just apart": np.where(np.arange(320) == 100, F(2.0**-15), F(0.0)),
    "the last": np.where(np.arange(320) == 319, F(12.0), F(0.0)),
    "falling": -np.arange(320, dtype=F) / F(7.0),
    "just narrow": (tiny.normal(2, "logits", 65_536) * 4.0).astype(F),
    "just wide": (tiny.normal(2, "logits", 65_600) * 4.0).astype(F),
    "wide": (tiny.normal(3, "logits", 1 << 18) * 6.0).astype(F),
    "wide and one certain": np.where(np.arange(1 << 18) == 200_000, F(5000.0), F(-5000.0)),
    "real size": (tiny.normal(1, "logits", 49152) * 4.0).astype(F),
}


@pytest.mark.parametrize("name", AWKWARD_LOGITS)
def test_distribution(name: str) -> None:
    logits = AWKWARD_LOGITS[name]
    freq, sums = distribution(logits)
    n = len(logits)
    for symbol in {0, 1, 63, 64, 77, n // 2, n - 1, int(np.argmax(freq))} & set(range(n)):
        low, width = cdf.interval(freq, sums, symbol)
        assert (low, width) == ref.interval(freq, symbol)
        for target in {low, low + width // 2, low + width - 1}:
            assert tuple(cdf.find(freq, sums, target)) == ref.find(freq, target) == (symbol, low, width)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32), st.floats(0.0, 400.0))
def test_distribution_of_anything(groups: int, seed: int, width: float) -> None:
    logits = (tiny.normal(seed, "logits", 64 * groups) * width).astype(F)
    freq, sums = distribution(logits)
    ends = np.cumsum(freq)
    for target in whole(f"target{seed}", 0, (1 << 24) - 1, 5).tolist() + [0, (1 << 24) - 1]:
        symbol, low, size = cdf.find(freq, sums, target)
        assert low <= target < low + size == ends[symbol]


def test_distribution_is_close_to_softmax() -> None:
    logits = AWKWARD_LOGITS["real size"]
    freq, sums = distribution(logits)
    exact = 2.0 ** logits.astype(np.float64)
    exact /= exact.sum()
    given_probability = freq / 2.0**24
    lost = float((exact * np.log2(exact / given_probability)).sum())
    assert 0.0 <= lost < 0.006
    assert sha(freq, sums) == "70b2c520971ef4b3"
