"""Where streams are cut by what they hold, and which predictor a segment gets.

Run with `pytest tests/test_cutting.py`. Choices are tested with order-0 predictors that count what they are asked.
"""

from __future__ import annotations

import base64
import io
import random
import tarfile
from collections.abc import Iterator

import order0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nacz
from nacz import CodecOptions, choosing
from nacz.cutting import Cutter
from nacz.kinds import WINDOW, best_cut, is_mostly_text, is_text
from nacz.segment_coder import BYTE_MODEL, LANGUAGE_MODEL, STORED

TEXT = b"It is a truth universally acknowledged, that a single man in possession of a good fortune.\r\n" * 2000
NOISE = random.Random(0).randbytes(200_000)
TABLE = b"".join((i * i % 60_000).to_bytes(4, "little") for i in range(50_000))
SIZES = 4_000_000, 1 << 24


def cut(data: bytes, step: int = 1 << 20, sizes: tuple[int, int | None] = SIZES) -> list[bytes]:
    cutter = Cutter(*sizes)
    pieces = [segment for i in range(0, len(data), step) for segment in cutter.feed(data[i : i + step])]
    pieces += list(cutter.rest())
    assert [only for _, only in pieces] == [len(pieces) == 1] * len(pieces)
    assert b"".join(segment for segment, _ in pieces) == data
    return [segment for segment, _ in pieces]


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (TEXT[:WINDOW], True),
        ("Все счастливые семьи похожи друг на друга. ".encode() * 60, True),
        ("子曰:學而時習之,不亦說乎?".encode() * 60, True),
        ("ein naïver Café-Gast mit Übermut ".encode("latin-1") * 100, True),
        (b"\x1b[31merror\x1b[0m\tat line 7\f" * 80, True),
        (TEXT[:2000] + bytes(1500), True),  # padding of a tar
        (TEXT[:2000], True),
        ("".join(map(chr, range(32, 127))).encode("utf-16-le") * 20, False),
        ("Все счастливые семьи похожи".encode("cp1251") * 60, False),
        (NOISE[:WINDOW], False),
        (TABLE[:WINDOW], False),
        (bytes(WINDOW), False),
        (TEXT[:1000] + bytes(3096), False),
        (TEXT[:2000] + NOISE[:2096], False),
    ],
)
def test_what_is_text(window: bytes, text: bool) -> None:
    assert is_text(window) is text


@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_not(data: bytes) -> None:
    assert is_text(data) in (True, False) and is_mostly_text(data) in (True, False)
    assert 0 <= best_cut(data, 0, True) <= len(data)


def test_one_kind_is_one_segment() -> None:
    for data in (b"", b"x", TEXT, NOISE, TABLE, bytes(100_000)):
        assert len(cut(data)) == (1 if data else 0)


def test_cuts_are_where_kinds_meet() -> None:
    for first, second in ((TEXT, NOISE), (NOISE, TEXT), (TABLE, TEXT)):
        for size in (16_384, 20_000, 33_333, 100_000):
            one, two = cut(first[:size] + second[:size])
            assert abs(len(one) - size) <= 40, "a byte of noise may be a letter"


def test_what_is_short_is_no_segment() -> None:
    assert len(cut(TEXT[:50_000] + NOISE[:9000] + TEXT[:50_000])) == 1
    assert len(cut(NOISE[:9000] + TEXT[:50_000])) == 1
    assert len(cut(TEXT[:50_000] + NOISE[:9000])) == 1
    assert len(cut((TEXT[:8192] + NOISE[:8192]) * 9)) == 1


def test_members_of_a_tar_are_not_torn() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("a.txt", TEXT[:40_001]), ("b.bin", NOISE[:50_003]), ("c.txt", TEXT[:60_000])):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    first, second, third = cut(out.getvalue())
    for segment, name in ((first, b"a.txt"), (second, b"b.bin"), (third, b"c.txt")):
        assert segment.startswith(name) and segment[257:262] == b"ustar"


