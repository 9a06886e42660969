"""From logits to an integer distribution of total 2^24 or 2^28 in which every symbol has at least 1.

Frequencies are floor(e * r) + 1 with integer exponentials e and one float32 factor r; what is missing to the total
goes to the most probable symbol (the first of equals). The floor of one costs log2(1 / (1 - V / total)), 0.004 bit per
token for 49,152 symbols, 0.0014 for 262,144. Sums of 64 neighbours are kept, so that a cumulative frequency or a search
costs V / 64 additions.

Knows a row of numbers. Does not know tokens, models or the coder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nacz.kernels.compile import compiled
from nacz.kernels.ops import iadd, imax, isub, to_float, trunc
from nacz.kernels.rows import int_exp2

TOTAL_BITS, WIDE_BITS = 24, 28  # the total of a distribution is 2 to this; more where there are many to keep above 0
NARROW = 1 << 16  # numbers of which a total of 2^24 is enough
FRACTION = 16  # fixed-point bits of a logit in units of log2
LIMIT = np.float32(4096.0)  # |logit| in units of log2; conversion to int32 stays defined
GROUP = 64


@compiled
def total_bits(n: Any) -> Any:
    """The total of a distribution over n numbers is 2 to this.

    Each number has at least 1, which costs n / total of all probability: at most 2^-8 with the first, 2^-10 of 2^18.
    """
    return TOTAL_BITS if n <= NARROW else WIDE_BITS


@compiled
def fix_logits(n: int, logits: Any, at: int, fixed: Any) -> None:
    """float32 logits in units of log2 to int32 fixed point with 16 fraction bits, clamped to +-4096."""
    row = logits[at : at + n]
    for i in range(n):
        v = min(max(row[i], -LIMIT), LIMIT)
        fixed[i] = trunc(v * np.float32(65536.0))


@compiled
def spread(n: int, fixed: Any, freq: Any, group_sum: Any) -> None:
    """Fixed-point logits (int32[n], n a multiple of 64, at most 2^20) to frequencies.

    freq: int32[n], sums to 2^total_bits(n), each at least 1. group_sum: int32[n / 64], the sums of 64 neighbours.
    """
    groups, room = n // GROUP, 1 << total_bits(n)
    top = np.int32(-(1 << 31))
    for i in range(n):
        top = imax(top, fixed[i])
    total = np.int64(0)
    best = -1
    for g in range(groups):
        some = np.int32(0)
        high = np.int32(0)
        for i in range(g * GROUP, (g + 1) * GROUP):
            e = int_exp2(isub(top, fixed[i]), FRACTION)
            freq[i] = e
            some = iadd(some, e)
            high = imax(high, e)
        total += np.int64(some)
        if best < 0 and high > 8388000:  # one is 2^23 less the polynomial's error at 0
            for i in range(g * GROUP, (g + 1) * GROUP):
                if best < 0 and fixed[i] == top:
                    best = i
    r = np.float32(np.float64(room - n) / np.float64(total))
    given = np.int32(0)
    for g in range(groups):
        some = np.int32(0)
        for i in range(g * GROUP, (g + 1) * GROUP):
            f = iadd(trunc(to_float(freq[i]) * r), 1)
            freq[i] = f
            some = iadd(some, f)
        group_sum[g] = some
        given = iadd(given, some)
    # r is rounded, so the rest can be a few units below zero; the largest frequency is at least room / n - 1.
    rest = isub(np.int32(room), given)
    freq[best] = iadd(freq[best], rest)
    group_sum[best // GROUP] = iadd(group_sum[best // GROUP], rest)


@compiled
def interval(freq: Any, group_sum: Any, symbol: Any) -> Any:
    """(cumulative frequency below `symbol`, its frequency)."""
    low = np.int64(0)
    g = symbol // GROUP
    for i in range(g):
        low += group_sum[i]
    for i in range(g * GROUP, symbol):
        low += freq[i]
    return low, np.int64(freq[symbol])


@compiled
def find(freq: Any, group_sum: Any, target: Any) -> Any:
    """(symbol, cumulative frequency below it, its frequency) of the symbol whose interval holds `target`."""
    low = np.int64(0)
    g = 0
    while low + group_sum[g] <= target:
        low += group_sum[g]
        g += 1
    i = g * GROUP
    while low + freq[i] <= target:
        low += freq[i]
        i += 1
    return i, low, np.int64(freq[i])
