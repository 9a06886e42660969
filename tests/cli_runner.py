"""Calling the command line inside this process, with streams of its own; what child processes of tests begin with."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import pytest

from nacz import cli

TEXT = b"Call me Ishmael. Some years ago, never mind how long precisely, " * 20


def default_signals() -> None:
    """For `preexec_fn`: signals do what they do by default, also where the tests were started with some ignored
    (nohup, or in the background of a script)."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


class Nacz:
    """Calls `main` with streams of its own and keeps what it wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __call__(self, *arguments: str | Path, stdin: bytes = b"", terminal: bool = False) -> int:
        class Stream(io.TextIOWrapper):
            def isatty(self) -> bool:
                return terminal

        self._in, self._out, self._err = io.BytesIO(stdin), io.BytesIO(), io.BytesIO()
        streams = {"stdin": self._in, "stdout": self._out, "stderr": self._err}
        with self._patch.context() as patch:
            for name, raw in streams.items():
                patch.setattr(sys, name, Stream(raw, encoding="utf-8", write_through=True))
            code = cli.main([str(argument) for argument in arguments])
            self.out, self.err = self._out.getvalue(), self._err.getvalue().decode()
        return code
