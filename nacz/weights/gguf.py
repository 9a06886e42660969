"""GGUF files: reading their header, finding their tensors, and turning quantised blocks into float32.

Knows the file layout (versions 2 and 3, little-endian), and that a file may be
hostile: nothing is allocated because a header asks for it, and everything malformed becomes one `ModelError`.
Knows nothing of what the tensors mean, of where the file came from, or of the exact integer model.

How blocks become numbers is in `nacz.weights.blocks`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError, ModelMissingError
from nacz.weights.blocks import LAYOUTS, Bytes, Floats, NotFinite

Value = int | float | bool | str | list[str] | NDArray[Any]

# Real files hold tens of keys and hundreds of tensors; these bounds only keep hostile ones cheap.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_STRINGS = 1 << 22
_MAX_NAME = 1 << 10
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20

_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file. `shape` is in numpy order (rows first); `data`: raw bytes, uint8, 1-D, mapped."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    data: Bytes

    @property
    def type_name(self) -> str:
        """The type's name as ggml spells it, for example `Q4_1`."""
        return LAYOUTS[self.ggml_type].name


@dataclass(frozen=True)
class GGUFFile:
    """What `read_gguf` found. In `metadata`, arrays of numbers are numpy arrays, arrays of strings lists."""

    path: Path
    version: int
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]

    def integer(self, key: str) -> int:
        """The integer stored under `key`. Raises ModelError when it is missing or something else."""
        value = self.metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self.path}: metadata key {key!r} is missing or not an integer")
        return value

    def number(self, key: str) -> float:
        """The number stored under `key`, as a float. Raises ModelError when it is missing or not one."""
        value = self.metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{self.path}: metadata key {key!r} is missing or not a number")
        return float(value)

    def text(self, key: str) -> str:
        """The string stored under `key`. Raises ModelError when it is missing or something else."""
        value = self.metadata.get(key)
        if not isinstance(value, str):
            raise ModelError(f"{self.path}: metadata key {key!r} is missing or not a string")
        return value

    def strings(self, key: str) -> list[str]:
        """The list of strings stored under `key`. Raises ModelError when it is missing or something else."""
        value = self.metadata.get(key)
        if not isinstance(value, list):
            raise ModelError(f"{self.path}: metadata key {key!r} is missing or not a list of strings")
        return value

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`. Raises ModelError when there is none."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelError(f"{self.path}: tensor {name!r} is missing")
        return found


class _Cursor:
    """A position in the mapped file. Every read checks first that the bytes are there."""

    def __init__(self, path: Path, data: Bytes) -> None:
        self.path = path
        self.view = memoryview(data)  # type: ignore[arg-type]  # numpy's stubs hide its buffer interface
        self.pos = 0

    def fail(self, cause: str) -> ModelError:
        return ModelError(f"{self.path}: not a usable GGUF file: {cause}")

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.view) - self.pos:
            raise self.fail(f"it ends inside {what}")
        start = self.pos
        self.pos += count
        return self.view[start : self.pos]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def name(self, what: str) -> str:
        """A key or a tensor name: short, and clean UTF-8, because it ends up in messages."""
        size = self.u64(what)
        if size > _MAX_NAME:
            raise self.fail(f"{what} is {size} bytes long")
        try:
            return bytes(self.take(size, what)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def string(self, what: str) -> str:
        # Vocabularies with raw bytes in them exist: surrogateescape keeps them, reversibly.
        return bytes(self.take(self.u64(what), what)).decode("utf-8", "surrogateescape")

    def scalars(self, kind: int, count: int, what: str) -> NDArray[Any]:
        dtype = np.dtype(_SCALARS[kind])
        raw = self.take(count * dtype.itemsize, what)
        return np.frombuffer(raw, dtype=dtype, count=count).astype(dtype.newbyteorder("="))

    def strings(self, count: int, what: str) -> list[str]:
        # Inlined on purpose: a vocabulary has 100,000 of these, and start-up waits for them.
        if count > _MAX_STRINGS or 8 * count > len(self.view) - self.pos:
            raise self.fail(f"{what} claims {count} strings")
        view, pos, end = self.view, self.pos, len(self.view)
        length = struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            if end - pos < 8:
                raise self.fail(f"it ends inside {what}")
            (size,) = length(view, pos)
            pos += 8
            if size > end - pos:
                raise self.fail(f"it ends inside {what}")
            found.append(str(view[pos : pos + size], "utf-8", "surrogateescape"))
            pos += size
        self.pos = pos
        return found

    def value(self, what: str) -> Value:
        kind = self.u32(what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            kind, count = self.u32(what), self.u64(what)
            if kind == _STRING:
                return self.strings(count, what)
            if kind in _SCALARS:
                return self.scalars(kind, count, what)
            raise self.fail(f"{what} is an array of unknown type {kind}")
        if kind in _SCALARS:
            plain: Value = self.scalars(kind, 1, what)[0].item()
            return plain
        raise self.fail(f"{what} has unknown type {kind}")


def read_gguf(path: str | Path) -> GGUFFile:
    """Read the header of a GGUF file and map its tensors.

    Nothing of the tensors is read from disk until it is used. Raises ModelMissingError when there is no such
    file and ModelError when it cannot be read, is malformed, or holds a tensor type that `dequantise` lacks.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size < 24:
            raise ModelError(f"{path}: not a usable GGUF file: it is only {size} bytes long")
        data: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise ModelMissingError(f"{path}: no such model file") from None
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None
    cursor = _Cursor(path, data)
    version, n_tensors, n_keys = _read_preamble(cursor)

    metadata: dict[str, Value] = {}
    for number in range(n_keys):
        key = cursor.name(f"metadata key {number}")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} appears twice")
        metadata[key] = cursor.value(f"metadata key {key!r}")

    infos: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
    for number in range(n_tensors):
        name, info = _read_tensor_info(cursor, f"tensor {number}")
        if name in infos:
            raise cursor.fail(f"tensor {name!r} appears twice")
        infos[name] = info

    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or not 1 <= align <= _MAX_ALIGNMENT or align & (align - 1):
        raise cursor.fail("general.alignment is not a small power of two")
    base = -(-cursor.pos // align) * align
    tensors = {}
    for name, (shape, kind, offset, count) in infos.items():
        if offset % align or base + offset + count > len(data):
            raise cursor.fail(f"tensor {name!r} lies outside the file or is not aligned")
        tensors[name] = Tensor(name, shape, kind, data[base + offset : base + offset + count])
    return GGUFFile(path, version, metadata, tensors)


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    """Magic, version and the two counts: (version, tensors, keys)."""
    if bytes(cursor.take(4, "its magic")) != b"GGUF":
        raise cursor.fail("it does not begin with the bytes GGUF")
    version = cursor.u32("its version")
    if version in (2 << 24, 3 << 24):
        raise cursor.fail("it is big-endian")
    if version not in (2, 3):
        raise cursor.fail(f"it has version {version}; versions 2 and 3 are known")
    n_tensors, n_keys = cursor.u64("its tensor count"), cursor.u64("its key count")
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        raise cursor.fail(f"it claims {n_tensors} tensors and {n_keys} metadata keys")
    return version, n_tensors, n_keys


def _read_tensor_info(cursor: _Cursor, what: str) -> tuple[str, tuple[tuple[int, ...], int, int, int]]:
    """One tensor's entry: name, (shape in numpy order, type, offset in the data part, bytes)."""
    name = cursor.name(f"the name of {what}")
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= _MAX_DIMS:
        raise cursor.fail(f"tensor {name!r} has {n_dims} dimensions")
    shape = tuple(cursor.u64(what) for _ in range(n_dims))[::-1]
    kind, offset = cursor.u32(what), cursor.u64(what)
    layout = LAYOUTS.get(kind)
    if layout is None:
        raise cursor.fail(f"tensor {name!r} has type {kind}, which nacz cannot read")
    count = 1
    for length in shape:
        count *= length  # Python integers: cannot overflow, and is compared with the file's size later
    if count == 0 or shape[-1] % layout.values:
        raise cursor.fail(f"tensor {name!r} of type {layout.name} cannot have the shape {shape}")
    return name, (shape, kind, offset, count // layout.values * layout.size)


def dequantise(tensor: Tensor) -> Floats:
    """The tensor's weights, float32 in `tensor.shape`, C order; the same bits on every machine.

    Raises ModelError when a scale or a value is infinite or not a number, or when `data` has the wrong size.
    """
    layout = LAYOUTS.get(tensor.ggml_type)
    if layout is None:
        raise ModelError(f"tensor {tensor.name!r} has type {tensor.ggml_type}, which nacz cannot read")
    out = np.empty(tensor.shape, dtype=np.float32)
    if out.size % layout.values or tensor.data.size != out.size // layout.values * layout.size:
        raise ModelError(f"tensor {tensor.name!r}: {tensor.data.size} bytes do not fill {tensor.shape}")
    flat = out.reshape(-1, layout.values)
    blocks = tensor.data.reshape(-1, layout.size)
    step = max(1, (1 << 17) // layout.values)  # small pieces keep the temporaries in the cache
    for start in range(0, len(blocks), step):
        try:
            flat[start : start + step] = layout.decode(np.ascontiguousarray(blocks[start : start + step]))
        except NotFinite:
            raise ModelError(f"tensor {tensor.name!r} holds values that are not finite") from None
    return out
