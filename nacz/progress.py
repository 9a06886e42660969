"""What long work reports while it runs. Knows numbers; does not know how anyone shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressCallback"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of the work.

    phase   "compress" or "decompress"; before that perhaps "fetch" (bytes) and "convert" (steps) of the model, and
            "try" (steps) while something is coded only to see whether it is worth it: for these only `done` and
            `total` have a meaning
    done    plain bytes coded or decoded so far
    total   plain bytes in all, None when nobody knows
    coded   archive bytes written or read so far
    tokens  tokens coded or decoded so far, 0 for predictors without tokens
    """

    phase: str
    done: int
    total: int | None
    coded: int
    tokens: int

    @property
    def bits_per_byte(self) -> float | None:
        """Archive bits per plain byte so far, None before the first byte."""
        return 8 * self.coded / self.done if self.done else None


# May raise to cancel: the work stops and whatever was raised reaches the caller.
ProgressCallback = Callable[[Progress], None]
