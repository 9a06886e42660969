"""Nothing on the probability path depends on order, contraction or a maths library. Checked in three ways.

In the sources: no compiled function asks for fast arithmetic or calls a function of a maths library. In what LLVM makes
of them, for this processor with all its instructions: no fused, reassociated or unknown float operation and no running
float sum. And by changing what may not matter: all terms of all sums in another order, and whether tiny numbers exist.
Every check is also given something that violates it, and has to say so.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import numba
import numpy as np
import pytest
import slow_model
import test_general
import tiny
from exact_inputs import F, each_kernel, floats, whole
from llvmlite import ir
from nacz.kernels import ahead, dispatch
from nacz.kernels import compile as compiling
from nacz.kernels import reference as ref
from nacz.kernels.gemm import pack, unpack
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nacz import row_coding
from nacz.predictors import transformer
from nacz.predictors.scratch import make_scratch
from nacz.weights import store
from nacz.weights.exact import ExactModel

# -- sources ----------------------------------------------------------------------------------------------------------

LIBRARY = set("exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sinh cosh arctan atan power pow cbrt hypot".split())
REDUCTIONS = set("sum mean dot matmul vdot inner einsum prod cumsum std var average norm nansum convolve".split())
FAST = {"fastmath", "flags", "fma", "parallel", "prange"}


def source_violations(source: str, name: str = "") -> list[str]:
    """What compiled functions and code generators in a source ask for that is not exact."""
    found = []
    tree = ast.parse(source)
    generates = "from llvmlite import ir" in source
    for outer in ast.walk(tree):
        if isinstance(outer, ast.keyword) and outer.arg in FAST:
            found.append(f"{name}: keyword {outer.arg}")
        if isinstance(outer, ast.Attribute) and outer.attr in {"njit", "jit", "vectorize"} and name != "compile.py":
            found.append(f"{name}: compiles past nacz.kernels.compile")
        if isinstance(outer, ast.Attribute) and outer.attr in {"fma", "prange"}:
            found.append(f"{name}: {outer.attr}")
        if not isinstance(outer, ast.FunctionDef):
            continue
        if not generates and not {"compiled", "inner"} & {getattr(d, "id", "") for d in outer.decorator_list}:
            continue
        for node in ast.walk(outer):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in LIBRARY | REDUCTIONS:
                    found.append(f"{name}: {outer.name} calls {node.func.attr}")
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                found.append(f"{name}: {outer.name} has a matrix product")
            if not generates and isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                if not all(isinstance(side, ast.Constant) for side in (node.left, node.right)):
                    found.append(f"{name}: {outer.name} has a power")
    return found


PATH = [*Path(compiling.__file__).parent.glob("*.py"), *Path(transformer.__file__).parent.glob("*.py")]
PATH += Path(str(sys.modules["nacz.coder"].__path__[0])).glob("*.py")
PATH += [Path(row_coding.__file__).with_name(f"{name}.py") for name in ("row_coding", "lane_encoding", "lane_decoding")]
# Numpy definitions for tests, and an engine of its own that is held to the kernels' bits elsewhere.
PATH = [path for path in PATH if path.name not in ("reference.py", "torch_backend.py")]


@pytest.mark.parametrize("path", PATH, ids=lambda path: path.name)
def test_sources_ask_for_exact_arithmetic(path: Path) -> None:
    assert source_violations(path.read_text(encoding="utf-8"), path.name) == []


@pytest.mark.parametrize(
    "source",
    [
        "@njit(fastmath=True)\ndef f(x): return x",
        "import numba\n@numba.njit\ndef f(x): return x",
        "@compiled\ndef f(x): return np.exp(x)",
        "@compiled\ndef f(x): return math.log(x)",
        "@inner\ndef f(x): return math.log(x)",
        "@compiled\ndef f(x): return x.sum()",
        "@compiled\ndef f(x, y): return np.dot(x, y)",
        "@compiled\ndef f(x, y): return x @ y",
        "@compiled\ndef f(x, y): return x ** y",
        "@compiled\ndef f(x):\n    for i in numba.prange(3): x[i] = 0",
        "from llvmlite import ir\ndef codegen(b, x, y): return b.fadd(x, y, flags=['fast'])",
        "from llvmlite import ir\ndef codegen(b, x, y): return b.fma(x, x, y)",
    ],
)
def test_source_violations_are_seen(source: str) -> None:
    assert source_violations(source)


# -- what LLVM makes of them ------------------------------------------------------------------------------------------

_FLAGS = re.compile(
    r"= (?:tail )?(?:f\w+|call|select|phi|sitofp|uitofp) (?:\w+ )*?(fast|reassoc|contract|afn|arcp|nsz)\b"
)
_ATTRIBUTES = re.compile(r'"(?:unsafe-fp-math|no-signed-zeros-fp-math|approx-func-fp-math)"="true"')
_CALL = re.compile(r"\bcall\b[^@\n]*?([^@\n]*)@\"?([\w.$]+)\"?\(([^\n]*)")
_FLOAT = re.compile(r"\b(?:float|double|half|bfloat|fp128|x86_fp80)\b")
# Float functions with one right result each, and moves.
_EXACT = re.compile(
    r"sqrtf?$|llvm\.masked\.|llvm\.(?:sqrt|fabs|copysign|trunc|floor|ceil|rint|nearbyint|minnum|maxnum)\.|llvm\.vector\.reduce\.f(?:max|min)\."
)
_PHI = re.compile(r"(%[\w.]+) = phi (?:float|double|<\d+ x (?:float|double)>) (.*)")
_SUM = re.compile(r"(%[\w.]+) = (?:fadd|fsub|fmul) (?:float|double|<\d+ x (?:float|double)>) ([^,\n]+), ([^,\n]+)")
_FUSED = re.compile(r"\n\s+(v?fn?m(?:add|sub)\w*|fml[as]\b|v?h(?:add|sub)p[sd]\b|v?dpp[sd]\b)")


def code_violations(code: str, assembly: str = "") -> set[str]:
    """What optimised LLVM code and assembly contain whose result may depend on the machine or on an order."""
    found = {f"flag {flag}" for flag in _FLAGS.findall(code)} | set(_ATTRIBUTES.findall(code))
    for result, name, arguments in _CALL.findall(code):
        if name.startswith(("NRT_", "llvm.dbg", "_ZN", "Py", "numba_")) or _EXACT.match(name):
            continue  # memory, other functions of nacz, reference counts
        if _FLOAT.search(result) or _FLOAT.search(arguments.split(" #")[0]):
            found.add(f"call of {name}")
    for function in code.split("\ndefine ")[1:]:
        sums = {name: {left, right} for name, left, right in _SUM.findall(function)}
        for phi, incoming in _PHI.findall(function):
            # A sum that is carried round a loop: sums of sums, back to the value it started from.
            seen: set[str] = set()
            todo = set(re.findall(r"%[\w.]+", incoming)) & sums.keys()
            while todo:
                value = todo.pop()
                seen.add(value)
                if phi in sums[value]:
                    found.add("running float sum")
                todo |= (sums[value] & sums.keys()) - seen
    return found | {f"instruction {name}" for name in _FUSED.findall(assembly)}


def all_compiled() -> dict[str, Any]:
    """Every compiled function of nacz that has run, or was compiled for one that has."""
    out = {}
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("nacz"):
            for value in vars(module).values():
                if isinstance(value, numba.core.dispatcher.Dispatcher) and value.overloads:
                    out[f"{value.py_func.__module__}.{value.py_func.__name__}"] = value
    return out


def inspected() -> dict[str, list[str]]:
    """{function: violations} of everything that coding and decoding the golden set compiles in this process."""
    ahead.cache_folder = lambda: None  # no other process, whose code could not be read here
    golden.run(["many lanes", "beyond the window", "bytes", "learning", "learning, version 2"])
    with tempfile.TemporaryDirectory() as folder:
        general = test_general.made("gemma", Path(folder))[1]
    test_general.logits(dispatch.chosen()[1], general, test_general.some_tokens(200), 256, [128, 72])
    out = {}
    for name, function in all_compiled().items():
        codes, assemblies = function.inspect_llvm(), function.inspect_asm()
        out[name] = sorted({v for key, code in codes.items() for v in code_violations(code, assemblies[key])})
    return out


@pytest.mark.timeout(600)
def test_machine_code_is_exact(tmp_path: Path) -> None:
    """In a process that finds no machine code, so that all is compiled and can be read."""
    settings = os.environ | {"NACZ_CACHE_DIR": str(tmp_path)}
    program = "import json, test_exactness; print(json.dumps(test_exactness.inspected()))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for needed in (
        "nacz.predictors.transformer.forward", "nacz.row_coding.intervals", "nacz.row_coding.distributions",
        "nacz.row_coding.take", "nacz.row_coding.mixed_intervals", "nacz.row_coding.take_mixed",
        "nacz.predictors.ensemble.adjust", "nacz.predictors.ensemble.learn", "nacz.predictors.candidates.learn_weights",
        "nacz.predictors.candidates.share_out", "nacz.predictors.candidates.weigh",
        "nacz.predictors.recall.poll", "nacz.predictors.recall.remember", "nacz.predictors.spell.spell",
        "nacz.predictors.beside.expect", "nacz.predictors.beside.learn_decision",
        "nacz.predictors.backward.head_rows", "nacz.predictors.steps.adam_panels",
        "nacz.predictors.steps.scaled_panels", "nacz.predictors.steps.scaled_terms",
        "nacz.predictors.backward.tell_outcome", "nacz.kernels.gradients.adam_moves",
        "nacz.kernels.gradients.pack_columns", "nacz.kernels.columns.mix_block", "nacz.kernels.columns.place_block",
        "nacz.kernels.attention_gradient.attention_gradient", "nacz.kernels.attention.attend",
        "nacz.kernels.gemm.scaled_product", "nacz.kernels.cdf.spread",
        "nacz.predictors.general.general_forward", "nacz.kernels.wide_attention.attend_wide",
        "nacz.kernels.general_rows.gelu_rows", "nacz.kernels.general_rows.prepare_rows",
        "nacz.kernels.rows.normalise_rows", "nacz.kernels.rows.gated_rows", "nacz.kernels.rope.angles",
    ):  # fmt: skip
        assert needed in found, f"{needed} was not looked at; these were: {sorted(found)}"
    # Sixteen rows of a matrix, each adding its columns in the order that learning.md says.
    found["nacz.predictors.steps.scaled_panels"] = sorted(
        set(found["nacz.predictors.steps.scaled_panels"]) - {"running float sum"}
    )
    assert {name: what for name, what in found.items() if what} == {}


@intrinsic
def _fused(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def _flagged(typingctx: Any, x: Any, y: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=["contract"])

    return types.float32(types.float32, types.float32), codegen


def _dot(x: Any) -> Any:
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


def _contracted(x: Any) -> None:
    for i in range(x.size - 1):
        x[i] = x[i] * x[i + 1] + np.float32(1.5)


def _exact(x: Any) -> None:
    for i in range(x.size):
        x[i] = np.sqrt(abs((x[i] * x[i] + np.float32(1.5)) / np.float32(3.0)))


WRONG: dict[str, tuple[Callable[..., Any], bool, tuple[Any, ...], str]] = {
    "fast sum": (_dot, True, (types.float32[::1],), "flag"),
    "sum in a loop": (_dot, False, (types.float32[::1],), "running float sum"),
    "contraction": (_contracted, True, (types.float32[::1],), "flag"),
    "logarithm": (lambda x: np.log(x), False, (types.float64,), "log"),
    "exponential": (lambda x: np.exp(x), False, (types.float32,), "exp"),
    "power": (lambda x, y: x**y, False, (types.float64, types.float64), "pow"),
    "fused": (lambda x: _fused(x, x, x), False, (types.float32,), "fma"),
    "flag": (lambda x: _flagged(x, x), False, (types.float32,), "flag contract"),
}


def compiled_violations(function: Callable[..., Any], fast: bool, signature: tuple[Any, ...]) -> set[str]:
    run = numba.njit(fastmath=fast, error_model="numpy")(function)
    run.compile(signature)
    return code_violations(*run.inspect_llvm().values(), *run.inspect_asm().values())


@pytest.mark.parametrize("name", WRONG)
def test_code_violations_are_seen(name: str) -> None:
    function, fast, signature, expected = WRONG[name]
    found = compiled_violations(function, fast, signature)
    assert any(expected in violation for violation in found), found


def test_float_reductions_are_seen() -> None:
    code = "  %r = tail call float @llvm.vector.reduce.fadd.v4f32(float 0.000000e+00, <4 x float> %v)\n"
    assert code_violations(code) == {"call of llvm.vector.reduce.fadd.v4f32"}


def test_exact_code_is_not_accused() -> None:
    assert compiled_violations(_exact, False, (types.float32[::1],)) == set()


@pytest.mark.skipif("fma" not in numba.core.codegen.get_host_cpu_features(), reason="this processor fuses nothing")
def test_fused_instructions_are_seen() -> None:
    run = numba.njit(fastmath=True)(_contracted)
    run.compile((types.float32[::1],))
    assert any("instruction" in v for v in code_violations("", *run.inspect_asm().values()))


# -- another order of all sums ----------------------------------------------------------------------------------------


def shuffled(model: ExactModel) -> ExactModel:
    """The same network with its channels in another order: the terms of every sum over channels move.

    Residual channels, head channels of values, rotated pairs of queries and keys, and the channels that the rotation of
    the feed-forward layer treats alike are all renumbered. What comes out is the same if sums do not round.
    """
    arch, old = model.architecture, model.arrays
    d, f, heads, kv, half = arch.dim, arch.ffn, arch.heads, arch.kv_heads, 32
    order = np.random.Generator(np.random.PCG64(5)).permutation
    channel, pair, value = order(d), order(half), order(64)
    two, three = transformer.ffn_mixing(f)
    alike = order(f // (two * three))
    hidden = (np.arange(two * three)[:, None] * len(alike) + alike).reshape(-1)
    turned = np.concatenate([pair, pair + half])
    queries = (np.arange(heads + kv)[:, None] * 64 + turned).reshape(-1)
    values = ((heads + kv + np.arange(kv))[:, None] * 64 + value).reshape(-1)
    mixed = (np.arange(heads)[:, None] * 64 + value).reshape(-1)
    # name: (order of outputs, order of terms)
    moves = {
        "qkv": (np.concatenate([queries, values]), channel), "out": (channel, mixed), "down": (channel, hidden),
        "gate_up": (np.concatenate([hidden, hidden + f]), channel), "head": (np.arange(arch.vocab), channel),
    }  # fmt: skip
    new = dict(old)
    for name, (rows, terms) in moves.items():
        n, k = len(rows), len(terms)
        layers = old[name].size // (n * k)
        parts = [unpack(part, n, k)[rows][:, terms] for part in old[name].reshape(layers, -1)]
        new[name] = np.concatenate([pack(part) for part in parts])
        for what in ("sum", "step"):
            new[f"{name}_{what}"] = old[f"{name}_{what}"].reshape(layers, n)[:, rows].reshape(-1)
    new["embed"] = old["embed"].reshape(arch.vocab, d)[:, channel].reshape(-1)
    new["rope"] = old["rope"].reshape(2, -1, 2, half)[:, :, :, pair].reshape(-1)
    return ExactModel(arch, new, model.tokenizer)


def fast_logits(kern: Any, model: ExactModel, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    loaded = store.in_memory(model)
    shape = transformer.make_shape(loaded.architecture, 256)
    weights = transformer.make_weights(loaded)
    cache, scratch = transformer.make_cache(shape, 1), make_scratch(shape, 128)
    nothing = transformer.make_trace(shape, shape.layers, 0)
    out = []
    for at in range(0, len(tokens), 128):
        some = tokens[at : at + 128]
        group = transformer.Group(*(np.array([v], np.int64) for v in (0, 0, len(some), at)))
        transformer.forward(kern, shape, weights, cache, scratch, some, group, nothing)
        logits = transformer.aligned(some.size * shape.vocab, F)
        transformer.head(kern, shape, weights, scratch, 0, some.size, logits)
        out.append(logits.reshape(some.size, -1))
    return np.concatenate(out)


@each_kernel
def test_the_order_of_sums_does_not_matter(kern: Any) -> None:
    tokens = whole("tokens", 0, 319, 520).astype(np.int32)
    model = tiny.model()
    other = shuffled(model)
    assert not np.array_equal(other.arrays["down"], model.arrays["down"])
    np.testing.assert_array_equal(fast_logits(kern, model, tokens), fast_logits(kern, other, tokens))


class _Rounding(slow_model.SlowModel):
    """The slow model with one thing wrong: products are summed in float32."""

    def _product(self, name: str, layer: int, rows: Any, k: int) -> NDArray[np.float32]:
        arrays = self.model.arrays
        steps = arrays[f"{name}_step"]
        n = self.arch.vocab if name == "head" else len(steps) // self.arch.layers
        weights = unpack(arrays[name][layer * n * k : (layer + 1) * n * k], n, k)
        a, zero, step = rows
        x = (a.astype(F) - zero[:, None].astype(F)) * step[:, None]
        return (x @ (weights.astype(F) * steps[layer * n : (layer + 1) * n, None]).T).astype(F)


def test_an_order_that_matters_is_seen() -> None:
    tokens = whole("tokens", 0, 319, 12).astype(np.int32)
    model = tiny.model()
    right, moved = slow_model.SlowModel(model, 256), slow_model.SlowModel(shuffled(model), 256)
    np.testing.assert_array_equal(right.logits(tokens), moved.logits(tokens))
    wrong, moved = _Rounding(model, 256), _Rounding(shuffled(model), 256)
    assert not np.array_equal(wrong.logits(tokens), moved.logits(tokens))


# -- numbers that some machines flush to zero -------------------------------------------------------------------------


@intrinsic
def _set_control(typingctx: Any, word: Any) -> Any:
    """Load the control register of SSE: rounding mode, and whether subnormal numbers count as zero."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = numba.core.cgutils.alloca_once_value(builder, args[0])
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        load = numba.core.cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(load, [builder.bitcast(place, ir.IntType(8).as_pointer())])
        return context.get_dummy_value()

    return types.void(types.uint32), codegen


