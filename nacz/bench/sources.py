"""Which bytes `FILE`, `FOLDER` or `CORPUS`, perhaps with `:OFFSET:LENGTH`, stands for, and their honest label.

A corpus is found by name in the folder that NACZ_CORPORA names, then in the current one. What is missing is named with
its size and sha256, and downloaded only where that is asked for. Knows files; does not know compressors.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nacz.bench.download import download
from nacz.errors import UsageError

__all__ = ["CORPORA", "Source", "default_source", "find_sources"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A well-known file: its size in bytes, its sha256, where a person finds it, and the zip that it is in."""

    size: int
    sha256: str
    where: str
    url: str


CORPORA = {
    "enwik8": Corpus(
        100_000_000,
        "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        "enwik8.zip of the Large Text Compression Benchmark (mattmahoney.net/dc/text.html), sha256 "
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        "http://mattmahoney.net/dc/enwik8.zip",
    ),
    "enwik9": Corpus(
        1_000_000_000,
        "159b85351e5f76e60cbe32e04c677847a9ecba3adc79addab6f4c6c7aa3744bc",
        "enwik9.zip of the Large Text Compression Benchmark (mattmahoney.net/dc/text.html)",
        "http://mattmahoney.net/dc/enwik9.zip",
    ),
}

# What SmolLM2 has surely, or cannot have, been trained on. Of other texts nobody knows.
_SEEN = {"enwik8", "enwik9", "alice29.txt", "asyoulik.txt", "plrabn12.txt", "lcet10.txt", "book1", "book2"}
_UNSEEN = {"peps-2026.first300000.txt", "iod2025-technical-report.txt"}
_PREFIX = re.compile(r"(.+?)\.first\d+(\..+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes to measure on: `data`, their label, their sha256 (hex), and whether the model has seen them ("seen",
    "unseen", "unknown")."""

    label: str
    data: bytes
    sha256: str
    seen: str


def default_source() -> Source:
    """The specification of nacz's format, which every installation has."""
    import nacz.formats

    data = (Path(nacz.formats.__path__[0]) / "SPEC.md").read_bytes()
    return _source("nacz's SPEC.md", data, "unseen")


def find_sources(names: Sequence[str], may_download: bool = False) -> Iterator[Source]:
    """Yield the sources that names stand for. Raises UsageError for what is not there, OSError.

    `may_download`: a corpus that is not here may be put into the folder that NACZ_CORPORA names, else the current one.
    """
    for name in names:
        path, cut = _split(name)
        found = _find(path, may_download)
        if found.is_dir():
            if cut is not None:
                raise UsageError(f"{path} is a folder, of which no slice can be taken")
            files = sorted(file for file in found.iterdir() if file.is_file() and file.stat().st_size)
            if not files:
                raise UsageError(f"{path} is a folder without files")
            for file in files:
                yield _slice_of(file, None)
        else:
            yield _slice_of(found, cut)


def _split(name: str) -> tuple[str, tuple[int, int] | None]:
    if os.path.exists(name):
        return name, None
    match = re.fullmatch(r"(.+?):(\d+):(\d+)", name)
    if match is None:
        return name, None
    cut = int(match[2]), int(match[3])
    if cut[1] == 0:
        raise UsageError(f"{name}: a slice has at least one byte")
    return match[1], cut


def _find(name: str, may_download: bool) -> Path:
    path = Path(name)

    def fits(found: Path) -> bool:
        # A folder that is called like a corpus holds it.
        return found.exists() and not (name in CORPORA and found.is_dir())

    if fits(path):
        return path
    folders = [Path(".")]
    if os.environ.get("NACZ_CORPORA"):
        folders.insert(0, Path(os.environ["NACZ_CORPORA"]))
    for folder in folders:
        for pattern in (name, f"*/{name}", f"{name}.first*", f"*/{name}.first*"):
            if ".." not in pattern and not path.is_absolute():
                for found in filter(fits, sorted(folder.glob(pattern))):
                    return found
    if corpus := CORPORA.get(name):
        if may_download:
            return download(name, corpus.url, corpus.size, corpus.sha256, folders[0])
        raise UsageError(
            f"{name} is not here: add --download, or get {corpus.where}, put {name} ({corpus.size:,} bytes, sha256"
            f" {corpus.sha256}) into a folder, and name that folder in NACZ_CORPORA"
        )
    raise UsageError(f"{name}: no such file, folder or corpus; corpora are looked for in the folder NACZ_CORPORA names")


def _slice_of(path: Path, cut: tuple[int, int] | None) -> Source:
    """Read a file or a part. A file called NAME.firstN is a prefix of NAME, and labelled as one."""
    size = path.stat().st_size
    offset, length = cut or (0, size)
    if offset + length > size:
        raise UsageError(f"{path.name} has {size:,} bytes: no slice of {length:,} bytes at {offset:,}")
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    prefix = _PREFIX.fullmatch(path.name)
    name = prefix[1] + (prefix[2] or "") if prefix else path.name
    label = name
    if cut is not None or prefix:
        label = f"{name} [{offset:,}, {offset + length:,})"
    elif (corpus := CORPORA.get(name)) and hashlib.sha256(data).hexdigest() != corpus.sha256:
        label = f"a file called {name}, which is not {name}"
    seen = "seen" if name in _SEEN else "unseen" if path.name in _UNSEEN else "unknown"
    return _source(label, data, seen)


def _source(label: str, data: bytes, seen: str) -> Source:
    return Source(label, data, hashlib.sha256(data).hexdigest(), seen)
