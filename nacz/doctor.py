"""`nacz doctor`: what this machine has and whether nacz works on it.

Processor and kernels with their self-test, models, caches, and round trips that tell how fast it is. A finding is a
topic, a line and a verdict; "bad" alone makes the exit code 1. Knows where to look; repairs nothing.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from nacz import levels
from nacz._version import __version__
from nacz.cli_text import ENVIRONMENT
from nacz.segment_coder import DEFAULT_LEVEL, MAX_LEVEL, MIN_LEVEL
from nacz.segments import count_threads
from nacz.terminal import format_size

__all__ = ["Finding", "findings", "processor", "show"]

_SAMPLE = 12_000  # bytes for the byte model
_SMALL_SAMPLE = 4_000  # for the language model: some seconds
_FIRST = 400  # bytes that tell how long the sample would take
_SECONDS = 8.0  # for the sample of one level; on a slow or busy machine it is smaller


class Finding(NamedTuple):
    """`verdict`: "ok", "note" (works, but not as well as it could) or "bad"."""

    topic: str
    line: str
    verdict: str = "ok"


def show(with_speed: bool, as_json: bool) -> int:
    """Write the findings to stdout as they come, or as a JSON array. Returns 0, or 1 if something is bad."""
    found: list[Finding] = []
    for finding in findings(with_speed):
        found.append(finding)
        if not as_json:
            mark = {"ok": "", "note": "note: ", "bad": "bad: "}[finding.verdict]
            print(f"{finding.topic:<12}{mark}{finding.line}", flush=True)
    if as_json:
        print(json.dumps([finding._asdict() for finding in found], indent=2), flush=True)
    return int(any(finding.verdict == "bad" for finding in found))


def findings(with_speed: bool) -> Iterator[Finding]:
    """Yield what is found, the cheap first. `with_speed` adds round trips of about ten seconds in all."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "tokenizers", "click"))
    yield Finding("nacz", f"{__version__}, Python {platform.python_version()}, {packages}")
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    for name in ENVIRONMENT:
        if name in os.environ:
            yield Finding("environment", f"{name}={os.environ[name]}")
    yield from _kernels()
    yield from _models()
    yield from _caches()
    if with_speed:
        yield from _speeds()


def _kernels() -> Iterator[Finding]:
    from nacz.kernels import dispatch

    cores = count_threads(0)
    wanted = ("avx2", "avx512bw", "avx512vl", "avx512vnni", "dotprod")
    has = [name for name in wanted if dispatch.features().get(name)]
    yield Finding("processor", f"{processor()}, {cores} usable cores, {', '.join(has) or 'no vector features'}")
    best = ""
    for name in dispatch.usable():
        if dispatch.self_test(dispatch.KERNELS[name]):
            best = best or name
            yield Finding("kernel", f"{name}: self-test passed")
        else:
            yield Finding("kernel", f"{name}: self-test failed; it will not be used", "bad")
    if best == "plain":
        yield Finding("kernel", "no vector implementation fits this processor; nacz will be slow", "note")
    chosen, _ = dispatch.chosen()
    yield Finding("kernel", f"{chosen}: chosen", "ok" if chosen == best else "note")


def _models() -> Iterator[Finding]:
    from nacz import weights
    from nacz.errors import NaczError

    known = weights.list_models()
    here = [model.name for model in known if model.exact or model.gguf] + [model.name for model in weights.imported()]
    for model in known[:1]:
        if model.name not in here:
            how = f"not on this machine; `nacz models pull` fetches {format_size(model.download_size)}"
            yield Finding("model", f"{model.name}: {how}. Levels 1 to 3 work without", "note")
    for name in here:
        try:
            checked = weights.verify(name)
            yield Finding("model", f"{name}: {len(checked)} files, hashes right, {next(iter(checked))}")
        except NaczError as error:
            yield Finding("model", f"{name}: {error}", "bad")


def _caches() -> Iterator[Finding]:
    from nacz.kernels.compile import cache_folder
    from nacz.weights.fetch import model_dir

    for topic, folder in (("weights", model_dir()), ("code", cache_folder())):
        if folder is None:
            yield Finding(topic, "no folder can be written: everything is compiled anew at each start", "note")
            continue
        there = folder.is_dir()
        size = format_size(_size(folder)) if there else "not there yet"
        writable = os.access(folder, os.W_OK) if there else True
        yield Finding(topic, f"{folder}: {size}" + ("" if writable else ", read-only"), "ok" if writable else "note")
        if topic == "code":
            others = [other for other in folder.parent.iterdir() if other != folder]
            if others:
                stale = format_size(sum(_size(other) for other in others))
                yield Finding(topic, f"{len(others)} folders of other versions beside it: {stale}")


def _speeds() -> Iterator[Finding]:
    import nacz
    from nacz.errors import ModelMissingError

    text = Path(levels.__file__).read_bytes()
    for level in (MIN_LEVEL, DEFAULT_LEVEL):
        size = _SAMPLE if level == MIN_LEVEL else _SMALL_SAMPLE
        sample = (text * (1 + size // len(text)))[:size]
        options = nacz.CodecOptions(level=level, offline=True)
        try:
            nacz.decompress(nacz.compress(sample[:_FIRST], options=options), options)  # compiles and loads
        except ModelMissingError:
            yield Finding("speed", f"level {level}: not without weights", "note")
            continue
        start = time.perf_counter()
        nacz.decompress(nacz.compress(sample[:_FIRST], options=options), options)
        size = min(size, max(_FIRST, int(_SECONDS * _FIRST / (time.perf_counter() - start))))
        sample = sample[:size]
        start = time.perf_counter()
        archive = nacz.compress(sample, options=options)
        between = time.perf_counter()
        same = nacz.decompress(archive, options) == sample
        end = time.perf_counter()
        if not same:
            yield Finding("speed", f"level {level}: did not come back as it was; please report it", "bad")
            continue
        there, back = size / (between - start) / 1000, size / (end - between) / 1000
        row = levels.LEVELS[level]
        yield Finding(
            "speed", f"level {level}: {there:.1f} KB/s compressing, {back:.1f} decompressing, {size} bytes came back"
            f" exactly (the table of levels says {row.compress:g} and {row.decompress:g} for a CPU second)",
        )  # fmt: skip
    yield Finding("speed", f"levels {MIN_LEVEL} to {MAX_LEVEL}: see `nacz --help`, or measure with `nacz bench`")


def processor() -> str:
    """The processor's name for people."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or sys.platform


def _size(folder: Path) -> int:
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(at, name)).st_size
            except OSError:
                pass  # gone meanwhile
    return total
