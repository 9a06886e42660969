"""The bytes printed in the specification are the bytes that nacz writes and reads."""

from __future__ import annotations

import io
import re
from pathlib import Path

import xxhash
from nacz.formats import records
from nacz.formats.records import EndRecord, IndexEntry, MemberHeader, ModelIdentity, SegmentHeader
from nacz.formats.writer import MemberWriter

import nacz

SPEC = (Path(records.__file__).parent / "SPEC.md").read_text(encoding="utf-8")
PLAIN = b"Hello, nacz!"


def member(*parts: bytes) -> bytes:
    out = io.BytesIO()
    writer = MemberWriter(out, MemberHeader())
    for part in parts:
        header = SegmentHeader(0, 0, b"", len(part), len(part), xxhash.xxh3_64_intdigest(part))
        writer.segment(header, part, only=len(parts) == 1)
    writer.finish(xxhash.xxh3_64_intdigest(b"".join(parts)))
    return out.getvalue()


def test_the_worked_examples() -> None:
    blocks = [bytes.fromhex(block) for block in re.findall(r"```\n([0-9a-f \n]+)```", SPEC)]
    sole, two, model_header = blocks
    assert sole == member(PLAIN) and len(sole) == 33
    assert two == member(PLAIN[:7], PLAIN[7:]) and len(two) == 86
    assert nacz.decompress(sole) == nacz.decompress(two) == PLAIN
    identity = ModelIdentity("smollm2-135m", bytes.fromhex("00112233"))
    assert model_header == MemberHeader((identity,)).encode()
    entries = (IndexEntry(28, 7), IndexEntry(26, 5))
    assert two.endswith(EndRecord(65, 2, entries, xxhash.xxh3_64_intdigest(PLAIN)).encode())


def test_the_tables_of_the_examples_spell_their_bytes() -> None:
    listed = []
    for table in SPEC.split("| bytes | meaning |")[1:]:
        rows = table.split("\n\n")[0].splitlines()[2:]
        spelled = [re.findall(r"`([0-9a-f ]+)`", row.split("|")[1]) for row in rows]
        listed.append(b"".join(bytes.fromhex(part) for row in spelled for part in row))
    assert listed[0].replace(b"\x48\x65\x21", PLAIN) == member(PLAIN)
    assert listed[1] == member(PLAIN[:7], PLAIN[7:])


def test_limits_and_constants() -> None:
    assert f"`{records.MAGIC.hex(' ').upper()}`" in SPEC
    for limit in (records.MAX_HEADER_BODY, records.MAX_SEGMENT_PLAIN, records.MAX_PARAMS):
        assert f"{limit:,}" in SPEC
    assert records.MAX_SEGMENT_BODY == 4160 and "4,160" in SPEC
    assert records.MAX_END_BODY == records.MAX_SEGMENT_PLAIN == 1 << 28
    assert f"format version {records.VERSION}" in SPEC
