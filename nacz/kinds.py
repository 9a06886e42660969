"""What bytes are, as far as that chooses a predictor: text, which a language model may know, or something else.

Judges by shares of bytes in windows; a pure function of the bytes. Knows ASCII, UTF-8 and the headers of tar; does not
know predictors.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WINDOW", "best_cut", "is_mostly_text", "is_text"]

WINDOW = 4096
_TAR_BLOCK = 512
_TAR_MAGIC = 257  # where "ustar" stands in the header of a member

# numpy is imported where it is needed: reading headers does without.


def is_text(window: bytes | bytearray | memoryview) -> bool:
    """Tell whether at least four fifths of the bytes are ASCII text or well-formed UTF-8.

    Zeros in a row are padding, as in tar, and not counted, unless they are most of the window. In the corpora text of
    any language has 0.88 or more of such bytes in windows of 4,096, other data 0.65 or less, with little between.
    """
    score = _scores(window)
    counted = int((score != 0).sum())
    return 4 * counted >= len(score) and int(score.sum()) >= 0


def is_mostly_text(data: bytes) -> bool:
    """Tell whether at least half of the windows are text."""
    windows = [is_text(memoryview(data)[at : at + WINDOW]) for at in range(0, len(data), WINDOW)]
    return 2 * sum(windows) >= len(windows)


def best_cut(part: bytes, offset: int, text_first: bool) -> int:
    """Return where in `part`, which stands at `offset` of the stream, text ends or, if not `text_first`, begins.

    A tar header in `part` is taken instead, the one that is nearest: a member begins there.
    """
    import numpy as np

    sums = np.concatenate([[0], np.cumsum(_scores(part))])
    at = int(np.argmax(sums) if text_first else np.argmin(sums))
    headers = [
        start
        for start in range(-offset % _TAR_BLOCK, len(part) - _TAR_BLOCK + 1, _TAR_BLOCK)
        if part[start + _TAR_MAGIC : start + _TAR_MAGIC + 5] == b"ustar"
    ]
    return min(headers, key=lambda start: (abs(start - at), start), default=at)


def _scores(part: bytes | bytearray | memoryview) -> NDArray[np.int64]:
    """1 for each byte of text, -4 for each other one, 0 for padding: a sum of 0 is four fifths of text."""
    import numpy as np

    b = np.frombuffer(part, np.uint8)
    text = _ascii()[b]
    follows = (b & 0xC0) == 0x80
    for low, high, more in ((0xC2, 0xDF, 1), (0xE0, 0xEF, 2), (0xF0, 0xF4, 3)):
        whole = (b >= low) & (b <= high)
        whole[max(0, len(b) - more) :] = False
        for i in range(1, more + 1):
            whole[:-i] &= follows[i:]
        for i in range(more + 1):
            text[i:] |= whole[: len(b) - i]
    zero = b == 0
    padding = np.zeros(len(b), np.bool_)
    if len(b) > 2:
        three = zero[:-2] & zero[1:-1] & zero[2:]
        for i in range(3):
            padding[i : len(b) - 2 + i] |= three
    return np.where(padding, 0, np.where(text, 1, -4))


@functools.cache
def _ascii() -> NDArray[np.bool_]:
    """Which bytes are ASCII text."""
    import numpy as np

    found = np.zeros(256, np.bool_)
    found[32:127] = True
    found[[*range(8, 14), 27]] = True  # backspace to carriage return, escape
    return found
