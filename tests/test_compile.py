"""The folder of compiled code, and what processes that compile at the same time may do to each other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nacz.kernels import ahead
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


@compiling.inner
def inner_twice(x: Any) -> Any:
    return x + x


@compiling.compiled
def four_times(x: Any) -> Any:
    return inner_twice(x) + inner_twice(x)


def test_inner_functions_are_called_by_both() -> None:
    """One from compiled code has no wrapper for Python; called from Python it must not be entered without one."""
    assert four_times(3) == 12
    assert inner_twice(5) == 10
    assert inner_twice(0.5) == 1.0
    assert four_times(0.5) == 2.0


def test_ahead_keeps_what_it_compiles(tmp_path: Path) -> None:
    """In a process with a folder of its own: the other process compiles, this one loads."""
    program = textwrap.dedent(
        """
        import os, sys
        import numpy as np
        os.cpu_count = lambda: 2
        from nacz.kernels.ahead import Ahead
        from nacz.coder.range_coder import decoder_init
        stream = np.arange(9, dtype=np.uint8)
        some = Ahead(decoder_init, (stream,), 2)
        assert some._process is not None
        some.wait()
        decoder_init(stream)
        assert sum(decoder_init.stats.cache_hits.values()) == 1, decoder_init.stats
        assert Ahead(decoder_init, (stream,), 2)._process is None, "there is nothing to do"
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"NACZ_CACHE_DIR": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_ahead_that_fails_or_is_not_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    broken = ahead.Ahead(compiling.compiled(twice), (1,), 2)  # a module that only tests can import
    assert broken._process is not None
    broken.wait()
    broken.close()
    assert ahead.Ahead(compiling.compiled(twice), (1,), 1)._process is None
    monkeypatch.setattr(sys, "executable", "")
    assert ahead.Ahead(compiling.compiled(twice), (1,), 2)._process is None
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no such program"))
    assert ahead.Ahead(compiling.compiled(twice), (1,), 2)._process is None
