"""Code length of a file under a float32 evaluation of the same weights: the yardstick for what exactness costs.

    python scripts/float_reference.py FILE [--offset A] [--length N] [--window W] [--near T] [--lanes L[,L...]]
        [--threads 1]

The weights are those of the GGUF file, dequantised and neither rotated nor rounded. Tokens, lanes and the window rule
are those of nacz (kernels/attention.py): a lane begins with the beginning-of-text token; a query sees the first 128
positions of its lane, at no more than the window's distance, and the last window / 128 - 1 blocks of 128 positions up
to itself, or fewer where its head is in the table of near heads (nacz/predictors/reach.py). Without --window both are
those of level 6.

Printed are the plain code length, -log2 of the softmax, and the length with the floor of 2^-24 that an integer
distribution has. FILE is looked for here and then in the folder $NACZ_CORPORA. Needs torch; about 3 minutes and 1.1 GB
for 100,000 bytes of text.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nacz.predictors.language_model import EFFORTS
from nacz.predictors.reach import TABLES
from nacz.vocabularies import from_gguf
from nacz.weights.checkpoint import from_gguf as checkpoint_of
from nacz.weights.conversion import architecture_of
from nacz.weights.exact import HEAD
from nacz.weights.fetch import ensure_gguf
from nacz.weights.gguf import GGUFFile, dequantise, read_gguf

try:
    import torch
    from torch.nn.functional import silu
except ImportError:
    sys.exit("float_reference.py needs torch, which nacz itself does not: pip install torch")

BLOCK = 128
TOTAL = 2.0**24


class FloatModel:
    """A Llama-family transformer in float32 and the keys and values of one lane, in the order of nacz's cache."""

    def __init__(self, gguf: GGUFFile, window: int, near: bytes) -> None:
        self.arch = arch = architecture_of(checkpoint_of(gguf))
        self.window, self.slots = window, window // BLOCK
        self.reach = torch.tensor([blocks or self.slots for blocks in near or bytes(arch.layers * arch.kv_heads)])

        def get(name: str) -> torch.Tensor:
            return torch.from_numpy(dequantise(gguf.tensor(name)))

        kinds = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        self.layers: list[dict[str, torch.Tensor]] = []
        for i in range(arch.layers):
            w = {kind: get(f"blk.{i}.{kind}.weight") for kind in kinds}
            w["attn_q"], w["attn_k"] = halves(w["attn_q"], arch.heads), halves(w["attn_k"], arch.kv_heads)
            qkv = torch.cat([w.pop("attn_q"), w.pop("attn_k"), w.pop("attn_v")])
            gate_up = torch.cat([w.pop("ffn_gate"), w.pop("ffn_up")])
            self.layers.append(w | {"qkv": qkv, "gate_up": gate_up})
        self.embed = get("token_embd.weight")
        self.head = get("output.weight") if "output.weight" in gguf.tensors else self.embed
        self.norm = get("output_norm.weight")
        self.frequency = float(arch.rope_base) ** (-np.arange(HEAD // 2) / (HEAD // 2))
        shape = (arch.layers, arch.kv_heads, self.slots * BLOCK, HEAD)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def block(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        """Up to 128 input tokens, the lane's block `number`: float32 [rows, vocab], the logarithms of probabilities."""
        rows, arch = len(tokens), self.arch
        position = np.arange(number * BLOCK, number * BLOCK + rows)
        near, far = self.angles(position), self.angles(np.minimum(position, self.window))
        slot = 0 if number == 0 else 1 + (number - 1) % (self.slots - 1)
        seen = (1 + min(number, self.slots - 1)) * BLOCK
        own = slice(slot * BLOCK, slot * BLOCK + rows)
        hidden_from_row = torch.triu(torch.full((rows, BLOCK), -torch.inf), diagonal=1).repeat(arch.heads, 1)
        # How many blocks ago what is in each slot was, and so which heads do not see it.
        age = (slot - torch.arange(seen // BLOCK)) % (self.slots - 1)
        hidden = (age > self.reach[:, None] - 2) & (torch.arange(seen // BLOCK) > 0)
        hidden_from_head = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).repeat_interleave(BLOCK, dim=1)
        x = self.embed[tokens]
        for layer, (keys, values, w) in enumerate(zip(self.keys, self.values, self.layers, strict=True)):
            q, k, v = (rms(x, w["attn_norm"], arch.eps) @ w["qkv"].T).split(
                [arch.dim, arch.kv_heads * HEAD, arch.kv_heads * HEAD], dim=1
            )
            keys[:, own], values[:, own] = turn(by_head(k), near), by_head(v)
            # Queries of the heads that share a key head are rows of one product.
            grouped = (arch.kv_heads, -1, HEAD)
            query, sink_query = (turn(by_head(q), a).reshape(grouped) / HEAD**0.5 for a in (near, far))
            scores = torch.empty(arch.kv_heads, query.shape[1], seen)
            scores[..., :BLOCK] = sink_query @ keys[:, :BLOCK].mT
            scores[..., BLOCK:] = query @ keys[:, BLOCK:seen].mT
            scores[..., slot * BLOCK : (slot + 1) * BLOCK] += hidden_from_row.view(arch.kv_heads, -1, BLOCK)
            scores += hidden_from_head[layer * arch.kv_heads : (layer + 1) * arch.kv_heads, None, :]
            mixed = torch.softmax(scores, dim=-1) @ values[:, :seen]
            x = x + mixed.view(arch.heads, rows, HEAD).transpose(0, 1).reshape(rows, arch.dim) @ w["attn_output"].T
            gate, up = (rms(x, w["ffn_norm"], arch.eps) @ w["gate_up"].T).split(arch.ffn, dim=1)
            x = x + (silu(gate) * up) @ w["ffn_down"].T
        return torch.log_softmax(rms(x, self.norm, arch.eps) @ self.head.T, dim=1)

    def angles(self, position: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32 [rows, 32], computed in float64."""
        angle = position[:, None] * self.frequency
        return torch.from_numpy(np.cos(angle)).float(), torch.from_numpy(np.sin(angle)).float()


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from GGUF's rotary pairs (2 i, 2 i + 1) to (i, i + 32) in each head."""
    n, k = weight.shape
    return weight.view(heads, HEAD // 2, 2, k).transpose(1, 2).reshape(n, k)


def by_head(x: torch.Tensor) -> torch.Tensor:
    """[rows, heads * 64] to [heads, rows, 64]."""
    return x.view(len(x), -1, HEAD).transpose(0, 1)


def turn(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions on [heads, rows, 64]."""
    cos, sin = angles
    a, b = x.split(HEAD // 2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rms(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * gain


def cut(tokens: Any, lanes: int) -> list[Any]:
    """Contiguous lanes: lane i has N // L + (i < N % L) tokens."""
    ends = np.cumsum([len(tokens) // lanes + (i < len(tokens) % lanes) for i in range(lanes)])
    return np.split(tokens, ends[:-1])


def code_length(model: FloatModel, tokens: Any, bos: int, lanes: int) -> tuple[float, float]:
    """(bits, bits with every probability raised to a floor of 2^-24) of int32 tokens in so many lanes."""
    bits = floored = 0.0
    start, done = time.monotonic(), 0
    for lane in cut(tokens, lanes):
        inputs = torch.from_numpy(np.concatenate([[bos], lane[:-1]]).astype(np.int64))
        for at in range(0, len(lane), BLOCK):
            target = torch.from_numpy(lane[at : at + BLOCK].astype(np.int64))
            found = model.block(inputs[at : at + BLOCK], at // BLOCK)[torch.arange(len(target)), target].double()
            bits -= float(found.sum()) / np.log(2.0)
            raised = torch.exp(found) * (1.0 - model.arch.vocab / TOTAL) + 1.0 / TOTAL
            floored -= float(torch.log2(raised).sum())
            done += len(target)
            if sys.stderr.isatty():
                rate = done / (time.monotonic() - start)
                print(f"\r{done}/{len(tokens)} tokens, {rate:.0f}/s ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(end="\r\x1b[K", file=sys.stderr, flush=True)
    return bits, floored


def main() -> None:
    parser = argparse.ArgumentParser(description="Code length of a file under float32 weights.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--offset", type=int, default=0, help="first byte of FILE to look at")
    parser.add_argument("--length", type=int, help="how many bytes (default: all)")
    parser.add_argument("--window", type=int, help="positions, a multiple of 128")
    parser.add_argument("--near", type=int, help="number of a table of near heads, 0 for none")
    parser.add_argument("--lanes", default="1", help="number of lanes, or several: 1,2,4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gguf", type=Path, help="weights (default: those of nacz)")
    options = parser.parse_args()
    window, table = EFFORTS[6].near
    if options.near is None:
        options.near = 0 if options.window else table
    options.window = options.window or window
    if options.near and options.near not in TABLES:
        parser.error("there is no such table")
    if options.window % BLOCK or options.window < 2 * BLOCK:
        parser.error("the window must be a multiple of 128, at least 256")
    path = options.file
    if not path.exists() and os.environ.get("NACZ_CORPORA"):
        path = Path(os.environ["NACZ_CORPORA"]) / path
    try:
        with path.open("rb") as file:
            file.seek(options.offset)
            data = file.read(-1 if options.length is None else options.length)
    except OSError as err:
        sys.exit(f"{path}: {err.strerror}")
    if not data:
        sys.exit(f"{path}: nothing to measure")

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    gguf = read_gguf(options.gguf or ensure_gguf())
    tokenizer = from_gguf(gguf)
    tokens = tokenizer.encode(data)
    print(f"{path.name} [{options.offset}, {options.offset + len(data)}): {len(data)} bytes, {len(tokens)} tokens")
    for lanes in (int(text) for text in options.lanes.split(",")):
        start = time.monotonic()
        model = FloatModel(gguf, options.window, TABLES.get(options.near, b""))
        bits, floored = code_length(model, tokens, tokenizer.bos_id, lanes)
        print(
            f"window {options.window}  near {options.near}  lanes {lanes:2d}  {bits / 8:.1f} bytes  "
            f"{bits / len(data):.5f} bpb  "
            f"{bits / len(tokens):.5f} bits/token  with floor {floored / 8:.1f} bytes  {floored / len(data):.5f} bpb  "
            f"({time.monotonic() - start:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
