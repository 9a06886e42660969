"""What encoders and decoders of lanes have in common.

A segment's tokens are cut into L contiguous lanes that advance in lockstep: step t codes token t of every lane, in lane
order, into one stream. Every lane has its own transformer context; an ensemble, if there is one, is shared and goes
through the tokens in coding order. Workers are threads that own lanes (the compiled code holds no lock), and where
there are fewer lanes than threads some share a lane (nacz.kernels.sharing); no number of either can change a bit.
Encoders (nacz.lane_encoding) know all tokens and forward chunks of them; decoders (nacz.lane_decoding) forward what
they know and what they guess.

Knows lanes and workers. Does not know the order of their work, text, parameters on disk, or the container.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nacz.kernels.sharing import Turn, release
from nacz.predictors.backward import Outcomes
from nacz.predictors.networks import forward, make_cache, make_scratch, make_scratches
from nacz.predictors.transformer import Group, Shape, Trace, Weights
from nacz.quicker import Quicker
from nacz.row_coding import intervals, make_bench

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


class Worker:
    """What one thread works with: scratch space for `rows` rows. engine: runs the transformer, None for the compiled
    one. parts: threads that share its passes."""

    def __init__(
        self, kern: Any, shape: Shape, weights: Weights, trace: Trace, rows: int, engine: Engine | None = None,
        parts: int = 1,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.kern, self.shape, self.weights, self.trace = kern, shape, weights, trace
        self.scratch = make_scratch(shape, rows)
        self.scratches = make_scratches(shape, rows, parts) if parts > 1 else []
        self.quicker = Quicker() if len(self.scratches) > 1 else None
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

    def together(self, pool: ThreadPoolExecutor, job: Callable[[Any], None]) -> None:
        """job(scratch) for each of those who share a pass, or alone while that is quicker. What the job leaves in a
        scratch is in that of whoever was first. pool: has threads for all but this one."""
        if self.quicker is None:
            job(self.scratch)
            return
        start = time.perf_counter()
        if self.quicker.way == 0:
            job(self.scratch)
        else:
            first, *rest = self.scratches
            others: list[Future[None]] = []
            try:
                others += [pool.submit(job, scratch) for scratch in rest]
                job(first)
            except BaseException:
                release(first.share)  # the others would wait for ever
                raise
            for other in others:
                other.result()
        self.quicker.took(time.perf_counter() - start)

    def forward(
        self, cache: Any, inputs: NDArray[np.int32], position: int, row: int, turn: Turn | None = None
    ) -> None:
        """Run one block of a cache's only lane; its hidden rows are then in the scratch space. row: where its rows
        begin in the trace. turn: between which other blocks, which other threads may be at."""
        if self.engine is not None:
            self.run_engine(self.engine, cache, inputs[None], position)
            return
        groups = Group(*(np.array([v], np.int64) for v in (0, 0, inputs.size, position)))
        trace = self.trace._replace(row=np.arange(row, row + inputs.size))
        scratch = self.scratch
        if turn is not None:
            scratch = scratch._replace(share=scratch.share._replace(before=turn.before, after=turn.after))
        forward(self.kern, self.shape, self.weights, cache, scratch, inputs, groups, trace)

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
