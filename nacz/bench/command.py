"""`nacz bench` itself: what to measure from the arguments, rows as they come, files at the end.

Knows arguments, files and standard streams; does not know how anything is measured.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nacz import levels
from nacz.bench import report
from nacz.bench.ablation import taken_apart
from nacz.bench.coders import Coder, nacz_coder, parse_peers
from nacz.bench.run import Row, Skipped, measure
from nacz.bench.sources import Source, default_source, find_sources
from nacz.errors import UsageError
from nacz.files import atomic_output
from nacz.segment_coder import MAX_LEVEL, MIN_LEVEL
from nacz.segments import count_threads
from nacz.terminal import format_duration

__all__ = ["bench", "parse_levels"]

_LONG = 30.0  # seconds of work that deserve a warning


def bench(
    names: Sequence[str],
    *,
    levels_text: str,
    peers_text: str,
    ablate: bool,
    may_download: bool,
    threads: int,
    repeat: int,
    outputs: dict[str, str],
    state: str | None,
    quiet: bool,
    command: Sequence[str],
) -> int:
    """Measure, show, write. `ablate`: also take the levels apart. `may_download`: corpora that are missing.
    `outputs`: paths by kind, of "json", "html", "png", "markdown"; `-` is stdout for JSON.

    Returns 0. Raises UsageError and what measuring raises.
    """
    coders = [nacz_coder(level) for level in parse_levels(levels_text)]
    if ablate:
        apart = [coder for level in parse_levels(levels_text) for coder in taken_apart(level)]
        if not apart:
            raise UsageError("only levels 4 to 9 have an ensemble that --ablate could take apart")
        coders += apart
    coders += parse_peers(peers_text)
    if "png" in outputs:
        from nacz.bench import plot

        plot.require()  # now, not after an hour of measuring
    sources = list(find_sources(names, may_download)) if names else [default_source()]
    to_json = outputs.get("json") == "-"
    table = sys.stderr if to_json else sys.stdout
    threads = count_threads(threads)

    def show(line: str) -> None:
        if not (to_json and quiet):
            print(line, file=table, flush=True)

    for line in report.caveats(threads=threads):
        show("- " + line)
    if not quiet:
        _warn(sources, coders, threads, repeat)
    rows: list[Row | Skipped] = []
    wanted = not quiet and sys.stderr is not None and sys.stderr.isatty()

    def announce(what: str) -> None:
        if wanted:
            print(f"\r\x1b[K{what} ...", end="\r", file=sys.stderr, flush=True)

    for source in sources:
        show(report.text_head(source.label, len(source.data)))
        for row in measure(
            [source], coders, threads=threads, repeat=repeat, state=Path(state) if state else None, announce=announce
        ):
            rows.append(row)
            show(report.text_row(row))
        of_source = [row for row in rows if isinstance(row, Row) and row.sha256 == source.sha256]
        for line in report.text_parts(of_source):
            show(line)
    _write(rows, outputs, "nacz bench " + shlex.join(command))
    return 0


def parse_levels(text: str) -> list[int]:
    """Read "1-9", "1,3,6", "none". Raises UsageError."""
    if text == "none":
        return []
    found: list[int] = []
    for word in text.split(","):
        first, dash, last = word.partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)):
            raise UsageError(f"not levels such as 1-9 or 1,3,6: {text}")
        found += range(int(first), int(last if dash else first) + 1)
    if not found or not all(MIN_LEVEL <= level <= MAX_LEVEL for level in found):
        raise UsageError(f"levels are {MIN_LEVEL} to {MAX_LEVEL}: {text}")
    return list(dict.fromkeys(found))


def _warn(sources: Sequence[Source], coders: Sequence[Coder], threads: int, repeat: int) -> None:
    size = sum(len(source.data) for source in sources)
    total = sum(
        levels.seconds(int(coder.setting), size, threads) + levels.seconds(int(coder.setting), size, threads, True)
        for coder in coders
        if coder.name == "nacz"
    )
    if total * repeat > _LONG:
        print(f"nacz: bench: about {format_duration(total * repeat)} for nacz alone", file=sys.stderr, flush=True)


def _write(rows: Sequence[Row | Skipped], outputs: dict[str, str], command: str) -> None:
    measured = [row for row in rows if isinstance(row, Row)]
    picture = None
    if "png" in outputs or "html" in outputs:
        from nacz.bench.plot import png

        try:
            picture = png(measured)
        except UsageError:
            if "png" in outputs:
                raise
    documents: dict[str, bytes] = {}
    if "json" in outputs:
        documents["json"] = (json.dumps(report.as_object(rows, command), indent=2) + "\n").encode()
    if "markdown" in outputs:
        beside = os.path.dirname(outputs["markdown"]) or "."
        link = os.path.relpath(outputs["png"], beside).replace(os.sep, "/") if "png" in outputs else None
        documents["markdown"] = report.markdown(rows, command, link).encode()
    if "html" in outputs:
        documents["html"] = report.html_page(rows, command, picture).encode()
    if "png" in outputs and picture is not None:
        documents["png"] = picture
    for kind, document in documents.items():
        if outputs[kind] == "-":
            sys.stdout.write(document.decode())
            sys.stdout.flush()
        else:
            with atomic_output(outputs[kind], overwrite=True) as file:
                file.write(document)
