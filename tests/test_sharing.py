"""Threads that share a forward pass, and passes a layer apart: the same bits as one thread alone, and nobody waits for
ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny
from exact_inputs import F, each_kernel, same, whole
from nacz.kernels.dispatch import chosen
from nacz.kernels.sharing import FINISHED, end_turn, first_turn, next_turn

from nacz.arrays import aligned
from nacz.lanes import Worker
from nacz.predictors import transformer
from nacz.predictors.scratch import Scratch, make_scratch, make_scratches
from nacz.quicker import LATE, SOON, TRIAL, Quicker
from nacz.weights import store

WINDOW, LANES = 256, 3


@pytest.fixture(scope="module")
def model() -> store.LoadedModel:
    return store.in_memory(tiny.model())


class Passes:
    """Forward passes over a tiny model with one cache, and what they leave."""

    def __init__(self, kern: Any, model: store.LoadedModel) -> None:
        self.kern, self.shape = kern, transformer.make_shape(model.architecture, WINDOW)
        self.weights = transformer.make_weights(model)
        self.trace = transformer.make_trace(self.shape, 0, 64)._replace(row=np.arange(64))
        self.cache = transformer.make_cache(self.shape, LANES)

    def run(self, s: Scratch, tokens: Any, groups: list[tuple[int, int, int]]) -> None:
        lane, count, position = (np.array(column, np.int64) for column in zip(*groups, strict=True))
        rows = transformer.Group(lane, np.cumsum(count) - count, count, position)
        transformer.forward(self.kern, self.shape, self.weights, self.cache, s, tokens, rows, self.trace)

    def left(self, s: Scratch, m: int) -> list[Any]:
        d = self.shape.dim
        logits = aligned(m * self.shape.vocab, F)
        transformer.head(self.kern, self.shape, self.weights, s, 0, m, logits)
        trace = (self.trace.x, self.trace.out, self.trace.end[: m * d])
        return [s.a[: m * d], s.zero[:m], s.step[:m], s.key[: m * d], s.key_step[:m], logits, *trace, *self.cache]


def groups_of(rows: int, step: int) -> list[tuple[int, int, int]]:
    """That many rows of each of three lanes, at unlike positions."""
    return [(lane, rows, step * rows + 100 * lane) for lane in range(LANES)]


@each_kernel
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_a_pass(kern: Any, parts: int, model: store.LoadedModel) -> None:
    alone, shared = Passes(kern, model), Passes(kern, model)
    one, some = make_scratch(alone.shape, 64), make_scratches(shared.shape, 64, parts)
    with ThreadPoolExecutor(parts) as pool:
        for step, rows in enumerate([1, 1, 2, 1, 3, 7]):
            m, groups = rows * LANES, groups_of(rows, step)
            tokens = whole(f"shared {step}", 0, 319, m).astype(np.int32)
            alone.run(one, tokens, groups)
            for future in [pool.submit(shared.run, s, tokens, groups) for s in some]:
                future.result()
            for mine, expected in zip(shared.left(some[0], m), alone.left(one, m), strict=True):
                same(mine, expected)
            logits = aligned(m * alone.shape.vocab, F)
            for s in some:
                transformer.head_part(shared.kern, shared.shape, shared.weights, s, 0, m, logits)
            same(logits, alone.left(one, m)[5])


def test_every_key_head_is_somebodys(model: store.LoadedModel) -> None:
    shape = transformer.make_shape(model.architecture, WINDOW)
    for parts in (1, 2, 3, 5):
        mine = np.array([s.mine for s in make_scratches(shape, 4, parts)])
        np.testing.assert_array_equal(mine.sum(axis=0), 1)
    # The heads that see most are not one thread's.
    shape = shape._replace(layers=1, kv_heads=4, reach=np.array([2, 64, 3, 64], np.int64))
    work = [int(shape.reach[s.mine == 1].sum()) for s in make_scratches(shape, 4, 2)]
    assert sorted(work) == [66, 67]


@each_kernel
def test_blocks_a_layer_apart(kern: Any, model: store.LoadedModel) -> None:
    """Blocks of one lane, begun at once by four threads, past the end of the window."""
    size, blocks = 48, 20
    tokens = whole("apart", 0, 319, size * blocks).astype(np.int32)
    alone, apart = Passes(kern, model), Passes(kern, model)
    scratch = make_scratch(alone.shape, size)
    expected = []
    for i in range(blocks):
        alone.run(scratch, tokens[i * size : (i + 1) * size], [(0, size, i * size)])
        expected.append(scratch.a[: size * alone.shape.dim].copy())
    turn = first_turn()
    end_turn(turn)

    def forward(i: int, turn: Any) -> Any:
        own = Passes(kern, model)
        own.cache = apart.cache
        s = make_scratch(own.shape, size)
        s = s._replace(share=s.share._replace(before=turn.before, after=turn.after))
        own.run(s, tokens[i * size : (i + 1) * size], [(0, size, i * size)])
        end_turn(turn)
        return s.a[: size * own.shape.dim]

    with ThreadPoolExecutor(4) as pool:
        futures = []
        for i in range(blocks):
            turn = next_turn(turn)
            futures.append(pool.submit(forward, i, turn))
        for future, bits in zip(futures, expected, strict=True):
            same(future.result(), bits)
    for mine, others in zip(apart.cache, alone.cache, strict=True):
        same(mine, others)


def test_nobody_waits_for_a_part_that_fails(model: store.LoadedModel) -> None:
    passes = Passes(chosen()[1], model)
    worker = Worker(passes.kern, passes.shape, passes.weights, passes.trace, 8, parts=2)
    tokens, caller = np.zeros(1, np.int32), threading.get_ident()

    def job(scratch: Scratch) -> None:
        if threading.get_ident() == caller:
            raise KeyboardInterrupt
        passes.run(scratch, tokens, [(0, 1, 0)])

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        worker.together(pool, job)
    assert worker.scratches[0].share.met[0] == FINISHED


def run_quicker(quicker: Quicker, times: int, seconds: tuple[float, float]) -> list[int]:
    ways = []
    for _ in range(times):
        ways.append(quicker.way)
        quicker.took(seconds[quicker.way])
    return ways


def test_the_quicker_way_is_found_and_found_again() -> None:
    quicker = Quicker()
    ways = run_quicker(quicker, 20_000, (2.0, 1.0))
    trials = ways.count(0)
    assert ways[0] == 1 and ways[-1] == 1
    assert TRIAL * 20_000 // (LATE + TRIAL) <= trials < TRIAL * 40, "the other way is tried, ever less often"
    ways = run_quicker(quicker, 3 * LATE, (1.0, 2.0))
    assert ways[-1] == 0 and ways.count(1) < 2 * LATE
    ways = run_quicker(quicker, 3 * LATE, (2.0, 1.0))
    assert ways[-1] == 1


def test_a_slow_way_is_left_soon() -> None:
    assert run_quicker(Quicker(), 2 * SOON + TRIAL, (1.0, 3.0)).count(1) == SOON
