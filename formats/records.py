"""The kinds of record that make an archive, as values and as bytes: member header, segment header, end, and the
start of a member that is one segment.

Pure functions between frozen dataclasses and bytes. Every field is checked against its limit here, before
anyone allocates or computes by it. Knows the layout of SPEC.md; does not know readers, writers or predictors.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass, replace

from nacz.formats.varint import decode_varint, encode_varint

from nacz.errors import CorruptDataError, UnsupportedVersionError

MAGIC = b"\xfancz"
VERSION = 1
SOLE = 0x80  # beside the version: the member is one segment, and one checksum at its end is for all of it
SEGMENT_TAG = 0x53
END_TAG = 0x45

MAX_HEADER_BODY = 1 << 16
MAX_MODELS = 16
MAX_NAME = 64
MAX_PARAMS = 4096
MAX_SEGMENT_BODY = MAX_PARAMS + 64
MAX_SEGMENT_PLAIN = 1 << 28
MAX_END_BODY = 1 << 28

IDENTITY_SIZE = 4
CRC_SIZE = 4
PLAIN_HASH_SIZE = 8

_MODELS_END = 32  # a predictor and one of at most 16 models share a number

_NAME = re.compile(r"(?:[a-z0-9][a-z0-9._-]*)?", re.ASCII)

__all__ = [
    "CRC_SIZE",
    "END_TAG",
    "IDENTITY_SIZE",
    "MAGIC",
    "MAX_END_BODY",
    "MAX_HEADER_BODY",
    "MAX_MODELS",
    "MAX_NAME",
    "MAX_PARAMS",
    "MAX_SEGMENT_BODY",
    "MAX_SEGMENT_PLAIN",
    "SEGMENT_TAG",
    "SOLE",
    "VERSION",
    "EndRecord",
    "IndexEntry",
    "MemberHeader",
    "ModelIdentity",
    "SegmentHeader",
    "can_be_sole",
    "check_crc",
    "encode_sole",
    "end_body_size",
    "parse_sole",
]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model a segment was written with, as far as the result depends on it.

    name    hint for people and for finding the weights: up to 64 of [a-z0-9._-], may be empty
    digest  4 bytes of a hash of the exact integer model, its tokenizer and its arithmetic, see `of`
    """

    name: str
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME or not _NAME.fullmatch(self.name):
            raise ValueError(f"not a model name: {self.name!r}")
        if len(self.digest) != IDENTITY_SIZE:
            raise ValueError(f"the digest of a model must have {IDENTITY_SIZE} bytes")

    @classmethod
    def of(cls, name: str, weights_hash: bytes, tokenizer_hash: bytes, contract: int) -> ModelIdentity:
        """Return the identity of weights and a tokenizer with these hashes (32 bytes each) under a version of the
        numeric contract (0 or more)."""
        if len(weights_hash) != 32 or len(tokenizer_hash) != 32:
            raise ValueError("the hashes of a model must have 32 bytes")
        whole = hashlib.sha256(weights_hash + tokenizer_hash + encode_varint(contract))
        return cls(name, whole.digest()[:IDENTITY_SIZE])


