"""The bytes printed in the specification are the bytes that nacz writes and reads."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path

import xxhash
from nacz.coder.range_coder import RangeDecoder, RangeEncoder
from nacz.formats import records
from nacz.formats.records import EndRecord, IndexEntry, MemberHeader, ModelIdentity, SegmentHeader
from nacz.formats.writer import MemberWriter

import nacz
from nacz.predictors.language_model import Params
from nacz.predictors.transformer import CONTRACT
from nacz.weights.pinned import DIGESTS, PINNED

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
    sole, two, model_header, _ = blocks
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


def test_the_example_of_the_language_model() -> None:
    golden = (Path(__file__).parent / "golden" / "v1" / "language-model-lanes.nacz").read_bytes()
    start = bytes.fromhex(re.findall(r"```\n([0-9a-f \n]+)```", SPEC)[3])
    table = SPEC.split("| bytes | meaning |")[3].split("\n\n")[0]
    spelled = bytes.fromhex("".join(part for part in re.findall(r"`([0-9a-f ]+)`", table)))
    assert golden.startswith(start) and spelled == start and len(golden) == 71 == len(start) + 40 + 4
    (info,) = nacz.archive_info(io.BytesIO(golden))
    (segment,) = info.segments
    assert (segment.plain_size, segment.payload_size) == (340, 40)
    assert Params.from_bytes(segment.params, 340) == Params(2048, 5, 300)


def test_the_example_of_the_range_coder() -> None:
    words, rows = SPEC.split("are coded as `")[1].split("`", 1)
    payload = bytes.fromhex(words)
    encoder, decoder = RangeEncoder(), RangeDecoder(payload)
    state = (1 << 64) - 1, int.from_bytes(payload[:8].ljust(8, b"\0"), "big"), 8
    for row in re.findall(r"^\| ([0-9A-F]{16} .*) \|$", rows, re.M):
        before, target, c, f, after, code, taken = row.replace(",", "").split(" | ")
        encoder.encode(int(c), int(f))
        assert decoder.target() == int(target)
        decoder.advance(int(c), int(f))
        # As the text says it, with integers of any size.
        size, value, at = state
        assert size == int(before, 16) and value // (size >> 24) == int(target)
        size, value = (size >> 24) * int(f), value - (size >> 24) * int(c)
        while size < 1 << 56:
            size, value, at = size << 8, value << 8 | (payload[at] if at < len(payload) else 0), at + 1
        assert (size, value, at - state[2]) == (int(after, 16), int(code, 16), int(taken))
        state = size, value, at
    assert encoder.finish() == payload and decoder.consistent()
    assert f"{state[2]} bytes were taken, of which the payload has {len(payload)}" in SPEC


def test_identities_and_documents() -> None:
    for digest, name in DIGESTS.items():
        (row,) = re.findall(rf"^\| {bytes.fromhex(digest).hex(' ')} \| {name} \| (.*) \|$", SPEC, re.M)
        weights, tokenizer, contract = row.split(" | ")
        assert weights == PINNED[name] and int(contract) == CONTRACT
        known = ModelIdentity.of(name, bytes.fromhex(weights), bytes.fromhex(tokenizer), CONTRACT)
        assert known.digest.hex() == digest
    for document in re.findall(r"\]\(\.\./(docs/[a-z_.-]+)\)", SPEC):
        assert (Path(__file__).parent.parent / document).is_file()
    assert re.search(r"^Document version (\S+)\.", SPEC, re.M)[1] == SPEC.rstrip().splitlines()[-1].split(" | ")[0][2:]  # type: ignore[index]


def test_limits_and_constants() -> None:
    for data in (b"", b"123456789"):
        assert f"{xxhash.xxh3_64_intdigest(data):016X}" in SPEC
    assert f"{zlib.crc32(b'123456789'):08X}" in SPEC
    assert f"`{records.MAGIC.hex(' ').upper()}`" in SPEC
    for limit in (records.MAX_HEADER_BODY, records.MAX_SEGMENT_PLAIN, records.MAX_PARAMS):
        assert f"{limit:,}" in SPEC
    assert records.MAX_SEGMENT_BODY == 4160 and "4,160" in SPEC
    assert records.MAX_END_BODY == records.MAX_SEGMENT_PLAIN == 1 << 28
    assert f"format version {records.VERSION}" in SPEC
