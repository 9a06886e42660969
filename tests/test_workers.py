"""Segments on executors: the same bytes whoever codes them, bounded memory, lost workers, errors in their place.

Run with `pytest tests/test_workers.py`. Uses predictors of tests, no weights.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import order0
import pytest
import worker_fakes
from cli_runner import TEXT, Nacz

import nacz
from nacz import CodecOptions, Progress
from nacz.errors import CorruptDataError, ModelMismatchError, ModelMissingError, UsageError, WorkerError
from nacz.segment_coder import BYTE_MODEL, LANGUAGE_MODEL, register_predictor
from nacz.workers.processes import Processes
from nacz.workers.threads import Threads

BYTES = CodecOptions(level=3, segment_size=250)
DATA = TEXT * 3


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    pool = Processes(2)
    yield pool
    pool.shutdown()


def slow(monkeypatch: pytest.MonkeyPatch, folder: Path, predictor: type[worker_fakes.Zlib] = worker_fakes.Slow) -> None:
    monkeypatch.setenv("NACZ_TEST_FOLDER", str(folder))
    monkeypatch.setenv("NACZ_TEST_PARENT", str(os.getpid()))
    register_predictor(BYTE_MODEL, predictor)


# -- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_archive_does_not_depend_on_who_codes(processes: Processes) -> None:
    expected = nacz.compress(DATA, options=BYTES)
    assert len(nacz.archive_info(io.BytesIO(expected))[0].segments) == 15
    pools: list[Executor] = [processes, Threads(3), ThreadPoolExecutor(2), ThreadPoolExecutor(1)]
    for executor in [*pools, "threads", "none", "auto"]:
        for threads in (1, 2):
            found = nacz.compress(DATA, options=BYTES, executor=executor, threads=threads)
            assert found == expected, executor
            assert nacz.decompress(found, executor=executor, threads=threads) == DATA
    for pool in pools:  # somebody else's are never shut down
        assert pool.submit(len, b"123").result() == 3
        if pool is not processes:
            pool.shutdown()


@pytest.mark.slow
def test_processes_of_the_standard_library_and_those_by_name() -> None:
    expected = nacz.compress(DATA, options=BYTES)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert nacz.compress(DATA, options=BYTES, executor=pool) == expected
        assert nacz.decompress(expected, executor=pool) == DATA
        assert pool.submit(len, b"123").result() == 3
    assert nacz.compress(DATA, options=BYTES, executor="processes", threads=2) == expected
    assert nacz.decompress(expected, executor="processes", threads=2) == DATA


@pytest.mark.parametrize("data", [b"", b"x", TEXT[:700], os.urandom(3000)])
def test_small_data(data: bytes, processes: Processes) -> None:
    archive = nacz.compress(data, options=BYTES, executor=processes)
    assert archive == nacz.compress(data, options=BYTES)
    assert nacz.decompress(archive, executor=processes) == data


def test_files_and_pieces(processes: Processes, tmp_path: Path) -> None:
    whole = nacz.compress(DATA, options=BYTES)
    for executor in (None, "threads", processes):
        path = tmp_path / "file.nacz"
        with nacz.open(path, "wb", options=BYTES, executor=executor) as file:
            for at in range(0, len(DATA), 100):
                file.write(DATA[at : at + 100])
        assert path.read_bytes() == whole
        compressor = nacz.NaczCompressor(options=BYTES, executor=executor)
        pieces = [compressor.compress(DATA[at : at + 100]) for at in range(0, len(DATA), 100)]
        assert b"".join([*pieces, compressor.flush()]) == whole
        first = compressor.compress(DATA[:300]) + compressor.flush(compressor.FLUSH_BLOCK)
        assert nacz.NaczDecompressor().decompress(first) == DATA[:300]
        compressor.close()
        assert compressor.compress(DATA) + compressor.flush() == whole


def test_a_file_whose_workers_fail_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow(monkeypatch, tmp_path, worker_fakes.Deadly)
    pool = Processes(2)
    file = nacz.open(tmp_path / "file.nacz", "wb", options=BYTES, executor=pool)
    with pytest.raises(WorkerError):
        file.write(DATA)
        file.close()
    with contextlib.suppress(WorkerError):
        file.close()
    assert file.closed
    pool.shutdown()


def test_members_and_verify(processes: Processes) -> None:
    one = nacz.compress(DATA, options=BYTES)
    out = io.BytesIO()
    nacz.compress_stream(io.BytesIO(DATA), out, BYTES, executor=processes, verify=True)
    assert out.getvalue() == one
    assert nacz.decompress(one + nacz.compress(b"") + one, executor=processes) == DATA + DATA


@pytest.mark.parametrize("seed", range(12))
def test_cuts_that_depend_on_the_segment_before(seed: int) -> None:
    """Blocks of text, of text that the byte model gets, and of other data: a wrong guess must not show."""
    register_predictor(BYTE_MODEL, worker_fakes.Zlib)
    register_predictor(LANGUAGE_MODEL, worker_fakes.ZlibModel, models=[order0.IDENTITY.name])
    r = random.Random(seed)
    step = r.randrange(1000, 400_000)
    surprise = worker_fakes.SURPRISE + b" and so on "
    blocks = [b"A line of text, %d\n" % seed * 4000, surprise * 700, r.randbytes(70_000)]
    data = b"".join(r.choice(blocks)[: r.randrange(1, 80_000)] for _ in range(24))

    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(step)

    expected, found = io.BytesIO(), io.BytesIO()
    nacz.compress_stream(io.BytesIO(data), expected)
    with ThreadPoolExecutor(3) as pool:
        nacz.compress_stream(Pieces(data), found, executor=pool)
        assert found.getvalue() == expected.getvalue()
        assert nacz.decompress(found.getvalue(), executor=pool) == data


def test_a_wrong_guess_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would test nothing."""
    from nacz.workers import crew

    dropped = []
    drop = crew.Crew.drop
    monkeypatch.setattr(crew.Crew, "drop", lambda self: (dropped.append(len(self)), drop(self)))
    register_predictor(BYTE_MODEL, worker_fakes.Zlib)
    register_predictor(LANGUAGE_MODEL, worker_fakes.ZlibModel, models=[order0.IDENTITY.name])
    data = (worker_fakes.SURPRISE + b" and so on ") * 9000
    with ThreadPoolExecutor(4) as pool:
        assert nacz.compress(data, executor=pool) == nacz.compress(data)
    assert dropped[0] > 0


