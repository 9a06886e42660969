"""The other end of nacz.workers.processes: calls one function after another until its pipe ends.

Standard input and output are the pipe, and nothing else may write there: what a job prints goes to standard error. When
the pipe ends, also in the middle of a job, the process does too: who asked is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from queue import SimpleQueue
from typing import Any, BinaryIO

from nacz.workers import jobs
from nacz.workers.frames import read_frame, write_frame

__all__ = ["main"]

_INTERVAL = 0.2  # seconds between reports


def main() -> None:
    """Serve until the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    to_me, from_me = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    work: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(to_me, work), daemon=True).start()
    jobs.report_to(_Reporter(from_me))
    while True:
        message = work.get()
        try:
            answer = _answer(message)
            write_frame(from_me, answer)
        except OSError:
            os._exit(1)


def _listen(pipe: BinaryIO, work: SimpleQueue[bytes]) -> None:
    try:
        while True:
            work.put(read_frame(pipe))
    except (OSError, EOFError):
        os._exit(0)


def _answer(message: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(message)
        return _pickled("result", function(*args, **kwargs))
    except Exception as error:
        try:
            return _pickled("error", error)
        except Exception:
            return _pickled("error", RuntimeError(f"{type(error).__name__}: {error}"))


def _pickled(kind: str, value: Any) -> bytes:
    return pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL)


class _Reporter:
    """Writes how far a job is, now and then."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._due = 0.0

    def __call__(self, done: int, coded: int, tokens: int) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _INTERVAL
            write_frame(self._pipe, _pickled("progress", (done, coded, tokens)))

