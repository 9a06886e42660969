"""The file of a converted exact model, and how a model is found by name or path.

A file holds one model: a small header, the arrays, the tokenizer. Loading maps it read-only; nothing is copied. All
numbers are little-endian:

    magic            8   89 4E 41 43 5A 57 0D 0A  (\\x89 N A C Z W CR LF)
    version          u32 1 for a plain model, 2 for a general one (nacz.weights.general)
    header size      u32 of what follows the next field, at most 64 KB
    header checksum  u64 XXH3-64 of the header
    header:
      file size        u64
      data checksum    u64 XXH3-64 of everything after the header
      weights hash     32  sha256 of the description and of the bytes of all arrays, in order
      tokenizer hash   32  sha256 of the serialised tokenizer
      tokenizer size   u64
      description:
        layers dim heads kv_heads ffn vocab context  7 x u32, then rope_base and eps as f64; more in version 2
        number of arrays u32; for each: length of its name u8, name, dtype as numpy spells it (3 bytes), elements u64
    arrays, then the tokenizer, in that order: each begins at the next multiple of 64 bytes, with zeros before it

The weights hash is what archives record. It covers what decides a probability and nothing else: no names of models, no
positions. For the models that can be fetched it is pinned in nacz.weights.pinned; when the conversion changes on
purpose, raise `exact.CONVERSION` and put there what this prints:

    python -c "from nacz.weights import store; print(store.conversion_hash())"

Knows the layout of the file and where files are kept. Does not know how weights are converted, run or downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import xxhash
from numpy.typing import NDArray

from nacz.errors import ModelError, ModelMismatchError, ModelMissingError
from nacz.files import atomic_output
from nacz.tokens import Tokenizer
from nacz.weights import fetch
from nacz.weights.adapter import adapted, packaged
from nacz.weights.checkpoint import Checkpoint, read_checkpoint
from nacz.weights.conversion import convert, tokenizer_of
from nacz.weights.exact import CONVERSION, Architecture, ExactModel, array_layout
from nacz.weights.general import GeneralArchitecture
from nacz.weights.pinned import PINNED

MAGIC = b"\x89NACZW\r\n"
SHAPES: dict[int, type[Architecture]] = {shape.FILE_VERSION: shape for shape in (Architecture, GeneralArchitecture)}
SUFFIX = ".naczw"
ALIGNMENT = 64

# stage ("fetch" or "convert"), done, total: bytes of a download, or steps of a conversion
Progress = Callable[[str, int, int], None]

_PREAMBLE = struct.Struct("<8sIIQ")
_FIXED = struct.Struct("<QQ32s32sQ")
_MAX_HEADER = 1 << 16
_MAX_TOKENIZER = 1 << 28
_MAX_STEP = 16.0
_MAX_BIAS = 65536.0
_GGUF_MAGIC = b"GGUF"
_STALE_SECONDS = 24 * 3600.0
_mapped: WeakValueDictionary[tuple[int, int, int, int], LoadedModel] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class LoadedModel(ExactModel):
    """An exact model ready to run: flat read-only arrays on 64-byte boundaries, named and sized as in `array_layout`.

    `weights_hash`, `tokenizer_hash`: 32 bytes each (sha256). `name`: the known model that these weights are, else "".
    `path`: the file that is mapped, None for a model that only lives in memory.
    """

    weights_hash: bytes
    tokenizer_hash: bytes
    name: str
    path: Path | None

    @cached_property
    def vocabulary(self) -> Tokenizer:
        """The tokenizer, parsed when first asked for. Raises ModelError when it does not fit the model."""
        if hashlib.sha256(self.tokenizer).digest() != self.tokenizer_hash:
            raise ModelError(f"{self.path or 'the model'}: its tokenizer is damaged")
        vocabulary = Tokenizer.from_blob(self.tokenizer)
        if vocabulary.n_vocab > self.architecture.vocab:
            raise ModelError(f"{self.path or 'the model'}: its tokenizer has more tokens than the model")
        return vocabulary


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


# -- the file ---------------------------------------------------------------------------------------------------------


def save(model: ExactModel, path: Path | str) -> bytes:
    """Write a model to `path`, replacing what is there, in one step; returns its weights hash (32 bytes).

    Any number of processes may do this at once. Raises ModelError when the arrays are not those of the architecture,
    and OSError.
    """
    header, weights_hash = _header(model)
    with atomic_output(path, overwrite=True) as file:
        _write(model, header, file)
    return weights_hash


def load(path: Path | str) -> LoadedModel:
    """Map the model in `path`. All bytes are read once and compared with the file's checksum (190 MB: about 15 ms), and
    who asks for the same file again while somebody has it gets the same model.

    Raises ModelMissingError when there is no such file, ModelError when it cannot be read, is damaged or is something
    else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            key = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
            if (mapped := _mapped.get(key)) is not None and mapped.path == path:
                return mapped
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelMissingError(f"{path}: no such model file") from None
    except ValueError:
        raise ModelError(f"{path}: not a converted model: it is empty") from None
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None
    model = _mapped[key] = _parse(data, path)
    return model


