"""What reading a part of an archive costs, with the real byte model: segments decoded, and processor time.

Run with `pytest tests/test_random_access.py`.
"""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Callable

import pytest

import nacz
from nacz import CodecOptions, NaczFile
from nacz.predictors.bytemodel import ByteModelCoder

SEGMENTS, SIZE = 10, 40_000


@pytest.fixture(scope="module")
def data() -> bytes:
    rng = random.Random(3)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(900)]
    return " ".join(rng.choices(words, weights=range(900, 0, -1), k=SEGMENTS * SIZE // 3)).encode()[: SEGMENTS * SIZE]


@pytest.fixture(scope="module")
def archive(data: bytes) -> bytes:
    packed = nacz.compress(data, options=CodecOptions(level=1, segment_size=SIZE))
    segments = nacz.archive_info(io.BytesIO(packed))[0].segments
    assert len(segments) == SEGMENTS and {segment.predictor for segment in segments} == {1}
    return packed


def read(archive: bytes, start: int, size: int = 1000) -> bytes:
    with NaczFile(io.BytesIO(archive)) as file:
        file.seek(start)
        return file.read(size)


@pytest.mark.parametrize(("start", "segments"), [(4 * SIZE + 20_000, 1), (5 * SIZE - 500, 2), (SEGMENTS * SIZE - 5, 1)])
def test_segments_decoded(
    data: bytes, archive: bytes, start: int, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = ByteModelCoder.decode

    def spy(self: ByteModelCoder, params: bytes, payload: bytes, plain_size: int, **more: object) -> bytes:
        decoded.append(plain_size)
        return decode(self, params, payload, plain_size, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ByteModelCoder, "decode", spy)
    assert read(archive, start) == data[start : start + 1000]
    assert decoded == [SIZE] * segments


def test_time_of_two_segments(data: bytes, archive: bytes) -> None:
    def seconds(work: Callable[[], bytes], wanted: bytes) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            assert work() == wanted
            times.append(time.process_time() - start)
        return statistics.median(times)

    middle = SEGMENTS * SIZE // 2 + 700
    part = seconds(lambda: read(archive, middle), data[middle : middle + 1000])
    whole = seconds(lambda: nacz.decompress(archive), data)
    assert part <= 2 * whole / SEGMENTS
