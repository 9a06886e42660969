"""Fixed-length vector loops of attention, written as LLVM vector code.

The automatic vectoriser handles these loops alone, but loses them (2 to 40 times slower) once they are inlined among others.
Here every operation is a 16-lane vector instruction that LLVM splits to the width of the machine. All are elementwise IEEE
float32 or integer operations, plus integer sums and maxima, so width cannot change a bit. The arithmetic is that of
`nacz.kernels.rows.int_exp2`, and the tests compare both.

Knows spans of 64 and 128 numbers. Does not know blocks, heads or layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from nacz.kernels import rows
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SPAN = 128
FRACTION = 14  # fixed-point bits of a score in units of log2
LIMIT = 2.0**28  # scores are clamped here, before the conversion that would differ between machines

I8, I32, I64, F32, F64 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
LANES = 16
VI, VF = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
HALF_POWER = [float(c) for c in (rows.E0, rows.E1, rows.E2, rows.E3, rows.E4)]


class _Emit:
    """A builder with the few vector operations that the spans need."""

    def __init__(self, context: Any, builder: Any, sig: Any, args: Any) -> None:
        self.context, self.builder, self.sig, self.args = context, builder, sig, args

    def address(self, array: int, offset: int, size: int) -> Any:
        """Address of element args[offset] of the array args[array], whose elements have `size` bytes."""
        b = self.builder
        struct = cgutils.create_struct_proxy(self.sig.args[array])(self.context, b, self.args[array])
        return b.add(b.ptrtoint(struct.data, I64), b.mul(self.args[offset], I64(size)))

    def _pointer(self, address: Any, step: int, vector: Any, size: int) -> Any:
        b = self.builder
        return b.inttoptr(b.add(address, I64(step * vector.count * size)), vector.as_pointer())

    def load(self, address: Any, step: int, vector: Any, size: int = 4) -> Any:
        value = self.builder.load(self._pointer(address, step, vector, size))
        value.align = size
        return value

    def store(self, value: Any, address: Any, step: int, size: int = 4) -> None:
        self.builder.store(value, self._pointer(address, step, value.type, size)).align = size

    def splat(self, scalar: Any, vector: Any) -> Any:
        undef = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(undef, scalar, I32(0))
        return self.builder.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))

    def ints(self, value: int) -> Any:
        return ir.Constant(VI, [value] * LANES)

    def floats(self, value: float) -> Any:
        return ir.Constant(VF, [value] * LANES)

    def smaller(self, a: Any, b: Any) -> Any:
        if a.type == VI:
            return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        if a.type == VI:
            return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def reduce(self, name: str, vector: Any) -> Any:
        kind = ir.FunctionType(I32, [VI])
        f = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.{name}.v{LANES}i32")
        return self.builder.call(f, [vector])

    def int_exp2(self, distance: Any) -> Any:
        """rows.int_exp2 with FRACTION fraction bits."""
        b = self.builder
        whole = self.smaller(b.ashr(distance, self.ints(FRACTION)), self.ints(31))
        part = b.sitofp(b.and_(distance, self.ints((1 << FRACTION) - 1)), VF)
        f = b.fmul(part, self.floats(2.0**-FRACTION))
        y = self.floats(HALF_POWER[4])
        for c in HALF_POWER[3::-1]:
            y = b.fadd(b.fmul(y, f), self.floats(c))
        return b.ashr(b.fptosi(b.fmul(y, self.floats(2.0**23)), VI), whole)


def _span(signature: Callable[..., Any], emit: Callable[[_Emit], Any]) -> Callable[..., Any]:
    """The typing and code generation that every intrinsic below returns."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = emit(_Emit(context, builder, sig, args))
        return context.get_dummy_value() if result is None else result

    return signature, codegen  # type: ignore[return-value]


