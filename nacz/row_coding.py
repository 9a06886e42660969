"""What is done to rows of hidden states, one coded token each: intervals for an encoder, tokens for a decoder.

Rows of an ensemble are gone through strictly in coding order; rows without one are independent of each other.

Knows hidden rows, logits and the coder. Does not know threads, lanes' past, or how hidden rows come about.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.coder.range_coder import decode_advance, decode_target
from nacz.kernels.cdf import GROUP, find, fix_logits, interval, spread, total_bits
from nacz.kernels.compile import compiled, inner
from nacz.kernels.sharing import begin_of, end_of, meet
from nacz.predictors.backward import tell_outcome
from nacz.predictors.drafts import draft, judge
from nacz.predictors.ensemble import adjust, frequencies, learn, recall_rows, remember_row, seen_at
from nacz.predictors.members import BYTES
from nacz.predictors.networks import forward, head, head_part
from nacz.predictors.recall import width
from nacz.predictors.spell import spell
from nacz.predictors.transformer import Shape

HEAD_ROWS = 48  # rows per product with the head; 48 x 49,152 logits are 9.4 MB


class Rows(NamedTuple):
    """Hidden rows in coding order, as `forward` leaves them: a uint8[rows * dim], zero int32[rows], step
    float32[rows]; and the same of the key layer's input, which is what is recalled by."""

    a: Any
    zero: Any
    step: Any
    key: Any
    key_zero: Any
    key_step: Any


class Bench(NamedTuple):
    """Work space for one row at a time: logits float32[HEAD_ROWS * vocab], fixed, freq and value int32[vocab], work
    float32[vocab], sums int32[vocab / 64]."""

    logits: Any
    fixed: Any
    freq: Any
    value: Any
    work: Any
    sums: Any


def make_rows(shape: Shape, rows: int) -> Rows:
    """Space for `rows` hidden rows."""
    return Rows(
        aligned(rows * shape.dim, np.uint8), aligned(rows, np.int32), aligned(rows, np.float32),
        aligned(rows * shape.dim, np.uint8), aligned(rows, np.int32), aligned(rows, np.float32),
    )  # fmt: skip


def keep_rows(s: Any, m: int, rows: Rows, some: slice) -> None:
    """Copy the m rows that `forward` left in scratch space s to the places `some` of `rows`."""
    d = rows.a.size // rows.zero.size
    rows.a.reshape(-1, d)[some] = s.a[: m * d].reshape(m, d)
    rows.zero[some], rows.step[some] = s.zero[:m], s.step[:m]
    rows.key.reshape(-1, d)[some] = s.key[: m * d].reshape(m, d)
    rows.key_zero[some], rows.key_step[some] = s.key_zero[:m], s.key_step[:m]


