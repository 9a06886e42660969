"""Fixtures of the command line, and the slow second decoder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference_decoder.py, which is no part of the package."""
    path = Path(__file__).parent.parent / "docs" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write down what transcripts show now")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what must be compiled for minutes, unless it is asked for by name."""
    if "llama" in config.option.markexpr:
        return
    reason = "llama-cpp-python is compiled and tested by scripts/test-llama"
    for item in items:
        if item.get_closest_marker("llama") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
