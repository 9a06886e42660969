"""GGUF files: every block format against a scalar decoder written from its definition, and hostile files."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacz.errors import ModelError, ModelMissingError
from nacz.weights.fetch import ensure_gguf
from nacz.weights.gguf import Tensor, dequantise, read_gguf

# -- writing tiny files ----------------------------------------------------------------------------

FORMATS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    return text(value) if kind == 8 else struct.pack(FORMATS[kind], value)


def entry(key: str | bytes, kind: int, value: Any) -> bytes:
    """One metadata key; a list becomes an array."""
    if isinstance(value, list):
        body = struct.pack("<IQ", kind, len(value)) + b"".join(scalar(kind, item) for item in value)
        return text(key) + struct.pack("<I", 9) + body
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One tensor's entry; `shape` in numpy order."""
    dims = struct.pack(f"<{len(shape)}Q", *shape[::-1])
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def gguf(
    keys: list[bytes],
    infos: list[bytes],
    data: bytes,
    *,
    version: int = 3,
    align: int = 32,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    counts = (len(infos) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % align) + data


def write(folder: Path, raw: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(raw)
    return path


# -- block formats, one weight at a time, from their definitions -----------------------------------


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def f32(value: float) -> float:
    """Round to float32. Everything below is exact in Python's floats, so this is the only rounding."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def slow_q4(block: bytes, i: int, head: int) -> int:
    byte = block[head + i % 16]
    return byte & 15 if i < 16 else byte >> 4


def slow_q5(block: bytes, i: int, head: int) -> int:
    (word,) = struct.unpack_from("<I", block, head)
    return slow_q4(block, i, head + 4) | ((word >> i) & 1) << 4


def slow_scale_min(block: bytes, group: int) -> tuple[int, int]:
    packed = block[4:16]
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4
    return scale, (packed[group + 4] >> 4) | (packed[group] >> 6) << 4


def slow_k4(block: bytes, i: int, head: int) -> int:
    byte = block[head + i // 64 * 32 + i % 32]
    return byte >> 4 if i % 64 >= 32 else byte & 15


def slow_affine(block: bytes, i: int, quant: int) -> float:
    scale, minimum = slow_scale_min(block, i // 32)
    return f32(half(block, 0) * scale * quant - half(block, 2) * minimum)


def slow_q6_k(block: bytes, i: int) -> float:
    part, column = i // 128, i % 32
    group = i % 128 // 32
    low = block[part * 64 + (group & 1) * 32 + column]
    low = low >> 4 if group >= 2 else low & 15
    high = block[128 + part * 32 + column] >> (2 * group) & 3
    scale = struct.unpack_from("<b", block, 192 + i // 16)[0]
    return f32(half(block, 208) * scale * ((low | high << 4) - 32))


def slow_q2_k(block: bytes, i: int) -> float:
    quant = block[16 + i // 128 * 32 + i % 32] >> (2 * (i % 128 // 32)) & 3
    return f32(half(block, 80) * (block[i // 16] & 15) * quant - half(block, 82) * (block[i // 16] >> 4))


def slow_q3_k(block: bytes, i: int) -> float:
    quant = block[32 + i // 128 * 32 + i % 32] >> (2 * (i % 128 // 32)) & 3
    quant -= 0 if block[i % 32] >> (i // 32) & 1 else 4
    group = i // 16
    low = block[96 + group % 8] >> 4 if group >= 8 else block[96 + group] & 15
    high = block[104 + group % 4] >> (2 * (group // 4)) & 3
    return f32(half(block, 108) * ((low | high << 4) - 32) * quant)


UNEVEN = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def slow_iq4_xs(block: bytes, i: int) -> float:
    group = i // 32
    low = block[4 + group // 2] >> (4 * (group % 2)) & 15
    high = int.from_bytes(block[2:4], "little") >> (2 * group) & 3
    return f32(half(block, 0) * ((low | high << 4) - 32) * UNEVEN[slow_q4(block, i % 32, 8 + 16 * group)])


SLOW = {
    "Q2_K": (10, 256, 84, [80, 82], slow_q2_k),
    "Q3_K": (11, 256, 110, [108], slow_q3_k),
    "IQ4_NL": (20, 32, 18, [0], lambda b, i: f32(half(b, 0) * UNEVEN[slow_q4(b, i, 2)])),
    "IQ4_XS": (23, 256, 136, [0], slow_iq4_xs),
    "Q4_0": (2, 32, 18, [0], lambda b, i: f32(half(b, 0) * (slow_q4(b, i, 2) - 8))),
    "Q4_1": (3, 32, 20, [0, 2], lambda b, i: f32(half(b, 0) * slow_q4(b, i, 4) + half(b, 2))),
    "Q5_0": (6, 32, 22, [0], lambda b, i: f32(half(b, 0) * (slow_q5(b, i, 2) - 16))),
    "Q5_1": (7, 32, 24, [0, 2], lambda b, i: f32(half(b, 0) * slow_q5(b, i, 4) + half(b, 2))),
    "Q8_0": (8, 32, 34, [0], lambda b, i: f32(half(b, 0) * struct.unpack_from("<b", b, 2 + i)[0])),
    "Q4_K": (12, 256, 144, [0, 2], lambda b, i: slow_affine(b, i, slow_k4(b, i, 16))),
    "Q5_K": (
        13, 256, 176, [0, 2],
        lambda b, i: slow_affine(b, i, slow_k4(b, i, 48) | (b[16 + i % 32] >> (i // 32) & 1) << 4),
    ),
    "Q6_K": (14, 256, 210, [208], slow_q6_k),
    "F16": (1, 1, 2, [0], lambda b, i: half(b, 0)),
    "BF16": (30, 1, 2, [], lambda b, i: struct.unpack("<f", bytes(2) + b)[0]),
    "F32": (0, 1, 4, [], lambda b, i: struct.unpack("<f", b)[0]),
}  # fmt: skip


def random_blocks(name: str, n: int) -> bytes:
    """Random blocks whose half floats are finite: any sign, from subnormal to the largest."""
    _, _, size, halves, _ = SLOW[name]
    rng = np.random.default_rng(sum(name.encode()))
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in halves:
        bits = rng.integers(0, 0x7C00, n).astype("<u2") | (rng.integers(0, 2, n) << 15).astype("<u2")
        bits[:4] = [0x0001, 0x8001, 0x7BFF, 0xFBFF]
        blocks[:, at : at + 2] = bits.view(np.uint8).reshape(n, 2)
    if name in ("F32", "BF16"):
        blocks[:, -1] &= 0xBF  # an exponent below the one of infinity
    return blocks.tobytes()


@pytest.mark.parametrize("name", SLOW)
def test_every_block_format_against_a_scalar_decoder(name: str, tmp_path: Path) -> None:
    kind, values, size, _, slow = SLOW[name]
    n = 96 if values < 256 else 32
    raw = random_blocks(name, n)
    shape = (4, n * values // 4)
    found = read_gguf(write(tmp_path, gguf([], [info("w", shape, kind, 0)], raw))).tensor("w")
    assert (found.shape, found.type_name, found.data.tobytes()) == (shape, name, raw)
    weights = dequantise(found)
    assert weights.dtype == np.float32 and weights.shape == shape and weights.flags.c_contiguous
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    expected = np.array([slow(block, i) for block in blocks for i in range(values)], dtype=np.float32)
    assert weights.ravel().view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def test_a_tensor_of_many_pieces_is_the_same_as_its_parts() -> None:
    raw = np.frombuffer(random_blocks("Q4_1", 6000), dtype=np.uint8)
    whole = dequantise(Tensor("w", (6000, 32), 3, raw))
    parts = [dequantise(Tensor("w", (1000, 32), 3, raw[i : i + 20_000])) for i in range(0, len(raw), 20_000)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    ("name", "bits"),
    [("Q4_0", 0x7C00), ("Q8_0", 0x7E00), ("Q6_K", 0xFC00), ("F16", 0x7C01), ("BF16", 0x7F80)],
)
def test_infinite_scales_and_values_are_refused(name: str, bits: int) -> None:
    kind, values, size, halves, _ = SLOW[name]
    block = bytearray(size)
    struct.pack_into("<H", block, halves[0] if halves else 0, bits)
    with pytest.raises(ModelError, match="'w' holds values that are not finite"):
        dequantise(Tensor("w", (values,), kind, np.frombuffer(bytes(block), dtype=np.uint8)))


@pytest.mark.parametrize("tensor", [
    Tensor("w", (32,), 3, np.zeros(19, dtype=np.uint8)),
    Tensor("w", (33,), 3, np.zeros(20, dtype=np.uint8)),
    Tensor("w", (32,), 99, np.zeros(20, dtype=np.uint8)),
])  # fmt: skip
def test_a_tensor_that_contradicts_itself(tensor: Tensor) -> None:
    with pytest.raises(ModelError, match="'w'"):
        dequantise(tensor)


# -- metadata --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_of_every_type(version: int, tmp_path: Path) -> None:
    values = {0: 255, 1: -128, 2: 65535, 3: -32768, 4: 2**32 - 1, 5: -(2**31), 10: 2**64 - 1, 11: -(2**63)}
    keys = [entry(f"i{kind}", kind, value) for kind, value in values.items()]
    keys += [entry(f"a{kind}", kind, [value, 0, 1]) for kind, value in values.items()]
    keys += [entry("f", 6, 0.1), entry("d", 12, 0.1), entry("yes", 7, True), entry("s", 8, "héllo")]
    keys += [entry("raw", 8, b"\xff"), entry("strings", 8, ["a", "", "Ġt"]), entry("none", 8, [])]
    found = read_gguf(write(tmp_path, gguf(keys, [], b"", version=version)))
    for kind, value in values.items():
        assert found.integer(f"i{kind}") == value
        array = found.metadata[f"a{kind}"]
        assert isinstance(array, np.ndarray) and array.tolist() == [value, 0, 1]
    assert found.number("f") == f32(0.1) and found.number("d") == 0.1 and found.number("i0") == 255.0
    assert found.metadata["yes"] is True
    assert found.text("s") == "héllo" and found.text("raw") == "\udcff"
    assert found.strings("strings") == ["a", "", "Ġt"] and found.strings("none") == []
    assert found.version == version and found.tensors == {}


def test_a_missing_or_different_key_is_named(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path, gguf([entry("yes", 7, True)], [], b"")))
    for ask in (found.integer, found.number, found.text, found.strings):
        for key in ("yes", "other"):
            with pytest.raises(ModelError, match=rf"model\.gguf: metadata key '{key}' is missing or not"):
                ask(key)
    with pytest.raises(ModelError, match="tensor 'w' is missing"):
        found.tensor("w")


def test_alignment_and_offsets(tmp_path: Path) -> None:
    data = struct.pack("<2f", 1.0, 2.0) + bytes(56) + struct.pack("<2f", 3.0, 4.0)
    infos = [info("b", (2, 1), 0, 64), info("a", (2,), 0, 0)]
    path = write(tmp_path, gguf([entry("general.alignment", 4, 64)], infos, data, align=64))
    found = read_gguf(path)
    assert dequantise(found.tensor("a")).tolist() == [1.0, 2.0]
    assert dequantise(found.tensor("b")).tolist() == [[3.0], [4.0]]


# -- hostile files ---------------------------------------------------------------------------------

HUGE = 2**64 - 1
GOOD_KEYS = [entry("k", 4, 7), entry("list", 8, ["a", "b"]), entry("n", 5, [1, 2])]
GOOD = gguf(GOOD_KEYS, [info("w", (4,), 0, 0)], bytes(16))

HOSTILE = {
    "only 0 bytes": b"",
    "only 23 bytes": GOOD[:23],
    "does not begin": b"GGML" + GOOD[4:],
    "version 1": gguf([], [], b"", version=1),
    "version 4": gguf([], [], b"", version=4),
    "big-endian": gguf([], [], b"", version=3 << 24),
    "claims 18446744073709551615 tensors": gguf([], [], b"", n_tensors=HUGE),
    "claims 0 tensors and 18446744073709551615": gguf([], [], b"", n_keys=HUGE),
    "key 0 is 18446744073709551615 bytes long": gguf([struct.pack("<Q", HUGE)], [], b"", n_keys=1),
    "key 0 is not UTF-8": gguf([entry(b"\xff", 4, 1)], [], b""),
    "'k' appears twice": gguf([entry("k", 4, 1), entry("k", 4, 2)], [], b""),
    "'k' has unknown type 13": gguf([text("k") + struct.pack("<II", 13, 0)], [], b""),
    "'k' is an array of unknown type 9": gguf([text("k") + struct.pack("<IIQ", 9, 9, 1)], [], b""),
    "claims 18446744073709551615 strings": gguf([text("k") + struct.pack("<IIQ", 9, 8, HUGE)], [], b""),
    "claims 4000000 strings": gguf([text("k") + struct.pack("<IIQ", 9, 8, 4_000_000)], [], b""),
    "ends inside metadata key 'k'": gguf([text("k") + struct.pack("<IIQ", 9, 12, HUGE)], [], b""),
    "ends inside metadata key 's'": gguf([text("s") + struct.pack("<IQ", 8, HUGE)], [], b""),
    "alignment": gguf([entry("general.alignment", 4, 48)], [], b""),
    "alignment is not": gguf([entry("general.alignment", 8, "32")], [], b""),
    "has type 9, which": gguf([], [info("w", (256,), 9, 0)], bytes(84)),
    "has type 4294967295, which": gguf([], [info("w", (256,), 2**32 - 1, 0)], bytes(84)),
    "has 0 dimensions": gguf([], [info("w", (), 0, 0)], bytes(64)),
    "has 5 dimensions": gguf([], [info("w", (1,) * 5, 0, 0)], bytes(64)),
    "cannot have the shape (4, 0)": gguf([], [info("w", (4, 0), 0, 0)], bytes(64)),
    "cannot have the shape (2, 48)": gguf([], [info("w", (2, 48), 3, 0)], bytes(64)),
    "'w' lies outside": gguf([], [info("w", (5,), 0, 0)], bytes(16)),
    "'v' lies outside": gguf([], [info("v", (HUGE, HUGE, HUGE, HUGE), 0, 0)], bytes(16)),
    "'u' lies outside": gguf([], [info("u", (4,), 0, 2**64 - 32)], bytes(64)),
    "'t' lies outside the file or is not aligned": gguf([], [info("t", (4,), 0, 4)], bytes(64)),
    "'w' appears twice": gguf([], [info("w", (4,), 0, 0)] * 2, bytes(64)),
    "the name of tensor 0": gguf([], [text(b"\xff")], b"", n_tensors=1),
}


@pytest.mark.parametrize("cause", HOSTILE)
def test_hostile_files_become_one_line(cause: str, tmp_path: Path) -> None:
    path = write(tmp_path, HOSTILE[cause])
    with pytest.raises(ModelError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert cause in message and str(path) in message and "\n" not in message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    read_gguf(write(tmp_path, GOOD))
    for size in range(len(GOOD)):
        with pytest.raises(ModelError):
            read_gguf(write(tmp_path, GOOD[:size]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(GOOD) - 1), new=st.binary(min_size=1, max_size=9))
def test_any_damage_is_read_or_refused_but_never_a_traceback(at: int, new: bytes, tmp_path: Path) -> None:
    raw = GOOD[:at] + new + GOOD[at + len(new) :]
    try:
        for tensor in read_gguf(write(tmp_path, raw)).tensors.values():
            dequantise(tensor)
    except ModelError as err:
        assert "\n" not in str(err)


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="no such model file"):
        read_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="cannot be read|not a usable"):
        read_gguf(tmp_path)


@pytest.mark.weights
def test_the_real_weights_are_the_same_bits_everywhere() -> None:
    found = read_gguf(ensure_gguf())
    assert len(found.tensors) == 272 and found.text("general.architecture") == "llama"
    assert found.tensor("token_embd.weight").type_name == "Q8_0"
    digest = hashlib.sha256()
    for tensor in found.tensors.values():
        digest.update(dequantise(tensor).astype("<f4").tobytes())
    assert digest.hexdigest() == "1034100613c22abd3cc047d99b02ed7a8d419bc245f4cf54a4736c5f699ba569"
