"""The constant tables of the byte model: bit-history states, the logistic pair, reciprocals.

Everything here is made by integer arithmetic in a few milliseconds, so it is the same on every machine and needs
no data file. Knows how a bit history ages and what a logit is; knows no contexts, no levels, no data.

Scales used throughout the model: a probability has 16 bits (22 inside adaptive maps), a logit has 8 fractional
bits, so that 256 is one nat of log odds.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

LOGIT_MAX = 3071
"""Largest logit that a mixer may answer: 12 nats, beyond the 16-bit probabilities' 11.09."""
INPUT_MAX = 2047
"""Largest logit that an adaptive map hands to a mixer."""

I32 = npt.NDArray[np.int32]


@functools.cache
def logistic_table(scale: int, margin: int) -> I32:
    """[x + LOGIT_MAX + 1]: scale / (1 + exp(-x / 256)), cut, at least `margin` away from 0 and from `scale`."""
    one = 1 << 96
    step, term = one, one
    for k in range(1, 24):  # exp(1/256) by its series
        term = term // (256 * k)
        step += term
    table = np.zeros(2 * (LOGIT_MAX + 1), dtype=np.int32)
    power = one
    for x in range(LOGIT_MAX + 1):
        p = min((scale * power) // (power + one), scale - margin)
        table[LOGIT_MAX + 1 + x] = p
        table[LOGIT_MAX + 1 - x] = scale - p
        power = power * step >> 96
    table[0] = table[1]
    return table


def squash_table() -> I32:
    """squash[x + LOGIT_MAX + 1] = 65536 / (1 + exp(-x / 256)), kept inside 1..65535."""
    return logistic_table(65536, 1)


@functools.cache
def stretch_table() -> I32:
    """stretch[p >> 4]: the logit of a 16-bit probability, the inverse of `squash_table` in 4,096 steps."""
    squash = squash_table()
    centres = np.arange(4096, dtype=np.int64) * 16 + 8
    logits = np.searchsorted(squash[1:], centres) - LOGIT_MAX
    return np.asarray(np.clip(logits, -INPUT_MAX, INPUT_MAX), dtype=np.int32)


RECIPROCAL_SIZE = 512


@functools.cache
def reciprocal_table() -> I32:
    """65536 / (n + 1.5): the step of an average over n earlier observations, a little eager at the start."""
    n = np.arange(RECIPROCAL_SIZE, dtype=np.int64)
    return (131072 // (2 * n + 3)).astype(np.int32)


# --- bit histories -------------------------------------------------------------------------------------------
# A state is what is remembered of the bits seen at one node: the exact sequence while it is short, afterwards
# how many zeros and ones (the rarer count limits the other) and which came last.

_EXACT = 4
_MOST = (44, 26, 15, 9, 6, 5)
"""_MOST[m]: the larger count that is kept beside a smaller count of m."""

_State = tuple[int, int, int, tuple[int, ...]]
"""(zeros, ones, last bit, exact sequence or empty)."""


def _aged(n: int) -> int:
    """What is left of a count once the other bit turns up: old evidence is worth little then."""
    return n if n <= 2 else n.bit_length() if n < 16 else 5


def _after(state: _State, bit: int) -> _State:
    zeros, ones, _, exact = state
    if zeros + ones < _EXACT and len(exact) == zeros + ones:
        sequence = (*exact, bit)
        return sequence.count(0), sequence.count(1), bit, sequence
    same, other = (ones, zeros) if bit else (zeros, ones)
    other = _aged(other)
    same += 1
    while True:
        low, high = min(same, other), max(same, other)
        if low < len(_MOST) and high <= _MOST[low]:
            break
        if same >= other:
            same -= 1
        else:
            other -= 1
    zeros, ones = (other, same) if bit else (same, other)
    if zeros == 0 or ones == 0:
        bit = int(ones > 0)
    return zeros, ones, bit, ()


@functools.cache
def _states() -> list[_State]:
    """All reachable states, fewest observations first, so that a state's number is also its worth in the cache."""
    start: _State = (0, 0, 0, ())
    found = {start}
    todo = [start]
    while todo:
        state = todo.pop()
        for bit in (0, 1):
            after = _after(state, bit)
            if after not in found:
                found.add(after)
                todo.append(after)
    assert len(found) <= 256
    return sorted(found, key=lambda s: (s[0] + s[1], s))


@functools.cache
def next_state_table() -> npt.NDArray[np.uint8]:
    """next[2 * state + bit]."""
    states = _states()
    index = {state: i for i, state in enumerate(states)}
    table = np.zeros(512, dtype=np.uint8)
    for i, state in enumerate(states):
        for bit in (0, 1):
            table[2 * i + bit] = index[_after(state, bit)]
    return table


@functools.cache
def initial_probability_table() -> I32:
    """A first guess at P(1) for every state, 22 bits: (ones + 0.4) / (zeros + ones + 0.8)."""
    table = np.full(256, 1 << 21, dtype=np.int32)
    for i, (zeros, ones, _, _) in enumerate(_states()):
        table[i] = ((5 * ones + 2) << 22) // (5 * (zeros + ones) + 4)
    return table
