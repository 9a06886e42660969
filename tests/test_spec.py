"""The bytes printed in the specification are the bytes that nacz writes and reads."""

from __future__ import annotations

import io
import re
import zlib
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
        checks = zlib.crc32(part), xxhash.xxh3_64_intdigest(part)
        writer.segment(SegmentHeader(0, 0, b"", len(part), len(part), *checks), part, only=len(parts) == 1)
    writer.finish(xxhash.xxh3_64_intdigest(b"".join(parts)))
    return out.getvalue()


def test_the_worked_examples() -> None:
    blocks = [bytes.fromhex(block) for block in re.findall(r"```\n([0-9a-f \n]+)```", SPEC)]
    example, model_header, end = blocks
    assert example == member(PLAIN) and len(example) == 46
    assert nacz.decompress(example) == PLAIN
    identity = ModelIdentity("smollm2-135m", bytes.fromhex("0011223344556677"), bytes.fromhex("8899aabb"), 1)
    assert model_header == MemberHeader((identity,)).encode()
    entries = (IndexEntry(30, 7), IndexEntry(28, 5))
    assert end == EndRecord(69, 2, entries, xxhash.xxh3_64_intdigest(PLAIN)).encode()
    assert member(PLAIN[:7], PLAIN[7:]).endswith(end)


def test_the_table_of_the_example_spells_its_bytes() -> None:
    rows = SPEC.split("| bytes | meaning |")[1].split("\n\n")[0]
    spelled = [re.findall(r"`([0-9a-f ]+)`", row.split("|")[1]) for row in rows.splitlines()[2:]]
    listed = b"".join(bytes.fromhex(part) for row in spelled for part in row)
    assert listed.replace(b"\x48\x65\x21", PLAIN) == member(PLAIN)


def test_limits_and_constants() -> None:
    assert f"`{records.MAGIC.hex(' ').upper()}`" in SPEC
    for limit in (records.MAX_HEADER_BODY, records.MAX_SEGMENT_PLAIN, records.MAX_PARAMS):
        assert f"{limit:,}" in SPEC
    assert records.MAX_SEGMENT_BODY == 4160 and "4,160" in SPEC
    assert records.MAX_END_BODY == records.MAX_SEGMENT_PLAIN == 1 << 28
    assert f"format version {records.VERSION}" in SPEC
