"""Jobs on an executor, a bounded number of them at a time, their results in the order in which they were put.

Relies on `submit` and futures alone. What a lost worker had is tried again; an executor that is broken for good, as
that of concurrent.futures is when one process dies, is replaced by this process. An executor that was made elsewhere is
never shut down. Knows executors and functions; does not know segments.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from typing import Any

from nacz.errors import ModelError, NaczError, UsageError, WorkerError
from nacz.workers.processes import Processes
from nacz.workers.threads import Threads

__all__ = ["AUTOMATIC", "Crew", "ExecutorLike"]

AUTOMATIC = "auto"
ExecutorLike = Executor | str | None

_TRIES = 3  # as often a job is begun before its loss is an error
_POLL = 0.1  # seconds between two looks at the time
_MOST_BYTES = 1 << 30  # of plain data and payloads in jobs, if there are several
_FEW = 8  # workers that an executor is supposed to have that does not say


class _Job:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], size: int) -> None:
        self.function, self.arguments, self.size = function, arguments, size
        self.future: Future[Any] | None = None
        self.tries = 0


class Crew:
    """Jobs are put with `put` and taken with `take`. `executor`: one of concurrent.futures or like it, or what
    `_opened` knows by name; `cores`: how many threads shall be busy here, for executors that are made here, and `most`:
    how many workers these may have.

    A job's function gets the number of threads to use and the number of the attempt as keywords.
    """

    def __init__(self, executor: ExecutorLike, cores: int, most: int | None = None) -> None:
        self._is_automatic = executor == AUTOMATIC
        self.is_local = executor in (AUTOMATIC, "processes", "threads")
        self._executor, self._workers, self._owned = _opened(
            executor, cores if most is None else max(1, min(cores, most))
        )
        self._cores = cores if self.is_local else 0
        self._jobs: deque[_Job] = deque()
        self._begun = False

    @property
    def workers(self) -> int:
        """How many jobs are worked on at a time, as far as the executor says."""
        return self._workers

    @property
    def is_full(self) -> bool:
        """Whether the next thing to do is to take a result: there are a quarter more jobs than workers and one, so that
        none waits while another one's result is due first."""
        size = sum(job.size for job in self._jobs)
        return len(self._jobs) > self._workers + self._workers // 4 or (len(self._jobs) > 1 and size > _MOST_BYTES)

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, function: Callable[..., Any], arguments: tuple[Any, ...], size: int) -> None:
        """Add a job. The first ones wait until there is one for each worker, or until one is taken."""
        self._jobs.append(_Job(function, arguments, size))
        if self._begun or len(self._jobs) >= self._workers:
            self._begin()

    def _begin(self) -> None:
        if not self._begun and self._is_automatic and len(self._jobs) == 1:
            # A sole job needs no other process: it can have all threads here.
            self._executor = self._owned = Threads(1)
        self._begun = True
        waiting = [job for job in self._jobs if job.future is None]
        # Fewer jobs than workers: each gets some of the threads.
        threads = max(1, self._cores // max(1, len(self._jobs))) if self._cores else 1
        for job in waiting:
            self._submit(job, threads)

    def _submit(self, job: _Job, threads: int) -> None:
        job.tries += 1
        keywords = {"threads": threads, "attempt": job.tries}
        try:
            job.future = self._executor.submit(job.function, *job.arguments, **keywords)
        except (BrokenExecutor, RuntimeError) as error:
            if self._owned is not None:
                raise WorkerError(f"the workers are lost: {error}") from error
            # Nobody else may mend it, and nothing is lost: this process can do the work.
            self._executor = self._owned = Threads(1)
            self._workers = 1
            job.future = self._executor.submit(job.function, *job.arguments, **keywords)

    def take(self, tick: Callable[[tuple[int, int, int]], None]) -> Any:
        """Return the oldest job's result, or raise what it raised. `tick` is called now and then with how far all jobs
        are (plain bytes, coded bytes, tokens), as far as the executor tells; it may raise to give up."""
        self._begin()
        job = self._jobs[0]
        while True:
            assert job.future is not None
            wait([job.future], timeout=_POLL)
            tick(self.ahead())
            if not job.future.done():
                continue
            try:
                result = job.future.result()
            except (Exception, CancelledError) as error:
                self._again(job, error)
                continue
            self._jobs.popleft()
            return result

    def _again(self, job: _Job, error: BaseException) -> None:
        """Try a job again whose worker was lost; raise any other error."""
        if isinstance(error, ModelError) and not self.is_local:
            raise type(error)(f"on a worker: {error}") from error
        if isinstance(error, (ImportError, pickle.PickleError)) or "deserializ" in str(error):
            raise WorkerError(f"a worker cannot do what this process asks it: {_named(error)}") from error
        if not _is_loss(error):
            raise error
        if job.tries >= _TRIES:
            raise WorkerError(f"a segment's workers were lost {job.tries} times: {_named(error)}") from error
        self._submit(job, max(1, self._cores // max(1, len(self._jobs))))

    def ahead(self) -> tuple[int, int, int]:
        """How far all jobs are that were not taken: plain bytes, coded bytes, tokens."""
        done = [getattr(job.future, "progress", (0, 0, 0)) for job in self._jobs]
        return sum(d[0] for d in done), sum(d[1] for d in done), sum(d[2] for d in done)

    def drop(self) -> None:
        """Forget all jobs; those that have begun go on in vain."""
        for job in self._jobs:
            if job.future is not None:
                job.future.cancel()
        self._jobs.clear()

    def close(self) -> None:
        """Forget all jobs, and shut the executor down if it was made here."""
        self.drop()
        if self._owned is not None:
            self._owned.shutdown(wait=True, cancel_futures=True)


def _opened(executor: ExecutorLike, workers: int) -> tuple[Executor, int, Executor | None]:
    """Return the executor, how many workers it has, and what must be shut down in the end."""
    if isinstance(executor, str):
        made: Executor
        if executor in (AUTOMATIC, "processes"):
            made = Processes(workers)
            return made, workers, made
        if executor == "threads":
            made = Threads(workers)
            return made, workers, made
        if executor == "gpus":
            from nacz.workers.gpus import devices

            made = Processes(len(found := devices()), [{"NACZ_DEVICE": name} for name in found])
            return made, len(found), made
        if executor.startswith("dask://"):
            from nacz.workers.cluster import Cluster

            cluster = Cluster(executor.removeprefix("dask://"))
            return cluster, cluster.workers, cluster
        raise UsageError(f"no such executor: `{executor}`; known are processes, threads, gpus, none and dask://HOST:PORT")
    if executor is None or not callable(getattr(executor, "submit", None)):
        raise UsageError(f"not an executor: {executor!r}")
    says = getattr(executor, "_max_workers", None)
    return executor, says if isinstance(says, int) else _FEW, None


def _is_loss(error: BaseException) -> bool:
    """Whether an error is not that of the work but of who did it."""
    if isinstance(error, NaczError):
        return False
    if isinstance(error, (BrokenExecutor, CancelledError, ConnectionError, EOFError)):
        return True
    return type(error).__name__ in ("KilledWorker", "CommClosedError", "FutureCancelledError")


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
