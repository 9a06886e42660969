"""Hashes of the converted models that can be fetched, by name: what their archives record.

Apart from nacz.weights.store, which needs numpy and more, because naming the model of an archive needs only this.
"""

from __future__ import annotations

__all__ = ["DIGESTS", "PINNED"]

# sha256 of the exact model, in hex; see nacz.weights.store for what it covers and how it is made anew.
PINNED = {
    "smollm2-135m-text": "322f88a833a7553b3c4f0a4c262c7debf8cefceeac5e1b4c7de92dd89afc4809",
    "smollm2-135m": "018110b340645128d6bc2201a319f23147a1fc5caec51a4755d1986552ada076",
    "gemma3-270m": "a27a592688e249d2ebbfc691b0bcb4c10128f2da25fa5763d85e08956f0dfca2",
}
# What archives say of these weights, for every numeric contract so far (see nacz.formats.records.ModelIdentity).
DIGESTS = {"77b97a02": "smollm2-135m-text", "899ef1c2": "smollm2-135m", "878d7895": "gemma3-270m"}
