"""A backend for tests: a small recurrent network in floating point with a vocabulary that lacks most bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacz.backends import Loaded

WORDS = [b"", b" ", b"a", b"e", b"t", b"the", b" the", b"and", b" and", b"ing", b"caf\xc3\xa9", b".", b"s", b" some"]
WORDS += [b"\n"]


class Fake:
    """`lie`: logits differ by a little from one text to the next, as they do where threads race."""

    def __init__(self, fingerprint: str = "fake 1.0", seed: int = 0, lie: float = 0.0, context: int = 128) -> None:
        r = np.random.default_rng(seed)
        self.hidden = r.normal(size=(8, 8)).astype(np.float32) / 3
        self.inputs = r.normal(size=(len(WORDS), 8)).astype(np.float32)
        self.head = r.normal(size=(8, len(WORDS))).astype(np.float32)
        self.lie, self.texts = lie, 0
        self.loaded = Loaded("fake", bytes(31) + bytes([seed]), list(WORDS), 0, context, fingerprint)
        self.windows: list[tuple[int, int]] = []

    def tokenize(self, text: str) -> list[int]:
        """Greedy, and lossy: what is no word vanishes; a blank is put before the text."""
        data, out = b" " + text.encode(), []
        while data:
            found = max((i for i, word in enumerate(WORDS) if word and data.startswith(word)),
                        key=lambda i: len(WORDS[i]), default=None)  # fmt: skip
            if found is not None:
                out.append(found)
            data = data[len(WORDS[found]) if found is not None else 1 :]
        return out

    def start(self, window: int, sinks: int) -> Any:
        self.windows.append((window, sinks))
        self.texts += 1
        return _Text(self, self.texts * self.lie)


class _Text:
    def __init__(self, fake: Fake, off: float) -> None:
        self.fake, self.off = fake, np.float32(off)
        self.state = np.zeros(8, np.float32)

    def feed(self, token: int) -> NDArray[Any]:
        self.state = np.tanh(self.fake.hidden @ self.state + self.fake.inputs[token])
        logits = 3 * (self.state @ self.fake.head) + self.off * self.state[0] * np.arange(len(WORDS))
        return np.asarray(logits, np.float32)
