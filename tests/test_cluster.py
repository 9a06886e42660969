"""Segments on a cluster of dask.distributed: two worker processes on this machine, one of them killed in the middle.

Run with `pytest tests/test_cluster.py`. Uses predictors of tests, no weights.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import order0
import pytest
import worker_fakes
from cli_runner import TEXT, Nacz
from test_workers import kill_one

import nacz
from nacz import CodecOptions
from nacz.errors import UsageError, WorkerError
from nacz.segment_coder import BYTE_MODEL, register_predictor
from nacz.workers import cluster as clusters

distributed = pytest.importorskip("distributed", reason="needs the extra dask")
pytestmark = pytest.mark.slow

DATA = TEXT * 4
OPTIONS = CodecOptions(level=3, segment_size=250)


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("jobs")
    os.environ["NACZ_TEST_FOLDER"] = str(folder)
    yield folder
    del os.environ["NACZ_TEST_FOLDER"]


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Any]:
    # Workers import what tests import.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path, *([path] if path else [])])
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    with distributed.LocalCluster(**options, silence_logs=50) as made:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
        yield made


def address(cluster: Any) -> str:
    return "dask://" + cluster.scheduler_address.removeprefix("tcp://")


def test_the_same_archive(cluster: Any) -> None:
    expected = nacz.compress(DATA, options=OPTIONS)
    assert nacz.compress(DATA, options=OPTIONS, executor=address(cluster)) == expected
    assert nacz.decompress(expected, executor=address(cluster)) == DATA
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
        executor = client.get_executor()
        assert nacz.compress(DATA, options=OPTIONS, executor=executor) == expected
        assert nacz.decompress(expected, executor=executor) == DATA
        assert executor.submit(len, b"123").result() == 3  # somebody else's: still there


def test_the_command_line(run: Nacz, tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "text").write_bytes(DATA * 3)
    assert run("-3", "text", "--executor", address(cluster)) == 0
    assert (tmp_path / "text.nacz").read_bytes() == nacz.compress(DATA * 3, 3)
    assert run("-d", "-c", "text.nacz", "--executor", address(cluster)) == 0
    assert run.out == DATA * 3


def test_a_worker_is_killed_in_the_middle(cluster: Any, folder: Path) -> None:
    register_predictor(BYTE_MODEL, worker_fakes.Slow)
    data = DATA[:5000]
    archives = []
    for do in (lambda: nacz.compress(data, 3, executor=address(cluster)),
               lambda: nacz.decompress(archives[0], executor=address(cluster))):  # fmt: skip
        for entry in folder.iterdir():
            entry.unlink()
        killer = threading.Thread(target=kill_one, args=(folder, os.getpid()))
        killer.start()
        archives.append(do())
        killer.join()
    assert archives[1] == data
    assert archives[0] == nacz.compress(data, 3)


def test_the_scheduler_is_lost_for_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_predictor(BYTE_MODEL, worker_fakes.Slow)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for entry in folder.iterdir():
        entry.unlink()
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    with distributed.LocalCluster(**options, silence_logs=50) as made:

        def lose() -> None:
            while not any(folder.iterdir()):
                pass
            made.close()

        loser = threading.Thread(target=lose)
        loser.start()
        out = io.BytesIO()
        with pytest.raises(WorkerError, match="lost|scheduler"):
            nacz.compress_stream(io.BytesIO(DATA), out, CodecOptions(level=3), executor=address(made))
        loser.join()


def test_no_scheduler(run: Nacz, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_PATIENCE", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert run("text", "--executor", f"dask://127.0.0.1:{port}") == 1
    assert run.err.count("\n") == 1 and "no scheduler answers" in run.err
    assert not (tmp_path / "text.nacz").exists()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"nacz\[dask\]"):
        nacz.compress(DATA, executor="dask://127.0.0.1:1")
