"""Guesses at the tokens to come, so that a decoder can run the network over several positions of a lane at once.

A decoder that knows a lane's past only gets one row of logits for each pass over weights, keys and values. While
n-grams and matches are sure of what follows, it forwards their guesses along with the known token. Rows behind a right
guess are what they would have been; rows behind a wrong one are thrown away (as drafts are in speculative decoding,
arXiv 2211.17192, with the coded stream for a judge). So guesses cost or save time and cannot change a bit, and an
encoder, which knows its tokens, makes none.

Knows tokens, the ensemble's n-grams and matches, and how often each kind of guess was right. Does not know logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.compile import inner

from .ensemble import COUNTS, LENGTH_CLASSES, MISS_CLASSES, OTHERS, count_class, others_class
from .matches import FOLLOWERS, lane_of
from .members import MATCH, NGRAM
from .ngrams import ORDERS, WAYS, hit, look_up

DEPTH = 7  # guesses that follow each other
BYTES_AHEAD = 32 << 20  # of logits that are kept for rows ahead, over all lanes
AT_MATCH = ORDERS * COUNTS * OTHERS
ONE = 1 << 16
KINDS = AT_MATCH + FOLLOWERS * LENGTH_CLASSES * MISS_CLASSES


class Drafts(NamedTuple):
    """guess int32[lanes * (depth + 1)], kind int64[the same], count int64[lanes]: a lane's guesses in order and of what
    kinds they are, -1 behind the last; right, asked int64[KINDS]: how often each was, those before it being right.
    depth: most guesses; least: how likely, of ONE, all guesses up to one have to be for it to be made."""

    guess: Any
    kind: Any
    count: Any
    right: Any
    asked: Any
    depth: int
    least: int


def make_drafts(lanes: int, together: int, vocab: int, members: int) -> Drafts:
    """Nothing guessed yet. together: lanes whose rows are forwarded together."""
    room = BYTES_AHEAD // (4 * vocab * lanes) - 1
    depth = max(0, min(DEPTH, room)) if members & (NGRAM | MATCH) else 0
    return Drafts(
        np.zeros(lanes * (depth + 1), np.int32),
        np.full(lanes * (depth + 1), -1, np.int64),
        np.zeros(lanes, np.int64),
        np.ones(KINDS, np.int64),
        np.full(KINDS, 2, np.int64),
        depth,
        least_for(together),
    )


def least_for(together: int) -> int:
    """How likely a guess has to be, of ONE, to save more than it costs. A lane alone pays for a pass over all weights
    with each token; many share it, and a row too many costs most of what a row saved is worth (docs/experiments.md)."""
    return ONE // 5 if together == 1 else ONE * 2 // 5 if together == 2 else ONE * 7 // 10


@inner
def judge(d: Any, place: int, token: Any) -> Any:
    """Whether the guess at `place` was that `token` comes, which it did."""
    kind, right = d.kind[place], d.guess[place] == token
    if kind < 0:
        return False
    d.asked[kind] += 1
    d.right[kind] += np.int64(right)
    return right


@inner
def _matched(e: Any, lane: int, ahead: int, tokens: Any) -> Any:
    """(token, kind) that the better follower of a lane, `ahead` tokens further on, says; kind -1 if it says nothing."""
    m = e.matches
    for f in range(FOLLOWERS - 1, -1, -1):
        k = lane * FOLLOWERS + f
        place = m.place[k]
        if place < 0:
            continue
        place += ahead
        if place >= m.start[m.start.size - 1] or place >= m.frontier[lane_of(m.start, place)]:
            continue
        n, misses = m.length[k] + ahead, min(m.misses[k], MISS_CLASSES - 1)
        n = n if n < 16 else min(16 + (n - 16) // 8, LENGTH_CLASSES - 1)
        return np.int64(tokens[place]), AT_MATCH + (f * LENGTH_CLASSES + n) * MISS_CLASSES + misses
    return np.int64(0), np.int64(-1)


@inner
def _counted(e: Any, at: int, past: int, tokens: Any) -> Any:
    """(token, kind) that came most often after the longest context known; kind -1 if none is."""
    g = e.ngrams
    look_up(g, tokens, at, past)
    for o in range(ORDERS - 1, -1, -1):
        if not hit(g, o):
            continue
        slot = g.slot[o]
        best, most = 0, np.int64(0)
        for k in range(WAYS):
            count = np.int64(g.count[slot * WAYS + k])
            if count == 0:
                break
            if count > most:
                best, most = k, count
        others = others_class(max(np.int64(g.total[slot]) - most, 0))
        kind = (o * COUNTS + count_class(most)) * OTHERS + others
        return np.int64(g.token[slot * WAYS + best]), np.int64(kind)
    return np.int64(0), np.int64(-1)


@inner
def draft(d: Any, e: Any, lane: int, at: int, start: int, end: int, tokens: Any) -> None:
    """Guess what tokens[at] and the following ones of a lane from `start` to before `end` will be.

    Guesses stand in `tokens` afterwards, where tokens that are not known have their places. Must not run while another
    thread uses the ensemble.
    """
    base = lane * (d.depth + 1)
    d.count[lane] = 0
    for j in range(d.depth + 1):
        d.kind[base + j] = -1
    chance, following = np.int64(ONE), (e.members & MATCH) != 0
    for j in range(min(d.depth, end - at)):
        token, kind, sure = np.int64(0), np.int64(-1), np.int64(0)
        if e.members & NGRAM:
            token, kind = _counted(e, at + j, at + j - start, tokens)
            if kind >= 0:
                sure = ONE * d.right[kind] // d.asked[kind]
        if following:
            other, other_kind = _matched(e, lane, j, tokens)
            if other_kind >= 0 and ONE * d.right[other_kind] // d.asked[other_kind] >= sure:
                token, kind = other, other_kind
                sure = ONE * d.right[kind] // d.asked[kind]
            following = other_kind >= 0 and other == token
        if kind < 0:
            return
        d.guess[base + j], d.kind[base + j] = token, kind
        chance = chance * sure // ONE
        if chance < d.least:
            return
        tokens[at + j] = token
        d.count[lane] = j + 1
