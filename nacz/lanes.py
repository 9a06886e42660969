"""Running the lanes of a segment: intervals for an encoder that knows all tokens, tokens for a decoder that knows the
bits.

A segment's tokens are cut into L contiguous lanes that advance in lockstep: step t codes token t of every lane, in lane
order, into one stream. Every lane has its own transformer context; an ensemble, if there is one, is shared and goes
through the tokens in coding order. An encoder forwards chunks of steps and then codes them; where the network learns, a
chunk is what it learns from at a time, and the next one is forwarded with other weights. Workers are threads that own
lanes (the compiled code holds no lock), so nothing is shared but what nobody writes, and the number of workers cannot
change a bit.

Knows tokens, lanes and workers. Does not know text, parameters on disk, or the container.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nacz.arrays import aligned
from nacz.coder.range_coder import POSITION, RangeEncoder, decoder_consistent, decoder_init
from nacz.errors import CorruptDataError
from nacz.kernels.cdf import GROUP, total_bits
from nacz.predictors.backward import Outcomes, no_outcomes
from nacz.predictors.ensemble import Ensemble, MakeEnsemble, seen_at
from nacz.predictors.learning import Learner, Learning
from nacz.predictors.members import BYTES
from nacz.predictors.networks import fitted, forward, make_cache, make_scratch
from nacz.predictors.recall import width
from nacz.predictors.transformer import (
    Group,
    Shape,
    Trace,
    Weights,
    make_trace,
)  # fmt: skip
from nacz.row_coding import (
    HEAD_ROWS,
    distributions,
    distributions_of_rows,
    intervals,
    keep_rows,
    logits_and_memories,
    logits_of_rows,
    make_bench,
    make_rows,
    mixed_intervals,
    take,
    take_mixed,
)  # fmt: skip

ROWS = 128  # rows per block when encoding; any value gives the same bits
CHUNK = 2048  # rows, of all lanes together, that are forwarded before they are coded; any value gives the same bits

# Called now and then from the calling thread with the tokens done per lane (int64[lanes]), the tokens, lane after
# lane, as far as they are known (int32[n]), and the coded bytes so far. May raise to cancel.
Progress = Callable[[NDArray[np.int64], NDArray[np.int32], int], None]
POLL = 0.1  # seconds between calls of progress


def lane_lengths(tokens: int, lanes: int) -> NDArray[np.int64]:
    """Tokens per lane: int64[lanes], the first tokens % lanes of them one longer."""
    lengths = np.full(lanes, tokens // lanes, np.int64)
    lengths[: tokens % lanes] += 1
    return lengths


def lane_starts(tokens: int, lanes: int) -> NDArray[np.int64]:
    """Where lanes begin and, last, how many tokens there are: int64[lanes + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lane_lengths(tokens, lanes))])


class Engine(Protocol):
    """Someone else who runs the transformer (see nacz.predictors.torch_transformer), with caches of his own."""

    def make_cache(self, shape: Shape, lanes: int) -> Any: ...

    def forward(self, cache: Any, tokens: NDArray[np.int32], position: int) -> tuple[NDArray[Any], ...]: ...


