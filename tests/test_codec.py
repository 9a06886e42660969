"""The codec: round trips over sizes, cuts and buffers, limits, fallback, models, progress.

Run with `pytest tests/test_codec.py`. Uses the order-0 test predictor, no weights.
"""

from __future__ import annotations

import array
import io
import os
from collections.abc import Iterator

import numpy as np
import order0
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nacz
from nacz import CodecOptions, Progress, segment_coder
from nacz.cutting import Cutter
from nacz.errors import (
    CorruptDataError,
    LimitError,
    ModelMismatchError,
    ModelMissingError,
    UnsupportedVersionError,
    UsageError,
)

TEXT = b"It is a far, far better thing that I do, than I have ever done. " * 40


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


def info(archive: bytes) -> list[nacz.MemberInfo]:
    return list(nacz.archive_info(io.BytesIO(archive)))


@given(st.binary(max_size=400), st.sampled_from([1, 6]), st.sampled_from([None, 1, 7, 100]))
@example(b"", 1, None)
@example(b"\0" * 400, 6, 100)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(data: bytes, level: int, segment_size: int | None) -> None:
    archive = nacz.compress(data, level, CodecOptions(segment_size=segment_size))
    assert nacz.decompress(archive) == data
    members = info(archive)
    assert len(members) == 1 and members[0].plain_size == len(data)
    assert members[0].archive_size == len(archive)


@given(st.integers(1, 3000), st.integers(1, 700), st.integers(1, 900))
@settings(deadline=None)
def test_segments_are_balanced_and_do_not_depend_on_how_bytes_arrive(n: int, size: int, chunk: int) -> None:
    data = bytes(i % 251 for i in range(n))

    def cut(step: int) -> list[tuple[bytes, bool]]:
        cutter = Cutter(size)
        found = [part for at in range(0, n, step) for part in cutter.feed(data[at : at + step])]
        return found + list(cutter.rest())

    whole = cut(n)
    assert cut(chunk) == whole
    parts = [part for part, _ in whole]
    assert b"".join(parts) == data
    assert all(len(part) == size for part in parts[:-1])
    assert len(parts[-1]) <= size + size // 2
    if len(parts) > 1:
        assert len(parts[-1]) > size // 2
    assert [only for _, only in whole] == [len(parts) == 1] * len(parts)


@pytest.mark.parametrize(
    "buffer",
    [
        TEXT,
        bytearray(TEXT),
        memoryview(TEXT),
        memoryview(TEXT)[::2],
        array.array("H", range(500)),
        np.arange(300, dtype=np.float32).reshape(3, 100),
        np.arange(300)[::3],
        np.zeros((0, 4)),
    ],
    ids=lambda b: type(b).__name__,
)
def test_any_buffer(buffer: object) -> None:
    plain = memoryview(buffer).tobytes()  # type: ignore[arg-type]
    archive = nacz.compress(buffer, 1)  # type: ignore[arg-type]
    assert archive == nacz.compress(plain, 1)
    assert nacz.decompress(bytearray(archive)) == plain


def test_no_text() -> None:
    with pytest.raises(TypeError):
        nacz.compress("text")  # type: ignore[arg-type]


def test_what_cannot_be_compressed_is_stored() -> None:
    data = os.urandom(5000)
    archive = nacz.compress(data, 1)
    assert len(archive) <= len(data) + 64
    assert [s.predictor for s in info(archive)[0].segments] == [segment_coder.STORED]
    # With the language model: one stored segment needs no model to be read again.
    archive = nacz.compress(data, 6)
    assert info(archive)[0].models == ()
    assert len(archive) <= len(data) + 64


def test_segments_choose_for_themselves() -> None:
    data = TEXT[:1000] + os.urandom(1000) + TEXT[:1000]
    archive = nacz.compress(data, options=CodecOptions(level=6, segment_size=1000))
    members = info(archive)
    assert [s.predictor for s in members[0].segments] == [2, 0, 2]
    assert [s.model for s in members[0].segments] == [1, 0, 1]
    assert members[0].models == (order0.IDENTITY,)
    assert nacz.decompress(archive) == data


def test_the_archive_does_not_depend_on_threads() -> None:
    first = nacz.compress(TEXT, 1, threads=1)
    assert first == nacz.compress(TEXT, 1, threads=7) == nacz.compress(TEXT, 1)
    assert nacz.decompress(first, threads=1) == nacz.decompress(first, threads=5)


def test_max_output() -> None:
    archive = nacz.compress(TEXT, 1, CodecOptions(segment_size=500))
    assert nacz.decompress(archive, max_output=len(TEXT)) == TEXT
    for limit in (0, 1, 499, len(TEXT) - 1):
        out = io.BytesIO()
        with pytest.raises(LimitError):
            nacz.decompress_stream(io.BytesIO(archive), out, max_output=limit)
        assert len(out.getvalue()) <= limit


