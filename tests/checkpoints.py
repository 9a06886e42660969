"""Small random models as their makers would give them away: a folder with safetensors, or a GGUF file.

Weights come from SHAKE-128 (see tiny.py). The vocabulary is small and of pieces, with tokens for all bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from numpy.typing import NDArray
from test_gguf import entry, gguf, info

WORDS = ["th", "he", "the", "▁t", "▁the", "in", "▁a", "er", "an", "and", "▁and", "on", "re", "ing", "▁▁"]
LETTERS = [chr(c) for c in range(0x21, 0x7F)] + ["▁", "é", "ü", "中"]
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 192, "vocab_size": 384, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 2048, "hidden_act": "silu", "bos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip


def vocabulary() -> tuple[list[str], list[int], list[float]]:
    """Tokens, their types in GGUF, and scores."""
    strings = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + WORDS + LETTERS + ["\n\n"]
    kinds = [3] * 3 + [6] * 256 + [1] * (len(WORDS) + len(LETTERS)) + [4]
    return strings, kinds, [0.0] * 259 + [-float(i) for i in range(len(strings) - 259)]


def weights_of(config: dict[str, Any], seed: int = 0, biases: tuple[str, ...] = ()) -> dict[str, NDArray[np.float32]]:
    """Tensors by the names that transformers has for them; deviation about 1/sqrt(inputs)."""
    d, f, heads, kv = (
        config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    width = config.get("head_dim") or d // heads
    found: dict[str, NDArray[np.float32]] = {}

    def put(name: str, *shape: int, size: float = 0.0, around: float = 0.0) -> None:
        size = size or 1.0 / np.sqrt(shape[-1])
        values = tiny.normal(seed, name, int(np.prod(shape))).reshape(shape) * size + around
        found[name] = values.astype(np.float32)

    put("model.embed_tokens.weight", config["vocab_size"], d, size=1.0)
    put("model.norm.weight", d, size=0.2, around=3.0)
    if not config["tie_word_embeddings"]:
        put("lm_head.weight", config["vocab_size"], d)
    gemma = config["model_type"] == "gemma3_text"
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if gemma else []
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for name in norms:
            put(p + name + ".weight", d, size=0.2, around=0.0 if gemma else 1.0)
        for name, n, k in (
            ("self_attn.q_proj", heads * width, d), ("self_attn.k_proj", kv * width, d),
            ("self_attn.v_proj", kv * width, d), ("self_attn.o_proj", d, heads * width),
            ("mlp.gate_proj", f, d), ("mlp.up_proj", f, d), ("mlp.down_proj", d, f),
        ):  # fmt: skip
            put(f"{p}{name}.weight", n, k)
            if name[-6] in biases and "attn" in name:
                put(f"{p}{name}.bias", n, size=0.5)
        if gemma or config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                put(f"{p}self_attn.{name}.weight", width, size=0.2, around=0.0 if gemma else 1.0)
    if gemma:
        found["model.norm.weight"] -= np.float32(1.0)
    return found


def write_safetensors(folder: Path, config: dict[str, Any], weights: dict[str, Any], dtype: str = "F32") -> Path:
    """config.json, tokenizer.json and model.safetensors; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    strings, kinds, scores = vocabulary()
    ids = {string: i for i, string in enumerate(strings)}
    merges = sorted(
        (-scores[i], i, ids[s[:cut]], s[:cut], s[cut:]) for i, s in enumerate(strings) if kinds[i] == 1
        for cut in range(1, len(s)) if s[:cut] in ids and s[cut:] in ids
    )  # fmt: skip
    tokenizer = {
        "model": {
            "type": "BPE", "byte_fallback": True, "vocab": {s: i for s, i in ids.items() if kinds[i] != 3},
            "merges": [[left, right] for *_, left, right in merges],
        },
        "added_tokens": [
            {"id": i, "content": s, "special": kinds[i] == 3} for s, i in ids.items() if kinds[i] in (3, 4)
        ],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_tensors(folder / "model.safetensors", weights, dtype)
    return folder


def save_tensors(path: Path, weights: dict[str, Any], dtype: str = "F32") -> None:
    header, body = {}, b""
    for name, values in weights.items():
        raw = np.ascontiguousarray(values, np.float32)
        data = raw.astype("<f2").tobytes() if dtype == "F16" else raw.astype("<f4").tobytes()
        if dtype == "BF16":
            data = (raw.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": dtype, "shape": list(raw.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(path: Path, config: dict[str, Any], weights: dict[str, Any], **changes: Any) -> Path:
    """A Llama as a GGUF file of F32 tensors; `changes` replace or (None) remove metadata keys, dots as `__`."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or d // heads
    strings, kinds, scores = vocabulary()
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (8, "llama"), "general.license": (8, "mit"),
        "llama.block_count": (4, config["num_hidden_layers"]),
        "llama.embedding_length": (4, d), "llama.attention.head_count": (4, heads),
        "llama.attention.head_count_kv": (4, config["num_key_value_heads"]),
        "llama.attention.key_length": (4, width), "llama.attention.value_length": (4, width),
        "llama.feed_forward_length": (4, config["intermediate_size"]), "llama.context_length": (4, 2048),
        "llama.rope.freq_base": (12, config["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": (12, config["rms_norm_eps"]),
        "tokenizer.ggml.model": (8, "llama"), "tokenizer.ggml.tokens": (8, strings),
        "tokenizer.ggml.scores": (6, scores),
        "tokenizer.ggml.token_type": (5, kinds), "tokenizer.ggml.bos_token_id": (4, 1),
    }  # fmt: skip
    for key, value in changes.items():
        keys[key.replace("__", ".")] = value
    infos, data = [], b""
    for name, values in weights.items():
        stem, _, kind = name.rpartition(".")
        layer = stem.split(".")[2] if stem.startswith("model.layers.") else ""
        inner = GGUF_NAMES[stem.split(".", 3)[3] if layer else stem]
        if inner in ("attn_q", "attn_k"):
            values = values.reshape(-1, 2, width // 2, values[0].size).swapaxes(1, 2).reshape(values.shape)
        infos.append(info(f"blk.{layer}.{inner}.{kind}" if layer else f"{inner}.{kind}", values.shape, 0, len(data)))
        data += values.astype("<f4").tobytes() + bytes(-values.nbytes % 32)
    path.write_bytes(gguf([entry(key, *value) for key, value in keys.items() if value is not None], infos, data))
    return path
