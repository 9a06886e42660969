"""Predictors around the language model: they change its logits before a token is coded and learn from it afterwards.

`adjust` and `learn` are called once per token, strictly in coding order, by encoder and decoder alike; all lanes share
what is learned. Every number on the way is an integer, or float32 or float64 computed elementwise in a written order,
so an encoder and a decoder on other machines cannot disagree. docs/ensemble.md specifies it.

Knows which evidence there is and how its weights are numbered. Does not know text, coding, threads or the container.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.kernels.cdf import GROUP, total_bits
from nacz.kernels.compile import inner

from .beside import Beside, make_beside, slots_size
from .candidates import CLASSES, apply, candidate, learn_weights, make_candidates, share_out, tell, weigh
from .habits import AGES, GAIN, age, loss_of, make_habits
from .matches import FOLLOWERS, follow, make_matches
from .members import BIAS, BYTES, HABIT, MATCH, NGRAM, RECALL
from .ngrams import ORDERS, WAYS, count_up, hit, look_up, make_ngrams, slots_for
from .recall import LEAST, REMEMBERED, compare, make_recall, poll, remember
from .spelling import Spelling
from .transformer import Shape

RATE = 0.15  # of the weights of evidence
LIKELY = 128  # tokens that the language model holds for at least 1 in 128 are candidates

COUNTS, OTHERS = 6, 5  # classes of a count, of all other counts
STATES = COUNTS * OTHERS * 2
SETTINGS = ORDERS + 1 + 4  # by the longest context that hits, or by the match's length
LENGTH_CLASSES, MISS_CLASSES = 24, 4
AMOUNTS, PARTS, NEARS = 8, 8, 10
SURPRISES, RANKS = 5, 3
COSTS, BIASES = 64, 32
NAMES = ORDERS + 2  # what names a candidate first: the language model or recall, a context, a match

# First number of each kind of evidence.
AT_CONTEXT = 0
AT_BEST = AT_CONTEXT + SETTINGS * ORDERS * STATES
AT_HABIT = AT_BEST + ORDERS * CLASSES * COUNTS * OTHERS
AT_LENGTH = AT_HABIT + AGES * CLASSES * COUNTS
AT_FOLLOWED = AT_LENGTH + FOLLOWERS * LENGTH_CLASSES * MISS_CLASSES
AT_RECALL = AT_FOLLOWED + FOLLOWERS * CLASSES * MISS_CLASSES
AT_NEAR = AT_RECALL + AMOUNTS * PARTS * CLASSES
AT_SURPRISE = AT_NEAR + NEARS * PARTS * CLASSES
AT_NAMED = AT_SURPRISE + SURPRISES * 3 * CLASSES * RANKS
AT_COST = AT_NAMED + SETTINGS * NAMES * CLASSES
AT_BIAS = AT_COST + COSTS * RANKS
NUMBERS = AT_BIAS + BIASES * CLASSES


class Ensemble(NamedTuple):
    """All state of a segment. `members`: which predictors there are; clock int64[1]: tokens learned; surprise int64[2 *
    lanes]: classes of a lane's latest token and, in pairs, of the one before."""

    candidates: Any
    habits: Any
    ngrams: Any
    matches: Any
    recall: Any
    beside: Beside
    clock: Any
    surprise: Any
    members: int


# (lane starts, hidden states remembered from the step at hand on at most, shape) to an ensemble for one segment.
MakeEnsemble = Callable[[NDArray[np.int64], int, Shape], Ensemble]


def make_ensemble(
    members: int, starts: Any, rows: int, dim: int, vocab: int, preset: Any, normal: int = 0,
    spelling: Spelling | None = None,
) -> Ensemble:  # fmt: skip
    """A fresh ensemble for a segment whose lanes begin at starts[:-1] and which has starts[-1] tokens.

    `rows`: how many hidden states, from the first of the step at hand on, are remembered at most. `normal`: 1 where
    they have to be divided by their norm. spelling: of the vocabulary, which `bytes` needs. Absent members take no
    memory.
    """
    tokens, rows = int(starts[-1]), rows + len(starts) - 1  # a step more: see `seen_at`
    return Ensemble(
        candidates=make_candidates(vocab, preset),
        habits=make_habits(vocab),
        ngrams=make_ngrams(tokens if members & NGRAM else 1),
        matches=make_matches(starts if members & MATCH else np.zeros(2, np.int64)),
        recall=make_recall(*((tokens, rows, dim) if members & RECALL else (1, 1, 4)), vocab, normal),
        beside=make_beside(spelling if members & BYTES else None, tokens, len(starts) - 1),
        clock=np.zeros(1, np.int64),
        surprise=np.zeros(2 * (len(starts) - 1), np.int64),
        members=members,
    )


def memory(members: int, tokens: int, lanes: int, dim: int, vocab: int) -> int:
    """About how many bytes a decoder's ensemble takes."""
    needed = 32 * vocab
    if members & NGRAM:
        needed += slots_for(tokens) * (8 + 5 * WAYS)
    if members & MATCH:
        needed += 16 * tokens
    if members & BYTES:
        needed += slots_size(tokens) + 40 * vocab
    if members & RECALL:
        needed += min(tokens, REMEMBERED + 2 * lanes) * (dim + 12 + 4 * lanes)
    return needed


