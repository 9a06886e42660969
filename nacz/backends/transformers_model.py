"""Hugging Face transformers on PyTorch: any causal language model, from a folder or the hub. Needs the extra
`transformers`.

One sequence, one token at a time, float32, one thread unless NACZ_BACKEND_THREADS says otherwise, on the processor or
what NACZ_BACKEND_DEVICE names. When the window is full, what stays is read again: that works for every kind of
positions. Knows the library's calls; does not know symbols nor coding.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import platform
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.backends import BackendProgress, Loaded
from nacz.backends.vocabulary import bytes_of_pieces
from nacz.errors import ModelError, ModelMissingError, UsageError

__all__ = ["load"]


def load(model: str | None, offline: bool, progress: BackendProgress | None) -> Causal:
    """Load a model from a folder or, by name, from the hub or what was fetched from there."""
    try:
        import torch
        import transformers
    except ImportError:
        raise UsageError("this backend needs the extra `transformers`: pip install 'nacz[transformers]'") from None
    if model is None:
        raise UsageError("the backend `transformers` needs --model: a folder, or a name on the hub")
    is_folder = os.path.isdir(model)
    if not is_folder and os.path.exists(model):
        raise ModelError(f"{model}: not a folder with a model of transformers")
    _quiet(transformers)
    options = {"local_files_only": offline or is_folder}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
        network = transformers.AutoModelForCausalLM.from_pretrained(model, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300]
        if is_folder:
            raise ModelError(f"{model}: transformers cannot load it: {words}") from None
        raise ModelMissingError(f"{model}: no folder, and not to be had from the hub: {words}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{model}: its tokenizer is not one of the library `tokenizers`")
    return Causal(torch, transformers, network, tokenizer, model)


def _quiet(transformers: Any) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class Causal:
    """A model in this process."""

    def __init__(self, torch: Any, transformers: Any, network: Any, tokenizer: Any, source: str) -> None:
        self.torch, self._tokenizer = torch, tokenizer
        self.threads = int(os.environ.get("NACZ_BACKEND_THREADS", "1"))
        self.device = os.environ.get("NACZ_BACKEND_DEVICE", "cpu")
        try:
            self.network = network.to(torch.float32).to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"the device `{self.device}` cannot be used: {error}") from None
        # What the library calls its keys and values was renamed.
        names = inspect.signature(network.forward).parameters
        self.past = "cache" if "cache" in names else "past_key_values"
        config = network.config
        size = int(getattr(config, "vocab_size", 0)) or len(tokenizer)
        capability = torch.backends.cpu.get_cpu_capability()
        card = torch.cuda.get_device_name() if self.device.startswith("cuda") else capability
        fingerprint = (
            f"transformers {transformers.__version__}; torch {torch.__version__}; {platform.machine()}; {self.device} "
            f"{card}; threads {self.threads}; batch 1; float32"
        )
        context = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 0)
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        name = re.sub(r"[^a-z0-9._-]", "-", os.path.basename(os.path.normpath(source)).lower()).lstrip("._-")[:64]
        self.loaded = Loaded(name, _hash(torch, network), _tokens(tokenizer, size), bos, context, fingerprint)

    def tokenize(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)

    def start(self, window: int, sinks: int) -> _Stream:
        return _Stream(self, window, sinks)


class _Stream:
    """The text in a cache of keys and values."""

    def __init__(self, model: Causal, window: int, sinks: int) -> None:
        self._model, self._window, self._sinks = model, window, sinks
        self._seen: list[int] = []
        self._past: Any = None

    def feed(self, token: int) -> NDArray[Any]:
        fresh = [token]
        if len(self._seen) == self._window:
            del self._seen[self._sinks : self._sinks + (self._window - self._sinks) // 2]
            self._past, fresh = None, [*self._seen, token]
        self._seen.append(token)
        torch = self._model.torch
        before = torch.get_num_threads()
        torch.set_num_threads(self._model.threads)
        try:
            with torch.inference_mode():
                ids = torch.tensor([fresh], device=self._model.device)
                out = self._model.network(input_ids=ids, use_cache=True, **{self._model.past: self._past})
                self._past = getattr(out, self._model.past)
                return np.asarray(out.logits[0, -1].float().cpu().numpy(), np.float32)
        finally:
            torch.set_num_threads(before)


def _tokens(tokenizer: Any, size: int) -> list[bytes]:
    """Return the bytes of each of `size` tokens. What is read wrongly here costs room, never bytes: see Vocabulary."""
    backend = tokenizer.backend_tokenizer
    is_byte_level = "ByteLevel" in repr(backend.decoder) or "ByteLevel" in repr(backend.pre_tokenizer)
    added = tokenizer.added_tokens_decoder
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    plain = [None if number in added else piece for number, piece in enumerate(pieces)]
    tokens = bytes_of_pieces(plain, is_byte_level)
    for number, token in added.items():
        if number < len(tokens) and not token.special:
            tokens[number] = token.content.encode("utf-8")
    return tokens + [b""] * (size - len(tokens))


def _hash(torch: Any, network: Any) -> bytes:
    """sha256 of all tensors by name, with their types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
