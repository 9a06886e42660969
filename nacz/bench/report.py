"""The rows of a benchmark for people and programs: caveats, a table as text, as Markdown, as a page; JSON.

Knows rows and words; measures nothing.
"""

from __future__ import annotations

import base64
import html
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nacz._version import __version__
from nacz.bench import ablation
from nacz.bench.run import Row, Skipped, commit, machine
from nacz.segments import count_threads
from nacz.terminal import format_size
from nacz.weights.fetch import known_models

__all__ = ["as_object", "caveats", "html_page", "markdown", "text_head", "text_parts", "text_row"]

_HEAD = ("bytes", "bpb", "compress", "decompress", "CPU s", "start", "peak", "seen")
_PARTS = "{:<24} {:>10} {:>10} {:>16} {:>18}"
_COLUMNS = "{:<24} {:>10} {:>7} {:>12} {:>12} {:>13} {:>7} {:>8}"


def caveats(rows: Sequence[Row] = (), threads: int = 0) -> list[str]:
    """What to know before the figures; more can be said when the rows are there."""
    model = known_models()[0]
    threads = max([threads, *(row.threads for row in rows)])
    said = [
        f"Weights are not counted: levels 4 to 9 of nacz need {model.name} at both ends,"
        f" {format_size(model.wheel_size)} to fetch.",
        "The model has read much of the web: Wikipedia (enwik8) and old books surely, other texts perhaps."
        " The fair figures are those of texts written after it was trained (unseen).",
        "bpb counts the whole archive over the bytes of the original; a slice [a, b) compares with nothing but itself.",
        "KB/s and CPU seconds are of the coding alone; start is what comes before. nacz uses"
        f" {threads} threads, the peers one; everything was decoded and compared.",
    ]
    busy, cores = _load(), count_threads(0)
    if rows and busy > 1.5 * cores:
        said.append(
            f"The machine had other work (load {busy:.1f} on {cores} cores when this was written): wall-clock speeds"
            " are too low, CPU seconds are nearer to the truth."
        )
    if any(row.plain_size < 1_000_000 for row in rows):
        said.append("Below 1 MB the peers have had little to learn from; a pretrained model gains most there.")
    return said


def text_head(label: str, size: int) -> str:
    """The first lines of the table of one source."""
    return f"\n{label}, {size:,} bytes\n" + _COLUMNS.format("", *_HEAD[:-1])


def text_row(row: Row | Skipped) -> str:
    """One line of the table."""
    if isinstance(row, Skipped):
        return f"{row.label:<24} skipped: {row.cause}"
    return _COLUMNS.format(row.label, *_cells(row)[:-1])


def text_parts(rows: Sequence[Row]) -> list[str]:
    """Lines on what each part of a level gave, from the rows of one source; none where nothing was taken apart."""
    out = []
    for level, parts in ablation.parts(rows).items():
        out += ["", f"What each part of level {level} gives", _PARTS.format("", *ablation.HEAD)]
        out += [_PARTS.format(*ablation.cells(part)) for part in parts]
        out.append(ablation.NOTE)
    return out


def markdown(rows: Sequence[Row | Skipped], command: str, picture: str | None = None) -> str:
    """A document with the caveats first, then a table for each source, and how to make it again.

    `picture`: where a PNG lies, seen from the document.
    """
    measured = [row for row in rows if isinstance(row, Row)]
    out = [
        "# Benchmarks", "",
        f"Measured {time.strftime('%Y-%m-%d')} at commit {commit() or 'unknown'} (nacz {__version__}) on {machine()}.",
        "The one command that made this page:", "", "```sh", command, "```", "",
    ]  # fmt: skip
    out += [f"- {line}" for line in caveats(measured)]
    if picture is not None:
        out += ["", f"![Bits per byte against speed; the tables have the same figures]({picture})"]
    for label, some in _by_source(measured).items():
        out += ["", f"## {label}, {some[0].plain_size:,} bytes ({_seen(some[0])})", ""]
        out += ["| | " + " | ".join(_HEAD[:-1]) + " |", "|---|" + "---:|" * (len(_HEAD) - 1)]
        whole = [row for row in some if not ablation.is_ablated(row)]
        best = min((row.archive_size for row in whole), default=0)
        for row in whole:
            cells = _cells(row)[:-1]
            if row.archive_size == best:
                cells = [f"**{cell}**" for cell in cells[:2]] + cells[2:]
            out.append(f"| {row.label} | " + " | ".join(cells) + " |")
        for level, parts in ablation.parts(some).items():
            out += ["", f"### What each part of level {level} gives", ""]
            out += ["| | " + " | ".join(ablation.HEAD) + " |", "|---|" + "---:|" * len(ablation.HEAD)]
            out += ["| " + " | ".join(ablation.cells(part)) + " |" for part in parts]
            out += ["", ablation.NOTE]
    skipped = {row.label: row.cause for row in rows if isinstance(row, Skipped)}
    if skipped:
        out += ["", *(f"Skipped: {label}: {cause}." for label, cause in skipped.items())]
    versions = {row.coder: row.version for row in measured if row.coder != "nacz"}
    if versions:
        out += ["", "Peers: " + ", ".join(f"{name} ({version})" for name, version in versions.items()) + "."]
    return "\n".join(out) + "\n"


