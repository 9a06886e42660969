"""What the segment likes whatever the context: a bias for every token, and when a token came last and how often.

The bias is the output layer's, learned token by token: bias -= rate * (p - 1 for the token that came), for all tokens.
`loss_of` times the frequency is taken from it when frequencies are made, GAIN is given to the token that came.

Knows logits, frequencies and tokens. Does not know contexts or weights of evidence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nacz.kernels.cdf import total_bits
from nacz.kernels.compile import inner

RATE = 0.16 * 65536.0 / 0.6931471805599453  # per unit of probability, in 2^-16 bits
GAIN = np.float32(RATE)
AGES = 11


class Habits(NamedTuple):
    """bias float32[vocab] in 2^-16 bits; last int64[vocab]: number of the position after the latest one, or 0; count
    int32[vocab]."""

    bias: Any
    last: Any
    count: Any


def make_habits(vocab: int) -> Habits:
    """Nothing has come yet."""
    return Habits(np.zeros(vocab, np.float32), np.zeros(vocab, np.int64), np.zeros(vocab, np.int32))


@inner
def loss_of(vocab: int) -> Any:
    """What a bias loses for each unit of a frequency, float32."""
    return np.float32(RATE / (1 << total_bits(vocab)))


@inner
def age(habits: Any, token: Any, now: int) -> Any:
    """Class of the time since `token` came last: 0 within 4 positions, then doubling; AGES - 1 for never."""
    last = habits.last[token]
    if last == 0:
        return AGES - 1
    k = 0
    while k < AGES - 2 and now + 1 - last > (4 << k):
        k += 1
    return k
