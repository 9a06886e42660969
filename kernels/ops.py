"""Scalar operations that Numba's own types cannot say: 32-bit integer arithmetic and float bits.

Numba widens int32 arithmetic to int64, which halves the width of every vector loop. These intrinsics keep 32 bits and
lower to one LLVM instruction each, so loops over them vectorise on any target. All are exact: integer operations wrap
modulo 2^32, and `round_near` is exact IEEE arithmetic (see there).

Knows nothing of rows, scales or models.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from nacz.kernels.compile import intrinsic
from nacz.kernels.compile import numba_types as types

I32 = ir.IntType(32)
F32 = ir.FloatType()


def _binary(name: str, doc: str) -> Any:
    @intrinsic
    def op(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(args[0], args[1])

        return types.int32(types.int32, types.int32), codegen

    op.__doc__ = doc
    return op


iadd = _binary("add", "int32 + int32, wrapping.")
isub = _binary("sub", "int32 - int32, wrapping.")
imul = _binary("mul", "int32 * int32, wrapping.")
iand = _binary("and_", "Bitwise and of two int32.")
ior = _binary("or_", "Bitwise or of two int32.")
ixor = _binary("xor", "Bitwise exclusive or of two int32.")
shl = _binary("shl", "int32 << n, 0 <= n < 32.")
sar = _binary("ashr", "int32 >> n with sign, 0 <= n < 32.")


@intrinsic
def imin(typingctx: Any, a: Any, b: Any) -> Any:
    """Smaller of two int32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", args[0], args[1]), args[0], args[1])

    return types.int32(types.int32, types.int32), codegen


@intrinsic
def imax(typingctx: Any, a: Any, b: Any) -> Any:
    """Larger of two int32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed(">", args[0], args[1]), args[0], args[1])

    return types.int32(types.int32, types.int32), codegen


@intrinsic
def bits_of(typingctx: Any, x: Any) -> Any:
    """The bit pattern of a float32 as int32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def float_of(typingctx: Any, b: Any) -> Any:
    """The float32 whose bit pattern is the int32 `b`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def power_of_two(typingctx: Any, n: Any) -> Any:
    """2^n as float64, for an int32 -1022 <= n <= 1023."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = builder.sext(args[0], ir.IntType(64))
        exponent = builder.add(wide, ir.Constant(wide.type, 1023))
        return builder.bitcast(builder.shl(exponent, ir.Constant(wide.type, 52)), ir.DoubleType())

    return types.float64(types.int32), codegen


@intrinsic
def to_float(typingctx: Any, i: Any) -> Any:
    """int32 to the nearest float32 (exact below 2^24)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.sitofp(args[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def trunc(typingctx: Any, x: Any) -> Any:
    """float32 towards zero to int32. The caller guarantees |x| < 2^31: beyond it, machines differ."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fptosi(args[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def round_near(typingctx: Any, x: Any) -> Any:
    """float32 to the nearest int32, halves to even, for |x| <= 2^22.

    Adding 1.5 * 2^23 pushes the fraction out of the significand with the addition's own rounding; the integer is then
    the low bits. One IEEE addition, no rounding instruction, no libm: the same on every machine.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pushed = builder.fadd(args[0], ir.Constant(F32, 12582912.0))
        return builder.sub(builder.bitcast(pushed, I32), ir.Constant(I32, 0x4B400000))

    return types.int32(types.float32), codegen
