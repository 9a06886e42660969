"""A model of bytes beside the tokens: what it thinks of each decision that spells a token is mixed in.

The rest of the ensemble makes a distribution over tokens, which says how probable each decision on the way to a token
is. Contexts of the lane's latest bytes say it too, by what came after them before; sets of weights, chosen by the
situation, mix both in the logistic domain. Lines, fields and words, which tokens hide, are what this sees. Integer
arithmetic only; docs/ensemble.md specifies it.

Knows bytes, and two sums of frequencies for each decision. Does not know tokens, how they are spelled, nor the coder.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from nacz.arrays import aligned
from nacz.kernels.cdf import GROUP
from nacz.kernels.compile import inner
from nacz.kernels.ops import iadd, imax, imin, imul, sar

from .bytemodel import contexts as cx
from .bytemodel.slots import adapt, find_slot, row_hash
from .bytemodel.tables import (
    LOGIT_MAX,
    initial_probability_table,
    logistic_table,
    next_state_table,
    reciprocal_table,
    stretch_table,
)
from .spelling import Spelling, no_spelling

CONTEXTS = 14
BIAS_INPUT, LOGIT_INPUT, CHANCE_INPUT = 2 * CONTEXTS, 2 * CONTEXTS + 1, 2 * CONTEXTS + 2
WIDTH = 32  # of a row of weights
SETS = 6
CLASSES, KINDS = 18, 4  # of the tokens' logit; of a decision: end of a token, a bit of its first byte, second, later
# First row of each set.
AT_CLASS, AT_LETTERS, AT_BIT = 0, CLASSES * KINDS, CLASSES * KINDS + 256
AT_BYTE, AT_NODE = AT_BIT + 9 * (CONTEXTS + 1), AT_BIT + 9 * (CONTEXTS + 1) + 256
AT_HITS = AT_NODE + 256
ROWS = AT_HITS + (CONTEXTS + 1) * KINDS * CLASSES // 2
FINALS = CLASSES * KINDS * SETS

ONE = 1 << 22  # probabilities
ORIGIN = LOGIT_MAX + 1
WEIGHT_BITS, FINAL_BITS = 22, 24
MOST_WEIGHT = 8 << WEIGHT_BITS
SLOW, FAST, FADES, FINAL_RATE = 1_258, 12_580, 1 << 20, 20
LIMIT = 255  # observations after which a map stops slowing down
END = 19  # byte of a slot that is the history of ends of tokens
LINE = 256  # bytes of a line that are remembered
POS, FIELD, FIRST_WORD, TURN, ABOVE_SIZE = 56, 57, 58, 59, 60  # more registers


class Beside(NamedTuple):
    """spelling: of the vocabulary. sorted int32[vocab]: frequencies in its order; below int64[vocab / 64]: sums of
    those before each 64. slots uint8: histories. states int32: what became of each, for ends in the second half. weight
    int32[ROWS * WIDTH], error int64[ROWS]: sets of weights and what they were wrong; final int64[FINALS]. reg
    int64[lanes * REG_SIZE], line uint8[lanes * 2 * LINE]: lanes' registers, this line and the one above. Of a byte:
    hash, base int64[CONTEXTS]; of a decision: place int64[CONTEXTS], x int32[WIDTH], row, answer int64[SETS]. The
    others are tables. rate int64[4]: SLOW, FAST, FADES, FINAL_RATE; state, stream, piece: of nothing, for who codes
    only one way."""

    spelling: Spelling
    sorted: Any
    below: Any
    slots: Any
    states: Any
    weight: Any
    error: Any
    final: Any
    reg: Any
    line: Any
    hash: Any
    base: Any
    place: Any
    x: Any
    row: Any
    answer: Any
    next_state: Any
    stretch: Any
    chance: Any
    reciprocal: Any
    logarithm: Any
    rate: Any
    state: Any
    stream: Any
    piece: Any


@functools.cache
def logarithm_table() -> Any:
    """[m]: 4096 log2(1 + (2 m + 1) / 512), cut to an integer."""
    return np.array([((513 + 2 * m) ** 4096).bit_length() - 1 - 9 * 4096 for m in range(256)], np.int32)


@functools.cache
def start() -> tuple[Any, Any]:
    """What weights begin with: int32[ROWS * WIDTH] and int64[FINALS]. The file has them in 1/4096, int16."""
    raw = np.frombuffer(resources.files("nacz.formats").joinpath("ensemble-bytes-0.bin").read_bytes(), "<i2")
    weight = raw[: ROWS * WIDTH].astype(np.int32) << (WEIGHT_BITS - 12)
    return weight, raw[ROWS * WIDTH :].astype(np.int64) << (FINAL_BITS - 12)


def slots_size(tokens: int) -> int:
    """Bytes of the histories of a segment."""
    return 1 << min(25, max(16, (128 * tokens).bit_length()))


def make_beside(spelling: Spelling | None, tokens: int, lanes: int) -> Beside:
    """For a segment of so many tokens and lanes; without a spelling next to nothing, which nobody may use."""
    here = spelling is not None
    vocab = spelling.order.size if spelling is not None else GROUP
    weight, final = start() if here else (np.zeros(1, np.int32), np.zeros(1, np.int64))
    return Beside(
        spelling=spelling if spelling is not None else no_spelling(),
        sorted=np.zeros(vocab, np.int32),
        below=np.zeros(vocab // GROUP, np.int64),
        slots=aligned(slots_size(tokens) if here else 64, np.uint8),
        states=np.tile((initial_probability_table() << 9).astype(np.int32), 2 * CONTEXTS),
        weight=weight.copy(),
        error=np.zeros(ROWS, np.int64),
        final=final.copy(),
        reg=np.zeros(lanes * cx.REG_SIZE, np.int64),
        line=np.zeros(lanes * 2 * LINE, np.uint8),
        hash=np.zeros(CONTEXTS, np.int64),
        base=np.zeros(CONTEXTS, np.int64),
        place=np.zeros(CONTEXTS, np.int64),
        x=np.zeros(WIDTH, np.int32),
        row=np.zeros(SETS, np.int64),
        answer=np.zeros(SETS, np.int64),
        next_state=next_state_table(),
        stretch=stretch_table(),
        chance=logistic_table(ONE, 16),
        reciprocal=reciprocal_table(),
        logarithm=logarithm_table(),
        rate=np.array([SLOW, FAST, FADES, FINAL_RATE], np.int64),
        state=np.zeros(4, np.uint64),
        stream=np.zeros(1, np.uint8),
        piece=np.zeros(1, np.uint32),
    )


@inner
def _log2(table: Any, n: Any) -> Any:
    """4096 log2(n), nearly, of n from 1 to 2^31."""
    bits = 0
    if n >> 16:
        bits = 16
    if n >> (bits + 8):
        bits += 8
    if n >> (bits + 4):
        bits += 4
    if n >> (bits + 2):
        bits += 2
    if n >> (bits + 1):
        bits += 1
    return bits * 4096 + np.int64(table[((n << 8) >> bits) & 255])


@inner
def look(b: Any, lane: int) -> None:
    """Hashes of the contexts of a lane's next byte."""
    reg, h = b.reg[lane * cx.REG_SIZE : (lane + 1) * cx.REG_SIZE], b.hash
    c4, classes = reg[cx.C4], reg[cx.CLASSES]
    c1, word = c4 & 0xFF, reg[cx.WORD0]
    column = reg[POS] - reg[cx.LINE]
    above: Any = np.int64(10)
    if column < reg[ABOVE_SIZE]:
        above = np.int64(b.line[(2 * lane + 1 - reg[TURN]) * LINE + column])
    h[0] = cx.mix(c4 & 0xFFFF, 2)
    h[1] = cx.mix(c4 & 0xFFFFFF, 3)
    h[2] = cx.mix(c4, 4)
    h[3] = cx.mix(c4, (reg[cx.C8] & 0xFFFF) + 0x60000)
    h[4] = cx.mix(word, 0x70000 + c1)
    h[5] = cx.mix(cx.mix(word, reg[cx.WORD1]), 0x80000 + c1)
    h[6] = cx.mix(cx.mix(above, c1), 0x90000)
    h[7] = cx.mix(cx.mix(above, c4 & 0xFFFF), 0xC0000)
    h[8] = cx.mix(cx.mix(above, c1), min(column, 255) + 0xD0000)
    h[9] = cx.mix(cx.mix(word, reg[cx.WORD2]), 0xE0000 + c1)
    h[10] = cx.mix(classes, 0xF0000)
    h[11] = cx.mix(classes, 0x100000 + c1)
    h[12] = cx.mix(cx.mix(reg[FIELD], word), 0x110000 + c1)
    h[13] = cx.mix(cx.mix(reg[FIRST_WORD], word), 0x160000 + c1)


