"""A short run of scripts/fuzz, and with `-m slow` of scripts/kill-test. Long runs are recorded in docs/security.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(script: str, *arguments: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, SCRIPTS / script, *arguments], capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def test_mutated_archives() -> None:
    counts = run("fuzz", "--count", "1500", "--seed", "2")
    assert counts["tried"] == 1500 and counts["decoded rightly"] > 20 and counts["CorruptDataError"] > 1000


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_processes() -> None:
    counts = run("kill-test", "--count", "12", "--seed", "2")
    assert counts["tried"] == 12 and counts["WRONG"] == 0
