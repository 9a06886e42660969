"""Binary range coder: one bit at a time, 16-bit probabilities, carries resolved in the output itself.

Knows integer probabilities and bytes of output; knows no models and no files. The functions are compiled, take
and return their state through one int64 array, and are meant to be inlined into a model's own loop.

Why 16 bits: on highly predictable data a 12-bit probability costs at least 1/4096 of a nat per bit, 0.3 % of the
input, whatever the model knows. Why the product `range * p` in 64 bits: with `(range >> 16) * p` the smallest
range (2^24) would cut the probability to 8 significant bits.

Invariants (RANGE is `state[1]`):
  * before every bit 2^24 <= RANGE <= 2^32, so both parts of a split by 1 <= p <= 65535 are >= 1;
  * encoder: LOW < 2^32 after each carry; the carry cannot run past the first byte, because the coded value is
    below 1 by construction;
  * decoder: 0 <= CODE < RANGE, for any input bytes at all: garbage decodes to garbage and never leaves the arrays.
    Bytes past the end of the input read as zero, which lets the encoder drop trailing zero bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from nacz.kernels.compile import inner

__all__ = ["decode_bit", "encode_bit", "finish", "new_decoder", "new_encoder"]

LOW = 0
"""state[0]: low end of the interval (encoder), or the offset of the code in it (decoder)."""
RANGE = 1
POS = 2
"""state[2]: next byte of the output or input."""
STATE_SIZE = 3

PROB_BITS = 16
MAX_BYTES_PER_BIT = 2
"""A bit of probability 1/65536 costs 16 bits of output; size buffers by this."""
FLUSH_BYTES = 5

_TOP = 1 << 32
_BOTTOM = 1 << 24
_MASK = _TOP - 1


def new_encoder() -> npt.NDArray[np.int64]:
    """State of an encoder that has written nothing."""
    state = np.zeros(STATE_SIZE, dtype=np.int64)
    state[RANGE] = _TOP
    return state


def new_decoder(payload: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """State of a decoder at the start of `payload` (any bytes; fewer than four read as if zeros followed)."""
    state = np.zeros(STATE_SIZE, dtype=np.int64)
    state[RANGE] = _TOP
    head = bytes(payload[:4]) + bytes(4 - min(4, len(payload)))
    state[LOW] = int.from_bytes(head, "big")
    state[POS] = 4
    return state


@inner
def encode_bit(state: Any, out: Any, p1: int, bit: int) -> None:
    """Code `bit`, whose probability of being 1 is p1 / 65536 with 1 <= p1 <= 65535. `out` must have room."""
    low = state[0]
    rng = state[1]
    bound = (rng * p1) >> 16
    if bit != 0:
        rng = bound
    else:
        low += bound
        rng -= bound
    if low >= _TOP:
        low -= _TOP
        j = state[2] - 1
        while out[j] == 255:
            out[j] = 0
            j -= 1
        out[j] += 1
    while rng < _BOTTOM:
        pos = state[2]
        out[pos] = low >> 24
        state[2] = pos + 1
        low = (low << 8) & _MASK
        rng <<= 8
    state[0] = low
    state[1] = rng


@inner
def decode_bit(state: Any, payload: Any, p1: int) -> int:
    """The bit that `encode_bit` was given with the same p1."""
    code = state[0]
    rng = state[1]
    bound = (rng * p1) >> 16
    if code < bound:
        rng = bound
        bit = 1
    else:
        code -= bound
        rng -= bound
        bit = 0
    while rng < _BOTTOM:
        pos = state[2]
        code <<= 8
        if pos < len(payload):
            code += payload[pos]
        state[2] = pos + 1
        rng <<= 8
    state[0] = code
    state[1] = rng
    return bit


def finish(state: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> int:
    """Write the shortest tail that any decoder reads back (zeros follow the end); return the total length."""
    low, rng, pos = int(state[LOW]), int(state[RANGE]), int(state[POS])
    tail = 0
    for count in range(FLUSH_BYTES):
        step = 1 << (32 - 8 * count) if count < 4 else 1
        tail = -(-low // step) * step
        if tail < low + rng:
            break
    if tail >= _TOP:
        tail -= _TOP
        j = pos - 1
        while out[j] == 255:
            out[j] = 0
            j -= 1
        out[j] += 1
    out[pos : pos + 4] = np.frombuffer(tail.to_bytes(4, "big"), dtype=np.uint8)
    length = pos + 4
    while length > 0 and out[length - 1] == 0:
        length -= 1
    return length
