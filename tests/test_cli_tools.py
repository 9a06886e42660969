"""The verbs around compressing: info, doctor, completion, man; the estimates; what help and documents say alike.

Run with `pytest tests/test_cli_tools.py`. Uses the order-0 test predictor where anything is coded.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from cli_runner import TEXT, Nacz

import nacz
from nacz import cli, cli_text, levels, terminal
from nacz.cli_tools import TOOLS

# -- info -------------------------------------------------------------------------------------------------------------


def test_info(run: Nacz, text: Path, tmp_path: Path) -> None:
    assert run("-N", "text") == 0
    assert run("info", "text.nacz") == 0
    shown = run.out.decode()
    assert shown.startswith("text.nacz\n") and f"bytes for {len(TEXT):,}" in shown
    for words in ("name text", "mode 6", "order0-test", "segment 1", "decoding", "not known here"):
        assert words in shown
    assert run("info", "--json", "text.nacz") == 0
    (found,) = json.loads(run.out)
    assert found["plain_size"] == len(TEXT) and found["files"][0]["name"] == "text"
    assert found["weights"] == {"order0-test": "not known here"}
    (tmp_path / "bad").write_bytes(b"nothing of the kind")
    assert run("info", "bad", "text.nacz") == 2
    assert run.err.startswith("nacz: bad: ") and b"text.nacz" in run.out


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_without_speed(run: Nacz) -> None:
    assert run("doctor", "--no-speed", "--json") == 0
    found = json.loads(run.out)
    topics = {finding["topic"] for finding in found}
    assert {"nacz", "system", "processor", "kernel", "model", "weights", "code"} <= topics
    assert {finding["verdict"] for finding in found} <= {"ok", "note"}
    assert any("self-test passed" in finding["line"] for finding in found)


def test_doctor_finds_what_is_broken(run: Nacz, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nacz.kernels import dispatch

    monkeypatch.setenv("NACZ_MODEL_DIR", str(tmp_path))
    assert run("doctor", "--no-speed") == 0
    assert b"NACZ_MODEL_DIR=" in run.out and b"nacz models pull" in run.out
    monkeypatch.setattr(dispatch, "self_test", lambda kern: kern is dispatch.KERNELS["plain"])
    dispatch.chosen.cache_clear()
    try:
        assert run("doctor", "--no-speed") == (1 if dispatch.usable() != ["plain"] else 0)
    finally:
        monkeypatch.undo()
        dispatch.chosen.cache_clear()


@pytest.mark.slow
def test_doctor_measures(run: Nacz) -> None:
    assert run("doctor") == 0
    assert re.search(rb"level 1: [\d.]+ KB/s compressing, [\d.]+ decompressing, \d+ bytes came back", run.out)
    assert re.search(rb"level 6: [\d.]+ KB/s compressing", run.out)


# -- completion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.path.dirname(sys.executable)
    if shutil.which("nacz", path=folder) is None:
        pytest.skip("nacz is not installed beside this Python")
    monkeypatch.setenv("PATH", folder + os.pathsep + os.environ["PATH"])


CASES = {
    "nacz comp": {"compress", "completion"},
    "nacz -9 --ke": {"--keep"},
    "nacz --the": set(),
    "nacz models p": {"path", "pull"},
    "nacz completion ": {"bash", "zsh", "fish"},
    "nacz decompress --mem": {"--memlimit"},
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(on_path: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt").touch()
    for line, expected in CASES.items():
        words = line.split(" ")
        script = (
            'source <(nacz completion bash)\ncomplete -p nacz > /dev/null || exit 9\n'
            f'COMP_WORDS=({" ".join(repr(word) for word in words)}) COMP_CWORD={len(words) - 1}\n'
            '_nacz_completion nacz\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert set(done.stdout.split()) == expected, (line, done.stderr)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_completion_in_fish(on_path: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt").touch()
    for line, expected in CASES.items():
        script = f"nacz completion fish | source; complete --do-complete '{line}'"
        done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert {row.split("\t")[0] for row in done.stdout.splitlines()} == expected, line
    script = "nacz completion fish | source; complete --do-complete 'nacz boo'"
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["book.txt"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_completion_in_zsh_at_a_terminal(on_path: None, tmp_path: Path) -> None:
    """zsh completes only at a keyboard: an interactive one, at a terminal of our own, with the tab key pressed."""
    import pty

    (tmp_path / "book.txt").touch()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-fi"], {**os.environ, "TERM": "dumb"})

    def shown(typed: str, *expected: str) -> str:
        """Type, and read until all that is expected was shown, or for a minute."""
        os.write(terminal, typed.encode())
        seen, deadline = "", time.monotonic() + 60
        while not all(word in seen for word in expected) and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        return seen

    try:
        start = 'autoload -U compinit; compinit -D; eval "$(nacz completion zsh)"; print ready-$((1 + 1))\n'
        assert "ready-2" in shown(start, "ready-2")
        for line, words in {**CASES, "nacz boo": {"book.txt"}}.items():
            if words:
                seen = shown(line + "\t", *words)
                assert all(word in seen for word in words), (line, seen)
                os.write(terminal, b"\x15")  # forget the line
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_completion_in_zsh(on_path: None, tmp_path: Path) -> None:
    """The script is read by zsh's parser, and the answers are those for zsh."""
    script = 'autoload -U compinit; compinit -D; eval "$(nacz completion zsh)"; print ${_comps[nacz]}'
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "_nacz_completion"
    for line, expected in CASES.items():
        variables = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_NACZ_COMPLETE": "zsh_complete"}
        done = subprocess.run(["nacz"], capture_output=True, text=True, env={**os.environ, **variables}, cwd=tmp_path)
        assert set(done.stdout.splitlines()[1::3]) == expected, line