@pytest.mark.parametrize(
    "arguments",
    [{"level": 0}, {"level": 10}, {"window": 0}, {"lanes": -1}, {"segment_size": 0}],
    ids=str,
)
def test_bad_options(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        CodecOptions(**arguments)  # type: ignore[arg-type]


def test_bad_segment_size_and_threads() -> None:
    with pytest.raises(UsageError):
        nacz.compress(TEXT, 1, CodecOptions(segment_size=1 << 40))
    with pytest.raises(UsageError):
        nacz.compress(TEXT, 1, threads=-1)


# Models


def test_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = nacz.compress(TEXT, 6)
    other = segment_coder.ModelIdentity("order0-test", b"ord1")
    monkeypatch.setattr(order0.Order0ModelCoder, "identity", other)
    with pytest.raises(ModelMismatchError, match=other.digest.hex()):
        nacz.decompress(archive)
    renamed = segment_coder.ModelIdentity("", b"ord0")
    monkeypatch.setattr(order0.Order0ModelCoder, "identity", renamed)
    assert nacz.decompress(archive) == TEXT


def test_a_missing_model(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = nacz.compress(TEXT, 6)
    monkeypatch.setattr(order0.Order0ModelCoder, "missing", True)
    with pytest.raises(ModelMissingError):
        nacz.decompress(archive)
    with pytest.raises(ModelMissingError):
        nacz.compress(TEXT, 6)
    assert info(archive)[0].models == (order0.IDENTITY,)
    assert nacz.decompress(nacz.compress(b"", 6)) == b""


def test_the_model_named_in_the_archive_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = order0.Order0ModelCoder.__init__

    def spy(self: order0.Order0ModelCoder, options: CodecOptions) -> None:
        asked.append(options.model)
        original(self, options)

    monkeypatch.setattr(order0.Order0ModelCoder, "__init__", spy)
    archive = nacz.compress(TEXT, 6)
    nacz.decompress(archive)
    nacz.decompress(archive, CodecOptions(model="none"))
    nacz.decompress(archive, CodecOptions(model="my/own.gguf"))
    assert asked == [None, "order0-test", "order0-test", "my/own.gguf"]


def test_an_archive_cannot_choose_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = segment_coder.ModelIdentity("weights.gguf", b"ord0")
    monkeypatch.setattr(order0.Order0ModelCoder, "identity", stranger)
    archive = nacz.compress(TEXT, 6)
    with pytest.raises(ModelMissingError, match="weights.gguf"):
        nacz.decompress(archive)
    assert nacz.decompress(archive, CodecOptions(model="weights.gguf")) == TEXT


def test_making_a_model_ready_is_reported() -> None:
    seen: list[Progress] = []
    archive = nacz.compress(TEXT, 6, progress=seen.append)
    assert seen[0].phase == "try", "the byte model has its say before weights are wanted"
    told = [moment for moment in seen if moment.phase != "try"]
    assert told[0] == Progress("fetch", 1, 2, 0, 0) and told[1].phase == "compress"
    seen.clear()
    nacz.decompress(archive, progress=seen.append)
    assert seen[0].phase == "fetch" and seen[1].phase == "decompress"


def test_a_model_where_none_belongs() -> None:
    archive = nacz.compress(TEXT, 6)
    segment_coder.register_predictor(segment_coder.LANGUAGE_MODEL, order0.Order0Coder)
    with pytest.raises(CorruptDataError, match="no model"):
        nacz.decompress(archive)
    archive = nacz.compress(TEXT, 1)
    segment_coder.register_predictor(segment_coder.BYTE_MODEL, order0.Order0ModelCoder)
    with pytest.raises(CorruptDataError, match="must name a model"):
        nacz.decompress(archive)


def test_predictors_are_found_by_name_and_may_be_absent() -> None:
    archive = nacz.compress(TEXT, 1)
    segment_coder.register_predictor(segment_coder.BYTE_MODEL, "order0:Order0Coder")
    assert nacz.decompress(archive) == TEXT
    segment_coder.register_predictor(segment_coder.BYTE_MODEL, "nacz.no_such_module:Coder")
    with pytest.raises(UsageError, match="no byte model"):
        nacz.decompress(archive)
    segment_coder.register_predictor(segment_coder.BYTE_MODEL, None)
    with pytest.raises(UnsupportedVersionError):
        nacz.decompress(archive)


def test_hostile_parameters_reach_only_the_predictor() -> None:
    coder = segment_coder.StoredCoder(CodecOptions())
    for params, payload in ((b"x", b"hello"), (b"", b"hell")):
        with pytest.raises(CorruptDataError):
            coder.decode(params, payload, 5, threads=1, progress=None)


# Progress


def test_progress_rises_and_ends_at_the_end() -> None:
    seen: list[Progress] = []
    archive = nacz.compress(TEXT, 1, CodecOptions(segment_size=300), progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert [p.coded for p in seen] == sorted(p.coded for p in seen)
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)
    assert seen[-1].done == seen[-1].total == seen[-1].tokens == len(TEXT)
    assert 0 < len(archive) - seen[-1].coded < 60
    assert all(p.phase == "compress" for p in seen)
    seen.clear()
    nacz.decompress(archive, progress=seen.append)
    assert seen[-1].done == len(TEXT) and seen[-1].total is None and seen[-1].phase == "decompress"
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    last = seen[-1].bits_per_byte
    assert last is not None and abs(last - 8 * len(archive) / len(TEXT)) < 0.2


def test_a_callback_may_cancel() -> None:
    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done > 100:
            raise Enough

    with pytest.raises(Enough):
        nacz.compress(TEXT, 1, progress=stop)
    archive = nacz.compress(TEXT, 1)
    with pytest.raises(Enough):
        nacz.decompress(archive, progress=stop)


def test_memory_follows_the_segment_not_the_file() -> None:
    """A pipe of 64 MB through stored segments of 64 KB."""
    import tracemalloc

    class Source:
        left = 64 << 20

        def read(self, size: int) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return os.urandom(size)

    class Sink:
        def write(self, data: bytes) -> None:
            pass

    class Store(segment_coder.StoredCoder):
        predictor_id = segment_coder.BYTE_MODEL

    segment_coder.register_predictor(segment_coder.BYTE_MODEL, Store)
    tracemalloc.start()
    totals = nacz.compress_stream(Source(), Sink(), CodecOptions(level=1, segment_size=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert totals.plain_size == 64 << 20
    assert peak < 4 << 20
