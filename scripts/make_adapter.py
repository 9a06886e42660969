#!/usr/bin/env python3
"""Learn an adapter for the default weights from texts, and write formats/adapter-0.bin.

    scripts/make_adapter.py [--minutes N] [--threads N] TEXT ...

Each TEXT is a file that is read as UTF-8 text is; docs/experiments.md lists what the adapter in the tree was made from
(and none of what results are reported on). Texts are cut into lanes of 1,023 tokens that begin as a segment's lanes do,
and gone through in a shuffled order by Adam with a cosine schedule. The network is the one of the GGUF file in
bfloat16, frozen; learned are matrices of rank 4 beside each of its own and a factor for each gain. Needs torch; about
240 tokens a second on one core with bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nacz.vocabularies import from_gguf
from nacz.weights.adapter import GAIN_UNIT, MAGIC, MATRICES, NORMS, parts
from nacz.weights.checkpoint import from_gguf as checkpoint_of
from nacz.weights.fetch import UNCHANGED, ensure_gguf
from nacz.weights.gguf import read_gguf

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("make_adapter.py needs torch, which nacz itself does not: pip install torch")

OUT = Path(__file__).resolve().parent.parent / "formats" / "adapter-0.bin"
RANK, SCALE = 4, 2.0
LANE, TOGETHER = 1023, 3  # tokens, lanes per step
RATE, WARM_UP = 2e-3, 8
HALF = torch.bfloat16


class CrossEntropy(torch.autograd.Function):
    """-ln p of tokens, and the gradient right away, so that no table of all probabilities is kept."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, tokens: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        gradient, loss = torch.empty_like(rows), torch.zeros(len(rows))
        for at in range(0, len(rows), 256):
            some = slice(at, at + 256)
            here, known = tokens[some].clamp(min=0), tokens[some] >= 0
            logits = F.linear(rows[some].to(HALF), head).float()
            total = torch.logsumexp(logits, -1)
            loss[some] = torch.where(known, total - logits.gather(1, here[:, None])[:, 0], 0.0)
            p = torch.exp_(logits.sub_(total[:, None]))
            p[torch.arange(len(here)), here] -= 1
            gradient[some] = ((p * known[:, None]).to(HALF) @ head).float()
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> Any:
        return ctx.saved_tensors[0] * outer[:, None], None, None


