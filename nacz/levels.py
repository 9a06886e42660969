"""What each level costs and gives, as measured, and how long work will take by that.

The figures are those of one text on one machine (TEXT, MACHINE): good for choosing a level and for "about 40 min", not
for comparing machines. Knows figures; does not know files, models or the terminal.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "FIRST_LEVEL_THAT_LEARNS", "LAST_LEVEL_WITHOUT_WEIGHTS", "LEVELS", "MACHINE", "TEXT", "TEXT_IN_WORDS", "Level",
    "markdown", "seconds", "table",
]  # fmt: skip

LAST_LEVEL_WITHOUT_WEIGHTS = 3
FIRST_LEVEL_THAT_LEARNS = 7

TEXT = "peps-2026.first300000.txt:0:50000"
TEXT_IN_WORDS = "50,000 bytes of English that the model has not seen"
MACHINE = "2 cores of an AMD EPYC, 2026-11-27, commit c238b5e"


class Level(NamedTuple):
    """Bits per byte of the whole archive; plain KB per second of CPU in both directions; peak memory in MB."""

    bpb: float
    compress: float
    decompress: float
    memory: int


LEVELS = {
    1: Level(1.911, 1540, 1455, 160),
    2: Level(1.784, 346, 339, 240),
    3: Level(1.678, 63, 65, 340),
    4: Level(0.863, 5.9, 1.1, 520),
    5: Level(0.845, 4.9, 0.77, 520),
    6: Level(0.840, 4.7, 0.73, 530),
    7: Level(0.829, 1.6, 0.65, 1580),
    8: Level(0.824, 0.78, 0.44, 2210),
    9: Level(0.820, 0.51, 0.31, 2170),
}
_START = 1.5  # seconds before the language model says its first word
_LANE = {4: 12_000, 5: 18_000, 6: 24_000, 7: 64_000, 8: 128_000, 9: 400_000}  # bytes of text in a lane, about


def seconds(level: int, size: int, threads: int, decompress: bool = False) -> float:
    """Return about how long `size` plain bytes take. Only the language model uses more than one of `threads`: one for
    each lane, and one that mixes."""
    row = LEVELS[level]
    rate = 1000 * (row.decompress if decompress else row.compress)
    if level <= LAST_LEVEL_WITHOUT_WEIGHTS:
        return size / rate
    return _START + size / rate / max(1, min(threads, 1 + max(1, size // _LANE[level])))


def table() -> list[str]:
    """Return the lines of a table of all levels, for `--help`."""
    lines = ["level  predictor         bpb   compress  decompress  memory"]
    for number, row in LEVELS.items():
        lines.append(
            f"{number:>5}  {_predictor(number):<14} {row.bpb:>6.3f} {_rate(row.compress):>10} "
            f"{_rate(row.decompress):>11} {row.memory:>4} MB"
        )
    return lines


def markdown() -> str:
    """Return the same table for the documents; scripts/levels writes it there."""
    out = ["| level | predictor | bpb | compress, per CPU second | decompress, per CPU second | memory |"]
    out.append("|---|---|---:|---:|---:|---:|")
    for number, row in LEVELS.items():
        rates = f"{_rate(row.compress)} | {_rate(row.decompress)}"
        out.append(f"| {number} | {_predictor(number)} | {row.bpb:.3f} | {rates} | {row.memory} MB |")
    return "\n".join(out) + f"\n\nOn {TEXT_IN_WORDS} (`{TEXT}`); {MACHINE}.\n"


def _predictor(level: int) -> str:
    """In at most 14 characters. From level 7 on the language model learns while it codes."""
    if level <= LAST_LEVEL_WITHOUT_WEIGHTS:
        return "byte model"
    return "language model" if level < FIRST_LEVEL_THAT_LEARNS else "learning model"


def _rate(rate: float) -> str:
    digits = 0 if rate >= 10 else 1 if rate >= 1 else 2
    return f"{rate:.{digits}f} KB/s"