@dataclass(frozen=True, slots=True)
class MemberHeader:
    """The start of a member: the models that its segments use, and fields for later versions.

    `extras` are (type, bytes) with rising types. A reader may ignore even types that it does not know; odd
    ones change what the segments mean.
    """

    models: tuple[ModelIdentity, ...] = ()
    extras: tuple[tuple[int, bytes], ...] = ()

    def encode(self) -> bytes:
        """Return magic, version, length, body and checksum. Raises ValueError for fields beyond limits."""
        body = bytearray(encode_varint(len(self.models)))
        for model in self.models:
            name = model.name.encode("ascii")
            body += encode_varint(len(name)) + name
            body += model.digest
        for kind, value in self.extras:
            body += encode_varint(kind) + encode_varint(len(value)) + value
        if len(self.models) > MAX_MODELS or len(body) > MAX_HEADER_BODY:
            raise ValueError("the member header is too large")
        return _with_crc(MAGIC + bytes([VERSION]) + encode_varint(len(body)) + body)

    @classmethod
    def parse(cls, body: bytes) -> MemberHeader:
        """Return the header of a body whose checksum is right. Raises CorruptDataError and
        UnsupportedVersionError."""
        fields = _Fields(body, "the header")
        models = []
        for _ in range(fields.number("its number of models", MAX_MODELS)):
            name = fields.sized("a model name", MAX_NAME).decode("latin-1")
            digest = fields.take(IDENTITY_SIZE)
            try:
                models.append(ModelIdentity(name, digest))
            except ValueError as error:
                raise CorruptDataError(f"the header is not valid: {error}") from None
        extras: list[tuple[int, bytes]] = []
        while not fields.at_end:
            kind = fields.number("the type of an extra field", None)
            if extras and kind <= extras[-1][0]:
                raise CorruptDataError("the header's extra fields are out of order")
            value = fields.sized("an extra field", MAX_HEADER_BODY)
            if kind % 2 == 1:
                raise UnsupportedVersionError(f"the archive uses a feature unknown to this release: {kind}")
            extras.append((kind, value))
        return cls(tuple(models), tuple(extras))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What stands before the payload of a segment.

    predictor     id of the predictor, 0 for stored
    model         0 for none, or k for the k-th model of the member header
    params        the predictor's own parameters, at most 4,096 bytes
    plain_size    bytes that the segment stands for, 1 to 2^28
    payload_size  bytes that follow the header, at most `plain_size`
    plain_hash    XXH3-64 of the plain bytes
    """

    predictor: int
    model: int
    params: bytes
    plain_size: int
    payload_size: int
    plain_hash: int

    def encode(self) -> bytes:
        """Return tag, length, body and checksum. Raises ValueError for fields beyond limits."""
        body = self._encode_fields() + self.params
        return _with_crc(bytes([SEGMENT_TAG]) + encode_varint(len(body)) + body)

    @classmethod
    def parse(cls, body: bytes, n_models: int) -> SegmentHeader:
        """Return the header of a body whose checksum is right. Raises CorruptDataError."""
        fields = _Fields(body, "a segment header")
        return cls._parse_fields(fields, n_models)._with_params(fields)

    def _encode_fields(self) -> bytes:
        """Return what stands before the parameters."""
        if len(self.params) > MAX_PARAMS:
            raise ValueError(f"parameters have more than {MAX_PARAMS} bytes: {len(self.params)}")
        if not 1 <= self.plain_size <= MAX_SEGMENT_PLAIN or not 0 <= self.payload_size <= self.plain_size:
            raise ValueError(f"sizes beyond the limits: {self.plain_size}, {self.payload_size}")
        if not 0 <= self.model <= MAX_MODELS:
            raise ValueError(f"a member has at most {MAX_MODELS} models: {self.model}")
        return (
            encode_varint(_MODELS_END * self.predictor + self.model)
            + encode_varint(self.plain_size)
            + encode_varint(self.payload_size)
            + self.plain_hash.to_bytes(PLAIN_HASH_SIZE, "little")
        )

    @classmethod
    def _parse_fields(cls, fields: _Fields, n_models: int) -> SegmentHeader:
        predictor, model = divmod(fields.number("predictor and model", None), _MODELS_END)
        plain_size = fields.number("the plain size", MAX_SEGMENT_PLAIN)
        payload_size = fields.number("the payload size", plain_size)
        plain_hash = int.from_bytes(fields.take(PLAIN_HASH_SIZE), "little")
        if plain_size == 0 or model > n_models:
            raise CorruptDataError("a segment header is not valid: no plain data, or a model that is not there")
        return cls(predictor, model, b"", plain_size, payload_size, plain_hash)

    def _with_params(self, fields: _Fields) -> SegmentHeader:
        params = fields.rest()
        if len(params) > MAX_PARAMS:
            raise CorruptDataError(f"a segment header is not valid: its parameters have {len(params)} bytes")
        return replace(self, params=params)


def can_be_sole(header: MemberHeader, segment: SegmentHeader) -> bool:
    """Tell whether a member that is this segment alone can do without a member header: no extra fields, and no model
    but the segment's own, which needs no name."""
    return not header.extras and len(header.models) == segment.model <= 1 and not any(m.name for m in header.models)


def encode_sole(header: MemberHeader, segment: SegmentHeader) -> bytes:
    """Return magic, version, length and body: the start of a member that is one segment. Its payload follows, then
    the CRC-32 of all of it. Raises ValueError for fields beyond limits."""
    if not can_be_sole(header, segment):
        raise ValueError("the member needs a header")
    body = segment._encode_fields() + b"".join(model.digest for model in header.models) + segment.params
    return MAGIC + bytes([SOLE | VERSION]) + encode_varint(len(body)) + body


