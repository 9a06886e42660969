"""The byte model: lossless at every level, the same bytes on every machine, harmless on garbage."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacz.coder import binary
from nacz.formats.records import SegmentHeader
from numba import njit

from nacz.errors import CorruptDataError, UnsupportedVersionError, UsageError
from nacz.memory import BASE, decoding_memory
from nacz.predictors import bytemodel
from nacz.predictors.bytemodel import codec, contexts, kernel, letters, model, reader, slots, tables
from nacz.predictors.bytemodel.analysis import record_width
from nacz.predictors.bytemodel.settings import LEVELS, PARAMS_VERSION
from nacz.segment_coder import BYTE_MODEL

ALL_LEVELS = sorted(LEVELS)


def _prose(size: int) -> bytes:
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(400)]
    text = " ".join(rng.choices(words, weights=range(400, 0, -1), k=size // 4))
    return text.encode()[:size]


def _records(count: int) -> bytes:
    rng = random.Random(8)
    rows = (i.to_bytes(4, "little") + bytes([1, 2, 0, rng.randrange(4)]) + b"row\0" + b"\0" * 5 for i in range(count))
    return b"".join(rows)


def _noise(size: int) -> bytes:
    return random.Random(9).randbytes(size)


EDGES = {
    "empty": b"",
    "one byte": b"x",
    "one zero": b"\0",
    "all values": bytes(range(256)),
    "run of a": b"a" * 5000,
    "run of zeros": bytes(5000),
    "run of ff": b"\xff" * 3000,
    "noise": _noise(3000),
    "lines": b"abc,def\r\n" * 300 + b"\n\n\n",
    "brackets": b"((((((((((((<<<<]]]]]))))}}}" * 20,
    "prose": _prose(4000),
    "records": _records(200),
}


@pytest.mark.parametrize("level", ALL_LEVELS)
@pytest.mark.parametrize("name", EDGES)
def test_edge_cases_come_back(level: int, name: str) -> None:
    data = EDGES[name]
    payload = bytemodel.compress(data, level)
    assert bytemodel.decompress(payload, len(data), level) == data


@pytest.mark.parametrize("level", ALL_LEVELS)
@settings(max_examples=5, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=120).map(str.encode)))
def test_any_bytes_come_back(level: int, data: bytes) -> None:
    assert bytemodel.decompress(bytemodel.compress(data, level), len(data), level) == data


@pytest.mark.parametrize("level", ALL_LEVELS)
def test_pieces_leave_no_seam(level: int) -> None:
    data = _prose(70_000)  # more than one piece of 64 KB
    steps: list[tuple[int, int]] = []
    payload = bytemodel.compress(data, level, lambda done, coded: steps.append((done, coded)))
    assert [done for done, _ in steps] == [65536, 70_000]
    assert bytemodel.decompress(payload, len(data), level) == data


PINNED = {
    1: "195e4a666fd462cc83f5a9ca5edfa99a",
    2: "f33343f068ad821a9765d0574fe83567",
    3: "a45f0ba73c2b22e5cd20a2dbac746d90",
}


@pytest.mark.parametrize("level", ALL_LEVELS)
def test_payload_bytes_are_pinned(level: int) -> None:
    data = _prose(6000) + _records(100) + _noise(500)
    assert hashlib.sha256(bytemodel.compress(data, level)).hexdigest()[:32] == PINNED[level]


@pytest.mark.parametrize("level", ALL_LEVELS)
@pytest.mark.parametrize(("width", "kind"), [(0, 0), (17, contexts.BINARY + contexts.TABLE)])
def test_compiled_and_interpreted_agree(level: int, width: int, kind: int) -> None:
    data = _prose(60) + b"\n<a>12</a>\n" + _noise(16) + b"a" * 24 + _records(2)
    size, read = len(data), len(data) // 3
    state = model.Model.__new__(model.Model)
    cfg = LEVELS[level]
    # Python's own integers: whatever overflowed or wrapped when compiled would differ here.
    lists = [_Ints(np.asarray(a, np.int64) if a.size >= 300_000 else a.tolist()) for a in state._allocate(cfg, size)]
    with pytest.MonkeyPatch.context() as patch:
        _interpret(patch)
        loops = reader.build(cfg).py_func, kernel.build(cfg).py_func
        out, coder = [0] * (16 * size + 64), binary.new_encoder().tolist()
        _code([*data, *[0] * 8], read, size, width, kind, loops, lists, out, coder, [0] * 64, [0] * 1024)
    array = np.array(out, dtype=np.uint8)
    interpreted = array[: binary.finish(np.array(coder, dtype=np.int64), array)].tobytes()

    loops = model.compiled_reader(level), model.compiled(level)
    out2, coder2 = np.zeros(16 * size + 64, dtype=np.uint8), binary.new_encoder()
    buf = np.frombuffer(data + bytes(8), dtype=np.uint8).copy()
    reg, waiting = np.zeros(64, dtype=np.int64), np.zeros(1024, dtype=np.int64)
    _code(buf, read, size, width, kind, loops, state._allocate(cfg, size), out2, coder2, reg, waiting)
    assert out2[: binary.finish(coder2, out2)].tobytes() == interpreted


def _code(
    buf: Any, read: int, size: int, width: int, kind: int, loops: Any, arrays: Any, out: Any, coder: Any, reg: Any,
    waiting: Any,
) -> None:  # fmt: skip
    a = model.Arrays(*arrays)
    loops[0](
        buf, 0, read, reg, a.slots, a.hashes, a.base, a.base0, a.heads, a.followers, a.plain, a.next_state,
        a.reciprocal, a.match_lengths, waiting,
    )  # fmt: skip
    reg[contexts.WIDTH], reg[contexts.KIND] = width, kind
    loops[1](buf, read, size, kernel.ENCODE, out, coder, reg, *a)


class _Ints:
    """An array that hands out Python integers."""

    def __init__(self, data: object) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, key: object) -> object:
        if isinstance(key, slice):
            return _View(self, key.start)
        return int(self.data[key])  # type: ignore[index]

    def __setitem__(self, key: int, value: int) -> None:
        self.data[key] = int(value)  # type: ignore[index]


class _View:
    def __init__(self, base: _Ints, offset: int) -> None:
        self.base, self.offset = base, offset

    def __getitem__(self, key: int) -> object:
        return self.base[self.offset + key]

    def __setitem__(self, key: int, value: int) -> None:
        self.base[self.offset + key] = value


def _interpret(patch: pytest.MonkeyPatch) -> None:
    """Replace every compiled helper by its Python source."""
    for module in (contexts, slots, reader, kernel):
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func"):
                patch.setattr(module, name, value.py_func)


@pytest.mark.parametrize("level", ALL_LEVELS)
def test_no_float_in_the_compiled_loop(level: int) -> None:
    bytemodel.compress(b"warm", level)
    run = model.compiled(level)
    fresh = njit(nogil=True, error_model="numpy")(run.py_func)  # code that comes from a cache cannot be looked at
    fresh.compile(run.signatures[0])
    code = next(iter(fresh.inspect_llvm().values()))
    assert code.count("add i64") > 50
    for kind in ("double ", "float ", "fadd", "fmul", "sitofp"):
        assert kind not in code


@pytest.mark.parametrize("level", ALL_LEVELS)
def test_corrupted_payloads_give_bytes_of_the_declared_size(level: int) -> None:
    data = _prose(1500)
    payload = bytemodel.compress(data, level)
    rng = random.Random(level)
    for _ in range(6):
        bad = bytearray(payload)
        for _ in range(3):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        assert len(bytemodel.decompress(bytes(bad), len(data), level)) == len(data)
    forms = [head + payload[2:] for head in (b"\xff\x7f", b"\xff\xbf", b"\xff\xff")]
    for bad in (b"", b"\xff", payload[:7], payload[: len(payload) // 2], _noise(200), *forms):
        assert len(bytemodel.decompress(bad, 2000, level)) == 2000


@pytest.mark.parametrize("level", ALL_LEVELS)
def test_noise_grows_little_and_is_seen(level: int) -> None:
    data = _noise(20_000)
    assert len(bytemodel.compress(data, level)) < 20_600
    assert bytemodel.estimate_incompressible(data)


@pytest.mark.parametrize("alphabet", [b"ACGT", b"0123456789", bytes(range(64)), b"abcdefghijklmnopqrstuvw !-", b"z"])
def test_letters_at_random_cost_their_list_alone(alphabet: bytes) -> None:
    data = bytes(random.Random(10).choices(alphabet, k=4001))
    payload = bytemodel.compress(data, 1)
    bits = len(data) * float(np.log2(len(alphabet)))
    assert len(payload) <= bits / 8 + 12
    assert bytemodel.decompress(payload, len(data), 1) == data


@given(st.binary(min_size=1, max_size=400))
@settings(max_examples=50, deadline=None)
def test_letters_come_back(data: bytes) -> None:
    plain = np.frombuffer(data, dtype=np.uint8)
    coded = letters.compress(plain, letters.alphabet(plain))
    assert letters.decompress(np.frombuffer(coded, dtype=np.uint8), len(data)) == data


def test_a_table_is_taken_for_one() -> None:
    rng = random.Random(11)
    rows = [bytes(rng.choices(b"\0\0\0\0\x01\x07\xff", k=50))]
    for _ in range(200):
        rows.append(bytes(rng.choice(b"\0\x03") if rng.random() < 0.05 else c for c in rows[-1]))
    table = np.frombuffer(b"".join(rows), dtype=np.uint8)
    assert codec.form_of(table, 3) == 50 | (contexts.BINARY + contexts.TABLE) << model.KIND_SHIFT
    assert codec.form_of(table, 2) == 50 | contexts.BINARY << model.KIND_SHIFT
    assert codec.form_of(np.frombuffer(_prose(5000), dtype=np.uint8), 3) == 0


def test_predictable_data_is_not_taken_for_noise() -> None:
    for data in (_prose(20_000), _records(2000), bytes(20_000), bytes(range(256)) * 100, _noise(10_000) * 3):
        assert not bytemodel.estimate_incompressible(data)
    assert not bytemodel.estimate_incompressible(b"")


def test_record_width() -> None:
    assert record_width(np.frombuffer(_records(2000), dtype=np.uint8)) == 17
    assert record_width(np.frombuffer(_prose(20_000), dtype=np.uint8)) == 0
    assert record_width(np.frombuffer(_noise(20_000), dtype=np.uint8)) == 0


def test_higher_levels_are_smaller() -> None:
    data = _prose(20_000)
    sizes = [len(bytemodel.compress(data, level)) for level in ALL_LEVELS]
    assert sizes == sorted(sizes, reverse=True)


def test_coder_follows_the_protocol() -> None:
    options = SimpleNamespace(level=2)
    coder = bytemodel.ByteModelCoder(options)
    data = _prose(3000)
    seen: list[tuple[int, int, int]] = []
    params, payload = coder.encode(data, options=options, threads=1, progress=lambda *a: seen.append(a))
    assert params == bytes([3, 2]) and seen[-1][0] == len(data)
    assert coder.decode(params, payload, len(data), threads=1, progress=None) == data
    noise = _noise(9000)
    assert coder.encode(noise, options=options, threads=1, progress=None) == (b"", noise)
    for bad in (b"", b"\x03", b"\x03\x09", b"\x03\x01\x01"):
        with pytest.raises(CorruptDataError):
            coder.decode(bad, payload, len(data), threads=1, progress=None)
    with pytest.raises(UnsupportedVersionError):
        coder.decode(b"\x01\x02", payload, len(data), threads=1, progress=None)
    with pytest.raises(UsageError):
        bytemodel.compress(data, 4)


def test_cancelling_from_the_progress_callback() -> None:
    class Stop(Exception):
        pass

    def stop(done: int, coded: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        bytemodel.compress(_prose(100), 1, stop)


def test_tables() -> None:
    squash, stretch = tables.squash_table(), tables.stretch_table()
    assert squash.min() == 1 and squash.max() == 65535 and (np.diff(squash) >= 0).all()
    assert squash[tables.LOGIT_MAX + 1] == 32768
    middle = stretch[300:3800]
    assert (np.abs(squash[middle + tables.LOGIT_MAX + 1] - (np.arange(300, 3800) * 16 + 8)) < 140).all()
    after = tables.next_state_table()
    assert after[0] != 0 and after[1] != 0 and (after < len(tables._states())).all()
    digest = hashlib.sha256()
    for table in (squash, stretch, after, tables.initial_probability_table(), tables.reciprocal_table()):
        digest.update(table.astype("<i4").tobytes())
    assert digest.hexdigest()[:32] == TABLES


TABLES = "52473b57b84d266943be78ebd8b72f4d"


@pytest.mark.parametrize("level", ALL_LEVELS)
@pytest.mark.parametrize("size", [1, 60_000, 3_000_000])
def test_memory_is_told_before_it_is_taken(level: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Model, "run", lambda *_: None)
    model.Model(level, 1, 0)  # what is made once
    tracemalloc.start()
    try:
        made = model.Model(level, size, 0)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(made.buf) >= size and taken <= model.memory(level, size) <= taken + (2 << 20)
    header = SegmentHeader(BYTE_MODEL, 0, bytes([PARAMS_VERSION, level]), size, size, 0)
    assert decoding_memory(header, None, True) == BASE + 4 * size + model.memory(level, size)
