"""Where weights come from, what is in their files, and how they become the exact integer model.

The calls below are what a user's `models` command needs; each imports what it uses when it is called, because some
of it is heavy. Errors are those of `nacz.weights.fetch` and `nacz.weights.store`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nacz.weights.library import Imported
    from nacz.weights.store import Progress

__all__ = ["ModelStatus", "export", "import_model", "imported", "list_models", "path", "pull", "terms", "verify"]


@dataclass(frozen=True)
class ModelStatus:
    """One model that can be fetched. `gguf`, `exact`: its files in the cache folder, None when they are not there.

    `download_size`: bytes. `exact` is what is loaded; it is made from `gguf`, which may be gone afterwards.
    `languages`: of most of what it was trained on. `bpb`, `speed`: as `nacz models measure` finds them.
    """

    name: str
    licence: str
    download_size: int
    gguf: Path | None
    exact: Path | None
    languages: str = ""
    bpb: float = 0.0
    speed: float = 0.0


def list_models() -> tuple[ModelStatus, ...]:
    """Every known model, the default first, and what of it is on this machine."""
    from nacz.weights import fetch, store

    def there(path: Path) -> Path | None:
        return path if path.is_file() else None

    return tuple(
        ModelStatus(
            model.name,
            model.licence,
            model.download_size,
            there(fetch.gguf_path(model.name)),
            there(store.exact_path(model.name)),
            model.languages,
            model.bpb,
            model.speed,
        )
        for model in fetch.known_models()
    )


def imported() -> tuple[Imported, ...]:
    """Every model that was imported on this machine, by name."""
    from nacz.weights import library

    return library.imported()


def import_model(source: str | Path, name: str | None = None, progress: Progress | None = None) -> Imported:
    """Turn a GGUF file or a folder with safetensors into an exact model and keep it under a name; see
    `nacz.weights.library.import_model` for what is raised."""
    from nacz.weights import library

    return library.import_model(source, name, progress)


def export(name: str, target: str | Path, overwrite: bool = False) -> Path:
    """Copy a model to a file that is all that decoding needs; see `nacz.weights.library.export_model`."""
    from nacz.weights import library

    return library.export_model(name, target, overwrite)


def path(name: str | None = None) -> Path:
    """Where the converted model (None: the default) is, or will be."""
    from nacz.weights import fetch, library, store

    return library.find(name or "") or store.exact_path(name or fetch.DEFAULT)


def terms(name: str | None = None) -> str:
    """What a user has to accept before a known model is fetched, "" if there is nothing or it is here."""
    from nacz.weights import fetch, store

    model = fetch.source(name or fetch.DEFAULT)
    here = store.exact_path(model.name).is_file() or fetch.gguf_path(model.name).is_file()
    return "" if here else model.terms


def pull(name: str | None = None, progress: Progress | None = None, accept: bool = False) -> Path | None:
    """Fetch and convert a model unless that is done; returns its file, None when the cache folder cannot be written.

    `accept`: the user accepts the model's terms, without which one that has some is not fetched (ModelMissingError).

    `progress(stage, done, total)` with stage "fetch" (bytes) or "convert" (steps).
    """
    from nacz.weights import fetch, store

    name = fetch.source(name or fetch.DEFAULT).name
    return store.load_model(name, progress=progress, accept=accept).path


def verify(name: str | None = None) -> dict[Path, str]:
    """Read all of a model's files that are here and compare them with the pinned hashes: {file: sha256 in hex}.

    For a converted model the hash is the one that archives record. Raises ModelMissingError when there is none of them,
    ModelMismatchError and ModelError when one is not what it should be.
    """
    from nacz.errors import ModelMissingError
    from nacz.weights import fetch, library, store

    name = name or fetch.DEFAULT
    brought = library.find(name)
    if brought is not None:
        return {brought: store.check_file(brought)}
    found = {}
    exact = store.exact_path(name)
    if exact.exists():
        found[exact] = store.check_exact(name)
    try:
        found[fetch.gguf_path(name)] = fetch.verify_gguf(name)
    except ModelMissingError:
        if not found:
            raise
    return found
