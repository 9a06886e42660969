"""Data that is letters drawn at random: no more can be said of it than which letters there are.

A model that learns pays one or two percent for what it takes for a pattern; this pays for the list of letters alone.
Knows an alphabet and the binary coder; knows no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nacz.coder import binary
from nacz.coder.binary import decode_bit, encode_bit
from nacz.kernels.compile import compiled

U8 = npt.NDArray[np.uint8]

_PIECE = 1 << 16


def alphabet(plain: U8) -> U8:
    """The bytes that occur, in order."""
    present = np.zeros(256, dtype=bool)
    for start in range(0, len(plain), _PIECE):
        present |= np.bincount(plain[start : start + _PIECE], minlength=256) > 0
    return np.flatnonzero(present).astype(np.uint8)


def pack_alphabet(letters: U8) -> bytes:
    """How many runs of consecutive bytes less one, then the first and the last of each."""
    ends = np.flatnonzero(np.diff(letters.astype(np.int64)) != 1)
    first = letters[np.concatenate([[0], ends + 1])]
    last = letters[np.concatenate([ends, [len(letters) - 1]])]
    return bytes([len(first) - 1]) + np.stack([first, last], axis=1).tobytes()


def unpack_alphabet(coded: U8) -> tuple[U8, int]:
    """Letters, and the bytes that they took; of a damaged list whatever it says, but at least one letter."""
    runs = int(coded[0]) + 1 if len(coded) else 0
    present = np.zeros(256, dtype=bool)
    listed = coded[1 : 1 + 2 * runs].tolist()
    for first, last in zip(listed[::2], listed[1::2], strict=False):
        present[first : last + 1] = True
    present[0] |= not present.any()
    return np.flatnonzero(present).astype(np.uint8), 1 + 2 * runs


def least(size: int, letters: int) -> int:
    """Bytes that `size` letters take at least: as if all but a power of two never came."""
    return size * (letters.bit_length() - 1) // 8


@compiled
def encode(state: Any, out: Any, numbers: Any, letters: int) -> None:
    """Code each number below `letters`, highest bit first, by how many letters either value of the bit would leave."""
    top = 1
    while top < letters:
        top *= 2
    for number in numbers:
        low, half = 0, top >> 1
        while half > 0:
            middle = low + half
            ones = min(letters - middle, half)
            bit = 0
            if ones > 0:
                bit = 1 if number >= middle else 0
                encode_bit(state, out, 65536 * ones // (ones + half), bit)
            low += half * bit
            half >>= 1


@compiled
def decode(state: Any, payload: Any, numbers: Any, letters: int) -> None:
    """Fill `numbers` with what `encode` was given."""
    top = 1
    while top < letters:
        top *= 2
    for i in range(len(numbers)):
        low, half = 0, top >> 1
        while half > 0:
            ones = min(letters - low - half, half)
            if ones > 0:
                low += half * decode_bit(state, payload, 65536 * ones // (ones + half))
            half >>= 1
        numbers[i] = low


def compress(plain: U8, letters: U8) -> bytes:
    place = np.zeros(256, dtype=np.uint8)
    place[letters] = np.arange(len(letters))
    state = binary.new_encoder()
    out = np.zeros(least(len(plain), 2 * len(letters)) + 64, dtype=np.uint8)
    encode(state, out, place[plain], len(letters))
    return pack_alphabet(letters) + out[: binary.finish(state, out)].tobytes()


def decompress(coded: U8, size: int) -> bytes:
    letters, start = unpack_alphabet(coded)
    stream = coded[start:].copy()
    numbers = np.zeros(size, dtype=np.uint8)
    decode(binary.new_decoder(stream), stream, numbers, len(letters))
    return letters[numbers].tobytes()
