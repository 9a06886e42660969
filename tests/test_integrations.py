"""shutil, fsspec and smart_open with nacz, each as its users use it. Uses the order-0 test predictor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import order0
import pytest

import nacz

TEXT = b"one text for all of them\n" * 50


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


def test_shutil(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "a").write_bytes(TEXT)
    (tree / "deep" / "b").write_bytes(b"")
    here = os.getcwd()
    for _ in range(2):
        nacz.register_shutil(level=1)
    made = shutil.make_archive(str(tmp_path / "x"), "nacztar", tmp_path, "tree")
    assert made == str(tmp_path / "x.tar.nacz") and os.getcwd() == here
    shutil.unpack_archive(made, tmp_path / "out")
    assert (tmp_path / "out" / "tree" / "a").read_bytes() == TEXT
    assert (tmp_path / "out" / "tree" / "deep" / "b").read_bytes() == b""
    shutil.unregister_archive_format("nacztar")
    shutil.unregister_unpack_format("nacztar")


def test_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    nacz.register_fsspec()
    nacz.register_fsspec()
    path = str(tmp_path / "x.nacz")
    with fsspec.open(path, "wb", compression="infer") as file:
        file.write(TEXT)
    assert nacz.decompress(Path(path).read_bytes()) == TEXT
    with fsspec.open(path, "rt", compression="nacz") as file:
        assert file.readline() == "one text for all of them\n"
    with fsspec.open("memory://y.nacz", "wb", compression="nacz") as file:
        file.write(TEXT)
    with fsspec.open("memory://y.nacz", "rb", compression="infer") as file:
        file.seek(25)
        assert file.read(8) == b"one text"


def test_smart_open(tmp_path: Path) -> None:
    smart_open = pytest.importorskip("smart_open")
    nacz.register_smart_open()
    path = str(tmp_path / "x.nacz")
    with smart_open.open(path, "wb") as file:
        file.write(TEXT)
    assert nacz.decompress(Path(path).read_bytes()) == TEXT
    with smart_open.open(path, "r", encoding="ascii") as file:
        assert file.readline() == "one text for all of them\n"


def test_joblib(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    nacz.register_joblib()
    nacz.register_joblib()
    value = {"text": TEXT, "numbers": list(range(300))}
    for compress in ("nacz", ("nacz", 3), ("nacz", 1)):
        (path,) = joblib.dump(value, tmp_path / "x", compress=compress)
        assert Path(path).read_bytes().startswith(b"\xfa")
        assert joblib.load(path) == value
    (path,) = joblib.dump(value, tmp_path / "named.nacz")
    assert Path(path).read_bytes().startswith(b"\xfa") and joblib.load(path) == value


def test_numcodecs() -> None:
    numcodecs = pytest.importorskip("numcodecs")
    np = pytest.importorskip("numpy")
    codec = numcodecs.get_codec({"id": "nacz", "level": 2})
    assert codec.get_config() == {"id": "nacz", "level": 2} and repr(codec) == "Nacz(level=2)"
    assert codec == numcodecs.get_codec(codec.get_config()) != numcodecs.get_codec({"id": "nacz"})
    values = np.arange(500, dtype=np.int32).reshape(20, 25)
    for buffer in (values, values.tobytes(), bytearray(values.tobytes()), memoryview(values.tobytes())):
        archive = codec.encode(buffer)
        assert nacz.decompress(archive) == values.tobytes()
        for encoded in (archive, bytearray(archive), np.frombuffer(archive, np.uint8)):
            assert bytes(codec.decode(encoded)) == values.tobytes()
    out = np.empty_like(values)
    codec.decode(archive, out)
    assert np.array_equal(out, values)
    with pytest.raises(ValueError):
        codec.decode(archive, np.empty(3, np.uint8))
    with pytest.raises(nacz.CorruptDataError):
        codec.decode(archive[:-1])
    with pytest.raises(nacz.UsageError):
        numcodecs.get_codec({"id": "nacz", "level": 10})


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version: int, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    np = pytest.importorskip("numpy")
    if version == 2:
        compressor = pytest.importorskip("numcodecs").get_codec({"id": "nacz", "level": 1})
    else:
        from nacz.zarr import NaczCodec

        compressor = NaczCodec(level=1)
    values = np.arange(600, dtype=np.int16).reshape(20, 30)
    array = zarr.create_array(
        str(tmp_path / "x"), shape=values.shape, chunks=(10, 30), dtype=values.dtype, zarr_format=version,
        compressors=compressor,
    )  # fmt: skip
    array[:] = values
    again = zarr.open_array(str(tmp_path / "x"), mode="r")
    assert np.array_equal(again[:], values)
    chunks = [file for file in (tmp_path / "x").rglob("*") if file.is_file() and file.read_bytes()[:1] == b"\xfa"]
    assert len(chunks) == 2


def test_progress_and_cancellation_through_the_library() -> None:
    seen: list[nacz.Progress] = []
    archive = nacz.compress(TEXT, 1, progress=seen.append)
    nacz.decompress(archive, progress=seen.append)
    assert {moment.phase for moment in seen} == {"compress", "decompress"} and seen[-1].done == len(TEXT)

    class Enough(Exception):
        pass

    def cancel(moment: nacz.Progress) -> None:
        raise Enough

    for work in (lambda: nacz.compress(TEXT, 1, progress=cancel), lambda: nacz.decompress(archive, progress=cancel)):
        with pytest.raises(Enough):
            work()


def test_sizes_of_frames() -> None:
    first, second = nacz.compress(TEXT, 1), nacz.compress(b"more", nacz.COMPRESSION_LEVEL_DEFAULT)
    for buffer in (first + second, bytearray(first + second), memoryview(first + second)):
        assert nacz.get_frame_size(buffer) == len(first)
        assert nacz.get_frame_info(buffer).plain_size == len(TEXT)
