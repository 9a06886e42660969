"""Work space of the plain kind of transformer, for one thread or for several that share a pass.

Knows sizes. Does not know what is computed in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.attention import BLOCK, HEAD, MOST_ROWS, MOST_TOGETHER
from nacz.kernels.sharing import Share, make_shares

OWN = ("small", "q", "q_step", "total", "factor", "sums", "p", "acc")  # what threads that share a pass do not share


class Scratch(NamedTuple):
    """Work space for `rows` rows. Threads that share a pass have the same arrays down to `sin`; mine, uint8[layers *
    kv_heads], is 1 for the key heads that are this thread's."""

    x: Any
    y: Any
    wide: Any
    hidden: Any
    a: Any
    zero: Any
    step: Any
    key: Any
    key_zero: Any
    key_step: Any
    cos: Any
    sin: Any
    small: Any
    q: Any
    q_step: Any
    total: Any
    factor: Any
    sums: Any
    p: Any
    acc: Any
    share: Any
    mine: Any


def make_scratch(shape: Any, rows: int) -> Scratch:
    """Work space for calls of up to `rows` rows."""
    return make_scratches(shape, rows, 1)[0]


def make_scratches(shape: Any, rows: int, parts: int) -> list[Scratch]:
    """The same for that many threads that share a pass. All of them call with the same rows."""
    first, *others = make_shares(parts)
    common = _scratch(shape, rows, first)
    made = [common]
    for share in others:
        rooms = {name: getattr(common, name) for name in OWN}
        own = {name: aligned(room.size, room.dtype) for name, room in rooms.items()}
        made.append(common._replace(share=share, **own))
    owner = _owners(shape, parts)
    return [s._replace(mine=(owner == part).astype(np.uint8)) for part, s in enumerate(made)]


def _owners(shape: Any, parts: int) -> Any:
    """Which part does a key head, int64[layers * kv_heads]: of a layer's heads, those that see most first, each goes to
    the part that has least to look at."""
    owner = np.zeros(shape.layers * shape.kv_heads, np.int64)
    for first in range(0, owner.size, shape.kv_heads):
        work = np.zeros(parts, np.int64)
        for head in first + np.argsort(-shape.reach[first : first + shape.kv_heads], kind="stable"):
            owner[head] = np.argmin(work)
            work[owner[head]] += shape.reach[head]
    return owner


def _scratch(shape: Any, rows: int, share: Share) -> Scratch:
    widest = max(shape.dim, shape.ffn)
    fused = max(2 * shape.ffn, (shape.heads + 2 * shape.kv_heads) * HEAD)
    per_head = min(rows, BLOCK) * shape.heads
    return Scratch(
        x=aligned(rows * shape.dim, np.float32),
        y=aligned(rows * shape.dim, np.float32),
        wide=aligned(rows * fused, np.float32),
        hidden=aligned(rows * widest, np.float32),
        a=aligned(rows * widest, np.uint8),
        zero=aligned(rows, np.int32),
        step=aligned(rows, np.float32),
        key=aligned(rows * shape.dim, np.uint8),
        key_zero=aligned(rows, np.int32),
        key_step=aligned(rows, np.float32),
        cos=aligned(2 * rows * (HEAD // 2), np.float32),
        sin=aligned(2 * rows * (HEAD // 2), np.float32),
        small=aligned(HEAD, np.int8),
        q=aligned(2 * per_head * HEAD, np.uint8),
        q_step=aligned(2 * per_head, np.float32),
        total=aligned(MOST_TOGETHER, np.float64),
        factor=aligned(MOST_ROWS, np.float64),
        sums=aligned(MOST_ROWS * BLOCK, np.int32),
        p=aligned(MOST_ROWS * BLOCK, np.uint8),
        acc=aligned(MOST_TOGETHER * HEAD, np.float64),
        share=share,
        mine=np.zeros(0, np.uint8),
    )
