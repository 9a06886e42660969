"""A cluster of dask.distributed as an executor: `dask://HOST:PORT`. Needs the extra `dask`.

Knows the client; does not know segments. The cluster is somebody else's: it is left as it was found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from nacz.errors import UsageError, WorkerError

__all__ = ["Cluster"]

_PATIENCE = 10  # seconds for the scheduler to answer


class Cluster(Executor):
    """The workers of a scheduler, as one executor. Raises UsageError without the extra, WorkerError without a scheduler
    or workers."""

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise UsageError("a cluster needs the extra `dask`: pip install 'nacz[dask]'") from None
        try:
            self._client = Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise WorkerError(f"no scheduler answers at `{address}`: {error}") from None
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        self.workers = sum(worker["nthreads"] for worker in known.values())
        if not self.workers:
            self._client.close()
            raise WorkerError(f"the scheduler at `{address}` has no workers")
        # Its own retries are for errors of the work; a job whose worker dies is given to another one anyway.
        self._executor = self._client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Let some worker call `fn`. Raises WorkerError when the scheduler is lost."""
        if self._client.status != "running":
            raise WorkerError("the scheduler is lost")
        future: Future[Any] = self._executor.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what is left and leave the cluster."""
        with contextlib.suppress(Exception):
            self._executor.shutdown(wait=False)
        with contextlib.suppress(Exception):
            self._client.close(timeout=_PATIENCE)
