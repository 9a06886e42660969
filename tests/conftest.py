"""Fixtures of the tests of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import order0
import pytest
from cli_runner import TEXT, Nacz


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Nacz]:
    """The command line with the order-0 test predictor, in an empty folder, without variables of nacz."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NACZ_")]:
        monkeypatch.delenv(name)
    with order0.installed():
        yield Nacz(monkeypatch)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write down what transcripts show now")
