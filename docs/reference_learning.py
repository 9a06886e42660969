"""The method of docs/learning.md, slowly and readably: a network that learns while it decodes.

Imports nothing of nacz; needs numpy. docs/reference_decoder.py uses it. Rows of a block are handled together, as arrays
[rows, n]: no operation mixes rows except sums of integers, so one row at a time gives the same bits. Integer arrays are
int64, other numbers float32 unless said otherwise, operations in the order written.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

F = np.float32
TINY = F(2.0**-60)
B1, B2 = F(0.9), F(0.99)
BLOCK = 128  # positions of a block of keys and values
GRADIENT_BLOCKS = 16  # at most, that the gradient of attention looks at
SCORE_UNIT = F(1.4426950408889634 / 8.0 * 16384.0)
SCORE_UNDO = F(1.0 / (1.4426950408889634 * 16384.0))
COEFFICIENTS = ["0x1.bb7cd4p-8", "-0x1.b2c862p-5", "0x1.ea2ba8p-3", "-0x1.62d4dap-1", "0x1.ffffa8p-1"]

Rounded = tuple[np.ndarray, np.ndarray]  # integers [rows, n] and a step for each row [rows, 1]
Matrix = tuple[np.ndarray, np.ndarray]  # integers [outputs, inputs] and a step for each output

# -- pieces of the numeric contract, for many rows --------------------------------------------------------------------


def rint(x: np.ndarray) -> np.ndarray:
    return np.rint(x).astype(np.int64)


def half_power(f: np.ndarray) -> np.ndarray:
    """E(f)."""
    y = F(float.fromhex(COEFFICIENTS[0]))
    for c in COEFFICIENTS[1:]:
        y = y * f + F(float.fromhex(c))
    return y


def integer_exp2(distance: np.ndarray, bits: int) -> np.ndarray:
    """X(distance, bits)."""
    y = half_power((distance % (1 << bits)).astype(F) * F(2.0**-bits))
    return np.trunc(y * F(2.0**23)).astype(np.int64) >> np.minimum(distance >> bits, 31)


def largest(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(axis=1, keepdims=True)


def rows_to_bytes(x: np.ndarray) -> Rounded:
    """Quantise: integers whose zero point is taken off already."""
    low = np.minimum(F(0), x.min(axis=1, keepdims=True))
    high = np.maximum(F(0), x.max(axis=1, keepdims=True))
    span = high - low
    is_some = span >= TINY
    inverse = F(255) / np.where(is_some, span, F(1))
    zero = rint(-low * inverse)
    a = np.clip(rint(x * inverse) + zero, 0, 255) - zero
    return np.where(is_some, a, 0), np.where(is_some, span / F(255), F(0))


def signed_bytes(x: np.ndarray) -> Rounded:
    """As keys, values and queries are rounded."""
    top = largest(x)
    return rint(x * (F(127) / np.maximum(top, TINY))), top / F(127)


def exact_dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x . y for each row, float64 [rows, 1]. Both are rounded to 21 bits of their largest, the sum is of integers."""
    is_some = (largest(x) >= TINY) & (largest(y) >= TINY)
    scaled, scales = [], []
    for z in (x, y):
        exponent = np.where(is_some, largest(z), F(1)).view(np.int32) >> 23
        scales.append(np.ldexp(1.0, 20 - (exponent - 127)))
        scaled.append(rint(np.where(is_some, z, F(0)) * scales[-1].astype(F)))
    return (scaled[0] * scaled[1]).sum(axis=1, keepdims=True).astype(np.float64) / (scales[0] * scales[1])


def mean_square(x: np.ndarray, eps: float) -> np.ndarray:
    """mean(x^2) + eps for each row, float64."""
    return exact_dot(x, x) / np.float64(x.shape[1]) + eps


def normalised(x: np.ndarray, eps: float) -> Rounded:
    a, step = rows_to_bytes(x)
    is_some = largest(x) >= TINY
    return np.where(is_some, a, 0), np.where(is_some, step / np.sqrt(mean_square(x, eps)), 0.0).astype(F)


