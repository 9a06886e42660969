"""Products on AMX tile registers: up to sixteen rows with 64 columns at a time, for processors that have them.

A tile register holds 16 rows of 64 bytes. `tdpbusd` multiplies one with 64 terms of sixteen rows by one with these
terms of sixteen columns and adds to a third with their int32 sums, in sixteen cycles what `vpdpbusd` does in 128. The
packed order of `nacz.kernels.tiles` is what it reads. Sums wrap and do not saturate, so they are those of every other
kernel (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18).

Whoever calls `configure` for a number of rows may call `tile_sums` and `tile_scaled` for as many rows, and calls
`release` in the end, before anything else of the same thread configures. For kernels without tile registers
`has_tiles` is a constant False, and the others are no code at all.

Knows tile registers and whom to ask for them. Does not know which rows come to them.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from nacz.kernels.compile import cgutils, intrinsic
from nacz.kernels.compile import numba_types as types
from nacz.kernels.tiles import COLUMNS, F16, F32, I8, I32, I64, V16, Amx, epilogue, function, load, splat

ROWS = 16  # rows of a tile register
TERMS = 64  # bytes in one of its rows
LEAST = 7  # fewer rows are as fast in vector registers: all wait for the weights
AHEAD = 16384  # how far ahead a single tile asks for the panel, in bytes: 16 to 20 GB/s of weights for 8 rows

_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18  # Linux on x86-64, since 5.16
_LEFT = COLUMNS  # registers 0-3 are the sums of sixteen columns each, then the rows, then columns in turn
_RIGHT = (5, 6, 7)
_BYTES = I8.as_pointer()


def permitted() -> bool:
    """Whether this process may use tile registers, which Linux gives to those who ask. Asks."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)
    except (AttributeError, OSError):
        return False


def _call(builder: Any, name: str, *args: Any) -> None:
    builder.call(function(builder, f"llvm.x86.{name}", ir.VoidType(), *[arg.type for arg in args]), list(args))


def _loop(builder: Any, end: Any, step: int, body: Callable[[Any], None]) -> None:
    """Emit `body` for 0, step ... below `end`, once at least."""
    before = builder.block
    again, done = builder.append_basic_block("again"), builder.append_basic_block("done")
    builder.branch(again)
    builder.position_at_end(again)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    body(index)
    following = builder.add(index, I64(step))
    index.add_incoming(following, again)
    builder.cbranch(builder.icmp_signed("<", following, end), again, done)
    builder.position_at_end(done)


def _sums(builder: Any, a: Any, a_row: Any, b: Any, k: Any, out: Any, out_bytes: Any, ahead: int) -> None:
    """Emit the sums of the configured rows with 64 columns, to rows that are `out_bytes` apart."""
    fetch = function(builder, "llvm.prefetch.p0", ir.VoidType(), _BYTES, I32, I32, I32)

    def terms(index: Any) -> None:
        _call(builder, "tileloadd64", I8(_LEFT), builder.inttoptr(builder.add(a, index), _BYTES), a_row)
        block = builder.add(b, builder.mul(index, I64(16 * COLUMNS)))
        for j in range(COLUMNS):
            register = I8(_RIGHT[j % len(_RIGHT)])
            column = builder.inttoptr(builder.add(block, I64(64 * j)), _BYTES)
            _call(builder, "tileloadd64", register, column, I64(64 * COLUMNS))
            _call(builder, "tdpbusd", I8(j), I8(_LEFT), register)
            for line in range(16 * j, 16 * j + 16 if ahead else 0):
                where = builder.inttoptr(builder.add(block, I64(ahead + 64 * line)), _BYTES)
                builder.call(fetch, [where, I32(0), I32(2), I32(1)])

    for j in range(COLUMNS):
        _call(builder, "tilezero", I8(j))
    _loop(builder, k, TERMS, terms)
    for j in range(COLUMNS):
        _call(builder, "tilestored64", I8(j), builder.inttoptr(builder.add(out, I64(64 * j)), _BYTES), out_bytes)


def _nothing_without(kern: Any, emit: Callable[[Any, tuple[Any, ...]], None]) -> Callable[..., Any]:
    """Code generation that calls `emit` for a kernel with tile registers, and emits nothing for others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if kern.instance_class is Amx:
            emit(builder, args[1:])
        return context.get_dummy_value()

    return codegen


@intrinsic
def has_tiles(typingctx: Any, kern: Any) -> Any:
    """Whether the kernel has tile registers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(kern.instance_class is Amx))

    return types.boolean(kern), codegen


