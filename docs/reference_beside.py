"""Bytes beside tokens, of docs/ensemble.md, once more, slowly: how the decisions that spell a token are expected.

Part of docs/reference_decoder.py. Imports nothing of nacz; needs numpy, reference_byte_model.py beside this file and
the file formats/ensemble-bytes-0.bin. Everything is integers; >> rounds down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from reference_byte_model import FIRST_GUESS, HALF, M32, NEXT, STRETCH, Past, learn, logistic_table, mix

N, SETS = 14, 6  # contexts, sets of weights
FIRST_ROWS = (0, 72, 328, 463, 719, 975)  # of each set
ROWS = 1515
SIZES = (128, 256, 512, 768, 1152, 1536, 2048, 2560)  # of the tokens' logit
ONE = 1 << 22
# Decides a bit that is 1 with p of the total: (p, total)
Decide = Callable[[int, int], int]


CHANCE = logistic_table(ONE, 16)
LOG2 = [((513 + 2 * m) ** 4096).bit_length() - 1 - 9 * 4096 for m in range(256)]


def log2(n: int) -> int:
    bits = n.bit_length() - 1
    return 4096 * bits + LOG2[(n << 8 >> bits) & 255]


def clamp(logit: int) -> int:
    return min(max(logit, -3071), 3071)


class Lane:
    """What is remembered of a lane's bytes."""

    def __init__(self) -> None:
        self.past = Past(0)
        self.line, self.above = bytearray(), bytearray()
        self.field = self.first_word = 0

    def hashes(self) -> list[int]:
        past, column = self.past, len(self.line)
        c4, c8, (w0, w1, w2, _), classes = past.c4, past.c8, past.words, past.classes
        c1 = c4 & 0xFF
        above = self.above[column] if column < min(len(self.above), 256) else 10
        return [
            mix(c4 & 0xFFFF, 2), mix(c4 & 0xFFFFFF, 3), mix(c4, 4), mix(c4, (c8 & 0xFFFF) + 0x60000),
            mix(w0, 0x70000 + c1), mix(mix(w0, w1), 0x80000 + c1), mix(mix(above, c1), 0x90000),
            mix(mix(above, c4 & 0xFFFF), 0xC0000), mix(mix(above, c1), min(column, 255) + 0xD0000),
            mix(mix(w0, w2), 0xE0000 + c1), mix(classes, 0xF0000), mix(classes, 0x100000 + c1),
            mix(mix(self.field, w0), 0x110000 + c1), mix(mix(self.first_word, w0), 0x160000 + c1),
        ]  # fmt: skip

    def append(self, c: int) -> None:
        word = self.past.words[0]
        self.past.append(c)
        if c == 10:
            self.above, self.line = self.line, bytearray()
            self.field = self.first_word = 0
            return
        self.line.append(c)
        self.field += c in b" \t,"
        if self.first_word == 0 and self.past.words[0] == 0:
            self.first_word = word


