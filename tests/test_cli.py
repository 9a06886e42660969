"""The command line, inside one process: arguments, names, messages, exit codes.

Run with `pytest tests/test_cli.py`. Uses the order-0 test predictor. tests/test_cli_processes.py has what needs
processes of its own: signals, pipes, tar.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import order0
import pytest
from cli_runner import TEXT, Nacz
from click.testing import CliRunner, Result

import nacz
from nacz import cli, terminal
from nacz.progress import Progress


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The two commands


@pytest.mark.parametrize(
    ("forward", "back"),
    [
        (["compress"], ["decompress"]),
        ([], ["-d"]),
        (["-9"], ["-9", "-d"]),
        (["-1k"], ["-dk"]),
        (["-z", "--best"], ["--decompress"]),
        (["compress", "-6", "-T2", "--lanes", "3", "--window", "100"], ["decompress", "-T", "1"]),
        (["--level=4"], ["-d", "-q"]),
    ],
)
def test_there_and_back(run: Nacz, text: Path, tmp_path: Path, forward: list[str], back: list[str]) -> None:
    assert run(*forward, "text") == 0
    assert (run.out, run.err) == (b"", "")
    assert names(tmp_path) == ["text", "text.nacz"]
    text.unlink()
    assert run(*back, "text.nacz") == 0
    assert (run.out, run.err) == (b"", "")
    assert text.read_bytes() == TEXT
    assert names(tmp_path) == ["text", "text.nacz"]


def test_several_files_and_a_failure_among_them(run: Nacz, text: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(b"more")
    assert run("text", "missing", "more") == 1
    assert run.err == "nacz: missing: No such file or directory\n"
    assert names(tmp_path) == ["more", "more.nacz", "text", "text.nacz"]


def test_standard_streams(run: Nacz, text: Path) -> None:
    for arguments in ([], ["-"], ["compress"], ["-c", "text"], ["compress", "-c", "text"], ["text", "-o", "-"]):
        assert run(*arguments, stdin=TEXT) == 0
        archive = run.out
        assert nacz.decompress(archive) == TEXT
        assert run("-d", stdin=archive) == 0
        assert run.out == TEXT
        assert run("decompress", "-", stdin=archive) == 0
        assert run.out == TEXT


def test_empty_file(run: Nacz, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert run("empty") == 0
    (tmp_path / "empty").unlink()
    assert run("-d", "empty.nacz") == 0
    assert (tmp_path / "empty").read_bytes() == b""


def test_output_names(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("compress", "text", "-o", "a.bin") == 0
    assert run("decompress", "a.bin", "-o", "b") == 0
    assert (tmp_path / "b").read_bytes() == TEXT
    assert run("-S", ".x", "text") == 0
    assert run("-d", "-S", ".x", "-f", "text.x") == 0
    assert run("text", "more", "-o", "c") == 1
    assert run.err == "nacz: `-o` takes a single input file\n"
    for suffix in ("", "a/b"):
        assert run("-S", suffix, "text") == 1


def test_existing_output(run: Nacz, text: Path, tmp_path: Path) -> None:
    (tmp_path / "text.nacz").write_bytes(b"precious")
    assert run("text") == 1
    assert run.err == "nacz: text: text.nacz already exists; use -f to overwrite\n"
    assert (tmp_path / "text.nacz").read_bytes() == b"precious"
    assert run("-f", "text") == 0
    assert run("-d", "text.nacz") == 1
    assert run("-df", "text.nacz") == 0


def test_the_same_file_is_not_both_ends(run: Nacz, text: Path) -> None:
    assert run("-f", "text", "-o", "./text") == 1
    assert "same file" in run.err
    assert text.read_bytes() == TEXT


def test_removing_the_source(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("--rm", "text") == 0
    assert names(tmp_path) == ["text.nacz"]
    assert run("-d", "--rm", "text.nacz") == 0
    assert names(tmp_path) == ["text"]
    assert run("--rm", "-c", "text") == 0
    assert run("--rm", "text", "-o", "/dev/null") == 0
    assert run("--rm", "text", "-o", "no/such/folder") == 1
    assert names(tmp_path) == ["text"]


def test_mode_and_time_are_kept(run: Nacz, text: Path, tmp_path: Path) -> None:
    text.chmod(0o640)
    os.utime(text, ns=(981_158_400_000_000_000, 981_158_400_000_000_000))
    assert run("--rm", "text") == 0
    for name, arguments in (("text.nacz", ["-d", "--rm", "text.nacz"]), ("text", ["-l"])):
        made = (tmp_path / name).stat()
        assert stat.S_IMODE(made.st_mode) == 0o640
        assert made.st_mtime_ns == 981_158_400_000_000_000
        run(*arguments)


def test_suffixes(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("text") == 0
    assert run("text.nacz") == 1
    assert "already has the suffix" in run.err
    assert run("-f", "text.nacz") == 0
    assert names(tmp_path) == ["text", "text.nacz", "text.nacz.nacz"]
    for name in ("text", ".nacz"):
        (tmp_path / name).touch()
        assert run("-d", name) == 1
        assert run.err == f"nacz: {name}: has no suffix `.nacz`; name the output with -o FILE, or use -c\n"


def test_a_file_named_like_a_verb(run: Nacz, tmp_path: Path) -> None:
    (tmp_path / "[FLAGS]").write_bytes(TEXT)
    assert run("[FLAGS]") == 0
    (tmp_path / "list").write_bytes(TEXT)
    assert run("./list") == 0
    assert run("compress", "list", "-f") == 0


# What goes wrong


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["compress", "--no-such-flag"],
        ["--level", "10", "text"],
        ["--level", "x", "text"],
        ["-T", "-1", "text"],
        ["--lanes", "0", "text"],
        ["text", "-o"],
        ["models", "no-such-verb"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_1_and_not_2(run: Nacz, text: Path, arguments: list[str]) -> None:
    assert run(*arguments) == 1
    assert run.err.startswith("nacz: ") and run.err.count("\n") == 1


def test_wrong_environment(run: Nacz, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACZ_LEVEL", "eleven")
    assert run("text") == 1
    assert "NACZ_LEVEL" in run.err and run.err.count("\n") == 1


def test_level_from_the_environment(run: Nacz, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACZ_LEVEL", "2")
    assert run("-c", "text") == 0
    assert nacz.archive_info(io.BytesIO(run.out))[0].segments[0].predictor == 1
    assert run("-6", "-c", "text") == 0
    assert nacz.archive_info(io.BytesIO(run.out))[0].segments[0].predictor == 2
    assert run("-6", "--model", "none", "-c", "text") == 0
    assert nacz.archive_info(io.BytesIO(run.out))[0].segments[0].predictor == 1


def test_folders_and_special_files(run: Nacz, tmp_path: Path) -> None:
    (tmp_path / "folder.nacz").mkdir()
    for arguments in (["compress"], ["decompress"], ["test"], ["list"]):
        assert run(*arguments, "folder.nacz") == 1
        assert run.err == "nacz: folder.nacz: is a directory\n"
    assert run("/dev/null") == 1
    assert run.err == "nacz: /dev/null: is not a regular file; use -c or -o FILE\n"
    assert run("-c", "/dev/null") == 0
    assert run("text", "-o", "folder.nacz") == 1


def test_damaged_archives(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("text") == 0
    text.unlink()
    good = (tmp_path / "text.nacz").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    cases = {
        "empty": (b"", "not a nacz archive: it is empty"),
        "alien": (b"PK\x03\x04" + TEXT, "not a nacz archive"),
        "short": (good[:-3], f"the archive is cut off at byte {len(good) - 3}"),
        "flipped": (bytes(flipped), "segment 1 is damaged (checksum differs)"),
        "trailing": (good + b"\n", f"trailing garbage after the archive, at byte {len(good)}"),
        "newer": (good[:4] + b"\x07" + good[5:], "the archive has format version 7; this release reads version 1"),
    }
    for name, (data, cause) in cases.items():
        (tmp_path / f"{name}.nacz").write_bytes(data)
        before = names(tmp_path)
        for arguments in (["decompress"], ["test"], ["-d"], ["-t"], ["-d", "-o", "out"]):
            assert run(*arguments, f"{name}.nacz") == 2, name
            assert run.err == f"nacz: {name}.nacz: {cause}\n"
            assert names(tmp_path) == before, "no output, no temporary file"
        assert run("-dc", stdin=data) == 2
        assert run.err == f"nacz: stdin: {cause}\n"


def test_models_that_are_missing_or_different(
    run: Nacz, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("-1", "text", "-o", "small.nacz") == 0
    assert run("text") == 0
    other = nacz.formats.records.ModelIdentity("other", b"1234")  # type: ignore[attr-defined]
    monkeypatch.setattr(order0.Order0ModelCoder, "identity", other)
    assert run("-df", "text.nacz") == 4
    assert run.err.startswith("nacz: text.nacz: the archive was written with model order0-test (6f726430)")
    monkeypatch.setattr(order0.Order0ModelCoder, "missing", True)
    assert run("-df", "text.nacz") == 4
    assert run("-f", "text") == 4
    assert run("-df", "-o", "out", "small.nacz") == 0
    assert run("list", "text.nacz") == 0
    assert text.read_bytes() == TEXT


def test_an_internal_error_is_3_without_a_traceback(
    run: Nacz, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order0.Order0Coder, "encode", lambda *a, **k: 1 // 0)
    assert run("-1", "text") == 3
    assert run.err.startswith("nacz: text: internal error: ZeroDivisionError:")
    assert run.err.count("\n") == 1
    assert names(tmp_path) == ["text"]
    monkeypatch.setenv("NACZ_DEBUG", "1")
    assert run("-1", "text") == 3
    assert "Traceback" in run.err


def test_max_output(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("text") == 0
    assert run("-df", "--max-output", str(len(TEXT)), "text.nacz") == 0
    assert run("-d", "--max-output", str(len(TEXT) - 1), "-o", "out", "text.nacz") == 1
    assert "larger than allowed" in run.err
    assert "out" not in names(tmp_path)


def test_terminals_get_no_archives(run: Nacz, text: Path) -> None:
    assert run("-c", "text", terminal=True) == 1
    assert run.out == b"" and "terminal" in run.err
    assert run("-cf", "text", terminal=True) == 0
    assert run.out != b""
    assert run(terminal=True) == 1
    assert "stdin is a terminal" in run.err


# What is shown


def test_testing(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("text") == 0
    assert run("-t", "text.nacz") == 0
    assert (run.out, run.err) == (b"", "")
    assert run("test", "-v", "text.nacz") == 0
    assert run.err.startswith("text.nacz: ok, ")
    assert names(tmp_path) == ["text", "text.nacz"]


def test_verbose(run: Nacz, text: Path) -> None:
    assert run("-v", "text") == 0
    assert run.err.startswith(f"text -> text.nacz: {len(TEXT)} bytes plain, ")
    assert " bpb, " in run.err and " tokens/s, " in run.err
    assert run("-vc", "text") == 0
    assert run.err.startswith("text -> stdout: ")
    assert run("-vqf", "text") == 0
    assert run.err == ""


def test_listing(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("text") == 0
    size = (tmp_path / "text.nacz").stat().st_size
    assert run("list", "text.nacz") == 0
    head, row = run.out.decode().splitlines()
    assert row.split()[:4] == [str(size), str(len(TEXT)), f"{8 * size / len(TEXT):.4f}", "1"]
    assert "language model (order0-test)" in row and row.endswith("text.nacz")
    assert run("-lv", "text.nacz") == 0
    assert "model order0-test (6f726430)" in run.out.decode()
    archive = (tmp_path / "text.nacz").read_bytes()
    assert run("-l", stdin=archive) == 0
    assert run("list", "missing", "text.nacz") == 1
    assert "text.nacz" in run.out.decode() and run.err == "nacz: missing: No such file or directory\n"
    (tmp_path / "bad").write_bytes(archive[:-1])
    assert run("list", "bad") == 2


def test_listing_as_json(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("text") == 0
    for arguments in (["list", "--json"], ["-l", "--json"]):
        assert run(*arguments, "text.nacz") == 0
        (found,) = json.loads(run.out)
        assert found["plain_size"] == len(TEXT)
        segment = found["members"][0]["segments"][0]
        assert segment["predictor"] == "language model" and segment["params"] == "18"
        assert found["members"][0]["models"][0]["name"] == "order0-test"


def test_help_and_version(run: Nacz) -> None:
    assert run("--version") == 0
    assert run.out == f"nacz {nacz.__version__}\n".encode()
    assert run("--help") == 0
    for word in (b"compress", b"tar -I nacz", b"NACZ_MODEL_DIR", b"Exit codes"):
        assert word in run.out
    for arguments in (["compress", "--help"], ["-d", "--help"], ["models", "--help"], ["models", "pull", "-h"]):
        assert run(*arguments) == 0
        assert b"Usage: nacz" in run.out


def test_every_option_has_help() -> None:
    def commands(group: click.Group) -> Iterator[click.Command]:
        for command in group.commands.values():
            if isinstance(command, click.Group):
                yield from commands(command)
            else:
                yield command

    for command in commands(cli.cli):
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, (command.name, parameter.name)


def test_through_clicks_own_runner(text: Path) -> None:
    with order0.installed():
        result: Result = CliRunner().invoke(cli.cli, ["compress", "-1", "-c", str(text)])
        assert nacz.decompress(result.stdout_bytes) == TEXT


def test_models(run: Nacz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACZ_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("NACZ_OFFLINE", "1")
    assert run("models", "list") == 0
    assert b"smollm2-135m" in run.out and b"not on this machine" in run.out
    assert run("models", "path") == 0
    assert run.out.decode().startswith(str(tmp_path / "models"))
    for verb in ("pull", "verify"):
        assert run("models", verb) == 4
        assert run.err.startswith("nacz: ") and "nacz models pull" in run.err
    for verb in ("pull", "verify", "path"):
        assert run("models", verb, "no-such-model") == 4
        assert "no-such-model" in run.err and run.err.count("\n") == 1


# Progress


def test_progress_waits_a_second_and_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal.ProgressLine, "_show", lambda self, what, done, total, text: shown.append(text))
    for enabled in (False, True):
        line = terminal.ProgressLine("x", enabled)
        now[0] += 0.9
        line.update(Progress("compress", 500, 1000, 60, 120))
        assert shown == []
        now[0] += 0.3
        line.update(Progress("compress", 1200, 2000, 150, 240))
        line.update(Progress("compress", 1300, 2000, 160, 250))
    assert shown == ["200 tokens/s  1.0 KB/s  1.000 bpb"]


def test_progress_is_off_when_quiet_or_piped(run: Nacz, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not terminal.progress_wanted(quiet=True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not terminal.progress_wanted(quiet=False)


def test_the_line_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert terminal.progress_wanted(quiet=False)
    with terminal.ProgressLine("[name]", True) as line:
        line._next = 0
        line.update(Progress("compress", 500, 1000, 60, 120))
        line._next = 0
        line.update(Progress("fetch", 40_000_000, 93_000_000, 0, 0))
    assert "fetching weights" in screen.getvalue() and "40.0 MB of 93.0 MB" in screen.getvalue()
    assert "[name]" in screen.getvalue() and "bpb" in screen.getvalue() and "50%" in screen.getvalue()
