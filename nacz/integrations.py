"""nacz where other libraries look for compressors: shutil's archives, files of fsspec, smart_open and joblib.

numcodecs and zarr need no call: they find nacz by its entry points (nacz.numcodecs, nacz.zarr). Each function
registers, and may be called again. The libraries are imported when asked for and are no dependencies.
Knows what these libraries call; does not know how archives are made.
"""

from __future__ import annotations

import os
import tarfile
from typing import IO, Any, cast

from nacz.file_object import NaczFile
from nacz.formats.records import MAGIC

__all__ = ["register_fsspec", "register_joblib", "register_shutil", "register_smart_open"]

_SUFFIX = ".nacz"


def register_shutil(level: int | None = None) -> None:
    """Let `shutil.make_archive(name, "nacztar", ...)` and `shutil.unpack_archive("name.tar.nacz")` work."""
    import shutil

    def make(
        base_name: str,
        base_dir: str,
        owner: str | None = None,
        group: str | None = None,
        dry_run: bool = False,
        logger: Any = None,
        root_dir: str | None = None,
    ) -> str:
        name = f"{base_name}.tar{_SUFFIX}"
        if logger is not None:
            logger.info("Creating tar archive %s", name)

        def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
            if owner is not None:
                member.uname, member.uid = owner, shutil._get_uid(owner)  # type: ignore[attr-defined]
            if group is not None:
                member.gname, member.gid = group, shutil._get_gid(group)  # type: ignore[attr-defined]
            return member

        if not dry_run:
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with NaczFile(name, "w", level=level) as file, tarfile.open(fileobj=file, mode="w|") as tar:
                source = base_dir if root_dir is None else os.path.join(root_dir, base_dir)
                tar.add(source, base_dir, filter=owned)
        return name

    make.supports_root_dir = True  # type: ignore[attr-defined]  # else shutil changes the folder of the process

    def unpack(name: str, folder: str, **more: Any) -> None:
        with NaczFile(name) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            # Without a filter a name in the archive may point out of the folder.
            tar.extractall(folder, **({"filter": "data"} | more))

    if "nacztar" in (name for name, _ in shutil.get_archive_formats()):
        shutil.unregister_archive_format("nacztar")
        shutil.unregister_unpack_format("nacztar")
    shutil.register_archive_format("nacztar", make, description="tar file compressed by nacz")
    shutil.register_unpack_format("nacztar", [f".tar{_SUFFIX}"], unpack, description="tar file compressed by nacz")


def register_fsspec() -> None:
    """Let `fsspec.open(..., compression="nacz")` work, and `compression="infer"` for names that end in `.nacz`."""
    from fsspec.compression import register_compression

    register_compression("nacz", _open_file, _SUFFIX[1:], force=True)


def register_smart_open() -> None:
    """Let `smart_open.open` read and write names that end in `.nacz`."""
    from smart_open import register_compressor

    register_compressor(_SUFFIX, cast(Any, _open_file))


def register_joblib() -> None:
    """Let `joblib.dump(value, "name.nacz")` and `compress=("nacz", level)` work; `joblib.load` needs nothing more."""
    from joblib import register_compressor
    from joblib.compressor import CompressorWrapper

    class Wrapper(CompressorWrapper):  # type: ignore[misc]  # joblib is not typed
        def compressor_file(self, fileobj: IO[bytes], compresslevel: int | None = None) -> NaczFile:
            return NaczFile(fileobj, "wb", level=compresslevel)

    register_compressor("nacz", Wrapper(NaczFile, MAGIC, _SUFFIX), force=True)


def _open_file(file: IO[bytes], mode: str = "rb", **options: Any) -> NaczFile:
    return NaczFile(file, mode.replace("t", ""), **options)
