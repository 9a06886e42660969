"""General models: random small ones of many shapes against the definition, bit for bit, and against float64.

Run with `pytest tests/test_general.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from exact_inputs import each_kernel
from nacz.coder.range_coder import encode_intervals
from nacz.kernels.dispatch import chosen
from numpy.typing import NDArray
from slow_general import SlowGeneral

from nacz.arrays import aligned
from nacz.lane_decoding import decode_lanes
from nacz.lane_encoding import encode_lanes
from nacz.predictors import recall
from nacz.predictors.language_model import mixed_in
from nacz.predictors.members import ALL_OF_TOKENS
from nacz.predictors.networks import forward, head, make_cache, make_scratch, make_shape, make_weights
from nacz.predictors.transformer import Group, make_trace
from nacz.weights import store
from nacz.weights.checkpoint import Checkpoint, read_checkpoint
from nacz.weights.general import GeneralArchitecture

GEMMA = {
    "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 128, "sliding_window": 150,
    "sliding_window_pattern": 2, "rope_theta": 1e6, "query_pre_attn_scalar": 128, "num_hidden_layers": 3,
}  # fmt: skip
WEIGHTS = "e5f6d291d7291f5d0b5306627d67be17fdb1071616181f4f07d92921e5cf23f7"
LOGITS = "3af4ef0420bc570afd22d114d62be81f08501ea3539f79558d58b38d7ffd6dbc"
SHAPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, ()),
    "an untied head and linear scaling": (
        {"tie_word_embeddings": False, "rope_scaling": {"type": "linear", "factor": 2.0}}, (),
    ),
    "heads of 128, as many keys": ({"head_dim": 128, "num_key_value_heads": 2}, ()),
    "narrow heads and odd sizes": (
        {"head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96,
         "intermediate_size": 100, "vocab_size": 381}, (),
    ),
    "biases": (
        {"model_type": "qwen2", "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}, ("q", "k", "v"),
    ),
    "all biases of attention": ({}, ("q", "k", "v", "o")),
    "norms of queries and keys": ({"model_type": "qwen3", "head_dim": 192}, ()),
    "gemma": (GEMMA, ()),
}  # fmt: skip


def made(name: str, folder: Path) -> tuple[Checkpoint, store.LoadedModel]:
    changes, biases = SHAPES[name]
    config = {**checkpoints.CONFIG, **changes}
    folder = checkpoints.write_safetensors(folder, config, checkpoints.weights_of(config, 5, biases))
    checkpoint = read_checkpoint(folder)
    return checkpoint, store.in_memory(store.converted(checkpoint))


def logits(
    kern: Any, model: store.LoadedModel, tokens: NDArray[np.int32], window: int, blocks: list[int]
) -> NDArray[np.float32]:
    """Of one lane, in blocks of so many rows."""
    shape, weights = make_shape(model.architecture, window), make_weights(model)
    cache, scratch = make_cache(shape, 1), make_scratch(shape, max(blocks))
    out, at = [], 0
    for rows in blocks:
        groups = Group(*(np.array([v], np.int64) for v in (0, 0, rows, at)))
        some = tokens[at : at + rows]
        forward(kern, shape, weights, cache, scratch, some, groups, make_trace(shape, shape.layers, 0))
        found = aligned(rows * shape.vocab, np.float32)
        head(kern, shape, weights, scratch, 0, rows, found)
        out.append(found.reshape(rows, shape.vocab))
        at += rows
    return np.concatenate(out)


def some_tokens(n: int, words: int = 370) -> NDArray[np.int32]:
    return ((np.arange(n) * 131 + np.arange(n) ** 2 * 7) % words).astype(np.int32)


@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith(("plain", "an untied"))])
def test_the_definition_bit_for_bit(name: str, tmp_path: Path) -> None:
    _, model = made(name, tmp_path)
    assert isinstance(model.architecture, GeneralArchitecture)
    tokens = some_tokens(8)
    slow = SlowGeneral(model, 256).logits(tokens)
    np.testing.assert_array_equal(logits(chosen()[1], model, tokens, 256, [5, 1, 2]), slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma", "heads of 128, as many keys"])
def test_the_definition_over_many_blocks(name: str, tmp_path: Path) -> None:
    """Past the window, past local windows, and past the ring of blocks."""
    _, model = made(name, tmp_path)
    tokens = some_tokens(530)
    slow = SlowGeneral(model, 256).logits(tokens)
    np.testing.assert_array_equal(logits(chosen()[1], model, tokens, 256, [128, 77, 1, 128, 50, 128, 18]), slow)


def test_pinned(tmp_path: Path) -> None:
    """Conversion and arithmetic of a small Gemma: the same bits on every machine."""
    _, model = made("gemma", tmp_path)
    assert model.weights_hash.hex() == WEIGHTS
    found = logits(chosen()[1], model, some_tokens(300), 256, [128, 128, 44])
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == LOGITS


@pytest.mark.slow
@each_kernel
def test_kernels_and_blocks_of_rows_do_not_matter(kern: Any, tmp_path: Path) -> None:
    _, model = made("gemma", tmp_path)
    tokens = some_tokens(300)
    expected = logits(chosen()[1], model, tokens, 256, [128, 128, 44])
    np.testing.assert_array_equal(logits(kern, model, tokens, 256, [1, 6, 100, 128, 65]), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_near_the_float_network(name: str, tmp_path: Path) -> None:
    checkpoint, model = made(name, tmp_path)
    tokens = some_tokens(40)
    exact = logits(chosen()[1], model, tokens, 256, [40])[:, : checkpoint.rows] * np.log(2.0)
    real = float_logits(checkpoint, tokens)
    difference = (exact - exact.mean(axis=1, keepdims=True)) - (real - real.mean(axis=1, keepdims=True))
    assert np.sqrt(np.mean(difference**2)) < 0.06 * np.std(real)


@pytest.mark.parametrize("name", ["narrow heads and odd sizes", "gemma"])
@pytest.mark.parametrize("members", [0, pytest.param(ALL_OF_TOKENS, marks=pytest.mark.slow)])
def test_lanes_come_back(name: str, members: int, tmp_path: Path) -> None:
    _, model = made(name, tmp_path)
    shape, weights, kern = make_shape(model.architecture, 256), make_weights(model), chosen()[1]
    tokens = some_tokens(420)
    found = {
        rows: encode_lanes(kern, shape, weights, 1, tokens, 3, threads, rows=rows, ensemble=mixed_in(members))
        for rows, threads in ((128, 1), (9, 2))
    }
    np.testing.assert_array_equal(found[128], found[9])
    stream = np.frombuffer(encode_intervals(*found[9]), np.uint8)
    back = decode_lanes(kern, shape, weights, 1, stream, tokens.size, 3, 2, ensemble=mixed_in(members))
    np.testing.assert_array_equal(back, tokens)


def test_states_of_any_length_are_compared_by_their_direction() -> None:
    d = 128
    states = (np.arange(4 * d, dtype=np.int64).reshape(4, d) ** 2 * 37 % 251).astype(np.uint8)
    zero, step = np.full(4, 120, np.int32), np.array([0.5, 0.01, 0.0, 3.0], np.float32)
    memory = recall.make_recall(100, 4, d, 64, 1)
    for entry in range(4):
        recall.remember(memory, entry, states.reshape(-1), entry, zero[entry], step[entry])
    found = aligned(4 * 128, np.float32)
    recall.compare(chosen()[1], memory, 4, 4, states.reshape(-1), zero, step, found)
    some = states.astype(np.float64) - 120.0
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    columns = recall.width(memory, 4)
    for row in (0, 1, 3):
        got = found[row * columns : row * columns + 4]
        np.testing.assert_allclose(got, some @ some[row], atol=0.02)


# -- the same network in float64 --------------------------------------------------------------------------------------


def float_logits(c: Checkpoint, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """As the makers define it, from the checkpoint's own tensors."""
    n, half = len(tokens), c.width // 2
    place = np.arange(n)

    def get(name: str) -> Any:
        return c.read(name).astype(np.float64)

    def optional(name: str) -> Any:
        return get(name) if c.has(name) else 0.0

    def norm(x: Any, gain: Any) -> Any:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c.eps) * gain

    def turn(x: Any, frequency: Any) -> Any:
        angle = place[:, None, None] * frequency
        p, q = x[..., :half], x[..., half:]
        return np.concatenate([p * np.cos(angle) - q * np.sin(angle), q * np.cos(angle) + p * np.sin(angle)], -1)

    x = get("token_embd.weight")[tokens] * c.embed_scale
    for layer in range(c.layers):
        p = f"blk.{layer}."
        h = norm(x, get(p + "attn_norm.weight"))
        q, k, v = (h @ get(f"{p}attn_{s}.weight").T + optional(f"{p}attn_{s}.bias") for s in "qkv")
        q, k, v = (y.reshape(n, -1, c.width) for y in (q, k, v))
        if c.has(p + "attn_q_norm.weight"):
            q, k = norm(q, get(p + "attn_q_norm.weight")), norm(k, get(p + "attn_k_norm.weight"))
        local = bool(c.local) and (layer + 1) % c.every != 0
        frequency = np.array([float(f) for f in c.frequencies])
        if local:
            frequency = c.local_base ** (-np.arange(half) / half)
        q, k = turn(q, frequency), turn(k, frequency)
        hidden = place[:, None] < place
        if local:
            hidden = hidden | (place[:, None] - place >= c.local)
        heads = []
        for h_index in range(c.heads):
            kv = h_index // (c.heads // c.kv_heads)
            scores = np.where(hidden, -np.inf, q[:, h_index] @ k[:, kv].T * c.query_scale)
            e = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(e / e.sum(axis=1, keepdims=True) @ v[:, kv])
        y = np.concatenate(heads, axis=1) @ get(p + "attn_output.weight").T + optional(p + "attn_output.bias")
        x = x + (norm(y, get(p + "post_attention_norm.weight")) if c.has(p + "post_attention_norm.weight") else y)
        h = norm(x, get(p + "ffn_norm.weight"))
        g, up = h @ get(p + "ffn_gate.weight").T, h @ get(p + "ffn_up.weight").T
        gelu = 0.5 * g * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (g + 0.044715 * g**3)))
        act = gelu if c.gelu else g / (1.0 + np.exp(-g))
        y = (act * up) @ get(p + "ffn_down.weight").T
        x = x + (norm(y, get(p + "post_ffw_norm.weight")) if c.has(p + "post_ffw_norm.weight") else y)
    table = get("output.weight" if c.has("output.weight") else "token_embd.weight")
    return norm(x, get("output_norm.weight")) @ table.T
