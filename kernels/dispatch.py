"""Which implementation runs: what the processor has, a self-test of known answers, and `NACZ_KERNEL`.

Every implementation gives the same bits, so the choice is one of speed alone; the self-test is there because a
processor, an emulator or a compiler may be wrong, and an archive written with wrong arithmetic would decode nowhere
else.

Knows processors. Does not know what is computed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from nacz.kernels.amx import permitted
from nacz.kernels.compile import config
from nacz.kernels.gemm import pack, scaled_product
from nacz.kernels.tiles import Amx, Avx2, HintedAvx2, HintedVnni512, Neon, Plain, Vnni256, Vnni512

from nacz.errors import InternalError, UsageError

# AMD's read ahead by themselves: where one row waits for weights, hints cost a Zen 5 core 55 to 39 GB/s.
_AMD = llvm.get_host_cpu_name().startswith("znver")

# Fastest first.
KERNELS: dict[str, Any] = {
    "amx": Amx(), "vnni512": Vnni512() if _AMD else HintedVnni512(), "vnni256": Vnni256(),
    "avx2": Avx2() if _AMD else HintedAvx2(), "neon": Neon(), "plain": Plain(),
}  # fmt: skip

_AT_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20  # Linux on AArch64


def features() -> dict[str, bool]:
    """Features of the processor that Numba compiles for. With NUMBA_CPU_NAME it is not this one: claim nothing."""
    if config.CPU_NAME or config.CPU_FEATURES:
        return {}
    has = dict(llvm.get_host_cpu_features())
    if platform.machine() in ("aarch64", "arm64"):
        has["dotprod"] = has.get("dotprod", False) or _dot_product()
    return has


def _dot_product() -> bool:
    """Whether an AArch64 processor has `sdot`. LLVM's list of what the processor has leaves it out on Linux."""
    if sys.platform == "darwin":
        return True  # since the first of its processors
    try:
        return bool(ctypes.CDLL(None).getauxval(_AT_HWCAP) & _HWCAP_ASIMDDP)
    except (AttributeError, OSError, TypeError):
        return False


def usable() -> list[str]:
    """Names of the implementations that this processor can run, fastest first."""
    has = features()
    vnni512 = has.get("avx512vnni", False) and has.get("avx512bw", False) and has.get("avx512vl", False)
    able = {
        "amx": vnni512 and has.get("amx-tile", False) and has.get("amx-int8", False) and permitted(),
        "vnni512": vnni512,
        "vnni256": has.get("avxvnni", False) and has.get("avx2", False),
        "avx2": has.get("avx2", False),
        "neon": platform.machine() in ("aarch64", "arm64") and has.get("dotprod", False),
        "plain": True,
    }
    return [name for name in KERNELS if able[name]]


def self_test(kern: Any) -> bool:
    """Whether an implementation gives the known sums, for 1 to 6 rows and for many, with extreme bytes."""
    k, n = 64, 64
    m = np.arange(1, 22 * k + 1, dtype=np.int64)
    a = ((m * m * 31 + m * 7) % 256).astype(np.uint8)
    a[:k], a[k : 2 * k] = 255, 0
    b = ((np.arange(n * k, dtype=np.int64) * 73 + 11) % 255 - 127).astype(np.int8).reshape(n, k)
    b[0], b[1] = 127, -127
    # Arrays of the types that models have: read-only weights.
    packed, step, total = pack(b), np.ones(n, np.float32), b.sum(axis=1, dtype=np.int32)
    aligned = np.zeros(n * k + 64, np.int8)
    start = -aligned.ctypes.data % 64
    aligned = aligned[start : start + n * k]
    aligned[:] = packed
    for array in (aligned, step, total):
        array.setflags(write=False)
    for first, rows in ((0, 1), (1, 2), (3, 3), (6, 4), (10, 5), (15, 6), (0, 22)):
        some = a[first * k : (first + rows) * k]
        out = np.empty(rows * n, np.float32)
        zero, scale = np.full(rows, 3, np.int32), np.full(rows, 0.5, np.float32)
        scaled_product(kern, rows, n, k, some, zero, scale, aligned, 0, total, step, 0, out)
        sums = some.reshape(rows, k).astype(np.int64) @ b.T.astype(np.int64) - 3 * total.astype(np.int64)
        if not np.array_equal(out.reshape(rows, n), (sums * 0.5).astype(np.float32)):
            return False
    return True


@lru_cache(maxsize=1)
def chosen() -> tuple[str, Any]:
    """(name, implementation) to use in this process: the one that NACZ_KERNEL names, else the fastest that passes.

    Raises UsageError for an unknown or unusable name, InternalError when nothing passes the self-test.
    """
    names = usable()
    forced = os.environ.get("NACZ_KERNEL")
    if forced:
        if forced not in KERNELS:
            raise UsageError(f"NACZ_KERNEL must be one of {', '.join(KERNELS)}: {forced}")
        other = config.CPU_NAME and (forced != "amx" or permitted())  # who sets a target answers for it
        if forced not in names and not other:
            raise UsageError(f"this processor cannot run the kernel that NACZ_KERNEL names: {forced}")
        names = [forced]
    for name in names:
        if self_test(KERNELS[name]):
            return name, KERNELS[name]
    raise InternalError(f"no kernel passes its self-test: {', '.join(names)}")
