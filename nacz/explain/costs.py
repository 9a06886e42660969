"""What every token of a text costs in bits, and what the language model expected instead.

The distributions are those that the coder uses, so the bits are what an archive of one lane pays, but for what the
coder rounds. Tokens are grouped into units that are text by themselves: a character cut in two by the tokenizer, or an
escaped byte, is one unit. Knows models, tokens and bits; does not know pages or files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.kernels.attention import BLOCK
from nacz.kernels.cdf import GROUP, TOTAL_BITS, fix_logits, interval, spread
from nacz.kernels.compile import compiled
from nacz.kernels.dispatch import chosen
from nacz.predictors.transformer import (
    Group,
    Shape,
    Weights,
    aligned,
    forward,
    head,
    make_cache,
    make_scratch,
    make_shape,
    make_trace,
    make_weights,
)
from nacz.tokens import Tokenizer
from nacz.weights.store import LoadedModel

__all__ = ["ALTERNATIVES", "WINDOW", "Costs", "explain"]

ALTERNATIVES = 5
WINDOW = 2048  # positions of context, as the default level has
STRETCH = 16_000  # tokens that share a context: bounds time and cache, costs about 50 bytes for each further one
_ROWS = 128
_HEAD_ROWS = 16
_LONGEST_UNIT = 16  # bytes that may wait for a character to be complete

Report = Callable[[int, int], None]  # tokens done, tokens in all; may raise to cancel


@dataclass(frozen=True)
class Costs:
    """Units of a text in order. `n` units:

    data          the text, bytes
    lengths       int32[n], bytes of each unit; they sum to len(data)
    bits          float32[n], what each unit cost
    alternatives  int32[n, 5], the most probable tokens for the first token of the unit, best first
    chances       float32[n, 5], their probabilities
    words         bytes of each token id that occurs in `alternatives`
    predictors    name to float32[n]: what each predictor alone would have paid; the language model is one of them
    """

    data: bytes
    lengths: NDArray[np.int32]
    bits: NDArray[np.float32]
    alternatives: NDArray[np.int32]
    chances: NDArray[np.float32]
    words: dict[int, bytes]
    predictors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float:
        """Bits of all units over all bytes; 0 for no text."""
        return float(np.sum(self.bits, dtype=np.float64)) / len(self.data) if self.data else 0.0


@compiled
def _look(
    kern: Any, shape: Any, w: Any, s: Any, targets: Any, logits: Any, fixed: Any, freq: Any, sums: Any, taken: Any,
    best: Any, best_freq: Any,
) -> None:  # fmt: skip
    """After `forward`: the frequency of each target, and the tokens with the largest ones, of a total of 2^24."""
    done, count = 0, best.shape[1]
    while done < targets.size:
        n = min(_HEAD_ROWS, targets.size - done)
        head(kern, shape, w, s, done, n, logits)
        for r in range(n):
            fix_logits(shape.vocab, logits, r * shape.vocab, fixed)
            spread(shape.vocab, fixed, freq, sums)
            row = done + r
            _, taken[row] = interval(freq, sums, np.int64(targets[row]))
            for k in range(count):
                best_freq[row, k] = 0
            for token in range(shape.vocab):
                f = freq[token]
                if f > best_freq[row, count - 1]:
                    k = count - 1
                    while k > 0 and f > best_freq[row, k - 1]:
                        best_freq[row, k] = best_freq[row, k - 1]
                        best[row, k] = best[row, k - 1]
                        k -= 1
                    best_freq[row, k] = f
                    best[row, k] = token
        done += n


def explain(
    data: bytes, model: LoadedModel, *, window: int = WINDOW, threads: int = 1, report: Report | None = None
) -> Costs:
    """Run the model over a text and return what it cost. The result does not depend on `threads`.

    `window`: a multiple of 128. Raises what `report` raises.
    """
    vocabulary = model.vocabulary
    tokens = vocabulary.encode(data)
    shape, weights = make_shape(model.architecture, window), make_weights(model)
    shape = shape._replace(slots=max(2, min(shape.slots, -(-min(tokens.size, STRETCH) // BLOCK))))
    taken = np.zeros(tokens.size, np.int64)
    best = np.zeros((tokens.size, ALTERNATIVES), np.int32)
    best_freq = np.zeros((tokens.size, ALTERNATIVES), np.int32)
    lock, done = Lock(), [0]

    def count(some: int) -> None:
        with lock:
            done[0] += some
            if report is not None:
                report(done[0], tokens.size)

    def run(first: int) -> None:
        part = slice(first, first + STRETCH)
        _stretch(shape, weights, vocabulary.bos_id, tokens[part], taken[part], best[part], best_freq[part], count)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(run, first) for first in range(0, tokens.size, STRETCH)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bits = TOTAL_BITS - np.log2(np.maximum(taken, 1).astype(np.float64))
    chances = best_freq / float(1 << TOTAL_BITS)
    first, lengths = _units(data, tokens, vocabulary)
    sums = np.add.reduceat(bits, first).astype(np.float32) if first.size else np.zeros(0, np.float32)
    alternatives = best[first]
    words = {int(token): vocabulary.token_bytes(int(token)) for token in np.unique(alternatives)}
    return Costs(
        data, lengths, sums, alternatives, chances[first].astype(np.float32), words, {"language model": sums}
    )


def _stretch(
    shape: Shape, weights: Weights, bos: int, tokens: Any, taken: Any, best: Any, best_freq: Any,
    count: Callable[[int], None],
) -> None:  # fmt: skip
    """Tokens that share one context, block by block."""
    kern = chosen()[1]
    rows = min(_ROWS, tokens.size)
    cache, scratch = make_cache(shape, 1), make_scratch(shape, rows)
    logits = aligned(min(rows, _HEAD_ROWS) * shape.vocab, np.float32)
    fixed, freq = aligned(shape.vocab, np.int32), aligned(shape.vocab, np.int32)
    sums = aligned(shape.vocab // GROUP, np.int32)
    inputs = np.empty_like(tokens)
    inputs[0], inputs[1:] = bos, tokens[:-1]
    nothing = make_trace(shape, shape.layers, 0)
    for at in range(0, tokens.size, rows):
        some = slice(at, min(at + rows, tokens.size))
        m = some.stop - at
        groups = Group(*(np.array([v], np.int64) for v in (0, 0, m, at)))
        forward(kern, shape, weights, cache, scratch, inputs[some], groups, nothing)
        _look(kern, shape, weights, scratch, tokens[some], logits, fixed, freq, sums, taken[some], best[some], best_freq[some])  # fmt: skip # noqa: E501
        count(m)


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
