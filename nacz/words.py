"""Text to token ids with the library `tokenizers`: how each kind of vocabulary cuts text into words and merges them.

Knows tables of tokens. Does not know bytes that are no text, nor what happens where the library loses something: it is
asked for a list of ids, and `nacz.tokens` checks what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nacz.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PATTERNS", "PIECES", "SPLITTERS", "TO_ALPHABET", "UNKNOWN", "make_encoder"]

PIECES = "pieces"  # SentencePiece: no words at all, and bytes where there is no token
# Words of vocabularies that say so by a pattern.
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
PATTERNS = {"llama-bpe": _START + r"\p{N}{1,3}" + _TAIL, "qwen2": _START + r"\p{N}" + _TAIL}
SPLITTERS = ("gpt-2", "smollm", *PATTERNS, PIECES)  # the place in this tuple is what a blob stores
UNKNOWN = "\0?"  # a "token" that no text can spell: nothing merges into it


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: itself where Latin-1 prints it, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


TO_ALPHABET = dict(enumerate(byte_alphabet()))


def make_encoder(
    splitter: str, tokens: Sequence[bytes], merges: NDArray[Any], bos_id: int
) -> Callable[[str], list[int]]:
    """A function from text to ids, with the number of tokens for each byte without a token.

    tokens: what ids stand for; merges: pairs of ids, best first.
    """
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    atoms: list[AddedToken] = []
    if splitter == PIECES:
        vocab, spelt = _vocabulary_of_pieces(tokens)
        atoms = [AddedToken(spelt[i], normalized=False) for i, last in merges.tolist() if last == bos_id and spelt[i]]
        pairs = [(spelt[left], spelt[right]) for left, right in merges.tolist() if right != bos_id]
        pairs = [(left, right) for left, right in pairs if left and right and left + right in vocab]
    else:
        spelt = [token.decode("latin-1").translate(TO_ALPHABET) for token in tokens]
        vocab = {spelt[i]: i for i in range(len(tokens) - 1, -1, -1) if spelt[i]}
        pairs = [(spelt[left], spelt[right]) for left, right in merges.tolist()]
    vocab[UNKNOWN] = len(tokens)
    fallback = splitter == PIECES
    try:
        model = models.BPE(vocab=vocab, merges=pairs, unk_token=UNKNOWN, fuse_unk=False, byte_fallback=fallback)
        library = Library(model)
    except Exception as err:
        raise ModelError(f"the vocabulary cannot be used for encoding: {err}") from None
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter in ("gpt-2", "smollm"))
    if splitter == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        library.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    elif splitter in PATTERNS:
        from tokenizers import Regex

        words = pre_tokenizers.Split(Regex(PATTERNS[splitter]), "isolated")
        library.pre_tokenizer = pre_tokenizers.Sequence([words, plain])
    elif splitter != PIECES:
        library.pre_tokenizer = plain
    if atoms:
        library.add_tokens(atoms)

    def encode_words(text: str) -> list[int]:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    return encode_words


def _vocabulary_of_pieces(tokens: Sequence[bytes]) -> tuple[dict[str, int], list[str]]:
    """(text to id, id to text or "") of pieces. Single bytes are spelt <0x00> as the library looks for them."""
    bytes_at = _run_of_bytes(tokens)
    spelt, vocab = [""] * len(tokens), {}
    for i in range(len(tokens) - 1, -1, -1):
        if 0 <= i - bytes_at < 256 and bytes_at >= 0:
            continue
        try:
            text = tokens[i].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text and text != UNKNOWN:
            spelt[i] = text
            vocab[text] = i
    for byte in range(256):
        if bytes_at >= 0:
            vocab[f"<0x{byte:02X}>"] = bytes_at + byte
        elif bytes([byte]) in tokens:
            vocab[f"<0x{byte:02X}>"] = tokens.index(bytes([byte]))
    return vocab, spelt


def _run_of_bytes(tokens: Sequence[bytes]) -> int:
    """Where 256 tokens for the bytes 0 to 255 follow each other; -1 if they do not."""
    for i, token in enumerate(tokens):
        if token == b"\0" and [*tokens[i : i + 256]] == [bytes([byte]) for byte in range(256)]:
            return i
    return -1
