#!/usr/bin/env python3
"""Learn what the weights of the bytes beside the tokens begin with, and write formats/ensemble-bytes-0.bin.

    scripts/make_beside.py CORPORA [--work FOLDER]

The texts in TEXTS are forwarded by the exact default model (kept in FOLDER), then gone through twice with all of the
ensemble, the weights kept from text to text: first with fast rates, then with slow ones. Results are reported on none
of these texts: see docs/experiments.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
from make_preset import ENWIK8, FORMATS, TAR, hidden_states
from nacz.kernels.cdf import fix_logits, total_bits
from nacz.kernels.dispatch import chosen

from nacz.arrays import aligned
from nacz.lanes import lane_starts
from nacz.predictors.beside import FINAL_BITS, FINALS, LOGIT_INPUT, ROWS, SETS, WEIGHT_BITS, WIDTH
from nacz.predictors.ensemble import adjust, frequencies, learn, make_ensemble, recall_rows, remember_row, seen_at
from nacz.predictors.language_model import EFFORTS
from nacz.predictors.members import ALL
from nacz.predictors.networks import head, make_shape, make_weights, states_have_any_norm
from nacz.predictors.preset import preset, preset_of
from nacz.predictors.recall import width
from nacz.predictors.spell import spell
from nacz.predictors.spelling import spelling_of
from nacz.row_coding import HEAD_ROWS, make_rows
from nacz.weights.store import load_model

# Name, files, first byte and how many of them together, in order.
TEXTS = (
    ("html", ("kinds/klauspost-html.txt",), 0, 45_000), ("paper1", ("calgary/paper1",), 0, 60_000),
    ("small", ("canterbury/fields.c", "canterbury/grammar.lsp", "canterbury/cp.html", "canterbury/xargs.1"), 0, 50_000),
    ("fra", ("multilingual/fra-feval.txt",), 20_000, 30_000),
    ("jsonl", ("logs/synthetic-service.jsonl",), 100_000, 40_000),
    ("rus", ("multilingual/rus-rachinskii.txt",), 20_000, 25_000), ("tar200", (TAR,), 200_000, 80_000),
    ("book1", ("calgary/book1",), 100_000, 50_000), ("enwD", (ENWIK8,), 2_450_000, 100_000),
    ("news0", ("calgary/news",), 0, 60_000), ("enwA", (ENWIK8,), 100_000, 80_000),
)  # fmt: skip
# (slow, fast, fades, final) rates of each round, in units of nacz.predictors.beside.
ROUNDS = ((4_194, 0, 1, 33), (1_258, 0, 1, 33))


@numba.njit(error_model="numpy")
def _go(
    kern: Any, shape: Any, w: Any, e: Any, rows: Any, lanes: int, starts: Any, tokens: Any, logits: Any, cosines: Any,
    cost: Any,
) -> None:  # fmt: skip
    """cost float64[tokens, 2]: bits of each token by the other members, and spelled."""
    v = shape.vocab
    bits = total_bits(v)
    fixed, freq, sums = np.empty(v, np.int32), np.empty(v, np.int32), np.empty(v // 64, np.int32)
    low, piece = np.empty(1 << 14, np.uint32), np.empty(1 << 14, np.uint32)
    state, stream = np.zeros(4, np.uint64), np.zeros(1, np.uint8)
    for first in range(0, tokens.size, HEAD_ROWS):
        m = min(HEAD_ROWS, tokens.size - first)
        head(kern, shape, w, rows, first, m, logits)
        for r in range(first, first + m):
            remember_row(e, r, rows, r, tokens[starts[r % lanes] + r // lanes])
        recall_rows(kern, e, first + m, first, m, rows, cosines)
        columns = width(e.recall, first + m)
        for r in range(m):
            step, lane = (first + r) // lanes, (first + r) % lanes
            at = starts[lane] + step
            token = np.int64(tokens[at])
            fix_logits(v, logits, r * v, fixed)
            some = cosines[r * columns : (r + 1) * columns]
            adjust(e, v, lane, at, starts[lane], seen_at(step, lanes), tokens, some, fixed)
            frequencies(e, v, freq, sums)
            cost[first + r, 0] = bits - np.log2(freq[token])
            if cost.shape[1] > 1:
                count = spell(e.beside, lane, token, freq, state, stream, low, piece, 0)[1]
                for k in range(count):
                    cost[first + r, 1] += bits - np.log2(piece[k])
            learn(e, lane, at, token, tokens, freq)


def go_through(model: Any, spelling: Any, states: Any, weights: Any, rates: Any, spelled: bool = True) -> Any:
    """Bits of every token without and with bytes. weights: (weight, final), replaced by what they become; rates: None
    for the format's."""
    tokens, lengths, hidden = states
    shape, w = make_shape(model.architecture, EFFORTS[6].window), make_weights(model)
    n, lanes = tokens.size, lengths.size
    starts = lane_starts(n, lanes)
    order = starts[np.arange(n) % lanes] + np.arange(n) // lanes
    rows = make_rows(shape, n)
    for to, kept in zip(rows, hidden, strict=True):
        to.reshape(n, -1)[:] = kept.reshape(n, -1)[order]
    start = preset(preset_of(model.tokenizer_hash))
    normal = states_have_any_norm(shape)
    e = make_ensemble(ALL, starts, HEAD_ROWS, shape.dim, shape.vocab, start, normal, spelling)
    if weights is not None:
        e = e._replace(beside=e.beside._replace(weight=weights[0], final=weights[1]))
    if rates is not None:
        e.beside.rate[:] = rates
    cost = np.zeros((n, 2 if spelled else 1))
    logits, cosines = aligned(HEAD_ROWS * shape.vocab, np.float32), aligned(HEAD_ROWS * e.recall.columns, np.float32)
    _go(chosen()[1], shape, w, e, rows, lanes, starts, tokens, logits, cosines, cost)
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--work", type=Path, default=Path("preset-work"))
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    model = load_model(None)
    spelling = spelling_of(model)
    weight = np.zeros((ROWS, WIDTH), np.int32)
    weight[:, LOGIT_INPUT] = 1 << WEIGHT_BITS
    weights = weight.reshape(-1), np.full(FINALS, (1 << FINAL_BITS) // SETS, np.int64)
    for number, rates in enumerate(ROUNDS):
        for name, files, first, size in TEXTS:
            data = b"".join((args.corpora / file).read_bytes() for file in files)[first : first + size]
            states = hidden_states(model, data, args.work / f"{name}.npz")
            began = time.process_time()
            without, spelled = go_through(model, spelling, states, weights, rates).sum(0) / 8
            took = (time.process_time() - began) * 1e6 / states[0].size
            print(f"round {number + 1}, {name}: {without:,.1f} to {spelled:,.1f} bytes, {took:.0f} us", flush=True)
    small = np.concatenate([weights[0] / (1 << WEIGHT_BITS - 12), weights[1] / (1 << FINAL_BITS - 12)])
    (FORMATS / "ensemble-bytes-0.bin").write_bytes(np.rint(small).clip(-32767, 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