def parse_sole(body: bytes) -> tuple[MemberHeader, SegmentHeader]:
    """Return both headers of a member that is one segment. Nothing was compared yet: raises CorruptDataError only."""
    fields = _Fields(body, "the header")
    segment = SegmentHeader._parse_fields(fields, 1)
    models = (ModelIdentity("", fields.take(IDENTITY_SIZE)),) if segment.model else ()
    return MemberHeader(models), segment._with_params(fields)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One segment in the index: bytes of its header and payload together, and bytes that it stands for."""

    record_size: int
    plain_size: int


@dataclass(frozen=True, slots=True)
class EndRecord:
    """The end of a member.

    member_size  bytes of the member before this record
    entries      one for every segment; written only when there are two or more
    plain_hash   XXH3-64 of all plain bytes of the member; written only when there are two or more segments
    """

    member_size: int
    n_segments: int
    entries: tuple[IndexEntry, ...] = ()
    plain_hash: int = 0

    def encode(self) -> bytes:
        """Return tag, length, body, checksum and the length again, to be read from the end."""
        body = bytearray(encode_varint(self.member_size) + encode_varint(self.n_segments))
        if self.n_segments >= 2:
            for entry in self.entries:
                body += encode_varint(entry.record_size) + encode_varint(entry.plain_size)
            body += self.plain_hash.to_bytes(8, "little")
        if len(body) > MAX_END_BODY:
            raise ValueError("the member has too many segments")
        length = encode_varint(len(body))
        return _with_crc(bytes([END_TAG]) + length + body) + length[::-1]

    @classmethod
    def parse(cls, body: bytes) -> EndRecord:
        """Return the record of a body whose checksum is right. Raises CorruptDataError."""
        fields = _Fields(body, "the end record")
        member_size = fields.number("the member size", None)
        # An entry has two bytes or more, so that a false count cannot ask for more work than there are bytes.
        n_segments = fields.number("the number of segments", len(body))
        entries: list[IndexEntry] = []
        plain_hash = 0
        if n_segments >= 2:
            for _ in range(n_segments):
                record_size = fields.number("the size of a record", None)
                entries.append(IndexEntry(record_size, fields.number("a plain size", MAX_SEGMENT_PLAIN)))
            plain_hash = int.from_bytes(fields.take(PLAIN_HASH_SIZE), "little")
        fields.end()
        return cls(member_size, n_segments, tuple(entries), plain_hash)


def end_body_size(member_size: int, entries: list[IndexEntry]) -> int:
    """Return the bytes of the body of the end record that belongs to a member with these segments."""
    size = len(encode_varint(member_size)) + len(encode_varint(len(entries)))
    if len(entries) >= 2:
        size += sum(len(encode_varint(e.record_size)) + len(encode_varint(e.plain_size)) for e in entries)
        size += PLAIN_HASH_SIZE
    return size


def check_crc(record: bytes, what: str) -> None:
    """Check the CRC-32 in the last four bytes of `record`. Raises CorruptDataError."""
    if zlib.crc32(record[:-CRC_SIZE]) != int.from_bytes(record[-CRC_SIZE:], "little"):
        raise CorruptDataError(f"{what} is damaged (checksum differs)")


def _with_crc(record: bytes) -> bytes:
    return record + zlib.crc32(record).to_bytes(CRC_SIZE, "little")


class _Fields:
    """Takes one field after another from a body and never goes past its end."""

    def __init__(self, body: bytes, what: str) -> None:
        self._body = body
        self._at = 0
        self._what = what

    @property
    def at_end(self) -> bool:
        return self._at == len(self._body)

    def number(self, name: str, limit: int | None) -> int:
        value, self._at = decode_varint(self._body, self._at, f"{name} in {self._what}")
        if limit is not None and value > limit:
            raise CorruptDataError(f"{self._what} is not valid: {name} is {value}, beyond {limit}")
        return value

    def take(self, size: int) -> bytes:
        if size > len(self._body) - self._at:
            raise CorruptDataError(f"{self._what} is too short for its fields")
        self._at += size
        return self._body[self._at - size : self._at]

    def sized(self, name: str, limit: int) -> bytes:
        return self.take(self.number(f"the size of {name}", limit))

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)

    def end(self) -> None:
        if not self.at_end:
            raise CorruptDataError(f"{self._what} is too long for its fields")
