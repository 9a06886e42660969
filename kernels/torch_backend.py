"""The contract of `nacz.kernels.gemm.scaled_product` once more, on PyTorch: another engine for the same bits.

Two implementations of the sums. `int8` is `torch._int_mm`: signed bytes times signed bytes in int32, tensor cores on
CUDA. `float32` needs no integer product: sums of integers up to 2^24 are exact in float32 in any order, fused or not,
so K is cut into pieces of at most 518 terms (518 * 255 * 127 <= 2^24) whose sums are added as integers. The epilogue is
elementwise, one torch call per operation, so that nothing can be contracted.

Nothing here is believed: `engines` returns what passes `self_test` on a device in this process. Some int8 products
saturate 16-bit sums on processors without VNNI, and float32 products run in reduced precision where someone allowed it.

Knows tensors and devices. Does not know layers: the compiled forward pass cannot call torch, so this serves whole
blocks of rows that someone else prepares. Imported by nothing else; needs the extra `torch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

EXACT_TERMS = (1 << 24) // (255 * 127)  # 518
ENGINES = ("int8", "float32")
_LEAST_ROWS = 17  # `_int_mm` on CUDA wants more than 16 rows, and K and N in multiples of 8
_MULTIPLE = 8


class Columns(NamedTuple):
    """The right-hand side of a product on a device: `weights` int8 [K, N] padded, float32 copies of it if need be."""

    weights: torch.Tensor
    wide: torch.Tensor | None
    total: torch.Tensor
    step: torch.Tensor
    n: int
    k: int


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def columns(
    engine: str, weights: NDArray[np.int8], step: NDArray[np.float32], device: torch.device | str = "cpu"
) -> Columns:
    """int8 [N, K] (not packed; `nacz.kernels.gemm.unpack` undoes that) and float32[N] steps to a device."""
    n, k = weights.shape
    padded = np.zeros((_up(n, _MULTIPLE), _up(k, _MULTIPLE)), np.int8)
    padded[:n, :k] = weights
    # Row-major [N, K] seen as its transpose: the layout that cuBLASLt takes.
    right = torch.from_numpy(padded).to(device).t()
    return Columns(
        right,
        right.to(torch.float32) if engine == "float32" else None,
        torch.from_numpy(weights.sum(axis=1, dtype=np.int32)).to(device),
        torch.from_numpy(np.array(step, np.float32)).to(device),
        n,
        k,
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32: no TF32 and no bfloat16 inside of products, whatever the process has set."""
    backends: Any = torch.backends
    matmul, mkldnn = backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None)
    if mkldnn is None or not hasattr(matmul, "fp32_precision"):  # before torch 2.9
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
        return
    before = matmul.fp32_precision, mkldnn.fp32_precision
    matmul.fp32_precision = mkldnn.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision, mkldnn.fp32_precision = before


def _int8_sums(a: torch.Tensor, c: Columns) -> torch.Tensor:
    """sum_k a[i, k] * b[j, k] by signed products: a is 128 too low there, and 128 * sum_k b[j, k] is added again."""
    m, k = a.shape
    left = torch.zeros((max(_up(m, _MULTIPLE), _LEAST_ROWS + 7), c.weights.shape[0]), dtype=torch.int8, device=a.device)
    left[:m, :k] = (a.to(torch.int16) - 128).to(torch.int8)
    return torch._int_mm(left, c.weights)[:m, : c.n] + 128 * c.total


def _float32_sums(a: torch.Tensor, c: Columns) -> torch.Tensor:
    assert c.wide is not None
    left = a.to(torch.float32)
    sums = torch.zeros((a.shape[0], c.n), dtype=torch.int32, device=a.device)
    with full_precision():
        for at in range(0, c.k, EXACT_TERMS):
            end = min(at + EXACT_TERMS, c.k)
            sums += (left[:, at:end] @ c.wide[at:end, : c.n]).to(torch.int32)
    return sums


def scaled_product(
    engine: str, a: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, c: Columns
) -> torch.Tensor:
    """((sum_k a[i, k] * b[j, k] - zero[i] * total[j]) * step[j]) * scale[i]: float32 [m, N].

    a: uint8 [m, K], zero: int32[m], scale: float32[m], all on the device of `c`.
    """
    with torch.no_grad():
        sums = _int8_sums(a, c) if engine == "int8" else _float32_sums(a, c)
        sums = sums - zero[:, None] * c.total
        return (sums.to(torch.float32) * c.step) * scale[:, None]


def product_of_arrays(
    engine: str, a: NDArray[np.uint8], zero: NDArray[np.int32], scale: NDArray[np.float32],
    weights: NDArray[np.int8], step: NDArray[np.float32], device: torch.device | str = "cpu",
) -> NDArray[np.float32]:  # fmt: skip
    """`scaled_product` from arrays to an array."""
    left, offset, factor = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (a, zero, scale))
    result: Any = scaled_product(engine, left, offset, factor, columns(engine, weights, step, device)).cpu().numpy()
    return np.asarray(result, np.float32)


def self_test(engine: str, device: torch.device | str = "cpu") -> bool:
    """Whether an engine gives the known sums: extreme bytes, which saturate 16 bits, and awkward shapes."""
    for m, n, k in ((1, 64, 64), (6, 128, 576), (33, 64, 1536), (64, 72, 1040)):
        terms = np.arange(1, m * k + 1, dtype=np.int64)
        a = ((terms * terms * 31 + terms * 7) % 256).astype(np.uint8).reshape(m, k)
        b = ((np.arange(n * k, dtype=np.int64) * 73 + 11) % 255 - 127).astype(np.int8).reshape(n, k)
        a[0], b[0], b[1] = 255, 127, -127
        # Large uneven sums whose difference is small: what rounds on the way shows.
        b[2::3] = 127 - (np.arange(k) * 5 + np.arange(n)[2::3, None]) % 11
        a[m - 1], zero = 255 - np.arange(k) % 5, np.full(m, 3, np.int32)
        zero[m - 1] = 253
        sums = (a.astype(np.int64) - zero[:, None]) @ b.T.astype(np.int64)
        found = product_of_arrays(
            engine, a, zero, np.full(m, 0.5, np.float32), b, np.ones(n, np.float32), device
        )
        if not np.array_equal(found, sums.astype(np.float32) * np.float32(0.5)):
            return False
    return True


def engines(device: torch.device | str = "cpu") -> list[str]:
    """Names of the engines that run and give the right bits on a device, fastest first."""
    out = []
    for engine in ENGINES:
        try:
            if self_test(engine, device):
                out.append(engine)
        except (RuntimeError, NotImplementedError):  # no such product for this device or torch
            continue
    return out
