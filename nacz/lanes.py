"""Running the lanes of a segment: intervals for an encoder that knows all tokens, tokens for a decoder that knows the
bits.

A segment's tokens are cut into L contiguous lanes that advance in lockstep: step t codes token t of every lane, in lane
order, into one stream. Every lane has its own transformer context. Workers are threads that own lanes (the compiled
code holds no lock), so nothing is shared but weights, and the number of workers cannot change a bit.

Knows tokens, lanes and workers. Does not know text, parameters on disk, or the container.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.coder.range_coder import POSITION, decode_advance, decode_target, decoder_consistent, decoder_init
from nacz.errors import CorruptDataError
from nacz.kernels.attention import BLOCK
from nacz.kernels.cdf import GROUP, find, fix_logits, interval, spread
from nacz.kernels.compile import compiled
from nacz.predictors.transformer import (
    Group,
    Shape,
    Weights,
    aligned,
    forward,
    head,
    make_cache,
    make_scratch,
)  # fmt: skip

ROWS = 128  # rows per block when encoding; any value gives the same bits
HEAD_ROWS = 24  # rows per product with the head: 24 x 49,152 logits are 4.7 MB

# Called now and then from the calling thread with the tokens done per lane (int64[lanes]), the tokens, lane after
# lane, as far as they are known (int32[n]), and the coded bytes so far. May raise to cancel.
Progress = Callable[[NDArray[np.int64], NDArray[np.int32], int], None]
POLL = 0.1  # seconds between calls of progress


def lane_lengths(tokens: int, lanes: int) -> NDArray[np.int64]:
    """Tokens per lane: int64[lanes], the first tokens % lanes of them one longer."""
    lengths = np.full(lanes, tokens // lanes, np.int64)
    lengths[: tokens % lanes] += 1
    return lengths


def fitted(shape: Shape, longest: int) -> Shape:
    """The shape with no more cache blocks than a lane of `longest` tokens fills; what is predicted stays the same."""
    return shape._replace(slots=max(2, min(shape.slots, -(-longest // BLOCK))))


def cache_bytes(shape: Shape, lanes: int) -> int:
    """Memory that the keys and values of `lanes` lanes take, in bytes."""
    return lanes * shape.layers * shape.kv_heads * shape.slots * BLOCK * (2 * 64 + 12)


@compiled
def _intervals(
    kern: Any,
    shape: Any,
    w: Any,
    s: Any,
    m: int,
    targets: Any,
    logits: Any,
    fixed: Any,
    freq: Any,
    sums: Any,
    low_out: Any,
    freq_out: Any,
) -> None:
    done = 0
    while done < m:
        n = min(HEAD_ROWS, m - done)
        head(kern, shape, w, s, done, n, logits)
        for r in range(n):
            fix_logits(shape.vocab, logits, r * shape.vocab, fixed)
            spread(shape.vocab, fixed, freq, sums)
            low, f = interval(freq, sums, np.int64(targets[done + r]))
            low_out[done + r] = low
            freq_out[done + r] = f
        done += n


@compiled
def _distributions(
    kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, logits: Any, fixed: Any, freq: Any,
    sums: Any,
) -> None:  # fmt: skip
    forward(kern, shape, w, cache, s, tokens, groups)
    done, v = 0, shape.vocab
    while done < tokens.size:
        n = min(HEAD_ROWS, tokens.size - done)
        head(kern, shape, w, s, done, n, logits)
        for r in range(n):
            fix_logits(v, logits, r * v, fixed)
            spread(v, fixed, freq[done + r], sums[done + r])
        done += n


@compiled
def _take(state: Any, buffer: Any, freq: Any, sums: Any, n: int, tokens: Any) -> None:
    for r in range(n):
        symbol, low, f = find(freq[r], sums[r], np.int64(decode_target(state, buffer)))
        decode_advance(state, buffer, low, f)
        tokens[r] = symbol


class _Worker:
    """Scratch space of one thread and a cache for `lanes` lanes."""

    def __init__(self, kern: Any, shape: Shape, weights: Weights, lanes: int, rows: int) -> None:
        self.kern, self.shape, self.weights = kern, shape, weights
        self.cache = make_cache(shape, lanes)
        self.scratch = make_scratch(shape, rows)
        self.logits = aligned(min(rows, HEAD_ROWS) * shape.vocab, np.float32)
        self.fixed = aligned(shape.vocab, np.int32)

    def encode(self, inputs: Any, targets: Any, low: Any, freq: Any, done: Any, lane: int, stop: list[bool]) -> None:
        """Intervals of one lane into low and freq; done[lane] grows with them."""
        row, sums = aligned(self.shape.vocab, np.int32), aligned(self.shape.vocab // GROUP, np.int32)
        rows = self.scratch.zero.size
        for at in range(0, targets.size, rows):
            if stop[0]:
                return
            some = slice(at, min(at + rows, targets.size))
            m = some.stop - at
            groups = Group(*(np.array([v], np.int64) for v in (0, 0, m, at)))
            forward(self.kern, self.shape, self.weights, self.cache, self.scratch, inputs[some], groups)
            _intervals(
                self.kern, self.shape, self.weights, self.scratch, m, targets[some], self.logits, self.fixed, row, sums,
                low[some], freq[some],
            )  # fmt: skip
            done[lane] += m

    def step(self, tokens: Any, position: int, freq: Any, sums: Any) -> None:
        """Distributions of the next token of the first tokens.size lanes."""
        n = tokens.size
        lanes = np.arange(n, dtype=np.int64)
        groups = Group(lanes, lanes, np.ones(n, np.int64), np.full(n, position, np.int64))
        _distributions(
            self.kern, self.shape, self.weights, self.cache, self.scratch, tokens, groups, self.logits, self.fixed,
            freq, sums,
        )  # fmt: skip


def encode_lanes(
    kern: Any,
    shape: Shape,
    weights: Weights,
    bos: int,
    tokens: NDArray[np.int32],
    lanes: int,
    threads: int,
    progress: Progress | None = None,
    rows: int = ROWS,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(cumulative, frequency) of every token in coding order, uint32[tokens] each, of a total of 2^24.

    tokens: int32[n], n >= lanes >= 1. The result does not depend on `threads`, `rows` or `kern`.
    """
    lengths = lane_lengths(tokens.size, lanes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shape = fitted(shape, int(lengths[0]))
    low, freq = np.empty(tokens.size, np.int64), np.empty(tokens.size, np.int64)
    inputs = np.empty_like(tokens)
    inputs[1:] = tokens[:-1]
    inputs[starts[:-1]] = bos
    workers = max(1, min(threads, lanes))
    rows = min(rows, int(lengths[0]))
    done = np.zeros(lanes, np.int64)
    stop = [False]

    def run(which: int) -> None:
        worker = _Worker(kern, shape, weights, 1, rows)
        for lane in range(which, lanes, workers):
            span = slice(starts[lane], starts[lane + 1])
            worker.encode(inputs[span], tokens[span], low[span], freq[span], done, lane, stop)

    with ThreadPoolExecutor(workers) as pool:
        pending: set[Future[None]] = {pool.submit(run, i) for i in range(workers)}
        try:
            while pending:
                finished, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                if progress is not None:
                    so_far = done.copy()
                    known = np.concatenate([freq[s : s + n] for s, n in zip(starts, so_far, strict=False)])
                    # For the eyes only: the coder itself has not run yet.
                    progress(so_far, tokens, int(np.sum(24.0 - np.log2(known)) / 8))
        finally:
            stop[0] = True
    # Token t of a lane is coded after t steps of all lanes and the lanes before it: only the last step can be short,
    # and it lacks the last lanes.
    place = np.concatenate([np.arange(n) * lanes + lane for lane, n in enumerate(lengths)])
    cumulative, frequency = np.empty(tokens.size, np.uint32), np.empty(tokens.size, np.uint32)
    cumulative[place], frequency[place] = low, freq
    return cumulative, frequency


def decode_lanes(
    kern: Any,
    shape: Shape,
    weights: Weights,
    bos: int,
    stream: NDArray[np.uint8],
    count: int,
    lanes: int,
    threads: int,
    progress: Progress | None = None,
) -> NDArray[np.int32]:
    """The `count` tokens (int32) that a stream of `lanes` lanes holds, lane after lane. Raises CorruptDataError.

    The caller has checked count >= lanes >= 1 and that the cache (`cache_bytes`) is affordable.
    """
    lengths = lane_lengths(count, lanes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shape = fitted(shape, int(lengths[0]))
    out = np.empty(count, np.int32)
    workers = max(1, min(threads, lanes))
    first = [lanes * i // workers for i in range(workers + 1)]
    team = [_Worker(kern, shape, weights, first[i + 1] - first[i], first[i + 1] - first[i]) for i in range(workers)]
    freq = np.empty((lanes, shape.vocab), np.int32)
    sums = np.empty((lanes, shape.vocab // GROUP), np.int32)
    current = np.full(lanes, bos, np.int32)
    state = decoder_init(stream)
    due = 0.0
    with ThreadPoolExecutor(max(1, workers - 1)) as pool:
        for t in range(int(lengths[0])):
            active = int(np.count_nonzero(lengths > t))
            futures = []
            for i in range(workers - 1, -1, -1):
                span = slice(first[i], min(first[i + 1], active))
                if span.start >= span.stop:
                    continue
                job = (current[span], t, freq[span], sums[span])
                if i > 0:
                    futures.append(pool.submit(team[i].step, *job))
                else:
                    team[0].step(*job)
            for future in futures:
                future.result()
            _take(state, stream, freq, sums, active, current)
            out[starts[:active] + t] = current[:active]
            if progress is not None and time.monotonic() >= due:
                due = time.monotonic() + POLL
                progress(np.minimum(lengths, t + 1), out, min(int(state[POSITION]), stream.size))
    if not decoder_consistent(state, stream):
        raise CorruptDataError("the coded stream does not end where its tokens do")
    return out
