"""Torch's products, held to the compiled kernel bit for bit; and wrong ones, which must be noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from exact_inputs import F, floats, put, same, whole
from nacz.kernels import gemm
from nacz.kernels.dispatch import chosen
from nacz.kernels.tiles import Plain
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
backend = pytest.importorskip("nacz.kernels.torch_backend")

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
SHAPES = [(1, 64, 64), (6, 128, 576), (16, 64, 512), (17, 192, 1536), (61, 64, 520), (128, 64, 2048)]


def compiled(a: Any, zero: Any, step: Any, weights: Any, column_step: Any) -> NDArray[np.float32]:
    (m, k), n = a.shape, len(weights)
    out = np.empty(m * n, F)
    total = weights.sum(axis=1, dtype=np.int32)
    packed = put(gemm.pack(weights))
    gemm.scaled_product(chosen()[1], m, n, k, put(a), zero, step, packed, 0, total, column_step, 0, out)
    return out.reshape(m, n)


def inputs(kind: str, m: int, n: int, k: int) -> tuple[Any, ...]:
    a, weights = whole("a", 0, 255, m, k).astype(np.uint8), whole("w", -127, 127, n, k).astype(np.int8)
    if kind == "extreme":
        a[:] = 255
        weights[:] = np.where(np.arange(n) % 2, -127, 127)[:, None]
        a[m // 2, ::2] = 0
    zero = whole("zero", 0, 255, m).astype(np.int32)
    return a, zero, np.abs(floats("steps", m)), weights, np.abs(floats("columns", n))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", backend.ENGINES)
@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_product(m: int, n: int, k: int, kind: str, engine: str, device: str) -> None:
    if engine not in backend.engines(device):
        pytest.skip(f"torch's {engine} product on this {device} fails its self-test, so it is never used")
    given = inputs(kind, m, n, k)
    same(backend.product_of_arrays(engine, *given, device), compiled(*given))


@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_always_exact(device: str) -> None:
    assert "float32" in backend.engines(device)


def test_float32_pieces_are_as_long_as_they_may_be() -> None:
    assert backend.EXACT_TERMS * 255 * 127 <= 1 << 24 < (backend.EXACT_TERMS + 1) * 255 * 127


def test_reduced_precision_set_by_others_does_not_matter() -> None:
    given = inputs("random", 33, 64, 576)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        same(backend.product_of_arrays("float32", *given), compiled(*given))
    finally:
        torch.set_float32_matmul_precision(before)


def saturating(a: Any, c: Any) -> Any:
    """The sums of `vpmaddubsw`: pairs of products are added in 16 bits and saturate."""
    pairs = a[:, : c.k].to(torch.int32)[:, :, None] * c.weights[: c.k, : c.n].to(torch.int32)
    return pairs.reshape(len(a), c.k // 2, 2, c.n).sum(2).clamp(-32768, 32767).sum(1).to(torch.int32)


def too_long(a: Any, c: Any) -> Any:
    """Float32 sums over all of K: beyond 2^24 they round."""
    return (a.to(torch.float32) @ c.wide[: c.k, : c.n]).to(torch.int32)


def half_precision(a: Any, c: Any) -> Any:
    return (a.to(torch.bfloat16) @ c.wide[: c.k, : c.n].to(torch.bfloat16)).to(torch.int32)


@pytest.mark.parametrize(
    ("engine", "place", "wrong"),
    [
        ("int8", "_int8_sums", saturating),
        ("float32", "_float32_sums", too_long),
        ("float32", "_float32_sums", half_precision),
    ],
)
def test_the_self_test_sees(engine: str, place: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, place, wrong)
    assert not backend.self_test(engine)
    assert engine not in backend.engines()


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from nacz.kernels import torch_backend as backend
import test_torch_backend as tests
for engine in backend.ENGINES:
    passes = backend.self_test(engine)
    right = all(
        tests.np.array_equal(backend.product_of_arrays(engine, *given), tests.compiled(*given))
        for m, n, k in tests.SHAPES for kind in ("random", "extreme") for given in [tests.inputs(kind, m, n, k)]
    )
    print(engine, passes, right)
"""


@pytest.mark.parametrize("isa", ["AVX2", "SSE41", "AVX512_CORE"])
def test_an_older_processor(isa: str) -> None:
    """oneDNN held to what older processors have. It may saturate there; an engine that passes must be right."""
    program = PROGRAM.format(tests=os.path.dirname(__file__))
    settings = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "NACZ_KERNEL": chosen()[0]}
    done = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert set(report) == set(backend.ENGINES)
    for engine, (passes, right) in report.items():
        assert passes == right, f"{engine} with {isa}: self-test {passes}, products {right}"
    assert report["float32"] == ["True", "True"]


def test_without_onednn() -> None:
    given = inputs("random", 33, 128, 1536)
    with torch.backends.mkldnn.flags(enabled=False):
        for engine in backend.engines():
            same(backend.product_of_arrays(engine, *given), compiled(*given))
        assert "float32" in backend.engines()


def test_the_plain_kernel_agrees() -> None:
    """Another pair: torch against the kernel that runs anywhere."""
    a, zero, step, weights, column_step = inputs("random", 13, 128, 576)
    out = np.empty(13 * 128, F)
    total = weights.sum(axis=1, dtype=np.int32)
    packed = put(gemm.pack(weights))
    gemm.scaled_product(Plain(), 13, 128, 576, put(a), zero, step, packed, 0, total, column_step, 0, out)
    same(backend.product_of_arrays("float32", a, zero, step, weights, column_step), out.reshape(13, 128))
