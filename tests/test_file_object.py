"""NaczFile and nacz.open against a BytesIO of the plain bytes, and the cost of reading a part.

Run with `pytest tests/test_file_object.py`. Uses the order-0 test predictor.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import order0
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from order0 import Order0Coder
from test_container import Dribble

import nacz
from nacz import CodecOptions, NaczFile

TEXT = b"All happy families resemble one another,\nevery unhappy family is unhappy after its own fashion.\n" * 20
SMALL = CodecOptions(level=1, segment_size=150)


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


def archive(parts: int = 1) -> bytes:
    """TEXT in many segments, as one or several members."""
    step = -(-len(TEXT) // parts)
    return b"".join(nacz.compress(TEXT[i : i + step], options=SMALL) for i in range(0, len(TEXT), step))


with order0.installed():
    ARCHIVES = {"one member": archive(), "three members": archive(3), "an only segment": nacz.compress(TEXT, 1)}

operations = st.one_of(
    st.tuples(st.just("seek"), st.integers(-50, len(TEXT) + 300), st.sampled_from([0, 1, 2])),
    st.tuples(st.sampled_from(["read", "read1", "readinto", "peek"]), st.integers(0, 400)),
    st.tuples(st.just("readline")),
)


@pytest.mark.parametrize("kind", ARCHIVES)
@given(ops=st.lists(operations, max_size=8))
@example(ops=[("seek", -3, 2), ("read", 10), ("read", 10), ("seek", 0, 0), ("readline",), ("readline",)])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_like_a_file_of_the_plain_bytes(kind: str, ops: list[tuple[str, int, int]]) -> None:
    plain = io.BytesIO(TEXT)
    with NaczFile(io.BytesIO(ARCHIVES[kind])) as file:
        assert (file.readable(), file.writable(), file.seekable(), file.mode) == (True, False, True, "rb")
        for name, *arguments in ops:
            if name == "seek":
                offset, whence = arguments
                wanted = max(0, offset + (0, plain.tell(), len(TEXT))[whence])
                assert file.seek(offset, whence) == plain.seek(wanted)
            elif name == "readline":
                assert file.readline() == plain.readline()
            elif name == "read":
                assert file.read(*arguments) == plain.read(*arguments)
            elif name == "readinto":
                target = bytearray(arguments[0])
                count = file.readinto(target)
                assert target[:count] == plain.read(arguments[0]) and not any(target[count:])
            else:
                at = plain.tell()
                rest = TEXT[at:]
                found = file.peek(*arguments) if name == "peek" else file.read1(*arguments)
                assert rest.startswith(found) and (found != b"" or rest == b"" or arguments == [0])
                plain.seek(at if name == "peek" else at + len(found))
            assert file.tell() == plain.tell()
    assert file.closed


@pytest.mark.parametrize("kind", ARCHIVES)
def test_from_a_pipe(kind: str) -> None:
    with NaczFile(Dribble(ARCHIVES[kind])) as file:
        assert not file.seekable()
        assert list(file) == TEXT.splitlines(keepends=True)
        assert file.tell() == len(TEXT)
        with pytest.raises(io.UnsupportedOperation):
            file.seek(0)


class Counted(io.BytesIO):
    """Counts what is read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_a_part_costs_the_segments_it_lies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = Order0Coder.decode

    def spy(self: Order0Coder, params: bytes, payload: bytes, plain_size: int, **more: object) -> bytes:
        decoded.append(plain_size)
        return decode(self, params, payload, plain_size, **more)  # type: ignore[arg-type]

    data = TEXT * 10
    packed = nacz.compress(data, options=CodecOptions(level=1, segment_size=len(data) // 10))
    monkeypatch.setattr(Order0Coder, "decode", spy)
    source = Counted(packed)
    with NaczFile(source) as file:
        file.seek(len(data) // 2 + 10)
        assert decoded == []
        assert file.read(1000) == data[len(data) // 2 + 10 :][:1000]
    assert len(decoded) == 1
    assert source.count < len(packed) * 0.2
    assert nacz.decompress(packed) == data


def test_damage_elsewhere_does_not_matter_until_it_is_read() -> None:
    damaged = bytearray(ARCHIVES["one member"])
    damaged[60] ^= 1
    with NaczFile(io.BytesIO(damaged)) as file:
        file.seek(1000)
        assert file.read(100) == TEXT[1000:1100]
        file.seek(0)
        with pytest.raises(nacz.CorruptDataError):
            file.read()


def test_an_archive_inside_an_archive() -> None:
    """What ends a stored archive looks like the end of its container, and is not."""
    outer = nacz.compress(ARCHIVES["one member"], 1)
    assert nacz.archive_info(io.BytesIO(outer))[0].segments[0].predictor == 0
    with NaczFile(io.BytesIO(outer)) as file:
        assert file.read() == ARCHIVES["one member"]


@given(st.binary(max_size=700), st.lists(st.integers(1, 300), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_writing_in_pieces(data: bytes, sizes: list[int]) -> None:
    out = io.BytesIO()
    with NaczFile(out, "w", options=SMALL) as file:
        at = 0
        while at < len(data):
            step = sizes[at % len(sizes)]
            assert file.write(bytearray(data[at : at + step])) == len(data[at : at + step])
            at += step
        assert file.tell() == len(data) and file.writable() and not file.readable() and not file.seekable()
    assert out.getvalue() == nacz.compress(data, options=SMALL)


def test_open(tmp_path: Path) -> None:
    path = tmp_path / "x.nacz"
    with nacz.open(path, "xt", level=1, encoding="utf-8", newline="\n") as text:
        text.write("Grüße\nan alle\n")
    with pytest.raises(FileExistsError):
        nacz.open(path, "x", level=1)
    with nacz.open(path, "ab", level=1) as file:
        file.write(b"more")
    with nacz.open(str(path), "rt", encoding="utf-8") as text:
        assert text.read() == "Grüße\nan alle\nmore"
    with nacz.open(path) as file, (tmp_path / "y").open("wb") as copy:
        shutil.copyfileobj(file, copy)
        assert file.fileno() > 0 and str(file.name) == str(path)
    assert (tmp_path / "y").read_bytes() == nacz.decompress(path.read_bytes())
    for mode in ("rbt", "rw", "", "U"):
        with pytest.raises(ValueError):
            nacz.open(path, mode)
    with pytest.raises(ValueError):
        nacz.open(path, "rb", encoding="utf-8")
    with nacz.open(path, level=1) as file:
        pass
    for use in (file.read, file.tell, file.readable, file.fileno):
        with pytest.raises(ValueError):
            use()
    with NaczFile(io.BytesIO(), "w", level=1) as file, pytest.raises(io.UnsupportedOperation):
        file.read()


def test_a_file_that_begins_later() -> None:
    source = io.BytesIO(b"prefix" + ARCHIVES["one member"])
    source.seek(6)
    with NaczFile(source) as file:
        file.seek(500)
        assert file.read(5) == TEXT[500:505]
    assert not source.closed
