"""What the golden archives are made of: a text that the tiny models like, noise, and small hostile archives."""

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
# The same by the tiny general model: 17 bytes for it.
GENERAL_SAMPLE = bytes.fromhex(
    "e58aa492a492a492a492e46e7455633fa87be8173f173f696333171512cde0f06da865732b20746824757220696a20746fc3124a6a20699e6e"
    "652077bdd56963ddd96e74002065643f03616e"
)


def noise(size: int) -> bytes:
    """Bytes that nothing compresses, the same for ever."""
    return hashlib.shake_128(b"golden").digest(size)


def with_crc(record: bytes) -> bytes:
    return record + zlib.crc32(record).to_bytes(4, "little")


def sealed(start: bytes, body: bytes) -> bytes:
    return with_crc(start + encode_varint(len(body)) + body)


def hostile(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Name to (archive, name of the error). `good`: one segment of the language model, all of its member."""
    head = sealed(MAGIC + b"\1", b"\0")

    def start(predictor: int, plain: int, size: int, model: int = 0) -> bytes:
        return b"".join(map(encode_varint, (32 * predictor + model, plain, size))) + bytes(8)

    def segment(predictor: int, plain: int, payload: bytes, promised: int | None = None) -> bytes:
        size = len(payload) if promised is None else promised
        return sealed(b"S", start(predictor, plain, size)) + with_crc(payload)

    def sole(body: bytes, payload: bytes) -> bytes:
        return with_crc(MAGIC + b"\x81" + encode_varint(len(body)) + body + payload)

    body, payload = good[6 : 6 + good[5]], good[6 + good[5] : -4]
    (at,) = (i for i in range(len(body)) if body[i:].startswith(b"\0\x10\x01"))  # version, window, lanes
    params = b"\0" + encode_varint(16) + encode_varint(1 << 32) + b"\x09"
    flipped = bytearray(good)
    flipped[-1] ^= 1
    return {
        "nothing": (b"", "CorruptDataError"),
        "alien": (b"PK\x03\x04" + bytes(60), "CorruptDataError"),
        "version-7": (MAGIC + b"\x07" + head[5:], "UnsupportedVersionError"),
        "must-understand": (sealed(MAGIC + b"\1", b"\0\x03\x01x"), "UnsupportedVersionError"),
        "version-7-of-one-segment": (MAGIC + b"\x87" + good[5:], "UnsupportedVersionError"),
        "predictor-99": (head + segment(99, 5, b"hello"), "UnsupportedVersionError"),
        "predictor-99-of-one-segment": (sole(start(99, 5, 5), b"hello"), "UnsupportedVersionError"),
        "truncated": (good[:-1], "CorruptDataError"),
        "flipped": (bytes(flipped), "CorruptDataError"),
        "trailing-garbage": (good + b"\0", "CorruptDataError"),
        "header-of-2-to-60": (MAGIC + b"\1" + encode_varint(1 << 60), "CorruptDataError"),
        "one-segment-of-2-to-60": (MAGIC + b"\x81" + encode_varint(1 << 60), "CorruptDataError"),
        "plain-of-2-to-60": (head + segment(0, 1 << 60, b"x"), "CorruptDataError"),
        "payload-of-2-to-28": (head + segment(0, 1 << 28, b"x", promised=1 << 28), "CorruptDataError"),
        "bomb": (head + segment(0, 1 << 28, b"x"), "CorruptDataError"),
        "wrong-plain-checksum": (head + segment(0, 5, b"hello"), "CorruptDataError"),
        "bomb-of-one-segment": (sole(start(0, 1 << 28, 1), b"x"), "CorruptDataError"),
        "lanes-of-2-to-32": (sole(body[:at] + params, payload), "CorruptDataError"),
        "model-without-a-name-like-a-path": (
            sealed(MAGIC + b"\1", b"\x01\x04../x" + bytes(4)), "CorruptDataError",
        ),
        "name-outside-of-the-folder": (sealed(MAGIC + b"\1", b"\0\x02\x04../x") + b"E", "CorruptDataError"),
        "end-of-2-to-40-segments": (head + sealed(b"E", b"\x0b" + encode_varint(1 << 40)), "CorruptDataError"),
        "another-model": (sole(body[: at - 4] + bytes(4) + body[at:], payload), "ModelMismatchError"),
    }  # fmt: skip
