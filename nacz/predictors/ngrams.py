"""Which tokens followed the last 1 to 6 tokens before, anywhere in the segment: counts in hash tables of bounded size.

A slot belongs to one context of one order and remembers up to eight tokens that followed it, the latest first, with
how often each did, and how often the context was seen at all. Of two slots that a context may have, it takes the less
used one when it comes anew.

Knows tokens and hashes. Does not know logits or weights; what it finds is told to nacz.predictors.candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.compile import inner

ORDERS = 6
WAYS = 8  # tokens that a context remembers
MOST_SLOTS = 18  # log2, per order: 17 MB each
MULTIPLIER = 0x9E3779B97F4A7C15


class Ngrams(NamedTuple):
    """Tables of all orders, one after another: check uint32, total int32 per slot; token int32, count uint8 per way.

    key uint64[ORDERS], slot int64[ORDERS]: of the position at hand. bits: log2 of the slots per order.
    """

    check: Any
    total: Any
    token: Any
    count: Any
    key: Any
    slot: Any
    bits: int


def slots_for(tokens: int) -> int:
    """Slots of all orders for a segment of `tokens` tokens."""
    return ORDERS << min(MOST_SLOTS, max(8, (2 * tokens).bit_length()))


def make_ngrams(tokens: int) -> Ngrams:
    """Empty tables for a segment of `tokens` tokens."""
    slots = slots_for(tokens)
    return Ngrams(
        check=np.zeros(slots, np.uint32),
        total=np.zeros(slots, np.int32),
        token=np.zeros(slots * WAYS, np.int32),
        count=np.zeros(slots * WAYS, np.uint8),
        key=np.zeros(ORDERS, np.uint64),
        slot=np.zeros(ORDERS, np.int64),
        bits=(slots // ORDERS).bit_length() - 1,
    )


@inner
def stir(h: Any, word: Any) -> Any:
    """One more word into a hash; both uint64."""
    h = (h + word + np.uint64(1)) * np.uint64(MULTIPLIER)
    return h ^ (h >> np.uint64(29))


@inner
def look_up(g: Any, tokens: Any, at: int, past: int) -> None:
    """Find the slots of the contexts that end before tokens[at], `past` tokens into its lane. A context that reaches
    beyond the lane's first token takes that for one more token, and is not used beyond it."""
    h = np.uint64(0)
    for o in range(ORDERS):
        word = np.uint64(tokens[at - 1 - o] + 1) if o < past else np.uint64(0)
        h = stir(h, word)
        g.key[o] = h
        first = (np.int64(o) << g.bits) + np.int64(h >> np.uint64(64 - g.bits))
        check = np.uint32(h & np.uint64(0xFFFFFFFF))
        slot = first
        if g.check[first] != check or g.total[first] == 0:
            other = first ^ 1
            if g.total[other] > 0 and g.check[other] == check:
                slot = other
            elif g.total[other] < g.total[first]:
                slot = other
        g.slot[o] = slot if o <= past else -1


@inner
def hit(g: Any, o: int) -> Any:
    """Whether the slot of order o + 1 is this context's own."""
    slot = g.slot[o]
    return slot >= 0 and g.total[slot] > 0 and g.check[slot] == np.uint32(g.key[o] & np.uint64(0xFFFFFFFF))


@inner
def count_up(g: Any, token: Any) -> None:
    """Remember that `token` followed the contexts of `look_up`."""
    for o in range(ORDERS):
        slot = g.slot[o]
        if slot < 0:
            continue
        if not hit(g, o):
            g.check[slot] = np.uint32(g.key[o] & np.uint64(0xFFFFFFFF))
            g.total[slot] = 0
            g.count[slot * WAYS : (slot + 1) * WAYS] = 0
        tokens, counts = g.token[slot * WAYS : (slot + 1) * WAYS], g.count[slot * WAYS : (slot + 1) * WAYS]
        k = 0
        while k < WAYS and counts[k] > 0 and tokens[k] != token:
            k += 1
        new: Any = 1
        if k < WAYS and counts[k] > 0:
            new = min(np.int64(counts[k]) + 1, 255)
        elif k == WAYS:
            # Full: the rarest of the older half goes, of equals the oldest.
            k = WAYS - 1
            for i in range(WAYS - 2, WAYS // 2 - 1, -1):
                if counts[i] < counts[k]:
                    k = i
        for i in range(k, 0, -1):
            tokens[i] = tokens[i - 1]
            counts[i] = counts[i - 1]
        tokens[0] = token
        counts[0] = new
        g.total[slot] = min(g.total[slot] + 1, 1 << 30)
