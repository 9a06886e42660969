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

from nacz.kernels.cdf import FRACTION, GROUP, TOTAL_BITS
from nacz.kernels.compile import compiled
from nacz.kernels.ops import iadd, imax, isub
from nacz.kernels.rows import int_exp2

MOST = 256  # candidates at a position
MOST_EVIDENCE = 1024
LIMIT = 32.0  # bits that a candidate's logit may change by

# floor(8 / p) up to these: how probable the language model holds a token, in thirteen classes.
INVERSE = (9, 12, 16, 24, 32, 64, 128, 256, 1024, 4096, 1 << 15, 1 << 18)
CLASSES = len(INVERSE) + 1


class Candidates(NamedTuple):
    """Candidates and evidence of one position, and the weights of all evidence.

    token int32[MOST]: candidates in order of appearance. place int32[vocab]: a token's number among them or -1. kind
    int32[MOST]: the language model's class of a candidate. best int32[MOST]: the source that named it first, or -1.
    about, what int32[MOST_EVIDENCE]: number of a candidate, number of a weight. size int64[2]: candidates, evidence.
    change float64[MOST]: bits added. weight, slope float64[numbers]: learned weights; sums of their squared gradients.
    e int32[vocab]: the language model's exponentials; high int32[vocab / 64]: the largest of each 64; scale int64[1]:
    their sum.
    """

    token: Any
    place: Any
    kind: Any
    best: Any
    about: Any
    what: Any
    size: Any
    change: Any
    weight: Any
    slope: Any
    e: Any
    high: Any
    scale: Any


def make_candidates(vocab: int, preset: Any) -> Candidates:
    """No candidates yet; weights from `preset` (float64)."""
    return Candidates(
        token=np.zeros(MOST, np.int32),
        place=np.full(vocab, -1, np.int32),
        kind=np.zeros(MOST, np.int32),
        best=np.zeros(MOST, np.int32),
        about=np.zeros(MOST_EVIDENCE, np.int32),
        what=np.zeros(MOST_EVIDENCE, np.int32),
        size=np.zeros(2, np.int64),
        change=np.zeros(MOST, np.float64),
        weight=np.array(preset, np.float64),
        slope=np.zeros(len(preset), np.float64),
        e=np.zeros(vocab, np.int32),
        high=np.zeros(vocab // GROUP, np.int32),
        scale=np.zeros(1, np.int64),
    )


@compiled
def weigh(n: int, fixed: Any, e: Any, high: Any) -> Any:
    """int32 logits of 16 fraction bits to e[i] = 2^23 * 2^(fixed[i] - largest), int32; returns the sum of them.

    n: a multiple of 64. high: int32[n / 64], the largest of each 64.
    """
    top = np.int32(-(1 << 31))
    for i in range(n):
        top = imax(top, fixed[i])
    total = np.int64(0)
    for g in range(n // GROUP):
        some, best = np.int32(0), np.int32(0)
        for i in range(g * GROUP, (g + 1) * GROUP):
            v = int_exp2(isub(top, fixed[i]), FRACTION)
            e[i] = v
            some = iadd(some, v)
            best = imax(best, v)
        high[g] = best
        total += np.int64(some)
    return total


@compiled
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


@compiled
def tell(c: Any, about: Any, what: Any) -> None:
    """Add one piece of evidence: weight number `what` for candidate number `about`."""
    at = c.size[1]
    if at < MOST_EVIDENCE:
        c.about[at] = about
        c.what[at] = what
        c.size[1] = at + 1


@compiled
def apply(c: Any, fixed: Any) -> None:
    """Add up the evidence, in order, and change the candidates' logits."""
    change, about, what, weight = c.change, c.about, c.what, c.weight
    for i in range(c.size[1]):
        change[about[i]] += weight[what[i]]
    for i in range(c.size[0]):
        v = min(max(change[i], -LIMIT), LIMIT)
        fixed[c.token[i]] += np.int32(np.int64(v * 65536.0))


@compiled
def learn_weights(c: Any, freq: Any, token: Any, rate: float, start: float) -> None:
    """Move the weights of this position's evidence and forget its candidates. `freq`: the distribution coded with."""
    about, what, weight, slope, tokens = c.about, c.what, c.weight, c.slope, c.token
    for i in range(c.size[0]):
        t = np.int64(tokens[i])
        came = 1.0 if t == token else 0.0
        c.change[i] = came - np.float64(freq[t]) / np.float64(1 << TOTAL_BITS)
        c.place[t] = -1
    for i in range(c.size[1]):
        g, k = c.change[about[i]], np.int64(what[i])
        slope[k] += g * g
        weight[k] += (rate * g) / np.sqrt(slope[k] + start)
    c.size[0] = 0
    c.size[1] = 0
