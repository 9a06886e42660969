"""Bytes to token ids and back, for every byte string there is.

Knows vocabularies of BPE, on bytes as GPT-2 began it or on characters with bytes beside them as SentencePiece
has it: which bytes each token stands for, in which order pairs merge, and how text is cut into words first.
Knows nothing of models, probabilities or files; `nacz.vocabularies` reads those of model's makers.

A vocabulary may lack tokens for single bytes (SmolLM2 lacks 04 06 13 14 16 1D F1 F2 and those that no UTF-8
holds). Sixteen ids that stand for no text, control tokens, are the *escape*: each is four bits, and a byte
without a token of its own is two of them, high half first. Special strings in the data are never parsed: the
encoder is not told that they exist.

Decoding needs a table and numpy only, and defines what a list of ids means. Encoding uses the library
`tokenizers` and need only find *some* list that decodes to the input; it looks for the one that the model was
trained on, and checks every piece it gets back.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.errors import CorruptDataError, ModelError
from nacz.words import SPLITTERS, TO_ALPHABET, make_encoder

Ids = NDArray[np.int32]

_MAGIC = b"NZTK"
_VERSION = 1
# magic, version, word splitter, vocabulary, merges, beginning-of-text, escape ids, bytes of all tokens
_HEADER = struct.Struct("<4sHHIIIII")
_MAX_VOCAB = 1 << 20
_PIECE = 1 << 18  # bytes encoded at a time: the library needs more than 100 bytes for each token
_SLICE = 1 << 16  # tokens decoded at a time
_INVALID = re.compile("[\udc80-\udcff]+")  # what surrogateescape makes of bytes that are not UTF-8
BYTE_OF = {char: byte for byte, char in TO_ALPHABET.items()}


class Tokenizer:
    """A BPE vocabulary that loses nothing.

    `n_vocab`: ids are 0 .. n_vocab-1. `bos_id`: stands for the beginning of a text; never made by `encode`,
    refused by `decode`. `escape_ids`: sixteen ids, or none when all 256 bytes have tokens. `lengths`:
    int32[n_vocab], bytes per token, 0 for ids that stand for no bytes of their own (escapes among them).
    `hash`: sha256 of the serialised form, hex.
    """

    def __init__(
        self,
        tokens: Iterable[bytes],
        merges: NDArray[np.uint32],
        *,
        bos_id: int,
        escape_ids: Iterable[int],
        splitter: str = "smollm",
    ) -> None:
        """`tokens[id]` is what the id stands for (b"" for nothing); `merges` (n, 2) pairs of ids, best first.

        `splitter` is "smollm" (every digit alone, then GPT-2's words), "gpt-2" or another of nacz.words. Raises
        ModelError when the vocabulary cannot represent every byte, or contradicts itself.
        """
        listed = list(tokens)
        lengths = np.array([len(token) for token in listed], dtype=np.int64)
        if len(listed) and lengths.max() > 0xFFFF:
            raise ModelError("the vocabulary has a token of more than 65,535 bytes")
        self._setup(lengths, b"".join(listed), merges, bos_id, tuple(escape_ids), splitter)

    def _setup(
        self,
        lengths: NDArray[np.int64],
        text: bytes,
        merges: NDArray[np.uint32],
        bos_id: int,
        escape_ids: tuple[int, ...],
        splitter: str,
    ) -> None:
        n_vocab = len(lengths)
        if not 1 <= n_vocab <= _MAX_VOCAB:
            raise ModelError(f"a vocabulary of {n_vocab} tokens cannot be used")
        if splitter not in SPLITTERS:
            raise ModelError(f"the word splitter {splitter!r} is not known")
        if merges.ndim != 2 or merges.shape[1] != 2 or (merges.size and merges.max() >= n_vocab):
            raise ModelError("the vocabulary's merges name tokens that it does not have")
        silent = (bos_id, *escape_ids)
        if len(escape_ids) not in (0, 16) or len(set(silent)) != len(silent):
            raise ModelError("the vocabulary's escape must be 16 different ids, none of them bos_id")
        if not all(0 <= i < n_vocab and lengths[i] == 0 for i in silent):
            raise ModelError("the vocabulary's bos_id and escape ids must be tokens that stand for no bytes")
        self.n_vocab = n_vocab
        self.bos_id = bos_id
        self.escape_ids = escape_ids
        self.splitter = splitter
        self.lengths: Ids = lengths.astype(np.int32)
        self._merges = merges
        # The 256 single bytes lie before the text, so that an escaped byte has a place in it like a token.
        self._text = np.frombuffer(bytes(range(256)) + text, dtype=np.uint8)
        self._starts = 256 + np.cumsum(lengths) - lengths
        self._nibbles = np.full(n_vocab, -1, dtype=np.int16)
        self._nibbles[list(escape_ids)] = np.arange(len(escape_ids), dtype=np.int16)

        self._byte_ids = np.full(256, -1, dtype=np.int32)
        single = np.flatnonzero(lengths == 1)[::-1]  # of two tokens for a byte the lower one counts
        self._byte_ids[self._text[self._starts[single]]] = single
        self._lacking = self._byte_ids < 0
        if self._lacking.any() and not escape_ids:
            raise ModelError("the vocabulary lacks some bytes and has no 16 spare ids to escape them with")
        self._encode_words: Callable[[str], list[int]] | None = None
        self._blob: bytes | None = None

    # -- serialised form ----------------------------------------------------------------------------------

    def to_blob(self) -> bytes:
        """The tokenizer as bytes, the same for the same vocabulary wherever it is made.

        Little-endian: header, escape ids u32 [0 or 16], token lengths u16 [n_vocab], merges u32 [n, 2], the
        bytes of all tokens. Not compressed: a compressor's output depends on its version, and this is hashed.
        """
        if self._blob is None:
            text = self._text[256:].tobytes()
            header = _HEADER.pack(
                _MAGIC, _VERSION, SPLITTERS.index(self.splitter), self.n_vocab, len(self._merges),
                self.bos_id, len(self.escape_ids), len(text),
            )  # fmt: skip
            escapes = np.array(self.escape_ids, dtype="<u4").tobytes()
            lengths, merges = self.lengths.astype("<u2").tobytes(), self._merges.astype("<u4").tobytes()
            self._blob = header + escapes + lengths + merges + text
        return self._blob

    @classmethod
    def from_blob(cls, blob: bytes) -> Tokenizer:
        """Read what `to_blob` wrote. Raises ModelError when it is anything else."""
        blob = bytes(blob)
        if len(blob) < _HEADER.size:
            raise ModelError("the tokenizer is truncated")
        magic, version, splitter, n_vocab, n_merges, bos_id, n_escape, n_text = _HEADER.unpack_from(blob)
        if magic != _MAGIC or version != _VERSION:
            raise ModelError(f"the tokenizer is not of a known format (magic {magic!r}, version {version})")
        sizes = (4 * n_escape, 2 * n_vocab, 8 * n_merges, n_text)
        if len(blob) != _HEADER.size + sum(sizes) or splitter >= len(SPLITTERS):
            raise ModelError("the tokenizer's header does not fit its size")
        at = _HEADER.size
        escapes = np.frombuffer(blob, dtype="<u4", count=n_escape, offset=at).tolist()
        at += sizes[0]
        lengths = np.frombuffer(blob, dtype="<u2", count=n_vocab, offset=at).astype(np.int64)
        at += sizes[1]
        merges = np.frombuffer(blob, dtype="<u4", count=2 * n_merges, offset=at).astype(np.uint32)
        text = blob[at + sizes[2] :]
        if int(lengths.sum()) != n_text:
            raise ModelError("the tokenizer's token lengths do not add up")
        self = cls.__new__(cls)
        self._setup(lengths, text, merges.reshape(-1, 2), bos_id, tuple(escapes), SPLITTERS[splitter])
        self._blob = blob
        return self

    @property
    def hash(self) -> str:
        """sha256 of `to_blob()`, hex."""
        return hashlib.sha256(self.to_blob()).hexdigest()

    def token_bytes(self, token: int) -> bytes:
        """What one id stands for; b"" for bos_id, escapes and ids that are never used."""
        start = int(self._starts[token])
        return self._text[start : start + int(self.lengths[token])].tobytes()

    # -- ids to bytes -------------------------------------------------------------------------------------

    def decode(self, ids: NDArray[Any]) -> bytes:
        """The bytes that a list of ids (1-D, any integer type) stands for.

        Raises CorruptDataError for an id out of range, bos_id, an id that stands for nothing, or half an
        escape.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (ids.dtype.kind in "iu" or ids.size == 0):
            raise CorruptDataError("token ids must be a one-dimensional list of integers")
        parts, at = [], 0
        while at < len(ids):
            end = min(at + _SLICE, len(ids))
            piece = ids[at:end]
            if piece.min() < 0 or piece.max() >= self.n_vocab:
                raise CorruptDataError("a token id is outside the vocabulary")
            # A slice must not end between the halves of an escape; an odd run of halves is refused below.
            if end < len(ids) and (np.cumprod(self._nibbles[piece[::-1]] >= 0).sum() & 1):
                piece = piece[:-1]
                end -= 1
            parts.append(self._decode_slice(piece.astype(np.int64)))
            at = end
        return b"".join(parts)

    def _decode_slice(self, ids: NDArray[np.int64]) -> bytes:
        starts, lengths = self._starts[ids], self.lengths[ids].astype(np.int64)
        silent = np.flatnonzero(lengths == 0)
        if len(silent):
            nibbles = self._nibbles[ids[silent]]
            # Every silent id must be a nibble, and they must come in adjacent pairs.
            if nibbles.min() < 0 or len(silent) & 1 or (silent[1::2] - silent[0::2] != 1).any():
                raise CorruptDataError("a token id stands for nothing, or an escape has only one half")
            starts[silent[0::2]] = nibbles[0::2] * 16 + nibbles[1::2]
            lengths[silent[0::2]] = 1
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
        return self._text[places].tobytes()

    # -- bytes to ids -------------------------------------------------------------------------------------

    def encode(self, data: bytes | bytearray | memoryview) -> Ids:
        """Token ids, int32, that `decode` turns back into `data`. Memory: the ids and little more."""
        parts = list(self.encode_pieces(data))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def encode_pieces(self, data: bytes | bytearray | memoryview) -> Iterator[Ids]:
        """The same ids as `encode`, one array per 256 KB of input or less. Each decodes on its own."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            end = _cut(view, at)
            yield self._encode_piece(bytes(view[at:end]))
            at = end

    def _encode_piece(self, data: bytes) -> Ids:
        text = data.decode("utf-8", "surrogateescape")
        if _INVALID.search(text) is None:
            return self._encode_text(text, data)
        # Text between bytes that are not text. Short words between them come again and again in such data.
        known: dict[str, Ids] = {}
        parts, at = [], 0
        for bad in _INVALID.finditer(text):
            parts.append(self._encode_run(text[at : bad.start()], known))
            parts.append(self._encode_bytes(bad.group().encode("utf-8", "surrogateescape")))
            at = bad.end()
        parts.append(self._encode_run(text[at:], known))
        return np.concatenate(parts)

    def _encode_run(self, text: str, known: dict[str, Ids]) -> Ids:
        found = known.get(text)
        if found is None:
            found = self._encode_text(text, text.encode("utf-8"))
            if len(text) <= 8:
                known[text] = found
        return found

    def _encode_text(self, text: str, data: bytes) -> Ids:
        """Ids of one valid UTF-8 run: the canonical ones, unless the library loses something."""
        if not data:
            return np.empty(0, dtype=np.int32)
        if self._encode_words is None:
            self._encode_words = self._build_encoder()
        ids = np.array(self._encode_words(text), dtype=np.int32)
        unknown = np.flatnonzero(ids == self.n_vocab)
        if len(unknown):
            # One mark for every byte that has no token, in the order of the bytes: the escapes go there.
            raw = np.frombuffer(data, dtype=np.uint8)
            lost = raw[self._lacking[raw]]
            if len(lost) != len(unknown):
                return self._encode_bytes(data)
            escapes = np.array(self.escape_ids, dtype=np.int32)
            ids = np.insert(ids, unknown, escapes[lost >> 4])
            ids[unknown + np.arange(1, len(unknown) + 1)] = escapes[lost & 15]
        try:
            if self.decode(ids) == data:
                return ids
        except CorruptDataError:
            pass
        return self._encode_bytes(data)

    def _encode_bytes(self, data: bytes) -> Ids:
        """A token for every byte, two for those without one."""
        raw = np.frombuffer(data, dtype=np.uint8)
        ids = self._byte_ids[raw]
        lost = np.flatnonzero(ids < 0)
        if not len(lost):
            return ids
        escapes = np.array(self.escape_ids, dtype=np.int32)
        ids[lost] = escapes[raw[lost] & 15]
        return np.insert(ids, lost, escapes[raw[lost] >> 4])

    def _build_encoder(self) -> Callable[[str], list[int]]:
        """A function from text to ids with n_vocab for each byte without a token. Imports `tokenizers`."""
        raw = self._text[256:].tobytes()
        ends = np.cumsum(self.lengths).tolist()
        tokens = [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return make_encoder(self.splitter, tokens, self._merges, self.bos_id)


# A visible byte: not a blank, nor the last byte of one of Unicode's blanks.
_VISIBLE = (
    rb"[^\s](?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])"
    rb"(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)"
)
_BEFORE_NEWLINE = re.compile(_VISIBLE + rb"(?=\n)")
_BEFORE_BLANK = re.compile(_VISIBLE + rb"(?=[ \t\r\n])")


def _cut(view: memoryview, at: int) -> int:
    """Where the piece that begins at `at` ends.

    No word spans a change from something visible to a blank, so a cut there changes no token. Taken is the
    last such place before a newline in the piece's last quarter, else before any blank, else the piece's last
    whole character.
    """
    end = at + _PIECE
    if end >= len(view):
        return len(view)
    tail = bytes(view[end - _PIECE // 4 : end])
    for pattern in (_BEFORE_NEWLINE, _BEFORE_BLANK):
        ends = [match.end() for match in pattern.finditer(tail)]
        if ends:
            return end - len(tail) + ends[-1]
    for back in range(4):
        if view[end - back] & 0xC0 != 0x80:
            return end - back
    return end
