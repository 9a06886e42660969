"""Other programs that run language models, in floating point: what they compute holds on one machine only.

Knows their names, and what is asked of them; each has a module, imported when it is first needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from nacz.errors import UsageError

__all__ = ["BACKENDS", "Backend", "BackendProgress", "Stream", "open_backend"]

BACKENDS = ("llama", "transformers")
BackendProgress = Callable[[str, int, int], None]


class Stream(Protocol):
    """One text that a model reads."""

    def feed(self, token: int) -> NDArray[Any]:
        """Show the next token; return float32[vocabulary], natural logits of what comes after it."""
        ...


class Loaded(NamedTuple):
    """What is known of a model. tokens: the bytes of each, b"" for those that no text consists of; context: the most
    tokens that it sees, 0 for no limit; bos: the token before any text, None if it has none."""

    name: str
    weights_hash: bytes
    tokens: list[bytes]
    bos: int | None
    context: int
    fingerprint: str


class Backend(Protocol):
    """A model that was loaded."""

    loaded: Loaded

    def tokenize(self, text: str) -> list[int]:
        """Return tokens for a text, as the model has learned them; they need not be right."""
        ...

    def start(self, window: int, sinks: int) -> Stream:
        """Begin a text; any earlier one is over."""
        ...


def open_backend(
    name: str, model: str | None, offline: bool, progress: BackendProgress | None = None
) -> Backend:
    """Load a model (a file, a folder or a name; None for the default). Raises UsageError without the backend's extra,
    and ModelError."""
    if name not in BACKENDS:
        raise UsageError(f"no such backend: `{name}`; known are exact, {', '.join(BACKENDS)}")
    module: Any = importlib.import_module(f"nacz.backends.{name}_model")
    backend: Backend = module.load(model, offline, progress)
    return backend