class _Worker:
    """What one thread works with: scratch space for `rows` rows. engine: runs the transformer, None for the compiled
    one."""

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, trace: Trace, rows: int, engine: Engine | None = None
    ) -> None:
        self.engine = engine
        self.kern, self.shape, self.weights, self.trace = kern, shape, weights, trace
        self.scratch = make_scratch(shape, rows)
        self.bench = make_bench(shape, rows)

    def make_cache(self, lanes: int) -> Any:
        """An empty cache of whoever runs the transformer."""
        return make_cache(self.shape, lanes) if self.engine is None else self.engine.make_cache(self.shape, lanes)

    def run_engine(self, engine: Engine, cache: Any, tokens: NDArray[np.int32], position: int) -> None:
        """Let the engine run tokens [lanes, n], and put what it made where `forward` leaves it."""
        s = self.scratch
        rooms = s.a, s.zero, s.step, s.key, s.key_zero, s.key_step
        for room, made in zip(rooms, engine.forward(cache, tokens, position), strict=True):
            room[: made.size] = made.reshape(-1)

    def forward(self, cache: Any, inputs: NDArray[np.int32], position: int, row: int) -> None:
        """Run one block of a cache's only lane; its hidden rows are then in the scratch space. row: where its rows
        begin in the trace."""
        if self.engine is not None:
            self.run_engine(self.engine, cache, inputs[None], position)
            return
        groups = Group(*(np.array([v], np.int64) for v in (0, 0, inputs.size, position)))
        trace = self.trace._replace(row=np.arange(row, row + inputs.size))
        forward(self.kern, self.shape, self.weights, cache, self.scratch, inputs, groups, trace)

    def intervals(
        self, lane: int, step: int, targets: NDArray[np.int32], outcomes: Outcomes
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(cumulative, frequency) of the tokens that follow those of `forward`, by the language model alone."""
        low, freq = np.empty(targets.size, np.int64), np.empty(targets.size, np.int64)
        intervals(
            self.kern, self.shape, self.weights, self.scratch, targets.size, lane, step, targets, self.bench, outcomes,
            low, freq,
        )  # fmt: skip
        return low, freq


def _singles(lanes: int, position: int) -> Group:
    """One row of each lane, all at the same position."""
    lane = np.arange(lanes, dtype=np.int64)
    return Group(lane, lane, np.ones(lanes, np.int64), np.full(lanes, position, np.int64))


class _Encoding:
    """A segment on its way to intervals: forwards chunks of steps lane by lane, codes them row by row.

    Without an ensemble lanes do not meet: each is one chunk, and is coded as it is forwarded.
    """

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, bos: int, tokens: NDArray[np.int32], lanes: int, rows: int,
        ensemble: MakeEnsemble | None, learner: Learner | None, engine: Engine | None, coder: RangeEncoder | None,
    ) -> None:  # fmt: skip
        self.kern, self.shape, self.learner, self.engine, self.coder = kern, shape, learner, engine, coder
        self.weights = learner.weights if learner else weights
        self.trace = learner.trace if learner else make_trace(shape, shape.layers, 0)
        self.outcomes = learner.outcomes if learner else no_outcomes()
        self.tokens, self.lanes, self.rows = tokens, lanes, rows
        self.starts = lane_starts(tokens.size, lanes)
        self.lengths = np.diff(self.starts)
        self.inputs = np.empty_like(tokens)
        self.inputs[1:] = tokens[:-1]
        self.inputs[self.starts[:-1]] = bos
        longest = int(self.lengths[0])
        # Token t of a lane is number t * lanes + lane in coding order: only the last step can be short, and it lacks
        # the last lanes.
        self.low, self.freq = np.empty(tokens.size, np.int64), np.empty(tokens.size, np.int64)
        self.done = np.zeros(lanes, np.int64)
        self.idle: SimpleQueue[_Worker] = SimpleQueue()
        self.caches: list[Any] = [None] * lanes
        self.steps, self.ensemble = longest, None
        if learner is not None:
            self.steps = learner.steps
        elif ensemble is not None:
            self.steps = max(1, min(CHUNK // lanes, longest))
        if ensemble is not None:
            self.ensemble = ensemble(self.starts, self.steps * lanes, shape)
            if coder is None:
                self.ensemble = self.ensemble._replace(members=self.ensemble.members & ~BYTES)
            # One chunk is forwarded while the other is coded.
            self.hidden = [make_rows(shape, self.steps * lanes) for _ in range(2)]
            self.bench = make_bench(shape, HEAD_ROWS)
            self.cosines = aligned(HEAD_ROWS * self.ensemble.recall.columns, np.float32)
        self.chunks = -(-longest // self.steps)

    def forward_chunk(self, chunk: int, lane: int, stop: list[bool]) -> None:
        """Forward the tokens of one lane in a chunk; without an ensemble, code them too."""
        worker = (
            self.idle.get()
            if not self.idle.empty()
            else _Worker(self.kern, self.shape, self.weights, self.trace, self.rows, self.engine)
        )
        cache = self.caches[lane] or worker.make_cache(1)
        end = min((chunk + 1) * self.steps, int(self.lengths[lane]))
        for first in range(chunk * self.steps, end, self.rows):
            if stop[0]:
                return
            m = min(self.rows, end - first)
            at = int(self.starts[lane]) + first
            worker.forward(cache, self.inputs[at : at + m], first, lane * self.steps + first - chunk * self.steps)
            place = first * self.lanes + lane
            if self.ensemble is None:
                low, freq = worker.intervals(lane, first, self.tokens[at : at + m], self.outcomes)
                some = slice(place, place + (m - 1) * self.lanes + 1, self.lanes)
                self.low[some], self.freq[some] = low, freq
                self.done[lane] += m
            else:
                place -= chunk * self.steps * self.lanes
                some = slice(place, place + (m - 1) * self.lanes + 1, self.lanes)
                keep_rows(worker.scratch, m, self.hidden[chunk % 2], some)
        # Lanes that are done need no cache, but a chunk that is learned from does.
        self.caches[lane] = cache if end < self.lengths[lane] or self.learner else None
        self.idle.put(worker)

    def learn_chunk(self, chunk: int) -> None:
        """Learn from a chunk that was coded, if another chunk follows. The last step alone can lack lanes, so every
        lane has all steps of such a chunk."""
        if self.learner is not None and chunk + 1 < self.chunks:
            caches = [(cache, 0) for cache in self.caches if cache is not None]
            self.learner.learn(caches, chunk * self.steps)

    def code_chunk(self, chunk: int) -> None:
        """Code the tokens of a chunk that was forwarded, in coding order; the ensemble learns from them."""
        if self.ensemble is None:
            return
        first = chunk * self.steps * self.lanes
        m = min(self.steps * self.lanes, self.tokens.size - first)
        spelled, pieces = bool(self.ensemble.members & BYTES), 0
        if spelled:
            number = np.arange(first, first + m)
            some = self.tokens[self.starts[number % self.lanes] + number // self.lanes]
            pieces = int(self.ensemble.beside.spelling.count[some].sum())
        low, freq = np.empty(pieces, np.uint32), np.empty(pieces, np.uint32)
        mixed_intervals(
            self.kern, self.shape, self.weights, self.ensemble, self.hidden[chunk % 2], first, m, self.lanes,
            self.starts, self.tokens, self.bench, self.cosines, self.outcomes, self.low, self.freq, low, freq,
        )  # fmt: skip
        if spelled and self.coder is not None:
            self.coder.encode(low, freq)
        self.done[:] = np.minimum(self.lengths, (chunk + 1) * self.steps)

    def report(self, progress: Progress | None) -> None:
        """Tell how far it is. The bytes are for the eyes only: the coder itself has not run yet."""
        if progress is not None:
            done = self.done.copy()
            known = np.concatenate([self.freq[lane :: self.lanes][:n] for lane, n in enumerate(done)])
            progress(done, self.tokens, int(np.sum(total_bits(self.shape.vocab) - np.log2(known)) / 8))


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
    ensemble: MakeEnsemble | None = None,
    learning: Learning | None = None,
    engine: Engine | None = None,
    coder: RangeEncoder | None = None,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(cumulative, frequency) of every token in coding order, uint32[tokens] each, of a total of 2^total_bits(vocab).

    tokens: int32[n], n >= lanes >= 1. ensemble: makes the predictors that mix in, None for the language model alone.
    learning: how the network learns, None for weights that stay. engine: who runs the transformer if it is not
    compiled code; none that learns. coder: takes all intervals, in order; where the ensemble spells tokens these are
    others, and without a coder it does not.
    The result does not depend on `threads`, `rows`, `kern` or `engine`. With two threads or more one chunk is forwarded
    by that many workers while the calling thread codes the one before, unless the network has to learn from that first.
    """
    longest = int(lane_lengths(tokens.size, lanes)[0])
    shape = fitted(shape, longest)
    learner = learning and Learner(kern, shape, weights, learning, lanes, threads)
    work = _Encoding(kern, shape, weights, bos, tokens, lanes, min(rows, longest), ensemble, learner, engine, coder)
    stop = [False]
    running: list[Future[None] | None] = [None] * lanes

    def run(chunk: int, lane: int, before: Future[None] | None) -> None:
        if before is not None:
            before.result()  # workers take what was begun first, so this one has begun and will end
        work.forward_chunk(chunk, lane, stop)

    with ThreadPoolExecutor(max(1, min(threads, lanes))) as pool:

        def begin(chunk: int) -> None:
            for lane in range(lanes):
                if chunk * work.steps < work.lengths[lane]:
                    running[lane] = pool.submit(run, chunk, lane, running[lane])

        try:
            begin(0)
            for chunk in range(work.chunks):
                pending = {future for future in running if future is not None}
                while pending:
                    finished, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    work.report(progress)
                if learner is not None:
                    work.code_chunk(chunk)
                    work.learn_chunk(chunk)
                    begin(chunk + 1)
                elif threads > 1:
                    begin(chunk + 1)
                    work.code_chunk(chunk)
                else:
                    work.code_chunk(chunk)
                    begin(chunk + 1)
            work.report(progress)
        finally:
            stop[0] = True
            if learner:
                learner.close()
    low, freq = work.low.astype(np.uint32), work.freq.astype(np.uint32)
    if coder is not None and (work.ensemble is None or not work.ensemble.members & BYTES):
        coder.encode(low, freq)
    return low, freq


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
    ensemble: MakeEnsemble | None = None,
    learning: Learning | None = None,
    engine: Engine | None = None,
) -> NDArray[np.int32]:
    """The `count` tokens (int32) that a stream of `lanes` lanes holds, lane after lane. Raises CorruptDataError.

    The caller has checked count >= lanes >= 1 and that the cache (`cache_bytes`) is affordable.
    """
    lengths = lane_lengths(count, lanes)
    shape = fitted(shape, int(lengths[0]))
    learner = learning and Learner(kern, shape, weights, learning, lanes, threads)
    longest = int(lengths[0])
    workers = max(1, min(threads, lanes)) if engine is None else 1
    work = _Decoding(kern, shape, weights, bos, stream, count, lanes, workers, ensemble, learner, engine)
    steps = learner.steps if learner else longest
    try:
        with ThreadPoolExecutor(max(1, len(work.team) - 1)) as pool:
            for first in range(0, longest, steps):
                work.decode(pool, range(first, min(first + steps, longest)), progress)
                if learner and first + steps < longest:
                    work.learn(first)
    finally:
        if learner:
            learner.close()
    if not decoder_consistent(work.state, stream):
        raise CorruptDataError("the coded stream does not end where its tokens do")
    return work.out


