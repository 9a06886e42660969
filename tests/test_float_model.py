"""Models in floating point: any bytes through any vocabulary, fingerprints, the canary, and both libraries for real.

Run with `pytest tests/test_float_model.py`. A backend of tests serves most; transformers gets a tiny model made here,
where it is installed; llama.cpp is tested by scripts/test-llama.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import float_fakes
import numpy as np
import order0
import pytest
from cli_runner import Nacz
from hypothesis import given, settings
from hypothesis import strategies as st

import nacz
from nacz import CodecOptions
from nacz.backends.vocabulary import Vocabulary, bytes_of_pieces
from nacz.errors import (
    CorruptDataError,
    InternalError,
    ModelError,
    ModelMismatchError,
    ModelMissingError,
    NaczError,
    UnsupportedVersionError,
    UsageError,
)
from nacz.predictors import float_model
from nacz.predictors.float_params import FloatParams
from nacz.segment_coder import BYTE_MODEL, LLAMA, TRANSFORMERS, StoredCoder, register_predictor

TEXT = "the some and the some. the\nand some the eating, café!".encode() * 6
OPTIONS = CodecOptions(backend="llama", model="fake")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float_fakes.Fake], float_fakes.Fake]]:
    """Lets a fake stand for every backend; nothing else makes small text smaller."""

    def use(fake: float_fakes.Fake) -> float_fakes.Fake:
        monkeypatch.setattr(float_model, "open_backend", lambda *arguments: fake)
        return fake

    with order0.installed():
        register_predictor(BYTE_MODEL, StoredCoder, models=["fake"])
        use(float_fakes.Fake())
        yield use


# -- symbols ----------------------------------------------------------------------------------------------------------


def changing(text: str) -> list[int]:
    return float_fakes.Fake().tokenize(text.lower())


@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@settings(deadline=None)
def test_any_bytes_through_any_vocabulary(data: bytes) -> None:
    for tokenize in (float_fakes.Fake().tokenize, changing, lambda text: [], lambda text: [0, 99, -1]):
        vocabulary = Vocabulary(list(float_fakes.WORDS), tokenize)
        symbols = vocabulary.encode(data)
        assert b"".join(vocabulary.bytes_of(symbol) for symbol in symbols.tolist()) == data
        assert vocabulary.size % 64 == 0 and symbols.size <= len(data)


def test_tokens_are_used_where_they_are_right() -> None:
    vocabulary = Vocabulary(list(float_fakes.WORDS), float_fakes.Fake().tokenize)
    assert vocabulary.encode(b"the and the").tolist() == [5, 8, 6]  # the blank that was put before it is gone again
    assert vocabulary.encode(b"\xff the").tolist() == [len(float_fakes.WORDS) + 255, 6]
    for symbol in (0, vocabulary.size - 1):
        with pytest.raises(CorruptDataError):
            vocabulary.bytes_of(symbol)


def test_how_vocabularies_spell_bytes() -> None:
    assert bytes_of_pieces(["Ġthe", "ÃĤ", "Ċ", None, "日"], True) == [b" the", b"\xc3\x82", b"\n", b"", b""]
    assert bytes_of_pieces(["\u2581the", "<0x0A>", "日", None], False) == [b" the", b"\n", "日".encode(), b""]


# -- segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", ["all", "none", "ngram"])
@pytest.mark.parametrize("name, number", [("llama", LLAMA), ("transformers", TRANSFORMERS)])
def test_round_trip(backend: Any, name: str, number: int, ensemble: str) -> None:
    options = CodecOptions(backend=name, model="fake", ensemble=ensemble)
    coder = float_model.LlamaCoder(options) if number == LLAMA else float_model.TransformersCoder(options)
    written, payload = coder.encode(TEXT, options=options, threads=1, progress=None)
    assert coder.decode(written, payload, len(TEXT), threads=1, progress=None) == TEXT
    params = FloatParams.from_bytes(written, len(TEXT))
    assert (params.window, params.sinks, params.fingerprint) == (128, 4, "fake 1.0")
    assert params.members == {"all": 15, "none": 0, "ngram": 4}[ensemble]  # recall needs hidden states
    archive = nacz.compress(TEXT, options=CodecOptions(backend=name, model="fake"))
    assert nacz.archive_info(io.BytesIO(archive))[0].segments[0].predictor == number
    assert nacz.decompress(archive) == TEXT
    assert nacz.decompress(archive, CodecOptions(model="fake", ensemble="bias", window=64)) == TEXT


def test_several_segments_and_the_window(backend: Any) -> None:
    fake = backend(float_fakes.Fake())
    options = CodecOptions(backend="llama", model="fake", segment_size=200, window=32)
    archive = nacz.compress(TEXT, options=options)
    assert len(nacz.archive_info(io.BytesIO(archive))[0].segments) > 1
    assert nacz.decompress(archive) == TEXT
    assert (32, 4) in fake.windows
    with pytest.raises(UsageError, match="window"):
        nacz.compress(TEXT, options=CodecOptions(backend="llama", window=256))
    with pytest.raises(UsageError, match="learn"):
        nacz.compress(TEXT, options=CodecOptions(backend="llama", learn=3))


def test_each_segment_is_decoded_before_it_is_written(backend: Any) -> None:
    backend(float_fakes.Fake(lie=0.01))
    out = io.BytesIO()
    with pytest.raises((InternalError, CorruptDataError)):
        nacz.compress_stream(io.BytesIO(TEXT), out, CodecOptions(backend="llama", ignore_fingerprint=True))
    assert not out.getvalue()
    nacz.compress_stream(io.BytesIO(TEXT), out, OPTIONS, verify=False)
    assert out.getvalue()


# -- another machine --------------------------------------------------------------------------------------------------


def test_another_fingerprint_is_refused_unless_forced(backend: Any) -> None:
    archive = nacz.compress(TEXT, options=OPTIONS)
    backend(float_fakes.Fake("fake 2.0"))
    with pytest.raises(ModelMismatchError, match=r"`fake 1\.0`; here is `fake 2\.0`.*--ignore-fingerprint"):
        nacz.decompress(archive)
    assert nacz.decompress(archive, CodecOptions(ignore_fingerprint=True)) == TEXT


def test_the_canary(backend: Any) -> None:
    archive = nacz.compress(TEXT, options=OPTIONS)
    fake = backend(float_fakes.Fake())
    fake.head[0, 0] += np.float32(0.001)  # says that it is the same, and is not
    with pytest.raises(ModelMismatchError, match="other logits"):
        nacz.decompress(archive)
    with pytest.raises(CorruptDataError):  # the checksum has the last word
        nacz.decompress(archive, CodecOptions(ignore_fingerprint=True))


def test_other_weights_are_refused(backend: Any) -> None:
    archive = nacz.compress(TEXT, options=OPTIONS)
    backend(float_fakes.Fake(seed=1))
    with pytest.raises(ModelMismatchError, match="written with model"):
        nacz.decompress(archive)


def test_backends_stay_on_this_machine(backend: Any) -> None:
    archive = nacz.compress(TEXT, options=OPTIONS)
    for executor in ("threads", "dask://127.0.0.1:1"):
        with pytest.raises(UsageError, match="this machine"):
            nacz.compress(TEXT, options=OPTIONS, executor=executor)
        with pytest.raises(UsageError, match="this machine"):
            nacz.decompress(archive, executor=executor)
    assert nacz.compress(TEXT, options=OPTIONS, executor="auto") == archive


def test_hostile_parameters(backend: Any) -> None:
    good = FloatParams(128, 4, 3, 15, 7, "who")
    assert FloatParams.from_bytes(good.to_bytes(), 10) == good
    changes: list[dict[str, Any]] = [{"window": 8}, {"window": 1 << 21}, {"sinks": 64}, {"tokens": 0}, {"tokens": 11}]
    for bad in (good._replace(**change) for change in [*changes, {"members": 16}, {"fingerprint": "x" * 1025}]):
        with pytest.raises((CorruptDataError, UnsupportedVersionError)):
            FloatParams.from_bytes(bad.to_bytes(), 10)
    data = good.to_bytes()
    for size in range(len(data)):
        with pytest.raises(CorruptDataError):
            FloatParams.from_bytes(data[:size], 10)
    with pytest.raises(UnsupportedVersionError):
        FloatParams.from_bytes(b"\x01" + data[1:], 10)
    with pytest.raises(CorruptDataError):
        FloatParams.from_bytes(data[:-1] + b"\xff", 10)


def test_damage_is_an_error_and_not_a_crash(backend: Any) -> None:
    coder = float_model.LlamaCoder(CodecOptions())
    params, payload = coder.encode(TEXT, options=OPTIONS, threads=1, progress=None)
    assert coder.decode(params, payload, len(TEXT), threads=1, progress=None) == TEXT
    r = np.random.default_rng(0)
    for _ in range(30):
        bad = bytearray(payload)
        bad[r.integers(len(bad))] ^= 1 << int(r.integers(8))
        try:
            assert coder.decode(params, bytes(bad), len(TEXT), threads=1, progress=None) != TEXT
        except NaczError:
            pass


def test_progress_and_info(run: Nacz, backend: Any, tmp_path: Path) -> None:
    seen: list[nacz.Progress] = []
    archive = nacz.compress(TEXT, options=OPTIONS, progress=seen.append)
    assert seen[-1].done == len(TEXT) and seen[-1].tokens > 0
    (tmp_path / "x.nacz").write_bytes(archive)
    assert run("info", "x.nacz") == 0
    assert b"model of llama.cpp" in run.out and b"fingerprint fake 1.0" in run.out
    assert b"as long as another program takes" in run.out
    assert run("info", "--json", "x.nacz") == 0
    assert json.loads(run.out)[0]["decompress_seconds"] is None


# -- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, module", [("llama", "llama_cpp"), ("transformers", "transformers")])
def test_without_the_extra(run: Nacz, text: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run("text", "--backend", name, "--model", "x") == 1
    assert f"pip install 'nacz[{name}]'" in run.err and not Path("text.nacz").exists()


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="no such backend"):
        CodecOptions(backend="sheep")
    with pytest.raises(UsageError, match="needs a model"):
        CodecOptions(backend="llama", model="none")
    assert CodecOptions(backend="exact").predictor == CodecOptions().predictor


# -- transformers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model with random weights and a byte-level vocabulary, as transformers saves it."""
    transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
    torch = pytest.importorskip("torch", reason="needs the extra transformers")
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    library.train_from_iterator([TEXT.decode()], trainer)
    folder = tmp_path_factory.mktemp("models") / "Tiny Model"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<|end|>", eos_token="<|end|>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_transformers(folder: Path, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nacz.backends import open_backend

    monkeypatch.setattr(float_model, "open_backend", open_backend)
    options = CodecOptions(backend="transformers", model=str(folder), window=48)
    data = TEXT + bytes(range(256)) + "naïve <|end|> 日本".encode()
    archive = nacz.compress(data, options=options)
    member = nacz.archive_info(io.BytesIO(archive))[0]
    assert member.segments[0].predictor == TRANSFORMERS and member.models[0].name == "tiny-model"
    assert member.segments[0].payload_size < len(data)
    assert nacz.decompress(archive, CodecOptions(model=str(folder))) == data
    with pytest.raises(ModelMissingError, match="--model"):
        nacz.decompress(archive)
    monkeypatch.setenv("NACZ_BACKEND_THREADS", "2")
    with pytest.raises(ModelMismatchError, match="threads 2"):
        nacz.decompress(archive, CodecOptions(model=str(folder)))


@pytest.mark.slow
def test_the_window_of_transformers_keeps_its_sinks(folder: Path) -> None:
    import torch

    from nacz.backends import open_backend

    backend: Any = open_backend("transformers", str(folder), True)
    ids = backend.tokenize(TEXT.decode())[:70]
    stream = backend.start(32, 4)
    found = [stream.feed(token) for token in ids]
    # 32 are seen, then the older half of all but four is dropped: 18 stay, so again after 14 and 14 more.
    kept, expected = [], []
    for token in ids:
        if len(kept) == 32:
            kept = kept[:4] + kept[18:]
        kept.append(token)
        with torch.inference_mode():
            expected.append(backend.network(input_ids=torch.tensor([kept])).logits[0, -1].numpy())
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_models_that_cannot_be_had(folder: Path, run: Nacz, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for model, code in (("nobody/no-such-model", 4), ("empty", 4), ("file", 4)):
        assert run("text", "--backend", "transformers", "--model", model, "--offline") == code, run.err
        assert run.err.startswith(f"nacz: text: {model}") and run.err.count("\n") == 1
    assert run("text", "--backend", "transformers") == 1
    assert not Path("text.nacz").exists()


# -- llama.cpp --------------------------------------------------------------------------------------------------------


@pytest.mark.llama
@pytest.mark.weights
def test_llama() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; see scripts/test-llama")
    text = b"It was the best of times, it was the worst of times, it was the age of wisdom. " * 12
    data = text + bytes(range(256)) + "naïve <|im_end|> 日本".encode()
    with order0.installed():
        register_predictor(BYTE_MODEL, StoredCoder)
        archive = nacz.compress(data, options=CodecOptions(backend="llama", window=64))
        member = nacz.archive_info(io.BytesIO(archive))[0]
        segment = member.segments[0]
        assert segment.predictor == LLAMA and FloatParams.from_bytes(segment.params, len(data)).window == 64
        assert nacz.decompress(archive) == data


@pytest.mark.llama
@pytest.mark.weights
def test_the_window_of_llama_slides() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; see scripts/test-llama")
    from nacz.backends import open_backend

    backend: Any = open_backend("llama", None, False)
    ids = backend.tokenize("It was the best of times, it was the worst of times, it was the age of wisdom. " * 20)
    short = backend.start(256, 4)
    some = [short.feed(token) for token in ids]
    long = backend.start(2048, 4)
    whole = [long.feed(token) for token in ids]

    def bits(logits: list[Any]) -> float:
        """Mean of what the tokens from number 257 on cost."""
        rows = [row - np.log(np.exp(row - row.max()).sum()) - row.max() for row in logits[256:-1]]
        return float(-np.mean([row[token] for row, token in zip(rows, ids[257:], strict=True)]))

    assert np.array_equal(some[:200], whole[:200])  # the same until the window is full
    assert bits(some) < 1.5 * bits(whole) + 0.2  # and no collapse after that


@pytest.mark.llama
def test_files_that_llama_cannot_load(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; see scripts/test-llama")
    from nacz.backends import open_backend

    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(200))
    (tmp_path / "text.gguf").write_bytes(b"no model at all")
    for name, error in (("bad.gguf", ModelError), ("text.gguf", ModelError), ("none.gguf", ModelMissingError)):
        with pytest.raises(error, match=name):
            open_backend("llama", str(tmp_path / name), True)
