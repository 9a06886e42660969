"""nacz as a codec of numcodecs, and so of Zarr arrays of format 2: found by its entry point as {"id": "nacz"}.

    numcodecs.get_codec({"id": "nacz", "level": 3})

Every chunk becomes an archive of its own. Knows numcodecs' contract; does not know how archives are made. numcodecs is
imported here and is no dependency of nacz.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ndarray_copy

from nacz.codec import compress, decompress
from nacz.segment_coder import LAST_LEVEL_WITHOUT_WEIGHTS, CodecOptions

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Nacz"]


class Nacz(Codec):  # type: ignore[misc]  # numcodecs is not typed
    """Compresses the bytes of a chunk. `level`: 1 to 9; the default, 3, needs no weights.

    Raises UsageError for another level, and what `nacz.compress` and `nacz.decompress` raise.
    """

    codec_id = "nacz"

    def __init__(self, level: int = LAST_LEVEL_WITHOUT_WEIGHTS) -> None:
        self.level = CodecOptions(level=level).level

    def encode(self, buf: Buffer) -> bytes:
        """Return the archive of the bytes of any buffer."""
        return compress(ensure_bytes(buf), self.level)

    def decode(self, buf: Buffer, out: Buffer | None = None) -> Any:
        """Return the plain bytes, or copy them into `out`, a buffer of exactly their size, and return that."""
        plain = decompress(ensure_bytes(buf))
        return plain if out is None else ndarray_copy(plain, out)
