"""The transformer on torch, held to the compiled one bit for bit; and workers with a device each.

Run with `pytest tests/test_torch_transformer.py`. On processors everywhere, on CUDA where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import order0
import pytest
import tiny
from nacz.kernels.dispatch import chosen
from numpy.typing import NDArray

import nacz
from nacz import CodecOptions, segment_coder
from nacz.errors import UsageError
from nacz.lane_encoding import encode_lanes
from nacz.lanes import Worker
from nacz.predictors.language_model import LanguageModelCoder
from nacz.predictors.reach import Near
from nacz.predictors.transformer import make_shape, make_trace, make_weights
from nacz.weights import store
from nacz.workers import gpus
from nacz.workers.crew import Crew

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
engines = pytest.importorskip("nacz.predictors.torch_transformer")

pytestmark = pytest.mark.slow
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
TEXT = b"It is a truth universally acknowledged, that a single man in possession of a good fortune " * 9


@pytest.fixture(scope="module")
def model() -> Any:
    return store.in_memory(tiny.model())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("near", [None, Near(0, bytes([3, 0]))])
def test_rows_do_not_depend_on_engine_or_grouping(model: Any, near: Near | None, device: str) -> None:
    shape, size = make_shape(model.architecture, 384, near), 700
    tokens = np.random.default_rng(0).integers(0, 320, (2, size)).astype(np.int32)
    engine = engines.Engine(model, device)
    cache, cuts = engine.make_cache(shape, 2), (0, 5, 300, 301, size)
    parts = [engine.forward(cache, tokens[:, a:b], a) for a, b in zip(cuts, cuts[1:], strict=False)]

    def of_lane(part: tuple[NDArray[Any], ...], i: int, lane: int) -> NDArray[Any]:
        return np.split(part[i], 2)[lane]

    worker = Worker(chosen()[1], shape, make_weights(model), make_trace(shape, shape.layers, 0), 128)
    for lane in range(2):
        own, found = worker.make_cache(1), []
        for at in range(0, size, 128):
            some = tokens[lane, at : at + 128]
            worker.forward(own, some, at, 0)
            s = worker.scratch
            found.append((s.a[: some.size * shape.dim].copy(), s.zero[: some.size].copy(), s.step[: some.size].copy()))
        for i in range(3):
            expected = np.concatenate([piece[i] for piece in found])
            assert np.array_equal(expected, np.concatenate([of_lane(part, i, lane).reshape(-1) for part in parts]))


@pytest.mark.parametrize("ensemble", ["none", "all"])
def test_archives(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ensemble: str) -> None:
    coder = LanguageModelCoder(CodecOptions(model=str(tiny.write(tmp_path))))
    options = CodecOptions(lanes=3, ensemble=ensemble, window=256)
    expected = coder.encode(TEXT, options=options, threads=2, progress=None)
    monkeypatch.setenv("NACZ_DEVICE", "cpu")
    assert coder.encode(TEXT, options=options, threads=2, progress=None) == expected
    assert coder.decode(*expected, len(TEXT), threads=2, progress=None) == TEXT


def test_an_engine_that_is_wrong_is_not_used(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.self_test("cpu")
    monkeypatch.setattr(engines, "_divided", lambda x, by: x * (1.0 / by))  # rounds twice, as it is tempting to
    assert not engines.self_test("cpu")
    engines._kept.clear()
    with pytest.raises(UsageError, match="other bits"):
        engines.engine_for(model, "cpu")


def test_devices_that_are_not_there(model: Any) -> None:
    with pytest.raises(UsageError, match="device"):
        engines.Engine(model, "cuda:77")
    with pytest.raises(UsageError, match="device"):
        engines.Engine(model, "sheep")


def test_as_many_workers_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NACZ_DEVICES", raising=False)
    free = [80 << 30, 9 << 30, 1 << 30]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 80 << 30))
    assert gpus.devices() == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    free[:] = [80 << 30] * 16
    assert len(gpus.devices()) == 64 and gpus.devices()[:16] == [f"cuda:{number}" for number in range(16)]
    for bad, cause in (([1 << 30], "4 GB"), ([], "sees none")):
        free[:] = bad
        with pytest.raises(UsageError, match=cause):
            Crew("gpus", 2)


@pytest.fixture
def only_the_language_model() -> Iterator[None]:
    with order0.installed():
        segment_coder.register_predictor(segment_coder.BYTE_MODEL, segment_coder.StoredCoder)
        segment_coder.register_predictor(segment_coder.LANGUAGE_MODEL, LanguageModelCoder)
        yield


def test_a_worker_for_each_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_the_language_model: None
) -> None:
    """Two workers on processors in the place of GPUs."""
    monkeypatch.setenv("NACZ_DEVICES", "cpu, cpu")
    options = CodecOptions(model=str(tiny.write(tmp_path)), segment_size=400, window=256)
    archive = nacz.compress(TEXT, options=options, executor="gpus")
    monkeypatch.delenv("NACZ_DEVICES")
    assert archive == nacz.compress(TEXT, options=options)
    monkeypatch.setenv("NACZ_DEVICES", "cpu, cpu")
    assert nacz.decompress(archive, CodecOptions(model=options.model), executor="gpus") == TEXT


def test_lanes_of_unequal_length(model: Any) -> None:
    shape, weights = make_shape(model.architecture, 256), make_weights(model)
    tokens = np.random.default_rng(1).integers(17, 250, 700).astype(np.int32)
    found = [
        encode_lanes(chosen()[1], shape, weights, 0, tokens, 4, 1, engine=engine)
        for engine in (None, engines.Engine(model, "cpu"))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
