#!/usr/bin/env python3
"""Decodes nacz archives, slowly and readably: a second reading of formats/SPEC.md and docs/numeric-contract.md.

    python docs/reference_decoder.py ARCHIVE [MODEL] > PLAIN

Imports nothing of nacz; needs numpy and xxhash. MODEL is a converted model (a .naczw file), needed when a segment was
written by the language model. Everything is as plain as it can be: one token at a time, integers of any size where that
is clearer, no cache but the keys and values themselves.

Predictor 1, the byte model, is in reference_byte_model.py beside this file, models of files of version 2 in
reference_general.py, the ensemble's bytes in reference_beside.py.
"""

from __future__ import annotations

import copy
import hashlib
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import xxhash

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reference_ensemble import Ensemble, total_of  # noqa: E402
from reference_learning import Learner, back_from_token  # noqa: E402

F = np.float32


class BadArchive(Exception):
    """The data is not an intact archive of version 1, or needs something that is not here."""


def check(condition: bool, cause: str) -> None:
    if not condition:
        raise BadArchive(cause)


# -- the container ----------------------------------------------------------------------------------------------------


class Fields:
    """Takes fields from bytes, front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        check(self.at + size <= len(self.data), "cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        value = 0
        for i in range(9):
            (digit,) = self.take(1)
            value |= (digit & 127) << (7 * i)
            if digit < 128:
                check(digit != 0 or i == 0, "a number with a needless byte")
                return value
        raise BadArchive("a number of too many bytes")

    def ended(self) -> bool:
        return self.at == len(self.data)


def take_record(archive: Fields, start_size: int, limit: int) -> tuple[bytes, Fields]:
    """The start and the body of the record that begins here; its checksum is compared."""
    first = archive.at
    start = archive.take(start_size)
    length = archive.varint()
    check(length <= limit, "a record that is too long")
    body = archive.take(length)
    crc = zlib.crc32(archive.data[first : archive.at])
    check(archive.unsigned(4) == crc, "a record is damaged")
    return start, Fields(body)


def decode_archive(data: bytes, model: Model | None = None) -> bytes:
    """The plain data of an archive. Raises BadArchive."""
    archive, plain = Fields(data), b""
    check(len(data) > 0, "no bytes are no archive")
    while not archive.ended():
        plain += decode_member(archive, model)
    return plain


def decode_member(archive: Fields, model: Model | None) -> bytes:
    first = archive.at
    check(archive.data[first : first + 4] == b"\xfancz", "not an archive, or garbage after it")
    version = archive.data[first + 4 : first + 5]
    check(version in (b"\1", b"\x81"), "not version 1")
    if version == b"\x81":
        return decode_sole_segment(archive, model)
    _, header = take_record(archive, 5, 1 << 16)
    models = decode_member_header(header)
    plain, sizes = b"", []
    while True:
        record_start = archive.at
        tag = archive.data[record_start : record_start + 1]
        if tag == b"E":
            decode_end(archive, record_start - first, sizes, plain)
            return plain
        check(tag == b"S", "neither a segment nor the end")
        _, header = take_record(archive, 1, 4160)
        segment = Segment(header, len(models))
        part = segment.decode(take_payload(archive, archive.at, segment.payload_size), models, model)
        plain += part
        sizes.append((archive.at - record_start, len(part)))


def decode_sole_segment(archive: Fields, model: Model | None) -> bytes:
    """A member that is one segment, with one checksum for all of it."""
    first = archive.at
    archive.take(5)
    length = archive.varint()
    check(length <= 4160, "a record that is too long")
    segment = Segment(Fields(archive.take(length)), 1, has_identity=True)
    return segment.decode(take_payload(archive, first, segment.payload_size), [segment.identity], model)


def take_payload(archive: Fields, proved_from: int, size: int) -> bytes:
    """The payload that begins here; the checksum after it is for everything from `proved_from` on."""
    payload = archive.take(size)
    crc = zlib.crc32(archive.data[proved_from : archive.at])
    check(archive.unsigned(4) == crc, "a payload is damaged")
    return payload


def decode_member_header(header: Fields) -> list[bytes]:
    """The identity of every model."""
    models = []
    count = header.varint()
    check(count <= 16, "too many models")
    for _ in range(count):
        size = header.varint()
        check(size <= 64, "a name that is too long")
        name = header.take(size)
        good = b"abcdefghijklmnopqrstuvwxyz0123456789"
        check(all(c in good + b"._-" for c in name) and name[:1] not in (b".", b"_", b"-"), "a name with other letters")
        models.append(header.take(4))
    last = -1
    while not header.ended():
        kind = header.varint()
        header.take(header.varint())
        check(kind > last, "extra fields are out of order")
        check(kind % 2 == 0, "an extra field that must be understood and is not")
        last = kind
    return models


class Segment:
    """The fields before a payload."""

    def __init__(self, fields: Fields, n_models: int, has_identity: bool = False) -> None:
        self.predictor, self.which = divmod(fields.varint(), 32)
        self.plain_size, self.payload_size = fields.varint(), fields.varint()
        self.plain_hash = fields.unsigned(8)
        check(1 <= self.plain_size <= 1 << 28 and self.payload_size <= self.plain_size, "a size beyond its limit")
        check(self.which <= n_models, "a model that the header does not have")
        self.identity = fields.take(4) if has_identity and self.which else b""
        self.params = fields.take(len(fields.data) - fields.at)
        check(len(self.params) <= 4096, "a field beyond its limit")

    def decode(self, payload: bytes, models: list[bytes], model: Model | None) -> bytes:
        if self.predictor == 0:
            check(self.which == 0 and not self.params, "a stored segment has only its bytes")
            plain = payload
        elif self.predictor == 1:
            from reference_byte_model import LEVELS, decode_byte_model

            right = self.which == 0 and len(self.params) == 2 and self.params[0] == 3 and self.params[1] in LEVELS
            check(right, "parameters of the byte model that no version writes")
            plain = decode_byte_model(self.params[1], payload, self.plain_size)
        elif self.predictor == 2:
            check(self.which > 0, "the language model has no model")
            check(model is not None, "a model is needed")
            assert model is not None
            check(models[self.which - 1] == model.identity, "another model is needed")
            plain = decode_language_model(model, Fields(self.params), payload, self.plain_size)
        else:
            raise BadArchive(f"predictor {self.predictor} is not here")
        right = len(plain) == self.plain_size and xxhash.xxh3_64_intdigest(plain) == self.plain_hash
        check(right, "the plain checksum differs")
        return plain


def decode_end(archive: Fields, member_size: int, sizes: list[tuple[int, int]], plain: bytes) -> None:
    first = archive.at
    _, end = take_record(archive, 1, 1 << 28)
    length = archive.data[first + 1 : archive.at - 4 - len(end.data)]
    check(end.varint() == member_size and end.varint() == len(sizes), "the end does not fit the member")
    if len(sizes) >= 2:
        check([(end.varint(), end.varint()) for _ in sizes] == sizes, "the index does not fit the member")
        check(end.unsigned(8) == xxhash.xxh3_64_intdigest(plain), "the checksum of all plain data differs")
    check(end.ended(), "an end with too many fields")
    check(archive.take(len(length)) == length[::-1], "the length and its copy differ")


# -- the language model's segments ------------------------------------------------------------------------------------


def decode_language_model(model: Model, params: Fields, payload: bytes, plain_size: int) -> bytes:
    version = params.varint()
    check(version <= 7, "parameters of an unknown version")
    window, lanes, count = params.varint() * 128, params.varint(), params.varint()
    members = number = 0
    if version & 1:
        number = params.varint()
        check(number <= 1, "an ensemble of an unknown version")
        members = params.varint()
        check(1 <= members <= 63, "members that are not here")
    learner, block, learning = None, 0, None
    if version & 2:
        check(not model.more, "learning of a model that cannot")
        how = params.varint()
        check(how in (1, 2), "learning of an unknown version")
        layers, rate, rows = params.varint(), params.varint(), params.varint()
        check(1 <= layers <= model.n_layers and 1 <= rate <= (1000, 10_000)[how - 1], "parameters out of range")
        check(1 <= rows <= 1024 and 1 <= lanes <= 256, "parameters out of range")
        learning = how, layers, rate
    heads = model.n_layers * model.kv_heads
    reach = [window // 128] * heads
    if version & 4:
        check(not model.more, "near heads of another model")
        table = params.varint()
        check(table <= len(NEAR_HEADS), "an unknown table of near heads")
        most = NEAR_HEADS[table - 1] if table else params.take(params.varint())
        check(len(most) == heads and 1 not in most, "near heads of another model")
        reach = [min(window // 128, blocks or window // 128) for blocks in most]
    if learning:
        learner, block = Learner(model, window, reach, *learning), max(1, rows // lanes)
        model = copy.copy(model)
        model.layers = learner.layers
    check(params.ended() and 256 <= window <= 16384, "parameters out of range")
    check(1 <= count <= 2 * plain_size, "parameters out of range")
    check(1 <= lanes <= min(count, 256) and count <= lanes << 20, "parameters out of range")
    lengths = [count // lanes + (lane < count % lanes) for lane in range(lanes)]
    if model.more:
        from reference_general import GeneralLane

        streams = [GeneralLane(model, window) for _ in range(lanes)]
    else:
        streams = [Lane(model, window, reach, learner is not None) for _ in range(lanes)]
    tokens: list[list[int]] = [[] for _ in range(lanes)]
    ensemble = Ensemble(members, number, lengths, model.vocab, model.dim, integer_exp2, model.has_any_norm)
    coder = RangeDecoder(payload)
    beside = None
    if members & 32:
        from reference_beside import Beside

        words = model.token_bytes + [b""] * (model.vocab - len(model.token_bytes))
        beside = Beside(words, count, lanes, total_of(model.vocab))
    gradients: dict[int, np.ndarray] = {}
    for step in range(lengths[0]):
        keys = []
        for lane in range(lanes):
            if step == lengths[lane]:
                break
            state = streams[lane].hidden(tokens[lane][-1] if step else model.bos)
            logits = product(model.head, state)
            logits[model.words :] = F(-4096)
            fixed = fixed_point(logits)
            if members:
                frequencies = ensemble.distribution(fixed, lane, max(step - 1, 0) * lanes, streams[lane].key)
            else:
                frequencies = distribution(fixed)
            token = beside.spell(lane, frequencies, coder.bit) if beside else coder.symbol(frequencies)
            tokens[lane].append(token)
            if members:
                ensemble.learn(lane, token, frequencies)
                keys.append((streams[lane].key, token))
            if learner is not None:
                row = lane * block + step % block
                gradients[row] = back_from_token(model.head, np.array(frequencies), token, row)
        for key, token in keys:
            ensemble.remember(key, token)
        if learner is not None and (step + 1) % block == 0 and step + 1 < lengths[0]:
            learner.learn(streams, step + 1 - block, np.array([gradients[row] for row in range(lanes * block)]))
            for stream in streams:
                stream.trace.clear()
    coder.check_end()
    return model.text_of([token for lane in tokens for token in lane])


class RangeDecoder:
    """`code` is the stream's number less the encoder's low end, `width` the size of its interval, both of 64 bits."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.position = 8
        self.width = (1 << 64) - 1
        self.code = int.from_bytes(stream[:8].ljust(8, b"\0"), "big")
        self.is_outside = False

    def bit(self, p: int, total: int) -> int:
        """The next bit, which is 1 with p of the total."""
        return 1 - self.symbol([p, total - p], total)

    def symbol(self, frequencies: list[int], total: int = 0) -> int:
        """The next symbol of a distribution."""
        total = total or total_of(len(frequencies))
        unit = self.width // total
        target = self.code // unit
        if target >= total:
            self.is_outside, target = True, total - 1
        symbol, below = 0, 0
        while below + frequencies[symbol] <= target:
            below += frequencies[symbol]
            symbol += 1
        self.code = (self.code - unit * below) % (1 << 64)
        self.width = unit * frequencies[symbol]
        while self.width < 1 << 56:
            following = self.stream[self.position] if self.position < len(self.stream) else 0
            self.code = (self.code << 8 | following) % (1 << 64)
            self.width <<= 8
            self.position += 1
        return symbol

    def check_end(self) -> None:
        """The stream must be exactly the one that an encoder writes."""
        check(not self.is_outside, "the stream leaves all intervals")
        check(self.stream[-1:] != b"\0", "the stream ends with a needless byte")
        check(len(self.stream) <= self.position - 7, "the stream is too long")
        check(self.code < min(1 << 56, self.width), "the stream does not end where it should")


