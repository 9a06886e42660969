"""The container: records as values and bytes, limits before allocation, and damage of every kind.

Run with `pytest tests/test_container.py`. Uses stored segments and the order-0 test predictor, no weights.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from nacz.formats import records
from nacz.formats.index import read_last_end
from nacz.formats.reader import ArchiveReader
from nacz.formats.records import (
    MAGIC,
    MAX_SEGMENT_PLAIN,
    EndRecord,
    IndexEntry,
    MemberHeader,
    ModelIdentity,
    SegmentHeader,
)
from nacz.formats.varint import MAX_VARINT, decode_varint, encode_varint
from nacz.formats.writer import MemberWriter
from order0 import IDENTITY, installed

import nacz
from nacz.errors import CorruptDataError, UnsupportedVersionError
from nacz.segment_coder import as_recorded, name_of_model
from nacz.weights import pinned

TEXT = b"It was the best of times, it was the worst of times. " * 12


@pytest.fixture(autouse=True)
def _order0(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(pinned.DIGESTS, IDENTITY.digest.hex(), IDENTITY.name)
    with installed():
        yield


def stored(plain: bytes) -> SegmentHeader:
    return SegmentHeader(0, 0, b"", len(plain), len(plain), xxhash.xxh3_64_intdigest(plain))


def member(*segments: bytes, header: MemberHeader | None = None) -> bytes:
    out = io.BytesIO()
    writer = MemberWriter(out, header or MemberHeader())
    for plain in segments:
        writer.segment(stored(plain), plain)
    writer.finish(xxhash.xxh3_64_intdigest(b"".join(segments)))
    return out.getvalue()


def with_crc(record: bytes) -> bytes:
    return record + zlib.crc32(record).to_bytes(4, "little")


def sealed(start: bytes, body: bytes) -> bytes:
    """Put length and checksum to a hand-made record."""
    return with_crc(start + encode_varint(len(body)) + body)


def sole(body: bytes, payload: bytes) -> bytes:
    """A hand-made member of one segment."""
    return with_crc(MAGIC + b"\x81" + encode_varint(len(body)) + body + payload)


def header_bytes(body: bytes = b"\0", version: int = 1) -> bytes:
    return sealed(MAGIC + bytes([version]), body)


# Numbers


@given(st.integers(0, MAX_VARINT))
def test_varint_round_trip(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(b"x" + encoded + b"y", 1, "it") == (value, 1 + len(encoded))


@pytest.mark.parametrize(
    "bad", [b"", b"\x80", b"\xff" * 9, b"\x80\x00", b"\x81\x80\x00", b"\x80" * 9 + b"\x01"]
)
def test_bad_varints(bad: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_varint(bad, 0, "it")


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_numbers_out_of_range(value: int) -> None:
    with pytest.raises(ValueError):
        encode_varint(value)


# Records

identities = st.builds(
    ModelIdentity,
    st.from_regex(r"(?:[a-z0-9][a-z0-9._-]{0,63})?", fullmatch=True),
    st.binary(min_size=4, max_size=4),
)


@given(st.lists(identities, max_size=4), st.dictionaries(st.integers(1, 1 << 40), st.binary(max_size=20)))
def test_member_header_round_trip(models: list[ModelIdentity], extras: dict[int, bytes]) -> None:
    header = MemberHeader(tuple(models), tuple((2 * kind, extras[kind]) for kind in sorted(extras)))
    archive = ArchiveReader(io.BytesIO(header.encode()))
    assert archive.next_member() == header


@given(st.data())
def test_segment_header_round_trip(data: st.DataObject) -> None:
    plain_size = data.draw(st.integers(1, MAX_SEGMENT_PLAIN))
    header = SegmentHeader(
        data.draw(st.integers(0, MAX_VARINT // 32)),
        data.draw(st.integers(0, 3)),
        data.draw(st.binary(max_size=300)),
        plain_size,
        data.draw(st.integers(0, plain_size)),
        data.draw(st.integers(0, 2**64 - 1)),
    )
    models = MemberHeader((IDENTITY,) * 3).encode()
    archive = ArchiveReader(io.BytesIO(models + header.encode()))
    archive.next_member()
    assert archive.next_segment() == header and not archive.is_sole
    if header.model < 2:
        member = MemberHeader((ModelIdentity("", b"1234"),)[: header.model])
        archive = ArchiveReader(io.BytesIO(records.encode_sole(member, header)))
        assert archive.next_member() == member and archive.is_sole
        assert archive.next_segment() == header


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "Über", "A", "x" * 65, "a\n"])
def test_a_model_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ValueError):
        ModelIdentity(name, b"1234")
    raw = name.encode("latin-1")
    body = b"\x01" + encode_varint(len(raw)) + raw + b"1234"
    with pytest.raises(CorruptDataError):
        nacz.archive_info(io.BytesIO(header_bytes(body)))


def test_extra_fields() -> None:
    plain = b"hello"
    ignorable = MemberHeader(extras=((2, b"name"), (1000, b"")))
    assert nacz.decompress(member(plain, header=ignorable)) == plain
    with pytest.raises(UnsupportedVersionError):
        nacz.decompress(member(plain, header=MemberHeader(extras=((3, b"changes everything"),))))
    for extras in (((4, b""), (2, b"")), ((2, b""), (2, b""))):
        with pytest.raises(CorruptDataError, match="order"):
            nacz.decompress(member(plain, header=MemberHeader(extras=extras)))


def test_unknown_version_and_predictor() -> None:
    with pytest.raises(UnsupportedVersionError, match="version 9"):
        nacz.decompress(header_bytes(version=9))
    out = io.BytesIO()
    writer = MemberWriter(out, MemberHeader())
    writer.segment(SegmentHeader(77, 0, b"", 5, 2, 0), b"ab")
    writer.finish(0)
    with pytest.raises(UnsupportedVersionError, match="77"):
        nacz.decompress(out.getvalue())


def test_magic_is_no_text() -> None:
    assert max(MAGIC) > 127
    with pytest.raises(UnicodeDecodeError):
        MAGIC.decode("utf-8")


# Size


def test_overhead_is_small() -> None:
    """All that is not payload or parameters, for one segment of 100,000 bytes and a model that everyone knows."""
    (digest, name), *_ = pinned.DIGESTS.items()
    model = as_recorded(ModelIdentity(name, bytes.fromhex(digest)))
    assert model.name == "" and name_of_model(model) == name
    out = io.BytesIO()
    writer = MemberWriter(out, MemberHeader((model,)))
    payload = b"p" * 12_000
    writer.segment(SegmentHeader(2, 1, b"", 100_000, len(payload), 2), payload, only=True)
    writer.finish(2)
    assert len(out.getvalue()) - len(payload) == 28
    assert len(nacz.compress(bytes(range(100)), 1)) - 100 == 21
    assert len(member()) == 20


def test_the_identity_of_a_model() -> None:
    """A change of weights, of the tokenizer or of the arithmetic is another model."""
    known = ModelIdentity.of("name", b"w" * 32, b"t" * 32, 0)
    assert known == ModelIdentity("name", bytes.fromhex("a6543410"))
    others = [(b"v" * 32, b"t" * 32, 0), (b"w" * 32, b"s" * 32, 0), (b"w" * 32, b"t" * 32, 1)]
    assert len({ModelIdentity.of("name", *other).digest for other in others} | {known.digest}) == 4
    with pytest.raises(ValueError):
        ModelIdentity.of("name", b"w" * 8, b"t" * 32, 0)


def test_a_sole_segment_needs_no_member_header() -> None:
    plain, extras, named = b"hello", ((2, b"name"),), ModelIdentity("name", b"1234")
    nameless = ModelIdentity("", b"1234")
    for header, model, is_sole in (
        (MemberHeader(), 0, True),
        (MemberHeader((nameless,)), 1, True),
        (MemberHeader((nameless,)), 0, False),
        (MemberHeader((nameless, nameless)), 1, False),
        (MemberHeader((named,)), 1, False),
        (MemberHeader((), extras), 0, False),
    ):
        segment = dataclasses.replace(stored(plain), model=model)
        assert records.can_be_sole(header, segment) is is_sole
        out = io.BytesIO()
        writer = MemberWriter(out, header)
        writer.segment(segment, plain, only=True)
        writer.finish(0)
        archive = ArchiveReader(io.BytesIO(out.getvalue()))
        assert archive.next_member() == header and archive.is_sole is is_sole
        assert archive.next_segment() == segment and archive.payload() == plain
        assert archive.next_segment() is None and archive.next_member() is None
        assert archive.position == len(out.getvalue()) == writer.size
        if not is_sole:
            with pytest.raises(ValueError):
                records.encode_sole(header, segment)


def test_what_is_said_to_be_sole_has_no_neighbours() -> None:
    body = stored(b"hello")._encode_fields()
    only = sole(body, b"hello")
    other = stored(b"hello").encode() + with_crc(b"hello")
    tail = member(b"hello")[len(MemberHeader().encode()) + len(other) :]
    assert nacz.decompress(only) == b"hello" and nacz.decompress(only + only) == b"hello" * 2
    assert nacz.decompress(header_bytes() + other + tail) == b"hello"
    garbage = [only + other, only + tail, only + other + tail, header_bytes() + only, header_bytes() + other + only]
    for archive in garbage:
        with pytest.raises(CorruptDataError):
            nacz.decompress(archive)
    writer = MemberWriter(io.BytesIO(), MemberHeader())
    writer.segment(stored(b"hello"), b"hello")
    with pytest.raises(ValueError):
        writer.segment(stored(b"hello"), b"hello", only=True)


def test_empty_input() -> None:
    archive = nacz.compress(b"")
    assert archive == member()
    assert nacz.decompress(archive) == b""


# Damage


def archives() -> Iterator[tuple[str, bytes, bytes]]:
    with installed():
        yield "empty", b"", nacz.compress(b"")
        yield "stored", b"hello", member(b"hello")
        yield "stored, marked as only", b"hello", nacz.compress(b"hello", level=1)
        yield "two stored", b"hello world", member(b"hello ", b"world")
        yield "one segment", TEXT[:120], nacz.compress(TEXT[:120] * 4, level=1)
        options = nacz.CodecOptions(level=6, segment_size=200)
        yield "model, segments", TEXT[:500], nacz.compress(TEXT[:500], options=options)
        with pytest.MonkeyPatch.context() as patch:
            # As with weights that every reader knows, whose name needs no room.
            patch.setitem(pinned.DIGESTS, IDENTITY.digest.hex(), IDENTITY.name)
            yield "model, one segment", TEXT[:300], nacz.compress(TEXT[:300], level=6)


CASES = list(archives())


@pytest.mark.parametrize(("plain", "archive"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_every_truncation_is_an_error(plain: bytes, archive: bytes) -> None:
    nacz.decompress(archive)
    for size in range(len(archive)):
        with pytest.raises(CorruptDataError):
            nacz.decompress(archive[:size])
        with pytest.raises(CorruptDataError):
            nacz.archive_info(io.BytesIO(archive[:size]))


@pytest.mark.parametrize(("plain", "archive"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_every_flipped_bit_is_an_error(plain: bytes, archive: bytes) -> None:
    for at, bit in itertools.product(range(len(archive)), range(8)):
        damaged = bytearray(archive)
        damaged[at] ^= 1 << bit
        with pytest.raises(CorruptDataError) as caught:
            nacz.decompress(damaged)
        assert type(caught.value) is CorruptDataError or at == len(MAGIC), "damage is called damage"


@pytest.mark.parametrize("archive", [c[2] for c in CASES], ids=[c[0] for c in CASES])
def test_one_byte_more_or_less_is_an_error(archive: bytes) -> None:
    for at in range(len(archive) + 1):
        for inserted in (b"\0", b"\xff", archive[at : at + 1]):
            if inserted:
                with pytest.raises(CorruptDataError):
                    nacz.decompress(archive[:at] + inserted + archive[at:])
        if at < len(archive):
            with pytest.raises(CorruptDataError):
                nacz.decompress(archive[:at] + archive[at + 1 :])


@given(st.binary(max_size=200))
def test_random_bytes_are_no_archive(data: bytes) -> None:
    for candidate in (data, MAGIC + b"\1" + data, header_bytes() + data):
        with pytest.raises(CorruptDataError):
            nacz.decompress(candidate)


@pytest.mark.parametrize("garbage", [b"\0", b"\0" * 512, b"\xfa", MAGIC[:3], b"PK\x03\x04", b"\n"])
def test_trailing_garbage(garbage: bytes) -> None:
    with pytest.raises(CorruptDataError, match="trailing garbage"):
        nacz.decompress(member(b"hello") + garbage)


def test_segments_cannot_be_moved_dropped_or_doubled() -> None:
    """Records that are each intact, put together in another way."""
    first, second = b"the first part", b"the second part!"
    archive = member(first, second)
    head = len(MemberHeader().encode())
    cut = head + len(stored(first).encode()) + len(first) + 4
    end = cut + len(stored(second).encode()) + len(second) + 4
    one, two, tail = archive[head:cut], archive[cut:end], archive[end:]
    for parts in ([two, one], [one], [two], [one, one], [one, two, two], []):
        with pytest.raises(CorruptDataError):
            nacz.decompress(archive[:head] + b"".join(parts) + tail)


def test_same_sizes_swapped_are_seen_by_the_whole_checksum() -> None:
    archive = member(b"aaaa", b"bbbb")
    head = len(MemberHeader().encode())
    size = len(stored(b"aaaa").encode()) + 4 + 4
    swapped = archive[:head] + archive[head + size : head + 2 * size] + archive[head : head + size]
    with pytest.raises(CorruptDataError, match="whole"):
        nacz.decompress(swapped + archive[head + 2 * size :])


def test_wrong_plain_checksum_is_an_error() -> None:
    out = io.BytesIO()
    writer = MemberWriter(out, MemberHeader())
    writer.segment(SegmentHeader(0, 0, b"", 5, 5, 12345), b"hello")
    writer.finish(12345)
    with pytest.raises(CorruptDataError, match="does not decode"):
        nacz.decompress(out.getvalue())


# Hostile sizes


def segment_body(plain_size: int, payload_size: int, params: bytes = b"", kind: int = 0) -> bytes:
    return b"".join(map(encode_varint, (kind, plain_size, payload_size))) + bytes(8) + params


HOSTILE = {
    "header of 2^60 bytes": MAGIC + b"\1" + encode_varint(1 << 60),
    "header just above its limit": MAGIC + b"\1" + encode_varint(records.MAX_HEADER_BODY + 1),
    "2^40 models": header_bytes(encode_varint(1 << 40)),
    "17 models": header_bytes(encode_varint(17)),
    "a name of 2^30": header_bytes(b"\x01" + encode_varint(1 << 30)),
    "an extra field of 2^50": header_bytes(b"\0\x02" + encode_varint(1 << 50)),
    "segment header of 2^60": header_bytes() + b"S" + encode_varint(1 << 60),
    "plain size of 2^60": header_bytes() + sealed(b"S", segment_body(1 << 60, 1)),
    "plain size just above": header_bytes() + sealed(b"S", segment_body(MAX_SEGMENT_PLAIN + 1, 1)),
    "plain size 0": header_bytes() + sealed(b"S", segment_body(0, 0)),
    "payload larger than plain": header_bytes() + sealed(b"S", segment_body(10, 11)),
    "payload of 2^28 that is not there": header_bytes() + sealed(b"S", segment_body(1 << 28, 1 << 28)),
    "parameters just above": header_bytes() + sealed(b"S", segment_body(9, 9, bytes(4097))),
    "a model that is not there": header_bytes() + sealed(b"S", segment_body(9, 9, kind=1)),
    "parameters of stored": header_bytes() + sealed(b"S", segment_body(9, 9, b"\0")) + with_crc(bytes(9)),
    "one segment of 2^60": MAGIC + b"\x81" + encode_varint(1 << 60),
    "one segment of plain size 2^60": sole(segment_body(1 << 60, 1), b"x"),
    "one segment of payload 2^28": sole(segment_body(1 << 28, 1 << 28), b"x"),
    "one segment of payload larger than plain": sole(segment_body(1, 2), b"xx"),
    "one segment of nothing": sole(segment_body(0, 0), b""),
    "one segment with parameters just above": sole(segment_body(9, 9, bytes(4097)), bytes(9)),
    "one segment with a second model": sole(segment_body(9, 9, kind=2), bytes(9)),
    "one segment without its identity": sole(segment_body(9, 9, b"123", kind=1), bytes(9)),
    "end of 2^60": header_bytes() + b"E" + encode_varint(1 << 60),
    "2^40 segments": header_bytes() + sealed(b"E", encode_varint(11) + encode_varint(1 << 40)),
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE)
def test_hostile_sizes_are_refused_before_allocation(archive: bytes) -> None:
    tracemalloc.start()
    try:
        for tail in (b"", bytes(2_000_000)):
            with pytest.raises(CorruptDataError):
                nacz.decompress(archive + tail)
            with pytest.raises(CorruptDataError):
                nacz.archive_info(io.BytesIO(archive + tail))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000, "memory must follow what is there, not what is promised"


def test_encoders_refuse_what_decoders_would() -> None:
    for header in (
        SegmentHeader(0, 0, bytes(4097), 9, 9, 0),
        SegmentHeader(0, 17, b"", 9, 9, 0),
        SegmentHeader(0, 0, b"", 9, 10, 0),
        SegmentHeader(0, 0, b"", 0, 0, 0),
        SegmentHeader(0, 0, b"", MAX_SEGMENT_PLAIN + 1, 0, 0),
    ):
        with pytest.raises(ValueError):
            header.encode()
    with pytest.raises(ValueError):
        MemberHeader((IDENTITY,) * 17).encode()


# Members and the index


def test_members_concatenate() -> None:
    parts = [b"", b"one", b"two and more" * 10, b"", TEXT]
    archive = b"".join(nacz.compress(part, level=1) for part in parts)
    assert nacz.decompress(archive) == b"".join(parts)
    assert [m.plain_size for m in nacz.archive_info(io.BytesIO(archive))] == [len(part) for part in parts]


def test_index_from_the_end() -> None:
    first, second = member(b"abc", b"defgh", b"i" * 1000), member(b"later")
    file = io.BytesIO(first + second)
    offset, end = read_last_end(file)
    assert offset == len(first) and end.n_segments == 1
    offset, end = read_last_end(file, offset)
    assert offset == 0 and [e.plain_size for e in end.entries] == [3, 5, 1000]
    at = len(MemberHeader().encode()) + end.entries[0].record_size
    file.seek(at)
    assert file.read(1) == b"S"
    assert end.plain_hash == xxhash.xxh3_64_intdigest(b"abcdefgh" + b"i" * 1000)


@given(st.binary(max_size=60))
def test_index_of_garbage(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        read_last_end(io.BytesIO(data))


def test_index_of_many_segments() -> None:
    entries = tuple(IndexEntry(30 + i % 7, 1 + i) for i in range(3000))
    header = MemberHeader().encode()
    size = len(header) + sum(entry.record_size for entry in entries)
    end = EndRecord(size, len(entries), entries, 99)
    file = io.BytesIO(bytes(size) + end.encode())
    assert read_last_end(file) == (0, end)


class Dribble(io.RawIOBase):
    """A pipe that gives one byte at a time and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._source.read(min(size, 1))


def test_reading_from_a_slow_pipe() -> None:
    archive = member(b"hello ", b"world") + member(b"!")
    out = io.BytesIO()
    nacz.decompress_stream(Dribble(archive), out)
    assert out.getvalue() == b"hello world!"
    assert len(nacz.archive_info(Dribble(archive))) == 2
