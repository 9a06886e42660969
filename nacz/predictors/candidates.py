"""The tokens that the ensemble has an opinion on at one position, and a learned weight for every kind of evidence.

Evidence is a statement like "the context of order 3 was followed by this token twice and by others once". Each such
statement has a number and each number one weight, in bits of logit, that starts from a preset and is learned by
gradient: the derivative of -log2 p by a weight is the sum, over the candidates that the statement holds for, of p - 1
for the token that comes and p for others. Only candidates' logits change; softmax does not see what all logits share.

Knows logits, probabilities and numbers of statements. Does not know what they say, nor where they come from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.cdf import FRACTION, GROUP, total_bits
from nacz.kernels.compile import inner
from nacz.kernels.ops import iadd, imax, isub, to_float, trunc
from nacz.kernels.rows import int_exp2

MOST = 256  # candidates at a position
MOST_EVIDENCE = 2048
LIMIT = 24.0  # bits that a candidate's logit may change by

# floor(8 / p) up to these: how probable the language model holds a token, in thirteen classes.
INVERSE = (9, 12, 16, 24, 32, 64, 128, 256, 1024, 4096, 1 << 15, 1 << 18)
CLASSES = len(INVERSE) + 1


class Candidates(NamedTuple):
    """Candidates and evidence of one position, and the weights of all evidence.

    token int32[MOST]: candidates in order of appearance. place int32[vocab]: a token's number among them or -1. kind
    int32[MOST]: the language model's class of a candidate. best int32[MOST]: the source that named it first, or -1.
    about, what int32[MOST_EVIDENCE]: number of a candidate, number of a weight. size int64[2]: candidates, evidence.
    change float64[MOST]: bits added. share int64[MOST]: exponentials after the change, of the same unit as `e`.
    weight, slope float64[numbers]: learned weights; sums of their squared gradients. e int32[vocab]: exponentials of
    the logits; high int32[vocab / 64]: the largest of each 64; scale int64[1]: their sum; top int32[1]: the largest
    logit.
    """

    token: Any
    place: Any
    kind: Any
    best: Any
    about: Any
    what: Any
    size: Any
    change: Any
    share: Any
    weight: Any
    slope: Any
    e: Any
    high: Any
    scale: Any
    top: Any


def make_candidates(vocab: int, preset: Any) -> Candidates:
    """No candidates yet; weights and slopes from `preset` (float64[2, numbers])."""
    return Candidates(
        token=np.zeros(MOST, np.int32),
        place=np.full(vocab, -1, np.int32),
        kind=np.zeros(MOST, np.int32),
        best=np.zeros(MOST, np.int32),
        about=np.zeros(MOST_EVIDENCE, np.int32),
        what=np.zeros(MOST_EVIDENCE, np.int32),
        size=np.zeros(2, np.int64),
        change=np.zeros(MOST, np.float64),
        share=np.zeros(MOST, np.int64),
        weight=preset[0].copy(),
        slope=preset[1].copy(),
        e=np.zeros(vocab, np.int32),
        high=np.zeros(vocab // GROUP, np.int32),
        scale=np.zeros(1, np.int64),
        top=np.zeros(1, np.int32),
    )


@inner
def weigh(n: int, fixed: Any, bias: Any, e: Any, high: Any) -> Any:
    """Logits, int32 of 16 fraction bits, to e[i] = 2^23 * 2^(logit[i] - largest), int32; returns (sum of e, largest).

    A logit is fixed[i] + bias[i] (float32), cut to an integer. n: a multiple of 64. high: int32[n / 64], the largest of
    each 64.
    """
    top = np.int32(-(1 << 31))
    for i in range(n):
        top = imax(top, iadd(fixed[i], trunc(bias[i])))
    total = np.int64(0)
    for g in range(n // GROUP):
        some, best = np.int32(0), np.int32(0)
        for i in range(g * GROUP, (g + 1) * GROUP):
            v = int_exp2(isub(top, iadd(fixed[i], trunc(bias[i]))), FRACTION)
            e[i] = v
            some = iadd(some, v)
            best = imax(best, v)
        high[g] = best
        total += np.int64(some)
    return total, top


@inner
def candidate(c: Any, token: Any, source: int) -> Any:
    """The number of `token` among the candidates; it becomes one, first named by `source`, if there is room. Or -1."""
    at = np.int64(c.place[token])
    if at >= 0:
        return at
    at = c.size[0]
    if at >= MOST:
        return np.int64(-1)
    c.size[0] = at + 1
    c.place[token] = at
    c.token[at] = token
    c.best[at] = source
    c.change[at] = 0.0
    e = np.int64(c.e[token])
    kind = CLASSES - 1
    if e > 0:
        q = 8 * c.scale[0] // e
        kind = 0
        while kind < CLASSES - 1 and q > INVERSE[kind]:
            kind += 1
    c.kind[at] = kind
    return at


@inner
def tell(c: Any, about: Any, what: Any) -> None:
    """Add one piece of evidence: weight number `what` for candidate number `about`."""
    at = c.size[1]
    if at < MOST_EVIDENCE:
        c.about[at] = about
        c.what[at] = what
        c.size[1] = at + 1


@inner
def apply(c: Any, fixed: Any, bias: Any) -> None:
    """Add up the evidence, in order, and take the candidates' exponentials again: `e` of a candidate becomes 0.

    The others' stay what they are, in units of the largest logit before the change; a share can be up to 2^47.
    """
    change, about, what, weight = c.change, c.about, c.what, c.weight
    for i in range(c.size[1]):
        change[about[i]] += weight[what[i]]
    for i in range(c.size[0]):
        v = min(max(change[i], -LIMIT), LIMIT)
        t = np.int64(c.token[i])
        below = np.int64(c.top[0]) - np.int64(fixed[t]) - np.int64(trunc(bias[t])) - np.int64(v * 65536.0)
        up = np.int64(0)
        if below < 0:
            up = (-below + 65535) >> 16
            below += up << 16
        # One at least, so that there is something to divide by.
        share = max(np.int64(int_exp2(np.int32(below), FRACTION)) << up, np.int64(1))
        c.scale[0] += share - np.int64(c.e[t])
        c.share[i] = share
        c.e[t] = 0


@inner
def share_out(c: Any, n: int, bias: Any, loss: Any, freq: Any, group_sum: Any) -> None:
    """Frequencies (int32[n], each at least 1) after `apply`, their sums by 64; bias -= loss * frequency.

    What rounding leaves over, never less than nothing, goes to the most probable candidate or, if there are none, to
    the most probable token, the first of equals; the bias does not see it.
    """
    # 2^-19 of it less than there is, so that rounded products cannot add up to more than there is.
    room = np.int64(1) << total_bits(n)
    r = np.float32(np.float64(room - n - (room >> 19)) / np.float64(c.scale[0]))
    given, e = np.int32(0), c.e
    for g in range(n // GROUP):
        some = np.int32(0)
        for i in range(g * GROUP, (g + 1) * GROUP):
            f = iadd(trunc(to_float(e[i]) * r), 1)
            freq[i] = f
            some = iadd(some, f)
            bias[i] -= to_float(f) * loss
        group_sum[g] = some
        given = iadd(given, some)
    rest = room - np.int64(given)
    best, most = np.int64(0), np.int64(0)
    if c.size[0] == 0:
        for i in range(n):
            if e[i] > e[best]:
                best = np.int64(i)
    for i in range(c.size[0]):
        t = np.int64(c.token[i])
        more = np.int64(np.float64(c.share[i]) * np.float64(r))
        freq[t] += np.int32(more)
        group_sum[t // GROUP] += np.int32(more)
        bias[t] -= np.float32(more) * loss
        rest -= more
        if c.share[i] > most:
            best, most = t, np.int64(c.share[i])
    freq[best] += np.int32(rest)
    group_sum[best // GROUP] += np.int32(rest)


@inner
def learn_weights(c: Any, freq: Any, token: Any, rate: float) -> None:
    """Move the weights of this position's evidence and forget its candidates. `freq`: the distribution coded with."""
    total = np.float64(np.int64(1) << total_bits(freq.size))
    about, what, weight, slope, tokens = c.about, c.what, c.weight, c.slope, c.token
    for i in range(c.size[0]):
        t = np.int64(tokens[i])
        came = 1.0 if t == token else 0.0
        c.change[i] = came - np.float64(freq[t]) / total
        c.place[t] = -1
    for i in range(c.size[1]):
        g, k = c.change[about[i]], np.int64(what[i])
        slope[k] += g * g
        weight[k] += (rate * g) / np.sqrt(slope[k])
    c.size[0] = 0
    c.size[1] = 0