def test_files_are_completed_where_files_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import BashComplete

    def complete(words: list[str], incomplete: str) -> set[tuple[str, str]]:
        found = BashComplete(cli.cli, {}, "nacz", "_NACZ_COMPLETE").get_completions(words, incomplete)
        return {(item.type, item.value) for item in found}

    assert complete([], "boo") == complete(["-d"], "boo") == complete(["compress"], "boo") == {("file", "boo")}
    assert complete(["-9", "-o"], "x") == {("file", "x")}
    assert ("plain", "--stdout") in complete([], "--s") and ("plain", "list") in complete([], "")


# -- the man page -----------------------------------------------------------------------------------------------------


def test_man_page_has_everything(run: Nacz) -> None:
    assert run("man") == 0
    page = run.out.decode().replace("\\-", "-")
    assert page.startswith('.TH NACZ 1 "" "nacz ' + nacz.__version__)
    for name, command in cli.cli.commands.items():
        assert command.hidden or f".SS nacz {name} " in page
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(option in page for option in parameter.opts), (name, parameter.opts)
    for word in (*cli_text.ENVIRONMENT, *cli_text.EXAMPLES):
        assert word in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_man_page_is_roff(run: Nacz) -> None:
    assert run("man") == 0
    done = subprocess.run(["groff", "-ww", "-man", "-Tutf8"], input=run.out, capture_output=True, check=True)
    assert done.stderr == b""
    assert "KB/s" in done.stdout.decode()


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_tells_levels_environment_and_exit_codes(run: Nacz) -> None:
    assert run("--help") == 0
    shown = run.out.decode()
    for line in levels.table():
        assert line in shown
    for word in cli_text.ENVIRONMENT:
        assert word in shown
    for code, cause in cli_text.EXIT_CODES.items():
        assert re.search(rf"\b{code} {cause}", shown)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("...") == 1, "the words beside each verb fit"


def verbs() -> list[list[str]]:
    """Every verb as it is typed, groups and their members included."""
    found: list[list[str]] = [[]]
    for name, command in cli.cli.commands.items():
        if not command.hidden:
            found.append([name])
            if isinstance(command, click.Group):
                found += [[name, member] for member in command.commands]
    return found


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_of_every_verb_fits_a_terminal(run: Nacz, verb: list[str]) -> None:
    assert run(*verb, "--help") == 0
    lines = run.out.decode().splitlines()
    assert lines[0].startswith(" ".join(["Usage: nacz", *verb]))
    assert max(map(len, lines)) <= 80, max(lines, key=len)


def test_every_variable_that_is_read_is_told() -> None:
    from nacz.kernels.compile import _sources

    text = "".join(file.read_text(encoding="utf-8") for file in _sources() if file.name != "cli_text.py")
    read = set(re.findall(r'"(NACZ_[A-Z_]+)"', text))
    assert "NACZ_KERNEL" in read
    assert read <= set(cli_text.ENVIRONMENT)


# -- estimates --------------------------------------------------------------------------------------------------------


def test_an_estimate_before_long_work(run: Nacz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long").write_bytes(TEXT * 20)
    slow = {level: row._replace(compress=0.1, decompress=0.01) for level, row in levels.LEVELS.items() if level > 3}
    monkeypatch.setattr(levels, "LEVELS", levels.LEVELS | slow)
    assert run("-T1", "long") == 0 and run.err == "", "not where nobody looks"
    assert run("-T1", "-f", "long", terminal=True) == 0
    assert run.err.startswith("nacz: long: about 4 min at level 6, 1 s at level 3\n")
    assert run("-T1", "-d", "-f", "long.nacz", terminal=True) == 0
    assert run.err.startswith("nacz: long.nacz: about 43 min\n")
    for quiet in ("-q", "--no-progress", "-1"):
        assert run("-T1", "-f", quiet, "long", terminal=True) == 0
        assert run.err == ""


def test_estimates_of_decoding_see_what_an_archive_was_made_with() -> None:
    from nacz.formats.records import SegmentHeader

    from nacz.info import decoding_seconds
    from nacz.predictors.language_model import EFFORTS, Params
    from nacz.segment_coder import BYTE_MODEL, LANGUAGE_MODEL

    def header(predictor: int, params: bytes) -> SegmentHeader:
        return SegmentHeader(predictor, 0, params, 100_000, 10, 0)

    for level, effort in EFFORTS.items():
        params = Params(effort.window, 1, 25_000, effort.members, effort.learning).to_bytes()
        found = decoding_seconds([header(LANGUAGE_MODEL, params)], 1)
        assert found == levels.seconds(level, 100_000, 1, decompress=True), level
    assert decoding_seconds([header(BYTE_MODEL, b"")], 1) < 5


def test_durations() -> None:
    seconds = {0.2: "1 s", 6.4: "6 s", 89: "89 s", 90: "2 min", 2400: "40 min", 9000: "2 h", 200_000: "2 days"}
    for value, words in seconds.items():
        assert terminal.format_duration(value) == words


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from nacz.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = {}
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        with terminal.ProgressLine("x", True) as line:
            line._next = 0
            line.update(Progress("compress", 500, 1000, 60, 120))
        coloured[no_color] = bool(re.search(r"\x1b\[[\d;]*3[0-9][\d;]*m", screen.getvalue()))
    assert coloured == {"": True, "1": False}


def test_tools_are_verbs() -> None:
    assert {tool.name for tool in TOOLS} <= set(cli.cli.commands)
