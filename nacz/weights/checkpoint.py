"""A model as its makers give it away, read from a GGUF file or a folder with safetensors: shape, tensors, terms.

Both kinds of source come out alike: tensors under GGUF's names, queries and keys with their rotary pairs as halves of a
head, gains of norms as they multiply, the first angle of every rotary pair. What cannot be computed exactly as the
model means it is refused here by name.

Knows families of models and what their files call things. Does not know tokenizers nor the exact integer model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.errors import ModelError
from nacz.kernels.rope import rope_frequencies
from nacz.weights.gguf import GGUFFile, dequantise, read_gguf
from nacz.weights.safetensors import Stored, read_folder, read_json

__all__ = ["Checkpoint", "read_checkpoint"]

Floats = NDArray[np.float32]

# Families by the names that GGUF and transformers have for them. Queries and keys of `llama` are interleaved in GGUF.
_GGUF_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}
_HUB_FAMILIES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3",
}  # fmt: skip
_GEMMA_EVERY = 6  # each sixth layer of Gemma 3 sees the whole window
_GEMMA_LOCAL_BASE = 10000.0
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
_GELU = ("gelu_pytorch_tanh",)
_SILU = ("silu", "swish")


@dataclass(frozen=True)
class Checkpoint:
    """Sizes as the model has them, and its tensors.

    `width` of a head; `rows` of the embedding; `frequencies`: the first angle of each of a head's width / 2 pairs;
    `local_base`: the same base^(-2 i / width) for layers that see `local` positions only, all but each `every`-th.
    `embed_scale`, `query_scale`: what multiplies embeddings and scores. `gelu`: the gate is GELU's tanh form instead of
    SiLU. `licence`, `languages`, `title`: as the source says, "" and () when it does not.
    """

    path: Path
    family: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    width: int
    ffn: int
    rows: int
    context: int
    rope_base: float
    eps: float
    frequencies: tuple[Decimal, ...]
    read: Callable[[str], Floats]
    names: frozenset[str]
    local: int = 0
    every: int = 0
    local_base: float = 0.0
    embed_scale: float = 1.0
    query_scale: float = 0.0
    gelu: bool = False
    licence: str = ""
    languages: tuple[str, ...] = ()
    title: str = ""
    gguf: GGUFFile | None = None
    taken: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return name in self.names

    def get(self, name: str, *shape: int) -> Floats:
        """A tensor of this name and shape, float32. Raises ModelError."""
        if name not in self.names:
            raise ModelError(f"{self.path}: tensor {name!r} is missing")
        found = self.read(name)
        if found.shape != shape:
            raise ModelError(f"{self.path}: tensor {name} has shape {found.shape}, expected {shape}")
        self.taken.add(name)
        return found

    def check_all_taken(self) -> None:
        """Raise ModelError when a tensor was never asked for: then the model computes something else than we do."""
        left = sorted(self.names - self.taken)
        if left:
            raise ModelError(
                f"{self.path}: the exact engine has no use for tensor {left[0]!r}; "
                "the model is of a kind that is not supported"
            )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The model in a GGUF file or in a folder. Raises ModelMissingError and ModelError."""
    path = Path(path)
    return _from_folder(path) if path.is_dir() else from_gguf(read_gguf(path))


# -- GGUF -------------------------------------------------------------------------------------------------------------


