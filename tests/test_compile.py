"""The folder of compiled code, and what processes that compile at the same time may do to each other."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nacz.kernels import compile as compiling


def twice(x: Any) -> Any:
    return x + x


def test_two_signatures_kept_at_once_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look into the index before either has written; alone, Numba gives them one file, whose last writer wins."""
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)

    def keep(name: str) -> None:
        files = compiling.compiled(twice)._cache._cache_file  # type: ignore[attr-defined]
        load = files._load_index

        def load_slowly() -> Any:
            found = load()
            time.sleep(0.2)
            return found

        files._load_index = load_slowly
        files.save(name, f"the code of {name}")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(keep, "abc"))
    files = compiling.compiled(twice)._cache._cache_file  # type: ignore[attr-defined]
    assert [files.load(name) for name in "abc"] == [f"the code of {name}" for name in "abc"]
