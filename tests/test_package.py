"""The package as it is published: built, installed in an empty environment, used there. pip must find packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("git") is None, reason="needs bash and git")
def test_built_installed_and_used(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    done = subprocess.run(
        [str(ROOT / "scripts" / "package"), str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"".join(path.suffixes[-2:])[-4:] for path in tmp_path.iterdir()} == {".whl", "r.gz"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ruff") is None or shutil.which("mypy") is None, reason="needs ruff and mypy")
def test_style_and_types() -> None:
    done = subprocess.run([str(ROOT / "scripts" / "check")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
