"""Safetensors files and folders: finding tensors and reading them as float32.

A file is the size of its header (u64), the header (JSON: name to dtype, shape and place), and the data. A folder holds
one file, or several with an index that says where each tensor is. Nothing is read from disk until it is used.

Knows the layout of files, and that they may be hostile: everything malformed becomes one `ModelError`. Does not know
what tensors mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError, ModelMissingError

__all__ = ["Stored", "read_folder", "read_json", "read_safetensors"]

_MAX_HEADER = 100_000_000
_MAX_TENSORS = 1 << 16
_MAX_NAME = 1 << 10
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


class Stored(NamedTuple):
    """A tensor as it lies in a file: shape, dtype as the file names it, and bytes (uint8, mapped)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: NDArray[np.uint8]

    def floats(self) -> NDArray[np.float32]:
        """Its weights, exactly, in its shape. Raises ModelError for other types, and for what is not finite."""
        if self.dtype not in _SIZES:
            raise ModelError(f"tensor {self.name!r} has type {self.dtype}, which nacz cannot read")
        if self.dtype == "BF16":
            out = (self.data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            out = self.data.view("<f4" if self.dtype == "F32" else "<f2").astype(np.float32)
        if not np.isfinite(out).all():
            raise ModelError(f"tensor {self.name!r} holds values that are not finite")
        return out.reshape(self.shape)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ModelMissingError and ModelError."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelMissingError(f"{path}: no such file") from None
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: not JSON") from None


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder: of `model.safetensors`, or of the files that its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_safetensors(folder / "model.safetensors")
    places = read_json(index)
    names = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(names, dict) or not all(isinstance(part, str) for part in names.values()):
        raise ModelError(f"{index}: it does not say where tensors are")
    found: dict[str, Stored] = {}
    for part in sorted(set(names.values())):
        if Path(part).name != part:
            raise ModelError(f"{index}: it names a file outside of the folder")
        found |= read_safetensors(folder / part)
    lost = sorted(set(names) - set(found))
    if lost:
        raise ModelError(f"{index}: tensor {lost[0]!r} is in none of its files")
    return found


def read_safetensors(path: Path) -> dict[str, Stored]:
    """All tensors of a file by name. Raises ModelMissingError and ModelError."""

    def fail(cause: str) -> ModelError:
        return ModelError(f"{path}: not a usable safetensors file: {cause}")

    try:
        if path.stat().st_size < 8:
            raise fail("it is too short")
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise ModelMissingError(f"{path}: no such model file") from None
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None
    size = int.from_bytes(data[:8].tobytes(), "little")
    if size > min(_MAX_HEADER, len(data) - 8):
        raise fail("its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + size].tobytes())
    except (ValueError, RecursionError):
        raise fail("its header is not JSON") from None
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise fail("its header is no table of tensors")
    header.pop("__metadata__", None)
    body = data[8 + size :]
    found = {}
    for name, entry in header.items():
        if len(name) > _MAX_NAME or not name.isprintable():
            raise fail("a tensor has an impossible name")
        try:
            dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise fail(f"tensor {name!r} has no type, shape or place") from None
        numbers = (*shape, begin, end)
        if len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise fail(f"tensor {name!r} has an impossible shape or place")
        count = 1
        for length in shape:
            count *= length
        if not begin <= end <= len(body) or end - begin != count * _SIZES.get(dtype, 0) and dtype in _SIZES:
            raise fail(f"tensor {name!r} does not fit its place in the file")
        found[name] = Stored(name, shape, dtype, body[begin:end])
    return found
