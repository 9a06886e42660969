"""Tokens: every byte string comes back, and normal text becomes the tokens that a model was trained on.

The fast tier uses a small vocabulary made here, with the same gaps as the real one; an encoder written slowly
from the definition of byte-level BPE is the yardstick.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nacz import tokens
from nacz.errors import CorruptDataError, ModelError
from nacz.tokens import Tokenizer
from nacz.vocabularies import from_gguf
from nacz.weights.fetch import ensure_gguf
from nacz.weights.gguf import GGUFFile, read_gguf

LACKING = bytes.fromhex("04 06 13 14 16 1d f1 f2 c0 c1 f5 f6 f7 f8 f9 fa fb fc fd fe ff")
MERGED = [b"th", b"the", b" th", b" the", b"in", b"ing", b"\n\n", b"  ", b"    ", b"\xc3\xa9", b"le"]
MERGED += [b"\xe2\x82"]
REAL_HASH = "3fe61967ede989491a3a5a4ed386d22b8f3449c91886240bc4081915c90b9542"

AWKWARD = [
    b"",
    b"<|endoftext|><|im_start|>user <filename> <file_sep><issue_start>\n<empty_output>",
    LACKING,
    b"\x04the\x06 the\x13\x13ing\x1d",
    "the \U00045678 and \U000b0000 thing".encode(),
    b"caf\xe9 au lait, \xff\xfe, half a euro \xe2\x82, over \xc0\xaf, surrogate \xed\xa0\x80\xed\xb0\x80",
    bytes(range(256)) * 3,
    bytes(10_000),
    b" " * 5000 + b"\n" * 5000 + b"x",
    b"\xf1" * 1000 + b"\x80" * 1000,
    random.Random(1).randbytes(10_240),
    "\x00\ud7ff\ue000\ufffe\uffff\u0100Ġ\u2028\u3000".encode("utf-8", "surrogatepass"),
]


def byte_alphabet() -> list[str]:
    """GPT-2's spelling of bytes: printable Latin-1 as it is, the others from U+0100 in order."""
    spelt, spare = [], 0x100
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            spelt.append(chr(byte))
        else:
            spelt.append(chr(spare))
            spare += 1
    return spelt


def spell(raw: bytes) -> str:
    letters = byte_alphabet()
    return "".join(letters[byte] for byte in raw)


def metadata(**changes: Any) -> dict[str, Any]:
    """What a GGUF file says of the small vocabulary: 17 specials, the single bytes, the merged tokens."""
    single = [bytes([byte]) for byte in range(256) if byte not in LACKING]
    found = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.tokens": ["<|endoftext|>", *(f"<special{i}>" for i in range(16))]
        + [spell(token) for token in single + MERGED],
        "tokenizer.ggml.token_type": np.array([3] * 17 + [1] * len(single + MERGED), dtype=np.int32),
        "tokenizer.ggml.merges": [
            "t h", "th e", "Ġ th", "Ġ the", "i n", "in g", "Ċ Ċ", "Ġ Ġ", "ĠĠ ĠĠ", "Ã ©", "l e",
            spell(b"\xe2") + " " + spell(b"\x82"),
        ],
    }  # fmt: skip
    return found | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def small(**changes: Any) -> Tokenizer:
    return from_gguf(GGUFFile(Path("small.gguf"), 3, metadata(**changes), {}))


SMALL = small()


WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"


