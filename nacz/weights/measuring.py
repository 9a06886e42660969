"""What a model alone makes of a text that every installation has, and how fast: figures to compare models by.

Knows how to run a model. Does not know what the figures are for.
"""

from __future__ import annotations

import time
from importlib import resources

import numpy as np

from nacz.weights import fetch, library, store
from nacz.weights.library import Measured

__all__ = ["SIZE", "TEXT", "measure"]

TEXT, SIZE = "SPEC.md", 6_000
_WINDOW = 2048


def measure(name: str | None = None, progress: store.Progress | None = None) -> Measured:
    """Measure a model by name (None: the default) or path: without ensemble, one lane, one thread. What an imported one
    makes of it is kept beside it. Raises ModelError."""
    from nacz.kernels.cdf import total_bits
    from nacz.kernels.dispatch import chosen
    from nacz.lane_encoding import encode_lanes
    from nacz.predictors.networks import make_shape, make_weights

    model = store.load_model(name, progress=progress)
    data = resources.files("nacz.formats").joinpath(TEXT).read_bytes()[:SIZE]
    tokens = model.vocabulary.encode(data)
    shape, weights, bos = make_shape(model.architecture, _WINDOW), make_weights(model), model.vocabulary.bos_id
    encode_lanes(chosen()[1], shape, weights, bos, tokens[:4], 1, 1)  # compiles
    start = time.process_time()
    _, freq = encode_lanes(chosen()[1], shape, weights, bos, tokens, 1, 1)
    seconds = time.process_time() - start
    bits = float(np.sum(total_bits(shape.vocab) - np.log2(freq)))
    found = Measured(round(bits / SIZE, 4), round(SIZE / seconds / 1000.0, 3), TEXT, SIZE)
    for brought in library.imported():
        if brought.name == (name or fetch.DEFAULT):
            library.note_measured(brought, found)
    return found
