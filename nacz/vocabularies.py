"""Vocabularies as models' makers write them down: GGUF's metadata and `tokenizer.json`, to nacz's `Tokenizer`.

Two kinds are known: byte-level BPE (GPT-2 and after), and SentencePiece's BPE with tokens for all bytes (Llama 2,
Gemma), here called "pieces". Control tokens stand for no bytes. Tokens that a maker defined to be found in any text,
such as runs of blanks, are text like all others, but for the marks of a conversation.

Knows how files spell tokens. Does not know how text is cut into them (`nacz.tokens`, `nacz.words`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nacz.errors import ModelError
from nacz.tokens import BYTE_OF, Tokenizer
from nacz.weights.safetensors import read_json
from nacz.words import PATTERNS, PIECES

if TYPE_CHECKING:
    from nacz.weights.gguf import GGUFFile

__all__ = ["from_folder", "from_gguf"]

_NORMAL, _CONTROL, _DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # token types of GGUF
_END_OF_TEXT = "<|endoftext|>"
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's blank
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_MARK = re.compile(r"<\|.*\|>|<(?:start|end)_of_\w+>|\[\w+\]|<unused\d+>|<(?:pad|unk|mask|bos|eos|s)>")
# What GGUF calls splitters that are the same as far as words go.
_SAME = {"smaug-bpe": "llama-bpe", "default": "gpt-2"}


def from_gguf(gguf: GGUFFile, rows: int = 0) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    bos_id is `<|endoftext|>` where there is one (what texts are separated by in training), else the file's own. The
    escape ids are the 16 lowest other ids of control or unused tokens, or ids of the `rows` of the embedding that are
    no tokens. Raises ModelError for another kind of vocabulary, an unknown word splitter, or too few spare ids.
    """
    kind = gguf.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{gguf.path}: its tokenizer {kind[:32]!r} is neither byte-level BPE nor pieces with bytes")
    strings = gguf.strings("tokenizer.ggml.tokens")
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, np.ndarray) or types.shape != (len(strings),):
        raise ModelError(f"{gguf.path}: token types are missing or not as many as tokens")
    kinds: list[int] = types.tolist()
    bos = strings.index(_END_OF_TEXT) if _END_OF_TEXT in strings else gguf.integer("tokenizer.ggml.bos_token_id")
    try:
        if kind == "gpt2":
            splitter = gguf.text("tokenizer.ggml.pre")
            merges = gguf.strings("tokenizer.ggml.merges")
            return _byte_level(strings, kinds, merges, bos, _SAME.get(splitter, splitter), rows)
        scores = gguf.metadata.get("tokenizer.ggml.scores")
        if not isinstance(scores, np.ndarray) or scores.shape != (len(strings),):
            raise ModelError("scores are missing or not as many as tokens")
        return _pieces(strings, kinds, _merges_of(strings, kinds, scores.tolist()), bos, rows)
    except ModelError as err:
        raise ModelError(f"{gguf.path}: {err}") from None


def from_folder(folder: Path, rows: int = 0) -> Tokenizer:
    """The tokenizer that `tokenizer.json` and `config.json` of a folder describe. Raises ModelError."""
    path = folder / "tokenizer.json"
    found, config = read_json(path), read_json(folder / "config.json")
    try:
        model = found["model"]
        vocab, merges, added = model["vocab"], model["merges"], found.get("added_tokens") or []
        if model.get("type", "BPE") != "BPE" or not isinstance(vocab, dict) or not isinstance(merges, list):
            raise ModelError(f"{path}: its tokenizer is neither byte-level BPE nor pieces with bytes")
        numbers = {**vocab, **{token["content"]: token["id"] for token in added}}
        size = 1 + max(numbers.values())
        if not 0 < size <= 1 << 20 or not all(type(i) is int and i >= 0 for i in numbers.values()):
            raise ModelError(f"{path}: its tokens' numbers are out of range")
        strings, kinds = [""] * size, [_UNUSED] * size
        pieces = bool(model.get("byte_fallback"))
        for string, number in numbers.items():
            strings[number] = str(string)
            kinds[number] = _BYTE if pieces and _BYTE_TOKEN.fullmatch(string) else _NORMAL
        for token in added:
            kinds[token["id"]] = _CONTROL if token.get("special") or not pieces else _DEFINED
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        if not all(len(pair) == 2 for pair in pairs):
            raise ModelError(f"{path}: its merges are not pairs")
        splitter = "" if pieces else _splitter(found.get("pre_tokenizer"))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ModelError(f"{path}: not a tokenizer that can be read") from None
    own = config.get("bos_token_id") if isinstance(config, dict) else None
    if _END_OF_TEXT in strings:
        own = strings.index(_END_OF_TEXT)
    elif type(own) is not int or not 0 <= own < size:
        raise ModelError(f"{folder}: it does not say which token begins a text")
    try:
        if pieces:
            ids = {string: number for number, string in enumerate(strings) if kinds[number] in (_NORMAL, _DEFINED)}
            known = [(ids[a], ids[b]) for a, b in pairs if a in ids and b in ids]
            return _pieces(strings, kinds, known, own, rows)
        return _byte_level(strings, kinds, [" ".join(pair) for pair in pairs], own, splitter, rows)
    except ModelError as err:
        raise ModelError(f"{path}: {err}") from None


