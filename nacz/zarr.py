"""nacz as a codec of Zarr arrays of format 3: found by its entry point under the name "nacz".

    zarr.create_array(store, compressors=[nacz.zarr.NaczCodec(level=3)], ...)

Every chunk becomes an archive of its own. Knows Zarr's contract; does not know how archives are made. zarr is imported
here and is no dependency of nacz.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.codec import BytesBytesCodec

from nacz.codec import compress, decompress
from nacz.segment_coder import LAST_LEVEL_WITHOUT_WEIGHTS, CodecOptions

if TYPE_CHECKING:
    from typing import Self

__all__ = ["NaczCodec"]


@dataclass(frozen=True)
class NaczCodec(BytesBytesCodec):  # type: ignore[misc]  # zarr is not always there to be typed
    """Compresses the bytes of a chunk. `level`: 1 to 9; the default, 3, needs no weights. Raises UsageError."""

    level: int = LAST_LEVEL_WITHOUT_WEIGHTS
    is_fixed_size = False

    def __post_init__(self) -> None:
        CodecOptions(level=self.level)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec that array metadata describe."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """Return what array metadata keep."""
        return {"name": "nacz", "configuration": {"level": self.level}}

    async def _encode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        archive = await asyncio.to_thread(compress, chunk_bytes.to_bytes(), self.level)
        return chunk_spec.prototype.buffer.from_bytes(archive)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        plain = await asyncio.to_thread(decompress, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(plain)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Not known before it is done."""
        raise NotImplementedError
