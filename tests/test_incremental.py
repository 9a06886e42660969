"""NaczCompressor and NaczDecompressor over any chunking; what a frame's headers say.

Run with `pytest tests/test_incremental.py`. Uses the order-0 test predictor.
"""

from __future__ import annotations

from collections.abc import Iterator

import order0
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nacz
from nacz import CodecOptions, NaczCompressor, NaczDecompressor

TEXT = b"To be, or not to be, that is the question. " * 30
SMALL = CodecOptions(level=1, segment_size=200)


@pytest.fixture(autouse=True)
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


@given(st.binary(max_size=900), st.integers(1, 400), st.integers(1, 300), st.integers(-1, 90), st.sampled_from([1, 6]))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chunking(data: bytes, step: int, back: int, most: int, level: int) -> None:
    data += TEXT[: len(data)]
    options = CodecOptions(level=level, segment_size=200)
    compressor = NaczCompressor(options=options)
    archive = b"".join(compressor.compress(data[i : i + step]) for i in range(0, len(data), step))
    archive += compressor.flush()
    assert archive == nacz.compress(data, options=options)
    assert nacz.get_frame_info(archive).plain_size == len(data)

    decompressor = NaczDecompressor()
    plain = b""
    for i in range(0, len(archive) + 5, back):
        if decompressor.eof:
            break
        piece = (archive + b"extra")[i : i + back]
        plain += decompressor.decompress(piece, most)
        while not decompressor.needs_input and not decompressor.eof and most != 0:
            out = decompressor.decompress(b"", most)
            assert most < 0 or len(out) <= most
            plain += out
        if most == 0 and not decompressor.eof:
            plain += decompressor.decompress(b"")
    assert decompressor.eof and plain == data
    assert b"extra".startswith(decompressor.unused_data) and not decompressor.needs_input
    with pytest.raises(EOFError):
        decompressor.decompress(b"")


def test_flushing_makes_everything_so_far_readable() -> None:
    compressor, decompressor = NaczCompressor(1), NaczDecompressor()
    for part in (TEXT[:100], TEXT[100:103], b"", TEXT[103:]):
        ready = compressor.compress(part, NaczCompressor.FLUSH_BLOCK)
        assert decompressor.decompress(ready) == part
    assert compressor.last_mode == NaczCompressor.FLUSH_BLOCK
    assert decompressor.decompress(compressor.flush()) == b"" and decompressor.eof


def test_members_follow_each_other() -> None:
    compressor = NaczCompressor(1)
    archive = compressor.compress(b"one", NaczCompressor.FLUSH_FRAME) + compressor.compress(b"two") + compressor.flush()
    assert archive == nacz.compress(b"one", 1) + nacz.compress(b"two", 1)
    decompressor = NaczDecompressor()
    assert decompressor.decompress(archive) == b"one"
    assert NaczDecompressor().decompress(decompressor.unused_data) == b"two"
    assert nacz.get_frame_info(bytearray(archive)).plain_size == 3


def test_limits_and_errors() -> None:
    archive = nacz.compress(TEXT, options=SMALL)
    with pytest.raises(nacz.LimitError):
        NaczDecompressor(max_output=len(TEXT) - 1).decompress(archive)
    with pytest.raises(nacz.LimitError):
        NaczDecompressor(memory_limit=1000).decompress(archive)
    for bad in (b"PK", archive[:4] + b"\7", archive[:20] + b"\0" + archive[21:], archive[:6] + b"\xff" * 20):
        with pytest.raises(nacz.CorruptDataError):
            decompressor = NaczDecompressor()
            decompressor.decompress(bad)
            decompressor.decompress(bytes(4000))
    cut = NaczDecompressor()
    assert TEXT.startswith(cut.decompress(archive[:-1])) and not cut.eof and cut.needs_input
    with pytest.raises(nacz.CorruptDataError):
        nacz.get_frame_info(archive[:30])
    for mode in (7, -1):
        with pytest.raises(ValueError):
            NaczCompressor(1).compress(b"", mode)
    with pytest.raises(ValueError):
        NaczCompressor(1).flush(NaczCompressor.CONTINUE)
