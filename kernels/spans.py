"""Fixed-length vector loops of attention, written as LLVM vector code.

The automatic vectoriser handles these loops alone, but loses them (2 to 40 times slower) once they are inlined among
others. Here every operation is a 16-lane vector instruction that LLVM splits to the width of the machine. All are
elementwise IEEE float32 or integer operations, plus integer sums and maxima, so width cannot change a bit. The
arithmetic is that of `nacz.kernels.rows.int_exp2`, and the tests compare both.

Knows spans of 64 and 128 numbers. Does not know blocks, heads or layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from nacz.kernels import rows
from nacz.kernels.compile import cgutils, intrinsic
from nacz.kernels.compile import numba_types as types

SPAN = 128
FRACTION = 14  # fixed-point bits of a score in units of log2
LIMIT = 512.0 * 2**FRACTION  # scores are clamped to +-512: real ones stay below 100, and 2^512 is far inside float64
MASKED = -1024 << FRACTION

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
        return self.builder.shuffle_vector(
            one, undef, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
        )

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

    def larger_scalar(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    def reduce(self, name: str, vector: Any) -> Any:
        kind = ir.FunctionType(I32, [VI])
        f = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.{name}.v{LANES}i32")
        return self.builder.call(f, [vector])

    def int_exp2(self, distance: Any) -> Any:
        """rows.int_exp2 with FRACTION fraction bits, whose powers of two are put into the polynomial: multiplying by
        them is exact, so it commutes with rounding, and two multiplications less are made."""
        b = self.builder
        whole = self.smaller(b.ashr(distance, self.ints(FRACTION)), self.ints(31))
        part = b.sitofp(b.and_(distance, self.ints((1 << FRACTION) - 1)), VF)
        y = self.floats(HALF_POWER[4] * 2.0 ** (23 - 4 * FRACTION))
        for i in range(3, -1, -1):
            y = b.fadd(b.fmul(y, part), self.floats(HALF_POWER[i] * 2.0 ** (23 - i * FRACTION)))
        return b.ashr(b.fptosi(y, VI), whole)


def _span(signature: Any, emit: Callable[[_Emit], Any]) -> tuple[Any, Callable[..., Any]]:
    """The typing and code generation that every intrinsic below returns."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = emit(_Emit(context, builder, sig, args))
        return context.get_dummy_value() if result is None else result

    return signature, codegen


def weigh(e: _Emit, out: int, begin: Any = None, seen: Any = None) -> Any:
    """The body of `weigh_span`. Arguments as there up to the step; out: the number of that with the result's array.
    begin, seen: keys before and from there on are masked, None for none."""
    b = e.builder
    dot, less, scale = e.address(0, 1, 4), e.address(2, 5, 4), e.address(3, 5, 4)
    value, result, factor = e.address(4, 5, 4), e.address(out, out + 1, 1), e.splat(e.args[6], VF)
    top, scores = e.ints(MASKED), []
    for i in range(SPAN // LANES):
        v = b.sitofp(b.sub(e.load(dot, i, VI), e.load(less, i, VI)), VF)
        v = b.fmul(b.fmul(v, e.load(scale, i, VF)), factor)
        t = b.fptosi(e.smaller(e.larger(v, e.floats(-LIMIT)), e.floats(LIMIT)), VI)
        place = ir.Constant(VI, [LANES * i + j for j in range(LANES)])
        if seen is not None:
            t = b.select(b.icmp_signed("<", place, e.splat(seen, VI)), t, e.ints(MASKED))
        if begin is not None:
            t = b.select(b.icmp_signed(">=", place, e.splat(begin, VI)), t, e.ints(MASKED))
        scores.append(t)
        top = e.larger(top, t)
    whole = b.ashr(b.add(e.reduce("smax", top), I32((1 << FRACTION) - 1)), I32(FRACTION))
    peak = e.splat(b.shl(whole, I32(FRACTION)), VI)
    total, high, weights = e.ints(0), e.ints(0), []
    for i, t in enumerate(scores):
        p = e.int_exp2(b.sub(peak, t))
        total = b.add(total, p)
        w = b.fmul(b.sitofp(p, VF), e.load(value, i, VF))
        weights.append(w)
        high = e.larger(high, b.bitcast(w, VI))
    exponent = e.larger_scalar(b.ashr(e.reduce("smax", high), I32(23)), I32(16))
    unit = e.splat(b.bitcast(b.shl(b.sub(I32(2 * 127 + 7), exponent), I32(23)), F32), VF)
    for i, w in enumerate(weights):
        q = e.smaller(b.fptosi(b.fadd(b.fmul(w, unit), e.floats(0.5)), VI), e.ints(255))
        e.store(b.trunc(q, ir.VectorType(I8, LANES)), result, i, size=1)
    return e.context.make_tuple(b, types.UniTuple(types.int32, 3), [whole, e.reduce("add", total), exponent])


@intrinsic
def weigh_span(
    typingctx: Any, sums: Any, at: Any, key_sum: Any, key_step: Any, value_step: Any, index: Any, step: Any, seen: Any,
    out: Any, to: Any,
) -> Any:  # fmt: skip
    """From 128 sums of a query with the keys of a block to byte weights for their values.

    score_j = clamp(((sums[at+j] - key_sum[index+j]) * key_step[index+j]) * step), fixed point; keys from `seen` on are
    masked. whole = ceil of the largest score; e_j = 2^(score_j - whole), one = 2^23; w_j = e_j * value_step[index+j];
    exponent = the larger of 16 and the biased exponent of the largest w; out[to+j] = min(255, floor(w_j *
    2^(134-exponent) + 1/2)). Returns (whole, sum of e, exponent), int32 each. All 128 numbers stay in registers.
    """
    i, f = types.int64, types.float32
    return _span(
        types.UniTuple(types.int32, 3)(sums, i, key_sum, key_step, value_step, i, f, types.int32, out, i),
        lambda e: weigh(e, 8, seen=e.args[7]),
    )


@intrinsic
def weigh_whole(
    typingctx: Any, sums: Any, at: Any, key_sum: Any, key_step: Any, value_step: Any, index: Any, step: Any,
    out: Any, to: Any,
) -> Any:  # fmt: skip
    """`weigh_span` for a query that sees the whole block, as most do: a comparison and a choice less for each key."""
    i, f = types.int64, types.float32
    return _span(
        types.UniTuple(types.int32, 3)(sums, i, key_sum, key_step, value_step, i, f, out, i),
        lambda e: weigh(e, 7),
    )


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
