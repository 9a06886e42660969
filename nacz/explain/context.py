"""What the byte model alone would have paid for the same stretches of a text: the other predictor to compare with.

The cost of a stretch is what the binary coder's interval shrank by while its bytes were coded, exact to the rounding of
the coder. Knows the byte model and its coder; does not know tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.coder import binary
from nacz.predictors.bytemodel import kernel
from nacz.predictors.bytemodel.codec import form_of
from nacz.predictors.bytemodel.model import Model

__all__ = ["LEVEL", "byte_model_bits"]

LEVEL = 3


def byte_model_bits(data: bytes, lengths: NDArray[np.int32], level: int = LEVEL) -> NDArray[np.float32]:
    """Return float32[n], bits of n stretches of `lengths` bytes that together are `data`."""
    bits = np.zeros(lengths.size, np.float32)
    if not data:
        return bits
    plain = np.frombuffer(data, np.uint8)
    model = Model(level, plain.size, form_of(plain, level))
    at = model.start
    model.buf[at : at + plain.size] = plain
    state = binary.new_encoder()
    # 16 bits for a bit at most: what no real text comes near.
    out = np.zeros(8 * binary.MAX_BYTES_PER_BIT * plain.size + 2 * binary.FLUSH_BYTES, np.uint8)
    before = _information(state)
    for index, size in enumerate(lengths.tolist()):
        model.run(at, at + size, kernel.ENCODE, out, state)
        at += size
        after = _information(state)
        bits[index] = after - before
        before = after
    return bits


def _information(state: Any) -> float:
    """Bits that the coder's interval stands for."""
    return 8.0 * float(state[binary.POS]) + 32.0 - float(np.log2(float(state[binary.RANGE])))
