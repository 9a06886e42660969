"""nacz: a neural lossless compressor whose archives decode bit for bit on any machine.

    import nacz
    archive = nacz.compress(b"some text " * 100)
    assert nacz.decompress(archive) == b"some text " * 100

Nothing heavy is imported before it is used, so that a command line that only prints its version starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nacz._version import __version__

if TYPE_CHECKING:
    from nacz.codec import (
        MemberInfo,
        Totals,
        archive_info,
        compress,
        compress_stream,
        decompress,
        decompress_stream,
    )
    from nacz.errors import (
        CorruptDataError,
        InternalError,
        LimitError,
        ModelError,
        ModelMismatchError,
        ModelMissingError,
        NaczError,
        OutputExistsError,
        UnsupportedVersionError,
        UsageError,
        WorkerError,
    )
    from nacz.file_object import NaczFile, open
    from nacz.incremental import NaczCompressor, NaczDecompressor, get_frame_info, get_frame_size
    from nacz.integrations import register_fsspec, register_joblib, register_shutil, register_smart_open
    from nacz.progress import Progress
    from nacz.segment_coder import COMPRESSION_LEVEL_DEFAULT, CodecOptions

__all__ = [
    "COMPRESSION_LEVEL_DEFAULT",
    "CodecOptions",
    "CorruptDataError",
    "InternalError",
    "LimitError",
    "MemberInfo",
    "ModelError",
    "ModelMismatchError",
    "ModelMissingError",
    "NaczCompressor",
    "NaczDecompressor",
    "NaczError",
    "NaczFile",
    "OutputExistsError",
    "Progress",
    "Totals",
    "UnsupportedVersionError",
    "UsageError",
    "WorkerError",
    "__version__",
    "archive_info",
    "compress",
    "compress_stream",
    "decompress",
    "decompress_stream",
    "get_frame_info",
    "get_frame_size",
    "open",
    "register_fsspec",
    "register_joblib",
    "register_shutil",
    "register_smart_open",
]

_HOME = {
    "COMPRESSION_LEVEL_DEFAULT": "nacz.segment_coder",
    "CodecOptions": "nacz.segment_coder",
    "CorruptDataError": "nacz.errors",
    "InternalError": "nacz.errors",
    "LimitError": "nacz.errors",
    "MemberInfo": "nacz.codec",
    "ModelError": "nacz.errors",
    "ModelMismatchError": "nacz.errors",
    "ModelMissingError": "nacz.errors",
    "NaczCompressor": "nacz.incremental",
    "NaczDecompressor": "nacz.incremental",
    "NaczError": "nacz.errors",
    "NaczFile": "nacz.file_object",
    "OutputExistsError": "nacz.errors",
    "Progress": "nacz.progress",
    "Totals": "nacz.codec",
    "UnsupportedVersionError": "nacz.errors",
    "UsageError": "nacz.errors",
    "WorkerError": "nacz.errors",
    "archive_info": "nacz.codec",
    "compress": "nacz.codec",
    "compress_stream": "nacz.codec",
    "decompress": "nacz.codec",
    "decompress_stream": "nacz.codec",
    "get_frame_info": "nacz.incremental",
    "get_frame_size": "nacz.incremental",
    "open": "nacz.file_object",
    "register_fsspec": "nacz.integrations",
    "register_joblib": "nacz.integrations",
    "register_shutil": "nacz.integrations",
    "register_smart_open": "nacz.integrations",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'nacz' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
