"""The three levels: how many contexts, inputs, weight sets and bytes of memory each one uses.

Knows sizes; knows no data. A level is part of the format: changing a number here changes every payload, and needs
a new `PARAMS_VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass

PARAMS_VERSION = 3


@dataclass(frozen=True)
class Level:
    """One level. Learning rates are in 2^-14 of a weight per unit of (logit x error), see `kernel.learn`."""

    number: int
    contexts: int
    inputs: int  # mixer inputs per context: logit, then probability, then run
    first_hashed: int  # contexts below this number are addressed directly
    match_lengths: tuple[int, ...]  # shortest match that each match model follows
    sets: int  # weight sets that answer each bit
    set_rows: int  # weight sets in all
    finals: int  # mixers that weigh the sets' answers
    runs: bool
    pairs: tuple[tuple[int, int], ...]  # contexts of which two histories together have a map
    limit: int  # observations after which an adaptive map stops slowing down, at most 511
    rate: int  # first layer
    rate_boost: int  # added to the rate of a new weight set, fading with its use
    rate_decay: int
    rate_decay_binary: int  # the same for data that is no text
    rate2: int  # second layer
    weight: int  # initial weight of a logit, 16 fractional bits
    direct: int  # contexts that also get a plain adaptive probability
    table_bits: int  # log2 of the largest slot table in bytes
    apm_rows: int
    knots: int  # of a row of an APM, over 8192 / 256 nats, of which those to 24 nats are used
    primer_max: int  # bytes of the primer that the model reads first, at most,
    primer_base: int  # and for a small input,
    primer_share: int  # to which each 32 bytes of input add so many
    primer_learned: int  # the last of them, from which maps and mixers learn too

    @property
    def matches(self) -> int:
        return len(self.match_lengths)

    @property
    def match_input(self) -> int:
        """Number of the first mixer input that belongs to a match model."""
        return self.contexts * self.inputs + 2 * self.direct

    @property
    def mixer_width(self) -> int:
        used = self.match_input + 2 * self.matches + 1 + len(self.pairs)
        return (used + 15) // 16 * 16

    def primer_size(self, size: int) -> int:
        return min(self.primer_max, self.primer_base + (size * self.primer_share >> 5))

    def table_size(self, size: int) -> int:
        """Bytes of slots for `size` bytes in all: a third to a sixth of what all new contexts would fill. Four times
        as much makes files smaller by 0.1 %."""
        return 1 << min(self.table_bits, max(16, (size * self.contexts * 6).bit_length()))


LEVELS = {
    1: Level(
        number=1, contexts=6, inputs=1, first_hashed=1, match_lengths=(6,), sets=1, set_rows=256, finals=1, runs=False,
        pairs=(), limit=255, rate=28, rate_boost=0, rate_decay=64, rate_decay_binary=64, rate2=0, weight=20000,
        direct=0, table_bits=24, apm_rows=65536 + 16384, knots=16, primer_max=1 << 16, primer_base=1 << 15,
        primer_share=2, primer_learned=3 << 12,
    ),
    2: Level(
        number=2, contexts=11, inputs=2, first_hashed=1, match_lengths=(6,), sets=3, set_rows=768, finals=1,
        runs=False, pairs=((1, 2), (2, 3), (3, 5), (6, 7), (6, 3), (0, 1)), limit=255, rate=28, rate_boost=60,
        rate_decay=64, rate_decay_binary=400, rate2=8, weight=16000, direct=0, table_bits=26, apm_rows=65536 + 65536,
        knots=32, primer_max=1 << 19, primer_base=1 << 16, primer_share=32, primer_learned=1 << 14,
    ),
    3: Level(
        number=3, contexts=24, inputs=3, first_hashed=2, match_lengths=(5, 12), sets=9, set_rows=6016, finals=2,
        runs=True, pairs=((2, 3), (3, 4), (4, 6), (8, 9), (8, 4), (0, 2)), limit=500, rate=24, rate_boost=100,
        rate_decay=64, rate_decay_binary=400, rate2=30, weight=9000, direct=4, table_bits=29, apm_rows=4 * 65536,
        knots=32, primer_max=1 << 19, primer_base=3 << 15, primer_share=128, primer_learned=1 << 15,
    ),
}  # fmt: skip
