"""`nacz cat` and `nacz repair`: parts of archives, and what is left of damaged ones.

Knows files, standard streams and messages; does not know where in an archive things are.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
from collections.abc import Sequence
from typing import cast

from nacz.commands import Settings, naming, report, run, standard_stream
from nacz.errors import CorruptDataError, LimitError, UsageError
from nacz.files import atomic_output
from nacz.random_access import RandomReader, plain_segments
from nacz.repair import Lost, Salvage, salvage
from nacz.segments import SegmentDecoder

__all__ = ["cat_files", "repair_file"]


def cat_files(names: Sequence[str], span: str | None, settings: Settings) -> int:
    """Write the plain bytes of archives, or `span` ("A:B") of each, to stdout. Returns the highest exit code."""
    first, last = _parsed(span)

    def cat(name: str, settings: Settings) -> None:
        out = standard_stream("stdout")
        decoder = SegmentDecoder(settings.options, settings.threads, memory_limit=settings.memory_limit)
        if name == "-":
            pieces = plain_segments(standard_stream("stdin"), decoder, settings.max_output)
            if span is None:
                for piece in pieces:
                    with naming("stdout"):
                        out.write(piece)
            else:
                # The end is not known before all is read; only then can a place be counted from there.
                plain = b"".join(pieces)
                with naming("stdout"):
                    out.write(plain[first:last])
        else:
            with open(name, "rb") as file:
                reader = RandomReader(file, decoder)
                start, stop, _ = slice(first, last).indices(reader.size)
                if settings.max_output is not None and stop - start > settings.max_output:
                    raise LimitError(f"more bytes than allowed: {stop - start}")
                for piece in reader.read_range(start, stop):
                    with naming("stdout"):
                        out.write(piece)
        with naming("stdout"):
            out.flush()

    return run(cat, names, settings)


def _parsed(span: str | None) -> tuple[int | None, int | None]:
    if span is None:
        return None, None
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", span)
    if match is None:
        raise UsageError(f"not a range A:B of bytes: {span}")
    return (int(match[1]) if match[1] else None), (int(match[2]) if match[2] else None)


def repair_file(name: str, settings: Settings, as_json: bool) -> int:
    """Recover what is left of one archive; report what is lost. Returns 0 or 2.

    Nothing is written when nothing is recovered.
    """
    found: list[Salvage] = []

    def repair(name: str, settings: Settings) -> None:
        decoder = SegmentDecoder(settings.options, settings.threads, memory_limit=settings.memory_limit)
        data = _all_of(name)
        if settings.output == "-":
            out = standard_stream("stdout")
            found.append(salvage(data, out, decoder, settings.max_output))
            out.flush()
        else:
            assert settings.output is not None
            if os.path.exists(settings.output) and name != "-" and os.path.samefile(name, settings.output):
                raise UsageError("input and output are the same file")
            with naming(settings.output), atomic_output(settings.output, overwrite=settings.force) as file:
                found.append(salvage(data, file, decoder, settings.max_output))
                if not found[0].recovered and found[0].lost:
                    raise CorruptDataError("nothing can be recovered")
        if found[0].lost:
            raise CorruptDataError(
                f"{len(found[0].lost)} parts are lost; {found[0].plain_size} bytes were recovered to {settings.output}"
            )

    code = run(repair, [name], settings)
    for result in found:
        if as_json and settings.output != "-":
            print(json.dumps(_as_object(result), indent=2), flush=True)
        elif not settings.quiet:
            for lost in result.lost:
                report(name, _line(lost))
    return code


def _all_of(name: str) -> bytes:
    if name == "-":
        return standard_stream("stdin").read()
    with open(name, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        # Slices of a map are bytes, and the whole is never in memory.
        return cast(bytes, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _line(lost: Lost) -> str:
    if lost.plain_start is None:
        plain = "an unknown part of the plain data"
    elif lost.plain_end is None:
        plain = f"plain bytes from {lost.plain_start} on"
    else:
        plain = f"plain bytes {lost.plain_start} to {lost.plain_end - 1}"
    return f"lost: {plain}, at bytes {lost.archive_start} to {lost.archive_end} of the archive: {lost.cause}"


def _as_object(result: Salvage) -> dict[str, object]:
    return {
        "recovered_size": result.plain_size,
        "recovered": [dataclasses.asdict(part) for part in result.recovered],
        "lost": [dataclasses.asdict(lost) for lost in result.lost],
    }
