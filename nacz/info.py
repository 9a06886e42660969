"""`nacz info`: one archive after the other in full, from headers alone: what is in it, how it was coded, what decoding
needs and whether that is here. Decodes nothing and loads no weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence

from nacz import codec, levels
from nacz.commands import describe, report
from nacz.errors import NaczError
from nacz.formats.records import VERSION, MemberHeader, SegmentHeader
from nacz.listing import as_object, read_members
from nacz.metadata import read_metadata
from nacz.segment_coder import (
    DEFAULT_LEVEL,
    FLOATS,
    LANGUAGE_MODEL,
    MAX_LEVEL,
    MIN_LEVEL,
    name_of_model,
    predictor_name,
)
from nacz.segments import count_threads, describe_model
from nacz.terminal import format_duration

__all__ = ["decoding_seconds", "show"]

Members = tuple[codec.MemberInfo, ...]


def show(names: Sequence[str], as_json: bool) -> int:
    """Write what is known of each archive to stdout, as text or as a JSON array; return the highest exit code."""
    code, found = 0, []
    for name in names:
        try:
            members = read_members(name)
            found.append(_object(name, members))
            lines = _lines(name, members)
        except Exception as error:
            about, cause, error_code = describe(error)
            report(about or name, cause)
            code = max(code, error_code)
            continue
        if not as_json:
            print("\n".join(lines), flush=True)
    if as_json:
        print(json.dumps(found, indent=2), flush=True)
    return code


def _object(name: str, members: Members) -> dict[str, object]:
    return as_object(name, members) | {
        "format_version": VERSION,
        "files": [_file(member.header) for member in members],
        "parameters": [_parameters(segment) for member in members for segment in member.segments],
        "weights": _weights(members),
        "decompress_seconds": None if (seconds := _seconds(members)) is None else round(seconds, 1),
    }


def _lines(name: str, members: Members) -> list[str]:
    plain, archive = sum(m.plain_size for m in members), sum(m.archive_size for m in members)
    bits = f", {8 * archive / plain:.4f} bpb" if plain else ""
    rows = [("archive", f"{archive:,} bytes for {plain:,}{bits}, format version {VERSION}")]
    for number, member in enumerate(members, 1):
        rows.append((f"member {number}", f"{member.archive_size:,} bytes for {member.plain_size:,}"))
        if file := _file(member.header):
            rows.append(("  made of", ", ".join(f"{key} {value}" for key, value in file.items())))
        for model in member.models:
            rows.append(("  model", describe_model(model)))
        for index, segment in enumerate(member.segments, 1):
            words = [f"{predictor_name(segment.predictor)}, {segment.payload_size:,} bytes for {segment.plain_size:,}"]
            words += [f"{key} {value}" for key, value in _parameters(segment).items()]
            rows.append((f"  segment {index}", ", ".join(words)))
    seconds = _seconds(members)
    needs = ["as long as another program takes" if seconds is None else f"about {format_duration(seconds)}"]
    needs += [f"weights of {model}: {state}" for model, state in _weights(members).items()]
    rows.append(("decoding", "; ".join(needs)))
    return [name] + [f"  {what:<14}{value}" for what, value in rows]


def _seconds(members: Members) -> float | None:
    """About how long members take to decode; None where another program runs the model."""
    segments = [segment for member in members for segment in member.segments]
    if any(segment.predictor in FLOATS for segment in segments):
        return None
    return decoding_seconds(segments, count_threads(0))


def decoding_seconds(segments: Iterable[SegmentHeader], threads: int) -> float:
    """About how long segments take to decode, by the table of levels; those of the byte model hardly count."""
    plain: dict[int, int] = {}
    for segment in segments:
        level = _level(segment)
        plain[level] = plain.get(level, 0) + segment.plain_size
    return sum(levels.seconds(level, size, threads, decompress=True) for level, size in plain.items())


def _level(segment: SegmentHeader) -> int:
    """The level whose decoding is like that of a segment."""
    if segment.predictor != LANGUAGE_MODEL:
        return MIN_LEVEL
    from nacz.predictors.language_model import EFFORTS, Params

    try:
        params = Params.from_bytes(segment.params, segment.plain_size)
    except NaczError:
        return DEFAULT_LEVEL  # another predictor in its place, or another release's
    if params.learning is None:
        return next((n for n, effort in EFFORTS.items() if params.window <= effort.window), DEFAULT_LEVEL)
    found, ways = params.learning, {n: effort.learning for n, effort in EFFORTS.items() if effort.learning is not None}
    return next((n for n, way in ways.items() if found.layers <= way.layers and found.rows >= way.rows), MAX_LEVEL)


def _weights(members: Members) -> dict[str, str]:
    """For each model that is named: whether its weights are here."""
    models = {name_of_model(model) or describe_model(model) for member in members for model in member.models}
    if not models:
        return {}
    from nacz import weights

    here = {
        model.name: "ready" if model.exact else "fetched" if model.gguf else "not on this machine"
        for model in weights.list_models()
    }
    here |= {f"unnamed ({model.identity})": f"ready, imported as {model.name}" for model in weights.imported()}
    return {model: here.get(model, "not known here") for model in sorted(models)}


def _file(header: MemberHeader) -> dict[str, str]:
    """What the archive says of the file that it was made of."""
    said, found = read_metadata(header), {}
    if said.name is not None:
        found["name"] = said.name
    if said.modified is not None:
        found["modified"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(said.modified // 10**9))
    if said.mode is not None:
        found["mode"] = f"{said.mode:o}"
    return found


def _parameters(segment: SegmentHeader) -> dict[str, object]:
    """The parameters of a segment by name, where this release knows them."""
    if segment.predictor == LANGUAGE_MODEL:
        from nacz.predictors.language_model import Params

        try:
            return dict(Params.from_bytes(segment.params, segment.plain_size)._asdict())
        except NaczError:
            pass  # another predictor in its place, or another release's
    if segment.predictor in FLOATS:
        from nacz.predictors.float_params import FloatParams

        try:
            return FloatParams.from_bytes(segment.params, segment.plain_size).described()
        except NaczError:
            pass
    return {"parameters": segment.params.hex()} if segment.params else {}