def in_memory(model: ExactModel) -> LoadedModel:
    """As if saved and loaded, without a file: aligned, read-only and hashed. Raises ModelError as `save` does."""
    header, _ = _header(model)
    data = mmap.mmap(-1, _FIXED.unpack_from(header, _PREAMBLE.size)[0])
    _write(model, header, data)
    return _parse(data, None)


def is_converted(path: Path) -> bool:
    """Whether a file begins as converted models do. Raises ModelError when it cannot be read."""
    return _magic_of(path) == MAGIC


def hashes_of(path: Path) -> tuple[bytes, bytes]:
    """(weights hash, tokenizer hash), 32 bytes each, that a file's header names; the rest of it is not read. Raises
    ModelMissingError and ModelError."""
    try:
        with path.open("rb") as file:
            head = file.read(_PREAMBLE.size + _MAX_HEADER)
    except FileNotFoundError:
        raise ModelMissingError(f"{path}: no such model file") from None
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None
    if len(head) >= _PREAMBLE.size + _FIXED.size:
        magic, version, body_size, body_hash = _PREAMBLE.unpack_from(head)
        body = head[_PREAMBLE.size : _PREAMBLE.size + body_size]
        if magic == MAGIC and version in SHAPES and xxhash.xxh3_64_intdigest(body) == body_hash:
            _, _, weights_hash, tokenizer_hash, _ = _FIXED.unpack_from(body)
            return weights_hash, tokenizer_hash
    raise ModelError(f"{path}: not a usable converted model")


def tokenizer_hash_of(model: ExactModel) -> bytes:
    """sha256 of the serialised tokenizer, 32 bytes."""
    return hashlib.sha256(model.tokenizer).digest()


def weights_hash_of(model: ExactModel) -> bytes:
    """sha256 of the description and the arrays, 32 bytes, computed anew. Raises ModelError as `save` does."""
    digest = hashlib.sha256(_description(model.architecture))
    for piece in _arrays(model):
        digest.update(piece.data)
    return digest.digest()


def _description(arch: Architecture) -> bytes:
    """Architecture and array table as bytes: the same for the same model wherever it is made."""
    layout = array_layout(arch)
    out = arch.to_bytes() + struct.pack("<I", len(layout))
    for name, (dtype, count) in layout.items():
        out += struct.pack("<B", len(name)) + name.encode("ascii") + dtype.encode("ascii") + struct.pack("<Q", count)
    return out


def _arrays(model: ExactModel) -> Iterator[NDArray[Any]]:
    """The arrays in the order of the layout, checked against it, as little-endian numbers."""
    layout = array_layout(model.architecture)
    if set(layout) != set(model.arrays):
        raise ModelError("the arrays of the model are not those of its architecture")
    for name, (dtype, count) in layout.items():
        array = model.arrays[name]
        if array.shape != (count,) or array.dtype != np.dtype(dtype).newbyteorder("="):
            raise ModelError(f"array {name} of the model is {array.dtype}{array.shape}, expected {dtype} ({count},)")
        yield np.ascontiguousarray(array, dtype=dtype)


def _pieces(model: ExactModel, header_size: int) -> Iterator[Any]:
    """What follows the header: arrays and tokenizer, and the zeros before each."""
    at = header_size
    for piece in (*_arrays(model), np.frombuffer(model.tokenizer, np.uint8)):
        yield bytes(-at % ALIGNMENT)
        yield piece.data
        at += -at % ALIGNMENT + piece.nbytes


