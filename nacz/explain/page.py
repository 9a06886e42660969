"""One self-contained HTML page of costs: it loads nothing, works without a network, and draws only what is looked at.

Columns are embedded as Base64 of little-endian arrays, so that a text of 1 MB stays a page of some 20 MB. Knows costs
and the template page.html; does not know how costs come about.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.explain.costs import Costs
from nacz.explain.passages import curve, passages, readable

__all__ = ["page"]

_SHORT = 120  # characters of a passage that are shown in its table


def page(costs: Costs, title: str, about: str) -> str:
    """Return the page. `title`: the name of the text; `about`: a line on model and date."""
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    ends = np.cumsum(costs.lengths, dtype=np.int64)
    shown = [readable(costs.data[end - n : end]) for end, n in zip(ends.tolist(), costs.lengths.tolist(), strict=True)]
    # JavaScript counts a character beyond the first plane twice.
    sizes = np.array([len(s) + sum(c > "\uffff" for c in s) for s in shown], np.uint16)
    names, carried = costs.carriers()
    tokens = sorted(costs.words)
    place = {token: index for index, token in enumerate(tokens)}
    alternatives = np.array([place[token] for token in costs.alternatives.reshape(-1).tolist()], np.uint32)
    total = float(np.sum(costs.bits, dtype=np.float64))
    data = {
        "title": title,
        "bytes": len(costs.data),
        "total": round(total, 1),
        "text": "".join(shown),
        "sizes": _column(sizes, np.uint16),
        "lengths": _column(costs.lengths, np.uint16),
        "bits": _column(np.rint(costs.bits * 1000.0), np.uint32),
        "alternatives": _column(alternatives, np.uint32 if len(tokens) > 0xFFFF else np.uint16),
        "wide": len(tokens) > 0xFFFF,
        "chances": _column(np.minimum(np.rint(costs.chances.reshape(-1) * 65536.0), 65535), np.uint16),
        "count": int(costs.alternatives.shape[1]),
        "words": [readable(costs.words[token]) for token in tokens],
        "predictors": {
            name: _column(np.rint(bits * 1000.0), np.uint32) for name, bits in costs.predictors.items()
        },
        "carriers": names,
        "carried": _column(carried, np.uint8),
        # What each member saved at the side of the others, in hundredths of a bit; less than nothing where it misled.
        "saved": {
            name: _column(np.clip(np.rint(100.0 * saved), -32768, 32767), np.int16) for name, saved in _saved(costs)
        },
        "table": _table(costs, names, carried),
        "curves": _rounded(costs, {"all together": costs.bits} | costs.predictors),
        "savings": _rounded(costs, dict(_saved(costs))),
        "passages": [
            {
                "unit": p.unit,
                "units": p.units,
                "start": p.start,
                "bits": round(p.bits, 1),
                "bpb": round(p.bits / max(p.size, 1), 2),
                "text": readable(costs.data[p.start : p.start + p.size])[:_SHORT],
            }
            for p in passages(costs)
        ],
    }
    # "</script>" inside of a string would end the element.
    embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    words = {
        "TITLE": html.escape(title),
        "ABOUT": html.escape(about),
        "SUMMARY": html.escape(
            f"{len(costs.data):,} bytes cost {total / 8:,.0f} bytes: {costs.bits_per_byte:.3f} bits per byte, "
            f"{costs.bits.size:,} tokens"
        ),
        "DATA": embedded,
    }
    return re.sub(r"{{([A-Z]+)}}", lambda found: words[found[1]], template)


def _saved(costs: Costs) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Bits that each member saved: what all others together would have paid more."""
    for name, bits in costs.without.items():
        yield name, bits - costs.bits


def _table(costs: Costs, names: list[str], carried: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Rows on each predictor: bytes of the text with it alone (a member: beside the language model), bytes without it
    (None for what is no member), and the share of units that it carried (None for what is not mixed in)."""
    rows: list[dict[str, Any]] = []
    for name, alone in (costs.predictors | costs.only).items():
        without = costs.without.get(name)
        share = float(np.mean(carried == names.index(name))) if name in names and carried.size else None
        rows.append({
            "name": name, "alone": _bytes(alone), "without": None if without is None else _bytes(without),
            "share": None if share is None else round(100.0 * share, 1),
        })  # fmt: skip
    return rows


def _bytes(bits: NDArray[np.float32]) -> int:
    return round(float(np.sum(bits, dtype=np.float64)) / 8)


def _rounded(costs: Costs, columns: dict[str, NDArray[np.float32]]) -> dict[str, list[float]]:
    return {name: [round(v, 3) for v in curve(costs, bits)] for name, bits in columns.items()}


def _column(values: Any, dtype: Any) -> str:
    return base64.b64encode(np.asarray(values).astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode("ascii")