def make_bench(shape: Shape, rows: int) -> Bench:
    """Work space for products of up to `rows` rows."""
    return Bench(
        aligned(min(rows, HEAD_ROWS) * shape.vocab, np.float32),
        aligned(shape.vocab, np.int32),
        aligned(shape.vocab, np.int32),
        aligned(shape.vocab, np.int32),
        aligned(shape.vocab, np.float32),
        aligned(shape.vocab // GROUP, np.int32),
    )


@compiled
def intervals(
    kern: Any, shape: Any, w: Any, s: Any, m: int, lane: int, step: int, targets: Any, bench: Any, outcomes: Any,
    low_out: Any, freq_out: Any,
) -> None:  # fmt: skip
    """Intervals of `targets` (int32[m]) after `forward` over m rows of a lane from `step` on, the language model alone:
    int64[m] each."""
    done = 0
    while done < m:
        n = min(HEAD_ROWS, m - done)
        head(kern, shape, w, s, done, n, bench.logits)
        for r in range(n):
            fix_logits(shape.vocab, bench.logits, r * shape.vocab, bench.fixed)
            spread(shape.vocab, bench.fixed, bench.freq, bench.sums)
            target = np.int64(targets[done + r])
            low, f = interval(bench.freq, bench.sums, target)
            low_out[done + r] = low
            freq_out[done + r] = f
            tell_outcome(outcomes, lane, step + done + r, target, bench.freq, bench.work, bench.fixed, bench.value)
        done += n


@compiled
def remember_rows(e: Any, rows: Any, first: int, m: int, lanes: int, starts: Any, tokens: Any) -> None:
    """Remember the m rows of a chunk, whose first has number `first` in coding order, before any of them is coded: what
    is seen of them is up to `adjust`. starts int64[lanes + 1]: where lanes begin in `tokens` (int32, lane after
    lane)."""
    for r in range(m):
        remember_row(e, first + r, rows, r, tokens[starts[(first + r) % lanes] + (first + r) // lanes])


@compiled
def rows_to_mix(
    kern: Any, shape: Any, w: Any, e: Any, rows: Any, known: int, at: int, n: int, bench: Any, fixed: Any, cosines: Any
) -> None:
    """Fixed-point logits of n rows from `at` on (int32[HEAD_ROWS, vocab]), and their likeness to the `known` rows
    remembered (float32, flat [n, width]). Changes nothing that `mixed_intervals` looks at but these two."""
    head(kern, shape, w, rows, at, n, bench.logits)
    for r in range(n):
        fix_logits(shape.vocab, bench.logits, r * shape.vocab, fixed[r])
    recall_rows(kern, e, known, at, n, rows, cosines)


@compiled
def mixed_intervals(
    shape: Any, e: Any, known: int, first: int, n: int, lanes: int, starts: Any, tokens: Any, bench: Any, fixed: Any,
    cosines: Any, outcomes: Any, low_out: Any, freq_out: Any, piece_low: Any, piece_freq: Any, pieces: int,
) -> Any:  # fmt: skip
    """Intervals of the n tokens from number `first` in coding order, with the ensemble, into low_out and freq_out,
    after `rows_to_mix`. piece_low, piece_freq: uint32, get the intervals of the decisions that spell the tokens, from
    number `pieces` on, where the ensemble does so; returns the number of the next."""
    columns = width(e.recall, known)
    for r in range(n):
        step, lane = (first + r) // lanes, (first + r) % lanes
        at = starts[lane] + step
        token = np.int64(tokens[at])
        some = cosines[r * columns : (r + 1) * columns]
        adjust(e, shape.vocab, lane, at, starts[lane], seen_at(step, lanes), tokens, some, fixed[r])
        frequencies(e, shape.vocab, bench.freq, bench.sums)
        low_out[first + r], freq_out[first + r] = interval(bench.freq, bench.sums, token)
        if e.members & BYTES:
            b = e.beside
            pieces = spell(b, lane, token, bench.freq, b.state, b.stream, piece_low, piece_freq, pieces)[1]
        learn(e, lane, at, token, tokens, bench.freq)
        tell_outcome(outcomes, lane, step, token, bench.freq, bench.work, bench.fixed, bench.value)
    return pieces


@compiled
def distributions(
    kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any, bench: Any, freq: Any,
    sums: Any,
) -> None:
    """Frequencies of the token after each of `tokens`, one per lane, and their sums: int32[rows, vocab] and [rows,
    vocab / 64]."""
    forward(kern, shape, w, cache, s, tokens, groups, trace)
    distributions_of_rows(kern, shape, w, s, tokens.size, bench, freq, sums)


@compiled
def distributions_of_rows(kern: Any, shape: Any, w: Any, s: Any, m: int, bench: Any, freq: Any, sums: Any) -> None:
    """The same after someone else has left m rows in s."""
    done, v = 0, shape.vocab
    while done < m:
        n = min(HEAD_ROWS, m - done)
        head_part(kern, shape, w, s, done, n, bench.logits)
        meet(s.share)
        if s.share.part == 0:
            for r in range(n):
                fix_logits(v, bench.logits, r * v, bench.fixed)
                spread(v, bench.fixed, freq[done + r], sums[done + r])
        meet(s.share)
        done += n


@compiled
def take(
    state: Any, stream: Any, freq: Any, sums: Any, step: int, first: int, n: int, bench: Any, outcomes: Any, tokens: Any
) -> None:
    """Decode the tokens of one step of lanes `first` to n - 1 from finished distributions: tokens int32[lanes]."""
    bits = total_bits(freq.shape[1])
    for lane in range(first, n):
        symbol, low, f = find(freq[lane], sums[lane], np.int64(decode_target(state, stream, bits)))
        decode_advance(state, stream, low, f, bits)
        tokens[lane] = symbol
        tell_outcome(outcomes, lane, step, symbol, freq[lane], bench.work, bench.fixed, bench.value)


@compiled
def logits_ahead(
    kern: Any, shape: Any, w: Any, s: Any, m: int, bench: Any, place: Any, fixed: Any, ahead: Any
) -> None:
    """Fixed-point logits of the m rows that `forward` or someone else left in s: row r to fixed[place[r]] (int32[rows,
    vocab]), its key to the same row of `ahead` (Rows)."""
    done, v, d = 0, shape.vocab, shape.dim
    while done < m:
        n = min(HEAD_ROWS, m - done)
        head_part(kern, shape, w, s, done, n, bench.logits)
        meet(s.share)
        for r in range(begin_of(n, s.share), end_of(n, s.share)):
            fix_logits(v, bench.logits, r * v, fixed[place[done + r]])
        meet(s.share)
        done += n
    for r in range(begin_of(m, s.share), end_of(m, s.share)):
        _copy_key(d, s, r, ahead, place[r])


@compiled
def forward_ahead(
    kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any, bench: Any, place: Any,
    fixed: Any, ahead: Any,
) -> None:  # fmt: skip
    """`logits_ahead` of the rows of `tokens`."""
    forward(kern, shape, w, cache, s, tokens, groups, trace)
    logits_ahead(kern, shape, w, s, tokens.size, bench, place, fixed, ahead)


@inner
def _copy_key(d: int, rows: Any, at: int, to: Any, place: int) -> None:
    for i in range(d):
        to.key[place * d + i] = rows.key[at * d + i]
    to.key_zero[place] = rows.key_zero[at]
    to.key_step[place] = rows.key_step[at]


@compiled
def memories(
    kern: Any, shape: Any, e: Any, known: int, ahead: Any, place: Any, first: int, last: int, hidden: Any, cosines: Any
) -> None:
    """Likeness of the rows at hand of lanes `first` to last - 1, which are rows place[lane] of `ahead`, to the `known`
    keys remembered: float32, flat [lanes, width]. Their keys go to the lanes' rows of `hidden`.

    Of the ensemble it reads the `known` keys and changes nothing, so lanes may be worked on by several threads, and
    while `take_mixed` is at work on others: what that remembers is not known yet, and its ring is long enough not to
    reach the known.
    """
    for lane in range(first, last):
        _copy_key(shape.dim, ahead, place[lane], hidden, lane)
    recall_rows(kern, e, known, first, last - first, hidden, cosines)


@compiled
def take_mixed(
    state: Any, stream: Any, shape: Any, e: Any, step: int, first: int, n: int, starts: Any, fixed: Any, cosines: Any,
    where: Any, hidden: Any, bench: Any, outcomes: Any, tokens: Any, current: Any, drafts: Any, place: Any, rows: Any,
) -> None:  # fmt: skip
    """Decode the tokens of one step of lanes `first` to n - 1 with the ensemble: into `tokens` (lane after lane) and
    current int32[lanes].

    A lane's logits are row place[lane] of `fixed` and the first of rows[lane] that are ready (int64[lanes] each), its
    cosines are from where[lane] on, its hidden state is row `lane`. Where the token is the one that the next row was
    made for, that becomes the row at hand; where not, nothing is ready, and new guesses are made.
    """
    v, lanes, bits = shape.vocab, starts.size - 1, total_bits(shape.vocab)
    seen = seen_at(step, lanes)
    columns = width(e.recall, seen)
    for lane in range(first, n):
        at = starts[lane] + step
        some = cosines[where[lane] : where[lane] + columns]
        adjust(e, v, lane, at, starts[lane], seen, tokens, some, fixed[place[lane]])
        frequencies(e, v, bench.freq, bench.sums)
        if e.members & BYTES:
            b = e.beside
            symbol = spell(b, lane, -1, bench.freq, state, stream, b.piece, b.piece, 0)[0]
        else:
            symbol, low, f = find(bench.freq, bench.sums, np.int64(decode_target(state, stream, bits)))
            decode_advance(state, stream, low, f, bits)
        tokens[at] = symbol
        current[lane] = symbol
        learn(e, lane, at, symbol, tokens, bench.freq)
        tell_outcome(outcomes, lane, step, symbol, bench.freq, bench.work, bench.fixed, bench.value)
        right = judge(drafts, place[lane], symbol)
        rows[lane] = rows[lane] - 1 if right else 0
        place[lane] += 1
    for lane in range(first, n):
        remember_row(e, step * lanes + lane, hidden, lane, current[lane])
        if rows[lane] == 0:
            draft(drafts, e, lane, starts[lane] + step + 1, starts[lane], starts[lane + 1], tokens)
