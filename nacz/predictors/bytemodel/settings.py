"""The three levels: how many contexts, inputs, matches and bytes of memory each one uses.

Knows sizes; knows no data. A level is part of the format: change a number here and the payload version changes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    number: int
    contexts: int
    inputs: int  # mixer inputs per context
    first_hashed: int  # contexts below this number are addressed directly
    match_lengths: tuple[int, ...]
    sets: int  # weight sets that are active at a time
    set_rows: int  # weight sets in all
    runs: bool
    limit: int  # how long an adaptive map's average can get
    rate: int  # first-layer learning rate in 2^-14
    rate2: int
    weight: int  # initial weight of a context's logit, 16 fractional bits
    table_bits: int  # log2 of the largest slot table

    direct: int = 0
    direct_limit: int = 255
    rboost: int = 0
    rdecay: int = 64

    @property
    def matches(self) -> int:
        return len(self.match_lengths)

    @property
    def mixer_width(self) -> int:
        used = self.contexts * self.inputs + 2 * self.direct + 2 * self.matches + 1
        return (used + 7) // 8 * 8


LEVELS = {
    1: Level(1, 6, 1, 1, (6,), 1, 256, False, 255, 28, 8, 20000, 24),
    2: Level(2, 11, 2, 1, (6,), 3, 768, False, 255, 28, 8, 16000, 26),
    3: Level(3, 24, 3, 2, (5, 12), 7, 1664, True, 255, 28, 8, 12000, 29),
}
