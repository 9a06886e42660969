"""The ensemble on a tiny random model: what threads, blocks and lanes cannot change, and the plain decoder's agreement.

Run with `pytest tests/test_ensemble.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
import tiny
from golden_inputs import SAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st
from nacz.coder.range_coder import RangeEncoder
from nacz.formats.varint import encode_varint
from nacz.kernels.ahead import Ahead
from nacz.kernels.dispatch import KERNELS, usable

from nacz import lane_decoding, lane_encoding
from nacz.errors import CorruptDataError, UnsupportedVersionError, UsageError
from nacz.lane_decoding import decode_lanes
from nacz.lane_encoding import encode_lanes
from nacz.predictors import beside, ensemble, language_model, recall, spelling
from nacz.predictors.language_model import SHORT, LanguageModelCoder, Params, mixed_in
from nacz.predictors.members import ALL, MEMBERS, parse_members
from nacz.predictors.preset import preset, preset_of
from nacz.predictors.transformer import make_shape, make_weights
from nacz.segment_coder import CodecOptions
from nacz.weights import store

WINDOW = 256
FIVE = "bias,habit,ngram,match,recall"
PRESETS = (
    "f689763305ac34f1b4c7b5eed87d41099b7e66f288e8fd4f196ae2c0cc6d6d23",
    "fb208ccf54faf72901c93f8d4965769c5b20d40ed065d7a5807b41c9f74c070e",
)
WIDE = {
    "none": "9f060f2eb97863f8d077ecdfb7292f2588f282f9e136a1b94144cb32357d4f2a",
    FIVE: "ea069da0d5dcf71e12be42007cf7237cc0c04784291128bb26e0b80ee6a44246",
    "all": "3f56a562ece1d69cf2ac6dd0ba05bdc4cb34d91468c49ce3a79535b62318ddad",
}


@pytest.fixture(scope="module")
def loaded() -> store.LoadedModel:
    return store.in_memory(tiny.model())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def coder(path: Path) -> LanguageModelCoder:
    return LanguageModelCoder(CodecOptions(model=str(path)))


@pytest.fixture(scope="module")
def reference(path: Path) -> tuple[ModuleType, Any]:
    source = Path(__file__).parent.parent / "docs" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain = Path(sys.modules["reference_ensemble"].__file__ or "").read_text()
    assert "import nacz" not in plain and "from nacz" not in plain
    return module, module.Model(path.read_bytes())


def some_tokens(n: int) -> Any:
    """n token ids with passages that come again."""
    i = np.arange(n, dtype=np.int64)
    fresh = 17 + (i * i * 7 + i // 5) % 250
    return np.where(i % 97 < 60, 17 + (i % 97) * 3 % 200, fresh).astype(np.int32)


def stream_of(loaded: store.LoadedModel, tokens: Any, n_lanes: int, kern: str = "plain", **how: Any) -> bytes:
    shape, weights = make_shape(loaded.architecture, WINDOW), make_weights(loaded)
    coder = RangeEncoder()
    mixed = mixed_in(ALL, model=loaded)
    encode_lanes(
        KERNELS[kern], shape, weights, 0, tokens, n_lanes, **{"threads": 1, "ensemble": mixed, "coder": coder, **how}
    )
    return coder.finish()


def test_blocks_chunks_threads_and_kernels_change_nothing(
    loaded: store.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = some_tokens(1_201)
    expected = stream_of(loaded, tokens, 3)
    assert len(expected) < 0.9 * len(stream_of(loaded, tokens, 3, ensemble=None))
    for rows in (1, 7, 512):
        assert stream_of(loaded, tokens, 3, rows=rows) == expected, f"blocks of {rows}"
    for threads in (2, 4):
        assert stream_of(loaded, tokens, 3, threads=threads) == expected, f"{threads} threads"
    assert stream_of(loaded, tokens, 3, kern=usable()[0]) == expected
    shape, weights = make_shape(loaded.architecture, WINDOW), make_weights(loaded)
    data = np.frombuffer(expected, np.uint8)
    for kern, threads in ((usable()[0], 1), ("plain", 2), (usable()[0], 4)):
        found = decode_lanes(
            KERNELS[kern], shape, weights, 0, data, tokens.size, 3, threads, ensemble=mixed_in(ALL, model=loaded)
        )
        assert np.array_equal(found, tokens)
    for chunk in (1, 100, 10**6):
        monkeypatch.setattr(lane_encoding, "CHUNK", chunk)
        assert stream_of(loaded, tokens, 3, threads=2) == expected, f"chunks of {chunk} rows"


def test_what_is_compiled_ahead_is_what_is_called(
    loaded: store.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types that differ would cost the first run a second compilation, and nobody would notice."""
    meant: list[tuple[Any, tuple[Any, ...]]] = []

    class Recorded(Ahead):
        def __init__(self, function: Any, arguments: tuple[Any, ...], processors: int) -> None:
            meant.append((function, tuple(function.typeof_pyval(argument) for argument in arguments)))
            super().__init__(function, arguments, 1)

    monkeypatch.setattr(lane_encoding, "Ahead", Recorded)
    monkeypatch.setattr(lane_decoding, "Ahead", Recorded)
    tokens = some_tokens(500)
    stream = stream_of(loaded, tokens, 2)
    shape, weights = make_shape(loaded.architecture, WINDOW), make_weights(loaded)
    decode_lanes(
        KERNELS["plain"], shape, weights, 0, np.frombuffer(stream, np.uint8), tokens.size, 2, 1,
        ensemble=mixed_in(ALL, model=loaded),
    )  # fmt: skip
    assert [function.py_func.__name__ for function, _ in meant] == ["mixed_intervals", "take_mixed"]
    for function, signature in meant:
        assert signature in function.signatures


