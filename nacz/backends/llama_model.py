"""llama.cpp through llama-cpp-python: any GGUF. Needs the extra `llama`, which is compiled when it is installed.

One sequence, one token at a time, one thread unless NACZ_BACKEND_THREADS says otherwise (threads that wait for others
spin, which can make two of them seven times slower than one). The window slides inside of the library's cache. Knows
the library's calls; does not know symbols nor coding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.backends import BackendProgress, Loaded
from nacz.errors import InternalError, ModelError, ModelMissingError, UsageError
from nacz.weights import fetch

__all__ = ["load"]


def load(model: str | None, offline: bool, progress: BackendProgress | None) -> Llama:
    """Load a GGUF: a file, a known name, None for the default."""
    library = _library()
    known = [source.name for source in fetch.known_models()]
    if model is None or model in known:
        report = None if progress is None else lambda done, total: progress("fetch", done, total)
        name = model or fetch.UNCHANGED
        path = fetch.ensure_gguf(name, offline=offline, progress=report)
    else:
        path = Path(model)
        name = re.sub(r"[^a-z0-9._-]", "-", path.stem.lower()).lstrip("._-")[:64]
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        raise ModelMissingError(f"{path}: no model has this name and no file is there") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    if magic != b"GGUF":
        raise ModelError(f"{path}: not a GGUF file")
    return Llama(library, path, name, digest)


def _library() -> Any:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import llama_cpp
    except ImportError:
        raise UsageError("this backend needs the extra `llama`: pip install 'nacz[llama]' (it is compiled)") from None
    return llama_cpp


_log: Any = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_silence = _log(lambda level, text, data: None)  # kept here: the library calls it as long as it lives


class Llama:
    """A model in the library's memory."""

    def __init__(self, library: Any, path: Path, name: str, digest: bytes) -> None:
        self._lib = library
        self._threads = int(os.environ.get("NACZ_BACKEND_THREADS", "1"))
        self._device = os.environ.get("NACZ_BACKEND_DEVICE", "cpu")
        library.llama_log_set(_silence, ctypes.c_void_p(0))
        library.llama_backend_init()
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = 0 if self._device == "cpu" else -1
        self._model = library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise ModelError(f"{path}: llama.cpp cannot load it (damaged, or of an unknown kind)")
        self._vocab = library.llama_model_get_vocab(self._model)
        tokens = [self._piece(token) for token in range(library.llama_vocab_n_tokens(self._vocab))]
        bos = int(library.llama_vocab_bos(self._vocab))
        features = hashlib.sha256(library.llama_print_system_info()).hexdigest()[:8]
        fingerprint = (
            f"llama-cpp-python {library.__version__}; {platform.machine()}, features {features}; {self._device}; "
            f"threads {self._threads}; batch 1"
        )
        context = int(library.llama_model_n_ctx_train(self._model))
        self.loaded = Loaded(name, digest, tokens, bos if bos >= 0 else None, context, fingerprint)
        self._context: Any = None
        self._window = 0

    def _piece(self, token: int) -> bytes:
        lib = self._lib
        if lib.llama_vocab_is_control(self._vocab, token):
            return b""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8")
        size = len(data) + 8
        out = (self._lib.llama_token * size)()
        n = self._lib.llama_tokenize(self._vocab, data, len(data), out, size, False, False)
        return list(out[:n]) if n >= 0 else []

    def start(self, window: int, sinks: int) -> _Stream:
        lib = self._lib
        if self._context is None or self._window != window:
            if self._context is not None:
                lib.llama_free(self._context)
            parameters = lib.llama_context_default_params()
            parameters.n_ctx = window
            parameters.n_batch = parameters.n_ubatch = min(window, 512)
            parameters.n_threads = parameters.n_threads_batch = self._threads
            self._context = lib.llama_init_from_model(self._model, parameters)
            if not self._context:
                raise UsageError(f"llama.cpp cannot make a context of {window} tokens")
            self._window = window
        return _Stream(lib, self._context, window, sinks, len(self.loaded.tokens))


class _Stream:
    """The text in a context."""

    def __init__(self, library: Any, context: Any, window: int, sinks: int, n_tokens: int) -> None:
        self._lib, self._context = library, context
        self._window, self._sinks, self._n_tokens = window, sinks, n_tokens
        self._memory = library.llama_get_memory(context)
        library.llama_memory_clear(self._memory, True)
        self._can_shift = bool(library.llama_memory_can_shift(self._memory))
        self._seen: list[int] = []

    def feed(self, token: int) -> NDArray[Any]:
        if len(self._seen) == self._window:
            self._slide()
        self._decode([token])
        self._seen.append(token)
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._n_tokens,)).copy()

    def _slide(self) -> None:
        first, last = self._sinks, self._sinks + (self._window - self._sinks) // 2
        size = len(self._seen)
        del self._seen[first:last]
        if self._can_shift and self._lib.llama_memory_seq_rm(self._memory, 0, first, last):
            self._lib.llama_memory_seq_add(self._memory, 0, last, size, first - last)
            return
        self._lib.llama_memory_clear(self._memory, True)  # of a kind that cannot: what stays is read again
        for at in range(0, len(self._seen), 256):
            self._decode(self._seen[at : at + 256])

    def _decode(self, tokens: list[int]) -> None:
        array = (self._lib.llama_token * len(tokens))(*tokens)
        code = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(tokens)))
        if code != 0:
            raise InternalError(f"llama.cpp failed to decode (code {code})")