class _Decoding:
    """A stream on its way to tokens. Every worker predicts the next tokens of its lanes and, when the workers before it
    have taken theirs of that step, takes them from the stream: so one predicts while another takes."""

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, bos: int, stream: NDArray[np.uint8], count: int, lanes: int,
        workers: int, ensemble: MakeEnsemble | None, learner: Learner | None, engine: Engine | None,
    ) -> None:  # fmt: skip
        self.learner, self.due = learner, 0.0
        weights = learner.weights if learner else weights
        trace = learner.trace if learner else make_trace(shape, shape.layers, 0)
        self.outcomes = learner.outcomes if learner else no_outcomes()
        self.steps = learner.steps if learner else 1
        self.shape, self.lanes, self.starts = shape, lanes, lane_starts(count, lanes)
        self.lengths = np.diff(self.starts)
        self.stream, self.state = stream, decoder_init(stream)
        self.out, self.current = np.zeros(count, np.int32), np.full(lanes, bos, np.int32)
        self.first = [lanes * i // workers for i in range(workers + 1)]
        self.team = [_Worker(kern, shape, weights, trace, b - a, engine) for a, b in pairwise(self.first)]
        self.caches = [worker.make_cache(b - a) for worker, (a, b) in zip(self.team, pairwise(self.first), strict=True)]
        self.logits = np.empty((lanes, shape.vocab), np.int32)  # without an ensemble: frequencies
        self.sums = np.empty((lanes, shape.vocab // GROUP), np.int32)
        self.bench = make_bench(shape, 1)
        self.ensemble: Ensemble | None = None
        if ensemble is not None:
            self.ensemble = ensemble(self.starts, lanes, shape)
            self.hidden = make_rows(shape, lanes)
            self.cosines = aligned(lanes * self.ensemble.recall.columns, np.float32)
            self.owner = np.searchsorted(self.first, np.arange(lanes), "right") - 1

    def decode(self, pool: ThreadPoolExecutor, steps: range, progress: Progress | None) -> None:
        """Take the tokens of these steps. The calling thread is the first worker, and tells the progress."""
        turns: list[SimpleQueue[bool]] = [SimpleQueue() for _ in self.team]
        turns[0].put(True)

        def work(i: int, tell: Progress | None = None) -> None:
            try:
                for t in steps:
                    first, last = self.first[i], min(self.first[i + 1], int(np.count_nonzero(self.lengths > t)))
                    if first < last:
                        self.predict(i, t, first, last)
                    if not turns[i].get():
                        return
                    if first < last:
                        self.take(t, first, last)
                    turns[(i + 1) % len(turns)].put(True)
                    if tell is not None and time.monotonic() >= self.due:
                        self.due = time.monotonic() + POLL
                        coded = min(int(self.state[POSITION]), self.stream.size)
                        tell(np.minimum(self.lengths, t), self.out, coded)
            except BaseException:
                for turn in turns:
                    turn.put(False)
                raise

        others = [pool.submit(work, i) for i in range(1, len(self.team))]
        try:
            work(0, progress)
        finally:
            for other in others:
                other.result()

    def predict(self, i: int, t: int, first: int, last: int) -> None:
        """Worker i predicts token t of its lanes first .. last - 1."""
        tokens, worker = self.current[first:last], self.team[i]
        lane = np.arange(last - first, dtype=np.int64)
        groups = Group(lane, lane, np.ones_like(lane), np.full_like(lane, t))
        trace = worker.trace._replace(row=(first + lane) * self.steps + t % self.steps)
        if worker.engine is not None:
            worker.run_engine(worker.engine, self.caches[i], tokens[:, None], t)
            if self.ensemble is None:
                distributions_of_rows(
                    worker.kern, self.shape, worker.weights, worker.scratch, lane.size, worker.bench,
                    self.logits[first:last], self.sums[first:last],
                )  # fmt: skip
            else:
                logits_of_rows(
                    worker.kern, self.shape, worker.weights, worker.scratch, lane.size, worker.bench, self.ensemble,
                    seen_at(t, self.lanes), self.logits[first:last], self.cosines, self.hidden, first,
                )  # fmt: skip
        elif self.ensemble is None:
            distributions(
                worker.kern, self.shape, worker.weights, self.caches[i], worker.scratch, tokens, groups, trace,
                worker.bench,
                self.logits[first:last], self.sums[first:last],
            )  # fmt: skip
        else:
            room = self.cosines[first * self.ensemble.recall.columns :]
            logits_and_memories(
                worker.kern, self.shape, worker.weights, self.caches[i], worker.scratch, tokens, groups, trace,
                worker.bench,
                self.ensemble, seen_at(t, self.lanes), self.logits[first:last], room, self.hidden, first,
            )  # fmt: skip

    def learn(self, first: int) -> None:
        """Learn from the chunk that begins with step `first`."""
        assert self.learner is not None
        owned = [(cache, lane) for cache, (a, b) in zip(self.caches, pairwise(self.first), strict=True)
                 for lane in range(b - a)]  # fmt: skip
        self.learner.learn(owned, first)

    def take(self, t: int, first: int, last: int) -> None:
        """Take token t of lanes first .. last - 1 from the stream."""
        if self.ensemble is None:
            some = slice(first, last)
            take(
                self.state, self.stream, self.logits, self.sums, t, first, last, self.bench, self.outcomes, self.current
            )
            self.out[self.starts[some] + t] = self.current[some]
            return
        recall, begin = self.ensemble.recall, np.array(self.first)[self.owner]
        where = begin * recall.columns + (np.arange(self.lanes) - begin) * width(recall, seen_at(t, self.lanes))
        take_mixed(
            self.state, self.stream, self.shape, self.ensemble, t, first, last, self.starts, self.logits, self.cosines,
            where, self.hidden, self.bench, self.outcomes, self.out, self.current,
        )  # fmt: skip
