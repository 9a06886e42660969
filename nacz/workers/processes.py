"""An executor of processes of its own: each is a fresh interpreter that works until its pipe ends.

Other than that of concurrent.futures it does not import the caller's main module (a script without a guard would start
itself again), loses one process where one dies, and hears from jobs how far they are. A future has `progress`: the
latest (plain bytes, coded bytes, tokens) of its job.

Knows processes, pipes and functions that can be pickled; does not know segments.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from queue import SimpleQueue
from typing import IO, Any

from nacz.interpreter import command
from nacz.workers.frames import read_frame, write_frame

__all__ = ["ProcessLost", "Processes"]


class ProcessLost(BrokenExecutor):
    """The process that had the job has ended; the next job gets a new one."""


class Job(Future[Any]):
    """A future that knows how far its job is."""

    progress = (0, 0, 0)


class Processes(Executor):
    """Up to `count` processes, each started when there is work for it. `environments`: variables of each, as many of
    them as processes."""

    def __init__(self, count: int, environments: Sequence[Mapping[str, str]] = ()) -> None:
        self._count = count
        self._environments = environments
        self._queue: SimpleQueue[tuple[Job, bytes] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._processes: dict[threading.Thread, subprocess.Popen[bytes]] = {}
        self._idle = 0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that are running."""
        with self._lock:
            return [process.pid for process in self._processes.values() if process.poll() is None]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Let a process call `fn`, which must be picklable, as its arguments and its result. Raises what pickling
        raises."""
        work = pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)
        job = Job()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.put((job, work))
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._count:
                self._threads.append(threading.Thread(target=self._serve, daemon=True))
                self._threads[-1].start()
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs. `cancel_futures`: forget those that wait, and end the processes where they are."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                while not self._queue.empty():
                    item = self._queue.get()
                    if item is not None:
                        item[0].cancel()
                for process in self._processes.values():
                    process.kill()
            for _ in self._threads:
                self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        """Give one job after another to a process of this thread."""
        me = threading.current_thread()
        while True:
            item = self._queue.get()
            if item is None:
                break
            job, work = item
            if job.set_running_or_notify_cancel():
                self._run(me, job, work)
            with self._lock:
                self._idle += 1
        with self._lock:
            process = self._processes.pop(me, None)
        if process is not None:
            _close(process)

    def _run(self, me: threading.Thread, job: Job, work: bytes) -> None:
        try:
            with self._lock:
                process = self._processes.get(me)
                if process is not None and process.poll() is not None:
                    _close(process)
                    process = None
                if process is None:
                    if self._closed:
                        raise ProcessLost("the executor was shut down")
                    number = self._threads.index(me)
                    own = self._environments[number] if self._environments else {}
                    process = self._processes[me] = _start(own)
            assert process.stdin is not None and process.stdout is not None
            result = _ask(process.stdin, process.stdout, job, work)
        except ProcessLost as error:
            # A process that has closed its pipes need not have ended already, and must not get the next job.
            with self._lock:
                lost = self._processes.pop(me, None)
            if lost is not None:
                lost.kill()
                _close(lost)
            job.set_exception(error)
            return
        except Exception as error:
            job.set_exception(error)
            return
        if isinstance(result, _Raised):
            job.set_exception(result.error)
        else:
            job.set_result(result)


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _ask(to: IO[bytes], back: IO[bytes], job: Job, work: bytes) -> Any:
    try:
        write_frame(to, work)
        while True:
            kind, value = pickle.loads(read_frame(back))
            if kind == "progress":
                job.progress = value
            elif kind == "error":
                return _Raised(value)
            else:
                return value
    except (OSError, EOFError):
        raise ProcessLost("a worker process has ended") from None


def _start(variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("nacz.workers.child"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **variables}
    )


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    process.wait()
