"""The transformer: the same bits as its slow twin, however rows are grouped and whichever kernel multiplies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slow_model
import tiny
from exact_inputs import F, each_kernel, same, sha, whole
from numpy.typing import NDArray

from nacz.arrays import aligned
from nacz.predictors import transformer
from nacz.predictors.scratch import make_scratch
from nacz.weights import store


class Runner:
    """A tiny model and one kernel: logits of tokens of some lanes, in any grouping."""

    def __init__(self, kern: Any, model: store.LoadedModel, lanes: int, rows: int, window: int = 256) -> None:
        self.kern, self.shape = kern, transformer.make_shape(model.architecture, window)
        self.weights = transformer.make_weights(model)
        self.trace = transformer.make_trace(self.shape, self.shape.layers, 0)
        self.cache, self.scratch = transformer.make_cache(self.shape, lanes), make_scratch(self.shape, rows)

    def logits(self, tokens: NDArray[np.int32], groups: list[tuple[int, int, int]]) -> NDArray[np.float32]:
        """groups: (lane, rows, position) each. Returns float32 [rows, vocab]."""
        lane, count, position = (np.array(column, np.int64) for column in zip(*groups, strict=True))
        parts = transformer.Group(lane, np.cumsum(count) - count, count, position)
        transformer.forward(self.kern, self.shape, self.weights, self.cache, self.scratch, tokens, parts, self.trace)
        out = aligned(tokens.size * self.shape.vocab, F)
        transformer.head(self.kern, self.shape, self.weights, self.scratch, 0, tokens.size, out)
        return out.reshape(tokens.size, -1)


@pytest.fixture(scope="module")
def tiny_model() -> store.LoadedModel:
    return store.in_memory(tiny.model())


@pytest.fixture(scope="module")
def tokens() -> NDArray[np.int32]:
    return whole("tokens", 0, 319, 600).astype(np.int32)


@pytest.fixture(scope="module")
def slow_logits(tiny_model: store.LoadedModel, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    return slow_model.SlowModel(tiny_model, 256).logits(tokens)


def test_the_tiny_model_is_pinned(tiny_model: store.LoadedModel) -> None:
    assert tiny_model.weights_hash.hex() == "a4f33456e427996a69564325dda2af238d9f56af4cdeaf57b680b84ca5d73084"
    assert tiny_model.vocabulary.hash.startswith("629f3805e8b34062")


@each_kernel
@pytest.mark.parametrize("rows", [1, 7, 64, 512])
def test_forward_in_blocks(
    kern: Any, rows: int, tiny_model: store.LoadedModel, tokens: NDArray[np.int32], slow_logits: NDArray[np.float32]
) -> None:
    runner = Runner(kern, tiny_model, 1, rows)
    for at in range(0, len(tokens), rows):
        some = tokens[at : at + rows]
        same(runner.logits(some, [(0, len(some), at)]), slow_logits[at : at + rows])


@each_kernel
def test_forward_step_by_step_in_many_lanes(
    kern: Any, tiny_model: store.LoadedModel, tokens: NDArray[np.int32], slow_logits: NDArray[np.float32]
) -> None:
    """Lanes that start at different times see what one lane alone sees; so do lanes given unlike numbers of tokens."""
    lanes, delay = 13, 9
    runner = Runner(kern, tiny_model, lanes, 64)
    for t in range(300):
        groups = [(lane, 1, t - lane * delay) for lane in range(lanes) if t >= lane * delay]
        positions = [position for _, _, position in groups]
        same(runner.logits(tokens[positions], groups), slow_logits[positions])
    groups = [(4, 3, 300 - 4 * delay), (0, 1, 300), (12, 20, 300 - 12 * delay)]
    spans = np.concatenate([np.arange(position, position + count) for _, count, position in groups])
    same(runner.logits(tokens[spans], groups), slow_logits[spans])


def test_forward_is_pinned(slow_logits: NDArray[np.float32]) -> None:
    assert sha(slow_logits) == "a0071051203e35e7"
