"""One coder in a process of its own: compress or decompress one file, and print what that took as a line of JSON.

    python -m nacz.bench.child < SPECIFICATION

The clock runs around the coder's call alone: interpreter, imports, weights and compiled code were made ready before, by
a round trip of a few bytes, whose time is told apart. Programs are timed with their own start. Peak memory is that of
this process, or of the largest program that it called.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from nacz.bench.coders import Coder
from nacz.levels import FIRST_LEVEL_THAT_LEARNS

__all__ = ["main", "peak_memory"]

_FEW = b"A few bytes to make everything ready. " * 8
_MORE = _FEW * 10  # where a network learns: enough for it to begin with that


def main() -> None:
    """Read the specification from stdin, do it, write the measurement to stdout."""
    spec = json.load(sys.stdin)
    coder = Coder(spec["name"], spec["setting"], spec["options"])
    start = time.perf_counter()
    compress, decompress = warm_up(coder).functions(spec["threads"])
    some = _MORE if coder.name == "nacz" and int(coder.setting) >= FIRST_LEVEL_THAT_LEARNS else _FEW
    if decompress(compress(some)) != some:
        raise RuntimeError("a round trip of a few bytes failed")
    compress, decompress = coder.functions(spec["threads"])
    ready = time.perf_counter() - start
    data = Path(spec["input"]).read_bytes()
    cpu, start = _cpu(), time.perf_counter()
    result = (compress if spec["direction"] == "compress" else decompress)(data)
    seconds, cpu = time.perf_counter() - start, _cpu() - cpu
    Path(spec["output"]).write_bytes(result)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "start": ready, "memory": peak_memory()}))


def warm_up(coder: Coder) -> Coder:
    """The same coder, but that a network which may learn does so even from little."""
    if coder.name != "nacz" or int(coder.setting) < FIRST_LEVEL_THAT_LEARNS:
        return coder
    return replace(coder, options={"learn": 6, **coder.options})


def _cpu() -> float:
    """CPU seconds of this process and of those it waited for."""
    try:
        import resource
    except ImportError:  # not POSIX
        return time.process_time()
    called = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + called.ru_utime + called.ru_stime


def peak_memory() -> int | None:
    """Bytes that this process had in memory at most, or a larger program that it called; None where not known."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        # What getrusage says of a process includes what its parent had when it was started.
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        own = int(match[1]) * 1024 if match else own
    except OSError:
        pass
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)


if __name__ == "__main__":
    main()
