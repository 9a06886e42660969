"""What the golden archives are made of: a text that the tiny model likes, noise, and small hostile archives."""

from __future__ import annotations

import hashlib
import zlib

from nacz.formats.records import MAGIC
from nacz.formats.varint import encode_varint

# Written by the tiny model of tests/tiny.py itself, greedily: 8 bytes for it. Nothing else is text to random weights.
SAMPLE = bytes.fromhex(
    "6f6dd1116e74ad0a8a6573096c69b80ae4b8e4b87fae6861a864571e7f848968619c92a800a66e7492a8d96e7492a86da8e87f11e4bd62ad3b"
    "c394dce0a864947418249e"
)


def noise(size: int) -> bytes:
    """Bytes that nothing compresses, the same for ever."""
    return hashlib.shake_128(b"golden").digest(size)


def sealed(start: bytes, body: bytes) -> bytes:
    record = start + encode_varint(len(body)) + body
    return record + zlib.crc32(record).to_bytes(4, "little")


def hostile(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Name to (archive, name of the error). `good`: one segment of the language model."""
    head = sealed(MAGIC + b"\0", b"\0")

    def segment(
        predictor: int, plain: int, payload: bytes, params: bytes = b"", promised: int | None = None, model: int = 0
    ) -> bytes:
        size = len(payload) if promised is None else promised
        numbers = b"".join(map(encode_varint, (predictor, model, plain, size, len(params))))
        return sealed(b"s", numbers + params + zlib.crc32(payload).to_bytes(4, "little") + bytes(8)) + payload

    body = good[6 : 6 + good[5]]
    named, other = good[: 6 + good[5] + 4], sealed(MAGIC + b"\0", body[:2] + bytes(8) + body[10:])
    params = b"\0" + encode_varint(16) + encode_varint(1 << 32) + b"\x09"
    flipped = bytearray(good)
    flipped[-1] ^= 1
    return {
        "nothing": (b"", "CorruptDataError"),
        "alien": (b"PK\x03\x04" + bytes(60), "CorruptDataError"),
        "version-7": (MAGIC + b"\x07" + head[5:], "UnsupportedVersionError"),
        "must-understand": (sealed(MAGIC + b"\0", b"\0\x03\x01x"), "UnsupportedVersionError"),
        "predictor-99": (head + segment(99, 5, b"hello"), "UnsupportedVersionError"),
        "truncated": (good[:-1], "CorruptDataError"),
        "flipped": (bytes(flipped), "CorruptDataError"),
        "trailing-garbage": (good + b"\0", "CorruptDataError"),
        "header-of-2-to-60": (MAGIC + b"\0" + encode_varint(1 << 60), "CorruptDataError"),
        "plain-of-2-to-60": (head + segment(0, 1 << 60, b"x"), "CorruptDataError"),
        "payload-of-2-to-28": (head + segment(0, 1 << 28, b"x", promised=1 << 28), "CorruptDataError"),
        "bomb": (head + segment(0, 1 << 28, b"x"), "CorruptDataError"),
        "wrong-plain-checksum": (head + segment(0, 5, b"hello"), "CorruptDataError"),
        "lanes-of-2-to-32": (named + segment(2, 9, b"x", params, model=1), "CorruptDataError"),
        "model-without-a-name-like-a-path": (
            sealed(MAGIC + b"\0", b"\x01\x04../x" + bytes(12) + b"\0"), "CorruptDataError",
        ),
        "name-outside-of-the-folder": (sealed(MAGIC + b"\0", b"\0\x02\x04../x") + b"E", "CorruptDataError"),
        "end-of-2-to-40-segments": (head + sealed(b"E", b"\x0b" + encode_varint(1 << 40)), "CorruptDataError"),
        "another-model": (other + good[6 + good[5] + 4 :], "ModelMismatchError"),
    }  # fmt: skip
