"""Tokens as the decisions that spell them: coded one after another, with what `beside` expects of each.

Frequencies of tokens are summed in the order of the spelling, so that those of all tokens that a decision leaves are
a difference of two sums. A decision that bytes have no part in, between tokens of the same bytes, is coded by these
alone.

Knows a vocabulary's decisions, frequencies and the range coder. Does not know contexts or weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nacz.coder.range_coder import decode_advance, decode_target
from nacz.kernels.cdf import GROUP, total_bits
from nacz.kernels.compile import inner
from nacz.kernels.ops import iadd

from .beside import CONTEXTS, END, expect, find_slots, learn_decision, look, take_in
from .bytemodel.slots import remember
from .spelling import SAME


@inner
def _sort(b: Any, freq: Any) -> None:
    """Frequencies in the order of the spelling."""
    order, found, below = b.spelling.order, b.sorted, b.below
    total = np.int64(0)
    for g in range(order.size // GROUP):
        some = np.int32(0)
        for i in range(g * GROUP, (g + 1) * GROUP):
            f = freq[order[i]]
            found[i] = f
            some = iadd(some, f)
        below[g] = total
        total += np.int64(some)


@inner
def _below(b: Any, i: Any) -> Any:
    """Sum of the frequencies before sorted token i."""
    found, sum_ = b.sorted, b.below[i // GROUP]
    for k in range(i - i % GROUP, i):
        sum_ += found[k]
    return sum_


@inner
def _settle(b: Any, p: Any, bit: int, state: Any, stream: Any, bits: int, low: Any, freq: Any, at: int) -> Any:
    """Decode a bit that is 1 with p of 2^bits, or, where it is known (not below 0), write its interval to low[at]."""
    if bit < 0:
        bit = 1 if np.int64(decode_target(state, stream, bits)) < p else 0
        decode_advance(state, stream, 0 if bit else p, p if bit else (1 << bits) - p, bits)
    else:
        low[at] = 0 if bit else p
        freq[at] = p if bit else (1 << bits) - p
    return bit


@inner
def spell(
    b: Any, lane: int, token: Any, all_freq: Any, state: Any, stream: Any, low: Any, freq: Any, at: int
) -> Any:
    """Write the decisions that lead to `token`, expected with all_freq (int32[vocab]), to low and freq (uint32) from
    `at` on, or, if it is below 0, decode it; the lane takes in its bytes. Returns (token, `at` of the next one)."""
    s = b.spelling
    bits = total_bits(all_freq.size)
    _sort(b, all_freq)
    first, last = np.int64(0), np.int64(all_freq.size)  # of the sorted tokens that are left
    before, after = np.int64(0), np.int64(1) << bits  # sums of frequencies before them and up to their end
    node = s.root[0]
    known = token >= 0
    d = 0
    c0, half = 0, 1
    stage = 0  # 0: between bytes, else number of the next bit
    size = np.int64(0)
    if known:
        size = s.begin[token + 1] - s.begin[token]
    while True:
        alone = last - first == 1
        where = np.int64(-1) if alone else np.int64(s.where[node])
        some = np.int64(s.order[first])
        if stage == 0 and (where == SAME or where == 0):
            # Which of equal tokens, or whether it has bytes at all: that bytes do not say.
            middle = _below(b, np.int64(node))
            p = ((after - middle) << bits) // (after - before)
            p = min(max(p, 1), (1 << bits) - 1)
            bit: Any = -1
            if known:
                bit = 1 if (_is_behind(s, token, node) if where == SAME else size > 0) else 0
            bit = _settle(b, p, bit, state, stream, bits, low, freq, at)
            at += 1
            if bit:
                first, before, node = np.int64(node), middle, np.int64(s.high[node])
            else:
                last, after, node = np.int64(node), middle, np.int64(s.low[node])
            continue
        if stage == 0:
            if alone and s.begin[some + 1] - s.begin[some] == d:
                return some, at
            look(b, lane)
            find_slots(b, 0)
            c0, half = 1, 1
        number = stage
        kind = 0 if number == 0 else min(d + 1, 3)
        off = END if number == 0 else 1 + half
        decides = where == 9 * d + number
        bit = -1
        if number > 0:
            if known:
                bit = (np.int64(s.text[s.begin[token] + d]) >> (8 - number)) & 1
            elif not decides:
                bit = (np.int64(s.text[s.begin[some] + d]) >> (8 - number)) & 1
        elif known:
            bit = 1 if size > d else 0
        if decides:
            middle = _below(b, np.int64(node))
            p = expect(b, lane, off, kind, number, c0 if number > 0 else 0, after - middle, middle - before)
            bit = _settle(b, p << (bits - 22), bit, state, stream, bits, low, freq, at)
            at += 1
            learn_decision(b, bit, p)
            if bit:
                first, before, node = np.int64(node), middle, np.int64(s.high[node])
            else:
                last, after, node = np.int64(node), middle, np.int64(s.low[node])
        if number > 0 or decides:
            for i in range(CONTEXTS):
                remember(b.slots, b.base[i] + off, bit, b.next_state)
        if number == 0:
            if decides and bit == 0:
                continue  # it ends here, and is alone or the first of equals
            stage = 1
            continue
        c0, half, stage = 2 * c0 + bit, 2 * half + bit, stage + 1
        if stage == 5:
            half = 1
            find_slots(b, c0 - 15)
        elif stage == 9:
            take_in(b, lane, c0 & 0xFF)
            stage = 0
            d += 1


@inner
def _is_behind(s: Any, token: Any, node: Any) -> Any:
    """Whether a token, one of equals, is sorted token number `node` or one after it: equals are in order."""
    return token >= np.int64(s.order[node])