# -- the model's file -------------------------------------------------------------------------------------------------


class Model:
    """A converted model. `layers` hold matrices [outputs, inputs] of int8 and one step per output."""

    def __init__(self, data: bytes) -> None:
        magic, version, size, checksum = struct.unpack_from("<8sIIQ", data)
        check(magic == b"\x89NACZW\r\n" and version in (1, 2), "not a converted model of version 1 or 2")
        body = data[24 : 24 + size]
        check(xxhash.xxh3_64_intdigest(body) == checksum, "the model's header is damaged")
        _, data_hash, self.weights_hash, self.tokenizer_hash, tokenizer_size = struct.unpack_from("<QQ32s32sQ", body)
        check(xxhash.xxh3_64_intdigest(data[24 + size :]) == data_hash, "the model is damaged")
        layout = "<7Idd" if version == 1 else "<7Idd6Id"
        shape = struct.unpack_from(layout, body, 88)
        self.n_layers, self.dim, self.heads, self.kv_heads, self.ffn, self.vocab, _, _, self.eps = shape[:9]
        # Of general models: width of heads, what of it is used, words that exist, features, local, every, query_scale.
        self.more = shape[9:]
        width, self.words = (self.more[0], self.more[2]) if self.more else (64, self.vocab)
        self.has_any_norm = bool(self.more) and self.more[3] & 8 != 0
        arrays, at, place = {}, 24 + size, 88 + struct.calcsize(layout)
        digest = hashlib.sha256(body[88:])
        (count,) = struct.unpack_from("<I", body, place)
        place += 4
        for _ in range(count):
            letters = body[place]
            name = body[place + 1 : place + 1 + letters].decode()
            kind, items = struct.unpack_from("<3sQ", body, place + 1 + letters)
            place += 1 + letters + 11
            at += -at % 64
            arrays[name] = np.frombuffer(data, kind.decode(), items, at)
            at += arrays[name].nbytes
            digest.update(arrays[name].tobytes())
        check(digest.digest() == self.weights_hash, "the weights are not those of their hash")
        at += -at % 64
        tokenizer = data[at : at + tokenizer_size]
        check(hashlib.sha256(tokenizer).digest() == self.tokenizer_hash, "the tokenizer is not that of its hash")
        contract = b"\0"  # the version of docs/numeric-contract.md that is followed here, as a varint
        self.identity = hashlib.sha256(self.weights_hash + self.tokenizer_hash + contract).digest()[:4]
        self._read_tokenizer(tokenizer)
        self.embed = arrays["embed"].reshape(self.vocab, self.dim)
        self.embed_step = arrays["embed_step"]
        self.arrays = arrays
        if version == 1:
            self.rope = arrays["rope"].reshape(2, 1024, 2, 32)
        wide = (self.heads + 2 * self.kv_heads) * width
        self.layers = []
        for layer in range(self.n_layers):
            self.layers.append(
                {
                    name: self._matrix(arrays, name, layer, rows, columns)
                    for name, rows, columns in (
                        ("qkv", wide, self.dim),
                        ("out", self.dim, self.heads * width),
                        ("gate_up", 2 * self.ffn, self.dim),
                        ("down", self.dim, self.ffn),
                    )
                }
            )
        matrix, step = self._matrix(arrays, "head", 0, self.vocab, self.dim)
        self.head = matrix, step * F(1.4426950408889634)

    @staticmethod
    def _matrix(
        arrays: dict[str, np.ndarray], name: str, layer: int, rows: int, columns: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Undo the packing: for each 64 rows, for each 4 columns, 4 columns of each of the 64 rows."""
        flat = arrays[name][layer * rows * columns : (layer + 1) * rows * columns]
        step = arrays[f"{name}_step"][layer * rows : (layer + 1) * rows]
        out, at = np.empty((rows, columns), np.int64), 0
        for row in range(0, rows, 64):
            height = min(64, rows - row)
            for column in range(0, columns, 4):
                out[row : row + height, column : column + 4] = flat[at : at + 4 * height].reshape(height, 4)
                at += 4 * height
        return out, step

    def _read_tokenizer(self, blob: bytes) -> None:
        head = struct.Struct("<4sHHIIIII")
        magic, version, _, n_vocab, n_merges, self.bos, n_escape, _ = head.unpack_from(blob)
        check(magic == b"NZTK" and version == 1, "not a tokenizer of version 1")
        at = head.size
        escapes = struct.unpack_from(f"<{n_escape}I", blob, at)
        self.nibble = {token: value for value, token in enumerate(escapes)}
        at += 4 * n_escape
        lengths = struct.unpack_from(f"<{n_vocab}H", blob, at)
        at += 2 * n_vocab + 8 * n_merges
        self.token_bytes = []
        for length in lengths:
            self.token_bytes.append(blob[at : at + length])
            at += length

    def text_of(self, tokens: list[int]) -> bytes:
        """The bytes that tokens stand for. Two escape tokens in a row are the halves of one byte, high half first."""
        out, high = b"", None
        for token in tokens:
            check(token < len(self.token_bytes), "a token outside of the vocabulary")
            if token in self.nibble:
                if high is None:
                    high = self.nibble[token]
                else:
                    out, high = out + bytes([16 * high + self.nibble[token]]), None
                continue
            check(high is None and self.token_bytes[token] != b"", "a token that stands for nothing, or half an escape")
            out += self.token_bytes[token]
        check(high is None, "half an escape at the end")
        return out


# -- arithmetic: every operation in the order written, float32 unless said otherwise ----------------------------------


def round_even(x: np.ndarray) -> np.ndarray:
    return np.rint(x).astype(np.int64)


def floor_log2(x: np.ndarray) -> np.ndarray:
    """Biased exponent of non-negative float32."""
    return (np.asarray(x, F).view(np.int32) >> 23).astype(np.int64)


def two_to(n: int) -> np.float32:
    return F(2.0**n)


COEFFICIENTS = [
    F(float.fromhex(c))
    for c in ("0x1.bb7cd4p-8", "-0x1.b2c862p-5", "0x1.ea2ba8p-3", "-0x1.62d4dap-1", "0x1.ffffa8p-1")
]


def exp2_minus(f: np.ndarray) -> np.ndarray:
    """2^-f for 0 <= f <= 1, a polynomial by Horner's rule."""
    y = COEFFICIENTS[0]
    for c in COEFFICIENTS[1:]:
        y = y * f + c
    return y


def integer_exp2(distance: np.ndarray, bits: int) -> np.ndarray:
    """About 2^23 * 2^-(distance / 2^bits) as integers, for integers distance >= 0."""
    fraction = (distance % (1 << bits)).astype(F) * F(2.0**-bits)
    whole = np.minimum(distance >> bits, 31)
    return np.trunc(exp2_minus(fraction) * F(2.0**23)).astype(np.int64) >> whole


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """A vector to (integers with the zero point taken off, step)."""
    low, high = min(F(0), x.min()), max(F(0), x.max())
    span = high - low
    if span < F(2.0**-60):
        return np.zeros(len(x), np.int64), F(0)
    inverse = F(255) / span
    zero = int(round_even(-low * inverse))
    return np.clip(round_even(x * inverse) + zero, 0, 255) - zero, span / F(255)


def normalise(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.float32]:
    """RMSNorm and quantisation. The sum of squares is an exact integer; what follows it is float64."""
    a, step = quantise(x)
    top = np.abs(x).max()
    if top < F(2.0**-60):
        return np.zeros(len(x), np.int64), F(0)
    scale = two_to(20 - (int(floor_log2(top)) - 127))
    squares = int((round_even(x * scale) ** 2).sum())
    mean = np.float64(squares) / (np.float64(scale) * np.float64(scale) * np.float64(len(x)))
    return a, F(np.float64(step) / np.sqrt(mean + eps))


def product(matrix: tuple[np.ndarray, np.ndarray], vector: tuple[np.ndarray, np.float32]) -> np.ndarray:
    weights, row_step = matrix
    a, step = vector
    return ((weights @ a).astype(F) * row_step) * step


def gate(gate_up: np.ndarray) -> np.ndarray:
    """SiLU of the first half times the second half."""
    g, up = np.split(gate_up, 2)
    u = np.minimum(np.abs(g) * F(float.fromhex("0x1.715476p+0")), F(60))
    whole = np.trunc(u)
    e = np.ldexp(exp2_minus(u - whole), -whole.astype(np.int32)).astype(F)
    return g * (np.where(g >= 0, F(1), e) / (F(1) + e)) * up


def mix(x: np.ndarray) -> np.ndarray:
    """The rotation of the hidden vector: Hadamard over the power of two in len / 16, then 3 x 3 if that has a three."""
    outer = len(x) // 16
    two = outer & -outer
    return mix_over(x, two, 3 if (outer // two) % 3 == 0 else 1)


def mix_over(x: np.ndarray, two: int, three: int) -> np.ndarray:
    """Mixed as an array [three][two][rest], and not scaled."""
    x = x.reshape(three, two, -1).copy()
    span = 1
    while span < two:
        for i in range(two):
            if i & span == 0:
                p, q = x[:, i].copy(), x[:, i + span].copy()
                x[:, i], x[:, i + span] = p + q, p - q
        span *= 2
    if three == 3:
        p, q, s = x
        x = np.stack([(p + (q + q)) + (s + s), ((p + p) + q) - (s + s), ((p + p) - (q + q)) + s])
    return x.reshape(-1)


def fixed_point(logits: np.ndarray) -> np.ndarray:
    """Logits in units of log2 to integers in units of 2^-16."""
    return np.trunc(np.clip(logits, F(-4096), F(4096)) * F(65536)).astype(np.int64)


def distribution(fixed: np.ndarray) -> list[int]:
    """Fixed-point logits to integer frequencies, each at least 1."""
    total = total_of(len(fixed))
    e = integer_exp2(fixed.max() - fixed, 16)
    ratio = F(np.float64(total - len(e)) / np.float64(int(e.sum())))
    frequencies = np.trunc(e.astype(F) * ratio).astype(np.int64) + 1
    frequencies[int(np.argmax(fixed))] += total - int(frequencies.sum())
    return [int(f) for f in frequencies]


# -- the transformer --------------------------------------------------------------------------------------------------

QUERY_UNIT = F(1.4426950408889634 / 8.0 * 16384.0)
# Blocks that each key head of smollm2-135m sees at most, layer by layer; 0 for all of the window.
NEAR_HEADS = [
    bytes((0, 3, 5, 8, 12, 16, 24)[int(digit)] for digit in digits)
    for digits in (
        "031111111221221233213220332112121111111111121112121101110111120111111012211111111111111111",
        "042322232454554555455540555445343121211111331123111301110221240123122024323111121111211111",
        "054333243666665666566660666566454133211211452234212401210331350334233045534111331211322222",
        "006055566000000000000000000000600354433423604550433603440552600556455060050322553433644554",
    )
]


# Key, its step, value, its step of one position in one head.
Seen = tuple[np.ndarray, np.float32, np.ndarray, np.float32]


def weigh_block(q: np.ndarray, q_step: np.float32, seen: list[Seen]) -> tuple[np.ndarray, float]:
    """What a query takes from the positions of one block: the sum of their values, weighed, and of the weights."""
    keys, key_steps, values, value_steps = (np.array(column) for column in zip(*seen, strict=True))
    scores = ((keys @ q).astype(F) * key_steps) * q_step
    scores = np.trunc(np.clip(scores, F(-(2.0**23)), F(2.0**23))).astype(np.int64)
    whole = (int(scores.max()) + 16383) >> 14
    e = integer_exp2((whole << 14) - scores, 14)
    weights = e.astype(F) * value_steps
    exponent = max(16, int(floor_log2(weights).max()))
    p = np.minimum(np.trunc(weights * two_to(134 - exponent) + F(0.5)), 255).astype(np.int64)
    return (p @ values) * 2.0 ** (whole + exponent - 134), float(e.sum()) * 2.0**whole


class Lane:
    """One stream of tokens through the model. Remembers all keys and values and looks at those in reach.

    `trace`, if wanted, is what learning needs: for each token the inputs of all layers and the output of the last, and
    the results of all layers' attention.
    """

    def __init__(self, model: Model, window: int, reach: list[int], is_traced: bool) -> None:
        self.model, self.window, self.reach, self.position, self.is_traced = model, window, reach, 0, is_traced
        self.seen: dict[tuple[int, int], list[Seen]] = {}
        self.trace: list[tuple[list[np.ndarray], list[np.ndarray]]] = []

    def hidden(self, token: int) -> tuple[np.ndarray, np.float32]:
        """The last hidden state after `token`, quantised: what the head is applied to. Keeps what is recalled by."""
        m = self.model
        x = m.embed[token].astype(F) * m.embed_step[token]
        inputs, results = [x], []
        for number, layer in enumerate(m.layers):
            results.append(self.attention(number, product(layer["qkv"], normalise(x, m.eps))))
            x = x + product(layer["out"], quantise(results[-1]))
            x = x + product(layer["down"], quantise(mix(gate(product(layer["gate_up"], normalise(x, m.eps))))))
            inputs.append(x)
        if self.is_traced:
            self.trace.append((inputs, results))
        self.position += 1
        self.key = normalise(inputs[len(m.layers) * 4 // 5], m.eps)
        return normalise(x, m.eps)

    def angles(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        (c, s), (d, t) = self.model.rope[0, position % 1024], self.model.rope[1, position // 1024]
        return c * d - s * t, s * d + c * t

    def turned(self, x: np.ndarray, position: int) -> np.ndarray:
        cos, sin = self.angles(position)
        a, b = x[:32], x[32:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin])

    @staticmethod
    def small(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """Integers of -127 to 127 and their step."""
        top = np.abs(x).max()
        return round_even(x * (F(127) / max(top, F(2.0**-60)))), top / F(127)

    def attention(self, layer: int, wide: np.ndarray) -> np.ndarray:
        m, heads = self.model, wide.reshape(-1, 64)
        group, out = m.heads // m.kv_heads, []
        for kv in range(m.kv_heads):
            key = self.small(self.turned(heads[m.heads + kv], self.position))
            value = self.small(heads[m.heads + m.kv_heads + kv])
            self.seen.setdefault((layer, kv), []).append((*key, *value))
            for head in range(kv * group, (kv + 1) * group):
                out.append(self.attend(heads[head], self.seen[layer, kv], self.reach[layer * m.kv_heads + kv]))
        return np.concatenate(out)

    def attend(self, query: np.ndarray, seen: list[Seen], slots: int) -> np.ndarray:
        """`slots` blocks of 128 positions: the first, which never leaves, and the last ones."""
        current = self.position // 128
        result, total = np.zeros(64), 0.0
        for block in [0, *range(max(1, current - (slots - 2)), current + 1)]:
            # The first block is seen from no further away than the window is long.
            position = min(self.position, self.window) if block == 0 else self.position
            q, q_step = self.small(self.turned(query, position))
            some, weight = weigh_block(q, q_step * QUERY_UNIT, seen[block * 128 : (block + 1) * 128])
            result += some
            total += weight
        return (result * (1.0 / total)).astype(F)


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 1
    model = Model(Path(arguments[1]).read_bytes()) if len(arguments) == 2 else None
    try:
        sys.stdout.buffer.write(decode_archive(Path(arguments[0]).read_bytes(), model))
    except BadArchive as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
