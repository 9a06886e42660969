"""How far each key head looks back: most heads of a model attend to what is near, and need no more of the cache.

Every head sees the pinned block; beside that some see the whole window and others only their lane's newest blocks
(after the retrieval and streaming heads of arXiv 2410.10819, section 2, with more than two classes). A decoder waits
for the cache to be read, so what near heads save buys a longer window for those that use it; docs/experiments.md says
how they were told apart.

Knows heads by number and blocks of positions. Does not know models, weights or attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.errors import CorruptDataError, UnsupportedVersionError
from nacz.formats.varint import decode_varint, encode_varint

__all__ = ["EXPLICIT", "MAX_HEADS", "TABLES", "Near", "near_of", "reaches", "starts_of"]

EXPLICIT = 0  # table number of heads that are written out
MAX_HEADS = 8192
# What a head sees at most, in blocks of 128 positions, the pinned one included; 0 for all of the window.
BLOCKS = (0, 3, 5, 8, 12, 16, 24)
# An index into BLOCKS for each key head of layer 0, then of layer 1 and so on, by number of the table. All are of
# smollm2-135m, with and without adapter; in a window of 64 blocks its heads see 8, 11, 15 and 34 in the mean.
_TABLES = {
    1: "031111111221221233213220332112121111111111121112121101110111120111111012211111111111111111",
    2: "042322232454554555455540555445343121211111331123111301110221240123122024323111121111211111",
    3: "054333243666665666566660666566454133211211452234212401210331350334233045534111331211322222",
    4: "006055566000000000000000000000600354433423604550433603440552600556455060050322553433644554",
}
TABLES = {number: bytes(BLOCKS[int(digit)] for digit in digits) for number, digits in _TABLES.items()}
_MODELS = ("smollm2-135m", "smollm2-135m-text")


class Near(NamedTuple):
    """A table and its number: blocks that each key head sees at most, one byte each (see BLOCKS and TABLES)."""

    table: int
    heads: bytes

    def to_bytes(self) -> bytes:
        """As parameters of a segment have it."""
        if self.table != EXPLICIT:
            return encode_varint(self.table)
        return encode_varint(EXPLICIT) + encode_varint(len(self.heads)) + self.heads

    @classmethod
    def from_bytes(cls, data: bytes, at: int) -> tuple[Near, int]:
        """Parse at `at`; (near heads, where they end). Raises CorruptDataError, UnsupportedVersionError."""
        table, at = decode_varint(data, at, "a language-model parameter")
        if table != EXPLICIT:
            if table not in TABLES:
                raise UnsupportedVersionError(f"an unknown table of near heads: {table}")
            return cls(table, TABLES[table]), at
        size, at = decode_varint(data, at, "a language-model parameter")
        if size > min(MAX_HEADS, len(data) - at) or 1 in data[at : at + size]:
            raise CorruptDataError("a table of near heads that is damaged")
        return cls(table, data[at : at + size]), at + size


def near_of(model: str, table: int, slots: int) -> Near | None:
    """A table for the model of that name; None where it is of another model, or no head sees less than `slots`."""
    if model not in _MODELS or not any(0 < blocks < slots for blocks in TABLES.get(table, b"")):
        return None
    return Near(table, TABLES[table])


def reaches(heads: int, slots: int, near: Near | None) -> NDArray[np.int64]:
    """Cache blocks that each of `heads` key heads sees of a window of `slots`: int64[heads]. Raises CorruptDataError
    when `near` is of another number of heads."""
    reach = np.full(heads, slots, np.int64)
    if near is not None:
        if len(near.heads) != heads:
            raise CorruptDataError("a table of near heads of another model")
        most = np.frombuffer(near.heads, np.uint8).astype(np.int64)
        reach = np.where(most > 0, np.minimum(most, slots), slots)
    return reach


def starts_of(reach: NDArray[Any]) -> NDArray[np.int64]:
    """Where the blocks of each head begin among those of a lane and, last, how many there are: int64[heads + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(reach)])
