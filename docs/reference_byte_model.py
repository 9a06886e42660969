"""Decodes segments of the byte model, slowly: a second reading of docs/bytemodel.md, for docs/reference_decoder.py.

Imports nothing of nacz; needs numpy, and primer.txt, the text that every model reads first. One bit at a time, some
thousand bits per second. Everything is integers; >> rounds down.
"""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

PRIMER = Path(__file__).parent.parent / "nacz" / "predictors" / "bytemodel" / "primer.txt"
PRIMER_SHA256 = "ee35ea9d789438194dd64c60eed9c1e129de0a0d55bc0d0ae9a8954a137d8caa"

M32 = 0xFFFFFFFF
LOGIT_MAX = 3071  # logits have 8 fractional bits
HALF = 1 << 21  # probabilities have 16 bits, inside of maps 22


class Level(NamedTuple):
    contexts: int
    inputs: int  # of the mixer, per context
    first_hashed: int  # contexts below are rows of a table of their own
    match_lengths: tuple[int, ...]
    set_rows: int
    sets: int
    finals: int
    pairs: tuple[tuple[int, int], ...]  # contexts of which two histories together have a map
    limit: int
    rate: int
    rate_boost: int
    fades: int  # after so many uses of a set the boost is half, where the data is no text; else after 64
    rate2: int
    weight: int
    direct: int
    table_bits: int
    apm_rows: int
    knots: int  # of a row of an APM, a power of two
    primer: tuple[int, int, int]  # at most, at least, and so many bytes more for each 32 of input
    learned: int  # bytes of the primer, the last ones, from which more than the slots learns


PAIRS_2 = ((1, 2), (2, 3), (3, 5), (6, 7), (6, 3), (0, 1))
PAIRS_3 = ((2, 3), (3, 4), (4, 6), (8, 9), (8, 4), (0, 2))
LEVELS = {
    1: Level(
        6, 1, 1, (6,), 256, 1, 1, (), 255, 28, 0, 64, 0, 20000, 0, 24, 81920, 16, (1 << 16, 1 << 15, 2), 12288
    ),
    2: Level(
        11, 2, 1, (6,), 768, 3, 1, PAIRS_2, 255, 28, 60, 400, 8, 16000, 0, 26, 131072, 32, (1 << 19, 1 << 16, 32), 16384
    ),
    3: Level(
        24, 3, 2, (5, 12), 6016, 9, 2, PAIRS_3, 500, 24, 100, 400, 30, 9000, 4, 29, 262144, 32,
        (1 << 19, 3 << 15, 128), 32768,
    ),
}  # fmt: skip
BINARY, TABLE = 1, 2  # kinds, added: no text, and of that a table or a picture


# -- tables -----------------------------------------------------------------------------------------------------------


