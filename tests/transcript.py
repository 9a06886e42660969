"""Transcripts of the command line: what is typed, and exactly what comes out of it.

    $ nacz text             a command; `nacz` runs inside this process, anything else in a shell
    out                     a line of stdout
    ! message               a line of stderr
    [1]                     the exit code, if it is not 0

In an expected line `<*>` stands for anything. Redirections `< FILE` and `> FILE` at the end of a command of nacz are
understood, and a variable before it. Every transcript begins in an empty folder with a file `text`.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import Nacz

__all__ = ["differences", "replay", "rewritten"]


def replay(text: str, nacz: Nacz, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the commands of a transcript and yield it with what really came out."""
    for command in re.findall(r"^\$ (.*)$", text, re.M):
        yield f"$ {command}"
        out, err, code = _run(command, nacz, folder, patch)
        yield from out.decode("utf-8", "backslashreplace").splitlines()
        yield from (f"! {line}" for line in err.splitlines())
        if code:
            yield f"[{code}]"


def _run(command: str, nacz: Nacz, folder: Path, patch: pytest.MonkeyPatch) -> tuple[bytes, str, int]:
    words = shlex.split(command)
    variables: dict[str, str] = {}
    while words and (match := re.fullmatch(r"(NACZ_[A-Z_]+)=(.*)", words[0])):
        variables[match[1]] = match[2]
        words.pop(0)
    if words[0] != "nacz":
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True)
        return done.stdout, done.stderr.decode(), done.returncode
    stdin, target = b"", None
    while len(words) > 2 and words[-2] in ("<", ">", ">>"):
        sign, name = words[-2:]
        words = words[:-2]
        if sign == "<":
            stdin = (folder / name).read_bytes()
        else:
            target = (folder / name).open("ab" if sign == ">>" else "wb")
    with patch.context() as inner:
        for name, value in variables.items():
            inner.setenv(name, value)
        code = nacz(*words[1:], stdin=stdin)
    if target is None:
        return nacz.out, nacz.err, code
    with target:
        target.write(nacz.out)
    return b"", nacz.err, code


def matches(expected: str, found: str) -> bool:
    """Tell whether a line is as expected; `<*>` in an expected line is anything."""
    return re.fullmatch(".*".join(map(re.escape, expected.split("<*>"))), found) is not None


def differences(expected: list[str], found: list[str]) -> list[str]:
    """What is not as expected, line by line."""
    wrong = []
    for index, (want, got) in enumerate(itertools.zip_longest(expected, found), 1):
        if want is None or got is None or not matches(want, got):
            wrong.append(f"line {index}: expected {want!r}, found {got!r}")
    return wrong


def rewritten(expected: list[str], found: list[str]) -> list[str]:
    """What is found, but for lines that were as expected: they keep their `<*>`."""
    known = {line: want for line in found for want in expected if matches(want, line)}
    return [known.get(line, line) for line in found]