@intrinsic
def scores_span(typingctx: Any, sums: Any, at: Any, offset: Any, unit: Any, index: Any, step: Any, out: Any, to: Any) -> Any:
    """out[to + j] = clamp(((sums[at + j] - offset[index + j]) * unit[index + j]) * step) in fixed point; their maximum."""

    def emit(e: _Emit) -> Any:
        b = e.builder
        dot, less, scale, result = e.address(0, 1, 4), e.address(2, 4, 4), e.address(3, 4, 4), e.address(6, 7, 4)
        factor, top = e.splat(e.args[5], VF), e.ints(-(1 << 31))
        for i in range(SPAN // LANES):
            v = b.sitofp(b.sub(e.load(dot, i, VI), e.load(less, i, VI)), VF)
            v = b.fmul(b.fmul(v, e.load(scale, i, VF)), factor)
            t = b.fptosi(e.smaller(e.larger(v, e.floats(-LIMIT)), e.floats(LIMIT)), VI)
            e.store(t, result, i)
            top = e.larger(top, t)
        return e.reduce("smax", top)

    i = types.int64
    return _span(types.int32(sums, i, offset, unit, i, types.float32, out, i), emit)


@intrinsic
def weights_span(typingctx: Any, scores: Any, at: Any, top: Any, unit: Any, index: Any) -> Any:
    """Scores to the bits of e * unit[index + j], e = 2^(score - top) with one = 2^23; in place.

    Returns (sum of e, largest bits), both int32.
    """

    def emit(e: _Emit) -> Any:
        b = e.builder
        row, scale = e.address(0, 1, 4), e.address(3, 4, 4)
        peak, total, high = e.splat(e.args[2], VI), e.ints(0), e.ints(0)
        for i in range(SPAN // LANES):
            p = e.int_exp2(b.sub(peak, e.load(row, i, VI)))
            total = b.add(total, p)
            bits = b.bitcast(b.fmul(b.sitofp(p, VF), e.load(scale, i, VF)), VI)
            e.store(bits, row, i)
            high = e.larger(high, bits)
        pair = [e.reduce("add", total), e.reduce("smax", high)]
        return e.context.make_tuple(b, types.UniTuple(types.int32, 2), pair)

    i = types.int64
    return _span(types.UniTuple(types.int32, 2)(scores, i, types.int32, unit, i), emit)


@intrinsic
def bytes_span(typingctx: Any, weights: Any, at: Any, unit: Any, out: Any, to: Any) -> Any:
    """out[to + j] = min(255, floor(w * unit + 1/2)) for the float32 weights whose bits are given."""

    def emit(e: _Emit) -> None:
        b = e.builder
        row, result, factor = e.address(0, 1, 4), e.address(3, 4, 1), e.splat(e.args[2], VF)
        for i in range(SPAN // LANES):
            v = b.fadd(b.fmul(e.load(row, i, VF), factor), e.floats(0.5))
            q = e.smaller(b.fptosi(v, VI), e.ints(255))
            e.store(b.trunc(q, ir.VectorType(I8, LANES)), result, i, size=1)

    i = types.int64
    return _span(types.void(weights, i, types.float32, out, i), emit)


@intrinsic
def add_span(typingctx: Any, sums: Any, at: Any, factor: Any, acc: Any, to: Any) -> Any:
    """acc[to + d] += float64(sums[at + d]) * factor for 64 d."""

    def emit(e: _Emit) -> None:
        b = e.builder
        narrow, wide = ir.VectorType(I32, 8), ir.VectorType(F64, 8)
        row, result, f = e.address(0, 1, 4), e.address(3, 4, 8), e.splat(e.args[2], wide)
        for i in range(64 // 8):
            v = b.fmul(b.sitofp(e.load(row, i, narrow), wide), f)
            e.store(b.fadd(e.load(result, i, wide, size=8), v), result, i, size=8)

    i = types.int64
    return _span(types.void(sums, i, types.float64, acc, i), emit)


@intrinsic
def scale_span(typingctx: Any, acc: Any, at: Any, factor: Any, out: Any, to: Any) -> Any:
    """out[to + d] = float32(acc[at + d] * factor) for 64 d."""

    def emit(e: _Emit) -> None:
        b = e.builder
        wide = ir.VectorType(F64, 8)
        row, result, f = e.address(0, 1, 8), e.address(3, 4, 4), e.splat(e.args[2], wide)
        for i in range(64 // 8):
            e.store(b.fptrunc(b.fmul(e.load(row, i, wide, size=8), f), ir.VectorType(F32, 8)), result, i)

    i = types.int64
    return _span(types.void(acc, i, types.float64, out, i), emit)


def _quantise(e: _Emit, parts: list[Any], bias: int, out: Any) -> Any:
    """64 floats as four vectors to bytes round(v * 127 / max |v|) + bias; (max |v|, sum of the rounded v)."""
    b = e.builder
    high = e.ints(0)
    for v in parts:
        high = e.larger(high, b.and_(b.bitcast(v, VI), e.ints(0x7FFFFFFF)))
    top = b.bitcast(e.reduce("smax", high), F32)
    tiny = F32(2.0**-60)
    floor = b.select(b.fcmp_ordered(">", top, tiny), top, tiny)
    inverse = e.splat(b.fdiv(F32(127.0), floor), VF)
    total = e.ints(0)
    for i, v in enumerate(parts):
        # ops.round_near: the addition of 1.5 * 2^23 rounds.
        pushed = b.bitcast(b.fadd(b.fmul(v, inverse), e.floats(12582912.0)), VI)
        rounded = b.sub(pushed, e.ints(0x4B400000))
        total = b.add(total, rounded)
        e.store(b.trunc(b.add(rounded, e.ints(bias)), ir.VectorType(I8, LANES)), out, i, size=1)
    pair = [top, e.reduce("add", total)]
    return e.context.make_tuple(b, types.Tuple((types.float32, types.int32)), pair)


def _turned(e: _Emit, x: Any, cos: Any, sin: Any) -> list[Any]:
    """RoPE of 64 floats: pairs (i, i + 32) turned by 32 angles."""
    b = e.builder
    low: list[Any] = []
    high: list[Any] = []
    for i in range(2):
        p, q, c, s = e.load(x, i, VF), e.load(x, i + 2, VF), e.load(cos, i, VF), e.load(sin, i, VF)
        low.append(b.fsub(b.fmul(p, c), b.fmul(q, s)))
        high.append(b.fadd(b.fmul(q, c), b.fmul(p, s)))
    return low + high


@intrinsic
def turned_bytes(typingctx: Any, x: Any, at: Any, cos: Any, sin: Any, angle: Any, out: Any, to: Any) -> Any:
    """Turn 64 float32 by RoPE and quantise them to bytes around 128 (int8 + 128); returns (max |v|, sum of int8)."""

    def emit(e: _Emit) -> Any:
        parts = _turned(e, e.address(0, 1, 4), e.address(2, 4, 4), e.address(3, 4, 4))
        return _quantise(e, parts, 128, e.address(5, 6, 1))

    i = types.int64
    return _span(types.Tuple((types.float32, types.int32))(x, i, cos, sin, i, out, i), emit)


@intrinsic
def turned_signed(typingctx: Any, x: Any, at: Any, cos: Any, sin: Any, angle: Any, out: Any, to: Any) -> Any:
    """The same to signed bytes."""

    def emit(e: _Emit) -> Any:
        parts = _turned(e, e.address(0, 1, 4), e.address(2, 4, 4), e.address(3, 4, 4))
        return _quantise(e, parts, 0, e.address(5, 6, 1))

    i = types.int64
    return _span(types.Tuple((types.float32, types.int32))(x, i, cos, sin, i, out, i), emit)


@intrinsic
def signed_bytes(typingctx: Any, x: Any, at: Any, out: Any, to: Any) -> Any:
    """Quantise 64 float32 to signed bytes; returns (max |v|, their sum)."""

    def emit(e: _Emit) -> Any:
        x_at = e.address(0, 1, 4)
        return _quantise(e, [e.load(x_at, i, VF) for i in range(4)], 0, e.address(2, 3, 1))

    i = types.int64
    return _span(types.Tuple((types.float32, types.int32))(x, i, out, i), emit)
