"""32-bit multiply-adds for the mixers.

Numba widens int32 * int32 to int64, which halves the lanes of a vector. These two operations stay in 32 bits when
compiled; interpreted they are the same formulas on Python's integers. The mixer keeps every product below 2^31
(see `kernel.WEIGHT_MAX`), so the two agree. Knows numbers only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

DOT_SHIFT = 8
STEP_SHIFT = 14
_STEP_HALF = 1 << (STEP_SHIFT - 1)
_I32 = ir.IntType(32)


def mac(total: int, a: int, b: int) -> int:
    """total + (a * b >> DOT_SHIFT)"""
    return total + ((a * b) >> DOT_SHIFT)


def step(weight: int, a: int, b: int) -> int:
    """weight + a * b / 2^STEP_SHIFT, rounded"""
    return weight + ((a * b + _STEP_HALF) >> STEP_SHIFT)


@intrinsic  # type: ignore[untyped-decorator]
def _mac32(typingctx: Any, total: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.mul(args[1], args[2])
        return builder.add(args[0], builder.ashr(product, ir.Constant(_I32, DOT_SHIFT)))

    return types.int32(types.int32, types.int32, types.int32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _step32(typingctx: Any, weight: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.add(builder.mul(args[1], args[2]), ir.Constant(_I32, _STEP_HALF))
        return builder.add(args[0], builder.ashr(product, ir.Constant(_I32, STEP_SHIFT)))

    return types.int32(types.int32, types.int32, types.int32), codegen


@overload(mac, inline="always")  # type: ignore[untyped-decorator]
def _mac(total, a, b):  # type: ignore[no-untyped-def]
    return lambda total, a, b: _mac32(total, a, b)


@overload(step, inline="always")  # type: ignore[untyped-decorator]
def _step(weight, a, b):  # type: ignore[no-untyped-def]
    return lambda weight, a, b: _step32(weight, a, b)


def touch(array: Any, index: int) -> None:
    """Ask the machine to bring `array[index]` near. Changes no value, so it may do nothing."""


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(view.data, [args[1]])
        kind = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(pointer, kind)
        signature_ir = ir.FunctionType(ir.VoidType(), [kind, _I32, _I32, _I32])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [kind], signature_ir)
        # read and write, keep near, data
        builder.call(hint, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@overload(touch, inline="always")  # type: ignore[untyped-decorator]
def _touch(array, index):  # type: ignore[no-untyped-def]
    return lambda array, index: _prefetch(array, index)