def test_sizes() -> None:
    data = TEXT[:150_000] + NOISE + TEXT[:100_000]
    sizes = [len(segment) for segment in cut(data, sizes=(70_000, 150_000))]
    assert sizes[0] == 70_000 and abs(sizes[0] + sizes[1] - 150_000) < 40 and max(sizes) <= 225_000
    assert [len(s) for s in cut(data, sizes=(70_000, None))][:4] == [70_000] * 4, "by kind only when asked"
    assert [len(s) for s in cut(data, sizes=(60_000, 60_000))][:5] == [60_000] * 5, "small segments stay as they are"


def test_text_that_is_coded_like_other_data_gets_its_size() -> None:
    def sizes(step: int, like_binary: list[bool]) -> list[int]:
        cutter, found, answers = Cutter(70_000, 200_000), [], iter(like_binary)
        for i in range(0, len(data), step):
            for segment, _ in cutter.feed(data[i : i + step]):
                found.append(len(segment))
                cutter.learn(next(answers))
        return found + [len(segment) for segment, _ in cutter.rest()]

    data = (TEXT * (1_000_000 // len(TEXT) + 1))[:1_000_000]
    assert sizes(1 << 20, [True] * 9)[:4] == [70_000, 200_000, 200_000, 200_000]
    for step in (1 << 20, 65_536, 4097):
        found = sizes(step, [True, False, *[False] * 20])
        assert found[:4] == [70_000, 200_000, 70_000, 70_000] and sum(found) == len(data), "and back again"
        assert found == sizes(1 << 20, [True, False, *[False] * 20])


PARTS = st.lists(st.tuples(st.sampled_from([TEXT, NOISE, TABLE]), st.integers(1, 60_000)), max_size=6)


@given(PARTS, st.integers(1, 9000))
@settings(deadline=None, max_examples=30)
def test_cuts_do_not_depend_on_how_bytes_arrive(parts: list[tuple[bytes, int]], step: int) -> None:
    data = b"".join(source[:size] for source, size in parts)
    assert cut(data, step, (70_000, 150_000)) == cut(data, sizes=(70_000, 150_000))


# Predictors


class Counting(order0.Order0Coder):
    """The byte model: exact, and asked for its first level before its best one."""

    default_segment_size = 1 << 20
    asked: list[tuple[int, int]] = []

    def encode(self, data, *, options, threads, progress):  # type: ignore[no-untyped-def]
        self.asked.append((self.predictor_id, min(options.level, 3)))
        params, payload = super().encode(data, options=options, threads=threads, progress=progress)
        return params, payload + bytes(self.worse(data))

    def decode(self, params, payload, plain_size, *, threads, progress):  # type: ignore[no-untyped-def]
        payload = payload.rstrip(b"\0")
        return super().decode(params, payload, plain_size, threads=threads, progress=progress)

    def worse(self, data: bytes) -> int:
        return 0


class CountingModel(Counting, order0.Order0ModelCoder):
    predictor_id = LANGUAGE_MODEL


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    with order0.installed():
        nacz.segment_coder.register_predictor(BYTE_MODEL, Counting)
        nacz.segment_coder.register_predictor(LANGUAGE_MODEL, CountingModel, models=[order0.IDENTITY.name])
        monkeypatch.setattr(Counting, "asked", [])
        yield Counting.asked


def predictors(archive: bytes) -> list[int]:
    return [segment.predictor for member in nacz.archive_info(io.BytesIO(archive)) for segment in member.segments]


def test_text_is_tried_with_both(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = nacz.compress(TEXT[:5000], 6)
    assert predictors(archive) == [LANGUAGE_MODEL], "what was asked for, where both are the same"
    assert asked == [(BYTE_MODEL, 1), (LANGUAGE_MODEL, 3), (BYTE_MODEL, 3)]
    monkeypatch.setattr(CountingModel, "worse", lambda self, data: 100)
    archive = nacz.compress(TEXT[:5000], 6)
    assert predictors(archive) == [BYTE_MODEL] and nacz.decompress(archive) == TEXT[:5000]
    asked.clear()
    monkeypatch.setattr(CountingModel, "worse", lambda self, data: 0)
    monkeypatch.setattr(Counting, "worse", lambda self, data: 9000 if self.predictor_id == BYTE_MODEL else 0)
    assert predictors(nacz.compress(TEXT[:5000], 6)) == [LANGUAGE_MODEL]
    assert asked == [(BYTE_MODEL, 1), (LANGUAGE_MODEL, 3)], "no second trial of what is hopeless"


def test_a_sample_ends_what_is_hopeless(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A large segment gets the language model only if a sample of it does."""
    letters = base64.b64encode(random.Random(8).randbytes(15_000))
    sizes: list[int] = []
    encode = order0.Order0ModelCoder.encode

    def spy(self, data, **more):  # type: ignore[no-untyped-def]
        sizes.append(len(data))
        return encode(self, data, **more)

    monkeypatch.setattr(order0.Order0ModelCoder, "encode", spy)
    archive = nacz.compress(letters, 6)
    assert predictors(archive) == [BYTE_MODEL] and nacz.decompress(archive) == letters and max(sizes) == 4096
    monkeypatch.setattr(Counting, "worse", lambda self, data: len(data) // 10 if self.predictor_id == BYTE_MODEL else 0)
    assert predictors(nacz.compress(letters, 6)) == [LANGUAGE_MODEL] and max(sizes) == 20_000
    del sizes[:]
    nacz.compress(letters[:16_000], 6)
    assert sizes == [16_000], "no sample of a small segment"
    del sizes[:]
    monkeypatch.setattr(choosing, "_LONG", 5)
    nacz.compress(b"abcdefgh" * 2500, options=CodecOptions(level=6, learn=3, lanes=9))
    assert sizes == [20_000], "nor where the quick trial leaves less than half"
    nacz.compress(b"abcdefgh" * 2600, 6)
    assert sizes[1:] == [4096, 20_800], "unless it is next to nothing of all"


def test_other_data_need_no_model(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order0.Order0ModelCoder, "missing", True)
    for data, predictor in ((TABLE[:9000], BYTE_MODEL), (NOISE[:9000], STORED), (b"\0" * 9000, BYTE_MODEL)):
        archive = nacz.compress(data, 6)
        assert predictors(archive) == [predictor] and nacz.decompress(archive) == data
    assert predictors(nacz.compress(b"a" * 90_000, 6)) == [BYTE_MODEL], "almost nothing is left to win"
    with pytest.raises(nacz.ModelMissingError):
        nacz.compress(TEXT[:9000], 6)
    assert LANGUAGE_MODEL not in {predictor for predictor, _ in asked}
    asked.clear()
    assert predictors(nacz.compress(TEXT[:9000], 2)) == [BYTE_MODEL] and asked == [(BYTE_MODEL, 2)]


def test_a_mixed_file_gets_both(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "worse", lambda self, data: len(data) // 9 if self.predictor_id == BYTE_MODEL else 0)
    data = TEXT[:20_000] + TABLE[:30_000] + NOISE[:20_000] + TEXT[:20_000]
    archive = nacz.compress(data, 6)
    assert predictors(archive) == [LANGUAGE_MODEL, BYTE_MODEL, LANGUAGE_MODEL]
    assert nacz.decompress(archive) == data
    with nacz.NaczFile(io.BytesIO(archive)) as file:
        file.seek(30_000)
        assert file.read(100) == data[30_000:30_100]
    options = CodecOptions(level=6, segment_size=1000)
    small = nacz.compress(data[15_000:25_000], options=options)
    assert set(predictors(small)) == {LANGUAGE_MODEL} and nacz.decompress(small) == data[15_000:25_000]


@given(st.lists(st.tuples(st.sampled_from([TEXT, NOISE, TABLE]), st.integers(1, 9000)), max_size=5))
@settings(deadline=None, max_examples=10)
def test_round_trip_and_bound(parts: list[tuple[bytes, int]]) -> None:
    data = b"".join(source[:size] for source, size in parts)
    # One segment, unless kinds differ: those of the stand-in are so small that their headers alone exceed the bound.
    options = CodecOptions(level=6, segment_size=1_000_000)
    with order0.installed():
        archive = nacz.compress(data, options=options)
        assert nacz.decompress(archive) == data
        assert len(archive) <= len(data) + len(data) // 2000 + 64