class Model:
    """The network of a checkpoint, and what is learned beside it, by the names of its tensors."""

    def __init__(self, checkpoint: Any) -> None:
        self.c = c = checkpoint
        draw = torch.Generator().manual_seed(1)
        self.fixed: dict[str, torch.Tensor] = {}
        self.a: dict[str, torch.Tensor] = {}
        self.b: dict[str, torch.Tensor] = {}
        self.gain: dict[str, torch.Tensor] = {}
        for name, outputs, inputs in parts(c):
            if outputs:
                self.fixed[name] = torch.from_numpy(c.get(name, outputs, inputs)).to(HALF)
                self.a[name] = torch.randn(RANK, inputs, generator=draw) / math.sqrt(inputs)
                self.b[name] = torch.zeros(outputs, RANK)
            else:
                self.fixed[name] = torch.from_numpy(c.get(name, inputs))
                self.gain[name] = torch.zeros(inputs)
        self.embed = torch.from_numpy(c.get("token_embd.weight", c.rows, c.dim))
        self.head = self.embed.to(HALF)
        for learned in self.learned():
            learned.requires_grad_(True)
        pairs = torch.tensor([float(v) for v in c.frequencies])
        angles = torch.arange(LANE)[:, None] * pairs
        self.cos, self.sin = angles.cos(), angles.sin()

    def learned(self) -> list[torch.Tensor]:
        return [*self.a.values(), *self.b.values(), *self.gain.values()]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gain = self.fixed[name] * (1 + self.gain[name])
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c.eps) * gain

    def products(self, x: torch.Tensor, layer: int, *kinds: str) -> list[torch.Tensor]:
        """Several matrices of a layer with one input."""
        half, names = x.to(HALF), [f"blk.{layer}.{kind}.weight" for kind in kinds]
        thin = F.linear(half, torch.cat([self.a[name] for name in names]).to(HALF)).split(RANK, -1)
        return [
            F.linear(half, self.fixed[name]) + F.linear(some, (SCALE * self.b[name]).to(HALF))
            for name, some in zip(names, thin, strict=True)
        ]

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary positions of [lanes, heads, positions, width], pairs (i, i + width / 2)."""
        a, b = x.float().chunk(2, -1)
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(HALF)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Last normalised rows of tokens [lanes, positions]."""
        c, (lanes, n) = self.c, tokens.shape
        x = self.embed[tokens]
        for layer in range(c.layers):
            q, k, v = (
                y.view(lanes, n, -1, c.width).transpose(1, 2)
                for y in self.products(self.norm(x, f"blk.{layer}.{NORMS[0]}.weight"), layer, *MATRICES[:3])
            )
            k, v = (y.repeat_interleave(c.heads // c.kv_heads, 1) for y in (self.turned(k), v))
            out = F.scaled_dot_product_attention(self.turned(q), k, v, is_causal=True)
            x = x + self.products(out.transpose(1, 2).reshape(lanes, n, -1), layer, MATRICES[3])[0]
            gate, up = self.products(self.norm(x, f"blk.{layer}.{NORMS[1]}.weight"), layer, *MATRICES[4:6])
            x = x + self.products(F.silu(gate) * up, layer, MATRICES[6])[0]
        return self.norm(x, "output_norm.weight")

    def to_bytes(self) -> bytes:
        """As nacz.weights.adapter reads it."""
        out = [MAGIC, bytes([RANK])]
        for name, outputs, _ in parts(self.c):
            if outputs:
                a, b = self.a[name].detach().numpy(), SCALE * self.b[name].detach().numpy().T
                a_step, b_step = (np.maximum(np.abs(m).max(axis=1), 1e-12) / 127 for m in (a, b))
                out.append((a_step * b_step).astype("<f4").tobytes())
                out += [np.rint(m / s[:, None]).astype("i1").tobytes() for m, s in ((a, a_step), (b, b_step))]
            else:
                gain = np.rint(self.gain[name].detach().numpy() / GAIN_UNIT)
                out.append(np.clip(gain, -32768, 32767).astype("<i2").tobytes())
        return b"".join(out)


def lanes_of(texts: list[Path], vocabulary: Any) -> list[torch.Tensor]:
    """Lanes of all texts, shuffled."""
    found = []
    for path in texts:
        tokens = torch.from_numpy(vocabulary.encode(path.read_bytes()).astype(np.int64))
        found += [lane for lane in tokens.split(LANE) if len(lane) >= 256]
    random.Random(7).shuffle(found)
    return found


def train(model: Model, lanes: list[torch.Tensor], bos: int, minutes: float) -> None:
    thin = [*model.a.values(), *model.b.values()]
    adam = torch.optim.Adam(
        [{"params": thin, "top": RATE}, {"params": list(model.gain.values()), "top": 2 * RATE}], betas=(0.9, 0.99)
    )
    begin, step, seen, at = time.monotonic(), 0, 0, 0
    while (part := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in adam.param_groups:
            group["lr"] = group["top"] * min(1, (step + 1) / WARM_UP) * (0.05 + 0.475 * (1 + math.cos(math.pi * part)))
        some = [lanes[(at + i) % len(lanes)] for i in range(TOGETHER)]
        longest = max(map(len, some))
        inputs, targets = torch.full((TOGETHER, longest), bos), torch.full((TOGETHER, longest), -1)
        for i, lane in enumerate(some):
            inputs[i, 1 : len(lane)], targets[i, : len(lane)] = lane[:-1], lane
        rows = model.rows(inputs).reshape(-1, model.c.dim)
        loss = CrossEntropy.apply(rows, targets.reshape(-1), model.head).sum() / sum(map(len, some))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.learned(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        step, at, seen = step + 1, at + TOGETHER, seen + sum(map(len, some))
        print(f"step {step}, {seen:,} tokens, {loss.item() / math.log(2):.3f} bits per token", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gguf = read_gguf(ensure_gguf(UNCHANGED))
    model = Model(checkpoint_of(gguf))
    vocabulary = from_gguf(gguf, model.c.rows)
    train(model, lanes_of(args.texts, vocabulary), vocabulary.bos_id, args.minutes)
    OUT.write_bytes(model.to_bytes())


if __name__ == "__main__":
    main()
