"""A carry-correct range coder over integer intervals of a total of exactly 2^bits, 24 if nothing else is said.

Registers have 64 bits and the range is kept at 2^56 or more, so that dividing it by the total loses less than
2^-31 bits per symbol (2^-27 with 28 bits). Carries run back into bytes already written, the end costs at most one byte,
and every sequence of intervals has exactly one accepted stream. docs/range-coder.md holds the arguments.

Knows intervals `[cum, cum + freq)` inside `[0, 2^bits)`; does not know symbols, models or files.
Functions marked `njit` are meant to be called from other compiled code, one call per symbol.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from nacz.coder.cdf import TOTAL_BITS
from nacz.kernels.compile import compiled, inner

__all__ = [
    "POSITION",
    "RangeDecoder",
    "RangeEncoder",
    "decode_advance",
    "decode_target",
    "decoder_consistent",
    "decoder_init",
    "encode_intervals",
    "encode_step",
    "encoder_finish",
    "encoder_init",
    "max_encoded_size",
]

U8Array = npt.NDArray[np.uint8]
U32Array = npt.NDArray[np.uint32]
U64Array = npt.NDArray[np.uint64]

# Numba turns a mix of int64 and uint64 into float64, so every constant that meets a register is a uint64.
_TOP_SHIFT = np.uint64(56)
_BYTE = np.uint64(8)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_MIN_RANGE = np.uint64(1 << 56)
_FULL_RANGE = np.uint64((1 << 64) - 1)

# Slots of the encoder's state and of the decoder's.
_LOW, _RANGE, _SIZE = 0, 1, 2
_CODE, POSITION, _OUTSIDE = 0, 2, 3

MAX_BITS = 30


def max_encoded_size(n_symbols: int, bits: int = TOTAL_BITS) -> int:
    """Bytes that a buffer for `n_symbols` intervals must have, so that no step needs a check."""
    # A frequency of 1 shrinks a range of at least 2^56 to at least 2^(56 - bits): so many bytes bring it back.
    return -(-bits // 8) * n_symbols + 1


@inner
def _carry(out: U8Array, size: np.int64) -> None:
    """Add one to the number whose big-endian digits are `out[:size]`."""
    at = size - 1
    while out[at] == 255:
        out[at] = 0
        at -= 1
    out[at] += 1


@compiled
def encoder_init() -> U64Array:
    """Return the state of an encoder that has written nothing: `uint64[3]`, low, range, bytes written."""
    state = np.empty(3, np.uint64)
    state[_LOW] = _ZERO
    state[_RANGE] = _FULL_RANGE
    state[_SIZE] = _ZERO
    return state


@inner
def encode_step(state: U64Array, out: U8Array, cum: int, freq: int, bits: int = TOTAL_BITS) -> None:
    """Narrow the range to `[cum, cum + freq)` and write the bytes that are settled to `out`.

    Needs 0 <= cum, 1 <= freq, cum + freq <= 2^bits and bits / 8 free bytes in `out`, rounded up: nothing is checked
    here.
    """
    low = state[_LOW]
    width = state[_RANGE] >> np.uint64(bits)
    size = np.int64(state[_SIZE])
    moved = low + width * np.uint64(cum)
    if moved < low:
        _carry(out, size)
    low = moved
    span = width * np.uint64(freq)
    while span < _MIN_RANGE:
        out[size] = np.uint8(low >> _TOP_SHIFT)
        size += 1
        low <<= _BYTE
        span <<= _BYTE
    state[_LOW] = low
    state[_RANGE] = span
    state[_SIZE] = np.uint64(size)


@compiled
def encoder_finish(state: U64Array, out: U8Array) -> np.int64:
    """Write the end to `out` (one free byte) and return the size of the whole stream in bytes."""
    low = state[_LOW]
    size = np.int64(state[_SIZE])
    # The range holds a multiple of 2^56, so one more byte names a number inside it; zeros follow it for free.
    top = low >> _TOP_SHIFT
    if (top << _TOP_SHIFT) != low:
        top += _ONE
    if top > np.uint64(255):
        _carry(out, size)
        top = _ZERO
    out[size] = np.uint8(top)
    size += 1
    while size > 0 and out[size - 1] == 0:
        size -= 1
    return size


@compiled
def _first_bad_interval(cum: U32Array, freq: U32Array, bits: int) -> int:
    for i in range(cum.size):
        if freq[i] == 0 or np.uint64(cum[i]) + np.uint64(freq[i]) > np.uint64(1) << np.uint64(bits):
            return i
    return -1


@compiled
def _encode_batch(state: U64Array, out: U8Array, cum: U32Array, freq: U32Array, bits: int) -> None:
    for i in range(cum.size):
        encode_step(state, out, cum[i], freq[i], bits)


class RangeEncoder:
    """Takes intervals of a total of 2^bits in any number of batches and returns one stream. Keeps the stream in memory,
    because a carry can still reach any of its bytes."""

    def __init__(self, bits: int = TOTAL_BITS) -> None:
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"the total must be 2^1 to 2^{MAX_BITS}: 2^{bits}")
        self._bits = bits
        self._state = encoder_init()
        self._out = np.empty(256, np.uint8)
        self._finished = False

    @property
    def size(self) -> int:
        """Bytes written so far; the stream will end within 1 byte of `size` plus what is encoded later."""
        return int(self._state[_SIZE])

    def encode(self, cum: npt.ArrayLike, freq: npt.ArrayLike) -> None:
        """Append intervals `[cum[i], cum[i] + freq[i])`, both `uint32[n]` or scalars.

        Raises ValueError for an interval that is empty or leaves [0, 2^bits), and after `finish`.
        """
        if self._finished:
            raise ValueError("the range encoder has been finished")
        starts = np.atleast_1d(np.ascontiguousarray(cum, np.uint32))
        widths = np.atleast_1d(np.ascontiguousarray(freq, np.uint32))
        if starts.ndim != 1 or starts.shape != widths.shape:
            raise ValueError(f"cum and freq must be vectors of one size: {starts.shape}, {widths.shape}")
        bad = _first_bad_interval(starts, widths, self._bits)
        if bad >= 0:
            raise ValueError(f"interval {bad} is not inside [0, 2^{self._bits}): cum {starts[bad]}, freq {widths[bad]}")
        needed = self.size + max_encoded_size(starts.size, self._bits)
        if needed > self._out.size:
            grown = np.empty(max(needed, 2 * self._out.size), np.uint8)
            grown[: self.size] = self._out[: self.size]
            self._out = grown
        _encode_batch(self._state, self._out, starts, widths, self._bits)

    def finish(self) -> bytes:
        """Return the stream. The encoder takes no more intervals."""
        if self._finished:
            raise ValueError("the range encoder has been finished")
        self._finished = True
        return self._out[: encoder_finish(self._state, self._out)].tobytes()


def encode_intervals(cum: npt.ArrayLike, freq: npt.ArrayLike, bits: int = TOTAL_BITS) -> bytes:
    """Return the stream of the intervals `[cum[i], cum[i] + freq[i])`, both `uint32[n]`.

    Raises ValueError for an interval that is empty or leaves [0, 2^bits).
    """
    encoder = RangeEncoder(bits)
    encoder.encode(cum, freq)
    return encoder.finish()


@compiled
def decoder_init(buf: U8Array) -> U64Array:
    """Return the state of a decoder at the start of `buf`: `uint64[4]`.

    Code (the stream's number less the encoder's low), range, bytes taken (those beyond the end are zeros),
    and whether the code ever lay where no encoder puts it.
    """
    state = np.empty(4, np.uint64)
    code = _ZERO
    for i in range(8):
        code <<= _BYTE
        if i < buf.size:
            code |= np.uint64(buf[i])
    state[_CODE] = code
    state[_RANGE] = _FULL_RANGE
    state[POSITION] = _BYTE
    state[_OUTSIDE] = _ZERO
    return state


@compiled
def decode_target(state: U64Array, buf: U8Array, bits: int = TOTAL_BITS) -> np.uint32:
    """Return the number in [0, 2^bits) that the next interval holds, in any stream, damaged ones included.

    Changes nothing but the state's mark for a code outside of all intervals.
    """
    target = state[_CODE] // (state[_RANGE] >> np.uint64(bits))
    last = (_ONE << np.uint64(bits)) - _ONE
    if target > last:
        state[_OUTSIDE] = _ONE
        target = last
    return np.uint32(target)


@compiled
def decode_advance(state: U64Array, buf: U8Array, cum: int, freq: int, bits: int = TOTAL_BITS) -> None:
    """Take the interval `[cum, cum + freq)`, which must hold the target just returned."""
    width = state[_RANGE] >> np.uint64(bits)
    code = state[_CODE] - width * np.uint64(cum)
    span = width * np.uint64(freq)
    position = np.int64(state[POSITION])
    while span < _MIN_RANGE:
        span <<= _BYTE
        code <<= _BYTE
        if position < buf.size:
            code |= np.uint64(buf[position])
        position += 1
    state[_CODE] = code
    state[_RANGE] = span
    state[POSITION] = np.uint64(position)


@compiled
def decoder_consistent(state: U64Array, buf: U8Array) -> bool:
    """Tell, after the last interval, whether `buf` is exactly what an encoder writes for these intervals."""
    if state[_OUTSIDE] != _ZERO:
        return False
    if buf.size > 0 and buf[buf.size - 1] == 0:
        return False
    # Eight bytes were taken ahead. The encoder's end is the smallest multiple of 2^56 that is not below low.
    if buf.size > np.int64(state[POSITION]) - 7:
        return False
    return bool(state[_CODE] < _MIN_RANGE and state[_CODE] < state[_RANGE])


class RangeDecoder:
    """The decoder of totals of 2^bits for callers in Python; compiled callers use the functions."""

    def __init__(self, stream: bytes, bits: int = TOTAL_BITS) -> None:
        self._bits = bits
        self._buf = np.frombuffer(stream, np.uint8)
        self._state = decoder_init(self._buf)

    def target(self) -> int:
        """Return the number in [0, 2^bits) that the next interval holds."""
        return int(decode_target(self._state, self._buf, self._bits))

    def advance(self, cum: int, freq: int) -> None:
        """Take the interval `[cum, cum + freq)`.

        Raises ValueError when it is empty or leaves [0, 2^bits).
        """
        if cum < 0 or freq < 1 or cum + freq > 1 << self._bits:
            raise ValueError(f"interval is not inside [0, 2^{self._bits}): cum {cum}, freq {freq}")
        decode_advance(self._state, self._buf, cum, freq, self._bits)

    def consistent(self) -> bool:
        """Tell, after the last interval, whether the stream is exactly the one an encoder writes."""
        return bool(decoder_consistent(self._state, self._buf))