DEFAULT, FLUSHING, UPWARDS = 0x1F80, 0x9FC0, 0x5F80
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets a register of x86-64")


@pytest.fixture
def control() -> Any:
    """A function that sets the register; the usual value comes back afterwards."""
    setter = numba.njit(lambda word: _set_control(word))
    yield lambda word: setter(np.uint32(word))
    setter(np.uint32(DEFAULT))


@on_x86
def test_subnormal_numbers_do_not_matter(control: Any) -> None:
    """Some libraries switch the whole process to flushing them to zero when they are loaded."""
    tokens, kern = whole("tokens", 0, 319, 300).astype(np.int32), golden.language_model.chosen()[1]
    model = tiny.model()
    usual = fast_logits(kern, model, tokens)
    control(FLUSHING)
    tiny_number = np.full(1, 2.0**-126, F)
    assert not (tiny_number * F(0.5)).any(), "the switch does nothing"
    flushed = fast_logits(kern, model, tokens)
    control(DEFAULT)
    np.testing.assert_array_equal(usual, flushed)


@on_x86
def test_another_rounding_mode_is_seen(control: Any) -> None:
    """The one setting that everything rests on: with it changed, the self-test or the bits say so."""
    tokens, kern = whole("tokens", 0, 319, 20).astype(np.int32), golden.language_model.chosen()[1]
    model = tiny.model()
    usual = fast_logits(kern, model, tokens)
    control(UPWARDS)
    other = fast_logits(kern, model, tokens)
    control(DEFAULT)
    assert not np.array_equal(usual, other)


def test_products_are_exact_in_any_order() -> None:
    """The reference itself: sums of integers, however they are taken."""
    a, weights = whole("a", 0, 255, 3, 576).astype(np.uint8), whole("w", -127, 127, 64, 576).astype(np.int8)
    zero, step, column_step = np.full(3, 7, np.int32), np.abs(floats("steps", 3)), np.abs(floats("columns", 64))
    order = np.random.Generator(np.random.PCG64(1)).permutation(576)
    one = ref.scaled_product(a, zero, step, weights, column_step)
    np.testing.assert_array_equal(one, ref.scaled_product(a[:, order], zero, step, weights[:, order], column_step))
