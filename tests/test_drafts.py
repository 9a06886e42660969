"""Guesses of a decoder: right ones save passes over the network, wrong ones cost some, and neither changes a token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny
from nacz.coder.range_coder import RangeEncoder
from nacz.kernels.cdf import total_bits
from nacz.kernels.dispatch import chosen

from nacz import lane_decoding
from nacz.lane_encoding import encode_lanes
from nacz.predictors import drafts
from nacz.predictors.drafts import ONE, draft, judge, make_drafts
from nacz.predictors.ensemble import Ensemble, adjust, frequencies, learn, make_ensemble
from nacz.predictors.language_model import mixed_in
from nacz.predictors.learning import Learning
from nacz.predictors.members import ALL, BIAS, MATCH, NGRAM
from nacz.predictors.preset import preset
from nacz.predictors.transformer import make_shape, make_weights
from nacz.weights import store

VOCAB = 512
PHRASE = [40, 17, 230, 21, 95, 77, 201, 99, 130, 66, 250, 33, 18]


def some_tokens(n: int) -> Any:
    """n token ids of a phrase that comes again and again, with a token of its own in between now and then."""
    found = np.resize(np.array(PHRASE, np.int32), n)
    found[::31] = 17 + np.arange(found[::31].size) * 7 % 200
    return found


def after(tokens: Any, members: int) -> Ensemble:
    """An ensemble that has learned `tokens`, the first ones of a lane of twice as many, from even logits."""
    e = make_ensemble(members, np.array([0, 2 * tokens.size]), 1, 4, VOCAB, preset(0))
    room = np.zeros(2 * tokens.size, np.int32)
    room[: tokens.size] = tokens
    fixed, freq, sums = np.zeros(VOCAB, np.int32), np.zeros(VOCAB, np.int32), np.zeros(VOCAB // 64, np.int32)
    for at, token in enumerate(tokens):
        adjust(e, VOCAB, 0, at, 0, 0, room, np.zeros(1, np.float32), fixed)
        frequencies(e, VOCAB, freq, sums)
        learn(e, 0, at, token, room, freq)
    return e


@pytest.mark.parametrize("members", [NGRAM, MATCH, NGRAM | MATCH])
def test_what_repeats_is_guessed_once_guesses_have_been_right(members: int) -> None:
    known = np.resize(np.array(PHRASE, np.int32), 60)
    truth = np.resize(np.array(PHRASE, np.int32), 120)
    e, d = after(known, members), make_drafts(1, 1, VOCAB, members)
    room = truth.copy()
    room[60:] = 0
    for _ in range(8):  # a guess at the next token is judged although it is not likely enough to be made
        draft(d, e, 0, 60, 0, 120, room)
        assert judge(d, 0, truth[60])
    draft(d, e, 0, 60, 0, 120, room)
    assert d.count[0] >= 3
    np.testing.assert_array_equal(d.guess[: d.count[0]], truth[60 : 60 + d.count[0]])
    draft(d, e, 0, 60, 0, 62, room)
    assert d.count[0] <= 2, "guesses end with the lane"
    for _ in range(200):
        draft(d, e, 0, 60, 0, 120, room)
        assert not judge(d, 0, VOCAB - 1)
    draft(d, e, 0, 60, 0, 120, room)
    assert d.count[0] == 0, "what was wrong so often is not tried again"


def test_room_for_rows_ahead_is_bounded() -> None:
    assert make_drafts(1, 1, 49_152, ALL).depth == drafts.DEPTH
    assert 4 * 49_152 * 64 * (make_drafts(64, 32, 49_152, ALL).depth + 1) <= drafts.BYTES_AHEAD
    assert make_drafts(256, 128, 49_152, ALL).depth == 0
    assert make_drafts(1, 1, VOCAB, BIAS).depth == 0, "nobody who could guess"


@pytest.mark.parametrize("learning", [None, Learning(layers=2, rate=500, rows=150)])
@pytest.mark.parametrize("n_lanes", [1, 3])
def test_no_guess_changes_a_token(learning: Learning | None, n_lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = store.in_memory(tiny.model())
    # Windows of two blocks: each new block takes the place of one that the rows before it have to see.
    shape, weights, kern = make_shape(model.architecture, 256), make_weights(model), chosen()[1]
    tokens = some_tokens(1_000)
    mixed, coder = mixed_in(ALL, 0, model), RangeEncoder(total_bits(shape.vocab))
    encode_lanes(kern, shape, weights, 0, tokens, n_lanes, 1, ensemble=mixed, learning=learning, coder=coder)
    stream = np.frombuffer(coder.finish(), np.uint8)
    rows = []

    class Counting(lane_decoding._Decoding):
        def predict(self, pool: ThreadPoolExecutor, i: int, t: int, first: int, last: int) -> None:
            super().predict(pool, i, t, first, last)
            rows.append(int(self.ready[first:last].max()))

    monkeypatch.setattr(lane_decoding, "_Decoding", Counting)
    for least, most in ((ONE + 1, 1), (0, drafts.DEPTH + 1), (ONE // 2, drafts.DEPTH + 1)):
        monkeypatch.setattr(drafts, "least_for", lambda together, least=least: least)
        for threads in (1, 2):
            rows.clear()
            back = lane_decoding.decode_lanes(
                kern, shape, weights, 0, stream, tokens.size, n_lanes, threads, ensemble=mixed, learning=learning,
            )  # fmt: skip
            np.testing.assert_array_equal(back, tokens)
            assert max(rows) == most, f"guesses from {least} on, {threads} threads"