def test_an_interrupted_run_goes_on_with_workers(run: Nacz, text: Path, tmp_path: Path) -> None:
    from nacz.resume import PartialArchive

    whole = nacz.compress(DATA, options=BYTES)
    partial = io.BytesIO(whole[: len(whole) // 2])
    with ThreadPoolExecutor(2) as pool:
        nacz.compress_stream(io.BytesIO(DATA), partial, BYTES, earlier=PartialArchive(partial), executor=pool)
    assert partial.getvalue() == whole


# -- memory, progress, giving up --------------------------------------------------------------------------------------


class Counting(Executor):
    """Runs jobs when they are waited for, in threads, and counts how many there are at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)
        self.now = self.most = 0
        self._lock = threading.Lock()
        self._max_workers = 2

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        future = self._pool.submit(fn, *args, **kwargs)
        return future

    def taken(self) -> None:
        with self._lock:
            self.now -= 1


def test_what_is_in_work_is_bounded() -> None:
    pool = Counting()
    read = written = most = 0
    size = 1000

    class Endless(io.RawIOBase):
        def read(self, n: int = -1) -> bytes:
            nonlocal read, most
            read += min(n, 500) if read < 100_000 else 0
            most = max(most, read - written)
            return TEXT[:500] if read < 100_000 else b""

    class Sink(io.BytesIO):
        def write(self, data: Any) -> int:
            nonlocal written
            return super().write(data)

    def count(progress: Progress) -> None:
        nonlocal written
        written = progress.done

    archive = Sink()
    nacz.compress_stream(Endless(), archive, CodecOptions(level=3, segment_size=size), executor=pool, progress=count)
    assert most <= 5 * size

    class Slowly(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            nonlocal most
            most = max(most, self.tell())
            return super().read(n)

    plain, first = io.BytesIO(), []
    most = 0

    def watch(progress: Progress) -> None:
        if progress.done and not first:
            first.append(most)

    nacz.decompress_stream(Slowly(archive.getvalue()), plain, executor=pool, progress=watch)
    assert len(plain.getvalue()) == written
    assert first[0] < len(archive.getvalue()) / 10  # the first segment came before much was read


def test_progress_rises_and_ends_with_all(processes: Processes) -> None:
    seen: list[Progress] = []
    archive = nacz.compress(DATA, options=BYTES, executor=processes, progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == len(DATA) and seen[-1].tokens == len(DATA)
    seen.clear()
    nacz.decompress(archive, executor=processes, progress=seen.append)
    assert seen[-1].done == len(DATA) and seen[-1].tokens == len(DATA)


def test_progress_may_cancel_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow(monkeypatch, tmp_path)

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Enough

    for executor in ("processes", "threads"):
        start = time.monotonic()
        with pytest.raises(Enough):
            nacz.compress(DATA, 3, CodecOptions(segment_size=100), executor=executor, threads=2, progress=stop)
        assert time.monotonic() - start < 5


# -- workers that are lost --------------------------------------------------------------------------------------------


def kill_one(folder: Path, spared: int) -> None:
    """Kill the first process that begins a job."""
    for _ in range(2000):
        for entry in folder.iterdir():
            pid = int(entry.name.split("-")[1])
            if pid != spared:
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.005)
    raise AssertionError("no job has begun")


@pytest.mark.parametrize("standard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, standard: bool) -> None:
    slow(monkeypatch, tmp_path)
    data = DATA + DATA[:1200]
    monkeypatch.setattr(worker_fakes.Slow, "_dawdle", lambda self, data: None)
    expected = nacz.compress(data, 3)
    pools: list[Executor] = [ProcessPoolExecutor(2, mp_context=get_context("spawn")) for _ in range(2)]
    if not standard:
        pools = [Processes(2), Processes(2)]
    work = [lambda pool: nacz.compress(data, 3, executor=pool), lambda pool: nacz.decompress(expected, executor=pool)]
    for pool, do, wanted in zip(pools, work, (expected, data), strict=True):
        for entry in tmp_path.iterdir():
            entry.unlink()
        killer = threading.Thread(target=kill_one, args=(tmp_path, os.getpid()))
        killer.start()
        assert do(pool) == wanted
        killer.join()
        pool.shutdown()


def test_a_segment_whose_workers_always_die_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow(monkeypatch, tmp_path, worker_fakes.Deadly)
    with pytest.raises(WorkerError, match="lost 3 times"):
        nacz.compress(DATA[:3000], 3, executor="processes", threads=2)


def test_an_executor_that_refuses_is_replaced() -> None:
    class Closed(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise BrokenExecutor("broken")

    assert nacz.compress(DATA, options=BYTES, executor=Closed()) == nacz.compress(DATA, options=BYTES)


def test_a_script_without_a_guard_does_not_start_itself_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import nacz\n"
        "print('once', flush=True)\n"
        "options = nacz.CodecOptions(level=1, segment_size=1000)\n"
        "data = b'some text, ' * 300\n"
        "assert nacz.decompress(nacz.compress(data, options=options, executor='processes')) == data\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("once\n", "", 0)


def test_workers_end_with_the_process_that_has_them(tmp_path: Path) -> None:
    script = (
        "import os, time\nfrom nacz.workers.processes import Processes\npool = Processes(1)\n"
        "pid = pool.submit(os.getpid).result()\npool.submit(time.sleep, 600)\nprint(pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=tmp_path)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(400):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("a worker goes on without its parent")


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_loaded_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    register_predictor(BYTE_MODEL, worker_fakes.Zlib)
    register_predictor(LANGUAGE_MODEL, worker_fakes.ZlibModel, models=[order0.IDENTITY.name])
    options = CodecOptions(segment_size=3000)
    with Processes(1) as pool:
        archive = nacz.compress(DATA * 4, options=options, executor=pool)
        assert len(nacz.archive_info(io.BytesIO(archive))[0].segments) >= 5
        before = pool.submit(worker_fakes.loads_here).result()
        assert nacz.decompress(archive, executor=pool) == DATA * 4
        assert pool.submit(worker_fakes.loads_here).result() <= before + 1


@pytest.mark.parametrize(
    "predictor, error",
    [(worker_fakes.ElsewhereOther, ModelMismatchError), (worker_fakes.ElsewhereMissing, ModelMissingError)],
)
def test_workers_with_other_weights_or_none(
    monkeypatch: pytest.MonkeyPatch, predictor: type[worker_fakes.Zlib], error: type[Exception], processes: Processes
) -> None:
    monkeypatch.setenv("NACZ_TEST_PARENT", str(os.getpid()))
    register_predictor(BYTE_MODEL, worker_fakes.Zlib)
    register_predictor(LANGUAGE_MODEL, predictor, models=[order0.IDENTITY.name])
    options = CodecOptions(segment_size=3000)
    out = io.BytesIO()
    with Processes(1) as pool:
        with pytest.raises(error, match="worker"):
            nacz.compress_stream(io.BytesIO(DATA), out, options, executor=pool)
        assert not out.getvalue()
        archive = nacz.compress(DATA, options=options)
        with pytest.raises(error, match="worker"):
            nacz.decompress_stream(io.BytesIO(archive), out, executor=pool)
        assert not out.getvalue()


# -- damage -----------------------------------------------------------------------------------------------------------


def test_damage_is_reported_where_it_is(processes: Processes) -> None:
    archive = nacz.compress(DATA, options=BYTES)
    segments = nacz.archive_info(io.BytesIO(archive))[0].segments
    for at in (len(archive) // 3, len(archive) - 30, len(archive) // 2):
        damaged = bytearray(archive)
        damaged[at] ^= 1
        for bad in (bytes(damaged), archive[:at]):
            found = []
            for executor in (None, processes):
                out = io.BytesIO()
                with pytest.raises(CorruptDataError) as error:
                    nacz.decompress_stream(io.BytesIO(bad), out, executor=executor)
                found.append((str(error.value), out.getvalue()))
            assert found[0] == found[1]
            assert len(found[0][1]) >= segments[0].plain_size


def test_a_worker_of_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from nacz.workers import jobs

    monkeypatch.setattr(jobs, "__version__", "0.0.0")
    with Processes(1) as pool, pytest.raises(WorkerError, match="0.0.0"):
        nacz.compress(DATA, options=BYTES, executor=pool)


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line(run: Nacz, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(DATA * 4)
    assert run("-3", "-c", "text", "--executor", "none") == 0
    expected = run.out
    assert len(nacz.archive_info(io.BytesIO(expected))[0].segments) > 2
    assert run("-3", "text", "--executor", "threads", "-T", "2") == 0
    assert (tmp_path / "text.nacz").read_bytes() == expected
    assert run("-d", "-c", "text.nacz", "--executor", "processes", "-T", "2") == 0
    assert run.out == DATA * 4
    assert run("test", "text.nacz", "--executor", "threads") == 0


@pytest.mark.parametrize("name", ["sheep", "dask:/", ""])
def test_an_unknown_executor(run: Nacz, text: Path, tmp_path: Path, name: str) -> None:
    assert run("text", "--executor", name) == 1
    assert "executor" in run.err and not (tmp_path / "text.nacz").exists()


def test_not_an_executor() -> None:
    with pytest.raises(UsageError, match="not an executor"):
        nacz.compress(DATA, executor=3)  # type: ignore[arg-type]
