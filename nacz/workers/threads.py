"""An executor of threads of this process whose futures know how far their jobs are, and which can be told to stop.

Compiled code holds no lock, so threads can do what processes do, in less memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any

from nacz.workers.jobs import report_to

__all__ = ["Threads"]


class Threads(Executor):
    """Up to `count` threads. A future has `progress`, as those of nacz.workers.processes."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Let a thread call `fn`."""
        future: Future[Any] | None = None

        def report(done: int, coded: int, tokens: int) -> None:
            if self._stopped:
                raise CancelledError
            if future is not None:  # it may not be known yet
                future.progress = (done, coded, tokens)  # type: ignore[attr-defined]

        def call() -> Any:
            report_to(report)
            try:
                return fn(*args, **kwargs)
            finally:
                report_to(None)

        future = self._pool.submit(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs. `cancel_futures`: also stop those that have begun."""
        self._stopped = cancel_futures
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
