"""Whether workers are worth it, and how many of them this machine has room for.

Knows what levels cost in time and memory, and where the system says what is free; does not know what workers do.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nacz.errors import CorruptDataError, ModelError, UsageError
from nacz.formats.records import SegmentHeader
from nacz.levels import LAST_LEVEL_WITHOUT_WEIGHTS, LEVELS
from nacz.segment_coder import BYTE_MODEL, FLOATS, STORED, CodecOptions
from nacz.workers.crew import AUTOMATIC, Crew, ExecutorLike

__all__ = ["crew_for_decoding", "crew_for_encoding", "free_memory"]

_WORTH = 2.0  # seconds of work in a segment; a process takes one before it begins
_SHARE = 0.8  # of the memory that is free


def crew_for_encoding(executor: ExecutorLike, threads: int, options: CodecOptions, size: int) -> Crew | None:
    """Return a crew for segments of `size` bytes, None where this thread is as good. Raises UsageError."""
    if executor is None or executor == "none":
        return None
    if options.is_float:
        return None if executor == AUTOMATIC else _crew_here(executor, threads)
    level = options.level
    if options.predictor == BYTE_MODEL:
        level = min(level, LAST_LEVEL_WITHOUT_WEIGHTS)
    if executor == AUTOMATIC and (threads == 1 or size < _WORTH * 1000 * LEVELS[level].compress):
        return None
    return _crew(executor, threads, LEVELS[level].memory * 1_000_000)


def crew_for_decoding(
    executor: ExecutorLike,
    threads: int,
    options: CodecOptions,
    memory_limit: int | None,
    first: SegmentHeader,
    is_sole: bool,
) -> Crew | None:
    """Return a crew for segments like the first one. With a limit of memory nothing is decoded at once."""
    if executor is None or executor == "none":
        return None
    is_here = executor in (AUTOMATIC, "processes", "threads")
    if is_here and memory_limit is not None:
        return None
    if first.predictor in FLOATS:
        return None if executor == AUTOMATIC else _crew_here(executor, threads)
    is_bytes = first.predictor in (STORED, BYTE_MODEL)
    fast = LEVELS[1 if is_bytes and first.predictor == STORED else 3 if is_bytes else 4]
    if executor == AUTOMATIC and (is_sole or threads == 1 or first.plain_size < _WORTH * 1000 * fast.decompress):
        return None
    if not is_here:
        return _crew(executor, threads, 0)
    from nacz.memory import decoding_memory

    try:
        needed = decoding_memory(first, options.model, options.offline)
    except (CorruptDataError, ModelError):
        return None  # whoever decodes it says so
    return _crew(executor, threads, needed)


def _crew_here(executor: ExecutorLike, threads: int) -> Crew:
    """A crew for what only this machine can decode, and only one at a time in a process."""
    if executor != "processes":
        raise UsageError("a floating-point backend works in processes of this machine only: --executor processes")
    return Crew(executor, threads)


def _crew(executor: ExecutorLike, threads: int, memory: int) -> Crew:
    free = free_memory() if memory else None
    return Crew(executor, threads, None if free is None else int(_SHARE * free) // memory)


def free_memory() -> int | None:
    """Return how many bytes can be had, None where the system (Linux) does not say."""
    found: int | None = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = 1024 * int(line.split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        found = limit if found is None else min(found, limit)
    return found
