"""The register tile: a few rows of unsigned bytes times packed columns of signed bytes, summed exactly in int32.

One contract, one implementation per instruction set. A tile multiplies `mr` rows (1-6) with 64 columns over `4 * k4`
terms. Right-hand operands ("packed") lie as panels of 64 columns, [columns / 64][K / 4][64][4]: one 64-byte
load holds four consecutive terms of sixteen columns, which is what `vpdpbusd` takes and other instruction sets unpack
cheaply, and a tile reads its panel from front to back, which is what prefetchers follow. Every partial sum is below
2^31 as long as K * 255 * 127 is (K <= 66,000), so the order of additions cannot matter.

The epilogue turns sums into float32 elementwise, in one fixed order: ((sum - zero_row * colsum_col) * scale_col) *
scale_row.

Knows instruction sets. Does not know what the rows mean, nor who chooses the kernel (`nacz.kernels.dispatch`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from nacz.kernels.compile import cgutils, intrinsic
from nacz.kernels.compile import numba_types as types

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
V16 = ir.VectorType(I32, 16)
F16 = ir.VectorType(F32, 16)

COLUMNS = 4  # blocks of sixteen columns in a tile, all of a panel
SUMS = 0  # a tile writes its int32 sums
SCALED = 1  # a tile writes the float32 result of the epilogue
SUMS_AHEAD = 2  # int32 sums, and prefetches `b` further on
SCALED_AHEAD = 3  # float32 result, and prefetches
# How many rows the tiles of a mode may have; machine code is made for these.
MODE_ROWS = {SUMS: range(1, 7), SCALED: range(1, 7), SUMS_AHEAD: (3,), SCALED_AHEAD: range(3, 7)}


# A kernel is passed through compiled code as a value of its own type: the type selects the implementation and is part
# of the signature under which Numba caches machine code, so two kernels never share a cache entry.
class Amx(NamedTuple):
    """AMX: `tdpbusd` on sixteen rows at a time (`nacz.kernels.amx`); a tile of few rows is that of AVX-512 VNNI."""

    tag: int = 0


class Vnni512(NamedTuple):
    """AVX-512 VNNI: `vpdpbusd` on 64 bytes."""

    tag: int = 0


class HintedVnni512(NamedTuple):
    """`Vnni512` for processors that wait less for weights when told early which they need."""

    tag: int = 0


class Vnni256(NamedTuple):
    """AVX-VNNI, which processors without AVX-512 have: `vpdpbusd` on 32 bytes."""

    tag: int = 0


class Avx2(NamedTuple):
    """AVX2: bytes widened to 16 bits, `vpmaddwd` on 32 bytes."""

    tag: int = 0


class HintedAvx2(NamedTuple):
    """`Avx2` for processors as those of `HintedVnni512`."""

    tag: int = 0


class Neon(NamedTuple):
    """AArch64 with the dot-product extension: `sdot` on 16 bytes."""

    tag: int = 0


class Plain(NamedTuple):
    """Generic vector code, correct on anything that LLVM targets."""

    tag: int = 0


def function(builder: Any, name: str, result: Any, *params: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, list(params)), name)


def splat(builder: Any, scalar: Any, vector: Any) -> Any:
    undef = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undef, scalar, I32(0))
    return builder.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _const(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def load(builder: Any, addr: Any, ty: Any, align: int) -> Any:
    value = builder.load(builder.inttoptr(addr, ty.as_pointer()))
    value.align = align
    return value


class _Step:
    """One step: four terms of `mr` rows with sixteen columns. `parts` vectors of `vector` hold the sixteen sums."""

    near_level = 3  # of the cache that `near` asks for: 3 is the first, 2 the second

    @classmethod
    def near(cls, mr: int) -> int:
        """How far ahead, in bytes, the first pass of `mr` rows over a panel asks for all of it; 0 for not at all."""
        return 0

    @staticmethod
    def columns_at_once(mr: int) -> int:
        """How many column blocks of sixteen the registers have sums for."""
        return 1


class _Vnni512Step(_Step):
    vector, parts = V16, 1

    @staticmethod
    def columns_at_once(mr: int) -> int:
        return 4

    @staticmethod
    def right(builder: Any, addr: Any) -> Any:
        return load(builder, addr, V16, 64)

    @staticmethod
    def left(builder: Any, word: Any) -> Any:
        return splat(builder, word, V16)

    @staticmethod
    def multiply_add(builder: Any, acc: list[Any], left: Any, right: Any) -> list[Any]:
        # LLVM before 22 declares the operands as 16 x i32, later ones as 64 x i8; the old form is upgraded on reading.
        dot = function(builder, "llvm.x86.avx512.vpdpbusd.512", V16, V16, V16, V16)
        return [builder.call(dot, [acc[0], left, right])]


class _Hints:
    # Few rows wait for weights, and Intel's own prefetcher stops where a page ends. Weights that no cache holds, GB/s
    # on a Xeon 6 core, 1, 3 and 6 rows: 16, 11 and 9 without and 26, 24 and 21 with these hints for AVX-512, 14, 11,
    # 10 and 20, 16, 12 for AVX-VNNI, 11, 8, 5 and 20, 12, 7 for AVX2.
    near_level = 2

    @classmethod
    def near(cls, mr: int) -> int:
        return 16384


class _HintedVnni512Step(_Hints, _Vnni512Step):
    pass


class _Avx2Step(_Step):
    vector, parts = ir.VectorType(I32, 8), 2
    half = ir.VectorType(I16, 16)

    @classmethod
    def near(cls, mr: int) -> int:
        # A panel is read once for each of its column blocks, in strides that no prefetcher follows from memory: 3 rows
        # went from 25 to 49 G-op/s on a Zen 3 core, 512 rows were as fast as without.
        return 1024 if cls.columns_at_once(mr) < COLUMNS else 0

    @staticmethod
    def columns_at_once(mr: int) -> int:
        # Sixteen registers: 8 to 12 of them are sums. Where a decoder has one or two rows, fewer passes over the panel.
        return 4 // mr if mr <= 2 else 1

    @classmethod
    def right(cls, builder: Any, addr: Any) -> Any:
        out = []
        for part in range(2):
            words = builder.bitcast(load(builder, builder.add(addr, I64(32 * part)), cls.vector, 32), cls.half)
            even = builder.ashr(builder.shl(words, _const(cls.half, 8)), _const(cls.half, 8))
            out.append((even, builder.ashr(words, _const(cls.half, 8))))
        return out

    @classmethod
    def left(cls, builder: Any, word: Any) -> Any:
        # Split after the broadcast, which then comes straight from memory instead of through a scalar register.
        both = builder.bitcast(splat(builder, word, cls.vector), cls.half)
        return [builder.and_(both, _const(cls.half, 255)), builder.lshr(both, _const(cls.half, 8))]

    @classmethod
    def multiply_add(cls, builder: Any, acc: list[Any], left: Any, right: Any) -> list[Any]:
        madd = function(builder, "llvm.x86.avx2.pmadd.wd", cls.vector, cls.half, cls.half)
        out = []
        for a, (even, odd) in zip(acc, right, strict=True):
            a = builder.add(a, builder.call(madd, [left[0], even]))
            out.append(builder.add(a, builder.call(madd, [left[1], odd])))
        return out


class _HintedAvx2Step(_Hints, _Avx2Step):
    pass


class _Vnni256Step(_HintedAvx2Step):
    # Registers and the order of reading are those of AVX2.
    @classmethod
    def right(cls, builder: Any, addr: Any) -> Any:
        return [load(builder, builder.add(addr, I64(32 * part)), cls.vector, 32) for part in range(2)]

    @classmethod
    def left(cls, builder: Any, word: Any) -> Any:
        return splat(builder, word, cls.vector)

    @classmethod
    def multiply_add(cls, builder: Any, acc: list[Any], left: Any, right: Any) -> list[Any]:
        dot = function(builder, "llvm.x86.avx512.vpdpbusd.256", *[cls.vector] * 4)
        return [builder.call(dot, [a, left, r]) for a, r in zip(acc, right, strict=True)]


class _NeonStep(_Step):
    # A processor that LLVM does not know by name may have the instruction and lack the feature in Numba's target.
    features = "+neon,+dotprod"
    vector, parts = ir.VectorType(I32, 4), 4
    bytes16 = ir.VectorType(I8, 16)

    @classmethod
    def right(cls, builder: Any, addr: Any) -> Any:
        parts = [load(builder, builder.add(addr, I64(16 * p)), cls.vector, 16) for p in range(4)]
        return [builder.bitcast(v, cls.bytes16) for v in parts]

    @classmethod
    def left(cls, builder: Any, word: Any) -> Any:
        # `sdot` is signed x signed: (a - 128) here, the missing 128 * b is added in multiply_add.
        signed = builder.xor(word, I32(0x80808080))
        return builder.bitcast(splat(builder, signed, cls.vector), cls.bytes16)

    @classmethod
    def multiply_add(cls, builder: Any, acc: list[Any], left: Any, right: Any) -> list[Any]:
        sdot = function(
            builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", cls.vector, cls.vector, cls.bytes16, cls.bytes16
        )
        # a * b = (a - 128) * b - (-128) * b; the second term is two multiplications by 64, which fits a signed byte.
        sixty_four = _const(cls.bytes16, 64)
        out = []
        for a, b in zip(acc, right, strict=True):
            a = builder.call(sdot, [a, left, b])
            a = builder.call(sdot, [a, sixty_four, b])
            out.append(builder.call(sdot, [a, sixty_four, b]))
        return out


class _PlainStep(_Step):
    vector, parts = V16, 1

    @staticmethod
    def right(builder: Any, addr: Any) -> Any:
        words = load(builder, addr, V16, 64)
        out = []
        for byte in range(4):
            up = builder.shl(words, _const(V16, 24 - 8 * byte)) if byte < 3 else words
            out.append(builder.ashr(up, _const(V16, 24)))
        return out

    @staticmethod
    def left(builder: Any, word: Any) -> Any:
        return [splat(builder, builder.and_(builder.lshr(word, I32(8 * byte)), I32(255)), V16) for byte in range(4)]

    @staticmethod
    def multiply_add(builder: Any, acc: list[Any], left: Any, right: Any) -> list[Any]:
        total = acc[0]
        for a, b in zip(left, right, strict=True):
            total = builder.add(total, builder.mul(a, b))
        return [total]


_STEPS: dict[str, Any] = {
    "Amx": _HintedVnni512Step, "HintedVnni512": _HintedVnni512Step, "Vnni512": _Vnni512Step,
    "Vnni256": _Vnni256Step, "HintedAvx2": _HintedAvx2Step, "Avx2": _Avx2Step, "Neon": _NeonStep, "Plain": _PlainStep,
}  # fmt: skip


def _joined(builder: Any, parts: list[Any]) -> Any:
    """Concatenate the vectors of sixteen sums into one, as a binary tree of shuffles."""
    while len(parts) > 1:
        width = parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, 2 * width), list(range(2 * width)))
        parts = [builder.shuffle_vector(x, y, order) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _column_sums(
    builder: Any, step: Any, rows: list[Any], columns: list[Any], k4: Any, ahead: Any, near: int
) -> list[list[Any]]:
    """Emit the loop over K for all rows and the given column blocks; returns [row][column] vectors of 16 int32."""
    before = builder.block
    loop, done = builder.append_basic_block("terms"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    acc = [[[builder.phi(step.vector) for _ in range(step.parts)] for _ in columns] for _ in rows]
    for row in acc:
        for column in row:
            for part in column:
                part.add_incoming(_const(step.vector, 0), before)
    terms, block = builder.shl(index, I64(2)), builder.shl(index, I64(8))
    right = [step.right(builder, builder.add(column, block)) for column in columns]
    fetch = function(builder, "llvm.prefetch.p0", ir.VoidType(), I8.as_pointer(), I32, I32, I32)
    if near:
        for line in range(4):
            where = builder.add(builder.add(columns[0], block), I64(near + 64 * line))
            builder.call(fetch, [builder.inttoptr(where, I8.as_pointer()), I32(0), I32(step.near_level), I32(1)])
    if ahead is not None:
        # The next panel comes into the second-level cache while this one is multiplied: 16 rows x 49,152 columns went
        # from 500 to 827 G-op/s on a Zen 5 core. With a single row tile the hint only costs (55 to 39 GB/s).
        for column in columns:
            where = builder.inttoptr(builder.add(builder.add(column, block), ahead), I8.as_pointer())
            builder.call(fetch, [where, I32(0), I32(2), I32(1)])
    sums = []
    for row, old in zip(rows, acc, strict=True):
        left = step.left(builder, load(builder, builder.add(row, terms), I32, 4))
        sums.append([step.multiply_add(builder, o, left, r) for o, r in zip(old, right, strict=True)])
    following = builder.add(index, I64(1))
    index.add_incoming(following, loop)
    for old_row, new_row in zip(acc, sums, strict=True):
        for old_col, new_col in zip(old_row, new_row, strict=True):
            for o, n in zip(old_col, new_col, strict=True):
                o.add_incoming(n, loop)
    builder.cbranch(builder.icmp_signed("<", following, k4), loop, done)
    builder.position_at_end(done)
    return [[_joined(builder, column) for column in row] for row in sums]


def epilogue(builder: Any, sums: Any, zero: Any, colsum: Any, colscale: Any, scale: Any) -> Any:
    """Sixteen sums to float32, in the order of the contract. zero, scale: of the row, in all lanes."""
    exact = builder.sitofp(builder.sub(sums, builder.mul(zero, colsum)), F16)
    return builder.fmul(builder.fmul(exact, colscale), scale)


def _emit(builder: Any, step: Any, mr: int, mode: int, args: dict[str, Any]) -> None:
    """Emit a tile of `mr` rows; args are the arguments of `tile` by name."""

    def words(base: Any, offset: Any) -> Any:
        return builder.add(base, builder.shl(offset, I64(2)))

    rows = [builder.add(args["a"], builder.mul(args["a_row"], I64(i))) for i in range(mr)]
    columns = [builder.add(args["b"], I64(64 * j)) for j in range(COLUMNS)]
    ahead = args["ahead"] if mode in (SUMS_AHEAD, SCALED_AHEAD) else None
    scaled = mode in (SCALED, SCALED_AHEAD)
    at_once = step.columns_at_once(mr)
    for first in range(0, COLUMNS, at_once):
        near = step.near(mr) if mode == SCALED and first == 0 else 0
        sums = _column_sums(builder, step, rows, columns[first : first + at_once], args["k4"], ahead, near)
        for j in range(at_once):
            at = I64(16 * (first + j))
            if scaled:
                csum = load(builder, words(args["colsum"], at), V16, 4)
                cscale = load(builder, words(args["colscale"], at), F16, 4)
            for m in range(mr):
                place = words(args["out"], builder.add(builder.mul(args["out_row"], I64(m)), at))
                value = sums[m][j]
                if scaled:
                    z = splat(builder, load(builder, words(args["zero"], I64(m)), I32, 4), V16)
                    s = splat(builder, load(builder, words(args["scale"], I64(m)), F32, 4), F16)
                    value = epilogue(builder, value, z, csum, cscale, s)
                builder.store(value, builder.inttoptr(place, value.type.as_pointer())).align = 4


@intrinsic
def address(typingctx: Any, array: Any, index: Any) -> Any:
    """Where element `index` of an array lies, in bytes. Whoever uses it keeps the array alive."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        size = I64(array.dtype.bitwidth // 8)
        return builder.add(builder.ptrtoint(data, I64), builder.mul(args[1], size))

    return types.int64(array, types.int64), codegen