class Beside:
    """State of a segment. `tokens`: the bytes of each token of the vocabulary."""

    def __init__(self, tokens: list[bytes], count: int, lanes: int, total: int) -> None:
        self.tokens, self.total = tokens, total
        self.order = sorted(range(len(tokens)), key=lambda i: tokens[i])
        self.lanes = [Lane() for _ in range(lanes)]
        self.slots = bytearray(1 << min(25, max(16, (128 * count).bit_length())))
        self.states = [p << 9 for p in FIRST_GUESS] * (2 * N)
        file = Path(__file__).resolve().parent.parent / "formats" / "ensemble-bytes-0.bin"
        raw = np.frombuffer(file.read_bytes(), "<i2")
        self.weights = (raw[: ROWS * 32].astype(np.int64) << 10).reshape(ROWS, 32)
        self.finals = (raw[ROWS * 32 :].astype(np.int64) << 12).reshape(72, SETS).tolist()
        self.errors = [0] * ROWS

    def spell(self, lane: int, frequencies: list[int], decide: Decide) -> int:
        """The next token of a lane, of which the rest of the ensemble expects `frequencies`."""
        below = np.concatenate([[0], np.cumsum(np.array(frequencies)[self.order])]).tolist()
        first, last, done = 0, len(self.order), 0  # the sorted tokens that are left; bytes that are known
        while True:
            token = self.tokens[self.order[first]]
            # which of tokens without a difference, or whether there are bytes at all: by frequencies alone
            while last - first > 1 and (token == self.tokens[self.order[last - 1]] or (done == 0 and token == b"")):
                if token == self.tokens[self.order[last - 1]]:
                    middle = first + 1
                else:
                    middle = next(i for i in range(first, last) if self.tokens[self.order[i]])
                one, both = below[last] - below[middle], below[last] - below[first]
                p = min(max(one * self.total // both, 1), self.total - 1)
                first, last = (middle, last) if decide(p, self.total) else (first, middle)
                token = self.tokens[self.order[first]]
            if last - first == 1 and len(token) == done:
                return self.order[first]
            hashes = self.lanes[lane].hashes()
            base = [self.slot(h, 0) for h in hashes]
            node, half = 1, 1
            for number in range(9):  # whether it goes on, then the bits of the next byte
                if number == 0:
                    ends = [len(self.tokens[self.order[i]]) == done for i in (first, last - 1)]
                    if ends[0] == ends[1]:
                        continue
                    middle = next(i for i in range(first, last) if len(self.tokens[self.order[i]]) > done)
                else:
                    bits = [self.tokens[self.order[i]][done] >> (8 - number) & 1 for i in (first, last - 1)]
                    middle = first if bits[0] else last
                    if bits[0] != bits[1]:
                        rest = range(first, last)
                        middle = next(i for i in rest if self.tokens[self.order[i]][done] >> (8 - number) & 1)
                off = 1 + half if number else 19
                if first < middle < last:
                    one, zero = below[last] - below[middle], below[middle] - below[first]
                    kind = min(done + 1, 3) if number else 0
                    bit = self.decision(lane, base, off, kind, number, node if number else 0, one, zero, decide)
                else:
                    bit = int(middle == first)
                for b in base:
                    self.slots[b + off] = NEXT[self.slots[b + off]][bit]
                first, last = (middle, last) if bit else (first, middle)
                if number == 0:
                    if bit == 0:
                        break
                    continue
                node, half = 2 * node + bit, 2 * half + bit
                if number == 4:
                    base, half = [self.slot(h, node - 15) for h in hashes], 1
            else:
                self.lanes[lane].append(node & 0xFF)
                done += 1

    def slot(self, h: int, row: int) -> int:
        """A slot of 21 bytes: its own among the three of a line, or the one with the least experience, emptied."""
        t, h = self.slots, (h + row * 0x35A7BD3B) * 0x3D4D51CB & M32
        check, line = h & 0xFFFF, ((h >> 8 ^ h << 3) & (len(t) // 64 - 1)) * 64
        ways = (line, line + 21, line + 42)
        for at in ways:
            if t[at] | t[at + 1] << 8 == check:
                return at
        at = min(ways, key=lambda way: t[way + 2])
        t[at : at + 21] = check.to_bytes(2, "little") + bytes(19)
        return at

    def decision(
        self, lane: int, base: list[int], off: int, kind: int, number: int, node: int, one: int, zero: int,
        decide: Decide,
    ) -> int:  # fmt: skip
        """Expect, decide and learn one decision."""
        past, places, x, hits = self.lanes[lane].past, [], [], 0
        for i, b in enumerate(base):
            state = self.slots[b + off]
            places.append((i if number else N + i) * 256 + state)
            p = self.states[places[-1]] >> 9
            x += [STRETCH[p >> 10], (p - HALF) >> 11] if state else [0, 0]
            hits += state != 0
        logit = clamp((log2(one) - log2(zero)) * 11357 >> 18)
        x += [128, logit, (CHANCE[logit + 3072] - HALF) >> 12, 0]
        sure = sum(abs(logit) >= size for size in SIZES)
        chosen = [
            (sure if logit >= 0 else 17 - sure) * 4 + kind, past.classes & 0xFF, number * (N + 1) + hits,
            past.c4 & 0xFF, node, (hits * 4 + kind) * 9 + sure,
        ]  # fmt: skip
        finals = self.finals[chosen[0]]
        rows = [first + row for first, row in zip(FIRST_ROWS, chosen, strict=True)]
        inputs = np.array(x)
        answers = [clamp(int(((inputs * (self.weights[row] >> 6)) >> 8).sum()) >> 8) for row in rows]
        p = CHANCE[clamp(sum(a * w for a, w in zip(answers, finals, strict=True)) >> 24) + 3072]
        bit = decide(p * (self.total >> 22), self.total)
        error = (bit * ONE - p) >> 6
        for k, (a, row) in enumerate(zip(answers, rows, strict=True)):
            finals[k] += (a * error * 20 + 32768) >> 16
            wrong = (bit * ONE - CHANCE[a + 3072]) >> 6
            rate = 1258 + (12580 << 20) // ((1 << 20) + self.errors[row])
            self.errors[row] += wrong * wrong >> 16
            moved = self.weights[row] + ((inputs * (wrong * rate >> 12) + 2048) >> 12)
            self.weights[row] = np.clip(moved, -(8 << 22), 8 << 22)
        for place in places:
            learn(self.states, place, bit, 255)
        return bit