def logistic_table(scale: int, margin: int) -> list[int]:
    """[x + 3072]: scale / (1 + exp(-x / 256)), at least `margin` away from 0 and from `scale`."""
    one = 1 << 96
    step = term = one
    for k in range(1, 24):
        term //= 256 * k
        step += term
    table, power = [0] * 6144, one
    for x in range(3072):
        p = min((scale * power) // (power + one), scale - margin)
        table[3072 + x], table[3072 - x] = p, scale - p
        power = power * step >> 96
    table[0] = table[1]
    return table


SQUASH = logistic_table(65536, 1)
# [p >> 4]: how many values of squash are below the middle of the step, as a logit
STRETCH = [
    int(v) for v in np.clip(np.searchsorted(SQUASH[1:], np.arange(4096) * 16 + 8) - LOGIT_MAX, -2047, 2047)
]
RECIPROCAL = [131072 // (2 * n + 3) for n in range(512)]

History = tuple[int, int, int, tuple[int, ...]]  # zeros, ones, last bit, and all bits while there are at most four


def after(history: History, bit: int) -> History:
    """A bit history, one bit later."""
    zeros, ones, _, exact = history
    if zeros + ones < 4 and len(exact) == zeros + ones:
        exact = (*exact, bit)
        return exact.count(0), exact.count(1), bit, exact
    same, other = (ones, zeros) if bit else (zeros, ones)
    same += 1
    if other > 2:  # old evidence of the other bit is worth little now
        other = other.bit_length() if other < 16 else 5
    most = (44, 26, 15, 9, 6, 5)
    while min(same, other) > 5 or max(same, other) > most[min(same, other)]:
        if same >= other:
            same -= 1
        else:
            other -= 1
    zeros, ones = (other, same) if bit else (same, other)
    return zeros, ones, (int(ones > 0) if zeros == 0 or ones == 0 else bit), ()


def histories() -> list[History]:
    """All that can come about, fewest bits first: a history is known by its place here."""
    found: set[History] = {(0, 0, 0, ())}
    new = set(found)
    while new:
        new = {after(history, bit) for history in new for bit in (0, 1)} - found
        found |= new
    return sorted(found, key=lambda h: (h[0] + h[1], h))


HISTORIES = histories()
_PLACE = {history: i for i, history in enumerate(HISTORIES)}
NEXT = [[_PLACE[after(history, bit)] for bit in (0, 1)] for history in HISTORIES]
FIRST_GUESS = [((5 * ones + 2) << 22) // (5 * (zeros + ones) + 4) for zeros, ones, _, _ in HISTORIES]
FIRST_GUESS += [HALF] * (256 - len(HISTORIES))


def trust(k: int) -> list[int]:
    """Maps for an expected bit of 0 and of 1, after k of the kind were right."""
    return [(1 << 22) // (2 * k + 2) << 9, ((2 * k + 1) << 22) // (2 * k + 2) << 9]


def mix(a: int, b: int) -> int:
    h = (a * 0x2C1B3C6D + (b & M32) * 0x297A2D39 + 0x1B56C4E9) & M32
    h ^= h >> 15
    h = (h * 0x5BD1E995) & M32
    return h ^ (h >> 13)


def char_class(c: int) -> int:
    if 97 <= c <= 122:
        return 1
    if 65 <= c <= 90:
        return 2
    if 48 <= c <= 57:
        return 3
    if c >= 128:
        return 4
    groups = {5: b" ", 6: b"\n\r", 7: b".!?", 8: b",;:", 9: b"\"'", 10: b"<[({", 11: b">])}", 12: b"\0", 14: b"-_/"}
    for number, members in groups.items():
        if c in members:
            return number
    return 13 if c < 32 else 15


# -- what the model looks at ------------------------------------------------------------------------------------------


class Past:
    """What is remembered of the bytes so far."""

    def __init__(self, width: int) -> None:
        self.data = bytearray()
        self.width = width  # of a record, 0 for none; neither it nor the kind is used while the primer is read
        self.kind = 0
        self.c4 = self.c8 = 0  # the last four bytes, the newest lowest, and the four before them
        self.words = [0, 0, 0, 0]  # hashes of the word that is being written and of the three before it
        self.word_length = 0
        self.line = self.above = 0  # where this line and the one before begin
        self.classes = 0
        self.tag = 0
        self.tags, self.n_tags = [0] * 8, 0
        self.followers = [0] * (2 * 65536)  # the latest bytes after each byte, and after each two

    def append(self, c: int) -> None:
        last, two = self.c4 & 0xFF, 65536 + (self.c4 & 0xFFFF)
        for place in (last, two):
            self.followers[place] = (self.followers[place] << 8 | c) & 0xFFFFFF
        self.data.append(c)
        self.c8 = (self.c8 << 8 | self.c4 >> 24) & M32
        self.c4 = (self.c4 << 8 | c) & M32
        low = c + 32 if 65 <= c <= 90 else c
        if 97 <= low <= 122 or c >= 128:
            self.words[0] = mix(self.words[0] + 1, low)
            self.word_length += 1
        elif self.words[0] != 0:
            self.words = [0, *self.words[:3]]
            self.word_length = 0
        self.classes = (self.classes << 4 | char_class(c)) & M32
        if c == 10:
            self.above, self.line = self.line, len(self.data)
        if c in b"<[({":
            self.tags[self.n_tags] = self.tag
            self.n_tags = (self.n_tags + 1) % 8
            self.tag = mix(c, last)
        elif c in b">])}":
            self.n_tags = (self.n_tags - 1) % 8
            self.tag = self.tags[self.n_tags]

    def byte(self, distance: int) -> int:
        return self.data[-distance] if len(self.data) >= distance else 0

    def contexts(self, level: int, expected: list[int]) -> list[int]:
        """One hash for each context that is hashed; `expected`: by each match."""
        c1, c4, c8 = self.c4 & 0xFF, self.c4, self.c8
        w0, w1, w2, _ = self.words
        pos, width = len(self.data), self.width
        column = pos - self.line
        above = self.data[self.above + column] if self.above + column < self.line else 10
        second = self.followers[65536 + (c4 & 0xFFFF)] & 0xFFFF
        h = [mix(c4 & 0xFFFF, 2), mix(c4 & 0xFFFFFF, 3), mix(c4, 4)]
        if level == 1:
            return [*h, mix(c4, (c8 & 0xFFFF) + 0x60000), mix(w0, 0x70000 + c1)]
        if level == 2:
            h += [mix(c4, (c8 & 0xFF) + 0x50000), mix(c4, (c8 & 0xFFFF) + 0x60000), mix(w0, 0x70000 + c1)]
            h += [mix(mix(w0, w1), 0x80000 + c1)]
            if width > 0:
                above = self.byte(width)
                h += [mix(mix(above, c1), 0x90000), mix(mix(above, pos % width), 0xA0000)]
            else:
                h += [mix(mix(above, c1), 0x90000), mix(c4 & 0xFFFF00, 0xA0000)]
            return [*h, mix(mix(second, c1), 0xB0000)]
        h += [mix(self.classes, 0x50000), mix(c4, (c8 & 0xFFFF) + 0x60000)]
        h += [mix(mix(c4 & 0xE0E0E0E0, c8 & 0xE0E0E0E0), 0x70000), mix(mix(w0, c1), 0x80000)]
        pair = mix(w0, w1)
        if width > 0:
            left, higher = self.byte(width), self.byte(2 * width)
            h += [mix(mix(left, c4 & 0xFFFF), 0x190000), mix(pair, w2 + 0xA0000), mix(mix(w0, w2), 0xB0000 + c1)]
            h += [mix(mix(left, pos % width), 0x180000), mix(mix(left, c1), 0xD0000 + pos % width)]
            h += [mix(mix(left, higher), 0xE0000 + pos % width)]
        else:
            h += [mix(pair, 0x90000 + c1), mix(pair, w2 + 0xA0000), mix(mix(w0, w2), 0xB0000 + c1)]
            h += [mix(c4 & 0xFF00, 0x170000), mix(mix(above, c1), min(column, 255) + 0xD0000)]
            h += [mix(mix(above, c4 & 0xFFFF), 0xE0000)]
        h += [mix(c4 & 0xFFFF00, 0xF0000), mix(c4 & 0xFFFF0000, 0x100000), mix(c4 & 0xF0F0F0FF, 0x110000)]
        h += [mix(mix(self.followers[c1], c1), 0x120000), mix(mix(second, c1), 0x130000)]
        h += [mix(self.classes, 0x140000 + c1), mix(mix(self.tag, w0), 0x150000 + c1)]
        h += [mix(mix(w0, self.classes & 0xFFFFFF00), 0x160000)]
        h += [mix(expected[0] + expected[1] * 512, 0x1A0000 + c1)]
        if self.kind & TABLE:
            # In place of words; contexts 0 and 1 are not in `h`.
            left, right, before, higher, highest = (
                self.byte(width * rows + aside) if width * rows + aside > 0 else 0
                for rows, aside in ((1, 0), (1, -1), (1, 1), (2, 0), (3, 0))
            )
            place = pos % max(width, 1)
            h[5 - 2] = mix(mix(left, higher), 0x200000 + c1)
            h[7 - 2] = mix(mix(left, right), 0x210000 + c1)
            h[8 - 2] = mix(mix(left, right), 0x220000 + before)
            h[10 - 2] = mix(mix(left, right), mix(before, higher) + 0x230000 + c1)
            h[11 - 2] = mix(mix(left, c4 & 0xFFFFFF), 0x240000)
            h[20 - 2] = mix(place, 0x250000)
            h[21 - 2] = mix(mix(left, higher), highest + 0x260000)
            h[22 - 2] = mix(mix(c1, place), 0x270000)
        return h


class Match:
    """Follows the latest place that had the same bytes before it."""

    def __init__(self, shortest: int, bits: int) -> None:
        self.shortest, self.mask = shortest, (1 << bits) - 1
        self.heads = array("i", bytes(4 << bits))
        self.at = self.length = self.misses = self.expected = self.line = 0
        self.maps = [v for k in range(32) for _ in range(9) for v in trust(k)]

    def look(self, data: bytearray, only_read: bool) -> None:
        pos = len(data)
        slot = self.line + ((data[-1] ^ data[-1] >> 4) & 15) if pos > 0 else 0
        if pos >= self.shortest:  # where to look next time, as far as can be known a byte before
            h = 0
            for j in range(self.shortest - 1):
                h = (h * 0x2F0B4C47 + data[pos - 1 - j] + 1) & M32
            self.line = ((h * 0x2C1B3C6D) & M32) >> 8 & self.mask & ~15
        if pos > self.shortest:
            place = self.heads[slot]
            if not only_read and self.length < 16 and place > 0 and place != self.at:
                length = 0
                while length < 32 and place > length and data[place - 1 - length] == data[pos - 1 - length]:
                    length += 1
                if length >= self.shortest and length > self.length:
                    self.at, self.length, self.misses = place, length, 0
            self.heads[slot] = pos
        follows = not only_read and self.at > 0 and (self.length > 0 or self.misses < 8)
        self.expected = data[self.at] + 256 if follows else 0

    def trusted(self) -> int:
        """The length in 32 steps."""
        if self.length < 16:
            return self.length
        return 16 + (self.length - 16) // 8 if self.length < 64 else min(22 + self.length // 64, 31)

    def append(self, c: int, level: int) -> None:
        if self.expected == 0:
            self.at = 0
            return
        self.at += 1
        if self.expected == c + 256:
            self.length = min(self.length + 1, 65535)
            if self.length >= 16:
                self.misses = 0
        else:
            self.length = 0
            self.misses = 8 if level == 1 else min(self.misses + 1, 8)


# -- the model --------------------------------------------------------------------------------------------------------

ROW, DIRECT = 32, 257 * 17 * 32


def learn(maps: list[int] | array[int], place: int, bit: int, limit: int) -> None:
    """A map holds a probability of 22 bits above a count of 9: an average that slows down."""
    value = maps[place]
    count, p = value & 511, value >> 9
    p += (((bit << 22) - bit - p) * RECIPROCAL[count]) >> 16
    maps[place] = p << 9 | (count + 1 if count < limit else count)


class ByteModel:
    def __init__(self, number: int, size: int, width: int, kind: int) -> None:
        self.number, self.level = number, LEVELS[number]
        v = self.level
        most, least, share = v.primer
        text = PRIMER.read_bytes()
        assert hashlib.sha256(text).hexdigest() == PRIMER_SHA256
        primer = text[-min(most, least + (size * share >> 5), v.learned if kind else most) :]
        whole, n = len(primer) + size, v.contexts
        self.past = Past(0)
        self.slots = bytearray(DIRECT + (1 << min(v.table_bits, max(16, (whole * n * 6).bit_length()))))
        self.lines = (len(self.slots) - DIRECT) >> 6
        self.states = [p << 9 for p in FIRST_GUESS] * (n + 256 * len(v.pairs))
        self.runs = [value for k in range(16) for value in trust(k)] * (n + 1)
        self.matches = [Match(length, min(22, max(10, whole.bit_length()))) for length in v.match_lengths]
        self.plain = array("i", [1 << 30]) * ((16 << 18) if v.direct else 1)
        first_match = n * v.inputs + 2 * v.direct
        used = first_match + 2 * len(self.matches) + 1 + len(v.pairs)
        self.weights = np.zeros((v.set_rows, used), np.int64)
        self.weights[:, 0 : n * v.inputs : v.inputs] = v.weight
        self.weights[:, n * v.inputs : first_match + 2 * len(self.matches) : 2] = v.weight
        self.uses = [0] * v.set_rows
        self.weights2 = [65536 // v.sets] * (256 * v.sets * v.finals)
        knots = [SQUASH[min(knot * (8192 // v.knots), 6143)] << 6 for knot in range(v.knots)]
        self.apm = array("i", knots) * v.apm_rows
        for i, c in enumerate(primer):
            self.code(None, c, only_read=i < len(primer) - v.learned)
        self.past.width, self.past.kind = width, kind

    def code(self, decoder: BitDecoder | None, known: int = 0, only_read: bool = False) -> int:
        """Decode one byte, or learn from a known one; `only_read`: in slots and plain maps only."""
        v, past, t = self.level, self.past, self.slots
        c1 = past.c4 & 0xFF
        plain_hashes = [c1, past.c4 & 0xFFFF, past.c4 & 0xFFFFFF, mix(past.words[0], c1)][: v.direct]
        for match in self.matches:
            match.look(past.data, only_read)
        hashes = past.contexts(self.number, [match.expected for match in self.matches])
        c0 = node = 1
        base: list[int] = []
        plain_base: list[int] = []
        first_base: list[int] = []
        for bitpos in range(8):
            if bitpos % 4 == 0:
                node, row = 1, (c0 - 15 if bitpos else 0)
                base = [(c1 * 17 + row) * ROW, (256 * 17 + row) * ROW][: v.first_hashed]
                base += [self.slot((h + row * 0x35A7BD3B) * 0x3D4D51CB & M32) for h in hashes]
                plain_base = [(mix(h, row + 32 * i) & 0x3FFFF) << 4 for i, h in enumerate(plain_hashes)]
                first_base = first_base or base
            if only_read:
                bit = known >> (7 - bitpos) & 1
                for b in base:
                    t[b + 1 + node] = NEXT[t[b + 1 + node]][bit]
                for b in plain_base:
                    learn(self.plain, b + node, bit, 255)
            else:
                bit = self.bit(decoder, known >> (7 - bitpos) & 1, c0, node, bitpos, base, first_base, plain_base)
            c0, node = 2 * c0 + bit, 2 * node + bit
        c = c0 & 0xFF
        if v.inputs == 3:
            for b in first_base:
                if t[b + 17] == c and t[b + 18] != 0:
                    t[b + 18] = min(t[b + 18] + 1, 255)
                else:
                    t[b + 17], t[b + 18] = c, 1
        for match in self.matches:
            match.append(c, self.number)
        past.append(c)
        return c

    def slot(self, h: int) -> int:
        """A slot of 21 bytes: its own among the three of a line, or the one with the least experience, emptied."""
        t, check = self.slots, h & 0xFFFF
        line = DIRECT + ((h >> 8 ^ h << 3) & (self.lines - 1)) * 64
        ways = (line, line + 21, line + 42)
        for at in ways:
            if t[at] | t[at + 1] << 8 == check:
                return at
        at = min(ways, key=lambda way: t[way + 2])
        t[at : at + 21] = check.to_bytes(2, "little") + bytes(19)
        return at

    def bit(
        self, decoder: BitDecoder | None, bit: int, c0: int, node: int, bitpos: int,
        base: list[int], first_base: list[int], plain_base: list[int],
    ) -> int:  # fmt: skip
        """Predict, decode and learn one bit."""
        v, past, t = self.level, self.past, self.slots
        c1, c4 = past.c4 & 0xFF, past.c4
        # inputs of the contexts
        x: list[int] = []
        state_places, run_places, hits = [], [], 0
        for i, b in enumerate(base):
            state = t[b + 1 + node]
            place = i * 256 + state
            state_places.append(place)
            p = self.states[place] >> 9
            x += [STRETCH[p >> 10] if state else 0, (p - HALF) >> 11 if state else 0][: v.inputs]
            hits += i < 8 and state != 0
            if v.inputs == 3:
                seen, count = t[first_base[i] + 17] + 256, t[first_base[i] + 18]
                place = (i * 16 + min(count, 15)) * 2 + (seen >> (7 - bitpos) & 1)
                if count == 0 or seen >> (8 - bitpos) != c0:
                    place = v.contexts * 32
                run_places.append(place)
                x.append(0 if place == v.contexts * 32 else STRETCH[self.runs[place] >> 19])
        for b in plain_base:
            p = self.plain[b + node] >> 9
            x += [STRETCH[p >> 10], (p - HALF) >> 11]
        # inputs of the matches
        longest, match_places = 0, []
        for match in self.matches:
            place = -1
            if match.expected and match.expected >> (8 - bitpos) == c0:
                q = match.trusted()
                place = (q * 9 + match.misses) * 2 + (match.expected >> (7 - bitpos) & 1)
                p = match.maps[place] >> 9
                x += [STRETCH[p >> 10], (p - HALF) >> 11]
                longest = max(longest, q)
            else:
                x += [0, 0]
            match_places.append(place)
        pair_places = [
            v.contexts * 256 + (i << 16) + (state_places[a] % 256 << 8) + state_places[b] % 256
            for i, (a, b) in enumerate(v.pairs)
        ]
        inputs = np.array([*x, 256, *(STRETCH[self.states[place] >> 19] for place in pair_places)])
        # the sets of weights that answer, and what they say
        chosen = [c0]
        if self.number == 2:
            chosen += [256 + longest * 8 + max(hits - 1, 0), 512 + c1]
        elif self.number == 3:
            chosen += [256 + longest, 512 + c1, 768 + (c4 >> 8 & 0xFF), 1024 + bitpos * 16 + hits]
            chosen += [1280 + (past.classes & 0xFF), 1536 + min(past.word_length, 15) * 8 + bitpos]
            chosen += [1664 + (past.classes & 0xFFF), 5760 + (c4 >> 16 & 0xFF)]
        weights = self.weights[chosen]
        answers = np.clip(((weights * inputs) >> 8).sum(axis=1) >> 8, -LOGIT_MAX, LOGIT_MAX).tolist()
        rows = [c0 * v.sets, (256 + c1) * v.sets][: v.finals]
        finals = answers
        if v.sets > 1:
            finals = []
            for row in rows:
                total = sum(a * w for a, w in zip(answers, self.weights2[row : row + v.sets], strict=True)) >> 16
                finals.append(min(max(total, -LOGIT_MAX), LOGIT_MAX))
        logit = finals[0] if v.finals == 1 else (finals[0] + finals[1]) >> 1
        # refine
        mask = 0x3FFF if self.number == 1 else 0xFFFF
        rows_of_apm = [c0 | c1 << 8, 65536 + (mix(c4 & 0xFFFFFF, c0) & mask)]
        if self.number == 3:
            rows_of_apm += [131072 + (mix(c4 & 0xFFFF, c0) & mask), 196608 + (mix(past.words[0] + c1, c0) & mask)]
        step = 8192 // v.knots
        knot, part = divmod(logit + LOGIT_MAX + 1, step)
        places = [v.knots * row + knot for row in rows_of_apm]
        refined = [(self.apm[at] * (step - part) + self.apm[at + 1] * part) // (step << 6) for at in places]
        p = SQUASH[logit + LOGIT_MAX + 1] + refined[0] + 2 * sum(refined[1:])
        p = (p + 4) >> 3 if self.number == 3 else (p + 2) >> 2
        if decoder is not None:
            bit = decoder.bit(min(max(p, 1), 65535))
        # learn
        goal = bit << 16
        if v.sets > 1:
            for row, final in zip(rows, finals, strict=True):
                error = (goal - SQUASH[final + LOGIT_MAX + 1]) * v.rate2 >> 8
                for k, answer in enumerate(answers):
                    self.weights2[row + k] += (answer * error + 8192) >> 14
        errors = []
        for answer, row in zip(answers, chosen, strict=True):
            fades = v.fades if past.kind & BINARY else 64
            rate = v.rate + v.rate_boost * fades // (fades + self.uses[row])
            self.uses[row] = min(self.uses[row] + 1, 1023)
            errors.append((goal - SQUASH[answer + LOGIT_MAX + 1]) * rate >> 8)
        self.weights[chosen] = weights + ((inputs * np.array(errors)[:, None] + 8192) >> 14)
        for i, b in enumerate(base):
            learn(self.states, state_places[i], bit, v.limit)
            t[b + 1 + node] = NEXT[t[b + 1 + node]][bit]
            if run_places:
                learn(self.runs, run_places[i], bit, v.limit)
        for place in pair_places:
            learn(self.states, place, bit, v.limit)
        for b in plain_base:
            learn(self.plain, b + node, bit, 255)
        for match, place in zip(self.matches, match_places, strict=True):
            if place >= 0:
                learn(match.maps, place, bit, 255)
        for at in places:
            at += part // (step // 2)
            self.apm[at] += ((bit << 22) - bit - self.apm[at]) >> 6
        return bit


class BitDecoder:
    """`code` is the stream's number less the encoder's low end, below `width`."""

    def __init__(self, stream: bytes) -> None:
        self.stream, self.position, self.width = stream, 4, 1 << 32
        self.code = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")

    def bit(self, p1: int) -> int:
        """The next bit, which is 1 with a probability of p1 / 65536."""
        bound = self.width * p1 >> 16
        bit = int(self.code < bound)
        if bit:
            self.width = bound
        else:
            self.code -= bound
            self.width -= bound
        while self.width < 1 << 24:
            following = self.stream[self.position] if self.position < len(self.stream) else 0
            self.code, self.width = self.code << 8 | following, self.width << 8
            self.position += 1
        return bit


def decode_letters(payload: bytes, plain_size: int) -> bytes:
    """Runs of letters that occur, how many less one, first and last of each; then each letter's number in bits."""
    runs = payload[0] + 1
    ends = payload[1 : 1 + 2 * runs]
    letters = sorted({c for i in range(0, 2 * runs, 2) for c in range(ends[i], ends[i + 1] + 1)})
    decoder, plain = BitDecoder(payload[1 + 2 * runs :]), bytearray()
    for _ in range(plain_size):
        low, half = 0, 1 << (len(letters) - 1).bit_length() >> 1
        while half > 0:
            ones = min(len(letters) - low - half, half)  # letters that a bit of 1 leaves; a bit of 0 leaves `half`
            if ones > 0:
                low += half * decoder.bit(65536 * ones // (ones + half))
            half >>= 1
        plain.append(letters[low])
    return bytes(plain)


def decode_byte_model(number: int, payload: bytes, plain_size: int) -> bytes:
    """The plain bytes of a payload of level `number`: two bytes of record width and kind, then coded bits."""
    form = int.from_bytes(payload[:2], "little")
    if form == 0xFFFF:
        return decode_letters(payload[2:], plain_size)
    model = ByteModel(number, plain_size, form & 0x3FFF, form >> 14)
    decoder = BitDecoder(payload[2:])
    return bytes(model.code(decoder) for _ in range(plain_size))