def html_page(rows: Sequence[Row | Skipped], command: str, picture: bytes | None) -> str:
    """The same as one page that loads nothing; `picture`: a PNG."""
    measured = [row for row in rows if isinstance(row, Row)]
    parts = [_STYLE, "<h1>nacz bench</h1>"]
    parts.append(f"<p>{html.escape(machine())}; commit {html.escape(commit() or 'unknown')}; ")
    parts.append(f"{time.strftime('%Y-%m-%d')}</p><pre>{html.escape(command)}</pre><ul>")
    parts += [f"<li>{html.escape(line)}</li>" for line in caveats(measured)]
    parts.append("</ul>")
    if picture is not None:
        data = base64.b64encode(picture).decode()
        words = "Bits per byte against speed; the tables below have the same figures"
        parts.append(f'<img alt="{words}" src="data:image/png;base64,{data}">')
    for label, some in _by_source(measured).items():
        parts.append(f"<table><caption>{html.escape(label)}, {some[0].plain_size:,} bytes ({_seen(some[0])})</caption>")
        parts.append("<tr><th></th>" + "".join(f'<th scope="col">{name}</th>' for name in _HEAD[:-1]) + "</tr>")
        for row in some:
            if not ablation.is_ablated(row):
                parts.append(_html_row(row.label, _cells(row)[:-1]))
        parts.append("</table>")
        for level, taken in ablation.parts(some).items():
            parts.append(f"<table><caption>What each part of level {level} gives: {html.escape(label)}</caption>")
            parts.append("<tr><th></th>" + "".join(f'<th scope="col">{name}</th>' for name in ablation.HEAD) + "</tr>")
            parts += [_html_row(cells[0], cells[1:]) for cells in map(ablation.cells, taken)]
            parts.append(f"</table><p>{html.escape(ablation.NOTE)}</p>")
    parts += [f"<p>{html.escape(f'skipped: {row.label}: {row.cause}')}</p>" for row in rows if isinstance(row, Skipped)]
    return "\n".join(parts) + "\n"


def as_object(rows: Sequence[Row | Skipped], command: str) -> dict[str, Any]:
    """All of it, as JSON has it."""
    measured = [row for row in rows if isinstance(row, Row)]
    return {
        "nacz": __version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "command": command,
        "caveats": caveats(measured),
        "rows": [asdict(row) | {"bits_per_byte": row.bits_per_byte} for row in measured],
        "skipped": [asdict(row) for row in rows if isinstance(row, Skipped)],
    }


def _html_row(head: str, cells: Sequence[str]) -> str:
    inside = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{html.escape(head)}</th>{inside}</tr>'


def _load() -> float:
    """How many processes wanted to run in the last five minutes; 0 where the system does not tell."""
    return os.getloadavg()[1] if hasattr(os, "getloadavg") else 0.0


def _cells(row: Row) -> list[str]:
    size = row.plain_size / 1000
    return [
        f"{row.archive_size:,}",
        f"{row.bits_per_byte:.3f}",
        _rate(size / max(row.compress_seconds, 1e-9)),
        _rate(size / max(row.decompress_seconds, 1e-9)),
        f"{row.compress_cpu:.2f} / {row.decompress_cpu:.2f}",
        f"{row.start:.1f} s",
        "-" if row.memory is None else f"{row.memory / 1e6:.0f} MB",
        row.seen,
    ]


def _rate(rate: float) -> str:
    digits = 0 if rate >= 100 else 1 if rate >= 1 else 3
    return f"{rate:,.{digits}f} KB/s"


def _seen(row: Row) -> str:
    return {
        "seen": "the model has seen it",
        "unseen": "written after the model was trained",
        "unknown": "whether the model has seen it is not known",
    }[row.seen]


def _by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.text, []).append(row)
    return found


_STYLE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>nacz bench</title>
<meta name="viewport" content="width=device-width"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
pre{background:#f2f2f2;padding:.6rem;overflow:auto}img{max-width:100%}table{border-collapse:collapse;margin:1.5rem 0}
caption{text-align:left;font-weight:600;padding:.3rem 0}th,td{padding:.2rem .8rem;text-align:right;white-space:nowrap}
th:first-child{text-align:left;font-weight:500}tr:nth-child(odd) td,tr:nth-child(odd) th{background:#f6f6f6}
</style>"""
