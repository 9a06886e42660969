"""The forward pass of nacz.predictors.transformer on a torch device: the same bits, one torch call per operation, so
that nothing can be contracted.

Sums are of integers and exact, in int64 or in float32 below 2^24 (see nacz.kernels.torch_backend); everything else is
elementwise, and correctly rounded wherever torch follows IEEE. That is tested before a device is used, with a small
model against the compiled code. Knows weights and lanes at one common position. Does not know coding, and no learning.
Needs the extra `torch`; imported only where a device is asked for.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from nacz.errors import UsageError
from nacz.kernels.attention import BLOCK, HEAD
from nacz.kernels.dispatch import chosen
from nacz.kernels.gemm import pack, unpack
from nacz.kernels.rope import rope_tables
from nacz.kernels.torch_backend import columns, engines, full_precision, scaled_product
from nacz.predictors.scratch import make_scratch
from nacz.predictors.transformer import (
    QUERY_UNIT,
    Group,
    Shape,
    forward,
    key_layer,
    make_cache,
    make_shape,
    make_trace,
    make_weights,
)
from nacz.weights.exact import Architecture, ExactModel, array_layout
from nacz.weights.store import LoadedModel, in_memory

__all__ = ["Engine", "TorchCache", "engine_for", "self_test"]

_F32, _F64, _I32, _I64 = torch.float32, torch.float64, torch.int32, torch.int64
_SMALLEST = 2.0**-60
_POWER = [float.fromhex(c) for c in ("0x1.ffffa8p-1", "-0x1.62d4dap-1", "0x1.ea2ba8p-3", "-0x1.b2c862p-5")]
_LAST_POWER = float.fromhex("0x1.bb7cd4p-8")
_LOG2_E = float.fromhex("0x1.715476p+0")
_ONE = 1 << 14  # of a score

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
T: TypeAlias = torch.Tensor


class TorchCache:
    """Keys and values of some lanes on a device: for each key head a ring of blocks, the first of them pinned."""

    def __init__(self, shape: Shape, lanes: int, device: torch.device) -> None:
        def ring(*last: int, dtype: torch.dtype) -> list[T]:
            return [torch.zeros((lanes, int(n), BLOCK, *last), dtype=dtype, device=device) for n in shape.reach]

        self.shape = shape
        self.key, self.value = ring(HEAD, dtype=torch.int8), ring(HEAD, dtype=torch.int8)
        self.key_step, self.value_step = ring(dtype=_F32), ring(dtype=_F32)


class Engine:
    """A model on a device. Raises UsageError for a device that does not compute as it must."""

    def __init__(self, model: ExactModel, device: str) -> None:
        try:
            self.device = torch.device(device)
            usable = engines(self.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"torch cannot use the device `{device}`: {' '.join(str(error).split())}") from None
        if not usable:
            raise UsageError(f"no exact product of torch works on the device `{device}`")
        self._kind = usable[0]
        arch, arrays = model.architecture, model.arrays
        self._embed = self._put(arrays["embed"].reshape(arch.vocab, arch.dim))
        self._embed_step = self._put(arrays["embed_step"])
        self._rope = self._put(arrays["rope"].reshape(2, -1, 2, HEAD // 2))
        self._layers = []
        for layer in range(arch.layers):
            own = {}
            for name, k in (("qkv", arch.dim), ("out", arch.dim), ("gate_up", arch.dim), ("down", arch.ffn)):
                steps = arrays[f"{name}_step"]
                n = steps.size // arch.layers
                weights = unpack(arrays[name][layer * n * k : (layer + 1) * n * k], n, k)
                own[name] = columns(self._kind, weights, steps[layer * n : (layer + 1) * n], self.device)
            self._layers.append(own)

    def _put(self, array: NDArray[Any]) -> T:
        return torch.from_numpy(np.array(array)).to(self.device)

    def make_cache(self, shape: Shape, lanes: int) -> TorchCache:
        """An empty cache."""
        return TorchCache(shape, lanes, self.device)

    def forward(self, cache: TorchCache, tokens: NDArray[np.int32], position: int) -> tuple[NDArray[Any], ...]:
        """Run the next tokens, int32 [lanes, n], of the cache's first lanes, all at `position`. Returns the normalised,
        quantised rows, lane after lane: uint8 [lanes * n, dim], int32[lanes * n], float32[lanes * n]; and the same of
        the key layer's input."""
        parts = []
        with torch.no_grad():
            done = 0
            while done < tokens.shape[1]:
                count = min(tokens.shape[1] - done, BLOCK - (position + done) % BLOCK)
                parts.append(self._block(cache, tokens[:, done : done + count], position + done))
                done += count
            rows = [torch.cat(piece, dim=1) for piece in zip(*parts, strict=True)]
        return tuple(row.flatten(0, 1).cpu().numpy() for row in rows)

    def _block(self, cache: TorchCache, tokens: NDArray[np.int32], position: int) -> list[T]:
        """The same for tokens of one block of the cache; rows as [lanes, n]."""
        shape, (lanes, n) = cache.shape, tokens.shape
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self.device).flatten()
        x = self._embed[ids].to(_F32) * self._embed_step[ids][:, None]
        at = torch.arange(position, position + n, device=self.device)
        near, far = self._angles(at), self._angles(at.clamp(max=shape.sink_reach))
        key = _normalised(x, shape.eps)
        for layer, own in enumerate(self._layers):
            rows = _normalised(x, shape.eps)
            if layer == key_layer(shape.layers):
                key = rows
            wide = self._product(own["qkv"], rows)
            mixed = self._attention(cache, layer, position, wide.view(lanes, n, -1, HEAD), near, far)
            x = x + self._product(own["out"], _quantised(mixed.reshape(lanes * n, -1)))
            wide = self._product(own["gate_up"], _normalised(x, shape.eps))
            x = x + self._product(own["down"], _quantised(_rotated(_gated(wide), shape.two, shape.three)))
        return [row.view(lanes, n, *row.shape[1:]) for row in (*_normalised(x, shape.eps), *key)]

    def _product(self, right: Any, rows: Rows) -> T:
        return scaled_product(self._kind, *rows, right)

    def _angles(self, position: T) -> tuple[T, T]:
        first, second = self._rope[0][position % 1024], self._rope[1][position // 1024]
        (c, s), (d, t) = first.unbind(1), second.unbind(1)
        return c * d - s * t, s * d + c * t

    def _attention(self, cache: TorchCache, layer: int, position: int, heads: T, near: Any, far: Any) -> T:
        """Remember the rows of [queries, keys, values] and attend: float32 [lanes, n, heads, 64]."""
        shape, (lanes, n) = cache.shape, heads.shape[:2]
        group = shape.heads // shape.kv_heads
        block, offset = position // BLOCK, position % BLOCK
        out = []
        for kv in range(shape.kv_heads):
            number = layer * shape.kv_heads + kv
            slots = int(shape.reach[number])
            visible = [0, *(1 + (b - 1) % (slots - 1) for b in range(max(1, block - (slots - 2)), block + 1))]
            here = (slice(lanes), visible[-1], slice(offset, offset + n))
            key, step = _rounded_head(_turned(heads[:, :, shape.heads + kv], *near))
            cache.key[number][here], cache.key_step[number][here] = key.to(torch.int8), step
            value, step = _rounded_head(heads[:, :, shape.heads + shape.kv_heads + kv])
            cache.value[number][here], cache.value_step[number][here] = value.to(torch.int8), step
            some = heads[:, :, kv * group : (kv + 1) * group]
            queries = [_rounded_head(_turned(some, *(angle[:, None] for angle in angles))) for angles in (near, far)]
            rings = (cache.key, cache.key_step, cache.value, cache.value_step)
            seen = [ring[number][:lanes, visible] for ring in rings]
            out.append(_attended(queries, seen, n, group, offset))
        return torch.cat(out, dim=2)


_kept: dict[tuple[bytes, str], Engine] = {}


def engine_for(model: LoadedModel, device: str) -> Engine:
    """Return the engine of a model on a device, kept for the next segment. Raises UsageError for a device whose bits
    are not those of the compiled code."""
    key = (model.weights_hash, device)
    if key not in _kept:
        engine = Engine(model, device)
        if not self_test(device):
            raise UsageError(f"the device `{device}` computes other bits than it must; it is not used")
        _kept.clear()  # one model is enough for a device's memory
        _kept[key] = engine
    return _kept[key]


def self_test(device: str) -> bool:
    """Whether a small model gives the bits of the compiled code on a device."""
    arch = Architecture(
        layers=2, dim=128, heads=2, kv_heads=1, ffn=192, vocab=64, context=1024, rope_base=10000.0, eps=1e-5
    )
    arrays: dict[str, NDArray[Any]] = {}
    for number, (name, (dtype, count)) in enumerate(array_layout(arch).items()):
        terms = (np.arange(count, dtype=np.int64) * 2654435761 + number * 40503) % 65521 % 4093
        if dtype == "<f4":
            arrays[name] = (terms + 500).astype(np.float32) / np.float32(900_000.0)
        else:
            arrays[name] = (terms % 255 - 127).astype(dtype)
    arrays["rope"] = rope_tables(arch.rope_base, HEAD // 2).reshape(-1)
    for name in ("qkv", "out", "gate_up", "down", "head"):
        k = arch.ffn if name == "down" else arch.dim
        rows = arrays[name].reshape(-1, k)
        arrays[f"{name}_sum"] = rows.sum(axis=1, dtype=np.int32)
        arrays[name] = pack(rows)
    model = in_memory(ExactModel(arch, arrays, b""))
    shape, tokens = make_shape(arch, 256), (np.arange(600) * 37 % 61).astype(np.int32)
    worker = make_scratch(shape, tokens.size)
    groups = Group(*(np.array([v], np.int64) for v in (0, 0, tokens.size, 0)))
    forward(
        chosen()[1], shape, make_weights(model), make_cache(shape, 1), worker, tokens, groups,
        make_trace(shape, shape.layers, 0),
    )  # fmt: skip
    engine = Engine(model, device)
    n = tokens.size * arch.dim
    expected = worker.a[:n], worker.zero, worker.step, worker.key[:n], worker.key_zero, worker.key_step
    found = engine.forward(engine.make_cache(shape, 1), tokens[None], 0)
    return all(np.array_equal(x.reshape(-1), y) for x, y in zip(found, expected, strict=True))


def _power_of_two(n: T) -> T:
    """2^n as float64, for int64 n."""
    return ((n + 1023) << 52).view(_F64)


def _divided(x: T, by: float) -> T:
    """x / by. A number in the place of the tensor would let torch multiply by its rounded inverse."""
    return x / torch.full_like(x, by)


def _half_power(f: T) -> T:
    y = torch.full_like(f, _LAST_POWER)
    for c in _POWER[::-1]:
        y = y * f
        y = y + c
    return y


def _exponent(x: T) -> T:
    return (x.view(_I32) >> 23).to(_I64)


def _quantised(x: T) -> Rows:
    low, high = x.amin(1).clamp(max=0.0), x.amax(1).clamp(min=0.0)
    span = high - low
    tiny = span < _SMALLEST
    inverse = torch.full_like(span, 255.0) / torch.where(tiny, torch.ones_like(span), span)
    zero = torch.round(-low * inverse)
    a = torch.round(x * inverse[:, None]).to(_I64) + zero.to(_I64)[:, None]
    a = torch.where(tiny[:, None], torch.zeros_like(a), a.clamp(0, 255))
    zero = torch.where(tiny, torch.zeros_like(zero), zero)
    return a.to(torch.uint8), zero.to(_I32), torch.where(tiny, torch.zeros_like(span), _divided(span, 255.0))


def _normalised(x: T, eps: float) -> Rows:
    a, zero, step = _quantised(x)
    top = x.abs().amax(1)
    tiny = top < _SMALLEST
    fixed = _power_of_two(20 - (_exponent(torch.where(tiny, torch.ones_like(top), top)) - 127))
    whole = torch.round(x * fixed.to(_F32)[:, None]).to(_I64)
    squares = (whole * whole).sum(1).to(_F64)
    mean = squares / (fixed * fixed * float(x.shape[1]))
    step = (step.to(_F64) / torch.sqrt(mean + eps)).to(_F32)
    zeros = torch.zeros_like
    a = torch.where(tiny[:, None], zeros(a), a)
    return a, torch.where(tiny, zeros(zero), zero), torch.where(tiny, zeros(step), step)


def _gated(wide: T) -> T:
    g, up = wide.chunk(2, dim=1)
    u = (g.abs() * _LOG2_E).clamp(max=60.0)
    whole = torch.trunc(u)
    e = _half_power(u - whole) * _power_of_two(-whole.to(_I64)).to(_F32)
    share = torch.where(g >= 0, torch.ones_like(e), e) / (e + 1.0)
    return (g * share) * up


def _rotated(h: T, two: int, three: int) -> T:
    m, f = h.shape
    rest = f // (two * three)
    span = 1
    while span < two:
        x = h.view(m, three, two // (2 * span), 2, span, rest)
        p, q = x[:, :, :, 0], x[:, :, :, 1]
        h = torch.stack([p + q, p - q], dim=3).view(m, f)
        span *= 2
    if three == 3:
        p, q, s = h.view(m, 3, f // 3).unbind(1)
        h = torch.stack([(p + (q + q)) + (s + s), ((p + p) + q) - (s + s), ((p + p) - (q + q)) + s], dim=1).view(m, f)
    return h


def _turned(x: T, cos: T, sin: T) -> T:
    first, second = x[..., : HEAD // 2], x[..., HEAD // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rounded_head(x: T) -> tuple[T, T]:
    top = x.abs().amax(-1)
    return torch.round(x * (torch.full_like(top, 127.0) / top.clamp(min=_SMALLEST))[..., None]), _divided(top, 127.0)


def _attended(queries: Any, seen: Any, n: int, group: int, offset: int) -> T:
    """Queries of n rows of one key head, against the pinned block and the others, over the blocks that are `seen`, the
    last of them their own: float32 [lanes, n, group, 64]."""
    key, key_step, value, value_step = seen
    lanes, blocks = key.shape[:2]
    (q, q_step), (q_sink, q_sink_step) = (
        (q.flatten(1, 2), (step * float(QUERY_UNIT)).flatten(1, 2)) for q, step in queries
    )
    pick = (torch.arange(blocks, device=key.device) == 0).view(1, blocks, 1, 1)
    query = torch.where(pick, q_sink[:, None], q[:, None])
    step = torch.where(pick[..., 0], q_sink_step[:, None], q_step[:, None])
    with full_precision():
        dots = query @ key.to(_F32).transpose(2, 3)  # [lanes, blocks, n * group, 128], integers below 2^21
    v = (dots * key_step[:, :, None]) * step[..., None]
    score = torch.trunc(v.clamp(-(2.0**23), 2.0**23)).to(_I64)
    row = torch.arange(n * group, device=key.device) // group
    ahead = torch.arange(BLOCK, device=key.device)[None] > offset + row[:, None]
    hidden = torch.zeros((blocks, *ahead.shape), dtype=torch.bool, device=key.device)
    hidden[-1] = ahead
    whole = (score.masked_fill(hidden, -(1 << 40)).amax(3) + (_ONE - 1)) >> 14
    d = ((whole << 14)[..., None] - score).clamp(min=0)
    f = (d % _ONE).to(_F32) * (2.0**-14)
    e = torch.trunc(_half_power(f) * (2.0**23)).to(_I64) >> (d >> 14).clamp(max=31)
    e = e.masked_fill(hidden, 0)
    w = e.to(_F32) * value_step[:, :, None]
    own = _exponent(w.amax(3)).clamp(min=16)
    p = torch.trunc(w * _power_of_two(134 - own).to(_F32)[..., None] + 0.5).clamp(max=255.0)
    with full_precision():
        sums = (p @ value.to(_F32)).to(_F64)  # integers below 2^23
    sums = sums * _power_of_two(whole + own - 134)[..., None]
    weights = e.sum(3).to(_F64) * _power_of_two(whole)
    result, total = sums[:, 0], weights[:, 0]
    for block in range(1, blocks):
        result, total = result + sums[:, block], total + weights[:, block]
    out: T = (result * (torch.ones_like(total) / total)[..., None]).to(_F32)
    return out.view(lanes, n, group, HEAD)
