"""What a person at a terminal sees while nacz works: one line of progress, on stderr, and one more for SIGUSR1.

Knows how to show numbers; does not know where they come from. `rich` is imported only when there is something
to show, after a second of work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from nacz.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["ProgressLine", "format_duration", "format_size", "progress_wanted", "status_on_signal"]

_DELAY = 1.0
_INTERVAL = 0.1

_at_work: list[ProgressLine] = []  # the innermost last; what a signal asks about


def progress_wanted(quiet: bool) -> bool:
    """Tell whether progress may be shown: stderr is a terminal and nobody asked for silence."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def status_on_signal() -> Iterator[None]:
    """Inside, SIGUSR1, and SIGINFO (Ctrl-T) where the system has it, write one line about the work to stderr."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        line = _at_work[-1].status() if _at_work else "nothing to tell yet"
        # Not through sys.stderr, which the interrupted code may be in the middle of.
        with contextlib.suppress(OSError):
            os.write(2, f"nacz: {line}\n".encode("utf-8", "backslashreplace"))

    previous = {}
    for name in ("SIGUSR1", "SIGINFO"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
            previous[number] = signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def format_duration(seconds: float) -> str:
    """Return a time for people: one number, its unit."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "1 s"


def format_size(size: float) -> str:
    """Return a size for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class ProgressLine:
    """A context whose `update` is a progress callback. Shows nothing at all unless `enabled`."""

    def __init__(self, name: str, enabled: bool) -> None:
        self._name = name
        self._enabled = enabled
        self._start = time.monotonic()
        self._next = self._start + _DELAY
        self._in_model = False
        self._last: Progress | None = None
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressLine:
        _at_work.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _at_work.remove(self)
        if self._bar is not None:
            self._bar.stop()

    def status(self) -> str:
        """Return one line about the work so far, for someone who asks."""
        last, elapsed = self._last, max(time.monotonic() - self._start, 1e-9)
        if last is None:
            return f"{self._name}: nothing done yet"
        if last.phase in ("fetch", "convert"):
            return f"{self._name}: {last.phase}ing weights: {last.done} of {last.total}"
        if last.phase == "try":
            return f"{self._name}: trying what is smallest: {100 * last.done / max(1, last.total or 0):.0f} %"
        parts = [f"{last.phase} {format_size(last.done)}" + (f" of {format_size(last.total)}" if last.total else "")]
        if last.total:
            parts.insert(0, f"{100 * last.done / last.total:.0f} %")
        parts.append(f"{last.done / elapsed / 1000:.1f} KB/s")
        if last.bits_per_byte is not None:
            parts.append(f"{last.bits_per_byte:.3f} bpb")
        if last.total and last.done:
            parts.append(f"about {format_duration(elapsed * (last.total / last.done - 1))} left")
        return f"{self._name}: {', '.join(parts)}"

    def update(self, progress: Progress) -> None:
        """Show a moment of the work."""
        self._last = progress
        if progress.phase in ("fetch", "convert"):
            self.update_model(progress.phase, progress.done, progress.total or 0)
            return
        if self._in_model:
            # Rates count from here, not from the start of a download.
            self._in_model = False
            self._start = time.monotonic()
        if progress.phase == "try":
            if self._due():
                self._show(f"{self._name}: trying", progress.done, progress.total, "")
            return
        if self._due():
            elapsed = time.monotonic() - self._start
            figures = [f"{progress.done / elapsed / 1000:.1f} KB/s"]
            if progress.tokens:
                figures.insert(0, f"{progress.tokens / elapsed:.0f} tokens/s")
            if progress.bits_per_byte is not None:
                figures.append(f"{progress.bits_per_byte:.3f} bpb")
            self._show(self._name, progress.done, progress.total, "  ".join(figures))

    def update_model(self, stage: str, done: int, total: int) -> None:
        """Show a moment of making a model ready: a download, or the conversion of what was downloaded."""
        self._in_model = True
        if self._due():
            fetching = stage == "fetch"
            figures = f"{format_size(done)} of {format_size(total)}" if fetching else ""
            self._show("fetching weights" if fetching else "converting weights", done, total, figures)

    def _due(self) -> bool:
        now = time.monotonic()
        if not self._enabled or now < self._next:
            return False
        self._next = now + _INTERVAL
        return True

    def _show(self, what: str, done: int, total: int | None, figures: str) -> None:
        if self._bar is None:
            from rich import progress as rich_progress
            from rich.console import Console

            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(bar_width=20),
                rich_progress.TaskProgressColumn(),
                rich_progress.TextColumn("{task.fields[figures]}", markup=False),
                rich_progress.TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, figures=figures)
        assert self._task is not None
        self._bar.update(self._task, description=what, completed=done, total=total, figures=figures, refresh=True)