def from_gguf(gguf: GGUFFile) -> Checkpoint:
    """A checkpoint of a GGUF file. Raises ModelError for another architecture or something that is not supported."""
    kind = gguf.text("general.architecture")
    family = _GGUF_FAMILIES.get(kind)
    if family is None:
        raise _unsupported(gguf.path, f"architecture {kind!r}", _GGUF_FAMILIES)

    def number(key: str, default: float | None = None) -> float:
        name = f"{kind}.{key}"
        return default if default is not None and name not in gguf.metadata else gguf.number(name)

    def integer(key: str, default: int | None = None) -> int:
        name = f"{kind}.{key}"
        return default if default is not None and name not in gguf.metadata else gguf.integer(name)

    if integer("expert_count", 0):
        raise _unsupported(gguf.path, "a mixture of experts")
    for softcap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if number(softcap, 0.0):
            raise _unsupported(gguf.path, softcap)
    dim, heads = integer("embedding_length"), integer("attention.head_count")
    _positive(gguf.path, dim, heads)
    width = integer("attention.key_length", dim // heads)
    _positive(gguf.path, width)
    if integer("attention.value_length", width) != width or integer("rope.dimension_count", width) != width:
        raise _unsupported(gguf.path, "heads of which a part is turned, or values of another width than keys")
    base = number("rope.freq_base", 10000.0)
    _in_range(gguf.path, width, base)
    frequencies = rope_frequencies(base, width // 2)
    scaling = gguf.metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling == "linear":
        frequencies = _divided(gguf.path, frequencies, [number("rope.scaling.factor")] * len(frequencies))
    elif scaling != "none":
        raise _unsupported(gguf.path, f"{scaling} scaling of positions")
    names = set(gguf.tensors)
    if "rope_freqs.weight" in names:
        names.discard("rope_freqs.weight")
        factors = dequantise(gguf.tensor("rope_freqs.weight")).reshape(-1)
        if factors.size != len(frequencies):
            raise ModelError(f"{gguf.path}: tensor rope_freqs.weight has {factors.size} values")
        frequencies = _divided(gguf.path, frequencies, factors.tolist())
    kv_heads = integer("attention.head_count_kv", heads)

    def read(name: str) -> Floats:
        found = dequantise(gguf.tensor(name))
        if family == "llama" and name.partition("attn_")[2].split(".")[0] in ("q", "k"):
            count = heads if "attn_q" in name else kv_heads
            if found.shape[0] == count * width:
                # From interleaved pairs (2 i, 2 i + 1) to halves (i, i + width / 2).
                found = found.reshape(count, width // 2, 2, -1).swapaxes(1, 2).reshape(found.shape)
        return np.ascontiguousarray(found)

    licence = gguf.metadata.get("general.license", "")
    languages = gguf.metadata.get("general.languages", [])
    title = gguf.metadata.get("general.name", "")
    return Checkpoint(
        gguf.path, family, integer("block_count"), dim, heads, kv_heads, width, integer("feed_forward_length"),
        _rows(gguf.path, gguf.tensor("token_embd.weight").shape), integer("context_length"), base,
        number("attention.layer_norm_rms_epsilon"), tuple(frequencies), read, frozenset(names),
        licence=_plain(licence), title=_plain(title), gguf=gguf,
        languages=tuple(map(_plain, languages)) if isinstance(languages, list) else (),
        **_gemma(family, dim, width, integer("attention.sliding_window", 0)),
    )  # fmt: skip


def _gemma(family: str, dim: int, width: int, local: int, query: float = 0.0, every: int = _GEMMA_EVERY) -> Any:
    """What Gemma 3 has beyond Llama, as arguments of a Checkpoint."""
    scale = float(1.0 / np.sqrt(np.float64(query or width)))
    if family != "gemma3":
        return {"query_scale": scale}
    return {
        "query_scale": scale, "gelu": True, "embed_scale": float(np.sqrt(np.float64(dim))),
        "local": local, "every": every, "local_base": _GEMMA_LOCAL_BASE,
    }  # fmt: skip


# -- safetensors ------------------------------------------------------------------------------------------------------

_OF_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OF_GEMMA = _OF_LAYER | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OF_MODEL = {"embed_tokens": "token_embd", "norm": "output_norm"}


def _gguf_name(name: str, family: str) -> str | None:
    """GGUF's name of a tensor; itself where there is none, None for tables that are made anew."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    stem, _, kind = name.rpartition(".")
    if stem == "lm_head":
        return f"output.{kind}"
    parts = stem.split(".")
    if parts[0] == "model" and len(parts) == 2 and parts[1] in _OF_MODEL:
        return f"{_OF_MODEL[parts[1]]}.{kind}"
    if parts[:2] == ["model", "layers"] and len(parts) > 3:
        inner = (_OF_GEMMA if family == "gemma3" else _OF_LAYER).get(".".join(parts[3:]))
        if inner is not None:
            return f"blk.{parts[2]}.{inner}.{kind}"
    return name


def _from_folder(folder: Path) -> Checkpoint:
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a model's configuration")
    kind = config.get("model_type")
    family = _HUB_FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise _unsupported(path, f"architecture {str(kind)[:64]!r}", _HUB_FAMILIES)

    def value(key: str, default: Any = None) -> Any:
        found = config.get(key)
        return default if found is None else found

    def integer(key: str, default: int | None = None) -> int:
        found = value(key, default)
        if type(found) is not int:
            raise ModelError(f"{path}: {key} is missing or not an integer")
        return found

    def number(key: str, default: float | None = None) -> float:
        found = value(key, default)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ModelError(f"{path}: {key} is missing or not a number")
        return float(found)

    act = value("hidden_act", value("hidden_activation", "silu"))
    if family == "gemma3":
        act = value("hidden_activation", _GELU[0])
    if act not in (_GELU if family == "gemma3" else _SILU):
        raise _unsupported(path, f"activation {str(act)[:64]!r}")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if value(key):
            raise _unsupported(path, key)
    if family != "gemma3" and value("sliding_window") and value("use_sliding_window", kind == "mistral"):
        raise _unsupported(path, "a sliding window")
    if number("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(path, "heads of which a part is turned")
    dim, heads = integer("hidden_size"), integer("num_attention_heads")
    _positive(path, dim, heads)
    width = integer("head_dim", dim // heads)
    _positive(path, width)
    rope = value("rope_parameters", value("rope_scaling", {}))
    if not isinstance(rope, dict):
        raise ModelError(f"{path}: rope_scaling is not a table")
    base = number("rope_theta", rope.get("rope_theta", 1e6 if family == "gemma3" else 1e4))
    _in_range(path, width, base)
    tensors, names = {}, set()
    for stored in read_folder(folder).values():
        name = _gguf_name(stored.name, family)
        if name is not None:
            tensors[name] = stored
            names.add(name)
    if value("tie_word_embeddings", family == "gemma3"):
        names.discard("output.weight")
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{folder}: tensor 'model.embed_tokens.weight' is missing")

    def read(name: str) -> Floats:
        found = _floats(tensors[name], folder)
        if family == "gemma3" and name.endswith("norm.weight"):
            found = found + np.float32(1.0)
        return found

    return Checkpoint(
        folder, family, integer("num_hidden_layers"), dim, heads, integer("num_key_value_heads", heads), width,
        integer("intermediate_size"), _rows(folder, tensors["token_embd.weight"].shape),
        integer("max_position_embeddings", 2048), base, number("rms_norm_eps", 1e-6),
        tuple(_scaled(path, rope_frequencies(base, width // 2), rope)), read, frozenset(names),
        title=_plain(value("_name_or_path", "")),
        **_gemma(family, dim, width, integer("sliding_window", 512) if family == "gemma3" else 0,
                 number("query_pre_attn_scalar", width) if family == "gemma3" else 0.0,
                 integer("sliding_window_pattern", _GEMMA_EVERY)),
        **_card(folder),
    )  # fmt: skip


def _floats(stored: Stored, folder: Path) -> Floats:
    try:
        return stored.floats()
    except ModelError as err:
        raise ModelError(f"{folder}: {err}") from None


def _card(folder: Path) -> dict[str, Any]:
    """Licence and languages from the head of the folder's README.md: lines `key: value`, and lists of `- value`."""
    try:
        lines = (folder / "README.md").read_text("utf-8", "replace")[:1 << 16].splitlines()
    except OSError:
        return {}
    found: dict[str, list[str]] = {"license": [], "language": []}
    key = ""
    if lines[:1] == ["---"]:
        for line in lines[1:]:
            if line == "---":
                break
            if line[:1] not in (" ", "-"):
                key, _, rest = line.partition(":")
                if rest.strip():
                    found.setdefault(key, []).append(_plain(rest.strip()))
            elif line.strip().startswith("- ") and key:
                found.setdefault(key, []).append(_plain(line.strip()[2:]))
    return {"licence": " ".join(found["license"][:1]), "languages": tuple(found["language"][:64])}


# -- positions --------------------------------------------------------------------------------------------------------


def _scaled(path: Path, frequencies: list[Decimal], rope: dict[str, Any]) -> list[Decimal]:
    """Frequencies after the scaling that a configuration asks for."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return _divided(path, frequencies, [rope.get("factor")] * len(frequencies))
    if kind != "llama3":
        raise _unsupported(path, f"{str(kind)[:64]} scaling of positions")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    numbers = [n for n in map(rope.get, keys) if isinstance(n, int | float) and 0 < n < 1e9]
    if len(numbers) != len(keys) or not numbers[1] < numbers[2]:
        raise ModelError(f"{path}: the scaling of positions is not complete")
    with localcontext() as context:
        context.prec = 60
        factor, low, high, original = (Decimal(n) for n in numbers)
        out = []
        for frequency in frequencies:
            turns = original * frequency / (2 * _PI)  # in the context that the model was first trained on
            if turns > high:
                out.append(frequency)
            elif turns < low:
                out.append(frequency / factor)
            else:
                part = (turns - low) / (high - low)
                out.append((1 - part) * frequency / factor + part * frequency)
    return out


def _divided(path: Path, frequencies: list[Decimal], factors: Iterable[Any]) -> list[Decimal]:
    with localcontext() as context:
        context.prec = 60
        out = []
        for frequency, factor in zip(frequencies, factors, strict=True):
            if not isinstance(factor, int | float) or not 1e-6 < factor < 1e9:
                raise ModelError(f"{path}: the scaling of positions is out of range")
            out.append(min(frequency / Decimal(factor), Decimal(1)))
    return out


# -- checks -----------------------------------------------------------------------------------------------------------


def _unsupported(path: Path, what: str, known: Iterable[str] = ()) -> ModelError:
    names = ", ".join(known)
    return ModelError(f"{path}: {what} is not supported by the exact engine" + (f" (known: {names})" if names else ""))


def _positive(path: Path, *sizes: int) -> None:
    if not all(0 < size < 1 << 24 for size in sizes):
        raise ModelError(f"{path}: a size is out of range")


def _in_range(path: Path, width: int, base: float) -> None:
    if width % 2 or width > 1024 or not 1.0 <= base <= 1e9:
        raise ModelError(f"{path}: width of heads or base of positions is out of range")


def _rows(path: Path, shape: tuple[int, ...]) -> int:
    if len(shape) != 2:
        raise ModelError(f"{path}: the embedding is not a matrix")
    return shape[0]


def _plain(text: Any) -> str:
    """Text of a file from anywhere, for a line on a terminal."""
    return "".join(c for c in text if c.isprintable())[:100].strip() if isinstance(text, str) else ""