@inner
def find_slots(b: Any, row: int) -> None:
    """The slots of all contexts for one half of a byte, 0 for the first, else 1 to 16 by what that was."""
    lines = b.slots.size >> 6
    for i in range(CONTEXTS):
        v = row_hash(b.hash[i], row)
        b.base[i] = find_slot(b.slots, v, (((v >> 8) ^ (v << 3)) & (lines - 1)) * 64)


@inner
def take_in(b: Any, lane: int, c: int) -> None:
    """Byte c came next in a lane."""
    reg = b.reg[lane * cx.REG_SIZE : (lane + 1) * cx.REG_SIZE]
    column, word = reg[POS] - reg[cx.LINE], reg[cx.WORD0]
    if column < LINE:
        b.line[(2 * lane + reg[TURN]) * LINE + column] = c
    cx.absorb(reg, reg[POS], c)
    if c == 10:
        reg[FIELD] = 0
        reg[FIRST_WORD] = 0
        reg[TURN] = 1 - reg[TURN]
        reg[ABOVE_SIZE] = min(column, LINE)
    else:
        if c == 32 or c == 9 or c == 44:
            reg[FIELD] += 1
        if reg[FIRST_WORD] == 0 and word != 0 and reg[cx.WORD0] == 0:
            reg[FIRST_WORD] = word
    reg[POS] += 1


