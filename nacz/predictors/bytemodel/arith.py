"""32-bit multiply-adds for the mixers, and a prefetch.

Numba widens int32 * int32 to int64, which halves the lanes of a vector. These operations stay in 32 bits when
compiled; interpreted they are the same formulas on Python's integers. The mixer keeps every product below 2^31
(inputs have 12 bits and weights stay far below 8), so the two agree. Knows numbers only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

DOT_SHIFT = 8
STEP_SHIFT = 14
LANES = 16
_STEP_HALF = 1 << (STEP_SHIFT - 1)
_I32 = ir.IntType(32)


def mac(total: Any, a: Any, b: Any) -> Any:
    """total + (a * b >> DOT_SHIFT)"""
    return total + ((a * b) >> DOT_SHIFT)


def learn16(w: Any, at: Any, x: Any, i: Any, e: Any) -> None:
    """w[at + k] += x[i + k] * e / 2^STEP_SHIFT, rounded, for k in 0..15"""
    for k in range(LANES):
        w[at + k] += (x[i + k] * e + _STEP_HALF) >> STEP_SHIFT


@intrinsic
def _mac32(typingctx: Any, total: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.mul(args[1], args[2])
        return builder.add(args[0], builder.ashr(product, ir.Constant(_I32, DOT_SHIFT)))

    return types.int32(types.int32, types.int32, types.int32), codegen


@intrinsic
def _learn16(typingctx: Any, w: Any, at: Any, x: Any, i: Any, e: Any) -> Any:
    # Written as vector operations because Numba's indices hide from LLVM that the row is contiguous: its loop was
    # scalar and took 31 % of level 3. LLVM splits the 16 lanes into whatever the machine has.
    lanes = ir.VectorType(_I32, LANES)

    def constant(value: int) -> Any:
        return ir.Constant(lanes, [value] * LANES)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def row(number: int) -> Any:
            view = context.make_array(signature.args[number])(context, builder, args[number])
            return builder.bitcast(builder.gep(view.data, [args[number + 1]]), lanes.as_pointer())

        weights, inputs = row(0), row(2)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), args[4], _I32(0))
        error = builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), constant(0))
        product = builder.mul(builder.load(inputs, align=4), error)
        delta = builder.ashr(builder.add(product, constant(_STEP_HALF)), constant(STEP_SHIFT))
        builder.store(builder.add(builder.load(weights, align=4), delta), weights, align=4)
        return context.get_dummy_value()

    return types.void(w, types.intp, x, types.intp, types.int32), codegen


@overload(mac, inline="always")
def _mac(total, a, b):  # type: ignore[no-untyped-def]
    return lambda total, a, b: _mac32(total, a, b)  # type: ignore[call-arg]


@overload(learn16, inline="always")
def _learn(w, at, x, i, e):  # type: ignore[no-untyped-def]
    return lambda w, at, x, i, e: _learn16(w, at, x, i, e)  # type: ignore[call-arg]


def touch(array: Any, index: Any) -> None:
    """Ask the machine to bring `array[index]` near. Changes no value, so it may do nothing."""


@intrinsic
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


@overload(touch, inline="always")
def _touch(array, index):  # type: ignore[no-untyped-def]
    return lambda array, index: _prefetch(array, index)  # type: ignore[call-arg]
