"""`nacz list`: what the headers of archives say, as a table or as JSON. Decodes nothing, loads no model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from nacz import codec
from nacz.commands import Settings, describe, report, standard_stream
from nacz.segment_coder import name_of_model, predictor_name
from nacz.segments import describe_model

__all__ = ["as_object", "list_files", "read_members"]

_ROW = "{:>12} {:>12} {:>8} {:>8}  {:<24} {}"


def list_files(names: Sequence[str], settings: Settings, as_json: bool) -> int:
    """Write a table, or a JSON array, to stdout; return the highest exit code of the files."""
    code = 0
    found: list[tuple[str, tuple[codec.MemberInfo, ...]]] = []
    for name in names:
        try:
            found.append((name, read_members(name)))
        except Exception as error:
            about, cause, error_code = describe(error)
            report(about or name, cause)
            code = max(code, error_code)
    if as_json:
        print(json.dumps([as_object(name, members) for name, members in found], indent=2))
    elif found:
        if not settings.quiet:
            print(_ROW.format("archive", "plain", "bpb", "segments", "predictor", "name"))
        for name, members in found:
            print(_row(name, members))
            if settings.verbose:
                _print_details(members)
    sys.stdout.flush()
    return code


def read_members(name: str) -> tuple[codec.MemberInfo, ...]:
    """Return the members of an archive, `-` being stdin. Raises OSError and CorruptDataError."""
    if name == "-":
        return codec.archive_info(standard_stream("stdin"))
    if os.path.isdir(name):
        raise IsADirectoryError(0, "is a directory", name)
    with open(name, "rb") as file:
        return codec.archive_info(file)


def _row(name: str, members: tuple[codec.MemberInfo, ...]) -> str:
    archive = sum(member.archive_size for member in members)
    plain = sum(member.plain_size for member in members)
    segments = [segment for member in members for segment in member.segments]
    predictors = ", ".join(predictor_name(p) for p in sorted({s.predictor for s in segments})) or "none"
    models = sorted({name_of_model(model) or "unnamed" for member in members for model in member.models})
    if models:
        predictors += f" ({', '.join(models)})"
    bits = f"{8 * archive / plain:.4f}" if plain else "-"
    return _ROW.format(archive, plain, bits, len(segments), predictors, name)


def _print_details(members: tuple[codec.MemberInfo, ...]) -> None:
    for number, member in enumerate(members, 1):
        print(f"  member {number}: {member.archive_size} bytes for {member.plain_size}")
        for model in member.models:
            print(f"    model {describe_model(model)}")
        for index, segment in enumerate(member.segments, 1):
            print(
                f"    segment {index}: {segment.payload_size} bytes for {segment.plain_size}, "
                f"{predictor_name(segment.predictor)}, parameters {segment.params.hex() or 'none'}, "
                f"XXH3-64 {segment.plain_hash:016x}"
            )


def as_object(name: str, members: tuple[codec.MemberInfo, ...]) -> dict[str, object]:
    """Return all that the headers say, as JSON has it."""
    return {
        "name": name,
        "archive_size": sum(member.archive_size for member in members),
        "plain_size": sum(member.plain_size for member in members),
        "members": [
            {
                "archive_size": member.archive_size,
                "plain_size": member.plain_size,
                "models": [
                    {"name": name_of_model(model), "digest": model.digest.hex()} for model in member.models
                ],
                "segments": [
                    {
                        "predictor": predictor_name(segment.predictor),
                        "predictor_id": segment.predictor,
                        "model": segment.model,
                        "plain_size": segment.plain_size,
                        "payload_size": segment.payload_size,
                        "params": segment.params.hex(),
                        "plain_xxh3_64": f"{segment.plain_hash:016x}",
                    }
                    for segment in member.segments
                ],
            }
            for member in members
        ],
    }
