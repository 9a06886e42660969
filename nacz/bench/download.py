"""A public corpus from where its makers keep it: one zip, unpacked, kept only if size and sha256 are the known ones.

Called only where a person asked for it. Knows addresses and hashes; does not know what is measured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from urllib.request import urlopen

from nacz.errors import UsageError

__all__ = ["download"]

_TIMEOUT = 60  # seconds without a byte
_PIECE = 1 << 20


def download(name: str, url: str, size: int, sha256: str, folder: Path) -> Path:
    """Put the file `name` of the zip at `url` into `folder` and return its path. `size` in bytes, `sha256` in hex.

    Raises UsageError where NACZ_OFFLINE forbids it, the network fails, or something else comes; OSError of the folder.
    """
    if os.environ.get("NACZ_OFFLINE", "") not in ("", "0"):
        raise UsageError(f"{name} is not here, and NACZ_OFFLINE is set")
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the finished file needs no copy.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as work:
        packed, plain = Path(work, "packed"), Path(work, "plain")
        try:
            with urlopen(url, timeout=_TIMEOUT) as response, packed.open("wb") as file:
                shutil.copyfileobj(response, file, _PIECE)
        except OSError as error:  # all of urllib's are
            raise UsageError(f"{name} could not be downloaded from {url}: {error}") from None
        found = hashlib.sha256()
        try:
            with zipfile.ZipFile(packed) as archive, archive.open(name) as member, plain.open("wb") as file:
                left = size + 1  # whatever the zip claims
                while left and (piece := member.read(min(left, _PIECE))):
                    left -= len(piece)
                    found.update(piece)
                    file.write(piece)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UsageError(f"what came from {url} has no {name} in it: {error}") from None
        if left != 1 or found.hexdigest() != sha256:
            raise UsageError(f"what came from {url} is not the known {name}; nothing was kept")
        os.replace(plain, folder / name)
    return folder / name
