"""Archives of every format version so far decode for ever, in this release and in the decoder of docs/.

Run with `pytest tests/test_golden.py`. The files are made by scripts/golden; a missing one is a failure. The language
model is the tiny one.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tiny

import nacz
from nacz import CodecOptions
from nacz.predictors.members import MEMBERS
from nacz.random_access import RandomReader
from nacz.segments import SegmentDecoder

HERE = Path(__file__).parent / "golden"
PLAIN = {
    (version, name): want
    for version in ("v1",)
    for name, want in json.loads((HERE / version / "plain.json").read_text()).items()
}
ERRORS = json.loads((HERE / "errors/expected.json").read_text())
# What no release may lose: a file that disappears is noticed here.
WANTED = {
    "v1": {
        "empty", "stored", "stored-segments", "language-model", "language-model-lanes", "language-model-segments",
        "language-model-escapes", "language-model-window", "language-model-near", "mixed", "members", "byte-model",
        "byte-model-1", "byte-model-2", "learning", "learning-ensemble",
        "learning-2", "learning-2-ensemble", "general", "general-lanes",
        *(f"level-{n}" for n in range(4, 10)),
        *(f"ensemble{name}" for name in ("", "-all", "-lanes", "-segments", *(f"-{member}" for member in MEMBERS))),
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_general(tmp_path_factory.mktemp("general"))


@pytest.fixture(scope="module")
def reference(model: Path) -> Iterator[tuple[ModuleType, object]]:
    folder = Path(__file__).parent.parent / "docs"
    for path in folder.glob("reference_*.py"):
        assert "import nacz" not in path.read_text() and "from nacz" not in path.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        module = importlib.import_module("reference_decoder")
        yield module, module.Model(model.read_bytes())


def archive(version: str, name: str) -> bytes:
    return (HERE / version / f"{name}.nacz").read_bytes()


def right(plain: bytes, want: dict[str, object]) -> bool:
    return len(plain) == want["plain_size"] and hashlib.sha256(plain).hexdigest() == want["sha256"]


def test_nothing_is_missing() -> None:
    for version, wanted in WANTED.items():
        assert wanted <= {name for v, name in PLAIN if v == version}
        assert {path.stem for path in (HERE / version).glob("*.nacz")} == {name for v, name in PLAIN if v == version}
    assert {path.stem for path in (HERE / "errors").glob("*.nacz")} == set(ERRORS)


@pytest.mark.parametrize(("version", "name"), PLAIN, ids=lambda value: value)
def test_they_decode(model: Path, general: Path, version: str, name: str) -> None:
    data, want = archive(version, name), PLAIN[version, name]
    options = CodecOptions(model=str(general if name.startswith("general") else model))
    plain = nacz.decompress(data, options)
    assert right(plain, want)
    reader = RandomReader(io.BytesIO(data), SegmentDecoder(options))
    assert reader.size == len(plain)
    third = len(plain) // 3
    assert b"".join(reader.read_range(third, 2 * third)) == plain[third : 2 * third]


# A primer to be read, a network to be taught.
SLOW = {"byte-model", "byte-model-2", "byte-model-table", "learning", "learning-2"}


def slowly(name: str) -> object:
    """Every name with a mark on those that take the reference decoder more than a few seconds."""
    return pytest.param("v1", name, marks=pytest.mark.slow) if name in SLOW else ("v1", name)


@pytest.mark.parametrize(("version", "name"), [slowly(name) for _, name in PLAIN])
def test_the_reference_decoder(
    reference: tuple[ModuleType, object], general: Path, version: str, name: str
) -> None:
    module, loaded = reference
    if name.startswith("general"):
        loaded = module.Model(general.read_bytes())
    assert right(module.decode_archive(archive(version, name), loaded), PLAIN[version, name])


@pytest.mark.parametrize("name", ERRORS)
def test_hostile_archives(model: Path, reference: tuple[ModuleType, object], name: str) -> None:
    data = archive("errors", name)
    with pytest.raises(nacz.NaczError) as caught:
        nacz.decompress(data, CodecOptions(model=str(model)), max_output=1 << 30)
    assert type(caught.value).__name__ == ERRORS[name]
    module, loaded = reference
    with pytest.raises(module.BadArchive):
        module.decode_archive(data, loaded)
