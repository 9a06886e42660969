"""The golden set gives the pinned hashes here, on targets without this processor's instructions, and with threads.

The full matrix is `scripts/portability`; other processors are `scripts/portability-aarch64` and `-nehalem`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

import golden
import llvmlite.binding as llvm
import pytest
import tiny
from nacz.kernels.dispatch import usable

from nacz.weights.store import exact_path

GENERIC = {"NUMBA_CPU_NAME": "generic"}
# Set but empty, the second variable keeps this processor's other features out of the target.
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "NACZ_KERNEL": "avx2"}


def elsewhere(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """What tests/golden.py reports in a fresh process. Machine code is kept apart by target, so what it finds is its
    own."""
    unset = ("NACZ_KERNEL", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
    settings = {key: value for key, value in os.environ.items() if key not in unset}
    settings |= environment
    command = [sys.executable, golden.__file__, *arguments]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_golden_set_in_this_process() -> None:
    """Four threads and short blocks here; the other processes run the usual ones."""
    assert golden.run(threads=4, rows=7) == golden.PINNED_TINY


def test_golden_set_covers_what_it_says() -> None:
    tokens = {name: tiny.tokenizer().encode(case.data).size for name, case in golden.cases().items()}
    assert tokens["beyond the window"] > 3 * golden.cases()["beyond the window"].window
    assert tokens["many lanes"] % golden.cases()["many lanes"].lanes
    assert tokens["one escaped byte"] == 2


def test_another_model_gives_other_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes depend on what is predicted, not only on the input."""
    write = tiny.write
    monkeypatch.setattr(tiny, "write", lambda folder: write(folder, seed=1))
    found = golden.run(["one byte", "random"])
    assert all(value != golden.PINNED[name] for name, value in found.items())


@pytest.mark.timeout(600)
def test_golden_set_on_a_generic_processor() -> None:
    report = elsewhere(GENERIC)
    assert report["usable"] == ["plain"] and report["kernel"] == "plain"
    assert report["hashes"] == golden.PINNED_TINY


@pytest.mark.timeout(600)
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a target of x86-64")
@pytest.mark.skipif("avx2" not in usable(), reason="this processor has no AVX2")
def test_golden_set_on_an_older_processor() -> None:
    report = elsewhere(AVX2, "--threads", "2")
    assert report["kernel"] == "avx2"
    assert report["hashes"] == golden.PINNED_TINY


@pytest.mark.weights
@pytest.mark.parametrize("model", ["smollm2-135m", "smollm2-135m-text"])
@pytest.mark.parametrize("kernel", usable())
def test_golden_set_with_real_weights(kernel: str, model: str) -> None:
    report = elsewhere({"NACZ_KERNEL": kernel}, "--model", model)
    assert report["kernel"] == kernel
    assert report["hashes"] == (golden.PINNED_TEXT if model.endswith("text") else golden.PINNED_REAL)


@pytest.mark.weights
@pytest.mark.skipif(not exact_path("gemma3-270m").exists(), reason="gemma3-270m is not here, and has terms to accept")
@pytest.mark.parametrize("kernel", usable()[:1])
def test_golden_set_with_gemma(kernel: str) -> None:
    report = elsewhere({"NACZ_KERNEL": kernel}, "--model", "gemma3-270m")
    assert report["hashes"] == golden.PINNED_GEMMA


def test_host_features_are_known() -> None:
    """Where LLVM cannot tell what the processor has, every fast kernel is silently off."""
    if platform.machine() in ("x86_64", "AMD64"):
        assert dict(llvm.get_host_cpu_features()).get("sse2")
