"""Blocks of sixteen rows against what the same does row after row, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nacz.kernels.columns import COLUMN, add_squares, mix_block, place_block, sums_to_floats, take_off
from nacz.kernels.compile import compiled
from nacz.kernels.dispatch import KERNELS, usable
from nacz.kernels.gemm import pack, panel_sums, scaled_product, unpack
from nacz.kernels.gradients import make_columns, pack_columns, pack_terms, term_sums
from nacz.kernels.rows import mix_rows, quantise_rows
from nacz.kernels.tiles import address

from nacz.arrays import aligned
from nacz.predictors.learning import mixing_of

F = np.float32


@compiled
def mixed(k: int, two: int, three: int, block: Any) -> None:
    mix_block(k, two, three, address(block, 0))


@compiled
def placed(row: int, n: int, k: int, q: Any, packed: Any, turned: Any, sums: Any, part: Any) -> None:
    place_block(row, n, k, address(q, 0), address(packed, 0), address(turned, 0), address(sums, row), address(part, 0))


@compiled
def taken(k: int, move: Any, scale: Any, inverse: Any, master: Any, out: Any) -> None:
    for j in range(k):
        some = address(master, 16 * j)
        take_off(address(move, 16 * j), scale, address(inverse, 0), some, address(out, 16 * j))


@compiled
def squares(k: int, x: Any, total: Any) -> None:
    for j in range(0, k, 8):
        add_squares(address(x, 16 * j), address(total, 0))


@compiled
def gradients(
    kern: Any, n: int, k: int, rows: int, m: int, x: Any, dy: Any, work: Any, terms: Any, step: Any, sums: Any,
    packed: Any, c: Any, panel: Any, out: Any,
) -> None:  # fmt: skip
    """Of a matrix [n, k] from rows x and gradients dy of its outputs, in blocks of sixteen rows."""
    pack_terms(0, m, rows, k, x, work, terms, step)
    term_sums(rows, k, terms, sums)
    for first in range(0, n, 64):
        pack_columns(first, n, rows, m, dy, step, packed, c)
        panel_sums(kern, k, rows, address(terms, 0), address(packed, 0), address(panel, 0))
        for i in range(0, 64, 16):
            for j in range(k):
                less, more, unit = address(c.less, i), address(c.more, i), address(c.unit, i)
                to = address(out, (first + i) * k) + COLUMN * j
                sums_to_floats(address(panel, 64 * j + i), less, more, sums[j], unit, to)


def blocks(x: Any) -> Any:
    """[n, k] in blocks of sixteen rows, flat."""
    n, k = x.shape
    out = aligned(n * k, x.dtype)
    out[:] = x.reshape(n // 16, 16, k).transpose(0, 2, 1).reshape(-1)
    return out


@pytest.mark.parametrize("width", [64, 128, 192, 256, 320, 576, 1152])
def test_mixing(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((16, width)).astype(F)
    two, three, scale = mixing_of(width)
    expected, block = x.copy().reshape(-1), blocks(x)
    mix_rows(16, width, two, three, scale, expected)
    mixed(width, two, three, block)
    np.testing.assert_array_equal(block * scale, blocks(expected.reshape(16, width)))


@pytest.mark.parametrize(("n", "k"), [(64, 64), (128, 192), (192, 128)])
def test_both_packed_orders(n: int, k: int) -> None:
    q = np.random.default_rng(n).integers(-127, 128, (n, k)).astype(np.int8)
    packed, turned, sums = aligned(n * k, np.int8), aligned(n * k, np.int8), np.zeros(n, np.int32)
    part = np.zeros(k, np.int32)
    for row in range(0, n, 16):
        placed(row, n, k, blocks(q[row : row + 16]), packed, turned, sums, part)
    np.testing.assert_array_equal(packed, pack(q))
    np.testing.assert_array_equal(unpack(turned, k, n), q.T)
    np.testing.assert_array_equal(sums, q.sum(axis=1, dtype=np.int32))
    np.testing.assert_array_equal(part, q.sum(axis=0, dtype=np.int32))


def test_masters_move_and_stay_within_bytes() -> None:
    rng, k = np.random.default_rng(3), 64
    master, move = ((rng.standard_normal((16, k)) * 60).astype(F) for _ in range(2))
    master[0, 0], move[0, 0] = 1e6, 0.0
    inverse, scale = (rng.random(16) * 3).astype(F), F(0.75)
    expected = np.clip(master - (move * scale) * inverse[:, None], F(-127), F(127))
    flat, out = blocks(master), aligned(16 * k, np.int8)
    taken(k, blocks(move), scale, inverse, flat, out)
    np.testing.assert_array_equal(flat, blocks(expected))
    np.testing.assert_array_equal(out, blocks(np.rint(expected).astype(np.int8)))


def test_squares_are_added_column_after_column() -> None:
    x = np.random.default_rng(4).standard_normal((16, 192)).astype(F)
    total, expected = aligned(16, F), np.zeros(16, F)
    for column in x.T:
        expected = expected + column * column
    squares(192, blocks(x), total)
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("kernel", usable())
@pytest.mark.parametrize("m", [5, 64, 131])
def test_gradients_of_a_matrix(kernel: str, m: int) -> None:
    kern, n, k, rows = KERNELS[kernel], 128, 192, -(-m // 4) * 4
    rng = np.random.default_rng(m)
    x, dy = rng.standard_normal((m, k)).astype(F), rng.standard_normal((m, n)).astype(F)
    x[2], dy[:, 7] = 0.0, 0.0
    terms, step, out = aligned(k * rows, np.uint8), aligned(rows, F), aligned(n * k, F)
    gradients(
        kern, n, k, rows, m, x.reshape(-1), dy.reshape(-1), np.empty(m + 3, F), terms, step, np.empty(k, np.int32),
        aligned(64 * rows, np.int8), make_columns(aligned), aligned(64 * k, np.int32), out,
    )  # fmt: skip
    top = np.abs(x).max(axis=1)
    signed = np.rint(x * np.where(top > 0, F(127) / np.maximum(top, F(1e-9)), F(0))[:, None])
    np.testing.assert_array_equal(step[:m], top / F(127))
    # Columns of dy to bytes as rows are, and the product that the forward pass has.
    columns = np.zeros((n, rows), F)
    columns[:, :m] = (dy * step[:m, None]).T
    a, zero, unit = np.empty(n * rows, np.uint8), np.empty(n, np.int32), np.empty(n, F)
    quantise_rows(n, rows, columns.reshape(-1), a, zero, unit)
    right = np.zeros((k, rows), np.int8)
    right[:, :m] = signed.T
    expected = np.empty(n * k, F)
    sums, packed = right.sum(axis=1, dtype=np.int32), aligned(k * rows, np.int8)
    packed[:] = pack(right)
    scaled_product(kern, n, k, rows, a, zero, unit, packed, 0, sums, np.ones(k, F), 0, expected)
    np.testing.assert_array_equal(out, blocks(expected.reshape(n, k)))
