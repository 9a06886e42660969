"""The command line as processes: signals, closed pipes, full disks, tar, and how fast it starts.

Run with `pytest tests/test_cli_processes.py`. Uses the order-0 test predictor through tests/fake_nacz.py.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import default_signals

import nacz

TEXT = b"Happy families are all alike; every unhappy family is unhappy in its own way. " * 30
HERE = Path(__file__).parent
FAKE = [sys.executable, str(HERE / "fake_nacz.py")]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACZ_")}
    return clean | {"PYTHONPATH": str(HERE)} | more


def run(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*FAKE, *map(str, arguments)], cwd=cwd, env=environment(**more), capture_output=True, timeout=60
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def background(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.Popen[bytes]:
    """A child that does what signals say by default, also where the tests were started with signals ignored (nohup)."""
    return subprocess.Popen(
        [*FAKE, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    )


def working(folder: Path) -> str:
    """The file that a slow child makes beside the folder once its machine code is there: what Numba is called back from
    passes over exceptions, those of signals too."""
    return str(folder.with_name(f"{folder.name} working"))


def wait_for_work(folder: Path, before: int) -> None:
    """Until work goes on, with a temporary file beside the `before` others: signals have their handlers."""
    deadline = time.monotonic() + 60
    while not Path(working(folder)).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(names(folder)) == before + 1, "the temporary file is there while work goes on"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").write_bytes(TEXT)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "variables", "code"),
    [
        (["text"], {}, 0),
        (["missing"], {}, 1),
        (["--no-such-flag"], {}, 1),
        (["-d", "bad.nacz"], {}, 2),
        (["-1", "text"], {"ORDER0_BROKEN": "1"}, 3),
        (["text"], {"ORDER0_MISSING": "1"}, 4),
        (["-d", "good.nacz", "-o", "out"], {"ORDER0_OTHER": "1"}, 4),
    ],
)
def test_exit_codes(folder: Path, arguments: list[str], variables: dict[str, str], code: int) -> None:
    assert run("text", "-o", "good.nacz", cwd=folder).returncode == 0
    (folder / "bad.nacz").write_bytes((folder / "good.nacz").read_bytes()[:-5])
    done = run(*arguments, cwd=folder, **variables)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == (code != 0)
    assert names(folder) == sorted(["bad.nacz", "good.nacz", "text"] + ["text.nacz"] * (code == 0))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("direction", ["compress", "decompress"])
def test_signals_leave_nothing_behind(folder: Path, number: int, code: int, direction: str) -> None:
    if direction == "decompress":
        assert run("--rm", "text", cwd=folder).returncode == 0
    before = names(folder)
    child = background(direction, *before, cwd=folder, ORDER0_SLOW=working(folder))
    wait_for_work(folder, len(before))
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert b"Traceback" not in err
    assert names(folder) == before


def test_nohup_is_respected(folder: Path) -> None:
    program = (
        "import signal, os, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nos.execv(sys.argv[1], sys.argv[1:])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, *FAKE, "text"], cwd=folder, env=environment(ORDER0_SLOW=working(folder))
    )
    wait_for_work(folder, 1)
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None
    child.terminate()
    assert child.wait(60) == 143


@pytest.mark.parametrize("arguments", [["-dc", "text.nacz"], ["list", *["text.nacz"] * 3000]])
def test_a_reader_that_goes_away(folder: Path, arguments: list[str]) -> None:
    (folder / "text.nacz").write_bytes(big_archive())
    child = subprocess.Popen(
        [*FAKE, *arguments], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 141
    assert err == b""


def big_archive() -> bytes:
    """Many stored segments: more than a pipe holds."""
    import io

    import xxhash
    from nacz.formats.records import MemberHeader, SegmentHeader
    from nacz.formats.writer import MemberWriter

    out = io.BytesIO()
    writer = MemberWriter(out, MemberHeader())
    part = os.urandom(1 << 16)
    for _ in range(16):
        header = SegmentHeader(0, 0, b"", len(part), len(part), xxhash.xxh3_64_intdigest(part))
        writer.segment(header, part)
    writer.finish(xxhash.xxh3_64_intdigest(part * 16))
    return out.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(folder: Path) -> None:
    (folder / "big.nacz").write_bytes(big_archive())
    for arguments in (["-dc", "big.nacz"], ["-c", "text"], ["list", "big.nacz"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*FAKE, *arguments], cwd=folder, env=environment(), stdout=full, stderr=subprocess.PIPE
            )
        assert done.returncode == 1
        assert done.stderr.endswith(b"No space left on device\n") and done.stderr.count(b"\n") == 1
    done = run("-d", "big.nacz", "-o", "/dev/full", cwd=folder)
    assert (done.returncode, done.stderr) == (1, b"nacz: /dev/full: No space left on device\n")


@pytest.mark.parametrize("flags", [[], ["--resume"]])
@pytest.mark.parametrize("direction", ["compress", "decompress"])
def test_a_disk_that_gets_full_while_a_file_is_written(folder: Path, direction: str, flags: list[str]) -> None:
    """A limit of the size of files stands in for the disk. What --resume needs stays, and is gone on with."""
    (folder / "big.nacz").write_bytes(big_archive())
    (folder / "big").write_bytes(nacz.decompress(big_archive()))
    names_before = names(folder)
    name, output = ("big.nacz", "out") if direction == "decompress" else ("big", "out.nacz")
    command = [*FAKE, direction, *flags, name, "-o", output]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # noqa: E731
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (1, f"nacz: {output}: File too large\n".encode())
    left = set(names(folder)) - set(names_before)
    assert len(left) == len(flags) and all(name.endswith(".nacz-part") for name in left)
    assert subprocess.run(command, cwd=folder, env=environment()).returncode == 0
    assert set(names(folder)) - set(names_before) == {output}


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a folder that nobody can write to")
def test_a_target_that_cannot_be_written(folder: Path) -> None:
    for arguments in (["-1", "text"], ["-1", "--resume", "text"]):
        done = run(*arguments, "-o", "/sys/kernel/out.nacz", cwd=folder)
        assert done.returncode == 1 and re.fullmatch(rb"nacz: /sys/kernel/out.nacz: [A-Z][a-z -]+\n", done.stderr)
    assert names(folder) == ["text"]


def test_closed_standard_streams(folder: Path) -> None:
    quoted = " ".join(FAKE)
    for redirect, word in (("<&-", "stdin"), ("< text >&-", "stdout")):
        done = subprocess.run(["sh", "-c", f"{quoted} {redirect}"], cwd=folder, env=environment(), capture_output=True)
        assert done.returncode == 1
        assert done.stderr.decode() == f"nacz: {word}: {word} is closed\n".replace("stdout: ", "stdin: ")
    done = subprocess.run(["sh", "-c", f"{quoted} missing 2>&-"], cwd=folder, env=environment())
    assert done.returncode == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(folder: Path) -> None:
    folder.chmod(0o555)
    try:
        done = run("text", cwd=folder)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 1 and b"Permission denied" in done.stderr


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("flags", ["", " -9", " -1 -T2"])
def test_tar(folder: Path, tmp_path: Path, flags: str) -> None:
    program = tmp_path / "nacz"
    program.write_text(f'#!/bin/sh\nexec {" ".join(FAKE)} "$@"\n')
    program.chmod(0o755)
    inside = folder / "tree"
    (inside / "deep").mkdir(parents=True)
    (inside / "a").write_bytes(TEXT)
    (inside / "deep" / "b").write_bytes(os.urandom(100))
    for command in (
        ["tar", "-I", f"{program}{flags}", "-cf", "x.tar.nacz", "tree"],
        ["tar", "-I", f"{program}{flags}", "-tf", "x.tar.nacz"],
        ["tar", "-I", f"{program}{flags}", "-xf", "x.tar.nacz", "-C", "out"],
    ):
        (folder / "out").mkdir(exist_ok=True)
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "x.tar.nacz").read_bytes()[:1] == b"\xfa"
    for name in ("a", "deep/b"):
        assert (folder / "out" / "tree" / name).read_bytes() == (inside / name).read_bytes()


def test_members_through_cat(folder: Path) -> None:
    quoted = " ".join(FAKE)
    line = f"({quoted} -c text; printf more | {quoted}; {quoted} < /dev/null) | {quoted} -d"
    done = subprocess.run(["sh", "-c", line], cwd=folder, env=environment(), capture_output=True)
    assert done.stdout == TEXT + b"more"


@pytest.mark.parametrize(("argument", "limit"), [("--version", 0.3), ("--help", 0.2)])
def test_start_is_fast(argument: str, limit: float) -> None:
    """CPU seconds, the best of several: what a quiet machine takes, however busy this one is."""
    program = shutil.which("nacz", path=os.path.dirname(sys.executable)) or shutil.which("nacz")
    command = [program] if program else [sys.executable, "-c", "import sys, nacz.cli; sys.exit(nacz.cli.main())"]
    best = 9.0
    for _ in range(7):
        child = subprocess.Popen([*command, argument], stdout=subprocess.DEVNULL, env=environment())
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        best = min(best, used.ru_utime + used.ru_stime)
    assert best < limit


@pytest.mark.parametrize("verb", ["list", "info"])
def test_headers_are_read_without_anything_heavy(folder: Path, verb: str) -> None:
    """Naming the model of an archive needs no model."""
    (folder / "big.nacz").write_bytes(big_archive())
    assert run("text", cwd=folder).returncode == 0
    program = (
        "import sys; from nacz import cli; code = cli.main(sys.argv[1:]); "
        "sys.exit(' '.join({'numba', 'numpy', 'tokenizers', 'rich', 'torch'} & set(sys.modules)) or code)"
    )
    archives = ["big.nacz", "text.nacz"] if verb == "list" else ["big.nacz"]
    done = subprocess.run(
        [sys.executable, "-c", program, verb, *archives], cwd=folder, env=environment(), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINFO"])
def test_a_signal_asks_how_far_it_is(folder: Path, name: str) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} here")
    child = background("compress", "-1", "text", cwd=folder, ORDER0_SLOW=working(folder))
    assert child.stderr is not None
    wait_for_work(folder, 1)

    def answer() -> str:
        child.send_signal(number)
        return child.stderr.readline().decode()

    line = answer()
    while line == "nacz: text: nothing done yet\n":  # it has begun, but a busy machine has not let it go on
        time.sleep(0.05)
        line = answer()
    again = answer()
    child.terminate()
    assert child.wait(60) == 143
    pattern = r"nacz: text: \d+ %, compress [\d.]+ k?B of 2.3 kB, [\d.]+ KB/s, [\d.]+ bpb, about \d+ (s|min) left\n"
    assert re.fullmatch(pattern, line) and re.fullmatch(pattern, again)


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="needs bsdtar")
def test_bsdtar(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "nacz"
    program.write_text(f'#!/bin/sh\nexec {" ".join(FAKE)} "$@"\n')
    program.chmod(0o755)
    for command in (
        ["bsdtar", "--use-compress-program", f"{program} -9", "-cf", "x.tar.nacz", "text"],
        ["bsdtar", "--use-compress-program", f"{program} -d", "-xf", "x.tar.nacz", "-C", "out"],
    ):
        (folder / "out").mkdir(exist_ok=True)
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "x.tar.nacz").read_bytes()[:1] == b"\xfa"
    assert (folder / "out" / "text").read_bytes() == TEXT
