"""Any vocabulary as symbols of which every byte string can be made: the tokens, and one more symbol for each byte.

A tokenizer is asked for tokens, and what it answers is compared: where it loses or changes something (it may normalise,
or have no token for a byte) bytes are used instead. Knows tokens as byte strings; does not know models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.errors import CorruptDataError
from nacz.formats.varint import encode_varint
from nacz.kernels.cdf import GROUP

__all__ = ["Vocabulary"]

_PIECE = 4096  # characters that are tokenized at a time: a cut may cost a token, a retry this much
_SMALL = 24  # characters that are not worth another try
_INVALID = re.compile("[\udc80-\udcff]+")
_PLACE = re.compile(r"\S(?=\s)")


class Vocabulary:
    """Symbols of `tokens` (bytes of each; b"" for none) and of bytes. `tokenize`: see nacz.backends.Backend."""

    def __init__(self, tokens: list[bytes], tokenize: Callable[[str], list[int]]) -> None:
        self.n_tokens = len(tokens)
        self.size = -(-(self.n_tokens + 256) // GROUP) * GROUP
        self._bytes = [*tokens, *(bytes([byte]) for byte in range(256))]
        self._tokenize = tokenize
        self._ids: dict[bytes, int] = {}
        for number, token in enumerate(self._bytes):
            if token:
                self._ids.setdefault(token, number)

    @property
    def hash(self) -> bytes:
        """sha256 of all tokens, each after its length."""
        digest = hashlib.sha256()
        for token in self._bytes[: self.n_tokens]:
            digest.update(encode_varint(len(token)) + token)
        return digest.digest()

    def bytes_of(self, symbol: int) -> bytes:
        """Return what a symbol stands for. Raises CorruptDataError if that is nothing."""
        token = self._bytes[symbol] if symbol < len(self._bytes) else b""
        if not token:
            raise CorruptDataError("a symbol stands for nothing")
        return token

    def encode(self, data: bytes) -> NDArray[np.int32]:
        """Return symbols whose bytes are `data`."""
        text = data.decode("utf-8", "surrogateescape")
        out: list[int] = []
        at = 0
        for bad in _INVALID.finditer(text):
            self._run(text[at : bad.start()], out)
            self._raw(bad.group().encode("utf-8", "surrogateescape"), out)
            at = bad.end()
        self._run(text[at:], out)
        return np.array(out, np.int32)

    def _run(self, text: str, out: list[int]) -> None:
        at = 0
        while at < len(text):
            end = at + _PIECE
            if end < len(text):
                # Words often begin with their blank, so a cut before one changes no token.
                places = [match.end() for match in _PLACE.finditer(text, end - _PIECE // 8, end + 1)]
                end = places[-1] if places else end
            self._piece(text[at:end], out)
            at = end

    def _piece(self, text: str, out: list[int]) -> None:
        if not text:
            return
        data = text.encode("utf-8")
        found = self._right(text, data)
        if found is not None:
            out += found
        elif len(text) <= _SMALL:
            self._raw(data, out)
        else:
            self._piece(text[: len(text) // 2], out)
            self._piece(text[len(text) // 2 :], out)

    def _right(self, text: str, data: bytes) -> list[int] | None:
        """Return the tokenizer's tokens if they are `data`, perhaps after a blank before it that some add."""
        found = self._tokenize(text)
        if not found or not all(0 <= token < self.n_tokens and self._bytes[token] for token in found):
            return None
        joined = b"".join(self._bytes[token] for token in found)
        if joined == data:
            return found
        first = self._bytes[found[0]]
        if joined == b" " + data and first[:1] == b" ":
            begin: list[int] = []
            rest = first[1:]
            if rest in self._ids:
                begin = [self._ids[rest]]
            else:
                self._raw(rest, begin)
            return begin + found[1:]
        return None

    def _raw(self, data: bytes, out: list[int]) -> None:
        out += [self._ids[data[i : i + 1]] for i in range(len(data))]


def bytes_of_pieces(pieces: list[Any], is_byte_level: bool) -> list[bytes]:
    """Return the bytes of tokens as vocabularies spell them: in the byte alphabet of GPT-2, or as text in which U+2581
    is a blank and <0x0A> a byte. None, for a token that no text consists of, is b""."""
    out = []
    alphabet = _byte_alphabet()
    for piece in pieces:
        if piece is None:
            out.append(b"")
        elif is_byte_level:
            values = [alphabet.get(char, -1) for char in piece]
            out.append(bytes(values) if -1 not in values else b"")
        elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            out.append(bytes([int(piece[3:5], 16)]))
        else:
            out.append(piece.replace("\u2581", " ").encode("utf-8", "replace"))
    return out


def _byte_alphabet() -> dict[str, int]:
    """Printable Latin-1 characters stand for themselves, other bytes for characters from U+0100 on, in their order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
