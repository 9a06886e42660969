"""Running the lanes of a segment for an encoder, which knows all tokens: intervals for the coder.

An encoder forwards chunks of steps and then codes them; where the network learns, a chunk is what it learns from at a
time, and the next one is forwarded with other weights.

Knows tokens, lanes and workers. Does not know text, parameters on disk, or the container.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.arrays import aligned
from nacz.coder.range_coder import RangeEncoder
from nacz.kernels.ahead import Ahead
from nacz.kernels.cdf import total_bits
from nacz.kernels.sharing import Turn, end_turn, first_turn, next_turn
from nacz.lanes import POLL, Engine, Progress, Worker, lane_lengths, lane_starts
from nacz.predictors.backward import no_outcomes
from nacz.predictors.ensemble import MakeEnsemble
from nacz.predictors.learning import Learner, Learning
from nacz.predictors.members import BYTES
from nacz.predictors.networks import fitted
from nacz.predictors.transformer import Shape, Weights, make_trace
from nacz.row_coding import HEAD_ROWS, keep_rows, make_bench, make_rows, mixed_intervals, remember_rows, rows_to_mix

ROWS = 256  # rows per block when encoding; any value gives the same bits
CHUNK = 2048  # rows, of all lanes together, that are forwarded before they are coded; any value gives the same bits



class Stake(NamedTuple):
    """What learning must beat: after so many steps of each lane, tokens have to have taken fewer bits than these."""

    steps: int
    bits: float


class LearningLosesError(Exception):
    """The network that learns did not beat its stake: code without learning."""


class _Encoding:
    """A segment on its way to intervals: forwards chunks of steps lane by lane, codes them row by row.

    Without an ensemble lanes do not meet: each is one chunk, and is coded as it is forwarded.
    """

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, bos: int, tokens: NDArray[np.int32], lanes: int, rows: int,
        ensemble: MakeEnsemble | None, learner: Learner | None, engine: Engine | None, coder: RangeEncoder | None,
        threads: int, longest: int,
    ) -> None:  # fmt: skip
        self.kern, self.shape, self.learner, self.engine, self.coder = kern, shape, learner, engine, coder
        self.weights = learner.weights if learner else weights
        self.trace = learner.trace if learner else make_trace(shape, shape.layers, 0)
        self.outcomes = learner.outcomes if learner else no_outcomes()
        self.tokens, self.lanes, self.rows = tokens, lanes, rows
        self.starts = lane_starts(tokens.size, lanes)
        self.lengths = np.minimum(np.diff(self.starts), longest)
        self.inputs = np.empty_like(tokens)
        self.inputs[1:] = tokens[:-1]
        self.inputs[self.starts[:-1]] = bos
        # Token t of a lane is number t * lanes + lane in coding order: only the last step can be short, and it lacks
        # the last lanes.
        self.count = int(self.lengths.sum())
        self.low, self.freq = np.empty(self.count, np.int64), np.empty(self.count, np.int64)
        self.done, self.sharing = np.zeros(lanes, np.int64), Lock()
        self.behind: dict[tuple[int, int], int] = {}  # rows of blocks that were coded before one that precedes them
        self.idle: SimpleQueue[Worker] = SimpleQueue()
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
            # And so are logits of some rows while others are mixed.
            self.fixed = [np.empty((HEAD_ROWS, shape.vocab), np.int32) for _ in range(2)]
            columns = self.ensemble.recall.columns
            self.cosines = [aligned(HEAD_ROWS * columns, np.float32) for _ in range(2)]
            some = np.empty(0, np.uint32)
            self.mixing = Ahead(mixed_intervals, self.mix(0, 0, 0, 0, some, some, 0), threads)
        self.chunks = -(-longest // self.steps)
        # Where there are fewer lanes than threads, some are at the same lane, a layer apart.
        self.rows = min(self.rows, -(-self.steps // -(-threads // lanes)))

    def blocks(self, chunk: int) -> list[tuple[int, int]]:
        """(lane, first step) of the blocks of a chunk, those of a lane in order. Where lanes meet after the chunk, each
        comes round after all others; where they do not, one is done before the next needs a cache."""
        steps = range(chunk * self.steps, (chunk + 1) * self.steps, self.rows)
        found = [(lane, first) for first in steps for lane in range(self.lanes) if first < self.lengths[lane]]
        return found if self.ensemble is not None or self.learner is not None else sorted(found)

    def forward_block(self, chunk: int, lane: int, first: int, turn: Turn, stop: list[bool]) -> None:
        """Forward a block; without an ensemble, code it too."""
        if stop[0]:
            return
        try:
            worker = self.idle.get_nowait()
        except Empty:
            worker = Worker(self.kern, self.shape, self.weights, self.trace, self.rows, self.engine)
        with self.sharing:
            if self.caches[lane] is None:
                self.caches[lane] = worker.make_cache(1)
            cache = self.caches[lane]
        m = min(self.rows, (chunk + 1) * self.steps - first, int(self.lengths[lane]) - first)
        at = int(self.starts[lane]) + first
        worker.forward(cache, self.inputs[at : at + m], first, lane * self.steps + first - chunk * self.steps, turn)
        place = first * self.lanes + lane
        if self.ensemble is None:
            # Another block of the lane may be coded by now, so work space is not shared.
            outcomes = self.outcomes._replace(total=np.zeros_like(self.outcomes.total))
            low, freq = worker.intervals(lane, first, self.tokens[at : at + m], outcomes)
            some = slice(place, place + (m - 1) * self.lanes + 1, self.lanes)
            self.low[some], self.freq[some] = low, freq
            with self.sharing:
                self.behind[lane, first] = m
                while (lane, int(self.done[lane])) in self.behind:
                    self.done[lane] += self.behind.pop((lane, int(self.done[lane])))
        else:
            place -= chunk * self.steps * self.lanes
            some = slice(place, place + (m - 1) * self.lanes + 1, self.lanes)
            keep_rows(worker.scratch, m, self.hidden[chunk % 2], some)
        # Lanes that are done need no cache, but a chunk that is learned from does.
        if first + m == self.lengths[lane] and not self.learner:
            self.caches[lane] = None
        self.idle.put(worker)

    def learn_chunk(self, chunk: int) -> None:
        """Learn from a chunk that was coded, if another chunk follows. The last step alone can lack lanes, so every
        lane has all steps of such a chunk."""
        if self.learner is not None and chunk + 1 < self.chunks:
            caches = [(cache, 0) for cache in self.caches if cache is not None]
            self.learner.learn(caches, chunk * self.steps)

    def code_chunk(self, chunk: int, pool: ThreadPoolExecutor | None) -> None:
        """Code the tokens of a chunk that was forwarded, in coding order; the ensemble learns from them. pool: who
        makes the logits of some rows while those before are coded, if anybody else does."""
        e = self.ensemble
        if e is None:
            return
        first, hidden = chunk * self.steps * self.lanes, self.hidden[chunk % 2]
        m = min(self.steps * self.lanes, self.count - first)
        remember_rows(e, hidden, first, m, self.lanes, self.starts, self.tokens)
        pieces, count = 0, 0
        if e.members & BYTES:
            number = np.arange(first, first + m)
            some = self.tokens[self.starts[number % self.lanes] + number // self.lanes]
            count = int(e.beside.spelling.count[some].sum())
        low, freq = np.empty(count, np.uint32), np.empty(count, np.uint32)

        def prepare(at: int) -> None:
            half = at // HEAD_ROWS % 2
            rows_to_mix(
                self.kern, self.shape, self.weights, e, hidden, first + m, at, min(HEAD_ROWS, m - at), self.bench,
                self.fixed[half], self.cosines[half],
            )  # fmt: skip

        prepare(0)
        self.mixing.wait()
        for at in range(0, m, HEAD_ROWS):
            half, following = at // HEAD_ROWS % 2, at + HEAD_ROWS
            ahead = pool.submit(prepare, following) if pool is not None and following < m else None
            pieces = mixed_intervals(
                *self.mix(first + m, first + at, min(HEAD_ROWS, m - at), half, low, freq, pieces)
            )
            if ahead is not None:
                ahead.result()
            elif following < m:
                prepare(following)
        if self.coder is not None and e.members & BYTES:
            self.coder.encode(low, freq)
        self.done[:] = np.minimum(self.lengths, (chunk + 1) * self.steps)

    def mix(self, known: int, first: int, n: int, half: int, low: Any, freq: Any, pieces: int) -> tuple[Any, ...]:
        """Arguments of `mixed_intervals`, whose logits and cosines are in that half of the room."""
        return (
            self.shape, self.ensemble, known, first, n, self.lanes, self.starts, self.tokens, self.bench,
            self.fixed[half], self.cosines[half], self.outcomes, self.low, self.freq, low, freq, pieces,
        )  # fmt: skip

    def compare(self, chunk: int, stake: Stake | None) -> None:
        """Raise LearningLosesError when the chunk ends what the stake is about, and it was not beaten."""
        if stake is not None and chunk == min(self.chunks - 1, -(-stake.steps // self.steps) - 1):
            known = self.freq[: min(self.count, stake.steps * self.lanes)]
            if bits_of(self.shape, known) >= stake.bits:
                raise LearningLosesError

    def report(self, progress: Progress | None) -> None:
        """Tell how far it is. The bytes are for the eyes only: the coder itself has not run yet."""
        if progress is not None:
            done = self.done.copy()
            known = np.concatenate([self.freq[lane :: self.lanes][:n] for lane, n in enumerate(done)])
            progress(done, self.tokens, int(bits_of(self.shape, known) / 8))


def bits_of(shape: Shape, freq: NDArray[Any]) -> float:
    """What tokens of such frequencies take, in bits."""
    return float(np.sum(total_bits(shape.vocab) - np.log2(freq)))


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
    steps: int | None = None,
    stake: Stake | None = None,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(cumulative, frequency) of every token in coding order, uint32[tokens] each, of a total of 2^total_bits(vocab).

    tokens: int32[n], n >= lanes >= 1. ensemble: makes the predictors that mix in, None for the language model alone.
    learning: how the network learns, None for weights that stay. engine: who runs the transformer if it is not
    compiled code; none that learns. coder: takes all intervals, in order; where the ensemble spells tokens these are
    others, and without a coder it does not. steps: code no more of each lane, None for all.
    stake: raises LearningLosesError where the network, at the end of a block, does not beat it.
    The result does not depend on `threads`, `rows`, `kern` or `engine`. With two threads or more one chunk is forwarded
    by that many workers while the calling thread codes the one before, unless the network has to learn from that first.
    """
    longest = int(lane_lengths(tokens.size, lanes)[0])
    longest = longest if steps is None else min(longest, steps)
    shape = fitted(shape, longest)
    learner = learning and Learner(kern, shape, weights, learning, lanes, threads)
    work = _Encoding(
        kern, shape, weights, bos, tokens, lanes, min(rows, longest), ensemble, learner, engine, coder, threads, longest
    )
    stop = [False]
    running: list[Future[None]] = []
    turn = first_turn()
    end_turn(turn)
    turns = [turn] * lanes

    def run(chunk: int, lane: int, first: int, turn: Turn) -> None:
        try:
            work.forward_block(chunk, lane, first, turn, stop)
        finally:
            end_turn(turn)

    # Another engine has no layers that one could follow.
    with ThreadPoolExecutor(threads if engine is None else 1) as pool:

        def begin(chunk: int) -> None:
            # Threads take what was begun first, so the block that another one waits for is on its way or done.
            running.clear()
            for lane, first in work.blocks(chunk):
                turns[lane] = next_turn(turns[lane])
                running.append(pool.submit(run, chunk, lane, first, turns[lane]))

        try:
            begin(0)
            for chunk in range(work.chunks):
                pending = set(running)
                while pending:
                    finished, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    work.report(progress)
                if learner is not None:
                    work.code_chunk(chunk, pool if threads > 1 else None)
                    work.compare(chunk, stake)
                    work.learn_chunk(chunk)
                    begin(chunk + 1)
                elif threads > 1:
                    begin(chunk + 1)
                    work.code_chunk(chunk, None)
                else:
                    work.code_chunk(chunk, None)
                    begin(chunk + 1)
            work.report(progress)
        finally:
            stop[0] = True
            if work.ensemble is not None:
                work.mixing.close()
            if learner:
                learner.close()
    low, freq = work.low.astype(np.uint32), work.freq.astype(np.uint32)
    if coder is not None and (work.ensemble is None or not work.ensemble.members & BYTES):
        coder.encode(low, freq)
    return low, freq
