"""A vocabulary as a tree of decisions: which bytes a token begins with, bit by bit, and where it ends.

Tokens are sorted by their bytes; between neighbours lies one decision, the first in which they differ: whether the
token ends here, or a bit of its next byte, the highest first. All decisions of a vocabulary make one binary tree with
tokens for leaves, so the frequencies of two neighbouring ranges say what a distribution over tokens thinks of a
decision.

Knows the bytes of tokens. Does not know frequencies or texts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.compile import compiled
from nacz.weights.store import LoadedModel

SAME = 1 << 30  # a decision between tokens of the same bytes


class Spelling(NamedTuple):
    """order uint32[vocab]: tokens sorted by bytes, of equals the lower number first. where int32[vocab]: of the
    decision between sorted tokens i - 1 and i, 9 times the byte, and 0 for "goes on" or 1 to 8 for a bit of it; SAME
    for equals. low, high int32[vocab]: the decisions after it for the tokens before i and from i on, 0 for none. root
    int64[1]. count int32[vocab]: decisions that lead to a token. text uint8, begin int64[vocab + 1]: bytes of tokens,
    in their own order."""

    order: Any
    where: Any
    low: Any
    high: Any
    root: Any
    count: Any
    text: Any
    begin: Any


def make_spelling(tokens: list[bytes], vocab: int) -> Spelling:
    """Of a vocabulary of `vocab` numbers, of which those beyond `tokens` stand for no bytes. Some work: keep it."""
    tokens = tokens + [b""] * (vocab - len(tokens))
    order = np.array(sorted(range(vocab), key=tokens.__getitem__), np.uint32)
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(token) for token in tokens], dtype=np.int64)])
    text = np.frombuffer(b"".join(tokens) + b"\0", np.uint8).copy()
    where, low, high, count = (np.zeros(vocab, np.int32) for _ in range(4))
    root = np.zeros(1, np.int64)
    _grow(order, text, begin, where, low, high, root, np.zeros(vocab + 1, np.int32))
    _count(order, low, high, root, count, np.zeros((vocab + 1, 4), np.int64))
    return Spelling(order, where, low, high, root, count, text, begin)


def no_spelling() -> Spelling:
    """Where nobody spells."""
    nothing = np.zeros(1, np.int32)
    return Spelling(
        nothing.astype(np.uint32), nothing, nothing.copy(), nothing.copy(), np.zeros(1, np.int64),
        nothing.copy(), np.zeros(1, np.uint8), np.zeros(2, np.int64),
    )  # fmt: skip


@compiled
def _grow(order: Any, text: Any, begin: Any, where: Any, low: Any, high: Any, root: Any, stack: Any) -> None:
    """Find all decisions, and which comes after which: of a range of tokens the first in the bytes is the first."""
    depth = 0
    for i in range(1, order.size):
        a, b = np.int64(order[i - 1]), np.int64(order[i])
        la, lb = begin[a + 1] - begin[a], begin[b + 1] - begin[b]
        d = np.int64(0)
        while d < la and d < lb and text[begin[a] + d] == text[begin[b] + d]:
            d += 1
        if d == la:
            at = SAME if d == lb else 9 * d
        else:
            differ = np.int64(text[begin[a] + d]) ^ np.int64(text[begin[b] + d])
            bit = np.int64(1)
            while differ < (256 >> bit):
                bit += 1
            at = 9 * d + bit
        where[i] = at
        before = 0
        while depth > 0 and where[stack[depth - 1]] > at:
            depth -= 1
            before = stack[depth]
        low[i] = before
        if depth > 0:
            high[stack[depth - 1]] = i
        stack[depth] = i
        depth += 1
    if depth > 0:
        root[0] = stack[0]


@compiled
def _count(order: Any, low: Any, high: Any, root: Any, count: Any, stack: Any) -> None:
    """How many decisions lead to each token. stack: first and last token of a range, its decision, how many before."""
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, order.size, root[0], 0
    depth = 1
    while depth > 0:
        depth -= 1
        first, last, node, before = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
        if last - first == 1:
            count[order[first]] = before
            continue
        for k in range(2):
            stack[depth, 0] = node if k else first
            stack[depth, 1] = last if k else node
            stack[depth, 2] = np.int64(high[node] if k else low[node])
            stack[depth, 3] = before + 1
            depth += 1


def spelling_of(model: LoadedModel) -> Spelling:
    """Of a model's vocabulary; made once."""
    found: Spelling | None = model.__dict__.get("spelling")
    if found is None:
        vocabulary = model.vocabulary
        found = make_spelling([vocabulary.token_bytes(i) for i in range(vocabulary.n_vocab)], model.architecture.vocab)
        model.__dict__["spelling"] = found
    return found