@given(
    data=st.one_of(
        st.binary(min_size=1, max_size=400),
        st.lists(st.sampled_from([b"the ", b"cat ", b"\xff", b"on a mat, "]), min_size=1, max_size=80).map(b"".join),
    ),
    n_lanes=st.integers(1, 5),
    threads=st.integers(1, 3),
    members=st.sets(st.sampled_from(sorted(MEMBERS)), min_size=1),
)
@settings(max_examples=30, deadline=None)
def test_any_bytes_come_back(
    coder: LanguageModelCoder, data: bytes, n_lanes: int, threads: int, members: set[str]
) -> None:
    options = CodecOptions(window=WINDOW, lanes=n_lanes, ensemble=",".join(members))
    params, payload = coder.encode(data, options=options, threads=threads, progress=None)
    assert coder.decode(params, payload, len(data), threads=2, progress=None) == data


@pytest.mark.parametrize("members", [*MEMBERS, "ngram,recall", "all"])
def test_the_reference_agrees(
    coder: LanguageModelCoder, reference: tuple[ModuleType, Any], members: str
) -> None:
    module, loaded = reference
    data = (SAMPLE + b" and so on, and so on; ") * 3 + SAMPLE[:50]
    for n_lanes in (1, 3) if members == "all" else (2,):
        # Not an archive: there the byte model, which is better than a random network, would take the place of all this.
        options = CodecOptions(window=WINDOW, lanes=n_lanes, ensemble=members)
        params, payload = coder.encode(data, options=options, threads=1, progress=None)
        assert Params.from_bytes(params, len(data)).members == parse_members(members)
        assert module.decode_language_model(loaded, module.Fields(params), payload, len(data)) == data


@numba.njit
def remember_all(memory: Any, a: Any, zero: Any, step: Any) -> None:
    for i in range(zero.size):
        recall.remember(memory, i, a, i, zero[i], step[i])


def test_what_is_remembered_is_found_beyond_the_ring() -> None:
    dim, vocab, ahead = 64, 128, 100
    entries = recall.REMEMBERED + 3_000
    memory = recall.make_recall(10**6, ahead, dim, vocab)
    assert memory.columns % 64 == 0 and memory.columns < entries
    a = tiny.noise(1, "states", entries * dim)
    zero, step = np.full(entries, 128, np.int32), np.full(entries, 1 / 64, np.float32)
    keys = np.clip(np.rint((a.reshape(-1, dim).astype(np.float32) - 128) * (step[0] * recall.UNIT)), -127, 127)
    remember_all(memory, a, zero, step)
    memory.token[np.arange(entries) % memory.columns] = np.arange(entries) % vocab
    kern, seen = KERNELS["plain"], entries - ahead
    # A query that is an old key itself, and one of an entry that is forgotten.
    for old, is_found in ((seen - recall.REMEMBERED + 5, True), (seen - recall.REMEMBERED - 5, False)):
        query = np.ascontiguousarray(a[old * dim : (old + 1) * dim])
        out = np.zeros(memory.columns, np.float32)
        recall.compare(kern, memory, entries, 1, query, zero[:1], step[:1], out)
        total, top = recall.poll(memory, seen, out)
        cosines = ((keys @ (query.astype(np.float32) - 128)) * memory.step[0]) * step[0]
        near = [i for i in range(seen - 1, seen - 1 - recall.REMEMBERED, -1) if cosines[i] > recall.LEAST]
        best = max((cosines[i] for i in near), default=np.float32(0))
        near = [i for i in near if cosines[i] > max(recall.LEAST, best - recall.NEAR)]
        assert (old in near) == is_found
        assert list(memory.voted[: memory.size[0]]) == list(dict.fromkeys(i % vocab for i in near))
        assert total == memory.vote[: memory.size[0]].sum()
        assert top == max(best, recall.LEAST)


