"""Calling the command line inside this process, with streams of its own."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from nacz import cli

TEXT = b"Call me Ishmael. Some years ago, never mind how long precisely, " * 20


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