@inner
def seen_at(step: int, lanes: int) -> Any:
    """How many hidden states may be recalled in a step: those of all lanes, but the step before it is left out.

    So lanes can be predicted before the tokens of others in the step before are known.
    """
    return max(step - 1, 0) * lanes


@inner
def count_class(n: Any) -> Any:
    """1, 2, 3, 4 to 6, 7 to 14, more."""
    return n - 1 if n <= 3 else 3 if n <= 6 else 4 if n <= 14 else 5


@inner
def others_class(n: Any) -> Any:
    """0, 1, 2 to 3, 4 to 8, more."""
    return n if n <= 1 else 2 if n <= 3 else 3 if n <= 8 else 4


@inner
def _from_contexts(e: Any, longest: int, setting: int) -> None:
    c, g = e.candidates, e.ngrams
    for o in range(longest, -1, -1):
        if not hit(g, o):
            continue
        slot = g.slot[o]
        total = np.int64(g.total[slot])
        for k in range(WAYS):
            count = np.int64(g.count[slot * WAYS + k])
            if count == 0:
                break
            before = c.size[0]
            i = candidate(c, g.token[slot * WAYS + k], o)
            if i < 0:
                continue
            state = count_class(count) * OTHERS + others_class(max(total - count, 0))
            if i == before:
                tell(c, i, AT_BEST + ((o * CLASSES + c.kind[i]) * COUNTS * OTHERS + state))
            tell(c, i, AT_CONTEXT + (setting * ORDERS + o) * STATES + 2 * state + (1 if k == 0 else 0))


