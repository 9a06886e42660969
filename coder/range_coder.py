"""A carry-correct range coder over integer intervals of a total of exactly 2^24.

Registers have 64 bits and the range is kept at 2^56 or more, so that dividing it by the total loses less than
2^-31 bits per symbol. Carries run back into bytes already written, the end costs at most one byte, and every
sequence of intervals has exactly one accepted stream. docs/range-coder.md holds the arguments.

Knows intervals `[cum, cum + freq)` inside `[0, 2^24)`; does not know symbols, models or files.
Functions marked `njit` are meant to be called from other compiled code, one call per symbol.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from nacz.coder.cdf import TOTAL, TOTAL_BITS
from nacz.kernels.compile import compiled

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
_TOTAL_BITS = np.uint64(TOTAL_BITS)
_LAST_TARGET = np.uint64(TOTAL - 1)
_TOP_SHIFT = np.uint64(56)
_BYTE = np.uint64(8)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_MIN_RANGE = np.uint64(1 << 56)
_FULL_RANGE = np.uint64((1 << 64) - 1)

# Slots of the encoder's state and of the decoder's.
_LOW, _RANGE, _SIZE = 0, 1, 2
_CODE, POSITION, _OUTSIDE = 0, 2, 3

# A frequency of 1 shrinks a range of at least 2^56 to at least 2^32: three bytes bring it back.
_MAX_BYTES_PER_SYMBOL = 3


def max_encoded_size(n_symbols: int) -> int:
    """Bytes that a buffer for `n_symbols` intervals must have, so that no step needs a check."""
    return _MAX_BYTES_PER_SYMBOL * n_symbols + 1


@compiled
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


@compiled
def encode_step(state: U64Array, out: U8Array, cum: int, freq: int) -> None:
    """Narrow the range to `[cum, cum + freq)` and write the bytes that are settled to `out`.

    Needs 0 <= cum, 1 <= freq, cum + freq <= 2^24 and three free bytes in `out`: nothing is checked here.
    """
    low = state[_LOW]
    width = state[_RANGE] >> _TOTAL_BITS
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
def _first_bad_interval(cum: U32Array, freq: U32Array) -> int:
    for i in range(cum.size):
        if freq[i] == 0 or np.uint64(cum[i]) + np.uint64(freq[i]) > np.uint64(TOTAL):
            return i
    return -1


@compiled
def _encode_batch(state: U64Array, out: U8Array, cum: U32Array, freq: U32Array) -> None:
    for i in range(cum.size):
        encode_step(state, out, cum[i], freq[i])


class RangeEncoder:
    """Takes intervals in any number of batches and returns one stream. Keeps the stream in memory, because a
    carry can still reach any of its bytes."""

    def __init__(self) -> None:
        self._state = encoder_init()
        self._out = np.empty(256, np.uint8)
        self._finished = False

    @property
    def size(self) -> int:
        """Bytes written so far; the stream will end within 1 byte of `size` plus what is encoded later."""
        return int(self._state[_SIZE])

    def encode(self, cum: npt.ArrayLike, freq: npt.ArrayLike) -> None:
        """Append intervals `[cum[i], cum[i] + freq[i])`, both `uint32[n]` or scalars.

        Raises ValueError for an interval that is empty or leaves [0, 2^24), and after `finish`.
        """
        if self._finished:
            raise ValueError("the range encoder has been finished")
        starts = np.atleast_1d(np.ascontiguousarray(cum, np.uint32))
        widths = np.atleast_1d(np.ascontiguousarray(freq, np.uint32))
        if starts.ndim != 1 or starts.shape != widths.shape:
            raise ValueError(f"cum and freq must be vectors of one size: {starts.shape}, {widths.shape}")
        bad = _first_bad_interval(starts, widths)
        if bad >= 0:
            raise ValueError(f"interval {bad} is not inside [0, 2^24): cum {starts[bad]}, freq {widths[bad]}")
        needed = self.size + max_encoded_size(starts.size)
        if needed > self._out.size:
            grown = np.empty(max(needed, 2 * self._out.size), np.uint8)
            grown[: self.size] = self._out[: self.size]
            self._out = grown
        _encode_batch(self._state, self._out, starts, widths)

    def finish(self) -> bytes:
        """Return the stream. The encoder takes no more intervals."""
        if self._finished:
            raise ValueError("the range encoder has been finished")
        self._finished = True
        return self._out[: encoder_finish(self._state, self._out)].tobytes()


def encode_intervals(cum: npt.ArrayLike, freq: npt.ArrayLike) -> bytes:
    """Return the stream of the intervals `[cum[i], cum[i] + freq[i])`, both `uint32[n]`.

    Raises ValueError for an interval that is empty or leaves [0, 2^24).
    """
    encoder = RangeEncoder()
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
def decode_target(state: U64Array, buf: U8Array) -> np.uint32:
    """Return the number in [0, 2^24) that the next interval holds, in any stream, damaged ones included.

    Changes nothing but the state's mark for a code outside of all intervals.
    """
    target = state[_CODE] // (state[_RANGE] >> _TOTAL_BITS)
    if target > _LAST_TARGET:
        state[_OUTSIDE] = _ONE
        target = _LAST_TARGET
    return np.uint32(target)


@compiled
def decode_advance(state: U64Array, buf: U8Array, cum: int, freq: int) -> None:
    """Take the interval `[cum, cum + freq)`, which must hold the target just returned."""
    width = state[_RANGE] >> _TOTAL_BITS
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
    """The decoder for callers in Python; compiled callers use the functions."""

    def __init__(self, stream: bytes) -> None:
        self._buf = np.frombuffer(stream, np.uint8)
        self._state = decoder_init(self._buf)

    def target(self) -> int:
        """Return the number in [0, 2^24) that the next interval holds."""
        return int(decode_target(self._state, self._buf))

    def advance(self, cum: int, freq: int) -> None:
        """Take the interval `[cum, cum + freq)`.

        Raises ValueError when it is empty or leaves [0, 2^24).
        """
        if cum < 0 or freq < 1 or cum + freq > TOTAL:
            raise ValueError(f"interval is not inside [0, 2^24): cum {cum}, freq {freq}")
        decode_advance(self._state, self._buf, cum, freq)

    def consistent(self) -> bool:
        """Tell, after the last interval, whether the stream is exactly the one an encoder writes."""
        return bool(decoder_consistent(self._state, self._buf))
