"""What each part of a level gives and costs: which archives to make for that, and how to read them.

Each member of the ensemble is once left out and once the only one; where the network learns, it is also kept as it is.
What leaving out costs is what a part gives beyond all others; what it gives alone overlaps with what others give. Knows
options and rows; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nacz.bench.coders import Coder, nacz_coder, words
from nacz.bench.run import Row
from nacz.predictors.members import MEMBERS

__all__ = ["HEAD", "NOTE", "Part", "cells", "is_ablated", "parts", "taken_apart"]

HEAD = ("bytes", "change", "compress, CPU s", "decompress, CPU s")
NOTE = (
    "A change of what is left out is against all of it, of a member alone against the level without the ensemble. The"
    " weights that evidence starts with were found with all members together."
)


class Part(NamedTuple):
    """A row of the table: what was coded with, the archive in bytes, its change in percent against all of the level
    (for a member alone against the level without the ensemble), CPU seconds both ways."""

    what: str
    size: int
    change: float | None
    compress: float
    decompress: float


def taken_apart(level: int) -> list[Coder]:
    """The coders to measure beside the level itself. Empty for levels without the language model."""
    from nacz.predictors.language_model import EFFORTS

    effort = EFFORTS.get(level)
    if effort is None:
        return []
    names = [name for name, bit in MEMBERS.items() if effort.members & bit]
    choices: list[dict[str, Any]] = [{"ensemble": _without(name, names)} for name in names]
    if effort.learning is not None:
        choices.append({"learn": 0})
        choices.append({"learn": 0, "ensemble": "none"})
    choices.append({"ensemble": "none"})
    choices += [{"ensemble": name} for name in names]
    return [nacz_coder(level, choice) for choice in choices]


def is_ablated(row: Row) -> bool:
    """Tell whether a row is one of a level that was taken apart."""
    return row.coder == "nacz" and bool(row.options)


def parts(rows: Sequence[Row]) -> dict[int, list[Part]]:
    """Level to the table of its parts, from the rows of one text; all of the level comes first, if it was measured."""
    found: dict[int, list[Part]] = {}
    for level in dict.fromkeys(int(row.setting) for row in rows if is_ablated(row)):
        some = [row for row in rows if row.coder == "nacz" and row.setting == str(level)]
        whole = next((row for row in some if not row.options), None)
        bare = next((row for row in some if row.options == {"ensemble": "none"}), None)
        found[level] = []
        for row in sorted(some, key=is_ablated):
            against = bare if _is_alone(row) else whole
            change = None
            if against is not None and row is not against:
                change = 100.0 * (row.archive_size / against.archive_size - 1.0)
            what = words(row.options) if row.options else "all of it"
            found[level].append(Part(what, row.archive_size, change, row.compress_cpu, row.decompress_cpu))
    return found


def cells(part: Part) -> list[str]:
    """A row of the table as words: what was coded with, then what HEAD names."""
    change = "" if part.change is None else f"{part.change:+.2f} %"
    return [part.what, f"{part.size:,}", change, f"{part.compress:.1f}", f"{part.decompress:.1f}"]


def _without(name: str, names: Sequence[str]) -> str:
    return ",".join(other for other in names if other != name) or "none"


def _is_alone(row: Row) -> bool:
    return set(row.options) == {"ensemble"} and row.options["ensemble"] in MEMBERS