def test_members_have_names() -> None:
    assert parse_members(FIVE) == 31 and parse_members("all") == ALL == 63 and parse_members("none") == 0
    assert parse_members("recall,bias") == MEMBERS["bias"] | MEMBERS["recall"]
    for bad in ("", "ngrams", "ngram,", "all,bias"):
        with pytest.raises(UsageError, match="member"):
            parse_members(bad)


def test_parameters() -> None:
    def params(*values: int) -> bytes:
        return b"".join(map(encode_varint, values))

    assert Params.from_bytes(params(1, 2, 1, 10, 0, 63), 10) == Params(256, 1, 10, 63)
    assert Params(256, 1, 10, 31).to_bytes() == params(1, 2, 1, 10, 0, 31)
    for bad in (params(1, 2, 1, 10), params(1, 2, 1, 10, 0), params(1, 2, 1, 10, 0, 31, 0), params(0, 2, 1, 10, 0, 31)):
        with pytest.raises(CorruptDataError):
            Params.from_bytes(bad, 10)
    assert Params.from_bytes(params(1, 2, 1, 10, 1, 31), 10) == Params(256, 1, 10, 31, preset=1)
    assert Params(256, 1, 10, 31, preset=1).to_bytes() == params(1, 2, 1, 10, 1, 31)
    for unknown in (params(1, 2, 1, 10, 2, 31), params(1, 2, 1, 10, 0, 0), params(1, 2, 1, 10, 0, 64)):
        with pytest.raises(UnsupportedVersionError):
            Params.from_bytes(unknown, 10)


@pytest.mark.parametrize("number", range(2))
def test_the_presets_are_those_specified(number: int) -> None:
    raw = (Path(__file__).parent.parent / "formats" / f"ensemble-{number}.bin").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == PRESETS[number]
    assert PRESETS[number] in (Path(__file__).parent.parent / "docs" / "ensemble.md").read_text()
    assert preset(number).shape == (2, ensemble.NUMBERS) == (2, 11663)
    assert preset(number)[1].min() > 0


def test_a_short_text_is_no_longer_for_the_ensemble(path: Path) -> None:
    """Naming its members takes bytes, and in a few tokens it has learned nothing yet; so an encoder leaves it out where
    it does not pay, unless it was asked for."""
    left_out = set()
    for text in (b"x", b"the quick brown fox", b"the the the the the the the the the the the the the", b"no " * 40):
        found: dict[str | None, tuple[bytes, bytes]] = {}
        for members in (None, "none", "all"):
            some = LanguageModelCoder(CodecOptions(model=str(path), ensemble=members))
            found[members] = some.encode(
                text, options=CodecOptions(model=str(path), ensemble=members), threads=1, progress=None
            )
            assert some.decode(*found[members], len(text), threads=1, progress=None) == text
        params = Params.from_bytes(found[None][0], len(text))
        if params.tokens > SHORT:
            assert found[None] == found["all"]
        else:
            assert found[None] == min(found["all"], found["none"], key=lambda parts: sum(map(len, parts)))
            left_out.add(params.members == 0)
    assert True in left_out


def test_damaged_streams_stay_inside(coder: LanguageModelCoder) -> None:
    options = CodecOptions(window=WINDOW, lanes=3, ensemble="all")
    params, payload = coder.encode(SAMPLE * 2, options=options, threads=1, progress=None)
    for seed in range(12):
        noise = tiny.noise(seed, "damage", len(payload)).tobytes()
        damaged = payload[: seed * 4] + noise[seed * 4 :]
        try:
            found = coder.decode(params, damaged, 2 * len(SAMPLE), threads=2, progress=None)
        except CorruptDataError:
            continue
        assert found != SAMPLE * 2


