"""What the ensemble makes of the language model's distributions: with all members, with none, with one, without one.

At each token the members that have learned together so far are also asked alone, and all but one of them. What they
would have said is looked at and forgotten; what is learned is what an archive's ensemble learns. Bytes, which have to
know all decisions of a token to learn, learn from each of these distributions for themselves. Knows hidden rows and the
ensemble; does not know text, threads or pages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.cdf import GROUP, fix_logits, interval, spread, total_bits
from nacz.kernels.compile import compiled, inner
from nacz.predictors.beside import make_beside
from nacz.predictors.candidates import share_out
from nacz.predictors.ensemble import (
    Ensemble,
    adjust,
    frequencies,
    learn,
    make_ensemble,
    recall_rows,
    remember_row,
    seen_at,
)  # fmt: skip
from nacz.predictors.members import ALL, BIAS, BYTES, MEMBERS
from nacz.predictors.networks import head, states_have_any_norm
from nacz.predictors.preset import preset
from nacz.predictors.recall import width
from nacz.predictors.spell import spell
from nacz.predictors.spelling import Spelling
from nacz.predictors.transformer import Shape, Weights
from nacz.row_coding import HEAD_ROWS

__all__ = ["CHUNK", "Mixture", "Seen", "choices"]

CHUNK = 2048  # rows at a time


def choices() -> dict[str, int]:
    """Names and members of the distributions that are looked at: none, each one alone, all but one, and last all."""
    found = {"none": 0}
    found |= {f"only {name}": bit for name, bit in MEMBERS.items()}
    found |= {f"without {name}": ALL & ~bit for name, bit in MEMBERS.items()}
    return found | {"all": ALL}


class Seen(NamedTuple):
    """What came of n tokens: bits float64[n, choices] that the token that came costs; best int32[n, k] and best_freq
    int32[n, k], the most probable tokens of the whole mixture before bytes, best first."""

    bits: Any
    best: Any
    best_freq: Any


class Mixture:
    """An ensemble on its way through the tokens (int32[n]) of one text, as in an archive of one lane. spelling: of the
    vocabulary; number: of the preset."""

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, tokens: Any, alternatives: int, spelling: Spelling,
        number: int = 0,
    ) -> None:  # fmt: skip
        self.kern, self.shape, self.weights, self.tokens = kern, shape, weights, tokens
        starts = np.array([0, tokens.size], np.int64)
        normal = states_have_any_norm(shape)
        self.ensemble = make_ensemble(
            ALL, starts, CHUNK, shape.dim, shape.vocab, preset(number), normal, spelling
        )
        # Who has no bias looks at one that is nothing and does not learn.
        without = self.ensemble._replace(
            habits=self.ensemble.habits._replace(bias=np.zeros_like(self.ensemble.habits.bias))
        )
        unused = make_beside(spelling, 1, 1)

        def variant(members: int) -> Ensemble:
            if members == ALL:
                return self.ensemble
            beside = make_beside(spelling, tokens.size, 1) if members & BYTES else unused
            return (self.ensemble if members & BIAS else without)._replace(members=members, beside=beside)

        self.variants = tuple(map(variant, choices().values()))
        n = tokens.size
        count = len(self.variants)
        self.seen = Seen(
            np.zeros((n, count)), np.zeros((n, alternatives), np.int32), np.zeros((n, alternatives), np.int32)
        )
        self.logits = aligned(HEAD_ROWS * shape.vocab, np.float32)
        self.fixed, self.freq = aligned(shape.vocab, np.int32), aligned(shape.vocab, np.int32)
        self.sums = aligned(shape.vocab // GROUP, np.int32)
        self.piece = np.zeros((2, int(spelling.count.max())), np.uint32)
        self.cosines = aligned(HEAD_ROWS * self.ensemble.recall.columns, np.float32)

    def take(self, rows: Any, first: int) -> None:
        """Go on with at most CHUNK tokens, from number `first` on; rows: their hidden states (row_coding.Rows)."""
        _look(
            self.kern, self.shape, self.weights, self.ensemble, self.variants, rows, first, rows.zero.size, self.tokens,
            self.logits, self.fixed, self.freq, self.sums, self.cosines, self.piece, *self.seen,
        )  # fmt: skip


@inner
def _forget(c: Any) -> None:
    """Forget candidates that nothing was learned from."""
    for i in range(c.size[0]):
        c.place[c.token[i]] = -1
    c.size[0] = 0
    c.size[1] = 0


@inner
def _rank(v: int, freq: Any, best: Any, best_freq: Any) -> None:
    """The tokens with the largest frequencies, best first."""
    count = best.size
    for k in range(count):
        best_freq[k] = 0
    for token in range(v):
        f = freq[token]
        if f > best_freq[count - 1]:
            k = count - 1
            while k > 0 and f > best_freq[k - 1]:
                best_freq[k] = best_freq[k - 1]
                best[k] = best[k - 1]
                k -= 1
            best_freq[k] = f
            best[k] = token


@compiled
def _look(
    kern: Any, shape: Any, w: Any, e: Any, variants: Any, rows: Any, first: int, m: int, tokens: Any, logits: Any,
    fixed: Any, freq: Any, sums: Any, cosines: Any, piece: Any, bits: Any, best: Any, best_freq: Any,
) -> None:  # fmt: skip
    """Tokens `first` to `first` + m, in order. The last variant has all members: from that the ensemble learns."""
    v, total = shape.vocab, total_bits(shape.vocab)
    for r in range(m):
        remember_row(e, first + r, rows, r, tokens[first + r])
    columns = width(e.recall, first + m)
    done = 0
    while done < m:
        n = min(HEAD_ROWS, m - done)
        head(kern, shape, w, rows, done, n, logits)
        recall_rows(kern, e, first + m, done, n, rows, cosines)
        for r in range(n):
            at = first + done + r
            token = np.int64(tokens[at])
            fix_logits(v, logits, r * v, fixed)
            some = cosines[r * columns : (r + 1) * columns]
            for k in range(len(variants)):
                _forget(e.candidates)
                adjust(variants[k], v, 0, at, 0, seen_at(at, 1), tokens, some, fixed)
                if variants[k].members == 0:
                    spread(v, fixed, freq, sums)
                elif variants[k].members == ALL:
                    frequencies(e, v, freq, sums)
                else:
                    share_out(e.candidates, v, variants[k].habits.bias, np.float32(0.0), freq, sums)
                if variants[k].members & BYTES:
                    b = variants[k].beside
                    count = spell(b, 0, token, freq, b.state, b.stream, piece[0], piece[1], 0)[1]
                    for i in range(count):
                        bits[at, k] += total - np.log2(np.float64(piece[1, i]))
                else:
                    bits[at, k] = total - np.log2(np.float64(interval(freq, sums, token)[1]))
            _rank(v, freq, best[at], best_freq[at])
            learn(e, 0, at, token, tokens, freq)
        done += n


