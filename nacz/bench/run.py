"""All measurements in order: every source with every coder, compressed, decompressed and compared.

Rows that a state file holds for the same bytes, coder, version and machine are not measured again; each new row is
added to it at once, so that a run can be ended and gone on with. Knows rows; does not know how they are shown.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from nacz.bench.coders import Coder, Missing
from nacz.bench.sources import Source
from nacz.errors import InternalError

__all__ = ["Row", "Skipped", "commit", "machine", "measure"]


@dataclass(frozen=True, slots=True)
class Row:
    """What one coder did with one source. Times are seconds, `start` those before the first byte; sizes are bytes.

    `memory`: the larger peak of the two processes, None where the system does not tell.
    """

    text: str
    sha256: str
    seen: str
    coder: str
    setting: str
    options: dict[str, Any]
    version: str
    threads: int
    plain_size: int
    archive_size: int
    compress_seconds: float
    compress_cpu: float
    decompress_seconds: float
    decompress_cpu: float
    start: float
    memory: int | None
    machine: str
    commit: str

    @property
    def label(self) -> str:
        return Coder(self.coder, self.setting, self.options).label

    @property
    def bits_per_byte(self) -> float:
        """Bits of the whole archive over bytes of the original."""
        return 8 * self.archive_size / self.plain_size

    @property
    def key(self) -> str:
        """Equal for rows that need not be measured twice."""
        same = ("sha256", "coder", "setting", "options", "version", "threads", "machine", "commit")
        return json.dumps([getattr(self, name) for name in same], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A coder that is not here, and what would bring it."""

    label: str
    cause: str


def measure(
    sources: Iterable[Source],
    coders: Sequence[Coder],
    *,
    threads: int,
    repeat: int = 1,
    state: Path | None = None,
    announce: Callable[[str], None] = lambda what: None,
) -> Iterator[Row | Skipped]:
    """Yield a row for each source and coder, in order. The best time of `repeat` runs counts.

    Raises InternalError when something decodes to other bytes, and OSError.
    """
    done = {row.key: row for row in _read(state)}
    for source in sources:
        for coder in coders:
            try:
                version = coder.version()
            except Missing as error:
                yield Skipped(coder.label, str(error))
                continue
            empty = Row(
                source.label, source.sha256, source.seen, coder.name, coder.setting, coder.options, version,
                threads if coder.name == "nacz" else 1, len(source.data), 0, 0, 0, 0, 0, 0, None, machine(),
                commit() if coder.name == "nacz" else "",
            )  # fmt: skip
            if empty.key in done:
                yield done[empty.key]
                continue
            announce(f"{source.label}: {coder.label}")
            try:
                row = _measured(empty, coder, source.data, repeat)
            except Missing as error:
                yield Skipped(coder.label, str(error))
                continue
            if state is not None:
                with state.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            yield row


def _measured(empty: Row, coder: Coder, data: bytes, repeat: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        plain, archive, back = (Path(folder) / name for name in ("plain", "archive", "back"))
        plain.write_bytes(data)
        best: dict[str, float] = {}
        memory: list[int | None] = []
        for _ in range(repeat):
            for direction, source, target in (("compress", plain, archive), ("decompress", archive, back)):
                took = _child(coder, direction, empty.threads, source, target)
                for name, value in (("seconds", took["seconds"]), ("cpu", took["cpu"])):
                    key = f"{direction}_{name}"
                    best[key] = min(value, best.get(key, value))
                best["start"] = min(took["start"], best.get("start", took["start"]))
                memory.append(took["memory"])
            if hashlib.sha256(back.read_bytes()).hexdigest() != empty.sha256:
                raise InternalError(f"{coder.label} decoded {empty.text} to other bytes; no figures of it count")
        peaks = [peak for peak in memory if peak is not None]
        values = asdict(empty) | best
        values |= {"archive_size": archive.stat().st_size, "memory": max(peaks) if peaks else None}
        return Row(**values)


def _child(coder: Coder, direction: str, threads: int, source: Path, target: Path) -> dict[str, Any]:
    spec = asdict(coder) | {"direction": direction, "threads": threads, "input": str(source), "output": str(target)}
    # -P keeps a file beside the user from being imported in place of a module.
    command = [sys.executable, "-P", "-m", "nacz.bench.child"]
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        kind, _, words = last.partition(": ")
        if kind.endswith("Missing"):
            raise Missing(words)
        raise InternalError(f"{coder.label} failed to {direction}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _read(state: Path | None) -> Iterator[Row]:
    """Rows of a state file. A line that is cut off, or of another release, is passed over."""
    if state is None or not state.exists():
        return
    names = {field.name for field in fields(Row)}
    for line in state.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and set(values) == names:
            yield Row(**values)


@lru_cache(maxsize=1)
def machine() -> str:
    """Processor, cores and system, for the record."""
    from nacz.doctor import processor
    from nacz.segments import count_threads

    python = f"Python {platform.python_version()}"
    return f"{processor()}, {count_threads(0)} cores, {platform.system()} {platform.machine()}, {python}"


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of the sources that run, where they are in a git checkout, else ""."""
    import nacz

    folder = Path(nacz.__file__).parent.parent
    if not (folder / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