@intrinsic
def configure(typingctx: Any, kern: Any, rows: Any) -> Any:
    """Set the tile registers for `rows` rows (1-16); what they hold is lost."""

    def emit(builder: Any, args: tuple[Any, ...]) -> None:
        # Palette 1; from byte 16 on the bytes in a row of each register, from byte 48 on how many rows it has.
        layout = [1, *[0] * 15, *[TERMS, 0] * 8, *[0] * 16, *[ROWS] * 8, *[0] * 8]
        memory = cgutils.alloca_once(builder, ir.ArrayType(I8, 64))
        memory.align = 64
        builder.store(ir.Constant(memory.type.pointee, layout), memory)
        rows8 = builder.trunc(args[0], I8)
        for register in range(_LEFT + 1):
            builder.store(rows8, builder.gep(memory, [I32(0), I32(48 + register)]))
        _call(builder, "ldtilecfg", builder.bitcast(memory, _BYTES))

    return types.void(kern, types.int64), _nothing_without(kern, emit)


@intrinsic
def release(typingctx: Any, kern: Any) -> Any:
    """Empty the tile registers, so that nobody has to keep them for this thread."""
    return types.void(kern), _nothing_without(kern, lambda builder, _: _call(builder, "tilerelease"))


@intrinsic
def tile_sums(typingctx: Any, kern: Any, a: Any, a_row: Any, b: Any, k: Any, out: Any, out_row: Any) -> Any:
    """int32 sums of the configured rows with one panel over k terms, a multiple of 64. Addresses: a uint8, rows `a_row`
    bytes apart; b int8, one packed panel; out int32, rows `out_row` elements apart."""

    def emit(builder: Any, args: tuple[Any, ...]) -> None:
        a, a_row, b, k, out, out_row = args
        _sums(builder, a, a_row, b, k, out, builder.shl(out_row, I64(2)), 0)

    return types.void(kern, *[types.int64] * 6), _nothing_without(kern, emit)


@intrinsic(prefer_literal=True)
def tile_scaled(
    typingctx: Any, kern: Any, ahead: Any, rows: Any, a: Any, b: Any, k: Any, out: Any, out_row: Any, zero: Any,
    scale: Any, colsum: Any, colscale: Any,
) -> Any:  # fmt: skip
    """float32 results of the epilogue for the `rows` that are configured and one panel. Addresses as in `tile_sums`,
    rows of `a` k bytes apart; zero int32, scale float32 per row; colsum int32, colscale float32 per column. `ahead`: a
    literal, how many bytes further on in `b` to prefetch, 0 for none."""
    if not isinstance(ahead, types.IntegerLiteral):
        return None

    def emit(builder: Any, args: tuple[Any, ...]) -> None:
        rows, a, b, k, out, out_row, zero, scale, colsum, colscale = args[1:]
        memory = cgutils.alloca_once(builder, ir.ArrayType(I32, ROWS * 16 * COLUMNS))
        memory.align = 64
        sums = builder.ptrtoint(memory, I64)
        _sums(builder, a, k, b, k, sums, I64(64 * COLUMNS), ahead.literal_value)
        column_sums = [load(builder, builder.add(colsum, I64(64 * j)), V16, 4) for j in range(COLUMNS)]
        steps = [load(builder, builder.add(colscale, I64(64 * j)), F16, 4) for j in range(COLUMNS)]

        def row(index: Any) -> None:
            word = builder.shl(index, I64(2))
            z = splat(builder, load(builder, builder.add(zero, word), I32, 4), V16)
            s = splat(builder, load(builder, builder.add(scale, word), F32, 4), F16)
            to = builder.add(out, builder.mul(word, out_row))
            for j in range(COLUMNS):
                at = builder.add(sums, builder.add(builder.mul(index, I64(64 * COLUMNS)), I64(64 * j)))
                value = epilogue(builder, load(builder, at, V16, 64), z, column_sums[j], steps[j], s)
                place = builder.inttoptr(builder.add(to, I64(64 * j)), value.type.as_pointer())
                builder.store(value, place).align = 4

        _loop(builder, rows, 1, row)

    return types.void(kern, ahead, *[types.int64] * 10), _nothing_without(kern, emit)
