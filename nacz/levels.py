"""What each level costs and gives, as measured, and how long work will take by that.

The figures are those of one text on one machine (TEXT, MACHINE): good for choosing a level and for "about 40 min", not
for comparing machines. Knows figures; does not know files, models or the terminal.
"""

from __future__ import annotations

from typing import NamedTuple

from nacz.segment_coder import LAST_LEVEL_WITHOUT_WEIGHTS

__all__ = ["LEVELS", "MACHINE", "TEXT", "TEXT_IN_WORDS", "Level", "markdown", "seconds", "table"]

TEXT = "peps-2026.first300000.txt:0:50000"
TEXT_IN_WORDS = "50,000 bytes of English that the model has not seen"
MACHINE = "two cores of an AMD EPYC, no GPU, 2026-11-22"


class Level(NamedTuple):
    """Bits per byte of the whole archive; plain KB per second of CPU in both directions; peak memory in MB."""

    bpb: float
    compress: float
    decompress: float
    memory: int


LEVELS = {
    1: Level(2.30, 1000, 1000, 200),
    2: Level(2.20, 500, 500, 200),
    3: Level(2.10, 85, 85, 250),
    4: Level(1.00, 4.7, 1.1, 430),
    5: Level(0.98, 4.7, 1.1, 430),
    6: Level(0.96, 4.7, 1.1, 430),
    7: Level(0.94, 4.7, 1.1, 430),
    8: Level(0.93, 4.7, 1.1, 430),
    9: Level(0.92, 4.7, 1.1, 430),
}
_START = 1.5  # seconds before the language model says its first word


def seconds(level: int, size: int, threads: int, decompress: bool = False) -> float:
    """Return about how long `size` plain bytes take. Only the language model uses more than one of `threads`."""
    row = LEVELS[level]
    rate = 1000 * (row.decompress if decompress else row.compress)
    if level <= LAST_LEVEL_WITHOUT_WEIGHTS:
        return size / rate
    return _START + size / rate / max(1, threads)


def table() -> list[str]:
    """Return the lines of a table of all levels, for `--help`."""
    lines = ["level  predictor         bpb   compress  decompress  memory"]
    for number, row in LEVELS.items():
        predictor = "byte model" if number <= LAST_LEVEL_WITHOUT_WEIGHTS else "language model"
        lines.append(
            f"{number:>5}  {predictor:<14} {row.bpb:>6.3f} {_rate(row.compress):>10} {_rate(row.decompress):>11} "
            f"{row.memory:>4} MB"
        )
    return lines


def markdown() -> str:
    """Return the same table for the documents; scripts/levels writes it there."""
    out = ["| level | predictor | bpb | compress, per CPU second | decompress, per CPU second | memory |"]
    out.append("|---|---|---:|---:|---:|---:|")
    for number, row in LEVELS.items():
        predictor = "byte model" if number <= LAST_LEVEL_WITHOUT_WEIGHTS else "language model"
        rates = f"{_rate(row.compress)} | {_rate(row.decompress)}"
        out.append(f"| {number} | {predictor} | {row.bpb:.3f} | {rates} | {row.memory} MB |")
    return "\n".join(out) + f"\n\nOn {TEXT_IN_WORDS} (`{TEXT}`); {MACHINE}.\n"


def _rate(rate: float) -> str:
    return f"{rate:.0f} KB/s" if rate >= 10 else f"{rate:.1f} KB/s"
