"""Exact matrix products: unsigned-byte activations times signed-byte weights.

`scaled_product` is the whole of every linear layer: int8 sums in int32, then the float32 epilogue of the tile. The
result of an element depends on its row and its column alone, so any cut of the rows into blocks gives the same bits.

Knows panels and row tiles. Does not know layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.compile import compiled
from nacz.kernels.tiles import SCALED, SCALED_AHEAD, tile

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


@compiled
def _tile(
    kern: Any,
    mr: int,
    a: Any,
    a_at: int,
    k: int,
    b: Any,
    b_at: int,
    out: Any,
    out_at: int,
    n: int,
    zero: Any,
    scale: Any,
    row: int,
    colsum: Any,
    colscale: Any,
    col: int,
    ahead: int,
) -> None:
    k4 = k >> 2
    if mr == 6:
        tile(
            kern, a, a_at, k, b, b_at, k4, out, out_at, n, 6, 4, zero, scale, row, colsum, colscale, col, SCALED, ahead
        )
    elif mr == 5:
        tile(
            kern, a, a_at, k, b, b_at, k4, out, out_at, n, 5, 4, zero, scale, row, colsum, colscale, col, SCALED, ahead
        )
    elif mr == 4:
        tile(
            kern, a, a_at, k, b, b_at, k4, out, out_at, n, 4, 4, zero, scale, row, colsum, colscale, col, SCALED, ahead
        )
    elif mr == 3:
        tile(
            kern, a, a_at, k, b, b_at, k4, out, out_at, n, 3, 4, zero, scale, row, colsum, colscale, col, SCALED, ahead
        )
    elif mr == 2:
        tile(
            kern, a, a_at, k, b, b_at, k4, out, out_at, n, 2, 4, zero, scale, row, colsum, colscale, col, SCALED, ahead
        )
    else:
        tile(
            kern, a, a_at, k, b, b_at, k4, out, out_at, n, 1, 4, zero, scale, row, colsum, colscale, col, SCALED, ahead
        )


@compiled
def _tile_ahead(
    kern: Any,
    mr: int,
    a: Any,
    a_at: int,
    k: int,
    b: Any,
    b_at: int,
    out: Any,
    out_at: int,
    n: int,
    zero: Any,
    scale: Any,
    row: int,
    colsum: Any,
    colscale: Any,
    col: int,
    ahead: int,
) -> None:
    k4 = k >> 2
    if mr == 6:
        tile(
            kern,
            a,
            a_at,
            k,
            b,
            b_at,
            k4,
            out,
            out_at,
            n,
            6,
            4,
            zero,
            scale,
            row,
            colsum,
            colscale,
            col,
            SCALED_AHEAD,
            ahead,
        )
    elif mr == 5:
        tile(
            kern,
            a,
            a_at,
            k,
            b,
            b_at,
            k4,
            out,
            out_at,
            n,
            5,
            4,
            zero,
            scale,
            row,
            colsum,
            colscale,
            col,
            SCALED_AHEAD,
            ahead,
        )
    elif mr == 4:
        tile(
            kern,
            a,
            a_at,
            k,
            b,
            b_at,
            k4,
            out,
            out_at,
            n,
            4,
            4,
            zero,
            scale,
            row,
            colsum,
            colscale,
            col,
            SCALED_AHEAD,
            ahead,
        )
    else:
        tile(
            kern,
            a,
            a_at,
            k,
            b,
            b_at,
            k4,
            out,
            out_at,
            n,
            3,
            4,
            zero,
            scale,
            row,
            colsum,
            colscale,
            col,
            SCALED_AHEAD,
            ahead,
        )


@compiled
def scaled_product(
    kern: Any,
    m: int,
    n: int,
    k: int,
    a: Any,
    zero: Any,
    scale: Any,
    b: Any,
    b_at: int,
    colsum: Any,
    colscale: Any,
    col0: int,
    out: Any,
) -> None:
    """out[i, j] = ((sum_k a[i, k] * b[j, k] - zero[i] * colsum[j]) * colscale[j]) * scale[i], float32 flat [m, n].

    a: uint8 flat [m, k]. b: packed int8 of `n` columns (a multiple of 64) from byte `b_at`. zero int32[m], scale
    float32[m]; colsum int32, colscale float32, read from `col0` on. Three elementwise float32 multiplications and
    conversions per element in the order written; the sums are exact.
    """
    tiles = (m + ROWS - 1) // ROWS
    # Between one row tile and many, reading the weights is what takes time: fetch the next panel early. Rows are shared
    # out evenly, so that with two tiles or more each has at least three.
    ahead = PANEL * k if 1 < tiles <= 10 else 0
    for col in range(0, n, PANEL):
        row = 0
        for t in range(tiles):
            left = tiles - t
            mr = (m - row + left - 1) // left
            at, out_at = b_at + col * k, row * n + col
            if ahead:
                _tile_ahead(
                    kern,
                    mr,
                    a,
                    row * k,
                    k,
                    b,
                    at,
                    out,
                    out_at,
                    n,
                    zero,
                    scale,
                    row,
                    colsum,
                    colscale,
                    col0 + col,
                    ahead,
                )
            else:
                _tile(
                    kern,
                    mr,
                    a,
                    row * k,
                    k,
                    b,
                    at,
                    out,
                    out_at,
                    n,
                    zero,
                    scale,
                    row,
                    colsum,
                    colscale,
                    col0 + col,
                    ahead,
                )
            row += mr
