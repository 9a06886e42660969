"""Running the lanes of a segment for a decoder, which knows the bits: tokens, one step after another.

Knows lanes and workers. Does not know text, parameters on disk, or the container.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.arrays import aligned
from nacz.coder.range_coder import POSITION, decoder_consistent, decoder_init
from nacz.errors import CorruptDataError
from nacz.kernels.ahead import Ahead
from nacz.kernels.attention import BLOCK
from nacz.kernels.cdf import GROUP
from nacz.lanes import POLL, Engine, Progress, Worker, lane_lengths, lane_starts
from nacz.predictors.backward import no_outcomes
from nacz.predictors.drafts import make_drafts
from nacz.predictors.ensemble import Ensemble, MakeEnsemble, seen_at
from nacz.predictors.learning import Learner, Learning
from nacz.predictors.networks import fitted
from nacz.predictors.recall import width
from nacz.predictors.transformer import Group, Shape, Weights, make_trace
from nacz.row_coding import (
    distributions,
    distributions_of_rows,
    forward_ahead,
    logits_ahead,
    make_bench,
    make_rows,
    memories,
    take,
    take_mixed,
)  # fmt: skip

MOST_PARTS = 4  # threads that share a pass: there are three key heads in a layer of the default model


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
    parts = min(max(1, threads // workers), MOST_PARTS) if engine is None else 1
    work = _Decoding(
        kern, shape, weights, bos, stream, count, lanes, workers, parts, ensemble, learner, engine, threads
    )
    steps = learner.steps if learner else longest
    try:
        with ThreadPoolExecutor(max(1, workers * parts - 1)) as pool:
            for first in range(0, longest, steps):
                work.decode(pool, range(first, min(first + steps, longest)), progress)
                if learner and first + steps < longest:
                    work.learn(first)
    finally:
        if work.ensemble is not None:
            work.taking.close()
        if learner:
            learner.close()
    if not decoder_consistent(work.state, stream):
        raise CorruptDataError("the coded stream does not end where its tokens do")
    return work.out


class _Decoding:
    """A stream on its way to tokens. Every worker predicts the next tokens of its lanes and, when the workers before it
    have taken theirs of that step, takes them from the stream: so one predicts while another takes.

    With an ensemble, a lane's row is forwarded together with rows for guesses at what follows (nacz.predictors.drafts);
    while guesses are right, there is a row ready already.
    """

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, bos: int, stream: NDArray[np.uint8], count: int, lanes: int,
        workers: int, parts: int, ensemble: MakeEnsemble | None, learner: Learner | None, engine: Engine | None,
        threads: int,
    ) -> None:  # fmt: skip
        self.learner, self.due = learner, 0.0
        weights = learner.weights if learner else weights
        trace = learner.trace if learner else make_trace(shape, shape.layers, 0)
        self.outcomes = learner.outcomes if learner else no_outcomes()
        self.shape, self.lanes, self.starts = shape, lanes, lane_starts(count, lanes)
        self.lengths = np.diff(self.starts)
        self.steps = learner.steps if learner else int(self.lengths[0])
        self.stream, self.state = stream, decoder_init(stream)
        self.out, self.current = np.zeros(count, np.int32), np.full(lanes, bos, np.int32)
        self.first = [lanes * i // workers for i in range(workers + 1)]
        self.ensemble: Ensemble | None = None
        rows = 1  # of a lane that may be forwarded together
        if ensemble is not None:
            self.ensemble = ensemble(self.starts, lanes, shape)
            members = self.ensemble.members if engine is None else 0
            self.drafts = make_drafts(lanes, -(-lanes // workers), shape.vocab, members)
            rows = self.drafts.depth + 1
            self.ahead, self.hidden = make_rows(shape, lanes * rows), make_rows(shape, lanes)
            # Of each lane: rows that are ready, and where the first of them is.
            self.ready, self.place = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
            self.cosines = aligned(lanes * self.ensemble.recall.columns, np.float32)
            self.owner = np.searchsorted(self.first, np.arange(lanes), "right") - 1
        self.team = [
            Worker(kern, shape, weights, trace, rows * (b - a), engine, parts) for a, b in pairwise(self.first)
        ]
        self.caches = [worker.make_cache(b - a) for worker, (a, b) in zip(self.team, pairwise(self.first), strict=True)]
        self.logits = np.empty((lanes * rows, shape.vocab), np.int32)  # without an ensemble: frequencies
        self.sums = np.empty((lanes, shape.vocab // GROUP), np.int32)
        self.bench = make_bench(shape, 1)
        if self.ensemble is not None:
            self.taking = Ahead(take_mixed, self.mix(0, 0, 0, self.starts), threads)

    def decode(self, pool: ThreadPoolExecutor, steps: range, progress: Progress | None) -> None:
        """Take the tokens of these steps. The calling thread is the first worker, and tells the progress."""
        turns: list[SimpleQueue[bool]] = [SimpleQueue() for _ in self.team]
        turns[0].put(True)

        def work(i: int, tell: Progress | None = None) -> None:
            try:
                for t in steps:
                    first, last = self.first[i], min(self.first[i + 1], int(np.count_nonzero(self.lengths > t)))
                    if first < last:
                        self.predict(pool, i, t, first, last)
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

    def predict(self, pool: ThreadPoolExecutor, i: int, t: int, first: int, last: int) -> None:
        """Worker i predicts token t of its lanes first .. last - 1."""
        worker, e = self.team[i], self.ensemble
        if e is None:
            self.predict_alone(pool, i, t, first, last)
            return
        lanes = first + np.flatnonzero(self.ready[first:last] == 0)
        if lanes.size:
            # A row may not begin a block of the cache, where an old one is overwritten, nor one of learning, before it
            # is certain that what comes before it is right.
            most = min(BLOCK - 1 - t % BLOCK, self.steps - 1 - t % self.steps)
            count = 1 + np.minimum(self.drafts.count[lanes], most)
            begin, rows = np.cumsum(count) - count, self.drafts.depth + 1
            lane, row = np.repeat(lanes, count), np.arange(count.sum()) - np.repeat(begin, count)
            place = lane * rows + row
            tokens = np.where(row == 0, self.current[lane], self.drafts.guess[np.maximum(place - 1, 0)])
            self.place[lanes], self.ready[lanes] = lanes * rows, count
            if worker.engine is not None:
                worker.run_engine(worker.engine, self.caches[i], tokens[:, None], t)
                logits_ahead(
                    worker.kern, self.shape, worker.weights, worker.scratch, lane.size, worker.bench, place,
                    self.logits, self.ahead,
                )  # fmt: skip
            else:
                groups = Group(lanes - first, begin, count, np.full_like(lanes, t))
                trace = worker.trace._replace(row=lane * self.steps + t % self.steps + row)
                worker.together(pool, lambda scratch: forward_ahead(
                    worker.kern, self.shape, worker.weights, self.caches[i], scratch, tokens, groups, trace,
                    worker.bench, place, self.logits, self.ahead,
                ))  # fmt: skip
        room = self.cosines[first * e.recall.columns :]
        memories(
            worker.kern, self.shape, e, seen_at(t, self.lanes), self.ahead, self.place, first, last, self.hidden, room
        )

    def predict_alone(self, pool: ThreadPoolExecutor, i: int, t: int, first: int, last: int) -> None:
        """The same without an ensemble: frequencies."""
        tokens, worker = self.current[first:last], self.team[i]
        if worker.engine is not None:
            worker.run_engine(worker.engine, self.caches[i], tokens[:, None], t)
            distributions_of_rows(
                worker.kern, self.shape, worker.weights, worker.scratch, last - first, worker.bench,
                self.logits[first:last], self.sums[first:last],
            )  # fmt: skip
            return
        lane = np.arange(last - first, dtype=np.int64)
        groups = Group(lane, lane, np.ones_like(lane), np.full_like(lane, t))
        trace = worker.trace._replace(row=(first + lane) * self.steps + t % self.steps)
        worker.together(pool, lambda scratch: distributions(
            worker.kern, self.shape, worker.weights, self.caches[i], scratch, tokens, groups, trace,
            worker.bench, self.logits[first:last], self.sums[first:last],
        ))  # fmt: skip

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
        self.taking.wait()
        take_mixed(*self.mix(t, first, last, where))

    def mix(self, t: int, first: int, last: int, where: NDArray[np.int64]) -> tuple[Any, ...]:
        """Arguments of `take_mixed`; where: where the cosines of lanes begin."""
        return (
            self.state, self.stream, self.shape, self.ensemble, t, first, last, self.starts, self.logits, self.cosines,
            where, self.hidden, self.bench, self.outcomes, self.out, self.current, self.drafts, self.place, self.ready,
        )  # fmt: skip
