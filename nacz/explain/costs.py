"""What every token of a text costs in bits, what was expected instead, and which predictor carried it.

The distributions are those that the coder uses, so the bits are what an archive of one lane at the default level pays,
but for what the coder rounds. Tokens are grouped into units that are text by themselves: a character cut in two by the
tokenizer, or an escaped byte, is one unit. Knows models, tokens and bits; does not know pages or files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.explain.mixture import CHUNK, Mixture, choices
from nacz.kernels.cdf import total_bits
from nacz.kernels.dispatch import chosen
from nacz.predictors.members import MEMBERS
from nacz.predictors.networks import fitted, forward, make_cache, make_scratch, make_shape, make_weights
from nacz.predictors.preset import preset_of
from nacz.predictors.spelling import spelling_of
from nacz.predictors.transformer import Group, Shape, Weights, make_trace
from nacz.row_coding import Rows, keep_rows, make_rows
from nacz.tokens import Tokenizer
from nacz.weights.store import LoadedModel

__all__ = ["ALTERNATIVES", "LANGUAGE_MODEL", "WINDOW", "Costs", "explain"]

ALTERNATIVES = 5
LANGUAGE_MODEL = "language model"
WINDOW = 2048  # positions of context, of all heads
STRETCH = 16_000  # tokens that share a context: bounds time and cache, costs about 50 bytes for each further one
_ROWS = 128
_LEAST_SAVED = 0.1  # bits that the ensemble must save for a member to have carried a unit
_LONGEST_UNIT = 16  # bytes that may wait for a character to be complete

Report = Callable[[int, int], None]  # tokens done, tokens in all; may raise to cancel


@dataclass(frozen=True)
class Costs:
    """Units of a text in order. `n` units:

    data          the text, bytes
    lengths       int32[n], bytes of each unit; they sum to len(data)
    bits          float32[n], what each unit cost, with the language model and all of the ensemble
    alternatives  int32[n, 5], the most probable tokens for the first token of the unit, best first
    chances       float32[n, 5], their probabilities before bytes are mixed in
    words         bytes of each token id that occurs in `alternatives`
    predictors    name to float32[n]: what a predictor alone would have paid; the language model is one of them
    only          member to float32[n]: what it would have been with this member of the ensemble alone
    without       member to float32[n]: what it would have been with all other members
    """

    data: bytes
    lengths: NDArray[np.int32]
    bits: NDArray[np.float32]
    alternatives: NDArray[np.int32]
    chances: NDArray[np.float32]
    words: dict[int, bytes]
    predictors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    only: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    without: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def carriers(self) -> tuple[list[str], NDArray[np.uint8]]:
        """Names, and for each unit the number of the one that carried it: the language model where the ensemble saved
        less than a tenth of a bit, else the member with which alone it would have been cheapest."""
        names = [LANGUAGE_MODEL, *self.only]
        if not self.only:
            return names, np.zeros(self.bits.size, np.uint8)
        best = 1 + np.argmin(np.stack(list(self.only.values())), axis=0)
        saved = self.predictors[LANGUAGE_MODEL] - self.bits
        return names, np.where(saved < _LEAST_SAVED, 0, best).astype(np.uint8)

    @property
    def bits_per_byte(self) -> float:
        """Bits of all units over all bytes; 0 for no text."""
        return float(np.sum(self.bits, dtype=np.float64)) / len(self.data) if self.data else 0.0


def explain(
    data: bytes, model: LoadedModel, *, window: int = WINDOW, threads: int = 1, report: Report | None = None
) -> Costs:
    """Run the model and the ensemble over a text and return what it cost. The result does not depend on `threads`.

    `window`: a multiple of 128. Raises what `report` raises.
    """
    vocabulary = model.vocabulary
    tokens = vocabulary.encode(data)
    shape, weights = make_shape(model.architecture, window), make_weights(model)
    shape = fitted(shape, min(tokens.size, STRETCH))
    mixture = Mixture(
        chosen()[1], shape, weights, tokens, ALTERNATIVES, spelling_of(model), preset_of(model.tokenizer_hash)
    )
    lock, done = Lock(), [0]

    def count(some: int) -> None:
        with lock:
            done[0] += some
            if report is not None:
                report(done[0] // 2, tokens.size)  # each token is forwarded and then mixed

    def run(first: int) -> list[Rows]:
        return _stretch(shape, weights, vocabulary.bos_id, tokens[first : first + STRETCH], count)

    with ThreadPoolExecutor(max(1, threads - 1)) as pool:
        # One thread does one thing after the other; several forward what comes while this one mixes.
        ahead = 0 if threads <= 1 else threads
        firsts = range(0, tokens.size, STRETCH)
        futures: dict[int, Future[list[Rows]]] = {}
        at = 0
        try:
            for index, start in enumerate(firsts):
                for later in firsts[index : index + ahead + 1]:
                    if later not in futures:
                        futures[later] = pool.submit(run, later)
                for rows in futures.pop(start).result():
                    mixture.take(rows, at)
                    at += rows.zero.size
                    count(rows.zero.size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    first, lengths = _units(data, tokens, vocabulary)
    total = total_bits(shape.vocab)
    bits = np.add.reduceat(mixture.seen.bits, first, axis=0) if first.size else mixture.seen.bits
    of = dict(zip(choices(), np.ascontiguousarray(bits.T.astype(np.float32)), strict=True))
    alternatives = mixture.seen.best[first]
    words = {int(token): vocabulary.token_bytes(int(token)) for token in np.unique(alternatives)}
    return Costs(
        data, lengths, of["all"], alternatives,
        (mixture.seen.best_freq[first] / float(1 << total)).astype(np.float32), words,
        {LANGUAGE_MODEL: of["none"]},
        {name: of[f"only {name}"] for name in MEMBERS},
        {name: of[f"without {name}"] for name in MEMBERS},
    )  # fmt: skip


def _stretch(shape: Shape, weights: Weights, bos: int, tokens: Any, count: Callable[[int], None]) -> list[Rows]:
    """The hidden states of tokens that share one context, in pieces for the mixture."""
    kern = chosen()[1]
    rows = min(_ROWS, tokens.size)
    cache, scratch = make_cache(shape, 1), make_scratch(shape, rows)
    inputs = np.empty_like(tokens)
    inputs[0], inputs[1:] = bos, tokens[:-1]
    nothing = make_trace(shape, shape.layers, 0)
    found = []
    for begin, end in pairwise([*range(0, tokens.size, CHUNK), tokens.size]):
        piece = make_rows(shape, end - begin)
        for at in range(begin, end, rows):
            m = min(rows, end - at)
            groups = Group(*(np.array([v], np.int64) for v in (0, 0, m, at)))
            forward(kern, shape, weights, cache, scratch, inputs[at : at + m], groups, nothing)
            some = slice(at - begin, at - begin + m)
            keep_rows(scratch, m, piece, some)
            count(m)
        found.append(piece)
    return found


def _units(data: bytes, tokens: Any, vocabulary: Tokenizer) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(index of the first token, bytes) of every unit: as few tokens as make text, or bytes that never will."""
    escapes = set(vocabulary.escape_ids)
    first: list[int] = []
    lengths: list[int] = []
    start, at, begin, halves = 0, 0, 0, 0
    for index, token in enumerate(tokens.tolist()):
        if token in escapes:
            halves += 1
            if halves == 1:
                continue
            halves, size = 0, 1
        else:
            size = int(vocabulary.lengths[token])
        at += size
        if at - start < _LONGEST_UNIT and not _is_text(data[start:at]):
            continue
        first.append(begin)
        lengths.append(at - start)
        start, begin = at, index + 1
    if start < at:
        first.append(begin)
        lengths.append(at - start)
    return np.array(first, np.int64), np.array(lengths, np.int32)


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError as error:
        # Only an incomplete character at the end may still become text.
        return not (error.reason == "unexpected end of data" and len(piece) - error.start < 4)
    return True