@inner
def expect(b: Any, lane: int, off: int, kind: int, bit: int, node: int, one: Any, zero: Any) -> Any:
    """The probability of a 1, in 2^-22, of bit number `bit` (0 for the end of a token), for whose two outcomes the
    tokens' frequencies are `one` and `zero`; off: the place of the history in its slot."""
    x, row, answer, states, weight = b.x, b.row, b.answer, b.states, b.weight
    hits, more = 0, CONTEXTS if bit == 0 else 0
    for i in range(CONTEXTS):
        s = np.int64(b.slots[b.base[i] + off])
        j = (more + i) * 256 + s
        b.place[i] = j
        if s != 0:
            p = states[j] >> 9
            x[2 * i] = b.stretch[p >> 10]
            x[2 * i + 1] = (p - (ONE >> 1)) >> 11
            hits += 1
        else:
            x[2 * i] = 0
            x[2 * i + 1] = 0
    logit = ((_log2(b.logarithm, one) - _log2(b.logarithm, zero)) * 11357) >> 18
    logit = min(max(logit, -LOGIT_MAX), LOGIT_MAX)
    x[BIAS_INPUT] = 128
    x[LOGIT_INPUT] = logit
    x[CHANCE_INPUT] = (b.chance[logit + ORIGIN] - (ONE >> 1)) >> 12
    size = abs(logit)
    if size < 768:
        sure = 0 if size < 128 else 1 if size < 256 else 2 if size < 512 else 3
    else:
        sure = 4 if size < 1152 else 5 if size < 1536 else 6 if size < 2048 else 7 if size < 2560 else 8
    reg = b.reg[lane * cx.REG_SIZE : (lane + 1) * cx.REG_SIZE]
    row[0] = AT_CLASS + (sure if logit >= 0 else CLASSES - 1 - sure) * KINDS + kind
    row[1] = AT_LETTERS + (reg[cx.CLASSES] & 0xFF)
    row[2] = AT_BIT + bit * (CONTEXTS + 1) + hits
    row[3] = AT_BYTE + (reg[cx.C4] & 0xFF)
    row[4] = AT_NODE + node
    row[5] = AT_HITS + (hits * KINDS + kind) * (CLASSES // 2) + sure
    mixed: Any = np.int64(0)
    for k in range(SETS):
        total = np.int32(0)
        w = weight[row[k] * WIDTH : (row[k] + 1) * WIDTH]
        for i in range(x.size):  # a number that is known would be unrolled, not made a vector
            total = iadd(total, sar(imul(x[i], sar(w[i], 6)), 8))
        answer[k] = min(max(np.int64(total) >> 8, -LOGIT_MAX), LOGIT_MAX)
        mixed += answer[k] * b.final[row[0] * SETS + k]
    return np.int64(b.chance[min(max(mixed >> FINAL_BITS, -LOGIT_MAX), LOGIT_MAX) + ORIGIN])


@inner
def learn_decision(b: Any, bit: int, p: Any) -> None:
    """The decision that `expect` gave p for came out as `bit`: weights and maps learn."""
    goal, x, weight = bit * ONE, b.x, b.weight
    error = (goal - p) >> 6
    for k in range(SETS):
        a, r = b.answer[k], b.row[k]
        b.final[b.row[0] * SETS + k] += (a * error * b.rate[3] + 32768) >> 16
        wrong = (goal - np.int64(b.chance[a + ORIGIN])) >> 6
        rate = b.rate[0] + b.rate[1] * b.rate[2] // (b.rate[2] + b.error[r])
        b.error[r] += wrong * wrong >> 16
        e = np.int32(wrong * rate >> 12)
        w = weight[r * WIDTH : (r + 1) * WIDTH]
        for i in range(WIDTH):
            v = iadd(w[i], sar(iadd(imul(x[i], e), 2048), 12))
            w[i] = imin(imax(v, -MOST_WEIGHT), MOST_WEIGHT)
    for i in range(CONTEXTS):
        adapt(b.states, b.place[i], goal - bit, LIMIT, b.reciprocal)
