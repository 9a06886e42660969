"""What the loops over bits share: slots of bit histories, adaptive maps, the heads of match models.

Knows how they are found and how they learn; knows no mixing and no coding.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from nacz.kernels.compile import inner

from . import contexts as cx

SLOT = 21  # two check bytes, 15 states, last byte, its run, two spare
ROW = 32
DIRECT = (257 * 17 + 1) * ROW  # order 0 and order 1 need no check: rows of 32 bytes, and one row to end on a whole line
DIRECT_BITS = 18  # log2 of the rows of plain probabilities


@njit(nogil=True, inline="always")
def find_slot(t: Any, h: Any, at: Any) -> Any:
    """The slot of hash `h` in the line at `at`: its own if there, else the least experienced one, emptied."""
    check = h & 0xFFFF
    lo = check & 0xFF
    hi = check >> 8
    if t[at] + t[at + 1] * 256 == check:
        return at
    if t[at + 21] + t[at + 22] * 256 == check:
        return at + 21
    if t[at + 42] + t[at + 43] * 256 == check:
        return at + 42
    a = t[at + 2]
    b = t[at + 23]
    c = t[at + 44]
    if b < a:
        at += 21
        a = b
        if c < a:
            at += 21
    elif c < a:
        at += 42
    t[at] = lo
    t[at + 1] = hi
    for i in range(2, SLOT):
        t[at + i] = 0
    return at


@njit(nogil=True, inline="always")
def row_hash(h: Any, row: Any) -> Any:
    """The hash of a context together with its first or second nibble's row."""
    return (((h + row * 0x35A7BD3B) & cx.M32) * 0x3D4D51CB) & cx.M32


@njit(nogil=True, inline="always")
def line_of(v: Any, lines: Any) -> Any:
    return DIRECT + (((v >> 8) ^ (v << 3)) & (lines - 1)) * 64


@njit(nogil=True, inline="always")
def adapt(maps: Any, j: Any, goal: Any, limit: int, rec: Any) -> None:
    """Move the map at `j`, a probability of 22 bits above a count of 9, towards `goal`: an average that slows down."""
    v = maps[j]
    n = v & 511
    p = v >> 9
    p += ((goal - p) * rec[n]) >> 16
    if n < limit:
        n += 1
    maps[j] = (p << 9) | n


@njit(nogil=True, inline="always")
def count_run(t: Any, at: Any, c: Any) -> None:
    """The last byte that was seen in a slot, and how many times in a row."""
    if t[at + 17] == c and t[at + 18] != 0:
        if t[at + 18] < 255:
            t[at + 18] += 1
    else:
        t[at + 17] = c
        t[at + 18] = 1


@njit(nogil=True, inline="always")
def direct_hash(reg: Any, i: int) -> Any:
    """Contexts of the plain probabilities: orders 1 to 3 and the word."""
    c4 = reg[cx.C4]
    if i == 0:
        return c4 & 0xFF
    if i == 1:
        return c4 & 0xFFFF
    if i == 2:
        return c4 & 0xFFFFFF
    return cx.mix(reg[cx.WORD0], c4 & 0xFF)


@inner
def head_line(buf: Any, pos: int, count: int, mask: int) -> int:
    """The line of the heads for the `count` bytes before `pos`; the byte at `pos` chooses inside of it."""
    h = 0
    for j in range(count):
        h = (h * 0x2F0B4C47 + buf[pos - 1 - j] + 1) & cx.M32
    return (((h * 0x2C1B3C6D) & cx.M32) >> 8) & mask & ~15


@njit(nogil=True, inline="always")
def remember(t: Any, at: Any, bit: int, nex: Any) -> None:
    """One more bit for the history at `at`."""
    t[at] = nex[2 * t[at] + bit]
