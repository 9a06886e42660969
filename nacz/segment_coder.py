"""What the codec asks of a predictor: one segment of bytes to parameters and payload, and back.

Holds the protocol, the options that choose and shape a predictor, and the table of predictors by id. A
predictor's module is imported when it is first needed. Knows that predictors exist and how they are called;
does not know how they predict, nor the container.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from nacz.errors import CorruptDataError, UnsupportedVersionError, UsageError
from nacz.formats.records import ModelIdentity
from nacz.levels import LAST_LEVEL_WITHOUT_WEIGHTS
from nacz.weights.pinned import DIGESTS

STORED = 0
BYTE_MODEL = 1
LANGUAGE_MODEL = 2
LLAMA = 3
TRANSFORMERS = 4
FLOATS = (LLAMA, TRANSFORMERS)  # other programs, in floating point

DEFAULT_LEVEL = COMPRESSION_LEVEL_DEFAULT = 6
MIN_LEVEL = 1
MAX_LEVEL = 9

__all__ = [
    "BYTE_MODEL",
    "COMPRESSION_LEVEL_DEFAULT",
    "DEFAULT_LEVEL",
    "FLOATS",
    "LANGUAGE_MODEL",
    "LLAMA",
    "LAST_LEVEL_WITHOUT_WEIGHTS",
    "MAX_LEVEL",
    "MIN_LEVEL",
    "STORED",
    "TRANSFORMERS",
    "CodecOptions",
    "ModelIdentity",
    "ModelProgress",
    "Registered",
    "SegmentCoder",
    "SegmentProgress",
    "TrialProgress",
    "as_recorded",
    "make_coder",
    "model_is_known",
    "model_of_digest",
    "name_of_model",
    "predictor_name",
    "register_predictor",
    "registered",
    "trial_progress",
]

# Called with counts inside the segment: plain bytes done, coded bytes so far, tokens done (0 if there are
# none). May raise to cancel, so a coder must not swallow what it raises.
SegmentProgress = Callable[[int, int, int], None]

# Called during a trial whose result may be thrown away: steps done, steps in all. The same may be raised.
TrialProgress = Callable[[int, int], None]

# Called while a model is made ready: what is being done ("fetch", "convert"), steps done, steps in all.
ModelProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CodecOptions:
    """What a caller may choose. Everything here that changes a result must end in the archive.

    level         1 to 9; 1 to 3 need no weights
    model         name or path of the language model; "none" for a predictor without weights; None for the
                  default when compressing and for the one that the archive names when decompressing
    window        tokens of context, None for the level's choice
    lanes         streams per segment, None for the choice by size and level
    ensemble      what mixes into the language model: names like "ngram,match", "all" or "none"; None for the level's
                  choice
    learn         how many of the network's last layers learn while it codes, 0 for none; None for the level's choice
    segment_size  plain bytes per segment, None for the predictor's choice
    offline       never fetch weights
    backend       who runs the model: None or "exact" for nacz itself, "llama" or "transformers" for other programs, in
                  floating point: their archives are bound to the machine; no meaning when decompressing
    ignore_fingerprint   decode although another release or machine wrote it with such a program
    """

    level: int = DEFAULT_LEVEL
    model: str | None = None
    window: int | None = None
    lanes: int | None = None
    ensemble: str | None = None
    learn: int | None = None
    segment_size: int | None = None
    offline: bool = False
    backend: str | None = None
    ignore_fingerprint: bool = False

    def __post_init__(self) -> None:
        if not MIN_LEVEL <= self.level <= MAX_LEVEL:
            raise UsageError(f"level must be {MIN_LEVEL} to {MAX_LEVEL}: {self.level}")
        for name in ("window", "lanes", "segment_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1: {value}")
        if self.learn is not None and self.learn < 0:
            raise UsageError(f"learn must be at least 0: {self.learn}")
        if self.backend not in (None, "exact", "llama", "transformers"):
            raise UsageError(f"no such backend: `{self.backend}`; known are exact, llama, transformers")
        if self.is_float and self.model == "none":
            raise UsageError(f"the backend `{self.backend}` needs a model")

    @classmethod
    def at(cls, level: int | None, options: CodecOptions | None) -> CodecOptions:
        """Return `options`, or the default ones, with `level` in place of theirs unless it is None."""
        chosen = cls() if options is None else options
        return chosen if level is None else replace(chosen, level=level)

    @property
    def is_float(self) -> bool:
        """Whether these options choose another program, in floating point, for compression."""
        return self.backend not in (None, "exact")

    @property
    def predictor(self) -> int:
        """Id of the predictor that these options choose for compression."""
        if self.is_float:
            return LLAMA if self.backend == "llama" else TRANSFORMERS
        if self.model == "none" or (self.model is None and self.level <= LAST_LEVEL_WITHOUT_WEIGHTS):
            return BYTE_MODEL
        return LANGUAGE_MODEL


class SegmentCoder(Protocol):
    """One predictor, ready to code segments. Made once per file with `Coder(options)`.

    `predictor_id`          the id in the archive
    `default_segment_size`  plain bytes per segment when the caller does not say
    `needs_model`           whether `model_identity` must be recorded and compared
    Segments are independent: nothing may be carried from one call to the next that changes a result. The
    result is a function of data, options and model only, never of `threads` or of the machine.
    """

    predictor_id: int
    default_segment_size: int
    needs_model: bool

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        """Return the identity of the model, loading it if need be; None for a predictor without a model.

        Raises ModelMissingError and ModelMismatchError.
        """
        ...

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        """Return (params, payload) for 1 to 2^28 bytes; `params` holds all that `decode` needs to know."""
        ...

    def decode(
        self,
        params: bytes,
        payload: bytes,
        plain_size: int,
        *,
        threads: int,
        progress: SegmentProgress | None,
    ) -> bytes:
        """Return the `plain_size` bytes. Both `params` and `payload` may come from an enemy.

        Raises CorruptDataError for anything that `encode` does not write, and never allocates more than a
        constant and a small multiple of `plain_size`.
        """
        ...


CoderFactory = Callable[[CodecOptions], SegmentCoder]


class StoredCoder:
    """Keeps the bytes as they are: the floor below every other predictor."""

    predictor_id = STORED
    default_segment_size = 1 << 24
    needs_model = False

    def __init__(self, options: CodecOptions) -> None:
        pass

    def model_identity(self, progress: ModelProgress | None = None) -> None:
        return None

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        return b"", data

    def decode(
        self,
        params: bytes,
        payload: bytes,
        plain_size: int,
        *,
        threads: int,
        progress: SegmentProgress | None,
    ) -> bytes:
        if params or len(payload) != plain_size:
            raise CorruptDataError("a stored segment must hold its plain bytes and nothing else")
        return payload


# (id, "module:attribute" or a callable, name, names of models) of predictors that were added at run time.
Registered = tuple[tuple[int, CoderFactory | str, str, tuple[str, ...]], ...]

_NAMES = {
    STORED: "stored",
    BYTE_MODEL: "byte model",
    LANGUAGE_MODEL: "language model",
    LLAMA: "model of llama.cpp",
    TRANSFORMERS: "model of transformers",
}
_factories: dict[int, CoderFactory | str] = {
    STORED: StoredCoder,
    BYTE_MODEL: "nacz.predictors.bytemodel:ByteModelCoder",
    LANGUAGE_MODEL: "nacz.predictors.language_model:LanguageModelCoder",
    LLAMA: "nacz.predictors.float_model:LlamaCoder",
    TRANSFORMERS: "nacz.predictors.float_model:TransformersCoder",
}


_OWN = tuple(_factories.items())
_model_names: set[str] = set()


def register_predictor(
    predictor_id: int, factory: CoderFactory | str | None, name: str = "", models: Iterable[str] = ()
) -> None:
    """Add or replace a predictor: a callable on CodecOptions, or "module:attribute" to import when needed.

    None removes it. `models` are the names of models that archives may ask it for. Archives name predictors by
    number only, so whoever adds one owns its future.
    """
    _model_names.update(models)
    if factory is None:
        _factories.pop(predictor_id, None)
        return
    _factories[predictor_id] = factory
    if name:
        _NAMES[predictor_id] = name


def registered() -> Registered:
    """Return what was registered in this process, so that another one can do the same."""
    own = {key: _place(factory) for key, factory in _OWN}
    names = tuple(sorted(_model_names))
    return tuple(
        (key, factory, predictor_name(key), names)
        for key, factory in _factories.items()
        if _place(factory) != own.get(key)
    )


def _place(factory: CoderFactory | str) -> str:
    if isinstance(factory, str):
        return factory
    return f"{getattr(factory, '__module__', '')}:{getattr(factory, '__qualname__', '')}"


def model_is_known(name: str) -> bool:
    """Tell whether an archive may ask for the model by this name. Any other name would be an enemy's choice of a
    file to open, since a user may give a path where an archive gives a name."""
    from nacz.weights.fetch import known_models

    return name in _model_names or any(model.name == name for model in known_models())


def model_of_digest(digest: bytes) -> str | None:
    """Return the path of the model that a user imported and that archives identify so, None if it is not here."""
    from nacz.weights.library import by_digest

    found = by_digest(digest)
    return None if found is None else str(found)


def name_of_model(identity: ModelIdentity) -> str:
    """Return the name of a model that an archive identifies, "" if it has none."""
    return identity.name or _name_of_digest(identity.digest)


def as_recorded(identity: ModelIdentity) -> ModelIdentity:
    """Return the identity as archives record it: without a name where the digest is enough."""
    return replace(identity, name="") if _name_of_digest(identity.digest) else identity


def _name_of_digest(digest: bytes) -> str:
    """Return the name of a model that every reader knows by its digest, so that its name needs no room in archives."""
    return DIGESTS.get(digest.hex(), "")


def predictor_name(predictor_id: int) -> str:
    """Return a short name for people."""
    return _NAMES.get(predictor_id, f"predictor {predictor_id}")


def trial_progress(progress: SegmentProgress | None) -> TrialProgress | None:
    """Return what a coder shall call during a trial, None if whoever made `progress` wants to know of none."""
    trying: TrialProgress | None = getattr(progress, "trying", None)
    return trying


def make_coder(predictor_id: int, options: CodecOptions) -> SegmentCoder:
    """Return a coder for the predictor.

    Raises UnsupportedVersionError for an id that this release does not know, and UsageError for one that this
    installation lacks.
    """
    factory = _factories.get(predictor_id)
    if factory is None:
        raise UnsupportedVersionError(f"the archive uses a predictor unknown to this release: {predictor_id}")
    if isinstance(factory, str):
        module_name, _, attribute = factory.partition(":")
        if importlib.util.find_spec(module_name) is None:
            raise UsageError(f"this installation has no {predictor_name(predictor_id)}")
        loaded: CoderFactory = getattr(importlib.import_module(module_name), attribute)
        _factories[predictor_id] = factory = loaded
    return factory(options)
