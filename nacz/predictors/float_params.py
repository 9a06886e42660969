"""Parameters of a segment that a model in floating point made. Knows bytes; does not know backends."""

from __future__ import annotations

from typing import NamedTuple

from nacz.errors import CorruptDataError, UnsupportedVersionError
from nacz.formats.varint import decode_varint, encode_varint

__all__ = ["MAX_WINDOW", "MIN_WINDOW", "FloatParams"]

VERSION, ENSEMBLE_VERSION = 0, 0
MIN_WINDOW, MAX_WINDOW = 16, 1 << 20
MAX_SINKS = 64
MAX_FINGERPRINT = 1024
_CANARY = 8
_MOST_MEMBERS = 15  # all but recall, which needs hidden states


class FloatParams(NamedTuple):
    """As recorded: tokens that the model sees, how many first ones stay, symbols, bits of the
    ensemble's members, checksum of known logits, and who computed."""

    window: int
    sinks: int
    tokens: int
    members: int
    canary: int
    fingerprint: str

    def to_bytes(self) -> bytes:
        numbers = (VERSION, self.window, self.sinks, self.tokens, ENSEMBLE_VERSION, self.members)
        words = self.fingerprint.encode("utf-8")
        out = b"".join(map(encode_varint, numbers)) + self.canary.to_bytes(_CANARY, "little")
        return out + encode_varint(len(words)) + words

    @classmethod
    def from_bytes(cls, data: bytes, plain_size: int) -> FloatParams:
        """Parse and check everything that does not need the model. Raises CorruptDataError, UnsupportedVersionError."""
        at, numbers = 0, []
        for _ in range(6):
            value, at = decode_varint(data, at, "a parameter of a floating-point model")
            numbers.append(value)
        version, window, sinks, tokens, ensemble, members = numbers
        if version != VERSION:
            raise UnsupportedVersionError(f"parameters of a floating-point model of unknown version: {version}")
        if ensemble != ENSEMBLE_VERSION or members > _MOST_MEMBERS:
            raise UnsupportedVersionError(f"an ensemble of unknown version {ensemble} or members {members}")
        canary = int.from_bytes(data[at : at + _CANARY], "little")
        size, at = decode_varint(data, at + _CANARY, "the size of a fingerprint")
        words = data[at:]
        is_legal = MIN_WINDOW <= window <= MAX_WINDOW and sinks <= MAX_SINKS and 2 * sinks < window
        if not is_legal or not 1 <= tokens <= plain_size or size != len(words) or size > MAX_FINGERPRINT:
            raise CorruptDataError("the parameters of a floating-point model are out of range")
        try:
            fingerprint = words.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptDataError("the fingerprint of a floating-point model is not UTF-8") from None
        return cls(window, sinks, tokens, members, canary, fingerprint)

    def described(self) -> dict[str, object]:
        """Return them by name, for people and JSON."""
        return dict(self._asdict()) | {"canary": f"{self.canary:016x}"}
