"""Bits per byte against speed, all levels and peers, in one picture. Knows rows and matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from nacz.bench.ablation import is_ablated
from nacz.bench.run import Row
from nacz.errors import UsageError

__all__ = ["png", "require"]

# Colours that people with any kind of sight tell apart (Okabe and Ito), and a shape for each as well.
_LOOKS = {
    "nacz": ("#d55e00", "o"),
    "gzip": ("#999999", "s"),
    "bzip2": ("#e0a800", "^"),
    "xz": ("#0072b2", "D"),
    "zstd": ("#009e73", "v"),
    "brotli": ("#cc79a7", "P"),
    "ppmd": ("#5b3a8c", "X"),
    "zpaq": ("#222222", "*"),
}
_HEAP = 10.0  # typographic points between neighbours that share a name


def require() -> None:
    """Raise UsageError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("pictures need matplotlib: pip install 'nacz[bench]'") from None


def png(rows: Sequence[Row]) -> bytes:
    """The picture as a PNG: a row of two panels for each source, compressing and decompressing.

    Raises UsageError when there is nothing to show or matplotlib is not installed.
    """
    require()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if not is_ablated(row)]
    texts = list(dict.fromkeys(row.text for row in rows))
    if not texts:
        raise UsageError("there is nothing to draw")
    figure, panels = pyplot.subplots(
        len(texts), 2, figsize=(12, 1.2 + 4.2 * len(texts)), sharey="row", squeeze=False, layout="constrained"
    )
    for text, (left, right) in zip(texts, panels, strict=True):
        some = [row for row in rows if row.text == text]
        for panel, direction in ((left, "compress"), (right, "decompress")):
            _draw(panel, some, direction)
            panel.set_title(f"{text}, {some[0].plain_size:,} bytes: {direction}ing", loc="left", fontsize=10)
        left.set_ylabel("bits per byte (weights not counted)")
    figure.suptitle("Smaller is lower, faster is further right", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.canvas.draw()  # only now does everything have its place
    for text, both in zip(texts, panels, strict=True):
        for panel, direction in zip(both, ("compress", "decompress"), strict=True):
            _name_points(panel, [row for row in rows if row.text == text], direction)
    out = io.BytesIO()
    figure.savefig(out, dpi=120, format="png")
    pyplot.close(figure)
    return out.getvalue()


def _rate(row: Row, direction: str) -> float:
    return row.plain_size / 1000 / max(float(getattr(row, f"{direction}_seconds")), 1e-9)


def _draw(panel: Any, rows: Sequence[Row], direction: str) -> None:
    for row in rows:
        colour, marker = _LOOKS[row.coder]
        panel.plot([_rate(row, direction)], [row.bits_per_byte], color=colour, marker=marker, markersize=7)
    panel.set_xscale("log")
    panel.margins(x=0.16, y=0.12)
    panel.set_xlabel("KB/s, wall clock")
    panel.grid(True, which="major", color="#dddddd")
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _name_points(panel: Any, rows: Sequence[Row], direction: str) -> None:
    """Write a name beside each point, where it covers least of the others; one name for points in a heap."""
    unit = panel.figure.dpi / 72  # pixels in a typographic point
    spots = [(row, panel.transData.transform((_rate(row, direction), row.bits_per_byte)) / unit) for row in rows]
    frame = tuple(panel.bbox.extents / unit)
    taken = [(x - 4, y - 4, x + 4, y + 4) for _, (x, y) in spots]
    heaps: list[list[tuple[Row, Any]]] = []
    for row, spot in spots:
        last = heaps[-1][-1] if heaps else None
        if last and last[0].coder == row.coder and abs(last[1] - spot).max() < _HEAP:
            heaps[-1].append((row, spot))
        else:
            heaps.append([(row, spot)])
    for heap in heaps:
        row, (x, y) = heap[len(heap) // 2]
        name = heap[0][0].label + (f" to -{heap[-1][0].setting}" if len(heap) > 1 else "")
        width, height = 4.7 * len(name), 8.0
        offsets = [(7, -3), (-width - 7, -3), (5, 6), (5, -13), (-width - 5, 6), (-width - 5, -13)]
        offsets += [(-width / 2, 8), (-width / 2, -16), (12, 14), (12, -22), (-width - 12, 14), (-width - 12, -22)]
        boxes = [(x + u, y + v, x + u + width, y + v + height) for u, v in offsets]
        covered = [sum(_overlap(box, other) for other in taken) - _overlap(box, frame) for box in boxes]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        panel.annotate(
            name, (_rate(row, direction), row.bits_per_byte), offsets[best], textcoords="offset points",
            fontsize=8, color=_LOOKS[row.coder][0], annotation_clip=False,
        )  # fmt: skip


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
