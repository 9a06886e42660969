"""From scores of a block to byte weights, where a query does not see the block from its beginning.

The vector code of `nacz.kernels.spans.weigh_span` with a first key beside the number of those that are seen, for layers
whose queries see the newest positions only.

Knows spans of 128 numbers. Does not know blocks, heads or layers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from nacz.kernels.compile import intrinsic
from nacz.kernels.compile import numba_types as types
from nacz.kernels.spans import F32, FRACTION, I8, I32, LANES, LIMIT, MASKED, SPAN, VF, VI
from nacz.kernels.spans import _Emit as Emit
from nacz.kernels.spans import _span as span


@intrinsic
def weigh_part(
    typingctx: Any, sums: Any, at: Any, key_sum: Any, key_step: Any, value_step: Any, index: Any, step: Any, first: Any,
    seen: Any, out: Any, to: Any,
) -> Any:  # fmt: skip
    """`weigh_span` for keys from `first` on and below `seen` (int32), of which there is at least one."""

    def emit(e: Emit) -> Any:
        b = e.builder
        dot, less, scale = e.address(0, 1, 4), e.address(2, 5, 4), e.address(3, 5, 4)
        value, result = e.address(4, 5, 4), e.address(9, 10, 1)
        factor, begin, limit = e.splat(e.args[6], VF), e.splat(e.args[7], VI), e.splat(e.args[8], VI)
        top, scores = e.ints(MASKED), []
        for i in range(SPAN // LANES):
            v = b.sitofp(b.sub(e.load(dot, i, VI), e.load(less, i, VI)), VF)
            v = b.fmul(b.fmul(v, e.load(scale, i, VF)), factor)
            t = b.fptosi(e.smaller(e.larger(v, e.floats(-LIMIT)), e.floats(LIMIT)), VI)
            place = ir.Constant(VI, [LANES * i + j for j in range(LANES)])
            inside = b.and_(b.icmp_signed("<", place, limit), b.icmp_signed(">=", place, begin))
            t = b.select(inside, t, e.ints(MASKED))
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

    i, f, n = types.int64, types.float32, types.int32
    return span(
        types.UniTuple(types.int32, 3)(sums, i, key_sum, key_step, value_step, i, f, n, n, out, i), emit
    )
