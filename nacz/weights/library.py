"""Models that a user brought: imported from a file or folder, kept by name beside the others, found by their hash.

A model is one file `NAME.naczw`, complete for decoding, and `NAME.json` with what people want to know of it: where it
came from, licence, languages, measured figures. Archives record no name of such a model, only its identity; whoever has
the file, under whatever name, can decode them.

Knows files and names in the folder for weights. Does not know how models are converted or run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nacz.errors import ModelError, ModelMissingError, OutputExistsError, UsageError
from nacz.files import atomic_output
from nacz.formats.records import ModelIdentity
from nacz.weights import fetch, store
from nacz.weights.checkpoint import read_checkpoint
from nacz.weights.exact import ExactModel
from nacz.weights.store import SUFFIX, Progress

__all__ = ["Imported", "Measured", "by_digest", "export_model", "find", "import_model", "imported", "note_measured"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_KEPT = re.compile(rf"({_NAME.pattern}){re.escape(SUFFIX)}")
_CONVERTED = re.compile(r".*\.\d+")  # names of files that are made from what can be fetched again
_GENERIC = {"model", "ggml-model", "pytorch_model", ""}


@dataclass(frozen=True)
class Measured:
    """Bits per byte and KB per CPU second of a model alone, on `size` bytes of the text `text`."""

    bpb: float
    speed: float
    text: str
    size: int


@dataclass(frozen=True)
class Imported:
    """One imported model. Hashes in hex; `identity`: the 4 bytes, in hex, by which archives name it."""

    name: str
    path: Path
    size: int
    weights_hash: str
    tokenizer_hash: str
    identity: str
    source: str = ""
    licence: str = ""
    languages: tuple[str, ...] = ()
    measured: Measured | None = None


def imported() -> tuple[Imported, ...]:
    """All imported models, by name. Files that cannot be read are left out."""
    return tuple(_all())


def find(name: str) -> Path | None:
    """The file of an imported model, None if there is none of this name."""
    if not _NAME.fullmatch(name) or _CONVERTED.fullmatch(name):
        return None
    path = _path(name)
    return path if path.is_file() else None


def by_digest(digest: bytes) -> Path | None:
    """The file of the model with this identity, None if it is not here."""
    with contextlib.suppress(OSError):
        for path in sorted(fetch.model_dir().glob(f"[!.]*{SUFFIX}")):
            with contextlib.suppress(ModelError):
                if _identity(*store.hashes_of(path)) == digest:
                    return path
    return None


def import_model(source: str | Path, name: str | None = None, progress: Progress | None = None) -> Imported:
    """Convert the model in a GGUF file or a folder with safetensors (or take a converted one as it is) and keep it.

    Without `name` it is called after its file or folder. The same model under the same name is left as it is. Raises
    ModelMissingError, ModelError for what cannot be converted exactly, UsageError for a name that cannot be used,
    OutputExistsError for one that another model has, and OSError. Nothing is kept unless all went well.
    """
    source = Path(source)
    if not source.exists():
        raise ModelMissingError(f"{source}: no such model file or folder")
    name = _checked(name if name is not None else _name_from(source))
    about: dict[str, Any] = {"source": source.name}
    if source.is_file() and store.is_converted(source):
        model: ExactModel = store.load(source)
    else:
        checkpoint = read_checkpoint(source)
        about |= {"licence": checkpoint.licence, "languages": list(checkpoint.languages), "title": checkpoint.title}
        model = store.converted(checkpoint, progress)
    wanted = store.weights_hash_of(model).hex()
    path = _path(name)
    with contextlib.suppress(ModelMissingError):
        here = _entry(path)
        if here.weights_hash != wanted or here.tokenizer_hash != store.tokenizer_hash_of(model).hex():
            raise OutputExistsError(f"another model is called {name}; choose a name with --name")
        return here
    path.parent.mkdir(parents=True, exist_ok=True)
    store.save(model, path)
    _write_about(path, about)
    return _entry(path)


def export_model(name: str, target: str | Path, overwrite: bool = False) -> Path:
    """Copy a model's file, whose sums are compared while it is read, to `target`. That file is all that decoding needs.

    Raises ModelMissingError for a model that is not on this machine, ModelError, UsageError and OSError.
    """
    target = Path(target)
    path = find(name)
    if path is None:
        path = store.exact_path(name)
        if not path.is_file():
            raise ModelMissingError(f"the weights of {name} are not on this machine; run `nacz models pull {name}`")
    model = store.load(path)
    if store.weights_hash_of(model) != model.weights_hash:
        raise ModelError(f"{path}: its weights are not those that it names; nothing was written")
    with path.open("rb") as file, atomic_output(target, overwrite=overwrite) as out:
        while block := file.read(1 << 20):
            out.write(block)
    return target


def note_measured(model: Imported, measured: Measured) -> None:
    """Keep figures beside the model."""
    _write_about(model.path, _about(model.path) | {"measured": asdict(measured)})


def _all() -> Iterator[Imported]:
    with contextlib.suppress(OSError):
        for path in sorted(fetch.model_dir().glob(f"*{SUFFIX}")):
            match = _KEPT.fullmatch(path.name)
            if match and not _CONVERTED.fullmatch(match[1]):
                with contextlib.suppress(ModelError):
                    yield _entry(path)


def _identity(weights_hash: bytes, tokenizer_hash: bytes) -> bytes:
    from nacz.predictors.transformer import CONTRACT

    return ModelIdentity.of("", weights_hash, tokenizer_hash, CONTRACT).digest


def _entry(path: Path) -> Imported:
    weights_hash, tokenizer_hash = store.hashes_of(path)
    about = _about(path)
    languages = about.get("languages")
    figures = about.get("measured")
    measured = None
    with contextlib.suppress(TypeError, ValueError):
        measured = Measured(**figures) if isinstance(figures, dict) else None
    return Imported(
        path.name.removesuffix(SUFFIX), path, path.stat().st_size, weights_hash.hex(), tokenizer_hash.hex(),
        _identity(weights_hash, tokenizer_hash).hex(),
        source=str(about.get("source", "")), licence=str(about.get("licence", "")),
        languages=tuple(map(str, languages)) if isinstance(languages, list) else (), measured=measured,
    )  # fmt: skip


def _path(name: str) -> Path:
    return fetch.model_dir() / f"{name}{SUFFIX}"


def _about(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.with_suffix(".json").read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _write_about(path: Path, about: dict[str, Any]) -> None:
    with atomic_output(path.with_suffix(".json"), overwrite=True) as file:
        file.write(json.dumps(about, indent=1).encode() + b"\n")


def _name_from(source: Path) -> str:
    stem = source.resolve().name if source.is_dir() else source.name.removesuffix(SUFFIX).removesuffix(".gguf")
    if stem.lower() in _GENERIC:
        stem = source.resolve().parent.name
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:56]
    name = re.sub(r"\.(\d+)$", r"-\1", name)
    return f"{name}-imported" if any(name == known.name for known in fetch.known_models()) else name


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or _CONVERTED.fullmatch(name) or name in ("none", "all"):
        raise UsageError(f"not a name for a model: {name!r} (small letters, digits, - and _, no .number at the end)")
    if any(name == known.name for known in fetch.known_models()):
        raise UsageError(f"{name} is the name of a model that nacz knows; choose another with --name")
    return name
