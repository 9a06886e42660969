"""Compile a function in another process while this one compiles what it needs before.

Numba compiles one function at a time, and the first run of all waits for it. What two processes compile can be shared
out, since both keep machine code in one folder: a function that is called last, and takes half of the time, is given to
a second process as soon as the types of its arguments are known. Where that fails nothing is lost: the function is
compiled where it is called.

Knows Numba's signatures and the folder. Does not know what is compiled.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
from typing import Any

from nacz.kernels.compile import cache_folder

from nacz.interpreter import command


class Ahead:
    """A function that may be on its way. `wait` before it is called, `close` in any case."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], processors: int) -> None:
        """function: compiled, not `inner`. arguments: of the types that it will be called with. processors: how many
        may be at work; with one nothing is begun, nor where code of the function is kept already."""
        self._process: subprocess.Popen[bytes] | None = None
        folder, name = cache_folder(), function.py_func.__name__
        # An embedded interpreter may have no program to start.
        if processors < 2 or folder is None or not sys.executable or (os.cpu_count() or 1) < 2:
            return
        if function.signatures or any(folder.rglob(f"*.{name}-*.nbi")):
            return
        signature = tuple(function.typeof_pyval(argument) for argument in arguments)
        quiet = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                command("nacz.kernels.ahead"), stdin=subprocess.PIPE, stdout=quiet, stderr=quiet
            )
            assert self._process.stdin is not None
            with self._process.stdin as pipe:
                pickle.dump((function.py_func.__module__, name, signature), pipe)

    def wait(self) -> None:
        """Until the other process has ended, if there is one."""
        if self._process is not None:
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the other process, if it is still at work."""
        if self._process is not None:
            self._process.kill()
            self.wait()


def main() -> None:
    """Compile, and keep, what standard input names."""
    module, name, signature = pickle.load(sys.stdin.buffer)
    getattr(importlib.import_module(module), name).compile(signature)