def test_bytes_begin_as_specified() -> None:
    raw = (Path(__file__).parent.parent / "formats" / "ensemble-bytes-0.bin").read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    assert digest == "05a90889d425e9b5bdbafd46b69eae3175560308ec578b73fd39f2a418d5478d"
    assert digest in (Path(__file__).parent.parent / "docs" / "ensemble.md").read_text()
    weight, final = beside.start()
    assert weight.size == beside.ROWS * beside.WIDTH == 1515 * 32 and final.size == 72 * 6
    assert abs(weight).max() <= beside.MOST_WEIGHT and not weight[beside.WIDTH - 1 :: beside.WIDTH].any()


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=70))
@settings(max_examples=60, deadline=None)
def test_every_token_has_its_place_in_the_tree(tokens: list[bytes]) -> None:
    s = spelling.make_spelling(tokens, 128)
    tokens = tokens + [b""] * (128 - len(tokens))
    assert [tokens[i] for i in s.order] == sorted(tokens)
    found: dict[int, int] = {}

    def go(first: int, last: int, node: int, before: int, where: int) -> None:
        if last - first == 1:
            found[int(s.order[first])] = before
            return
        assert first < node < last and (where < s.where[node] or where == s.where[node] == spelling.SAME)
        here = int(s.where[node])
        for side, (a, b) in enumerate(((first, node), (node, last))):
            for token in (tokens[i] for i in s.order[a:b]):
                if here != spelling.SAME and here % 9 == 0:
                    assert (len(token) > here // 9) == bool(side)
                elif here != spelling.SAME:
                    assert token[here // 9] >> (8 - here % 9) & 1 == side
        go(first, node, int(s.low[node]), before + 1, here)
        go(node, last, int(s.high[node]), before + 1, here)

    go(0, 128, int(s.root[0]), 0, -1)
    assert [found[i] for i in range(128)] == s.count.tolist()


def test_a_tokenizer_has_a_preset() -> None:
    known = bytes.fromhex("f56b7dd413fd8308ef8c87c5d67e623527c92149cc4a1324f62d288b3b3f55ff")
    assert preset_of(known) == 1 and preset_of(bytes(32)) == 0
    assert known.hex() in (Path(__file__).parent.parent / "formats" / "SPEC.md").read_text()


def test_the_reference_takes_the_other_preset(
    coder: LanguageModelCoder, reference: tuple[ModuleType, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, loaded = reference
    data = (SAMPLE + b" and so on, and so on; ") * 3
    found = {}
    for number in range(2):
        monkeypatch.setattr(language_model, "preset_of", lambda _, n=number: n)
        options = CodecOptions(window=WINDOW, lanes=2, ensemble="all")
        params, payload = coder.encode(data, options=options, threads=1, progress=None)
        assert Params.from_bytes(params, len(data)).preset == number
        assert coder.decode(params, payload, len(data), threads=1, progress=None) == data
        assert module.decode_language_model(loaded, module.Fields(params), payload, len(data)) == data
        found[number] = payload
    assert found[0] != found[1]


@pytest.mark.parametrize("members", ["none", FIVE, "all"])
def test_a_wide_vocabulary(members: str, tmp_path: Path, reference: tuple[ModuleType, Any]) -> None:
    """More than 65,536 tokens: a larger total. The reference agrees, and the bytes are pinned."""
    module, _ = reference
    architecture = dataclasses.replace(tiny.ARCHITECTURE, layers=1, vocab=65_600)
    path = tmp_path / f"wide{store.SUFFIX}"
    store.save(tiny.model(0, architecture), path)
    wide = LanguageModelCoder(CodecOptions(model=str(path)))
    data = SAMPLE + b" and so on, and so on; "
    options = CodecOptions(window=WINDOW, lanes=2, ensemble=members)
    params, payload = wide.encode(data, options=options, threads=1, progress=None)
    assert wide.decode(params, payload, len(data), threads=2, progress=None) == data
    loaded = module.Model(path.read_bytes())
    assert module.decode_language_model(loaded, module.Fields(params), payload, len(data)) == data
    assert hashlib.sha256(params + payload).hexdigest() == WIDE[members]


def test_memory_is_bounded(loaded: store.LoadedModel) -> None:
    starts = np.array([0, 4_000_000], np.int64)
    spelled = spelling.spelling_of(loaded)
    state = ensemble.make_ensemble(ALL, starts, 2048, 576, 49_152, preset(0), spelling=spelled)
    arrays = [array for part in state for array in (part if isinstance(part, tuple) else (part,))]
    assert sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) < 200_000_000