@inner
def _from_matches(e: Any, lane: int, tokens: Any) -> None:
    c, m = e.candidates, e.matches
    for f in range(FOLLOWERS):
        place = m.place[lane * FOLLOWERS + f]
        if place < 0:
            continue
        i = candidate(c, tokens[place], ORDERS)
        if i < 0:
            continue
        n, misses = m.length[lane * FOLLOWERS + f], min(m.misses[lane * FOLLOWERS + f], MISS_CLASSES - 1)
        n = n if n < 16 else min(16 + (n - 16) // 8, LENGTH_CLASSES - 1)
        tell(c, i, AT_LENGTH + (f * LENGTH_CLASSES + n) * MISS_CLASSES + misses)
        tell(c, i, AT_FOLLOWED + (f * CLASSES + c.kind[i]) * MISS_CLASSES + misses)


@inner
def surprise_class(freq: Any, bits: Any) -> Any:
    """0 to 4 for a token that was coded with a probability from 1/2 on, 1/8, 1/64, 1/1,024, or less.

    The probability is freq / 2^bits.
    """
    share = freq >> (bits - 10)  # 1,024 of all
    return 0 if share >= 512 else 1 if share >= 128 else 2 if share >= 16 else 3 if share >= 1 else 4


@inner
def part_class(share: float) -> Any:
    """Class of a share of all votes."""
    if share < 0.3:
        return 0 if share < 0.02 else 1 if share < 0.05 else 2 if share < 0.15 else 3
    return 4 if share < 0.5 else 5 if share < 0.7 else 6 if share < 0.9 else 7


@inner
def _from_memory(e: Any, seen: int, cosines: Any) -> None:
    c, r = e.candidates, e.recall
    total, top = poll(r, seen, cosines)
    near: Any = np.int64((top - LEAST) * np.float32(25.0))
    near = near if near < NEARS else NEARS - 1
    amount = 0
    while amount < AMOUNTS - 1 and total >> (19 + amount) > 0:
        amount += 1
    for k in range(r.size[0]):
        i = candidate(c, r.voted[k], -1)
        if i < 0:
            continue
        part = part_class(np.float64(r.vote[k]) / np.float64(total)) if total > 0 else 0
        tell(c, i, AT_RECALL + (amount * PARTS + part) * CLASSES + c.kind[i])
        tell(c, i, AT_NEAR + (near * PARTS + part) * CLASSES + c.kind[i])


@inner
def _likely(c: Any, n: int) -> None:
    least = np.int32(min(c.scale[0] // LIKELY, 1 << 30))
    e, high = c.e, c.high
    for g in range(n // GROUP):
        if high[g] > least:
            for i in range(g * GROUP, (g + 1) * GROUP):
                if e[i] > least:
                    candidate(c, i, -1)


@inner
def cost_class(scale: Any, e: Any) -> Any:
    """What a token costs by the language model, in quarters of a bit, cut: about 4 log2(scale / e)."""
    if e <= 0:
        return COSTS - 1
    v, bits = scale * 4 // e, 0
    while v > 7:
        v >>= 1
        bits += 1
    return min(4 * bits + v - 4, COSTS - 1)


@inner
def bias_class(bias: Any) -> Any:
    """A bias in quarters of a bit, rounded down, from -2 bits on: 0 to 31."""
    return min(np.int64(max(bias * np.float32(1.0 / 16384.0) + np.float32(8.0), np.float32(0.0))), BIASES - 1)


@inner
def _from_habits(e: Any, lane: int, setting: int) -> None:
    c, now = e.candidates, e.clock[0]
    first, second = -1, -1
    for i in range(c.size[0]):
        if first < 0 or c.e[c.token[i]] > c.e[c.token[first]]:
            first = i
    for i in range(c.size[0]):
        if i != first and (second < 0 or c.e[c.token[i]] > c.e[c.token[second]]):
            second = i
    surprise = e.surprise[2 * lane] * 3 + e.surprise[2 * lane + 1]
    for i in range(c.size[0]):
        token = np.int64(c.token[i])
        times = count_class(max(np.int64(e.habits.count[token]), 1))
        tell(c, i, AT_HABIT + (age(e.habits, token, now) * CLASSES + c.kind[i]) * COUNTS + times)
        rank = 0 if i == first else 1 if i == second else 2
        tell(c, i, AT_SURPRISE + (surprise * CLASSES + c.kind[i]) * RANKS + rank)
        tell(c, i, AT_COST + cost_class(c.scale[0], np.int64(c.e[token])) * RANKS + rank)
        tell(c, i, AT_BIAS + bias_class(e.habits.bias[token]) * CLASSES + c.kind[i])
        tell(c, i, AT_NAMED + (setting * NAMES + c.best[i] + 1) * CLASSES + c.kind[i])


@inner
def remember_row(e: Any, entry: int, rows: Any, row: int, token: Any) -> None:
    """Remember the key of row number `row` of `rows` as entry `entry`, with the token that comes after it."""
    if e.members & RECALL:
        remember(e.recall, entry, rows.key, row, rows.key_zero[row], rows.key_step[row])
        e.recall.token[entry % e.recall.columns] = token


@inner
def recall_rows(kern: Any, e: Any, known: int, first: int, m: int, rows: Any, cosines: Any) -> None:
    """Cosines of m keys from `first` on with the `known` entries: float32 flat [m, width]."""
    if e.members & RECALL and known > 0:
        d = e.recall.dim
        compare(kern, e.recall, known, m, rows.key[first * d :], rows.key_zero[first:], rows.key_step[first:], cosines)


@inner
def adjust(e: Any, n: int, lane: int, at: int, start: int, seen: int, tokens: Any, cosines: Any, fixed: Any) -> None:
    """Change what the logits (int32[n], 16 fraction bits) say of token number `at` of all, in `lane`, from `start` on.

    `frequencies` makes numbers of it. tokens int32: those known so far, lane after lane. seen: hidden states that may
    be recalled; cosines: float32, with them (anything if there is no memory).
    """
    c, members = e.candidates, e.members
    c.scale[0], c.top[0] = weigh(n, fixed, e.habits.bias, c.e, c.high)
    longest, setting = -1, 0
    if members & NGRAM:
        look_up(e.ngrams, tokens, at, at - start)
        for o in range(ORDERS):
            if hit(e.ngrams, o):
                longest = o
        setting = longest + 1
    if members & MATCH:
        for f in range(FOLLOWERS):
            k = lane * FOLLOWERS + f
            if e.matches.place[k] >= 0:
                n_equal = e.matches.length[k]
                far = 0 if n_equal < 8 else 1 if n_equal < 16 else 2 if n_equal < 32 else 3
                setting = max(setting, ORDERS + 1 + far)
    if members & NGRAM:
        _from_contexts(e, longest, setting)
    if members & MATCH:
        _from_matches(e, lane, tokens)
    if members & RECALL and seen > 0:
        _from_memory(e, seen, cosines)
    if members & HABIT:
        _likely(c, n)
        _from_habits(e, lane, setting)
    apply(c, fixed, e.habits.bias)


@inner
def frequencies(e: Any, n: int, freq: Any, sums: Any) -> None:
    """After `adjust`: frequencies of all tokens, int32[n], and their sums by 64."""
    loss = loss_of(n) if e.members & BIAS else np.float32(0.0)
    share_out(e.candidates, n, e.habits.bias, loss, freq, sums)


@inner
def learn(e: Any, lane: int, at: int, token: Any, tokens: Any, freq: Any) -> None:
    """tokens[at] = `token` was coded with `freq` (int32[n]) as `frequencies` made them."""
    members = e.members
    learn_weights(e.candidates, freq, token, RATE)
    if members & BIAS:
        e.habits.bias[token] += GAIN
    if members & NGRAM:
        count_up(e.ngrams, token)
    if members & MATCH:
        follow(e.matches, lane, at, tokens)
    e.surprise[2 * lane + 1] = (e.surprise[2 * lane] + 1) // 2
    e.surprise[2 * lane] = surprise_class(np.int64(freq[token]), total_bits(freq.size))
    e.clock[0] += 1
    e.habits.last[token] = e.clock[0]
    e.habits.count[token] += 1
