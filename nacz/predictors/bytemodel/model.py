"""The memory of one run of the model: allocated by level and size, primed, then run piece by piece.

Knows arrays and the primer; knows no payload layout. Everything is a function of level, plain size and record
width, never of the machine.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import contexts, kernel, reader, slots, tables
from .primer import primer
from .settings import LEVELS, Level

U8 = npt.NDArray[np.uint8]
LINE = 64
KIND_SHIFT = 14

I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

_SMALL_TABLES = 1 << 20  # what does not depend on the level


@functools.cache
def compiled(level: int) -> Any:
    """The loop of one level: compiled on its first call, later loaded from Numba's cache."""
    return kernel.build(LEVELS[level])


@functools.cache
def compiled_reader(level: int) -> Any:
    return reader.build(LEVELS[level])


def _aligned(size: int, dtype: type, fill: int = 0) -> Any:
    """An array that starts on a cache line: the system's own zeros, which cost nothing until they are touched."""
    room = np.zeros(size * np.dtype(dtype).itemsize + LINE, dtype=np.uint8)
    skip = -room.ctypes.data % LINE
    array: Any = room[skip : skip + size * np.dtype(dtype).itemsize].view(dtype)
    if fill:
        array.fill(fill)
    return array


class Arrays(NamedTuple):
    """What a stream has learned, and scratch space, in the order in which the loop takes them."""

    slots: U8
    states: I32
    runs: I32
    matches: I32
    weights: I32
    uses: I32
    weights2: I32
    inputs: I32
    hashes: I64
    slot_hashes: U32
    base: U32
    base0: U32
    places: U32
    heads: I32
    followers: I32
    plain: I32
    plain_base: U32
    plain_places: U32
    apm: I32
    chosen: I64
    answers: I64
    next_state: U8
    stretch: I32
    squash: I32
    reciprocal: I32
    match_lengths: I64


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
        + cfg.knots * cfg.apm_rows
        + (cfg.matches << _head_bits(size))
        + (16 << slots.DIRECT_BITS if cfg.direct else 1)
        + 256 * len(cfg.pairs) * len(tables.initial_probability_table())
    )
    return size + slots.DIRECT + cfg.table_size(size) + tables_of_level + _SMALL_TABLES


def _head_bits(size: int) -> int:
    """Of the table of match heads for `size` bytes in all."""
    return min(22, max(10, size.bit_length()))


class Model:
    """All state of one stream; `run` advances it."""

    def __init__(self, level: int, size: int, form: int) -> None:
        """`form`: the width of a record, and above its 14 bits the kind of data."""
        kind = form >> KIND_SHIFT
        self.level = level
        cfg = LEVELS[level]
        # Text teaches data that is no text how to mix, and little else.
        head = primer(min(cfg.primer_size(size), cfg.primer_learned) if kind else cfg.primer_size(size))
        self.start = len(head)
        self.buf = np.zeros(len(head) + size + 8, dtype=np.uint8)
        self.buf[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        self._reg = np.zeros(contexts.REG_SIZE, dtype=np.int64)
        self._arrays = self._allocate(cfg, len(head) + size)
        idle = np.zeros(1, dtype=np.uint8)
        first = max(0, len(head) - cfg.primer_learned)
        self._read(first)
        self.run(first, len(head), kernel.TRAIN, idle, np.zeros(3, dtype=np.int64))
        self._reg[contexts.WIDTH] = form & (1 << KIND_SHIFT) - 1
        self._reg[contexts.KIND] = kind

    def _allocate(self, cfg: Level, size: int) -> Arrays:
        n = cfg.contexts
        state_map = (tables.initial_probability_table() << 9).astype(np.int32)
        runs = np.tile(_trust_maps(16).reshape(-1), n + 1)
        matches = np.tile(np.repeat(_trust_maps(32), 9, axis=0).reshape(-1), cfg.matches)
        weights = _aligned(cfg.set_rows * cfg.mixer_width, np.int32).reshape(cfg.set_rows, cfg.mixer_width)
        weights[:, 0 : n * cfg.inputs : cfg.inputs] = cfg.weight
        weights[:, n * cfg.inputs : cfg.match_input + 2 * cfg.matches : 2] = cfg.weight
        squash = tables.squash_table()
        knots = np.minimum(np.arange(cfg.knots) * (8192 // cfg.knots), len(squash) - 1)
        apm = _aligned(cfg.apm_rows * cfg.knots, np.int32).reshape(cfg.apm_rows, cfg.knots)
        apm[:] = squash[knots] << 6
        return Arrays(
            slots=_aligned(slots.DIRECT + cfg.table_size(size), np.uint8),
            states=np.tile(state_map, n + 256 * len(cfg.pairs)),
            runs=runs,
            matches=matches,
            weights=weights.reshape(-1),
            uses=np.zeros(cfg.set_rows, dtype=np.int32),
            weights2=np.full(256 * cfg.sets * cfg.finals, 65536 // cfg.sets, dtype=np.int32),
            inputs=np.zeros(cfg.mixer_width, dtype=np.int32),
            hashes=np.zeros(n, dtype=np.int64),
            slot_hashes=np.zeros(n, dtype=np.uint32),
            base=np.zeros(n, dtype=np.uint32),
            base0=np.zeros(n, dtype=np.uint32),
            places=np.zeros(2 * n + len(cfg.pairs), dtype=np.uint32),
            heads=_aligned(cfg.matches << _head_bits(size), np.int32),
            followers=np.zeros(2 * 65536, dtype=np.int32),
            plain=_aligned((16 << slots.DIRECT_BITS) if cfg.direct else 1, np.int32, 1 << 30),
            plain_base=np.zeros(8, dtype=np.uint32),
            plain_places=np.zeros(8, dtype=np.uint32),
            apm=apm.reshape(-1),
            chosen=np.zeros(16, dtype=np.int64),
            answers=np.zeros(32, dtype=np.int64),
            next_state=tables.next_state_table(),
            stretch=tables.stretch_table(),
            squash=squash,
            reciprocal=tables.reciprocal_table(),
            match_lengths=np.array(cfg.match_lengths, dtype=np.int64),
        )

    def _read(self, stop: int) -> None:
        """Take in the first `stop` bytes of the primer."""
        a, cfg = self._arrays, LEVELS[self.level]
        waiting = np.zeros(reader.AHEAD * 2 * (cfg.contexts + cfg.direct), dtype=np.int64)
        compiled_reader(self.level)(
            self.buf, 0, stop, self._reg, a.slots, a.hashes, a.base, a.base0, a.heads, a.followers, a.plain,
            a.next_state, a.reciprocal, a.match_lengths, waiting,
        )  # fmt: skip

    def run(self, start: int, stop: int, mode: int, payload: U8, coder: I64) -> None:
        """Code the bytes [start, stop) of `buf`; `payload` is read or written at the coder's position."""
        compiled(self.level)(self.buf, start, stop, mode, payload, coder, self._reg, *self._arrays)
