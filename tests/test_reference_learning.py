"""The slow second reading of docs/learning.md learns the same, to the bit, as nacz does."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
from nacz.coder.range_coder import encode_intervals
from nacz.kernels.dispatch import KERNELS, usable
from nacz.kernels.gemm import unpack
from test_learning import as_rows

from nacz.lane_encoding import encode_lanes
from nacz.predictors.language_model import LanguageModelCoder, Params
from nacz.predictors.learning import MATRICES, Learner, Learning
from nacz.predictors.reach import EXPLICIT, Near
from nacz.predictors.transformer import make_shape, make_weights
from nacz.segment_coder import CodecOptions
from nacz.weights import store

WINDOW = 256


def recorded(monkeypatch: pytest.MonkeyPatch, kind: Any, state: Any) -> list[dict[tuple[int, str], Any]]:
    """A list that gets `state(learner)` after every block that a learner of this kind learns."""
    history: list[dict[tuple[int, str], Any]] = []
    learn = kind.learn

    def learn_and_keep(self: Any, *arguments: Any) -> None:
        learn(self, *arguments)
        history.append(state(self))

    monkeypatch.setattr(kind, "learn", learn_and_keep)
    return history


def state_of_nacz(learner: Learner) -> dict[tuple[int, str], Any]:
    state = {}
    for layer in learner._layers:
        for name in MATRICES:
            w = learner.matrix(name, layer)
            floats = [x.copy() if x.size < w.n * w.k else as_rows(x, w.n, w.k) for x in (w.first, w.second, w.master)]
            state[layer, name] = (unpack(w.packed, w.n, w.k), *floats)
    return state


def state_of_reference(learner: Any) -> dict[tuple[int, str], Any]:
    return {
        (layer, name): (learner.layers[layer][name][0], w.first, w.second, w.master)
        for (layer, name), w in learner.weights.items()
    }


# The third and fourth learn from blocks that are longer than the window: keys have left the cache, and the first block
# is seen from further away than the window is long. The last one's window is longer than what gradients look at.
@pytest.mark.parametrize(
    ("tokens", "lanes", "learning", "near"),
    [
        (391, 1, Learning(2, 50, 96, 1), None), (454, 3, Learning(1, 20, 150, 1), None),
        (602, 1, Learning(2, 200, 300, 1), None),
        (602, 1, Learning(2, 100, 300, 1), Near(EXPLICIT, bytes([2, 3]))),
        (2_500, 1, Learning(1, 100, 1_000, 1), None),
        (391, 1, Learning(2, 500, 96), None), (454, 3, Learning(1, 200, 150), None),
        (602, 1, Learning(2, 2_000, 300), Near(EXPLICIT, bytes([2, 3]))),
    ],  # fmt: skip
)
def test_the_same_steps(
    reference: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: int, lanes: int, learning: Learning,
    near: Near | None,
) -> None:
    i = np.arange(tokens, dtype=np.int64)
    ids = (17 + (i * i * 7 + i // 5) % 235).astype(np.int32)
    model = store.in_memory(tiny.model())
    expected = recorded(monkeypatch, Learner, state_of_nacz)
    window = 512 if near else 2_304 if tokens > 2_304 else WINDOW
    shape, weights = make_shape(model.architecture, window, near), make_weights(model)
    kern = KERNELS[usable()[0]]
    payload = encode_intervals(*encode_lanes(kern, shape, weights, 0, ids, lanes, 1, learning=learning))
    seen = recorded(monkeypatch, reference.Learner, state_of_reference)
    params = reference.Fields(Params(window, lanes, tokens, 0, learning, near).to_bytes())
    slow_model = reference.Model(tiny.write(tmp_path).read_bytes())
    plain = tiny.tokenizer().decode(ids)
    assert reference.decode_language_model(slow_model, params, payload, len(plain)) == plain
    assert len(seen) == len(expected) == (tokens - 1) // lanes // (learning.rows // lanes)
    for block, (a, b) in enumerate(zip(seen, expected, strict=True)):
        assert a.keys() == b.keys()
        for place in a:
            for x, y in zip(a[place], b[place], strict=True):
                assert np.array_equal(x, y), (block, place)


def test_a_segment_that_learns_and_mixes(reference: ModuleType, tmp_path: Path) -> None:
    path = tiny.write(tmp_path)
    options = CodecOptions(model=str(path), window=512, lanes=2, learn=1, ensemble="all")
    data = b"the cat sat on the mat and the dog on the log; " * 24
    coder = LanguageModelCoder(options)
    coder.on_trial = False
    params, payload = coder.encode(data, options=options, threads=1, progress=None)
    p = Params.from_bytes(params, len(data))
    assert p.learning is not None and p.members and p.tokens > p.learning.rows
    model = reference.Model(path.read_bytes())
    assert reference.decode_language_model(model, reference.Fields(params), payload, len(data)) == data
