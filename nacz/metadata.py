"""The original name, modification time and mode of a file as extra fields of a member header, and back.

What comes back is the archive's word and nobody's promise: a name is one part of a path or nothing, and a mode has no
more than the nine permission bits. Knows the fields; does not know files.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from nacz.errors import CorruptDataError
from nacz.formats.records import MemberHeader
from nacz.formats.varint import MAX_VARINT, decode_varint, encode_varint

__all__ = ["Metadata", "metadata_of", "read_metadata"]

_NAME, _TIME, _MODE = 2, 4, 6
_MAX_NAME = 255
# Names that mean something else than a file on some system.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What an archive says about the file it was made of; None where it says nothing that can be used.

    `modified`: nanoseconds since 1970. `mode`: permission bits.
    """

    name: str | None = None
    modified: int | None = None
    mode: int | None = None


def metadata_of(name: str, status: os.stat_result) -> tuple[tuple[int, bytes], ...]:
    """Return the extra fields for a file of this name (a path) and status."""
    fields = []
    raw = os.fsencode(os.path.basename(name))
    if 0 < len(raw) <= _MAX_NAME:
        fields.append((_NAME, raw))
    if 0 <= status.st_mtime_ns <= MAX_VARINT:
        fields.append((_TIME, encode_varint(status.st_mtime_ns)))
    fields.append((_MODE, encode_varint(stat.S_IMODE(status.st_mode) & 0o777)))
    return tuple(fields)


def read_metadata(header: MemberHeader) -> Metadata:
    """Return what a member header says. A field that no encoder writes counts as absent."""
    fields = dict(header.extras)
    mode = _number(fields.get(_MODE))
    if mode is not None and mode > 0o777:
        mode = None
    return Metadata(_safe_name(fields.get(_NAME, b"")), _number(fields.get(_TIME)), mode)


def _number(field: bytes | None) -> int | None:
    if field is None:
        return None
    try:
        value, end = decode_varint(field, 0, "an extra field")
    except CorruptDataError:
        return None
    return value if end == len(field) else None


def _safe_name(raw: bytes) -> str | None:
    """Return the name if it is one part of a path on every system and hides nothing from a reader's eyes."""
    if not 0 < len(raw) <= _MAX_NAME:
        return None
    name = os.fsdecode(raw)
    stem = name.split(".")[0].strip().lower()
    is_bad = name in (".", "..") or stem in _DEVICES or name[0] in "-~" or name[-1] in " ."
    if is_bad or any(char in '/\\:*?"<>|' or ord(char) < 32 or ord(char) == 127 for char in name):
        return None
    return name
