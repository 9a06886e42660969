"""The ensemble of docs/ensemble.md once more, slowly: plain integers, and Python's own floats, which are float64.

Part of docs/reference_decoder.py. Imports nothing of nacz; needs numpy and the files formats/ensemble-N.bin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

F = np.float32
BIAS, HABIT, NGRAM, MATCH, RECALL = 1, 2, 4, 8, 16
CLASSES, STATES, ORDERS, SETTINGS = 13, 60, 6, 11
AT_CONTEXT = 0
AT_BEST = AT_CONTEXT + SETTINGS * ORDERS * STATES
AT_HABIT = AT_BEST + ORDERS * CLASSES * 30
AT_LENGTH = AT_HABIT + 11 * CLASSES * 6
AT_FOLLOWED = AT_LENGTH + 2 * 24 * 4
AT_RECALL = AT_FOLLOWED + 2 * CLASSES * 4
AT_NEAR = AT_RECALL + 8 * 8 * CLASSES
AT_SURPRISE = AT_NEAR + 10 * 8 * CLASSES
AT_NAMED = AT_SURPRISE + 15 * CLASSES * 3
AT_COST = AT_NAMED + SETTINGS * 8 * CLASSES
AT_BIAS = AT_COST + 64 * 3
NUMBERS = AT_BIAS + 32 * CLASSES
RATE = 0.16 * 65536.0 / 0.6931471805599453
GAIN = F(RATE)
# integer_exp2 of the reference decoder: about 2^23 * 2^-(distance / 2^bits)
Exp2 = Callable[[np.ndarray, int], np.ndarray]


def total_of(tokens: int) -> int:
    """What the frequencies of so many tokens add up to."""
    return 1 << (24 if tokens <= 1 << 16 else 28)


def preset(number: int) -> tuple[list[float], list[float]]:
    """The weights and slopes that all evidence starts with."""
    raw = (Path(__file__).resolve().parent.parent / "formats" / f"ensemble-{number}.bin").read_bytes()
    weights = np.frombuffer(raw, "<i2", NUMBERS).tolist()
    slopes = np.frombuffer(raw, "<u2", NUMBERS, 2 * NUMBERS).tolist()
    return [value / 256.0 for value in weights], [value / 16.0 for value in slopes]


def stir(h: int, word: int) -> int:
    h = (h + word + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    return h ^ h >> 29


def count_class(n: int) -> int:
    return n - 1 if n <= 3 else 3 if n <= 6 else 4 if n <= 14 else 5


def others_class(n: int) -> int:
    return n if n <= 1 else 2 if n <= 3 else 3 if n <= 8 else 4


class Slot:
    """What is known of one context: how often it was seen, and up to eight [token, count], the latest first."""

    def __init__(self) -> None:
        self.check, self.total, self.after = 0, 0, []


class Follower:
    def __init__(self) -> None:
        self.place, self.length, self.misses = -1, 0, 0


class Ensemble:
    """State of a segment. `tokens`: the known tokens of each lane, which the decoder extends."""

    def __init__(
        self, members: int, number: int, lengths: list[int], vocab: int, dim: int, exp2: Exp2,
        has_any_norm: bool = False,
    ) -> None:  # fmt: skip
        self.members, self.dim, self.exp2, self.has_any_norm = members, dim, exp2, has_any_norm
        self.room = total_of(vocab)
        self.lengths = lengths
        self.starts = [sum(lengths[:lane]) for lane in range(len(lengths))]
        self.total = sum(lengths)
        self.tokens: list[list[int]] = [[] for _ in lengths]
        self.weight, self.slope = preset(number)
        self.bias = np.zeros(vocab, F)
        self.last, self.count, self.clock = {}, {}, 0
        self.surprise = [(0, 0) for _ in lengths]
        self.bits = min(18, max(8, (2 * self.total).bit_length()))
        self.slots: dict[int, Slot] = {}
        self.head_bits = min(20, max(8, self.total.bit_length()))
        self.heads: dict[int, int] = {}
        self.followers = [[Follower(), Follower()] for _ in lengths]
        self.keys: list[np.ndarray] = []
        self.followed: list[int] = []

    # -- one position: candidates and evidence ------------------------------------------------------------------------

    def candidate(self, token: int, name: int) -> int:
        """The candidate's number, or -1 when there is no room for one more."""
        if token not in self.place:
            if len(self.place) == 256:
                return -1
            self.place[token] = len(self.place)
            self.name.append(name)
            e, kind = int(self.e[token]), 12
            if e > 0:
                limits = (9, 12, 16, 24, 32, 64, 128, 256, 1024, 4096, 1 << 15, 1 << 18)
                kind = sum(8 * self.scale // e > limit for limit in limits)
            self.kind.append(kind)
        return self.place[token]

    def distribution(
        self, fixed: np.ndarray, lane: int, seen: int, key: tuple[np.ndarray, np.float32]
    ) -> list[int]:
        """Frequencies of the next token of `lane`, from its logits; `seen`: keys of all steps but the latest."""
        fixed = fixed + np.trunc(self.bias).astype(np.int64)
        self.place, self.kind, self.name, self.evidence = {}, [], [], []
        top = int(fixed.max())
        self.e = self.exp2(top - fixed, 16)
        self.scale = int(self.e.sum())
        setting = 0
        if self.members & NGRAM:
            self.find_slots(lane)
            setting = max((o + 1 for o in range(ORDERS) if self.hit(o)), default=0)
        if self.members & MATCH:
            for follower in self.followers[lane]:
                if follower.place >= 0:
                    n = follower.length
                    setting = max(setting, 7 + (n >= 8) + (n >= 16) + (n >= 32))
        if self.members & NGRAM:
            self.ask_contexts(setting)
        if self.members & MATCH:
            self.ask_followers(lane)
        if self.members & RECALL and seen > 0:
            self.ask_memory(seen, key)
        if self.members & HABIT:
            self.ask_habits(lane, setting)
        change = [0.0] * len(self.place)
        for about, what in self.evidence:
            change[about] += self.weight[what]
        others = self.e.copy()
        shares = {}
        for token, number in self.place.items():
            below = top - int(fixed[token]) - int(min(max(change[number], -24.0), 24.0) * 65536.0)
            up = max(0, -(below // 65536))
            shares[token] = max(1, int(self.exp2(np.array([below + up * 65536]), 16)[0]) << up)
            others[token] = 0
        return self.share_out(others, shares)

    def share_out(self, others: np.ndarray, shares: dict[int, int]) -> list[int]:
        n = len(others)
        r = F((self.room - n - self.room // 2**19) / float(int(others.sum()) + sum(shares.values())))
        frequencies = np.trunc(others.astype(F) * r).astype(np.int64) + 1
        loss = F(RATE / self.room)
        if self.members & BIAS:
            self.bias = self.bias - frequencies.astype(F) * loss
        for token, share in shares.items():
            more = int(float(share) * float(r))
            frequencies[token] += more
            if self.members & BIAS:
                self.bias[token] -= F(more) * loss
        best = max(shares, key=lambda token: shares[token]) if shares else int(others.argmax())
        frequencies[best] += self.room - int(frequencies.sum())
        return frequencies.tolist()

    def ask_contexts(self, setting: int) -> None:
        for o in range(ORDERS - 1, -1, -1):
            if not self.hit(o):
                continue
            slot = self.found[o]
            for k, (token, count) in enumerate(slot.after):
                is_new = token not in self.place
                i = self.candidate(token, o + 1)
                if i < 0:
                    continue
                state = count_class(count) * 5 + others_class(max(slot.total - count, 0))
                if is_new:
                    self.evidence.append((i, AT_BEST + (o * CLASSES + self.kind[i]) * 30 + state))
                self.evidence.append((i, AT_CONTEXT + (setting * ORDERS + o) * STATES + 2 * state + (k == 0)))

    def ask_followers(self, lane: int) -> None:
        for f, follower in enumerate(self.followers[lane]):
            if follower.place < 0:
                continue
            i = self.candidate(self.token_at(follower.place), ORDERS + 1)
            if i < 0:
                continue
            n, misses = follower.length, min(follower.misses, 3)
            n = n if n < 16 else min(16 + (n - 16) // 8, 23)
            self.evidence.append((i, AT_LENGTH + (f * 24 + n) * 4 + misses))
            self.evidence.append((i, AT_FOLLOWED + (f * CLASSES + self.kind[i]) * 4 + misses))

    def ask_memory(self, seen: int, key: tuple[np.ndarray, np.float32]) -> None:
        first = max(0, seen - (1 << 16))
        sums = (np.array(self.keys[first:seen]) @ key[0]).astype(F)
        cosines = (sums * (F(1) / (F(21) * F(self.dim)))) * key[1]
        if self.has_any_norm and key[1] > 0:
            cosines = cosines * (self.over_norm(key[0]) / key[1])
        best = max(F(0.6), cosines.max())
        least = max(F(0.6), best - F(0.12))
        near = min(int((best - F(0.6)) * F(25)), 9)
        votes: dict[int, int] = {}
        total = number = 0
        for at in range(seen - 1, first - 1, -1):
            if cosines[at - first] > least and number < 1024:
                number += 1
                distance = max(F(1) - cosines[at - first], F(0))
                vote = int(self.exp2(np.array([int(distance * F(40.0 * 65536.0))]), 16)[0])
                total += vote
                token = self.followed[at]
                if token in votes or len(votes) < 96:
                    votes[token] = votes.get(token, 0) + vote
        amount = min(7, max(0, total.bit_length() - 19))
        for token, vote in votes.items():
            i = self.candidate(token, 0)
            if i < 0:
                continue
            share = vote / total if total > 0 else 0.0
            part = sum(share >= limit for limit in (0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9))
            self.evidence.append((i, AT_RECALL + (amount * 8 + part) * CLASSES + self.kind[i]))
            self.evidence.append((i, AT_NEAR + (near * 8 + part) * CLASSES + self.kind[i]))

    def ask_habits(self, lane: int, setting: int) -> None:
        for token in np.flatnonzero(self.e > min(self.scale // 128, 1 << 30)):
            self.candidate(int(token), 0)
        by_rank = sorted(self.place, key=lambda token: (-int(self.e[token]), self.place[token]))
        before = 3 * self.surprise[lane][0] + self.surprise[lane][1]
        for token, i in self.place.items():
            age = 10
            if token in self.last:
                age = sum(self.clock + 1 - self.last[token] > 4 << k for k in range(9))
            times = count_class(max(self.count.get(token, 0), 1))
            self.evidence.append((i, AT_HABIT + (age * CLASSES + self.kind[i]) * 6 + times))
            rank = min(by_rank.index(token), 2)
            self.evidence.append((i, AT_SURPRISE + (before * CLASSES + self.kind[i]) * 3 + rank))
            self.evidence.append((i, AT_COST + self.cost_class(int(self.e[token])) * 3 + rank))
            bias = min(math.floor(max(self.bias[token] * F(1 / 16384) + F(8), F(0))), 31)
            self.evidence.append((i, AT_BIAS + bias * CLASSES + self.kind[i]))
            self.evidence.append((i, AT_NAMED + (setting * 8 + self.name[i]) * CLASSES + self.kind[i]))

    def cost_class(self, e: int) -> int:
        """About four times the binary logarithm of scale / e."""
        if e == 0:
            return 63
        v = 4 * self.scale // e
        bits = v.bit_length() - 3
        return min(4 * bits + (v >> bits) - 4, 63)

    # -- after the token is known -------------------------------------------------------------------------------------

    def learn(self, lane: int, token: int, frequencies: list[int]) -> None:
        """`token`, which was coded with `frequencies`, comes next in `lane`."""
        slopes = [float(t == token) - frequencies[t] / float(self.room) for t in self.place]
        for about, what in self.evidence:
            g = slopes[about]
            self.slope[what] += g * g
            self.weight[what] += (0.15 * g) / math.sqrt(self.slope[what])
        if self.members & BIAS:
            self.bias[token] += GAIN
        if self.members & NGRAM:
            self.count_up(token)
        self.tokens[lane].append(token)
        if self.members & MATCH:
            self.follow(lane)
        surprise = sum(frequencies[token] < limit for limit in (self.room >> k for k in (1, 3, 6, 10)))
        self.surprise[lane] = (surprise, (self.surprise[lane][0] + 1) // 2)
        self.clock += 1
        self.last[token] = self.clock
        self.count[token] = self.count.get(token, 0) + 1

    def over_norm(self, a: np.ndarray) -> np.float32:
        """What gives a state of any length the norm sqrt(dim)."""
        squares = int((a * a).sum())
        return F(1.0 / math.sqrt(float(squares) / float(self.dim))) if squares else F(0)

    def remember(self, key: tuple[np.ndarray, np.float32], token: int) -> None:
        """After a step: what one of its tokens is recalled by, and that token."""
        a, step = key
        if self.has_any_norm:
            step = self.over_norm(a)
        self.keys.append(np.clip(np.rint(a.astype(F) * (step * F(21))), -127, 127).astype(np.int64))
        self.followed.append(token)

    # -- n-grams ------------------------------------------------------------------------------------------------------

    def find_slots(self, lane: int) -> None:
        past, h = self.tokens[lane], 0
        self.found: list[Slot | None] = []
        self.check: list[int] = []
        for o in range(ORDERS):
            h = stir(h, past[-1 - o] + 1 if o < len(past) else 0)
            check, first = h % (1 << 32), (o << self.bits) + (h >> (64 - self.bits))
            one, other = (self.slots.setdefault(place, Slot()) for place in (first, first ^ 1))
            if one.total == 0 or one.check != check:
                if (other.total > 0 and other.check == check) or other.total < one.total:
                    one = other
            self.found.append(one if o <= len(past) else None)
            self.check.append(check)

    def hit(self, o: int) -> bool:
        slot = self.found[o]
        return slot is not None and slot.total > 0 and slot.check == self.check[o]

    def count_up(self, token: int) -> None:
        for o, slot in enumerate(self.found):
            if slot is None:
                continue
            if not self.hit(o):
                slot.check, slot.total, slot.after = self.check[o], 0, []
            after = slot.after
            same = [entry for entry in after if entry[0] == token]
            if same:
                after.remove(same[0])
                after.insert(0, [token, min(same[0][1] + 1, 255)])
            else:
                if len(after) == 8:
                    # the rarest of the older half, of equals the oldest
                    rarest = min(count for _, count in after[4:])
                    del after[max(k for k in range(4, 8) if after[k][1] == rarest)]
                after.insert(0, [token, 1])
            slot.total += 1

    # -- matches ------------------------------------------------------------------------------------------------------

    def lane_of(self, at: int) -> int:
        return max(lane for lane, start in enumerate(self.starts) if start <= at)

    def is_known(self, at: int) -> bool:
        lane = self.lane_of(at)
        return at < self.total and at - self.starts[lane] < len(self.tokens[lane])

    def token_at(self, at: int) -> int:
        lane = self.lane_of(at)
        return self.tokens[lane][at - self.starts[lane]]

    def follow(self, lane: int) -> None:
        past = self.tokens[lane]
        for f, (follower, need) in enumerate(zip(self.followers[lane], (5, 12), strict=True)):
            if follower.place >= 0:
                if self.token_at(follower.place) == past[-1]:
                    follower.length += 1
                else:
                    follower.length, follower.misses = 0, follower.misses + 1
                follower.place += 1
                if not self.is_known(follower.place) or follower.misses > 8:
                    follower.place = -1
            if len(past) < need:
                continue
            h = 0
            for i in range(need):
                h = stir(h, past[-1 - i] + 1)
            slot = (f << self.head_bits) + (h >> (64 - self.head_bits))
            if slot in self.heads and (follower.place < 0 or follower.length < need):
                place = self.heads[slot]
                if self.is_known(place):
                    other = self.tokens[self.lane_of(place)][: place - self.starts[self.lane_of(place)]]
                    n = 0
                    while n < min(64, len(other), len(past)) and other[-1 - n] == past[-1 - n]:
                        n += 1
                    if n >= need and (follower.place < 0 or n > follower.length):
                        follower.place, follower.length, follower.misses = place, n, 0
            if len(past) < self.lengths[lane]:
                self.heads[slot] = self.starts[lane] + len(past)
            else:
                self.heads.pop(slot, None)
