"""Exact matrix products: unsigned-byte activations times signed-byte weights.

`scaled_product` is the whole of every linear layer: int8 sums in int32, then the float32 epilogue of the tile. The
result of an element depends on its row and its column alone, so any cut of the rows into blocks gives the same bits.

Knows panels and row tiles. Does not know layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.amx import AHEAD, LEAST, TERMS, configure, has_tiles, release, tile_scaled, tile_sums
from nacz.kernels.amx import ROWS as TILE_ROWS
from nacz.kernels.compile import compiled, inner
from nacz.kernels.sharing import begin_of, end_of
from nacz.kernels.tiles import SCALED, SCALED_AHEAD, SUMS, SUMS_AHEAD, address, tile

PANEL = 64  # columns per panel: 64 x 576 weights are 36 KB and stay in a first- or second-level cache
ROWS = 6  # rows per tile: 6 x 4 accumulators of 16 sums fill the 32 registers of AVX-512


def pack(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int8 [N, K] (N a multiple of 64, K of 4) to the packed order [N/64][K/4][64][4] that `tile` reads; int8 [N *
    K]."""
    n, k = weights.shape
    return np.ascontiguousarray(weights.reshape(n // PANEL, PANEL, k // 4, 4).transpose(0, 2, 1, 3)).reshape(-1)


def unpack(packed: np.ndarray[Any, Any], n: int, k: int) -> np.ndarray[Any, Any]:
    """Inverse of `pack`: int8 [N, K]."""
    return np.ascontiguousarray(packed.reshape(n // PANEL, k // 4, PANEL, 4).transpose(0, 2, 1, 3)).reshape(n, k)


# One function for each mode of a tile, whose arguments are numbers: it is compiled once, whatever the arrays are.
@inner
def _tile(
    kern: Any, mr: int, a: int, k: int, b: int, out: int, n: int, zero: int, scale: int, colsum: int, colscale: int,
) -> None:  # fmt: skip
    tile(kern, SCALED, mr, a, k, b, k >> 2, out, n, zero, scale, colsum, colscale, 0)


@inner
def _tile_ahead(
    kern: Any, mr: int, a: int, k: int, b: int, out: int, n: int, zero: int, scale: int, colsum: int, colscale: int,
    ahead: int,
) -> None:  # fmt: skip
    tile(kern, SCALED_AHEAD, mr, a, k, b, k >> 2, out, n, zero, scale, colsum, colscale, ahead)


@inner
def _sums(kern: Any, mr: int, a: int, a_row: int, b: int, terms: int, out: int, out_row: int) -> None:
    tile(kern, SUMS, mr, a, a_row, b, terms >> 2, out, out_row, 0, 0, 0, 0, 0)


@inner
def _sums_ahead(kern: Any, a: int, a_row: int, b: int, terms: int, out: int, out_row: int, ahead: int) -> None:
    tile(kern, SUMS_AHEAD, 3, a, a_row, b, terms >> 2, out, out_row, 0, 0, 0, 0, ahead)


@inner
def sums_product(
    kern: Any, mr: int, a: Any, a_at: int, a_row: int, b: Any, b_at: int, terms: int, out: Any, out_at: int,
    out_row: int, ahead: int,
) -> None:  # fmt: skip
    """Integer sums of mr rows (1-6) with the 64 columns of one panel over `terms` terms: int32, row r at out_at + r *
    out_row. a: uint8, rows a_row apart; ahead: for 3 rows how many bytes of `b` further on to prefetch, 0 for none."""
    x, y, z = address(a, a_at), address(b, b_at), address(out, out_at)
    if mr == 3 and ahead:
        _sums_ahead(kern, x, a_row, y, terms, z, out_row, ahead)
    else:
        _sums(kern, mr, x, a_row, y, terms, z, out_row)


@inner
def by_tiles(kern: Any, rows: int, terms: int) -> Any:
    """Whether so many rows over so many terms go through tile registers."""
    return has_tiles(kern) and rows >= LEAST and terms % TERMS == 0


@inner
def sums_by_tiles(
    kern: Any, a: Any, a_at: int, a_row: int, b: Any, b_at: int, terms: int, out: Any, out_at: int, out_row: int
) -> None:
    """`sums_product` for as many rows as the tile registers are configured for."""
    tile_sums(kern, address(a, a_at), a_row, address(b, b_at), terms, address(out, out_at), out_row)


@inner
def panel_sums(kern: Any, m: int, terms: int, a: int, b: int, out: int) -> None:
    """int32 sums of m rows (uint8 [m, terms]) with one packed panel (int8) over its terms: [m][64]. Addresses."""
    if by_tiles(kern, m, terms):
        rows = min(m, TILE_ROWS)
        configure(kern, rows)
        for first in range(0, m, rows):
            row = min(first, m - rows)
            tile_sums(kern, a + row * terms, terms, b, terms, out + 4 * PANEL * row, PANEL)
        release(kern)
        return
    for row in range(0, m, ROWS):
        _sums(kern, min(ROWS, m - row), a + row * terms, terms, b, terms, out + 4 * PANEL * row, PANEL)


@inner
def _scaled_by_tiles(
    kern: Any, m: int, n: int, k: int, a: int, zero: int, scale: int, b: int, colsum: int, colscale: int, out: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    rows = min(m, TILE_ROWS)
    configure(kern, rows)
    for col in range(begin, end, PANEL):
        panel, total, column = b + col * k, colsum + 4 * col, colscale + 4 * col
        if rows == m:
            tile_scaled(kern, AHEAD, m, a, panel, k, out + 4 * col, n, zero, scale, total, column)
            continue
        for first in range(0, m, rows):
            # The last tile makes some rows once more rather than be configured for fewer.
            row = min(first, m - rows)
            x, y, z, s = a + row * k, out + 4 * (row * n + col), zero + 4 * row, scale + 4 * row
            tile_scaled(kern, 0, rows, x, panel, k, y, n, z, s, total, column)
    release(kern)


@inner
def _scaled_product(
    kern: Any, m: int, n: int, k: int, a: int, zero: int, scale: int, b: int, colsum: int, colscale: int, out: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    if by_tiles(kern, m, k):
        _scaled_by_tiles(kern, m, n, k, a, zero, scale, b, colsum, colscale, out, begin, end)
        return
    tiles = (m + ROWS - 1) // ROWS
    # Between one row tile and many, reading the weights is what takes time: fetch the next panel early. Rows are shared
    # out evenly, so that with two tiles or more each has at least three.
    ahead = PANEL * k if 1 < tiles <= 10 else 0
    for col in range(begin, end, PANEL):
        row, panel, total, column = 0, b + col * k, colsum + 4 * col, colscale + 4 * col
        for t in range(tiles):
            left = tiles - t
            mr = (m - row + left - 1) // left
            x, y, z, s = a + row * k, out + 4 * (row * n + col), zero + 4 * row, scale + 4 * row
            if ahead:
                _tile_ahead(kern, mr, x, k, panel, y, n, z, s, total, column, ahead)
            else:
                _tile(kern, mr, x, k, panel, y, n, z, s, total, column)
            row += mr


@compiled
def scaled_product(
    kern: Any, m: int, n: int, k: int, a: Any, zero: Any, scale: Any, b: Any, b_at: int, colsum: Any, colscale: Any,
    col0: int, out: Any,
) -> None:  # fmt: skip
    """out[i, j] = ((sum_k a[i, k] * b[j, k] - zero[i] * colsum[j]) * colscale[j]) * scale[i], float32 flat [m, n].

    a: uint8 flat [m, k]. b: packed int8 of `n` columns (a multiple of 64) from byte `b_at`. zero int32[m], scale
    float32[m]; colsum int32, colscale float32, read from `col0` on. Three elementwise float32 multiplications and
    conversions per element in the order written; the sums are exact.
    """
    _scaled_product(
        kern, m, n, k, address(a, 0), address(zero, 0), address(scale, 0), address(b, b_at), address(colsum, col0),
        address(colscale, col0), address(out, 0), 0, n,
    )  # fmt: skip


@inner
def scaled_part(
    kern: Any, share: Any, m: int, n: int, k: int, a: Any, zero: Any, scale: Any, b: Any, b_at: int, colsum: Any,
    colscale: Any, col0: int, out: Any,
) -> None:  # fmt: skip
    """This part's columns of `scaled_product`."""
    _scaled_product(
        kern, m, n, k, address(a, 0), address(zero, 0), address(scale, 0), address(b, b_at), address(colsum, col0),
        address(colscale, col0), address(out, 0), PANEL * begin_of(n // PANEL, share),
        PANEL * end_of(n // PANEL, share),
    )  # fmt: skip
