"""Numbers of variable length: seven bits per byte, lowest first, the top bit set on all bytes but the last.

Every number has one encoding (no needless zero bytes), so that equal archives are equal byte for byte. Knows
numbers below 2^63; does not know what they count.
"""

from __future__ import annotations

from nacz.errors import CorruptDataError

MAX_VARINT = (1 << 63) - 1
MAX_VARINT_BYTES = 9

__all__ = ["MAX_VARINT", "MAX_VARINT_BYTES", "decode_varint", "encode_varint"]


def encode_varint(value: int) -> bytes:
    """Return the encoding of `value`, 1 to 9 bytes. Raises ValueError outside of [0, 2^63)."""
    if not 0 <= value <= MAX_VARINT:
        raise ValueError(f"number outside of [0, 2^63): {value}")
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def decode_varint(data: bytes, at: int, what: str) -> tuple[int, int]:
    """Return the number at `data[at:]` and the position after it; `what` names the field in errors.

    Raises CorruptDataError when the number is cut off, has more than 9 bytes, or has a needless byte.
    """
    value = 0
    for i in range(MAX_VARINT_BYTES):
        if at + i >= len(data):
            raise CorruptDataError(f"{what} is cut off")
        digit = data[at + i]
        value |= (digit & 127) << (7 * i)
        if digit < 128:
            if digit == 0 and i > 0:
                raise CorruptDataError(f"{what} is not written in its shortest form")
            return value, at + i + 1
    raise CorruptDataError(f"{what} has too many bytes")
