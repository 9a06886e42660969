"""Blocks of sixteen rows of a matrix, column after column: the order in which learning keeps what it moves.

[columns][16]: a vector holds what sixteen rows have in one column. Mixing along the rows then adds and subtracts whole
vectors, and both packed orders are made from a block by shuffles of registers; row after row, mixing takes five times
as long (docs/experiments.md). All here is elementwise in a written order, or sums integers.

Functions take addresses (`nacz.kernels.tiles.address`) and are a few vector instructions each, so that no loop asks
whether its arrays overlap.

Knows blocks. Does not know gradients, optimisers or layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from nacz.kernels.compile import inner, intrinsic
from nacz.kernels.compile import numba_types as types
from nacz.kernels.tiles import F16, F32, I8, I32, I64, V16, function, load, splat

ROWS = 16
COLUMN = 4 * ROWS  # bytes of a column's float32
LARGEST = 127.0  # of a weight in units of its row's step
_BYTES16, _BYTES64 = ir.VectorType(I8, 16), ir.VectorType(I8, 64)
_ROUNDING = 12582912.0, 0x4B400000  # as in nacz.kernels.ops.round_near


def _order(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(I32, len(places)), places)


def _store(builder: Any, value: Any, addr: Any) -> None:
    builder.store(value, builder.inttoptr(addr, value.type.as_pointer())).align = 4


def _pairs(builder: Any, x: list[Any], distance: int) -> None:
    for i in range(len(x)):
        if not i & distance:
            p, q = x[i], x[i + distance]
            x[i], x[i + distance] = builder.fadd(p, q), builder.fsub(p, q)


def _threes(builder: Any, x: list[Any], distance: int) -> None:
    for i in range(len(x)):
        if i // distance % 3 == 0:
            places = i, i + distance, i + 2 * distance
            p, q, s = (x[place] for place in places)
            p2, q2, s2 = (builder.fadd(v, v) for v in (p, q, s))
            x[i] = builder.fadd(builder.fadd(p, q2), s2)
            x[places[1]] = builder.fsub(builder.fadd(p2, q), s2)
            x[places[2]] = builder.fadd(builder.fsub(p2, q2), s)


def _in_place(count: int, distances: tuple[int, ...], change: Callable[[Any, list[Any], int], None]) -> Any:
    """`change` over each of the distances in turn, of `count` vectors that lie `step` bytes apart."""

    @intrinsic
    def mixed(typingctx: Any, at: Any, step: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            places = [builder.add(args[0], builder.mul(args[1], I64(i))) for i in range(count)]
            x = [load(builder, place, F16, 4) for place in places]
            for distance in distances:
                change(builder, x, distance)
            for value, place in zip(x, places, strict=True):
                _store(builder, value, place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return mixed


_two, _four, _eight = (_in_place(2 ** len(d), d, _pairs) for d in ((1,), (1, 2), (1, 2, 4)))
_three, _nine = _in_place(3, (1,), _threes), _in_place(9, (3, 1), _threes)


@inner
def mix_block(k: int, two: int, three: int, block: int) -> None:
    """Mix sixteen rows of k float32 as `nacz.kernels.rows.mix_rows` does, but for the scale; in place. three: 1, 3 or
    9."""
    rest = k // (two * three)
    end, span = two * rest, rest
    while 8 * span <= end:
        for at in range(0, k, 8 * span):
            for j in range(at, at + span):
                _eight(block + COLUMN * j, COLUMN * span)
        span *= 8
    if 4 * span <= end:
        for at in range(0, k, 4 * span):
            for j in range(at, at + span):
                _four(block + COLUMN * j, COLUMN * span)
        span *= 4
    if span < end:
        for at in range(0, k, 2 * span):
            for j in range(at, at + span):
                _two(block + COLUMN * j, COLUMN * span)
    if three == 3:
        for j in range(end):
            _three(block + COLUMN * j, COLUMN * end)
    if three == 9:
        for j in range(end):
            _nine(block + COLUMN * j, COLUMN * end)


@intrinsic
def sums_to_floats(typingctx: Any, sums: Any, less: Any, more: Any, times: Any, unit: Any, out: Any) -> Any:
    """A column: out = float32(sums - less + more * times) * unit. int32 sums, less and more and float32 unit of sixteen
    rows at addresses; times: int32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total, less, more = (load(builder, args[i], V16, 4) for i in range(3))
        total = builder.add(builder.sub(total, less), builder.mul(more, splat(builder, args[3], V16)))
        _store(builder, builder.fmul(builder.sitofp(total, F16), load(builder, args[4], F16, 4)), args[5])
        return context.get_dummy_value()

    types_ = types.int64, types.int64, types.int64, types.int32, types.int64, types.int64
    return types.void(*types_), codegen