def _splitter(pre: Any) -> str:
    """The name of the word splitter that `tokenizer.json` describes. Raises ModelError for an unknown one."""
    steps = pre.get("pretokenizers", [pre])
    regexes = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    kinds = [step["type"] for step in steps]
    for name, pattern in PATTERNS.items():
        if regexes == [pattern] and kinds == ["Split", "ByteLevel"]:
            return name
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    raise ModelError("its way of cutting text into words is not known")


def _spare(kinds: list[int], bos: int, rows: int) -> list[int]:
    """Sixteen ids for the escape, if there are as many that stand for nothing."""
    spare = [i for i, kind in enumerate(kinds) if kind in (_CONTROL, _UNUSED) and i != bos]
    return spare[:16] if len(spare) >= 16 else [*spare, *range(len(kinds), rows)][:16]


def _byte_level(
    strings: list[str], kinds: list[int], merges: Iterable[str], bos: int, splitter: str, rows: int
) -> Tokenizer:
    tokens, ids = [b""] * len(strings), {}
    for number, (string, kind) in enumerate(zip(strings, kinds, strict=True)):
        if kind == _NORMAL:
            # A normal token spelt outside the byte alphabet can never be produced: it stands for nothing.
            with_bytes = [BYTE_OF.get(char, -1) for char in string]
            if -1 not in with_bytes:
                tokens[number] = bytes(with_bytes)
                ids[string] = number
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise ModelError("the vocabulary has no tokens for one of its merges")
        pairs.append((ids[left], ids[right]))
    escape = _spare(kinds, bos, rows)
    if escape and escape[-1] >= len(tokens):
        tokens += [b""] * (escape[-1] + 1 - len(tokens))
    return Tokenizer(
        tokens, np.array(pairs, np.uint32).reshape(-1, 2), bos_id=bos, escape_ids=escape if len(escape) == 16 else [],
        splitter=splitter,
    )  # fmt: skip


def _pieces(
    strings: list[str], kinds: list[int], merges: list[tuple[int, int]], bos: int, rows: int
) -> Tokenizer:
    tokens, atoms = [b""] * len(strings), []
    for number, (string, kind) in enumerate(zip(strings, kinds, strict=True)):
        byte = _BYTE_TOKEN.fullmatch(string)
        if byte and kind == _BYTE:
            tokens[number] = bytes([int(byte[1], 16)])
        elif kind == _NORMAL or (kind == _DEFINED and not _MARK.fullmatch(string)):
            tokens[number] = string.replace(_BLANK, " ").encode("utf-8", "surrogateescape")
            if kind == _DEFINED and len(string) > 1:
                atoms.append((number, bos))
    complete = len({token for token in tokens if len(token) == 1}) == 256
    escape = [] if complete else _spare(kinds, bos, rows)
    if escape and escape[-1] >= len(tokens):
        tokens += [b""] * (escape[-1] + 1 - len(tokens))
    # A pair with bos_id, which stands for nothing, says that the first id is looked for before anything is merged.
    pairs = np.array([*merges, *atoms], np.uint32).reshape(-1, 2)
    return Tokenizer(
        tokens, pairs, bos_id=bos, escape_ids=escape if len(escape) == 16 else [], splitter=PIECES
    )


def _merges_of(strings: list[str], kinds: list[int], scores: list[float]) -> list[tuple[int, int]]:
    """Pairs that make a normal token, those of the best scores first: what SentencePiece merges by."""
    ids = {string: number for number, string in enumerate(strings) if kinds[number] in (_NORMAL, _DEFINED)}
    found = []
    for number, string in enumerate(strings):
        if kinds[number] == _NORMAL:
            for cut in range(1, len(string)):
                left, right = ids.get(string[:cut]), ids.get(string[cut:])
                if left is not None and right is not None:
                    found.append((-scores[number], number, left, right))
    found.sort()
    return [(left, right) for _, _, left, right in found]
