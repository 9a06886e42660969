"""The predictor without weights: a bit-wise mix of many contexts, learned while it codes, in integers only.

Knows bytes and their past. Does not know files, containers, checksums, nor any other predictor.
"""

from __future__ import annotations

from .codec import ByteModelCoder, compress, decompress, estimate_incompressible

__all__ = ["ByteModelCoder", "compress", "decompress", "estimate_incompressible"]