@intrinsic
def add_squares(typingctx: Any, x: Any, total: Any) -> Any:
    """Eight columns, one after the other: total += x * x. float32 of sixteen rows at addresses."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums = load(builder, args[1], F16, 4)
        for i in range(8):
            v = load(builder, builder.add(args[0], I64(COLUMN * i)), F16, 4)
            sums = builder.fadd(sums, builder.fmul(v, v))
        _store(builder, sums, args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def take_off(typingctx: Any, move: Any, scale: Any, inverse: Any, master: Any, out: Any) -> Any:
    """A column: master -= (move * scale) * inverse, within +-127, and rounded to bytes into out. float32 move, inverse
    and master and int8 out of sixteen rows at addresses; scale: float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        moved = builder.fmul(load(builder, args[0], F16, 4), splat(builder, args[1], F16))
        moved = builder.fmul(moved, load(builder, args[2], F16, 4))
        w = builder.fsub(load(builder, args[3], F16, 4), moved)
        for sign, limit in ((">", -LARGEST), ("<", LARGEST)):
            bound = splat(builder, ir.Constant(F32, limit), F16)
            w = builder.select(builder.fcmp_ordered(sign, w, bound), w, bound)
        _store(builder, w, args[3])
        magic = splat(builder, ir.Constant(F32, _ROUNDING[0]), F16)
        q = builder.sub(builder.bitcast(builder.fadd(w, magic), V16), splat(builder, I32(_ROUNDING[1]), V16))
        _store(builder, builder.trunc(q, _BYTES16), args[4])
        return context.get_dummy_value()

    types_ = types.int64, types.float32, types.int64, types.int64, types.int64
    return types.void(*types_), codegen


@intrinsic
def _four_columns(typingctx: Any, q: Any, packed: Any, sums: Any, part: Any) -> Any:
    """Four columns of bytes to the packed order, each row's four together; added to int32 sums of the sixteen rows and
    of the four columns."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        some = load(builder, args[0], _BYTES64, 4)
        woven = builder.shuffle_vector(some, some, _order([16 * (i % 4) + i // 4 for i in range(64)]))
        _store(builder, woven, args[1])
        add = function(builder, "llvm.vector.reduce.add.v16i32", I32, V16)
        total = load(builder, args[2], V16, 4)
        for i in range(4):
            column = builder.shuffle_vector(some, some, _order(list(range(16 * i, 16 * i + 16))))
            wide = builder.sext(column, V16)
            total = builder.add(total, wide)
            place = builder.add(args[3], I64(4 * i))
            _store(builder, builder.add(load(builder, place, I32, 4), builder.call(add, [wide])), place)
        _store(builder, total, args[2])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _sixteen_columns(typingctx: Any, q: Any, turned: Any) -> Any:
    """Sixteen columns of bytes to the packed order of the transposed matrix, where four rows are one word."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words = [load(builder, builder.add(args[0], I64(64 * i)), V16, 4) for i in range(4)]
        for r in range(4):
            every_fourth = _order(list(range(r, 32, 4)))
            halves = [builder.shuffle_vector(words[i], words[i + 1], every_fourth) for i in (0, 2)]
            joined = builder.shuffle_vector(*halves, _order(list(range(16))))
            _store(builder, joined, builder.add(args[1], I64(256 * r)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@inner
def place_block(row: int, n: int, k: int, q: int, packed: int, turned: int, sums: int, part: int) -> None:
    """Sixteen rows of int8 weights q [k][16], from row `row` (a multiple of 16) of n on, into both packed orders.

    packed: int8 [n/64][k/4][64][4]; turned: int8 [k/64][n/4][64][4], the transposed matrix. Added to: sums, int32 of
    the sixteen rows; part, int32[k] of the columns.
    """
    out = packed + (row & ~63) * k + 4 * (row & 63)
    for j in range(0, k, 4):
        _four_columns(q + ROWS * j, out + 64 * j, sums, part + 4 * j)
    for panel in range(0, k, 64):
        for j in range(0, 64, 16):
            _sixteen_columns(q + ROWS * (panel + j), turned + panel * n + 64 * row + 4 * j)