def slow_encode(text: str) -> list[int]:
    """Byte-level BPE from its definition, for ASCII: words, then the best pair merged until none is left."""
    found = metadata()
    ids = {string: i for i, string in enumerate(found["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(found["tokenizer.ggml.merges"])}
    out: list[int] = []
    for part in re.findall("[0-9]|[^0-9]+", text):  # a digit is a word, whatever stands around it
        for word in re.findall(WORDS, part):
            pieces = list(spell(word.encode()))
            while True:
                pairs = enumerate(zip(pieces, pieces[1:], strict=False))
                rank, at = min(((ranks.get(pair, 999), i) for i, pair in pairs), default=(999, 0))
                if rank == 999:
                    break
                pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            out += [ids[piece] for piece in pieces]
    return out


# -- every byte string comes back ------------------------------------------------------------------


@pytest.mark.parametrize("data", AWKWARD, ids=lambda data: repr(data[:12]))
def test_awkward_bytes_come_back(data: bytes) -> None:
    ids = SMALL.encode(data)
    assert ids.dtype == np.int32 and ids.ndim == 1 and SMALL.bos_id not in ids
    assert SMALL.decode(ids) == data
    assert SMALL.encode(bytearray(data)).tolist() == SMALL.encode(memoryview(data)).tolist() == ids.tolist()


SOUP = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from([b"the ", b"thing", b" <|endoftext|>", b"\n\n", b"\x04", b"\xe2\x82"]),
        st.just("\U00050000".encode()),
    )
).map(b"".join)


@settings(deadline=None, max_examples=400)
@given(SOUP)
@example(LACKING)
def test_any_bytes_come_back(data: bytes) -> None:
    assert SMALL.decode(SMALL.encode(data)) == data


@settings(deadline=None, max_examples=100)
@given(data=SOUP, piece=st.integers(5, 40))
def test_any_bytes_come_back_in_small_pieces(data: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_PIECE", piece)
        patch.setattr(tokens, "_SLICE", 7)
        pieces = list(SMALL.encode_pieces(data))
        assert b"".join(SMALL.decode(ids) for ids in pieces) == data
        assert all(SMALL.lengths[ids].sum() <= piece for ids in pieces)
        assert SMALL.decode(SMALL.encode(data)) == data


def test_cutting_into_pieces_changes_no_token_of_normal_text() -> None:
    rng = random.Random(2)
    words = ["the", "thing", "in", "été", "12", "a\u00a0", "\u3000", "<|im_end|>", "...", "le", "it's"]
    blanks = [" ", "\n", "\n\n", "  ", "\r\n"]
    data = "".join(rng.choice(words) + rng.choice(blanks) for _ in range(3000)).encode()
    whole = SMALL.encode(data).tolist()
    with pytest.MonkeyPatch.context() as patch:
        for size in (64, 257, 1000):
            patch.setattr(tokens, "_PIECE", size)
            assert len(list(SMALL.encode_pieces(data))) > 10
            assert SMALL.encode(data).tolist() == whole


# -- the tokens are the canonical ones -------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="theingl <|>.'s12\n\t\r", max_size=60))
def test_text_becomes_the_tokens_of_a_slow_encoder(text: str) -> None:
    assert SMALL.encode(text.encode()).tolist() == slow_encode(text)


def test_only_bytes_without_a_token_are_escaped() -> None:
    ids = SMALL.encode(b" the\x1d the")
    (the,) = SMALL.encode(b" the").tolist()
    assert ids.tolist() == [the, SMALL.escape_ids[1], SMALL.escape_ids[13], the]
    plain = SMALL.encode(b"ing \xe9\n\n")
    assert [SMALL.token_bytes(i) for i in plain] == [b"ing", b" ", b"\xe9", b"\n\n"]


def test_when_the_library_loses_something_single_bytes_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[Callable[[str], list[int]]] = [
        lambda text: [],
        lambda text: [SMALL.bos_id],
        lambda text: [SMALL.n_vocab],
        lambda text: [SMALL.n_vocab + 5],
        lambda text: [SMALL.escape_ids[0]],
    ]
    for encoder in broken:
        monkeypatch.setattr(SMALL, "_encode_words", encoder)
        for data in (b"the thing", b"the\x04 \x1dthing", b"\xff the \xf1"):
            assert SMALL.decode(SMALL.encode(data)) == data


# -- decoding refuses what encode cannot have made -------------------------------------------------


@pytest.mark.parametrize("bad", [
    [0], [20, 0, 20], [-1], [len(SMALL.lengths)], [2**31 - 1], [1], [20, 1], [1, 20], [1, 20, 1], [1, 1, 1],
    [1, 1, 20, 1], [1, 20, 20, 1], np.array([[20]]), np.array([20.0]),
])  # fmt: skip
@pytest.mark.parametrize("slice_size", [2, 1 << 16])
def test_malformed_lists_are_refused(bad: Any, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_SLICE", slice_size)
    with pytest.raises(CorruptDataError):
        SMALL.decode(np.asarray(bad))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.integers(-2, 300), st.integers(1, 16)), max_size=40), st.integers(2, 9))
def test_any_list_is_decoded_or_refused_wherever_it_is_sliced(ids: list[int], slice_size: int) -> None:
    def outcome(size: int) -> bytes | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens, "_SLICE", size)
            try:
                return SMALL.decode(np.array(ids, dtype=np.int64))
            except CorruptDataError:
                return None

    assert outcome(slice_size) == outcome(1 << 16)


