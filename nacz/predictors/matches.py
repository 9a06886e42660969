"""Where the last tokens occurred before, anywhere in the segment, and what came after them there.

Two followers, for contexts of at least 5 and of at least 12 tokens: each lane's follower points to the token after the
latest earlier occurrence of its context and moves on with it, and after a mismatch still for a while.

Knows tokens. Does not know logits or weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.compile import inner

from .ngrams import stir

LENGTHS = (5, 12)
FOLLOWERS = len(LENGTHS)
LONGEST = 64
PATIENCE = 8  # mismatches until a follower gives up
MOST_HEADS = 20  # log2


class Matches(NamedTuple):
    """head int32[2 << bits]: latest place after a hashed context, or -1. Per lane and follower: place int64 (a token's
    index, or -1), length and misses int64. frontier int64[lanes]: index of the first token not known. start int64[lanes
    + 1]: where lanes begin."""

    head: Any
    place: Any
    length: Any
    misses: Any
    frontier: Any
    start: Any
    bits: int


def make_matches(starts: Any) -> Matches:
    """Followers of lanes that begin at starts[:-1]; starts[-1] is the number of tokens."""
    lanes = len(starts) - 1
    bits = min(MOST_HEADS, max(8, int(starts[-1]).bit_length()))
    return Matches(
        head=np.full(FOLLOWERS << bits, -1, np.int32),
        place=np.full(lanes * FOLLOWERS, -1, np.int64),
        length=np.zeros(lanes * FOLLOWERS, np.int64),
        misses=np.zeros(lanes * FOLLOWERS, np.int64),
        frontier=np.array(starts[:-1], np.int64),
        start=np.array(starts, np.int64),
        bits=bits,
    )


@inner
def lane_of(start: Any, at: Any) -> Any:
    """The lane that holds token number `at`."""
    low, high = 0, start.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if start[middle] <= at:
            low = middle
        else:
            high = middle
    return low


@inner
def follow(m: Any, lane: int, at: int, tokens: Any) -> None:
    """tokens[at] of `lane` has become known: move the followers on, and let them look for a context again."""
    start, frontier = m.start, m.frontier
    frontier[lane] = at + 1
    for f in range(FOLLOWERS):
        k = lane * FOLLOWERS + f
        place = m.place[k]
        if place >= 0:
            if tokens[place] == tokens[at]:
                m.length[k] += 1
            else:
                m.length[k] = 0
                m.misses[k] += 1
            place += 1
            if place >= start[start.size - 1] or place >= frontier[lane_of(start, place)] or m.misses[k] > PATIENCE:
                place = -1
            m.place[k] = place
        need = LENGTHS[f]
        if at + 1 - start[lane] < need:
            continue
        h = np.uint64(0)
        for i in range(need):
            h = stir(h, np.uint64(tokens[at - i] + 1))
        slot = (np.int64(f) << m.bits) + np.int64(h >> np.uint64(64 - m.bits))
        if place < 0 or m.length[k] < need:
            found = np.int64(m.head[slot])
            if found >= 0:
                first = lane_of(start, found)
                if found < frontier[first]:
                    n = 0
                    while (
                        n < LONGEST and found - 1 - n >= start[first] and at - n >= start[lane]
                        and tokens[found - 1 - n] == tokens[at - n]
                    ):  # fmt: skip
                        n += 1
                    if n >= need and (place < 0 or n > m.length[k]):
                        m.place[k] = found
                        m.length[k] = n
                        m.misses[k] = 0
        m.head[slot] = at + 1 if at + 1 < start[lane + 1] else -1
