"""The block formats of ggml: small groups of weights that share a scale, and how each becomes float32.

Dequantising gives the same bits on every machine. It is elementwise: every multiplication and every addition
is a numpy call of its own, so nothing can be contracted or reordered. Scales are finite half floats (11
significant bits, at least 2^-24) and quants small integers: every product fits the 24 bits of a float32, so
at most the last addition rounds, and nothing overflows or is subnormal, whatever flush-to-zero mode another
library has left switched on. F32 and BF16 are bit copies.

Knows bytes of blocks. Does not know files, nor what the weights are for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAYOUTS", "Bytes", "Floats", "Layout", "NotFinite"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Layout(NamedTuple):
    """One tensor type of ggml: `values` weights are stored in `size` bytes and decoded by `decode`."""

    name: str
    values: int
    size: int
    decode: Callable[[Bytes], Floats]


class NotFinite(Exception):
    """A scale or a weight is infinite or not a number. Becomes a ModelError that names the tensor."""


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise NotFinite
    return values


def _halves(blocks: Bytes, at: int) -> Floats:
    """The half float at byte `at` of every block, as a float32 column (n, 1). Exact."""
    raw = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")
    return _finite(raw.astype(np.float32))


def _nibbles(packed: Bytes) -> Bytes:
    """(n, k) bytes -> (n, 2k): all low halves first, then all high halves, as ggml lays them out."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """(n, 4) bytes -> (n, 32): bit j of the little-endian word, moved to the value 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _signed(quants: Bytes, minus: int) -> Floats:
    """Small unsigned quants less a constant, as exact float32 integers."""
    return (quants.astype(np.int16) - np.int16(minus)).astype(np.float32)


def _f32(blocks: Bytes) -> Floats:
    return _finite(blocks.view("<f4").astype(np.float32))


def _f16(blocks: Bytes) -> Floats:
    return _finite(blocks.view("<f2").astype(np.float32))


def _bf16(blocks: Bytes) -> Floats:
    return _finite((blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32))


def _q4_0(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * _signed(_nibbles(blocks[:, 2:]), 8)


def _q4_1(blocks: Bytes) -> Floats:
    product = _halves(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32)
    return product + _halves(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * _signed(_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), 16)


def _q5_1(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    product = _halves(blocks, 0) * quants.astype(np.float32)
    return product + _halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """(n, 12) bytes -> eight 6-bit scales and eight 6-bit minima per block, each (n, 8)."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scales, minima


def _affine_k(blocks: Bytes, quants: Bytes) -> Floats:
    """What Q4_K and Q5_K share: (n, 8, 32) quants times (d * scale), less (dmin * minimum)."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scale = _halves(blocks, 0) * scales.astype(np.float32)
    minimum = _halves(blocks, 2) * minima.astype(np.float32)
    product = scale[:, :, None] * quants.astype(np.float32)
    return (product - minimum[:, :, None]).reshape(len(blocks), 256)


def _q4_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 16:].reshape(-1, 4, 1, 32)
    quants = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    return _affine_k(blocks, quants)


def _q5_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 48:].reshape(-1, 4, 1, 32)
    quants = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    # Bit g of the byte for column j is the fifth bit of value j of group g.
    groups = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (blocks[:, 16:48].reshape(-1, 1, 32) >> groups) & np.uint8(1)
    return _affine_k(blocks, quants | (fifth << np.uint8(4)))


def _q6_k(blocks: Bytes) -> Floats:
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 2, 32)  # half of the block, column group, column
    low = np.concatenate([low & 15, low >> 4], axis=2)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(n, 2, 1, 32) >> shifts) & np.uint8(3)
    quants = _signed(low | (high << np.uint8(4)), 32).reshape(n, 16, 16)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    scale = _halves(blocks, 208) * scales
    return (scale[:, :, None] * quants).reshape(n, 256)


def _q2_k(blocks: Bytes) -> Floats:
    n = len(blocks)
    scale = _halves(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minimum = _halves(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    quants = _two_bits(blocks[:, 16:80]).reshape(n, 16, 16).astype(np.float32)
    product = scale[:, :, None] * quants
    return (product - minimum[:, :, None]).reshape(n, 256)


def _two_bits(packed: Bytes) -> Bytes:
    """(n, 64) bytes -> (n, 256): of each half, the lowest two bits of its 32 bytes, then the next two, and so on."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 256)


def _q3_k(blocks: Bytes) -> Floats:
    n = len(blocks)
    # Bit g of the byte for column j is the third bit of value j of group g; where it is missing, 4 is taken off.
    groups = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    third = ((blocks[:, :32].reshape(n, 1, 32) >> groups) & np.uint8(1)).reshape(n, 256) << np.uint8(2)
    quants = _signed(_two_bits(blocks[:, 32:96]) | third, 4).reshape(n, 16, 16)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 4, 1)
    high = ((blocks[:, 104:108].reshape(n, 1, 4) >> shifts) & np.uint8(3)).reshape(n, 16)
    scale = _halves(blocks, 108) * _signed(_nibbles(blocks[:, 96:104]) | (high << np.uint8(4)), 32)
    return (scale[:, :, None] * quants).reshape(n, 256)


# The sixteen values of the non-linear four-bit types.
_UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * _UNEVEN[_nibbles(blocks[:, 2:])]


def _iq4_xs(blocks: Bytes) -> Floats:
    n = len(blocks)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(n, 8)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4)
    high = ((blocks[:, 2:4].reshape(n, 2, 1) >> shifts) & np.uint8(3)).reshape(n, 8)
    scale = _halves(blocks, 0) * _signed(low | (high << np.uint8(4)), 32)
    quants = _UNEVEN[_nibbles(blocks[:, 8:].reshape(n * 8, 16))].reshape(n, 8, 32)
    return (scale[:, :, None] * quants).reshape(n, 256)


LAYOUTS: dict[int, Layout] = {
    0: Layout("F32", 1, 4, _f32),
    1: Layout("F16", 1, 2, _f16),
    2: Layout("Q4_0", 32, 18, _q4_0),
    3: Layout("Q4_1", 32, 20, _q4_1),
    6: Layout("Q5_0", 32, 22, _q5_0),
    7: Layout("Q5_1", 32, 24, _q5_1),
    8: Layout("Q8_0", 32, 34, _q8_0),
    10: Layout("Q2_K", 256, 84, _q2_k),
    11: Layout("Q3_K", 256, 110, _q3_k),
    12: Layout("Q4_K", 256, 144, _q4_k),
    13: Layout("Q5_K", 256, 176, _q5_k),
    14: Layout("Q6_K", 256, 210, _q6_k),
    20: Layout("IQ4_NL", 32, 18, _iq4_nl),
    23: Layout("IQ4_XS", 256, 136, _iq4_xs),
    30: Layout("BF16", 1, 2, _bf16),
}
