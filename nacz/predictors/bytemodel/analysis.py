"""What can be told of the data before coding: whether it can be predicted at all, and whether it has records.

Knows bytes and cheap statistics on samples; knows no model. Decisions made here are stored in the payload, so they
may change from release to release without touching a decoder.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

_SMALLEST = 1 << 12
_SAMPLES = 32
_MAX_WIDTH = 2048
_WIDTH_SAMPLE = 1 << 17


def _sample(data: U8) -> U8:
    """Pieces from all over the data: at most 1/8 of it and at most 64 KB."""
    piece = min(2048, len(data) // (8 * _SAMPLES))
    starts = np.linspace(0, len(data) - piece, _SAMPLES).astype(np.int64)
    return np.concatenate([data[s : s + piece] for s in starts])


def _excess(counts: npt.NDArray[np.int64], total: int) -> float:
    """Pearson's statistic against a flat distribution, in standard deviations from its mean."""
    bins = len(counts)
    flat = total / bins
    statistic = float(np.sum((counts - flat) ** 2) / flat)
    return (statistic - bins) / float(np.sqrt(2.0 * bins))


def looks_random(data: U8) -> bool:
    """Whether bytes, neighbouring bits and long repeats all look like noise.

    Tests flatness of bytes, of each byte's difference to its neighbour and of nibble pairs across bytes, and looks
    for repeated 8-byte strings at content-chosen places, which finds copies at any distance. All of it costs about
    a hundredth of the fastest level's time.
    """
    if len(data) < _SMALLEST:
        return False
    part = _sample(data).astype(np.int64)
    # Random data stays below 5 deviations, the deflate stream of a PNG reaches 41 (0.3 % to be won), text 1,000s.
    bound = 60.0
    if _excess(np.bincount(part, minlength=256), len(part)) > bound:
        return False
    if _excess(np.bincount((part[1:] - part[:-1]) & 255, minlength=256), len(part) - 1) > bound:
        return False
    if _excess(np.bincount((part[1:] & 0xF0) | (part[:-1] >> 4), minlength=256), len(part) - 1) > bound:
        return False
    # Bytes that wrap, so that a processor takes 32 or 64 at a time.
    chooser = data[:-10] * np.uint8(167)
    chooser += data[1:-9] * np.uint8(113)
    chooser += data[2:-8] * np.uint8(59)
    places = np.flatnonzero(chooser < 4)
    keys = np.ascontiguousarray(np.stack([data[places + k] for k in range(3, 11)], axis=1)).view(np.uint64)
    return bool((len(keys) - len(np.unique(keys))) * 200 <= len(keys))


def looks_binary(data: U8) -> bool:
    """Whether it is no text: tables of numbers and programs are full of small values, text in any encoding is not."""
    part = _middle(data)
    control = np.count_nonzero((part < 32) & (part != 10) & (part != 13) & (part != 9))
    return bool(control * 8 >= len(part))


def _middle(data: U8) -> U8:
    start = max(0, (len(data) - _WIDTH_SAMPLE) // 2)
    return data[start : start + _WIDTH_SAMPLE]


def record_width(data: U8) -> int:
    """The distance at which bytes most often equal each other, if the data looks like a table; else 0."""
    if len(data) < 1024:
        return 0
    part = _middle(data)
    if not looks_binary(data):
        return 0
    limit = min(_MAX_WIDTH, len(part) // 8)
    hits = np.zeros(limit + 1, dtype=np.int64)
    for lag in range(1, limit + 1):
        hits[lag] = np.count_nonzero(part[lag:] == part[:-lag]) * len(part) // (len(part) - lag)
    base = int(np.median(hits[1:]))
    best = int(np.argmax(hits[2:])) + 2
    if (hits[best] - base) * 50 < len(part):
        return 0
    # A multiple of the true width scores about the same: take the smallest that is nearly as good.
    for lag in range(2, best):
        if best % lag == 0 and (hits[lag] - base) * 100 >= 92 * (hits[best] - base):
            return lag
    return best