def product(matrix: Matrix, rows: Rounded) -> np.ndarray:
    (weights, row_step), (a, step) = matrix, rows
    return ((a @ weights.T).astype(F) * row_step) * step


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    a, b = x[:, :32], x[:, 32:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


def logistic(g: np.ndarray) -> np.ndarray:
    u = np.minimum(np.abs(g) * F(float.fromhex("0x1.715476p+0")), F(60))
    whole = np.trunc(u)
    e = np.ldexp(half_power(u - whole), -whole.astype(np.int32)).astype(F)
    return np.where(g >= 0, F(1), e) / (F(1) + e)


def mix(x: np.ndarray) -> np.ndarray:
    """The rotation of the hidden vector."""
    rows, n = x.shape
    two = n // 16 & -(n // 16)
    three = 3 if n // 16 // two % 3 == 0 else 1
    x, span = x.reshape(rows, three, two, -1).copy(), 1
    while span < two:
        for i in range(two):
            if i & span == 0:
                p, q = x[:, :, i].copy(), x[:, :, i + span].copy()
                x[:, :, i], x[:, :, i + span] = p + q, p - q
        span *= 2
    if three == 3:
        p, q, s = x[:, 0], x[:, 1], x[:, 2]
        x = np.stack([(p + (q + q)) + (s + s), ((p + p) + q) - (s + s), ((p + p) - (q + q)) + s], axis=1)
    return x.reshape(rows, n)


# -- gradients: a name that begins with d is the gradient in what the rest of the name says ---------------------------


def signed_terms(x: np.ndarray) -> Rounded:
    """Like signed_bytes, but a row that is next to nothing is nothing."""
    a, step = signed_bytes(x)
    is_some = largest(x) >= TINY
    return np.where(is_some, a, 0), np.where(is_some, step, F(0))


def plain_product(rows: Rounded, matrix: np.ndarray) -> np.ndarray:
    """Rounded rows times a matrix of integers [n, k] that has no steps: [rows, k]."""
    a, step = rows
    return (a @ matrix).astype(F) * step


def back_through(matrix: Matrix, dy: np.ndarray) -> np.ndarray:
    weights, row_step = matrix
    return plain_product(rows_to_bytes(dy * row_step), weights)


def back_through_norm(x: np.ndarray, dy: np.ndarray, eps: float) -> np.ndarray:
    square, n = mean_square(x, eps), np.float64(x.shape[1])
    inverse = 1.0 / np.sqrt(square)
    first, second = inverse.astype(F), ((exact_dot(x, dy) / n) * (inverse / square)).astype(F)
    return first * dy - second * x


def turned_back(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    a, b = x[:, :32], x[:, 32:]
    return np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=1)


def matrix_gradient(dy: np.ndarray, x: np.ndarray, factor: np.ndarray | None = None) -> np.ndarray:
    """[outputs, inputs] from all rows of a block. `factor`: 1 / rms of x where a norm lies between."""
    terms, step = signed_terms(x)
    if factor is not None:
        step = step * factor
    return plain_product(rows_to_bytes((dy * step).T), terms)


def back_from_token(head: Matrix, frequencies: np.ndarray, token: int, row: int) -> np.ndarray:
    """The gradient [dim] in a last normalised row, from the frequencies that a token was coded with. row: its number in
    the block."""
    weights, steps = head
    p = frequencies.astype(F) * F(1.0 / frequencies.sum())  # of a total of 2^24 or 2^28
    p[token] -= F(1)
    d_logits = p * steps
    top = np.abs(d_logits).max()
    place = (np.arange(len(steps)) + 40503 * row) * 0x9E3779B1 % (1 << 32)
    dither = ((place - (place >> 31 << 32)) >> 8).astype(F) * F(2.0**-24)
    v = rint(d_logits * (F(126) / np.maximum(top, TINY)) + dither)
    return (v @ weights).astype(F) * (top * F(1.0 / 126.0))


# -- the learner ------------------------------------------------------------------------------------------------------


def mixed(x: np.ndarray) -> np.ndarray:
    """Rows of [rows, n] mixed as the residual stream is mixed in the weights; twice gives them back."""
    n = x.shape[1]
    two, threes = n & -n, 0
    while threes < 2 and n % 3 ** (threes + 1) == 0:
        threes += 1
    y, span = x.reshape(len(x), 3**threes, two, -1).copy(), 1
    while span < two:
        pairs = y.reshape(len(x), 3**threes, two // (2 * span), 2, span, y.shape[3])
        a, b = pairs[:, :, :, 0].copy(), pairs[:, :, :, 1].copy()
        pairs[:, :, :, 0], pairs[:, :, :, 1] = a + b, a - b
        span *= 2
    for axis in range(threes):
        triples = y.reshape(len(x), 3**axis, 3, -1)
        a, b, c = (triples[:, :, i].copy() for i in range(3))
        triples[:, :, 0], triples[:, :, 1] = (a + F(2) * b) + F(2) * c, (F(2) * a + b) - F(2) * c
        triples[:, :, 2] = (F(2) * a - F(2) * b) + c
    return y.reshape(x.shape) * F(1.0 / (np.sqrt(np.float64(two)) * 3.0**threes))


def masters(q: np.ndarray, layer: int) -> np.ndarray:
    """float32 [outputs, inputs] that round to q. layer: the matrix's number in the whole model."""
    h = np.arange(layer * q.size, (layer + 1) * q.size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    u = (h >> np.uint64(40)).astype(F) * F(2.0**-24)
    return q.astype(F) + (u.reshape(q.shape) - F(0.5)) * F(0.98)


def column_units(q: np.ndarray, steps: np.ndarray) -> np.ndarray:
    total = np.zeros(q.shape[1])
    for row in mixed(q.astype(F) * steps[:, None]).astype(np.float64):
        total += row * row
    return (0.1 * np.sqrt(total / len(q))).astype(F)


class Adam:
    """Version 1: masters and moments of one matrix, float32 [outputs, inputs].

    steps: of the matrix's rows where Adam steps in the basis before the mixing, else None.
    """

    def __init__(self, q: np.ndarray, layer: int, steps: np.ndarray | None = None) -> None:
        self.steps = steps
        self.unit = None if steps is None else column_units(q, steps)
        self.master = masters(q, layer)
        self.first, self.second = np.zeros_like(self.master), np.zeros_like(self.master)

    def step(self, dy: np.ndarray, x: np.ndarray, factor: np.ndarray | None, number: int, rate: int) -> np.ndarray:
        """The matrix of integers after move `number` (from 1 on), from gradients dy in its outputs and its inputs x, of
        all rows. factor: 1 / rms of x where a norm lies between. rate: as recorded."""
        g = matrix_gradient(dy, x, factor)
        b1, b2 = power(B1, number), power(B2, number)
        c = F((rate / 1000.0) * float(np.sqrt(1.0 - b2)) / (1.0 - b1))
        g = g if self.steps is None else mixed(g)
        self.first = B1 * self.first + (F(1) - B1) * g
        self.second = B2 * self.second + (F(1) - B2) * (g * g)
        ratio = self.first / (np.sqrt(self.second) + TINY)
        if self.steps is None:
            moved = self.master - c * ratio
        else:
            moved = self.master - mixed((c * self.unit) * ratio) * (F(1) / self.steps)[:, None]
        self.master = np.minimum(np.maximum(moved, F(-127)), F(127))
        return rint(self.master)


class Scaled:
    """Version 2: masters of one matrix, float32 [outputs, inputs], and mean squares float32 of inputs (`first`) and of
    the gradient's rows (`second`). Arguments as those of Adam."""

    def __init__(self, q: np.ndarray, layer: int, steps: np.ndarray | None = None) -> None:
        self.steps = steps
        self.unit = np.ones(q.shape[1], F) if steps is None else column_units(q, steps)
        self.size = math.sqrt(math.fsum(float(u) * float(u) for u in self.unit))
        self.master = masters(q, layer)
        self.first, self.second = np.zeros(q.shape[1], F), np.zeros(len(q), F)

    def step(self, dy: np.ndarray, x: np.ndarray, factor: np.ndarray | None, number: int, rate: int) -> np.ndarray:
        started = F(1.0 - power(B2, number))
        x = x if factor is None else x * factor
        x = x if self.steps is None else mixed(x)
        self.first = B2 * self.first + (F(1) - B2) * added(x * x)
        x = x * (self.unit / (np.sqrt(self.first / started) + TINY))
        g = matrix_gradient(dy, x if self.steps is None else mixed(x))
        self.second = B2 * self.second + (F(1) - B2) * added((g * g).T)
        pace = F((rate / 10000.0) * self.size) / (np.sqrt(self.second / started) + TINY)
        pace = pace if self.steps is None else pace * (F(1) / self.steps)
        self.master = np.minimum(np.maximum(self.master - g * pace[:, None], F(-127)), F(127))
        return rint(self.master)


def power(base: np.float32, number: int) -> float:
    """base^number, multiplied one by one in float64."""
    result = 1.0
    for _ in range(number):
        result *= float(base)
    return result


def added(x: np.ndarray) -> np.ndarray:
    """Sum of the rows, one after the other."""
    total = np.zeros(x.shape[1], F)
    for row in x:
        total = total + row
    return total


class Learner:
    """The layers of a segment's own model, of which the last `count` learn.

    model: has layers (list of {name: Matrix}), head, heads, kv_heads, eps, rope; stays as it is. `layers` are those to
    predict with. reach: blocks that each key head of each layer sees. rate: as recorded.
    """

    def __init__(self, model: Any, window: int, reach: list[int], version: int, count: int, rate: int) -> None:
        self.model, self.window, self.reach, self.rate = model, window, reach, rate
        kind = Adam if version == 1 else Scaled
        self.layers = [dict(layer) for layer in model.layers]
        first = len(self.layers) - count
        self.weights = {
            (number, name): kind(q, number, steps if name in ("qkv", "gate_up") else None)
            for number in range(first, len(self.layers))
            for name, (q, steps) in self.layers[number].items()
        }
        self.numbers = range(first, len(self.layers))
        self.count = 0

    def learn(self, lanes: list[Any], position: int, d_normal: np.ndarray) -> None:
        """One step from a block of equally many rows of every lane.

        A lane has `trace`, for each row of the block (inputs of all layers and output of the last, results of the
        attention of all layers), and `seen`, for each (layer, kv head) a list of (key, step, value, step) of all its
        positions. position: of the first row; d_normal: gradients in the last normalised rows. Rows are counted lane by
        lane.
        """
        eps = self.model.eps
        self.count += 1
        rows = [row for lane in lanes for row in lane.trace]
        end = np.array([inputs[-1] for inputs, _ in rows])
        dx = np.zeros_like(end) + back_through_norm(end, d_normal, eps)
        for number in reversed(self.numbers):
            x = np.array([inputs[number] for inputs, _ in rows])
            heads = np.array([results[number] for _, results in rows])
            dx, gradients = self.back(number, lanes, position, x, heads, dx)
            for name, (dy, inputs, factor) in gradients.items():
                moved = self.weights[number, name].step(dy, inputs, factor, self.count, self.rate)
                self.layers[number][name] = moved, self.layers[number][name][1]

    def back(
        self, number: int, lanes: list[Any], position: int, x: np.ndarray, heads: np.ndarray, dx: np.ndarray
    ) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]]:
        """From the gradient in a layer's output to that in its input x; and for each matrix, gradients in its outputs,
        its inputs, and 1 / rms of these where a norm lies between. heads: of attention."""
        layer, eps = self.layers[number], self.model.eps
        # What the layer computed: wide, mid, gate_up and hidden are as when it predicted.
        wide = product(layer["qkv"], normalised(x, eps))
        mid = x + product(layer["out"], rows_to_bytes(heads))
        gate_up = product(layer["gate_up"], normalised(mid, eps))
        g, up = np.split(gate_up, 2, axis=1)
        s = logistic(g)
        hidden = mix((g * s) * up)
        # The feed-forward half.
        d_down, d_hidden = dx, mix(back_through(layer["down"], dx))
        d_gate = (d_hidden * up) * (s * (F(1) + g * (F(1) - s)))
        d_gate_up = np.concatenate([d_gate, d_hidden * (g * s)], axis=1)
        dx = dx + back_through_norm(mid, back_through(layer["gate_up"], d_gate_up), eps)
        # The attention half.
        d_out, d_heads = dx, back_through(layer["out"], dx)
        d_wide, n = np.zeros_like(wide), len(x) // len(lanes)
        for i, lane in enumerate(lanes):
            some = slice(i * n, (i + 1) * n)
            for kv in range(self.model.kv_heads):
                seen = lane.seen[number, kv]
                slots = self.reach[number * self.model.kv_heads + kv]
                self.back_attention(seen, kv, slots, position, wide[some], heads[some], d_heads[some], d_wide[some])
        dx = dx + back_through_norm(x, back_through(layer["qkv"], d_wide), eps)
        gradients = {
            "qkv": (d_wide, x, (1.0 / np.sqrt(mean_square(x, eps))).astype(F)),
            "out": (d_out, heads, None),
            "gate_up": (d_gate_up, mid, (1.0 / np.sqrt(mean_square(mid, eps))).astype(F)),
            "down": (d_down, hidden, None),
        }
        return dx, gradients

    def angles(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.model.rope[0, position % 1024], self.model.rope[1, position // 1024]
        (c, s), (d, t) = low.swapaxes(0, 1), high.swapaxes(0, 1)
        return c * d - s * t, s * d + c * t

    def back_attention(
        self, seen: list[Any], kv: int, slots: int, position: int, wide: np.ndarray, out: np.ndarray, d_out: np.ndarray,
        d_wide: np.ndarray,
    ) -> None:  # fmt: skip
        """One lane and kv head: fills the parts of d_wide [n, queries, keys, values] that belong to it."""
        n, group = len(wide), self.model.heads // self.model.kv_heads
        first, k_at, v_at = kv * group, self.model.heads + kv, self.model.heads + self.model.kv_heads + kv
        mine = slice(first * 64, (first + group) * 64)
        own = np.repeat(position + np.arange(n), group)  # position of each query; those of a position side by side
        queries, d_result = wide[:, mine].reshape(-1, 64), d_out[:, mine].reshape(-1, 64)
        near_angles, far_angles = self.angles(own), self.angles(np.minimum(own, self.window))
        near, near_step = signed_bytes(turned(queries, *near_angles))
        far, far_step = signed_bytes(turned(queries, *far_angles))
        near_step, far_step = near_step * SCORE_UNIT, far_step * SCORE_UNIT
        d, d_step = signed_bytes(d_result)
        inner = exact_dot(d_result, out[:, mine].reshape(-1, 64)).astype(F)
        # The newest blocks that the last row sees. What else a row has seen counts for nothing here.
        last = (position + n - 1) // BLOCK
        blocks = [0, *range(max(1, last - (min(slots, GRADIENT_BLOCKS) - 2)), last + 1)]
        cache = {b: self.block(seen, b) for b in blocks}
        is_seen = {b: b * BLOCK + np.arange(BLOCK) <= own[:, None] for b in blocks}
        scores = {}
        for b, (keys, key_step, _, _) in cache.items():
            q, q_step = (far, far_step) if b == 0 else (near, near_step)
            score = ((q @ keys.T).astype(F) * key_step) * q_step
            scores[b] = np.trunc(np.clip(score, F(-(2.0**23)), F(2.0**23))).astype(np.int64)
        lowest = -(1 << 30)
        top = np.max([np.where(is_seen[b], scores[b], lowest).max(axis=1, keepdims=True) for b in blocks], axis=0)
        e = {b: np.where(is_seen[b], integer_exp2(np.maximum(top - scores[b], 0), 14), 0) for b in blocks}
        inverse = (1.0 / sum(some.sum(axis=1, keepdims=True) for some in e.values())).astype(F)
        p = {b: e[b].astype(F) * inverse for b in blocks}
        ds, d_near, d_far = {}, np.zeros_like(queries), np.zeros_like(queries)
        for b, (keys, key_step, values, value_step) in cache.items():
            dp = ((d @ values.T).astype(F) * value_step) * d_step
            ds[b] = p[b] * (dp - inner)
            part = plain_product(rows_to_bytes(ds[b] * key_step), keys)
            d_near, d_far = (d_near, d_far + part) if b == 0 else (d_near + part, d_far)
        dq = turned_back(d_near, *near_angles) * F(0.125) + turned_back(d_far, *far_angles) * F(0.125)
        d_wide[:, mine] = dq.reshape(n, -1)
        # Keys and values of the rows themselves, where their blocks are still there; else their gradient stays zero.
        for b in sorted(set(blocks) & set(range(position // BLOCK, last + 1))):
            begin, end = max(position, b * BLOCK), min(position + n, (b + 1) * BLOCK)
            some, to = slice(begin - b * BLOCK, end - b * BLOCK), slice(begin - position, end - position)
            q, q_step = (far, far_step) if b == 0 else (near, near_step)
            dk = plain_product(rows_to_bytes((ds[b] * (q_step * SCORE_UNDO)).T), q)[some]
            dv = plain_product(rows_to_bytes((p[b] * d_step).T), d)[some]
            d_wide[to, k_at * 64 : (k_at + 1) * 64] = turned_back(dk, *self.angles(np.arange(begin, end)))
            d_wide[to, v_at * 64 : (v_at + 1) * 64] = dv

    @staticmethod
    def block(seen: list[Any], number: int) -> list[np.ndarray]:
        """Keys [128, 64], their steps, values, their steps; zeros for positions that are not there yet."""
        part = seen[number * BLOCK : (number + 1) * BLOCK]
        columns = [np.array(column) for column in zip(*part, strict=True)]
        return [np.pad(c, [(0, BLOCK - len(part))] + [(0, 0)] * (c.ndim - 1)) for c in columns]
