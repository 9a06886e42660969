"""Integer distributions: the only form in which a probability reaches the coder.

A distribution over `n` symbols is its cumulative counts `cdf`, `uint32[n + 1]`, with `cdf[0] == 0` and
`cdf[n] == TOTAL`; symbol `s` owns `[cdf[s], cdf[s + 1])`, never empty. Knows counts and their total; does not
know what a symbol means or where the counts come from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from nacz.kernels.compile import inner

TOTAL_BITS = 24
TOTAL = 1 << TOTAL_BITS

__all__ = ["TOTAL", "TOTAL_BITS", "cdf_from_weights", "find_symbol"]


@inner
def find_symbol(cdf: npt.NDArray[np.uint32], target: int) -> int:
    """Return the symbol `s` with `cdf[s] <= target < cdf[s + 1]`, for `target` in [0, TOTAL)."""
    low = 0
    high = cdf.size - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if cdf[middle] <= target:
            low = middle
        else:
            high = middle
    return low


@inner
def cdf_from_weights(weights: npt.NDArray[np.uint32], cdf: npt.NDArray[np.uint32]) -> None:
    """Scale integer `weights` to a distribution and write it to `cdf` (`uint32[n + 1]`), n < TOTAL.

    Every symbol gets one count, the others are shared in proportion to the weights by integer division, and
    what the divisions leave over goes to the first heaviest symbol. All weights may be zero.
    """
    n = weights.size
    sum_of_weights = np.int64(0)
    heaviest = 0
    for s in range(n):
        sum_of_weights += np.int64(weights[s])
        if weights[s] > weights[heaviest]:
            heaviest = s
    to_share = np.int64(TOTAL - n)
    left_over = to_share
    if sum_of_weights > 0:
        for s in range(n):
            left_over -= np.int64(weights[s]) * to_share // sum_of_weights
    running = np.int64(0)
    for s in range(n):
        cdf[s] = running
        running += 1
        if sum_of_weights > 0:
            running += np.int64(weights[s]) * to_share // sum_of_weights
        if s == heaviest:
            running += left_over
    cdf[n] = running
