"""Which of two ways of doing the same thing is quicker at present, found by doing it.

Threads that share a pass halve its time while each has a processor, and double it while they do not: they meet hundreds
of times, and whoever waits for one that is not running waits for the system. No count of processors says which it is.

Knows seconds. Does not know what takes them.
"""

from __future__ import annotations

TRIAL = 4  # times in a row that the other way is tried, of which the first does not count
SOON, LATE = 16, 1024  # times between trials: after a change of way, and at most
MEMORY = 1 / 16  # share of the newest time in the mean


class Quicker:
    """Two ways, 0 and 1, of which the latter is the first to be gone."""

    def __init__(self) -> None:
        self.way = 1
        self._mean = 0.0  # of the way that is gone
        self._left, self._pause, self._trying = SOON, SOON, False
        self._tried: list[float] = []

    def took(self, seconds: float) -> None:
        """Tell how long it took, the way that `way` said; the next one may be another."""
        if self._trying:
            self._tried.append(seconds)
            if len(self._tried) == TRIAL:
                self._decide(sum(self._tried[1:]) / (TRIAL - 1))
            return
        self._mean += (seconds - self._mean) * MEMORY if self._mean else seconds
        self._left -= 1
        if self._left == 0:
            self.way, self._trying, self._tried = 1 - self.way, True, []

    def _decide(self, tried: float) -> None:
        """End a trial: go on this way, or back to the other one and try later."""
        if tried < self._mean:
            self._mean, self._pause = tried, SOON
        else:
            self.way, self._pause = 1 - self.way, min(2 * self._pause, LATE)
        self._left, self._trying = self._pause, False
