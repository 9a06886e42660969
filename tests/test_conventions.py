"""Every row of docs/conventions.md has a test, and every transcript in tests/conventions/ is what really happens.

Run with `pytest tests/test_conventions.py`. After a change on purpose, the same with `--rewrite` writes down what
happens now; read the difference before it is committed. Uses the order-0 test predictor.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from cli_runner import Nacz
from nacz.formats.records import MAGIC
from transcript import differences, replay, rewritten

HERE = Path(__file__).parent
ROOT = HERE.parent
FOLDER = HERE / "conventions"
NAMES = sorted(file.stem for file in FOLDER.glob("*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_transcript(
    name: str, run: Nacz, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name == "magic" and shutil.which("file") is None:
        pytest.skip("needs file")
    path = FOLDER / f"{name}.txt"
    expected = path.read_text(encoding="utf-8")
    magic = str(ROOT / "docs" / "magic")
    found = [
        line.replace(magic, "MAGIC")
        for line in replay(expected.replace("MAGIC", magic), run, tmp_path, monkeypatch)
    ]
    wrong = differences(expected.splitlines(), found)
    if wrong and request.config.getoption("--rewrite"):
        path.write_text("\n".join(rewritten(expected.splitlines(), found)) + "\n", encoding="utf-8")
    assert not wrong, "\n".join(wrong)


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if len(row) == 6 and not set(row[0]) <= set("-: ") and row[5] != "test"]


def test_every_row_has_a_test_and_every_transcript_a_row() -> None:
    named: set[str] = set()
    assert len(rows()) > 30
    for row in rows():
        tests = re.findall(r"`([^`]+)`", row[5])
        assert tests, row[0]
        for test in tests:
            if "::" in test:
                file, _, function = test.partition("::")
                assert f"def {function}(" in (HERE / file).read_text(encoding="utf-8"), test
            else:
                assert test in NAMES, test
                named.add(test)
    assert named == set(NAMES)


def test_the_magic_of_the_documents_is_that_of_the_format() -> None:
    described = (ROOT / "docs" / "magic").read_text(encoding="utf-8")
    assert "".join(f"\\x{byte:02x}" if byte > 126 else chr(byte) for byte in MAGIC) in described