@intrinsic(prefer_literal=True)
def tile(
    typingctx: Any,
    kern: Any,
    mode: Any,
    mr: Any,
    a: Any,
    a_row: Any,
    b: Any,
    k4: Any,
    out: Any,
    out_row: Any,
    zero: Any,
    scale: Any,
    colsum: Any,
    colscale: Any,
    ahead: Any,
) -> Any:
    """One tile of `mr` rows and 64 columns. `mode` is a literal; `mr` is one of those in MODE_ROWS.

    Arrays come as addresses, so that one piece of machine code serves writable, read-only and sliced ones. a: uint8,
    rows `a_row` bytes apart. b: int8, one packed panel, 64-byte aligned. out: int32 (SUMS...) or float32, rows
    `out_row` elements apart. zero int32, scale float32 per row; colsum int32, colscale float32 per column; the SUMS
    modes read none of the four. `ahead`: how many bytes further on in `b` to prefetch (the AHEAD modes only)."""
    if not isinstance(mode, types.IntegerLiteral):
        return None
    names = ("a", "a_row", "b", "k4", "out", "out_row", "zero", "scale", "colsum", "colscale", "ahead")
    step = _STEPS[kern.instance_class.__name__]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if hasattr(step, "features"):
            # llvmlite's own `add` knows no attributes with values.
            set.add(builder.function.attributes, f'"target-features"="{step.features}"')
        done = builder.append_basic_block("done")
        which = builder.switch(args[2], done)
        for rows in MODE_ROWS[mode.literal_value]:
            case = builder.append_basic_block(f"rows{rows}")
            which.add_case(I64(rows), case)
            builder.position_at_end(case)
            _emit(builder, step, rows, mode.literal_value, dict(zip(names, args[3:], strict=True)))
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(kern, mode, *[types.int64] * (len(names) + 1)), codegen
