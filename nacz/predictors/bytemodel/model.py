"""The memory of one run of the model: allocated by level and size, primed, then run piece by piece.

Knows arrays and the primer; knows no payload layout. Everything is a function of level, plain size and record
width, never of the machine.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from . import contexts, kernel, tables
from .primer import primer
from .settings import LEVELS, Level

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

_SMALL_TABLES = 1 << 20  # what does not depend on the level


@functools.cache
def compiled(level: int) -> Any:
    """The loop of one level: compiled on its first call, later loaded from Numba's cache."""
    return kernel.build(LEVELS[level])


def _trust_maps(count: int) -> npt.NDArray[np.int32]:
    """Adaptive maps [count, 2]: P(1) where the expected bit was 0 or 1 and a run of k had been right so far."""
    k = np.arange(count, dtype=np.int64)
    ones = ((2 * k + 1) << 22) // (2 * k + 2)
    zeros = (1 << 22) // (2 * k + 2)
    return (np.stack([zeros, ones], axis=1) << 9).astype(np.int32)


def memory(level: int, size: int) -> int:
    """About how many bytes a Model of `size` plain bytes takes; nothing is allocated."""
    cfg = LEVELS[level]
    size += cfg.primer_size(size)
    tables_of_level = 4 * (
        cfg.set_rows * cfg.mixer_width
        + kernel.KNOTS * cfg.apm_rows
        + (cfg.matches << _head_bits(size))
        + (16 << kernel.DIRECT_BITS if cfg.direct else 1)
    )
    return size + kernel.DIRECT + cfg.table_size(size) + tables_of_level + _SMALL_TABLES


def _head_bits(size: int) -> int:
    """Of the table of match heads for `size` bytes in all."""
    return min(22, max(10, size.bit_length()))


class Model:
    """All state of one stream; `run` advances it."""

    def __init__(self, level: int, size: int, width: int) -> None:
        self.level = level
        cfg = LEVELS[level]
        head = primer(cfg.primer_size(size))
        self.start = len(head)
        self.buf = np.zeros(len(head) + size + 8, dtype=np.uint8)
        self.buf[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        self._reg = np.zeros(contexts.REG_SIZE, dtype=np.int64)
        self._arrays = self._allocate(cfg, len(head) + size)
        idle = np.zeros(1, dtype=np.uint8)
        first = max(0, len(head) - cfg.primer_learned)
        self.run(0, first, kernel.READ, idle, np.zeros(3, dtype=np.int64))
        self.run(first, len(head), kernel.TRAIN, idle, np.zeros(3, dtype=np.int64))
        self._reg[contexts.WIDTH] = width

    def _allocate(self, cfg: Level, size: int) -> tuple[Any, ...]:
        n = cfg.contexts
        state_map = (tables.initial_probability_table() << 9).astype(np.int32)
        runs = np.tile(_trust_maps(16).reshape(-1), n + 1)
        matches = np.tile(np.repeat(_trust_maps(32), 9, axis=0).reshape(-1), cfg.matches)
        weights = np.zeros((cfg.set_rows, cfg.mixer_width), dtype=np.int32)
        weights[:, 0 : n * cfg.inputs : cfg.inputs] = cfg.weight
        weights[:, n * cfg.inputs : cfg.match_input + 2 * cfg.matches : 2] = cfg.weight
        squash = tables.squash_table()
        knots = np.minimum(np.arange(kernel.KNOTS) << kernel.BUCKET, len(squash) - 1)
        return (
            np.zeros(kernel.DIRECT + cfg.table_size(size), dtype=np.uint8),
            np.tile(state_map, n),
            runs,
            matches,
            weights.reshape(-1),
            np.zeros(cfg.set_rows, dtype=np.int32),
            np.full(256 * cfg.sets * cfg.finals, 65536 // cfg.sets, dtype=np.int32),
            np.zeros(cfg.mixer_width, dtype=np.int32),
            np.zeros(n, dtype=np.int64),
            np.zeros(n, dtype=np.uint32),
            np.zeros(n, dtype=np.uint32),
            np.zeros(n, dtype=np.uint32),
            np.zeros(2 * n, dtype=np.uint32),
            np.zeros(cfg.matches << _head_bits(size), dtype=np.int32),
            np.zeros(2 * 65536, dtype=np.int32),
            np.full((16 << kernel.DIRECT_BITS) if cfg.direct else 1, 1 << 30, dtype=np.int32),
            np.zeros(8, dtype=np.int64),
            np.zeros(8, dtype=np.uint32),
            np.zeros(8, dtype=np.uint32),
            np.tile((squash[knots] << 6).astype(np.int32), cfg.apm_rows),
            np.zeros(16, dtype=np.int64),
            np.zeros(32, dtype=np.int64),
            tables.next_state_table(),
            tables.stretch_table(),
            squash,
            tables.reciprocal_table(),
            np.array(cfg.match_lengths, dtype=np.int64),
        )

    def run(self, start: int, stop: int, mode: int, payload: U8, coder: I64) -> None:
        """Code the bytes [start, stop) of `buf`; `payload` is read or written at the coder's position."""
        compiled(self.level)(self.buf, start, stop, mode, payload, coder, self._reg, *self._arrays)
