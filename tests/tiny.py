"""A tiny exact model with random weights and a small byte-level vocabulary, the same bits everywhere and for ever.

Its bytes come from SHAKE-128, not from a random generator that may change. It predicts nonsense, but has every part of
a real model: grouped heads, a rotation with a factor of three, bytes that need the escape, ids that stand for nothing.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from nacz.kernels.gemm import pack
from nacz.kernels.rope import rope_tables
from numpy.typing import NDArray

from nacz.tokens import Tokenizer
from nacz.weights import store
from nacz.weights.exact import HEAD, Architecture, ExactModel, array_layout
from nacz.weights.general import GELU, QK_NORM, SANDWICH, GeneralArchitecture

ARCHITECTURE = Architecture(
    layers=2, dim=128, heads=2, kv_heads=1, ffn=192, vocab=320, context=4096, rope_base=10000.0, eps=1e-5
)
# Of the general kind, with all that Gemma has: a local layer and one that is not, and more than 65,536 words.
GENERAL = GeneralArchitecture(
    layers=2, dim=128, heads=2, kv_heads=1, ffn=192, vocab=65_600, context=4096, rope_base=1e6, eps=1e-6, width=128,
    turned=128, words=65_550, features=QK_NORM | SANDWICH | GELU, local=100, every=2, query_scale=128.0**-0.5,
)  # fmt: skip
LACKING = bytes.fromhex("04 06 13 14 16 1d f1 f2 c0 c1 f5 f6 f7 f8 f9 fa fb fc fd fe ff")
# Each merges all of it but the last character with the last one.
_WORDS = "_t th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi"
_WORDS += " ri ro ic ne ea ra ce li ch ll be ma si om ur _a _s _c _w _o _i _th _the ing and ion _an _of _to tion _and"
_WORDS += " ation"


def noise(seed: int, label: str, size: int) -> NDArray[np.uint8]:
    """uint8[size], a function of seed and label."""
    return np.frombuffer(hashlib.shake_128(f"{seed} {label}".encode()).digest(size), np.uint8)


def normal(seed: int, label: str, size: int) -> NDArray[np.float64]:
    """float64[size], exact multiples of 1/256 with mean 0 and deviation about 1: sums of four bytes."""
    parts = noise(seed, label, 4 * size).reshape(4, size).astype(np.float64)
    return (parts.sum(axis=0) - 510.0) / 148.0


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """320 ids: beginning of text, 16 escapes, 235 bytes, merged tokens, and a few that stand for nothing."""
    tokens = [b""] * 17 + [bytes([byte]) for byte in range(256) if byte not in LACKING]
    merges = []
    for word in _WORDS.replace("_", "\N{NO-BREAK SPACE}").split(" "):
        whole = word.replace("\N{NO-BREAK SPACE}", " ").encode()
        if whole[:-1] in tokens:
            merges.append((tokens.index(whole[:-1]), tokens.index(whole[-1:])))
            tokens.append(whole)
    tokens += [b""] * (ARCHITECTURE.vocab - len(tokens))
    return Tokenizer(tokens, np.array(merges, np.uint32), bos_id=0, escape_ids=range(1, 17))


def model(seed: int = 0, architecture: Architecture = ARCHITECTURE) -> ExactModel:
    """A model of random weights in memory; see `nacz.weights.store.in_memory` for one that can be run."""
    arrays: dict[str, NDArray[Any]] = {}
    layout = array_layout(architecture)
    terms = {"down": architecture.ffn}
    for name in ("qkv", "out", "gate_up", "down", "head"):
        count, k = layout[f"{name}_step"][1], terms.get(name, architecture.dim)
        q = np.clip(np.rint(normal(seed, name, count * k) * 40.0), -127, 127).astype(np.int8).reshape(count, k)
        arrays[name] = pack(q)
        arrays[f"{name}_sum"] = q.sum(axis=1, dtype=np.int32)
        # Steps differ by a factor of three between channels; the head's are larger, for a choice with some conviction.
        spread = 1.0 + noise(seed, f"{name}_step", count) / 128.0
        arrays[f"{name}_step"] = (spread * (3.0 if name == "head" else 1.0) / (60.0 * math.sqrt(k))).astype(np.float32)
    count = architecture.vocab * architecture.dim
    arrays["embed"] = np.clip(np.rint(normal(seed, "embed", count) * 8000.0), -32767, 32767).astype(np.int16)
    arrays["embed_step"] = ((1.0 + noise(seed, "embed_step", architecture.vocab) / 128.0) / 8000.0).astype(np.float32)
    arrays["rope"] = rope_tables(architecture.rope_base, HEAD // 2).reshape(-1)
    return ExactModel(architecture, arrays, tokenizer().to_blob())


def general(seed: int = 0) -> ExactModel:
    """The same of the general kind, with the same 320 words: all others are much less probable."""
    arch, known = GENERAL, ARCHITECTURE.vocab
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, count) in array_layout(arch).items():
        if name.endswith("_gain"):
            size = {"qkv_gain": 0.1, "gate_up_gain": 0.1, "head_gain": 0.25}.get(name, 1.0)
            arrays[name] = (size * (1.0 + noise(seed, name, count) / 256.0)).astype(np.float32)
        elif count == 0:
            arrays[name] = np.zeros(0, dtype)
    for name, k in (("qkv", 128), ("out", 256), ("gate_up", 128), ("down", 192), ("head", 128)):
        count = array_layout(arch)[f"{name}_step"][1]
        q = np.clip(np.rint(normal(seed, name, count * k) * 40.0), -127, 127).astype(np.int8).reshape(count, k)
        arrays[name] = pack(q)
        arrays[f"{name}_sum"] = q.sum(axis=1, dtype=np.int32)
        step = (1.0 + noise(seed, f"{name}_step", count) / 128.0) * (3.0 if name == "head" else 1.0)
        arrays[f"{name}_step"] = (step / (60.0 * math.sqrt(k))).astype(np.float32)
    arrays["head_step"][known:] *= np.float32(1.0 / 64.0)
    count = arch.vocab * arch.dim
    arrays["embed"] = np.clip(np.rint(normal(seed, "embed", count) * 8000.0), -32767, 32767).astype(np.int16)
    arrays["embed_step"] = ((1.0 + noise(seed, "embed_step", arch.vocab) / 128.0) / 8000.0).astype(np.float32)
    tables = [rope_tables(base, arch.width // 2).reshape(-1) for base in (arch.rope_base, 1e4)]
    arrays["rope"] = np.concatenate(tables)
    return ExactModel(arch, arrays, tokenizer().to_blob())


def write_general(folder: Path) -> Path:
    """Save the general model in `folder`; returns its path."""
    path = folder / f"tiny-general{store.SUFFIX}"
    store.save(general(), path)
    return path


def write(folder: Path, seed: int = 0) -> Path:
    """Save the model in `folder`; returns its path, for `--model PATH`."""
    path = folder / f"tiny-{seed}{store.SUFFIX}"
    store.save(model(seed), path)
    return path
