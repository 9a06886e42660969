"""What the model looks at: one hash per context, made once per byte from the history.

Knows bytes, words, lines and columns; knows no probabilities. All functions are compiled and work on one int64
register array `reg`, whose slots are named below, so that a run can stop after any byte and go on later.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from nacz.kernels.compile import inner

# Registers. Hashes are 32 bits wide, kept in int64 so that no operation mixes signed and unsigned.
C4 = 0  # last four bytes, newest lowest
C8 = 1  # the four before them
WORD0 = 2  # hash of the word being written, 0 between words
WORD1 = 3  # the word before it, and so on
WORD2 = 4
WORD3 = 5
WORDLEN = 6
LINE = 7  # where the current line starts
ABOVE = 8  # where the previous line started
CLASSES = 9  # 4 bits of character class per byte, 8 bytes
FIRST = 10  # first byte of the line
TAG = 11  # hash of the innermost open bracket's opening
FOLD = 12  # hash of the last letters, case folded, everything else skipped
GAP = 13  # hash of what stood since the last word ended
NUM = 14
SENT = 15  # hash of the first word of the sentence / position
WIDTH = 16  # record width, 0 = none known
KIND = 17  # a sum of BINARY and TABLE
QUOTE = 18
MATCH0 = 20  # match model 0: pointer, length, misses, expected byte
EXPECTED0 = 23  # what match model 0 expects, 256 added; 0 for nothing
MATCH1 = 24
EXPECTED1 = 27
MATCH2 = 28
LRATE = 32
COUNT = 33
STACK = 40  # 8 saved TAG values
STACKP = 48
HEADS = 50  # per match model: the line of its heads for the next byte
REG_SIZE = 64

BINARY, TABLE = 1, 2

M32 = 0xFFFFFFFF


@njit(nogil=True, inline="always")
def mix(a: int, b: int) -> int:
    """A 32-bit hash of two numbers; the multipliers stay below 2^31 so that no product leaves int64."""
    h = (a * 0x2C1B3C6D + (b & M32) * 0x297A2D39 + 0x1B56C4E9) & M32
    h ^= h >> 15
    h = (h * 0x5BD1E995) & M32
    return h ^ (h >> 13)


@inner
def char_class(c: int) -> int:
    """16 classes that tell text, numbers, punctuation and binary apart."""
    if 97 <= c <= 122:
        return 1
    if 65 <= c <= 90:
        return 2
    if 48 <= c <= 57:
        return 3
    if c >= 128:
        return 4
    if c == 32:
        return 5
    if c == 10 or c == 13:
        return 6
    if c == 46 or c == 33 or c == 63:
        return 7
    if c == 44 or c == 59 or c == 58:
        return 8
    if c == 34 or c == 39:
        return 9
    if c == 60 or c == 91 or c == 40 or c == 123:
        return 10
    if c == 62 or c == 93 or c == 41 or c == 125:
        return 11
    if c == 0:
        return 12
    if c < 32:
        return 13
    if c == 45 or c == 95 or c == 47:
        return 14
    return 15


@inner
def absorb(reg: Any, pos: int, c: int) -> None:
    """Bring the registers up to date after byte `c` was written at `pos`."""
    c4 = reg[C4]
    reg[C8] = ((reg[C8] << 8) | (c4 >> 24)) & M32
    reg[C4] = ((c4 << 8) | c) & M32
    low = c + 32 if 65 <= c <= 90 else c
    if 97 <= low <= 122 or c >= 128:
        reg[WORD0] = mix(reg[WORD0] + 1, low)
        reg[WORDLEN] += 1
        reg[FOLD] = mix((reg[FOLD] << 6) & M32, low)
        reg[GAP] = 0
    else:
        if reg[WORD0] != 0:
            reg[WORD3] = reg[WORD2]
            reg[WORD2] = reg[WORD1]
            reg[WORD1] = reg[WORD0]
            reg[WORD0] = 0
            reg[WORDLEN] = 0
        reg[GAP] = mix(reg[GAP], c)
    if 48 <= c <= 57:
        reg[NUM] = mix(reg[NUM] + 1, c)
    else:
        reg[NUM] = 0
    reg[CLASSES] = ((reg[CLASSES] << 4) | char_class(c)) & M32
    if c == 10:
        reg[ABOVE] = reg[LINE]
        reg[LINE] = pos + 1
        reg[FIRST] = 0
    elif pos == reg[LINE]:
        reg[FIRST] = c
    if c == 60 or c == 91 or c == 40 or c == 123:
        p = reg[STACKP] & 7
        reg[STACK + p] = reg[TAG]
        reg[STACKP] = (p + 1) & 7
        reg[TAG] = mix(c, c4 & 0xFF)
    elif c == 62 or c == 93 or c == 41 or c == 125:
        p = (reg[STACKP] - 1) & 7
        reg[TAG] = reg[STACK + p]
        reg[STACKP] = p


@inner
def contexts_1(h: Any, reg: Any, buf: Any, pos: int, ind: Any) -> None:
    """Level 1: orders 1, 2, 3, 4, 6 and the word."""
    c4 = reg[C4]
    h[1] = mix(c4 & 0xFFFF, 2)
    h[2] = mix(c4 & 0xFFFFFF, 3)
    h[3] = mix(c4, 4)
    h[4] = mix(c4, (reg[C8] & 0xFFFF) + 0x60000)
    h[5] = mix(reg[WORD0], 0x70000 + (c4 & 0xFF))


@inner
def contexts_2(h: Any, reg: Any, buf: Any, pos: int, ind: Any) -> None:
    """Level 2: orders 1 to 6, word pairs, the byte above, a sparse and an indirect context."""
    c4 = reg[C4]
    c8 = reg[C8]
    w0 = reg[WORD0]
    c1 = c4 & 0xFF
    h[1] = mix(c4 & 0xFFFF, 2)
    h[2] = mix(c4 & 0xFFFFFF, 3)
    h[3] = mix(c4, 4)
    h[4] = mix(c4, (c8 & 0xFF) + 0x50000)
    h[5] = mix(c4, (c8 & 0xFFFF) + 0x60000)
    h[6] = mix(w0, 0x70000 + c1)
    h[7] = mix(mix(w0, reg[WORD1]), 0x80000 + c1)
    width = reg[WIDTH]
    if width > 0:
        above = buf[pos - width] if pos >= width else 0
        h[8] = mix(mix(above, c1), 0x90000)
        h[9] = mix(mix(above, pos % width), 0xA0000)
    else:
        col = pos - reg[LINE]
        up = reg[ABOVE] + col
        above = buf[up] if up < reg[LINE] else 10
        h[8] = mix(mix(above, c1), 0x90000)
        h[9] = mix(c4 & 0xFFFF00, 0xA0000)
    h[10] = mix(mix(ind[65536 + (c4 & 0xFFFF)] & 0xFFFF, c1), 0xB0000)


@njit(nogil=True, inline="always")
def byte_ago(buf: Any, pos: int, distance: int) -> Any:
    return buf[pos - distance] if 0 < distance <= pos else 0


@inner
def contexts_3(h: Any, reg: Any, buf: Any, pos: int, ind: Any) -> None:
    """Level 3: everything that earned its time on the test files."""
    c4 = reg[C4]
    c8 = reg[C8]
    w0 = reg[WORD0]
    w1 = reg[WORD1]
    w2 = reg[WORD2]
    c1 = c4 & 0xFF
    h[2] = mix(c4 & 0xFFFF, 2)
    h[3] = mix(c4 & 0xFFFFFF, 3)
    h[4] = mix(c4, 4)
    h[5] = mix(reg[CLASSES], 0x50000)
    h[6] = mix(c4, (c8 & 0xFFFF) + 0x60000)
    h[7] = mix(mix(c4 & 0xE0E0E0E0, c8 & 0xE0E0E0E0), 0x70000)
    h[8] = mix(mix(w0, c1), 0x80000)
    h[9] = mix(mix(w0, w1), 0x90000 + c1)
    h[10] = mix(mix(w0, w1), w2 + 0xA0000)
    h[11] = mix(mix(w0, w2), 0xB0000 + c1)
    h[12] = mix(c4 & 0xFF00, 0x170000)
    col = pos - reg[LINE]
    up = reg[ABOVE] + col
    above = buf[up] if up < reg[LINE] else 10
    width = reg[WIDTH]
    if width > 0:
        left = buf[pos - width] if pos >= width else 0
        higher = buf[pos - 2 * width] if pos >= 2 * width else 0
        h[13] = mix(mix(left, c1), 0xD0000 + pos % width)
        h[14] = mix(mix(left, higher), 0xE0000 + pos % width)
        h[12] = mix(mix(left, pos % width), 0x180000)
        h[9] = mix(mix(left, c4 & 0xFFFF), 0x190000)
    else:
        h[13] = mix(mix(above, c1), min(col, 255) + 0xD0000)
        h[14] = mix(mix(above, c4 & 0xFFFF), 0xE0000)
    h[15] = mix(c4 & 0xFFFF00, 0xF0000)
    h[16] = mix(c4 & 0xFFFF0000, 0x100000)
    h[17] = mix(c4 & 0xF0F0F0FF, 0x110000)
    h[18] = mix(mix(ind[c1] & 0xFFFFFF, c1), 0x120000)
    h[19] = mix(mix(ind[65536 + (c4 & 0xFFFF)] & 0xFFFF, c1), 0x130000)
    h[20] = mix(reg[CLASSES], 0x140000 + c1)
    h[21] = mix(mix(reg[TAG], w0), 0x150000 + c1)
    h[22] = mix(mix(w0, reg[CLASSES] & 0xFFFFFF00), 0x160000)
    h[23] = mix(reg[EXPECTED0] + reg[EXPECTED1] * 512, 0x1A0000 + c1)
    if reg[KIND] & TABLE:
        # A table of numbers, or a picture: what is near in two dimensions, in place of words.
        left = byte_ago(buf, pos, width)
        right = byte_ago(buf, pos, width - 1)
        before = byte_ago(buf, pos, width + 1)
        higher = byte_ago(buf, pos, 2 * width)
        h[5] = mix(mix(left, higher), 0x200000 + c1)
        h[7] = mix(mix(left, right), 0x210000 + c1)
        h[8] = mix(mix(left, right), 0x220000 + before)
        h[10] = mix(mix(left, right), mix(before, higher) + 0x230000 + c1)
        h[11] = mix(mix(left, c4 & 0xFFFFFF), 0x240000)
        h[20] = mix(pos % max(width, 1), 0x250000)
        h[21] = mix(mix(left, higher), byte_ago(buf, pos, 3 * width) + 0x260000)
        h[22] = mix(mix(c1, pos % max(width, 1)), 0x270000)


@inner
def absorb_indirect(reg: Any, ind: Any, c: int) -> None:
    """Remember `c` as the latest successor of the one and of the two bytes before it."""
    c4 = reg[C4]
    i = c4 & 0xFF
    ind[i] = ((ind[i] << 8) | c) & 0xFFFFFF
    i = 65536 + (c4 & 0xFFFF)
    ind[i] = ((ind[i] << 8) | c) & 0xFFFFFF