def test_decode_takes_any_integer_type_and_none_at_all() -> None:
    ids = SMALL.encode(b"the\x04 thing")
    for dtype in (np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert SMALL.decode(ids.astype(dtype)) == b"the\x04 thing"
    assert SMALL.decode(np.array([])) == b""


# -- serialised form -------------------------------------------------------------------------------


def test_the_blob_holds_everything() -> None:
    blob = SMALL.to_blob()
    again = Tokenizer.from_blob(blob)
    assert again.to_blob() == blob and again.hash == SMALL.hash == small().hash
    assert (again.n_vocab, again.bos_id, again.escape_ids) == (SMALL.n_vocab, 0, tuple(range(1, 17)))
    for data in AWKWARD:
        assert again.encode(data).tolist() == SMALL.encode(data).tolist()
        assert again.decode(SMALL.encode(data)) == data
    assert small(pre="gpt-2").hash != SMALL.hash


def test_a_damaged_blob_is_refused_or_read_but_never_a_traceback() -> None:
    blob = SMALL.to_blob()
    for size in (*range(64), len(blob) - 1):
        with pytest.raises(ModelError):
            Tokenizer.from_blob(blob[:size])
    with pytest.raises(ModelError):
        Tokenizer.from_blob(blob + b"\0")
    rng = random.Random(3)
    for _ in range(300):
        hurt = bytearray(blob)
        for _ in range(rng.randint(1, 3)):
            hurt[rng.choice([rng.randrange(32), rng.randrange(len(blob))])] = rng.randrange(256)
        try:
            read = Tokenizer.from_blob(bytes(hurt))
            assert read.decode(read.encode(b"the thing\x04\xff")) == b"the thing\x04\xff"
        except ModelError as err:
            assert "\n" not in str(err)


# -- vocabularies that cannot be used --------------------------------------------------------------


@pytest.mark.parametrize(("changes", "cause"), [
    ({"model": "t5"}, "neither byte-level BPE"),
    ({"pre": "other"}, "word splitter 'other'"),
    ({"merges": ["t h", "h t"]}, "no tokens for one of its merges"),
    ({"merges": ["th"]}, "no tokens for one of its merges"),
    ({"token_type": np.array([3])}, "token types"),
    ({"token_type": [3]}, "token types"),
    ({"tokens": [], "token_type": np.array([], dtype=np.int32), "merges": []}, "cannot be used"),
    ({"tokens": ["a"], "token_type": np.array([1], dtype=np.int32), "merges": []}, "bos_id"),
    ({"tokens": ["<|endoftext|>", "a"], "token_type": np.array([3, 1]), "merges": []}, "16 spare ids"),
    ({"tokens": ["a", "b"], "token_type": np.array([3, 1]), "merges": [], "bos_token_id": 7}, "bos_id"),
    ({"tokens": ["<|endoftext|>", "x" * 65536], "token_type": np.array([3, 1]), "merges": []}, "65,535"),
])  # fmt: skip
def test_unusable_vocabularies(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ModelError, match=cause) as caught:
        small(**changes)
    assert str(caught.value).startswith("small.gguf: ") or "metadata key" in str(caught.value)


def test_a_vocabulary_with_every_byte_needs_no_escape() -> None:
    strings = ["<|endoftext|>", *byte_alphabet(), "th", "語"]
    kinds = np.array([3] + [1] * 258, dtype=np.int32)
    full = small(tokens=strings, token_type=kinds, merges=["t h"], pre="gpt-2")
    assert full.escape_ids == () and Tokenizer.from_blob(full.to_blob()).hash == full.hash
    for data in AWKWARD:
        assert full.decode(full.encode(data)) == data
    assert full.token_bytes(258) == b""  # spelt outside the byte alphabet: stands for nothing
    with pytest.raises(CorruptDataError):
        full.decode(np.array([258]))


def test_decoding_imports_no_library() -> None:
    code = (
        "import sys, numpy, nacz.tokens as t\n"
        "k = t.Tokenizer.from_blob(sys.stdin.buffer.read())\n"
        "assert k.decode(numpy.array([20, 1, 1])) and 'tokenizers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], input=SMALL.to_blob(), check=True, timeout=60)


# -- the real vocabulary ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return from_gguf(read_gguf(ensure_gguf()))


@pytest.mark.weights
def test_the_real_vocabulary_is_pinned(real: Tokenizer) -> None:
    assert real.hash == REAL_HASH
    assert (real.n_vocab, real.bos_id, real.escape_ids) == (49152, 0, tuple(range(1, 17)))
    assert bytes(np.flatnonzero(real._lacking).astype(np.uint8)) == bytes(sorted(LACKING))
    assert real.encode(b"Hello, world! It's 2024.").tolist() == [
        19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 36, 30,
    ]  # fmt: skip


@pytest.mark.weights
@pytest.mark.parametrize("data", AWKWARD, ids=lambda data: repr(data[:12]))
def test_awkward_bytes_come_back_from_the_real_vocabulary(real: Tokenizer, data: bytes) -> None:
    assert real.decode(real.encode(data)) == data


@pytest.mark.weights
@settings(deadline=None, max_examples=300)
@given(data=SOUP)
def test_any_bytes_come_back_from_the_real_vocabulary(real: Tokenizer, data: bytes) -> None:
    assert real.decode(real.encode(data)) == data


@pytest.mark.weights
def test_long_lines_and_start_up(real: Tokenizer) -> None:
    for data in (b"a" * 3_000_000, os.urandom(200_000), bytes(1_000_000)):
        assert real.decode(real.encode(data)) == data
    blob = real.to_blob()
    began = time.perf_counter()
    Tokenizer.from_blob(blob)
    assert time.perf_counter() - began < 0.5  # measured: under a millisecond
