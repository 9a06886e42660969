"""Any bytes, any options, any chunking of reads, seeks and writes: the same archive, and the same bytes back.

Run with `pytest tests/test_any_bytes.py`. Most examples use the order-0 test predictors, some the real byte model.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import order0
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_container import Dribble

import nacz
from nacz import CodecOptions, NaczCompressor, NaczDecompressor, NaczFile
from nacz.codec import compress_stream, decompress_stream

TEXT = b"All happy families resemble one another,\nevery unhappy family is unhappy after its own fashion.\n" * 90
NOISE = random.Random(5).randbytes(6000)
KINDS = {
    "text": TEXT[:6000],
    "noise": NOISE,
    "records": b"".join(n.to_bytes(4, "little") + b"\1\0\0\7row " for n in range(500)),
    "zeros": bytes(6000),
    "utf-16": TEXT[:3000].decode().encode("utf-16-le"),
    "latin-1": "na\xefve Stra\xdfe, d\xe9j\xe0 vu. ".encode("latin-1") * 200,
    "archive": b"\xfanczS\x0bE" * 700,
}
DATA = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 900), st.integers(0, 1500)).map(
            lambda part: KINDS[part[0]][part[1] : part[1] + part[2]]
        ),
    ),
    max_size=4,
).map(b"".join)
OPTIONS = st.builds(
    CodecOptions,
    level=st.sampled_from([1, 3, 4, 6, 9]),
    segment_size=st.one_of(st.none(), st.integers(40, 3000)),
    model=st.sampled_from([None, "none"]),
)
SIZES = st.lists(st.integers(0, 1200), min_size=1, max_size=6).filter(any)
SEEKS = st.lists(st.tuples(st.integers(-100, 7000), st.sampled_from([0, 1, 2]), st.integers(-1, 900)), max_size=6)
RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, again and again; some are empty."""
    at = number = 0
    while at < len(data):
        step = sizes[number % len(sizes)]
        yield data[at : at + step]
        at, number = at + step, number + 1


class Pieces(io.RawIOBase):
    """A pipe that gives as much as it likes."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._pieces = pieces(data, [size for size in sizes if size])
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        most = len(self._rest) if size < 0 else size
        found, self._rest = self._rest[:most], self._rest[most:]
        return found


def written(data: bytes, options: CodecOptions, sizes: list[int]) -> list[bytes]:
    """The archive as each of the writers makes it."""
    stream = io.BytesIO()
    compress_stream(Pieces(data, sizes), stream, options, threads=len(sizes))
    file = io.BytesIO()
    with NaczFile(file, "w", options=options) as out:
        for piece in pieces(data, sizes):
            assert out.write(memoryview(piece)) == len(piece)
            out.flush()
        assert out.tell() == len(data)
    compressor = NaczCompressor(options=options)
    pushed = b"".join(compressor.compress(piece) for piece in pieces(data, sizes)) + compressor.flush()
    return [nacz.compress(data, options=options), stream.getvalue(), file.getvalue(), pushed]


def read_back(archive: bytes, sizes: list[int]) -> list[bytes]:
    """The plain bytes as each of the readers gives them."""
    stream = io.BytesIO()
    decompress_stream(Pieces(archive, sizes), stream)
    decompressor = NaczDecompressor()
    popped = b"".join(decompressor.decompress(piece) for piece in pieces(archive, sizes))
    with NaczFile(Dribble(archive)) as pipe:
        piped = b"".join(iter(lambda: pipe.read1(max(sizes)), b""))
    with NaczFile(io.BytesIO(archive)) as file:
        taken = b""
        while len(piece := file.read(sizes[len(taken) % len(sizes)] or 1)):
            taken += piece
    return [nacz.decompress(archive), stream.getvalue(), popped, piped, taken]


def check(data: bytes, options: CodecOptions, sizes: list[int], seeks: list[tuple[int, int, int]]) -> None:
    archives = written(data, options, sizes)
    assert archives.count(archives[0]) == len(archives)
    archive = archives[0]
    if options.segment_size is None:
        assert len(archive) <= len(data) + len(data) // 2000 + 64
    plain = read_back(archive, sizes)
    assert plain.count(data) == len(plain)
    more = nacz.compress(b"more", 1)
    both, like = data + b"more", io.BytesIO(data + b"more")
    with NaczFile(io.BytesIO(archive + more)) as file:
        for offset, whence, size in seeks:
            wanted = max(0, offset + (0, like.tell(), len(both))[whence])
            assert file.seek(offset, whence) == like.seek(wanted)
            assert file.read(size) == like.read(size) and file.tell() == like.tell()


@pytest.mark.usefixtures("_order0")
@given(DATA, OPTIONS, SIZES, SEEKS)
@RELAXED
def test_any_chunking(data: bytes, options: CodecOptions, sizes: list[int], seeks: list[tuple[int, int, int]]) -> None:
    check(data, options, sizes, seeks)


@given(DATA, st.sampled_from([1, 2]), st.integers(700, 3000), SIZES, SEEKS)
@settings(RELAXED, max_examples=4)
def test_with_the_byte_model(
    data: bytes, level: int, segment_size: int, sizes: list[int], seeks: list[tuple[int, int, int]]
) -> None:
    check(data, CodecOptions(level=level, segment_size=segment_size), sizes, seeks)


@pytest.mark.usefixtures("_order0")
@given(DATA, SIZES, st.lists(st.integers(0, 2), min_size=1, max_size=5))
@RELAXED
def test_any_flushing(data: bytes, sizes: list[int], modes: list[int]) -> None:
    """A flush ends a segment or a member: what was put in so far comes out, and all of it in the end."""
    compressor, decompressor = NaczCompressor(1), NaczDecompressor()
    archive, back, put = b"", b"", b""
    for number, piece in enumerate(pieces(data, sizes)):
        mode = modes[number % len(modes)]
        put += piece
        ready = compressor.compress(piece, mode)
        archive += ready
        while ready:
            back += decompressor.decompress(ready)
            ready = decompressor.unused_data if decompressor.eof else b""
            if decompressor.eof:
                decompressor = NaczDecompressor()
        assert put.startswith(back) and (mode == NaczCompressor.CONTINUE or back == put)
    archive += compressor.flush()
    assert nacz.decompress(archive) == data


def seen(data: bytes, level: int) -> list[nacz.Progress]:
    moments: list[nacz.Progress] = []
    nacz.compress(data, level, progress=moments.append)
    return moments


@pytest.mark.usefixtures("_order0")
def test_trials_are_told_as_such() -> None:
    moments = seen(TEXT[:2000], 6)
    trials = [moment for moment in moments if moment.phase == "try"]
    assert trials and {moment.total for moment in trials} == {2000} and trials[-1].done == 2000
    real = [moment.done for moment in moments if moment.phase == "compress"]
    assert real == sorted(real) and real[-1] == 2000
    assert not [moment for moment in seen(TEXT[:2000], 1) if moment.phase == "try"]
