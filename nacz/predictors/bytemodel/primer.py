"""The text that every model reads before its first byte, so that a short file does not pay for learning English.

Knows one file, `primer.txt`; docs/bytemodel.md says what is in it and under which terms. The end of it is the best
part, and a model that wants less takes the end.
"""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def _whole() -> bytes:
    return resources.files(__package__).joinpath("primer.txt").read_bytes()


def primer(size: int) -> bytes:
    """The last `size` bytes of the primer, or all of it."""
    text = _whole()
    return text[max(0, len(text) - size) :]
