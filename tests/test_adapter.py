"""Adapters: what is added to a checkpoint's weights, from the file's bytes, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

from nacz.errors import ModelError
from nacz.weights import fetch, store
from nacz.weights.adapter import MAGIC, adapted, packaged, parts
from nacz.weights.checkpoint import Checkpoint, read_checkpoint

RANK = 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    tensors = checkpoints.weights_of(checkpoints.CONFIG)
    return read_checkpoint(checkpoints.write_gguf(tmp_path / "a.gguf", checkpoints.CONFIG, tensors))


def numbers_of(c: Checkpoint) -> dict[str, Any]:
    """Random changes of all parts: (step, a, b) of a matrix, units of a gain."""
    draw, found = np.random.default_rng(3), {}
    for name, outputs, inputs in parts(c):
        if outputs:
            step = (draw.random(RANK) * 1e-5).astype("<f4")
            found[name] = step, *(draw.integers(-127, 128, (RANK, n), dtype="i1") for n in (inputs, outputs))
        else:
            found[name] = draw.integers(-3000, 3000, inputs, dtype="<i2")
    return found


def to_bytes(numbers: dict[str, Any]) -> bytes:
    pieces = [part for some in numbers.values() for part in (some if isinstance(some, tuple) else (some,))]
    return MAGIC + bytes([RANK]) + b"".join(piece.tobytes() for piece in pieces)


def test_every_part_is_changed_as_the_file_says(checkpoint: Checkpoint) -> None:
    numbers = numbers_of(checkpoint)
    changed = adapted(checkpoint, to_bytes(numbers))
    for name, outputs, inputs in parts(checkpoint):
        before = checkpoint.get(name, outputs, inputs) if outputs else checkpoint.get(name, inputs)
        after = changed.get(name, *before.shape)
        assert after.dtype == np.float32
        if outputs:
            step, a, b = numbers[name]
            for i, j in ((0, 0), (outputs - 1, inputs - 1), (outputs // 2, 1)):
                total = float(before[i, j])
                for r in range(RANK):
                    total += float(int(b[r, i]) * int(a[r, j])) * float(step[r])
                assert after[i, j] == np.float32(total)
            np.testing.assert_allclose(after - before, (b.T * step.astype(float)) @ a, atol=1e-6)
        else:
            np.testing.assert_array_equal(
                after, (before.astype(float) * (1 + numbers[name] / 16384)).astype(np.float32)
            )
    embedding = checkpoint.rows, checkpoint.dim
    np.testing.assert_array_equal(
        changed.get("token_embd.weight", *embedding), checkpoint.get("token_embd.weight", *embedding)
    )


def test_an_adapted_model_is_another_one_and_nothing_is_the_same_one(checkpoint: Checkpoint) -> None:
    numbers = numbers_of(checkpoint)
    nothing = {
        name: tuple(np.zeros_like(part) for part in some) if isinstance(some, tuple) else np.zeros_like(some)
        for name, some in numbers.items()
    }
    plain, other, same = (
        store.weights_hash_of(store.converted(c))
        for c in (checkpoint, adapted(checkpoint, to_bytes(numbers)), adapted(checkpoint, to_bytes(nothing)))
    )
    assert plain == same != other


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"x" + data[1:], lambda data: data[:-1], lambda data: data + b"\0",
     lambda data: data[: len(MAGIC)] + b"\x04" + data[len(MAGIC) + 1 :], lambda data: MAGIC + b"\0"],
    ids=["empty", "magic", "short", "long", "rank", "no rank"],
)  # fmt: skip
def test_damaged_files_are_refused(checkpoint: Checkpoint, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ModelError, match="adapter"):
        adapted(checkpoint, damage(to_bytes(numbers_of(checkpoint))))


def test_the_adapter_of_the_default_model_is_in_the_package() -> None:
    default, plain = fetch.source(), fetch.source(fetch.UNCHANGED)
    assert packaged(default.adapter).startswith(MAGIC) and not plain.adapter
    assert default.gguf_sha256 == plain.gguf_sha256