def _header(model: ExactModel) -> tuple[bytes, bytes]:
    """(preamble and header, weights hash)."""
    description = _description(model.architecture)
    size = _PREAMBLE.size + _FIXED.size + len(description)
    data_hash, end = xxhash.xxh3_64(), size
    for piece in _pieces(model, size):
        data_hash.update(piece)
        end += memoryview(piece).nbytes
    weights_hash = weights_hash_of(model)
    tokenizer_hash = hashlib.sha256(model.tokenizer).digest()
    fixed = _FIXED.pack(end, data_hash.intdigest(), weights_hash, tokenizer_hash, len(model.tokenizer))
    body = fixed + description
    version = model.architecture.FILE_VERSION
    return _PREAMBLE.pack(MAGIC, version, len(body), xxhash.xxh3_64_intdigest(body)) + body, weights_hash


def _write(model: ExactModel, header: bytes, sink: _Sink) -> None:
    sink.write(header)
    for piece in _pieces(model, len(header)):
        sink.write(piece)


def _parse(data: mmap.mmap, path: Path | None) -> LoadedModel:
    """Arrays as views of `data`. Everything is checked: compiled code trusts sizes."""

    def fail(cause: str) -> ModelError:
        return ModelError(f"{path or 'the model'}: not a usable converted model: {cause}")

    if len(data) < _PREAMBLE.size:
        raise fail("it is truncated")
    magic, version, body_size, body_hash = _PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise fail("it does not begin with the right bytes")
    kind = SHAPES.get(version)
    if kind is None:
        raise fail(f"it has version {version}, this release knows {max(SHAPES)}")
    if not _FIXED.size + kind.SHAPE.size <= body_size <= _MAX_HEADER or len(data) < _PREAMBLE.size + body_size:
        raise fail("its header has an impossible size")
    body = data[_PREAMBLE.size : _PREAMBLE.size + body_size]
    if xxhash.xxh3_64_intdigest(body) != body_hash:
        raise fail("its header is damaged")
    size, data_hash, weights_hash, tokenizer_hash, tokenizer_size = _FIXED.unpack_from(body)
    arch = kind.from_bytes(body[_FIXED.size : _FIXED.size + kind.SHAPE.size])
    arch.check()
    # The layout follows from the architecture, so the table has nothing to say: it must be the expected one.
    if body[_FIXED.size :] != _description(arch) or tokenizer_size > _MAX_TOKENIZER:
        raise fail("its arrays are not those that this release computes with")
    at, arrays = _PREAMBLE.size + body_size, {}
    for name, (dtype, count) in array_layout(arch).items():
        at += -at % ALIGNMENT
        arrays[name] = (at, dtype, count)
        at += count * np.dtype(dtype).itemsize
    at += -at % ALIGNMENT
    if size != at + tokenizer_size or len(data) != size:
        raise fail(f"it has {len(data)} bytes and should have {at + tokenizer_size}")
    view = memoryview(data)
    if xxhash.xxh3_64_intdigest(view[_PREAMBLE.size + body_size :]) != data_hash:
        raise fail("its data is damaged (checksum differs)")
    views = {name: np.frombuffer(view, dtype, count, at) for name, (at, dtype, count) in arrays.items()}
    for array in views.values():
        array.setflags(write=False)  # maps in memory are writable, files are not: compiled code sees one type
    # With steps of at most 16 (real ones are below 0.1) and sums of at most 2^31, no float of a forward pass exceeds
    # 2^120, whatever the weights: so none is infinite or not a number, on which machines differ.
    for key, array in views.items():
        if key.endswith("_step") and not (array.min() >= 0.0 and array.max() <= _MAX_STEP):
            raise fail(f"array {key} holds steps out of range")
        if key.endswith(("_bias", "_gain")) and array.size and not np.abs(array).max() <= _MAX_BIAS:
            raise fail(f"array {key} holds values out of range")
    if not np.abs(views["rope"]).max() <= 1.0:
        raise fail("array rope holds values out of range")
    name = next((known for known, pin in PINNED.items() if pin == weights_hash.hex()), "")
    return LoadedModel(arch, views, bytes(view[at:]), weights_hash, tokenizer_hash, name, path)


# -- finding a model --------------------------------------------------------------------------------------------------


def exact_path(name: str = fetch.DEFAULT) -> Path:
    """Where the converted model of this name is, or will be. Raises ModelError for an unknown name."""
    return fetch.model_dir() / f"{fetch.source(name).name}.{CONVERSION}{SUFFIX}"


