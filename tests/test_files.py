"""Output files: whole or absent, whatever happens between the first byte and the last.

Run with `pytest tests/test_files.py`.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_runner import default_signals

from nacz import files
from nacz.errors import OutputExistsError, UsageError
from nacz.files import atomic_output


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_name_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_output(target) as file:
        file.write(b"data")
        assert "out" not in names(tmp_path)
    assert target.read_bytes() == b"data"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, files.Terminated(15), SystemExit])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(BaseException):  # noqa: B017
        with atomic_output(tmp_path / "out") as file:
            file.write(b"half")
            raise error
    assert names(tmp_path) == []


def test_an_old_file_survives_an_error(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with pytest.raises(ValueError):
        with atomic_output(target, overwrite=True) as file:
            file.write(b"new")
            raise ValueError
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_existing_files_are_kept_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        with atomic_output(target):
            pass
    with atomic_output(target, overwrite=True) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError):
        with atomic_output(target) as file:
            file.write(b"new")
            target.write_bytes(b"someone else's")
    assert target.read_bytes() == b"someone else's"
    assert names(tmp_path) == ["out"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: str, target: str) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_link)
    with atomic_output(tmp_path / "out") as file:
        file.write(b"data")
    assert names(tmp_path) == ["out"]
    with pytest.raises(OutputExistsError):
        with atomic_output(tmp_path / "other") as file:
            (tmp_path / "other").write_bytes(b"someone else's")
    assert names(tmp_path) == ["other", "out"]


def test_mode_and_time_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"x")
    source.chmod(0o640)
    os.utime(source, ns=(981_158_400_123_456_789, 981_158_400_123_456_789))
    with atomic_output(tmp_path / "out", like=source.stat()) as file:
        file.write(b"y")
        temporary = [name for name in names(tmp_path) if name.startswith(".")][0]
        assert stat.S_IMODE((tmp_path / temporary).stat().st_mode) == 0o600
    made = (tmp_path / "out").stat()
    assert stat.S_IMODE(made.st_mode) == 0o640
    assert made.st_mtime_ns == source.stat().st_mtime_ns


def test_mode_follows_the_umask_without_a_source(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_output(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_set_user_id_bit_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"x")
    source.chmod(0o4755)
    with atomic_output(tmp_path / "out", like=source.stat()):
        pass
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_folders_devices_and_links(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError):
        with atomic_output(tmp_path / "folder", overwrite=True):
            pass
    with atomic_output("/dev/null") as file:
        file.write(b"gone")
    assert not stat.S_ISREG(os.stat("/dev/null").st_mode)
    (tmp_path / "behind").write_bytes(b"untouched")
    (tmp_path / "link").symlink_to("behind")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(OutputExistsError):
            with atomic_output(tmp_path / name):
                pass
    with atomic_output(tmp_path / "link", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "behind").read_bytes() == b"untouched"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_a_missing_folder_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with atomic_output(tmp_path / "no" / "out"):
            pass


def test_a_long_name(tmp_path: Path) -> None:
    with atomic_output(tmp_path / ("x" * 255)) as file:
        file.write(b"data")
    assert names(tmp_path) == ["x" * 255]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_nothing(tmp_path: Path, number: int) -> None:
    program = (
        "import sys, time\n"
        "from nacz.files import atomic_output, terminate_as_exception\n"
        "with terminate_as_exception(), atomic_output(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); time.sleep(30)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
        preexec_fn=default_signals,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    assert len(names(tmp_path)) == 1
    time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(60) != 0
    child.stdout.close()
    assert names(tmp_path) == []


def ended(program: str, out: Path) -> subprocess.CompletedProcess[str]:
    """A Python program with the argument `out`, and with the system's own signals, after it has ended by itself."""
    return subprocess.run(
        [sys.executable, "-c", program, out], capture_output=True, text=True, cwd="/", timeout=20,
        preexec_fn=default_signals,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_in_a_callback_of_c_code_are_not_lost(tmp_path: Path, number: int) -> None:
    program = (
        "import ctypes, os, sys, time\n"
        "from nacz.files import atomic_output, terminate_as_exception\n"
        "@ctypes.CFUNCTYPE(None)\n"
        "def callback():\n"
        f"    os.kill(os.getpid(), {int(number)}); time.sleep(1)\n"
        "with terminate_as_exception(), atomic_output(sys.argv[1]) as file:\n"
        "    callback(); time.sleep(30)\n"
    )
    child = ended(program, tmp_path / "out")
    assert child.returncode != 0
    assert "ignored" not in child.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_do_not_wait_long_for_threads(tmp_path: Path, number: int) -> None:
    program = (
        "import os, sys, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from nacz.files import atomic_output, terminate_as_exception\n"
        "with terminate_as_exception(), atomic_output(sys.argv[1]) as file, ThreadPoolExecutor(1) as pool:\n"
        f"    pool.submit(time.sleep, 60); os.kill(os.getpid(), {int(number)}); time.sleep(1)\n"
    )
    assert ended(program, tmp_path / "out").returncode == 128 + number
    assert names(tmp_path) == []


def test_other_threads_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with files.terminate_as_exception():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
