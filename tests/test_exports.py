"""What the package promises to export is there, and nothing else is promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nacz


def test_all_is_sorted_and_importable() -> None:
    assert nacz.__all__ == sorted(nacz.__all__)
    for name in nacz.__all__:
        assert getattr(nacz, name) is not None
    assert set(nacz._HOME) == set(nacz.__all__) - {"__version__"}
    assert dir(nacz) == sorted(nacz.__all__)
    with pytest.raises(AttributeError):
        nacz.no_such_name  # noqa: B018


def test_all_is_exactly_this() -> None:
    assert nacz.__all__ == [
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


def test_the_package_is_typed() -> None:
    assert (Path(nacz.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("statement", ["import nacz", "import nacz.cli", "import nacz.codec"])
def test_nothing_heavy_is_imported_early(statement: str, tmp_path: Path) -> None:
    heavy = "{'numpy', 'numba', 'rich', 'tokenizers', 'torch'}"
    program = f"{statement}; import sys; print(*{heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.strip() == ""
