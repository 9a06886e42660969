#!/usr/bin/env python3
"""Learn what the ensemble's weights start with, and write a preset, formats/ensemble-N.bin.

    scripts/make_preset.py CORPORA [--model NAME] [--work FOLDER] [--rounds N]

CORPORA holds the texts named in TEXTS. Each is forwarded by the exact model as an encoder would (kept in FOLDER, two
minutes of CPU per 100,000 bytes at most), then gone through with the ensemble while what it says of every candidate is
written down; weights are fitted to that by gradient descent (Adagrad, slopes kept over all texts and epochs). Later
rounds go through the texts with the weights of the round before, because what the ensemble says depends a little on
them. Results are reported on none of these texts: see docs/experiments.md. N is the number that
archives made with the model give to their preset (nacz/predictors/preset.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from nacz.kernels.attention import BLOCK
from nacz.kernels.cdf import fix_logits, total_bits
from nacz.kernels.dispatch import chosen

from nacz.arrays import aligned
from nacz.lanes import lane_lengths, lane_starts
from nacz.predictors import ensemble, preset
from nacz.predictors.ensemble import adjust, frequencies, learn, recall_rows, remember_row, seen_at
from nacz.predictors.language_model import EFFORTS, default_lanes
from nacz.predictors.members import ALL_OF_TOKENS
from nacz.predictors.networks import (
    forward,
    head,
    make_cache,
    make_scratch,
    make_shape,
    make_weights,
    states_have_any_norm,
)
from nacz.predictors.reach import near_of
from nacz.predictors.recall import width
from nacz.predictors.transformer import Group, Shape, make_trace
from nacz.row_coding import HEAD_ROWS, Rows, keep_rows, make_rows
from nacz.weights.store import LoadedModel, load_model

FORMATS = Path(__file__).resolve().parent.parent / "formats"
ENWIK8 = "enwik8/enwik8.first3000000"
TAR = "kinds/cpython-3.11.7-stdlib-py.tar"
# Name, files, first byte and how many of them together. In the order in which they are learned from.
TEXTS = (
    ("deu", ("multilingual/deu-freytag.txt",), 20_000, 50_000), ("enwL", (ENWIK8,), 2_000_000, 200_000),
    ("html", ("kinds/klauspost-html.txt",), 0, 60_000), ("tar2", (TAR,), 600_000, 100_000),
    ("enwD", (ENWIK8,), 2_450_000, 100_000), ("book1", ("calgary/book1",), 100_000, 50_000),
    ("fra", ("multilingual/fra-feval.txt",), 20_000, 40_000), ("enwA", (ENWIK8,), 100_000, 100_000),
    ("asy", ("canterbury/asyoulik.txt",), 40_000, 50_000), ("tar", (TAR,), 200_000, 100_000),
    ("json", ("kinds/klauspost-benchmark.json",), 0, 40_000), ("news2", ("calgary/news",), 150_000, 80_000),
    ("enwF", (ENWIK8,), 700_000, 100_000), ("rus", ("multilingual/rus-rachinskii.txt",), 20_000, 30_000),
    ("small", ("canterbury/fields.c", "canterbury/grammar.lsp", "canterbury/cp.html", "canterbury/xargs.1"), 0, 50_000),
    ("paper1", ("calgary/paper1",), 0, 60_000), ("jsonl", ("logs/synthetic-service.jsonl",), 100_000, 50_000),
    ("book2", ("calgary/book1",), 300_000, 50_000), ("tar3", (TAR,), 400_000, 60_000),
    ("news", ("calgary/news",), 0, 60_000),
)  # fmt: skip
EPOCHS, RATE = 8, 0.3
FIRST, SHARE = 0.3, 0.03  # slope to start with: FIRST + SHARE * what was met when learning
MOST_CANDIDATES, MOST_EVIDENCE = 190, 900  # a position on average, more than any text has


class Said(NamedTuple):
    """What the ensemble said of a text. Per position: candidates, pieces of evidence, number of the candidate that
    came or -1, and probability of the token that came; of all positions: probabilities of candidates, and the
    candidate and the weight of each piece of evidence."""

    candidates: Any
    evidence: Any
    came: Any
    share: Any
    shares: Any
    about: Any
    what: Any


def hidden_states(model: LoadedModel, data: bytes, path: Path) -> tuple[Any, Any, Rows]:
    """Tokens, lane lengths and hidden rows, lane after lane."""
    if path.exists():
        kept = np.load(path)
        return kept["tokens"], kept["lengths"], Rows(*(kept[name] for name in Rows._fields))
    effort = EFFORTS[6]
    near = near_of(model.name, effort.near[1], effort.near[0] // BLOCK)
    shape, weights = make_shape(model.architecture, effort.near[0], near), make_weights(model)
    tokens = model.vocabulary.encode(data)
    seen = BLOCK * int(shape.begin[-1]) // shape.reach.size
    lengths = lane_lengths(tokens.size, default_lanes(tokens.size, seen, effort.lane_tokens))
    found, rows = make_rows(shape, tokens.size), 128
    scratch, trace = make_scratch(shape, rows), make_trace(shape, shape.layers, 0)
    for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        cache, inputs = make_cache(shape, 1), np.empty(length, np.int32)
        inputs[0], inputs[1:] = model.vocabulary.bos_id, tokens[start : start + length - 1]
        for at in range(0, length, rows):
            m = min(rows, length - at)
            groups = Group(*(np.array([v], np.int64) for v in (0, 0, m, at)))
            where = trace._replace(row=np.arange(m))
            forward(chosen()[1], shape, weights, cache, scratch, inputs[at : at + m], groups, where)
            keep_rows(scratch, m, found, slice(start + at, start + at + m))
    np.savez(path, tokens=tokens, lengths=lengths, **found._asdict())
    return tokens, lengths, found


@numba.njit(error_model="numpy")
def _listen(
    kern: Any, shape: Any, w: Any, e: Any, rows: Any, lanes: int, starts: Any, tokens: Any, logits: Any, cosines: Any,
    said: Any,
) -> Any:  # fmt: skip
    v, c = shape.vocab, e.candidates
    fixed, freq, sums = np.empty(v, np.int32), np.empty(v, np.int32), np.empty(v // 64, np.int32)
    n_candidates, n_evidence = 0, 0
    for first in range(0, tokens.size, HEAD_ROWS):
        m = min(HEAD_ROWS, tokens.size - first)
        head(kern, shape, w, rows, first, m, logits)
        for r in range(first, first + m):
            remember_row(e, r, rows, r, tokens[starts[r % lanes] + r // lanes])
        recall_rows(kern, e, first + m, first, m, rows, cosines)
        columns = width(e.recall, first + m)
        for r in range(m):
            number = first + r
            step, lane = number // lanes, number % lanes
            at = starts[lane] + step
            token = np.int64(tokens[at])
            fix_logits(v, logits, r * v, fixed)
            some = cosines[r * columns : (r + 1) * columns]
            # Candidates' exponentials are gone after `adjust`, but what was there is what is missing.
            adjust(e, v, lane, at, starts[lane], seen_at(step, lanes), tokens, some, fixed)
            scale = c.scale[0]
            for i in range(c.size[0]):
                scale -= c.share[i]
            of_candidates = 0.0
            for i in range(c.size[0]):
                change = 0.0
                for k in range(c.size[1]):
                    if c.about[k] == i:
                        change += c.weight[c.what[k]]
                share = np.float64(c.share[i]) * 2.0 ** -min(max(change, -24.0), 24.0)
                said.shares[n_candidates + i] = share
                of_candidates += share
            total = np.float64(scale) + of_candidates
            for i in range(c.size[0]):
                said.shares[n_candidates + i] /= total
                if c.token[i] == token:
                    said.came[number] = i
                    said.share[number] = said.shares[n_candidates + i]
            if said.came[number] < 0:
                said.share[number] = np.float64(c.e[token]) / total
            for k in range(c.size[1]):
                said.about[n_evidence + k] = c.about[k]
                said.what[n_evidence + k] = c.what[k]
            said.candidates[number], said.evidence[number] = c.size[0], c.size[1]
            n_candidates += c.size[0]
            n_evidence += c.size[1]
            frequencies(e, v, freq, sums)
            learn(e, lane, at, token, tokens, freq)
    return n_candidates, n_evidence


def listen(shape: Shape, weights: Any, start: Any, tokens: Any, lengths: Any, hidden: Rows) -> Said:
    """What an ensemble that starts with `start` says of a text."""
    n, lanes = tokens.size, lengths.size
    starts = lane_starts(n, lanes)
    order = starts[np.arange(n) % lanes] + np.arange(n) // lanes
    rows = make_rows(shape, n)
    for to, kept in zip(rows, hidden, strict=True):
        to.reshape(n, -1)[:] = kept.reshape(n, -1)[order]
    normal = states_have_any_norm(shape)
    e = ensemble.make_ensemble(ALL_OF_TOKENS, starts, HEAD_ROWS, shape.dim, shape.vocab, start, normal)
    said = Said(
        np.zeros(n, np.int32), np.zeros(n, np.int32), np.full(n, -1, np.int32), np.zeros(n, np.float32),
        np.zeros(n * MOST_CANDIDATES, np.float32), np.zeros(n * MOST_EVIDENCE, np.uint8),
        np.zeros(n * MOST_EVIDENCE, np.uint16),
    )  # fmt: skip
    logits = aligned(HEAD_ROWS * shape.vocab, np.float32)
    cosines = aligned(HEAD_ROWS * e.recall.columns, np.float32)
    sizes = _listen(chosen()[1], shape, weights, e, rows, lanes, starts, tokens, logits, cosines, said)
    return said._replace(shares=said.shares[: sizes[0]].copy(), about=said.about[: sizes[1]].copy(),
                         what=said.what[: sizes[1]].copy())  # fmt: skip


@numba.njit(error_model="numpy")
def fit(said: Any, weight: Any, slope: Any, rate: float, least: float) -> Any:
    """Go through a text once, moving the weights; returns its bits. least: probability that every token has."""
    n_candidates, n_evidence, bits = 0, 0, 0.0
    change = np.zeros(256)
    for number in range(said.came.size):
        size = said.candidates[number]
        some = said.shares[n_candidates : n_candidates + size]
        about = said.about[n_evidence : n_evidence + said.evidence[number]]
        what = said.what[n_evidence : n_evidence + said.evidence[number]]
        change[:size] = 0.0
        for k in range(what.size):
            change[about[k]] += weight[what[k]]
        total, came = 1.0, np.float64(said.share[number])
        for i in range(size):
            p = some[i] * 2.0 ** min(max(change[i], -24.0), 24.0)
            total += p - some[i]
            if i == said.came[number]:
                came = p
            change[i] = p
        total = max(total, 1e-9)
        bits -= np.log2(came / total + least)
        for i in range(size):
            change[i] = (1.0 if i == said.came[number] else 0.0) - change[i] / total
        for k in range(what.size):
            g = change[about[k]]
            slope[what[k]] += g * g
            weight[what[k]] += rate * g / np.sqrt(slope[what[k]] + 1.0)
        n_candidates += size
        n_evidence += what.size
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--work", type=Path, default=Path("preset-work"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", help="name of a model that is here (nacz models); the default model if none")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    model = load_model(args.model)
    shape, weights = make_shape(model.architecture, EFFORTS[6].window), make_weights(model)
    start = np.array([np.zeros(ensemble.NUMBERS), np.ones(ensemble.NUMBERS)])
    least = 2.0 ** -total_bits(shape.vocab)
    for number in range(args.rounds):
        heard = []
        for name, files, first, size in TEXTS:
            data = b"".join((args.corpora / file).read_bytes() for file in files)[first : first + size]
            states = hidden_states(model, data, args.work / f"{name}.npz")
            heard.append(listen(shape, weights, start, *states))
        weight, slope = np.zeros(ensemble.NUMBERS), np.zeros(ensemble.NUMBERS)
        for epoch in range(EPOCHS):
            bits = sum(fit(said, weight, slope, RATE, least) for said in heard)
            print(f"round {number + 1}, epoch {epoch + 1}: {bits / 8:,.0f} bytes", flush=True)
        start = rounded(weight, FIRST + SHARE * slope)
    (FORMATS / f"ensemble-{preset.preset_of(model.tokenizer_hash)}.bin").write_bytes(in_units(*start))


def in_units(weight: Any, slope: Any) -> bytes:
    """The file of these weights and slopes."""
    small = np.rint(weight / preset.UNIT).clip(-32767, 32767).astype("<i2")
    return small.tobytes() + np.rint(slope / preset.SLOPE_UNIT).clip(1, 65535).astype("<u2").tobytes()


def rounded(weight: Any, slope: Any) -> Any:
    """float64[2, numbers] as they come back from the file."""
    raw = in_units(weight, slope)
    return np.array([np.frombuffer(raw, "<i2", weight.size) * preset.UNIT,
                     np.frombuffer(raw, "<u2", weight.size, 2 * weight.size) * preset.SLOPE_UNIT])  # fmt: skip


if __name__ == "__main__":
    main()
