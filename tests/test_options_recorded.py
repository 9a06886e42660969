"""Every option either is in the archive or changes nothing, and no option can be added without saying which.

Run with `pytest tests/test_options_recorded.py`. Uses the order-0 test predictor, and the tiny model where options
belong to the language model.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import click
import order0
import pytest
import tiny
from golden_inputs import SAMPLE

import nacz
from nacz import cli, segment_coder
from nacz.codec import CodecOptions
from nacz.predictors.language_model import LanguageModelCoder, Params

TEXT = SAMPLE * 4

# What each option does to an archive. "recorded": a reader is told all that it needs. "nothing": equal bytes.
OPTIONS = {
    "level": "recorded",  # as predictor, window and lanes; it has no other meaning
    "model": "recorded",  # as the identity in the member header
    "window": "recorded",
    "lanes": "recorded",
    "ensemble": "recorded",  # as bits of its members
    "learn": "recorded",  # as layers, rate and rows
    "segment_size": "recorded",  # as the plain sizes of segments
    "offline": "nothing",
    "backend": "recorded",  # as the predictor; tests/test_float_model.py
    "ignore_fingerprint": "nothing",
}
# Flags that are no field of CodecOptions. "decoder": they say where to find things, or what to refuse.
FLAGS = {
    "files": "names", "output": "names", "to_stdout": "names", "suffix": "names", "force": "names", "keep": "names",
    "remove": "names", "file": "names", "name": "names", "span": "decoder", "max_output": "decoder",
    "memlimit": "decoder", "quiet": "talk", "verbose": "talk", "no_progress": "talk", "as_json": "talk",
    "threads": "nothing", "executor": "nothing", "verify": "nothing", "resume": "nothing", "keep_name": "recorded",
    "preset": "level", "do_decompress": "verb", "do_compress": "verb", "do_test": "verb", "do_list": "verb",
}  # fmt: skip
# Verbs that write no archive may have options of their own.
ENCODERS = {"compress", "[FLAGS]"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("model")))


@pytest.fixture
def _order0() -> Iterator[None]:
    with order0.installed():
        yield


@pytest.fixture
def only_the_language_model() -> Iterator[None]:
    """The byte model is better than the tiny model on all but a sample."""
    with order0.installed():
        segment_coder.register_predictor(segment_coder.BYTE_MODEL, segment_coder.StoredCoder)
        segment_coder.register_predictor(segment_coder.LANGUAGE_MODEL, LanguageModelCoder)
        yield


def test_no_option_is_forgotten() -> None:
    assert [field.name for field in dataclasses.fields(CodecOptions)] == list(OPTIONS)
    for name in ENCODERS:
        command = cli.cli.commands[name]
        assert isinstance(command, click.Command)
        unknown = {parameter.name for parameter in command.params} - set(OPTIONS) - set(FLAGS)
        assert not unknown, f"say here what {unknown} does to an archive"


def packed(**options: object) -> bytes:
    return nacz.compress(TEXT, options=CodecOptions(**options), threads=1)  # type: ignore[arg-type]


def params(archive: bytes) -> list[Params]:
    segments = nacz.archive_info(io.BytesIO(archive))[0].segments
    return [Params.from_bytes(segment.params, segment.plain_size) for segment in segments]


def test_options_of_the_language_model(model: str, tmp_path: Path, only_the_language_model: None) -> None:
    plain = packed(model=model)
    assert packed(model=model, offline=True) == plain
    assert nacz.compress(TEXT, options=CodecOptions(model=model), threads=3) == plain
    other = str(tiny.write(tmp_path, seed=1))
    read = CodecOptions(model=model)
    for archive, window, lanes, sizes in (
        (packed(model=model, window=256), 256, 1, 1),
        (packed(model=model, lanes=5), 2048, 5, 1),
        (packed(model=model, segment_size=2 * len(SAMPLE)), 2048, 1, 2),
        (packed(model=model, ensemble="none"), 2048, 1, 1),
        (packed(model=model, ensemble="ngram,match"), 2048, 1, 1),
        (packed(model=model, level=4), 512, 1, 1),
        (packed(model=model, level=9), 8192, 1, 1),
    ):
        assert {(p.window, p.lanes) for p in params(archive)} == {(window, lanes)} and len(params(archive)) == sizes
        # A reader with none of these options, or with other ones, gets the same bytes.
        for options in (read, CodecOptions(model=model, level=5, window=512, lanes=3, segment_size=50, offline=True),
                        CodecOptions(model=model, ensemble="bias")):
            assert nacz.decompress(archive, options, threads=1) == TEXT
    # Equal effects are equal archives: a level is nothing but what it chooses.
    assert packed(model=model, level=6) == packed(model=model, level=7) == packed(model=model, level=4, window=2048)
    assert nacz.archive_info(io.BytesIO(plain)) != nacz.archive_info(io.BytesIO(packed(model=other)))
    with pytest.raises(nacz.ModelMismatchError):
        nacz.decompress(plain, CodecOptions(model=other))


@pytest.mark.usefixtures("_order0")
def test_what_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    archives = []
    for i, flags in enumerate(([], ["-T3"], ["--verify"], ["--resume"], ["--offline"], ["-q"], ["-k"])):
        assert cli.main(["-1", *flags, str(path), "-o", str(tmp_path / str(i))]) == 0
        archives.append((tmp_path / str(i)).read_bytes())
    assert len(set(archives)) == 1
    assert cli.main(["-1", "-N", str(path), "-o", str(tmp_path / "named")]) == 0
    named = (tmp_path / "named").read_bytes()
    assert named != archives[0] and dict(nacz.archive_info(io.BytesIO(named))[0].header.extras)[2] == b"text"
    assert nacz.decompress(named) == TEXT
