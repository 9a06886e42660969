"""`nacz explain` itself: a file in, a page or a short account out. Knows files, terminals and messages."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from nacz import levels
from nacz._version import __version__
from nacz.commands import standard_stream
from nacz.errors import UsageError
from nacz.files import atomic_output
from nacz.progress import Progress
from nacz.segment_coder import DEFAULT_LEVEL
from nacz.segments import count_threads
from nacz.terminal import ProgressLine, format_duration, progress_wanted

__all__ = ["explain_file"]

_LONG = 20.0  # seconds of work that deserve a warning
_SHOWN = 10


def explain_file(
    name: str, output: str | None, model: str | None, *, offline: bool, threads: int, force: bool, quiet: bool
) -> int:
    """Explain one file, `-` being stdin. With `output` write the page there, else the account to stdout. Returns 0."""
    if name != "-" and os.path.isdir(name):
        raise UsageError(f"{name} is a directory")
    if name == "-":
        data = standard_stream("stdin").read()
    else:
        data = Path(name).read_bytes()
    from nacz.explain.context import byte_model_bits
    from nacz.explain.costs import explain
    from nacz.explain.page import page
    from nacz.explain.passages import passages, readable
    from nacz.weights.store import load_model

    threads = count_threads(threads)
    wanted = progress_wanted(quiet)
    seconds = levels.seconds(DEFAULT_LEVEL, len(data), threads)
    if wanted and seconds > _LONG:
        print(f"nacz: {name}: about {format_duration(seconds)}", file=sys.stderr)
    with ProgressLine(name, wanted) as line:
        weights = load_model(model, offline=offline, progress=line.update_model)

        def report(done: int, total: int) -> None:
            line.update(Progress("explain", len(data) * done // total, len(data), 0, done))

        costs = explain(data, weights, threads=threads, report=report)
    if output is not None:
        costs.predictors["byte model"] = byte_model_bits(data, costs.lengths)
    shown = "stdin" if name == "-" else os.path.basename(name)
    if output is not None:
        about = f"nacz {__version__}, model {weights.name or model}, {time.strftime('%Y-%m-%d')}"
        document = page(costs, shown, about).encode("utf-8")
        if output == "-":
            stdout = standard_stream("stdout")
            stdout.write(document)
            stdout.flush()
        else:
            with atomic_output(output, overwrite=force) as file:
                file.write(document)
        return 0
    total = float(costs.bits.sum(dtype="float64"))
    print(f"{shown}: {len(data):,} bytes cost {total / 8:,.0f} bytes, {costs.bits_per_byte:.3f} bits per byte")
    names, carried = costs.carriers()
    print(f"{'':<16}{'bytes with it alone':>20}{'without it':>12}{'carried':>10}")
    for k, name in enumerate(names):
        alone, without = (costs.predictors | costs.only)[name], costs.without.get(name)
        share = 100.0 * float((carried == k).mean()) if carried.size else 0.0
        print(f"{name:<16}{_bytes(alone):>20}{'' if without is None else _bytes(without):>12}{share:>8.1f} %")
    for passage in passages(costs, _SHOWN):
        text = " ".join(readable(data[passage.start : passage.start + passage.size]).split())
        print(f"{passage.bits:8.1f} bits at byte {passage.start:>9,}: {text[:100]}")
    sys.stdout.flush()
    return 0


def _bytes(bits: Any) -> str:
    return f"{float(bits.sum(dtype='float64')) / 8:,.0f}"
