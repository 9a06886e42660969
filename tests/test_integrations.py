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
