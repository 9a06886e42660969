"""Salvage: every intact segment comes back exactly, and the lost ranges are the right ones.

Run with `pytest tests/test_repair.py`. Uses the order-0 test predictor.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import order0
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacz.formats.index import read_map

import nacz
from nacz import CodecOptions
from nacz.repair import Salvage, salvage
from nacz.segments import SegmentDecoder

# Segments of different sizes, as they are in life: each has an alphabet of its own.
TEXT = bytes(32 + (i * i // 7 + i % 13) % (20 + 5 * (i // 400)) for i in range(4000))
OPTIONS = CodecOptions(level=6, segment_size=400)


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


with order0.installed():
    ARCHIVE = nacz.compress(TEXT, options=OPTIONS)
MAP = read_map(io.BytesIO(ARCHIVE))


def repaired(data: bytes) -> tuple[bytes, Salvage]:
    out = io.BytesIO()
    found = salvage(bytes(data), out, SegmentDecoder())
    return out.getvalue(), found


def without(*numbers: int) -> bytes:
    return b"".join(TEXT[400 * n : 400 * (n + 1)] for n in range(10) if n not in numbers)


def test_an_intact_archive() -> None:
    assert len(MAP.places) == 10
    plain, found = repaired(ARCHIVE)
    assert plain == TEXT and found.lost == () and len(found.recovered) == 10
    assert [part.plain_start for part in found.recovered] == list(range(0, 4000, 400))


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("place", ["tag", "header", "payload", "last byte"])
def test_one_damaged_segment_of_ten(number: int, place: str) -> None:
    record = MAP.places[number]
    at = {"tag": 0, "header": 5, "payload": record.record_size // 2, "last byte": record.record_size - 1}[place]
    damaged = bytearray(ARCHIVE)
    damaged[record.offset + at] ^= 0x10
    plain, found = repaired(damaged)
    assert plain == without(number)
    (lost,) = found.lost
    assert (lost.plain_start, lost.plain_end) == (400 * number, 400 * (number + 1))
    assert (lost.archive_start, lost.archive_end) == (record.offset, record.offset + record.record_size)


@pytest.mark.parametrize("change", [-7, -1, 1, 300])
def test_bytes_that_came_or_went(change: int) -> None:
    at = MAP.places[4].offset + 40
    damaged = ARCHIVE[:at] + bytes(max(change, 0)) + ARCHIVE[at - min(change, 0) :]
    plain, found = repaired(damaged)
    assert plain == without(4)
    assert [(lost.plain_start, lost.plain_end) for lost in found.lost] == [(1600, 2000)]
    assert [part.plain_start for part in found.recovered if part.plain_start is not None][-1] == 3600


def test_a_lost_header_and_a_lost_end() -> None:
    damaged = bytearray(ARCHIVE)
    damaged[2] ^= 1
    plain, found = repaired(damaged)
    assert plain == TEXT and len(found.lost) == 1
    cut = MAP.places[7].offset + 9
    plain, found = repaired(ARCHIVE[:cut])
    assert plain == TEXT[:2800]
    assert found.lost[-1].plain_end is None
    plain, found = repaired(ARCHIVE[MAP.places[3].offset :])
    assert plain == TEXT[1200:]
    assert [part.plain_start for part in found.recovered] == list(range(1200, 4000, 400))
    assert (found.lost[0].plain_start, found.lost[0].plain_end) == (0, 1200)


def test_a_segment_that_is_gone_or_moved() -> None:
    first, second = MAP.places[2], MAP.places[5]
    gone = ARCHIVE[: first.offset] + ARCHIVE[first.offset + first.record_size :]
    plain, found = repaired(gone)
    assert plain == without(2)
    assert [(lost.plain_start, lost.plain_end) for lost in found.lost] == [(800, 1200)]
    nothing, found = repaired(ARCHIVE[second.offset + 1 : second.offset + 20])
    assert nothing == b"" and found.recovered == () and found.lost


def test_members() -> None:
    three = nacz.compress(b"one", 1) + ARCHIVE + nacz.compress(b"", 1) + nacz.compress(b"three", 1)
    assert repaired(three)[0] == b"one" + TEXT + b"three" and repaired(three)[1].lost == ()
    garbage = three + b"garbage"
    plain, found = repaired(garbage)
    assert plain == b"one" + TEXT + b"three" and found.lost[0].archive_start == len(three)


@given(st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_undamaged_comes_back(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(ARCHIVE)
    for at, xor in changes:
        damaged[at] ^= xor
    if damaged == ARCHIVE:
        return
    hit = {
        n
        for n, place in enumerate(MAP.places)
        if damaged[place.offset : place.offset + place.record_size]
        != ARCHIVE[place.offset : place.offset + place.record_size]
    }
    plain, found = repaired(damaged)
    assert plain == without(*hit)
    if damaged[MAP.places[-1].offset :] == ARCHIVE[MAP.places[-1].offset :]:
        expected = {i for n in hit for i in range(400 * n, 400 * (n + 1))}
        ranges = [(lost.plain_start, lost.plain_end) for lost in found.lost if lost.plain_start is not None]
        assert {i for start, end in ranges for i in range(start, end or 0)} == expected


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage(data: bytes) -> None:
    plain, found = repaired(data)
    assert plain == b"" and found.recovered == () and found.lost