def load_model(
    name_or_path: str | Path | None = None, *, offline: bool = False, progress: Progress | None = None,
    accept: bool = False,
) -> LoadedModel:  # fmt: skip
    """The model of a known name (None: the default) or of an imported one, or in a file: a converted model, a GGUF of a
    family that nacz knows, or a folder with safetensors.

    Fetches and converts what is missing, and keeps it in the cache folder; where that cannot be written, the converted
    model lives in memory. `offline` never starts a download; `accept`: the user accepts the
    terms of a model that has some. `progress(stage, done, total)` is called from this thread.

    Raises ModelMissingError, ModelMismatchError when weights or conversion are not the pinned ones, and ModelError.
    """
    known = [model.name for model in fetch.known_models()]
    if name_or_path is None or name_or_path in known:
        return _known(str(name_or_path or fetch.DEFAULT), offline, progress, accept)
    from nacz.weights import library

    path = library.find(str(name_or_path)) or Path(name_or_path)
    if not path.exists():
        names = ", ".join([*known, *(model.name for model in library.imported())])
        raise ModelMissingError(f"{path}: no model has this name (known: {names}) and no file is there")
    if path.is_dir():
        return in_memory(_converted(path, progress))
    if not _magic_of(path).startswith(_GGUF_MAGIC):
        return load(path)
    # The name is made of the content: another file under the same path is another model.
    kept = fetch.model_dir() / f"gguf-{_sha256(path)[:32]}.{CONVERSION}{SUFFIX}"
    with contextlib.suppress(ModelError):
        return load(kept)
    return _keep(_converted(path, progress), kept)


def conversion_hash(name: str = fetch.DEFAULT) -> str:
    """Weights hash (hex) that converting a known model's GGUF gives on this machine now. For pinning."""
    return weights_hash_of(_converted(fetch.ensure_gguf(name), None, fetch.source(name).adapter)).hex()


def check_exact(name: str = fetch.DEFAULT) -> str:
    """Read the converted model of a known name, compare all its hashes and return its weights hash (hex).

    Raises ModelMissingError when it is not there, ModelMismatchError when it is not the known one, and ModelError.
    """
    return check_file(exact_path(name), PINNED.get(name))


def check_file(path: Path, pin: str | None = None) -> str:
    """The same for a file, which may have to have a certain weights hash (hex)."""
    model = load(path)
    found = weights_hash_of(model).hex()
    if found != model.weights_hash.hex() or found != (pin or found):
        raise ModelMismatchError(f"{model.path}: sha256 {found[:16]}... is not the known one; delete the file")
    model.vocabulary  # noqa: B018  # compares the tokenizer's hash
    return found


def _known(name: str, offline: bool, progress: Progress | None, accept: bool) -> LoadedModel:
    path, pin = exact_path(name), PINNED.get(name)
    # Damaged or made by an unreleased conversion: it is only a copy, and is made again.
    with contextlib.suppress(ModelError):
        model = load(path)
        if pin is None or model.weights_hash.hex() == pin:
            return model
    gguf = fetch.ensure_gguf(name, offline=offline, progress=_stage(progress, "fetch"), accept=accept)
    fetch.verify_gguf(name)
    converted = _converted(gguf, progress, fetch.source(name).adapter)
    found = weights_hash_of(converted).hex()
    if pin is not None and found != pin:
        raise ModelMismatchError(
            f"converting {name} gave weights {found[:16]}... instead of {pin[:16]}...: "
            "this machine or its numpy computes differently; please report it"
        )
    return _keep(converted, path)


def _converted(path: Path, progress: Progress | None, adapter: str = "") -> ExactModel:
    checkpoint = read_checkpoint(path)
    return converted(adapted(checkpoint, packaged(adapter)) if adapter else checkpoint, progress)


def converted(checkpoint: Checkpoint, progress: Progress | None = None) -> ExactModel:
    """The exact model of a checkpoint, in memory. Raises ModelError for what cannot be one."""
    return convert(checkpoint, tokenizer_of(checkpoint).to_blob(), _stage(progress, "convert"))


def _magic_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None


def _keep(model: ExactModel, path: Path) -> LoadedModel:
    """Save and map; in memory where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        save(model, path)
        return load(path)
    except (OSError, ModelMissingError):
        return in_memory(model)


def _remove_stale(folder: Path) -> None:
    """Remove what a killed conversion left behind, once it is too old to belong to a running one."""
    for left in folder.glob(f".*{SUFFIX}.*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(stage, done, total)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
