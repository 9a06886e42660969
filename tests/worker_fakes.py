"""Predictors that worker processes can import: fast ones whose sizes make the encoder change its mind, a slow one, and
one whose weights are others in another process."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

from order0 import IDENTITY

from nacz.errors import CorruptDataError, ModelMissingError
from nacz.segment_coder import BYTE_MODEL, LANGUAGE_MODEL, CodecOptions, ModelIdentity, ModelProgress, SegmentProgress

loads = 0
SURPRISE = b"XYZZY" * 20


class Zlib:
    """As the byte model: small text segments, large other ones."""

    predictor_id = BYTE_MODEL
    default_segment_size = 1 << 18
    needs_model = False

    def __init__(self, options: CodecOptions) -> None:
        pass

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        return None

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        return b"", zlib.compress(data, 1)

    def decode(
        self, params: bytes, payload: bytes, plain_size: int, *, threads: int, progress: SegmentProgress | None
    ) -> bytes:
        try:
            return zlib.decompress(payload)
        except zlib.error:
            raise CorruptDataError("not zlib") from None


class ZlibModel(Zlib):
    """As the language model: better on text, except on text that holds a surprise."""

    predictor_id = LANGUAGE_MODEL
    default_segment_size = 1 << 16
    needs_model = True

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        global loads
        loads += 1
        return IDENTITY

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        return b"", zlib.compress(data, 0 if SURPRISE in data else 9)


class Slow(Zlib):
    """Says which process has begun and takes its time, so that it can be killed."""

    default_segment_size = 1000

    def _dawdle(self, data: bytes) -> None:
        folder = Path(os.environ["NACZ_TEST_FOLDER"])
        (folder / f"{zlib.crc32(data):08x}-{os.getpid()}").touch()
        time.sleep(0.3)

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        self._dawdle(data)
        return super().encode(data, options=options, threads=threads, progress=progress)

    def decode(
        self, params: bytes, payload: bytes, plain_size: int, *, threads: int, progress: SegmentProgress | None
    ) -> bytes:
        self._dawdle(payload)
        return super().decode(params, payload, plain_size, threads=threads, progress=progress)


class Deadly(Slow):
    """Ends every process but the one that the environment names."""

    def _dawdle(self, data: bytes) -> None:
        if os.environ["NACZ_TEST_PARENT"] != str(os.getpid()):
            os._exit(3)


class ElsewhereOther(ZlibModel):
    """Has other weights in another process than the one that the environment names."""

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        if os.environ["NACZ_TEST_PARENT"] == str(os.getpid()):
            return IDENTITY
        return ModelIdentity(IDENTITY.name, b"else")


class ElsewhereMissing(ZlibModel):
    """Has no weights in another process than the one that the environment names."""

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity | None:
        if os.environ["NACZ_TEST_PARENT"] == str(os.getpid()):
            return IDENTITY
        raise ModelMissingError("weights are not on this machine")

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        self.model_identity()
        return super().encode(data, options=options, threads=threads, progress=progress)


def loads_here() -> int:
    """How often a worker has loaded the model of ZlibModel."""
    return loads
