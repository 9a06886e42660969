"""Models that a user brings: reading checkpoints, importing and exporting, finding them by hash, and what is refused.

Run with `pytest tests/test_models.py`; those marked `weights` take the real GGUF.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from cli_runner import Nacz
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nacz
from nacz import weights
from nacz.errors import ModelError, ModelMissingError, NaczError, OutputExistsError, UsageError
from nacz.segment_coder import CodecOptions
from nacz.tokens import Tokenizer
from nacz.weights import fetch, store
from nacz.weights.checkpoint import read_checkpoint
from nacz.weights.conversion import tokenizer_of
from nacz.weights.exact import Architecture
from nacz.weights.general import GeneralArchitecture

CONFIG = checkpoints.CONFIG
NARROW = {**CONFIG, "head_dim": 48, "num_attention_heads": 4, "tie_word_embeddings": False}
TEXT = b"the and the other thing, \xe4\xb8\xad \xff\x00 <s> </s> <0x41> <unk>  \n\n\n the end \xe2\x96\x81 and"

SAME = b"the" * 600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for weights, and no network."""
    monkeypatch.setenv("NACZ_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("NACZ_OFFLINE", "1")
    return tmp_path / "models"


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["plain", "general"])
def test_gguf_and_safetensors_are_one_model(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = checkpoints.weights_of(config)
    one = store.converted(read_checkpoint(checkpoints.write_safetensors(tmp_path / "folder", config, tensors)))
    other = store.converted(read_checkpoint(checkpoints.write_gguf(tmp_path / "a.gguf", config, tensors)))
    assert isinstance(one.architecture, GeneralArchitecture) == (config is NARROW)
    assert store.weights_hash_of(one) == store.weights_hash_of(other) and one.tokenizer == other.tokenizer
    loaded = store.in_memory(one)
    store.save(one, tmp_path / "a.naczw")
    again = store.load(tmp_path / "a.naczw")
    assert again.architecture == one.architecture and again.weights_hash == loaded.weights_hash
    assert (again.weights_hash, again.tokenizer_hash) == store.hashes_of(tmp_path / "a.naczw")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_floats_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    tensors = checkpoints.weights_of(CONFIG)
    folder = checkpoints.write_safetensors(tmp_path, CONFIG, tensors, dtype)
    found = read_checkpoint(folder).read("output_norm.weight")
    expected = tensors["model.norm.weight"]
    if dtype == "F16":
        expected = expected.astype(np.float16).astype(np.float32)
    else:
        expected = (expected.view(np.uint32) >> 16 << 16).view(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_several_files_and_their_index(tmp_path: Path) -> None:
    tensors = checkpoints.weights_of(CONFIG)
    whole = checkpoints.write_safetensors(tmp_path / "whole", CONFIG, tensors)
    parts = checkpoints.write_safetensors(tmp_path / "parts", CONFIG, tensors)
    (parts / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in files.items():
        checkpoints.save_tensors(parts / file, {name: tensors[name] for name in some})
    index = {"weight_map": {name: file for file, some in files.items() for name in some}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    one, other = (store.converted(read_checkpoint(f)) for f in (whole, parts))
    assert store.weights_hash_of(one) == store.weights_hash_of(other)
    index["weight_map"][names[0]] = "../whole/model.safetensors"
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside of the folder"):
        read_checkpoint(parts)


def test_scaling_of_positions_is_in_both_kinds_of_file(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 4.0}
    config = {**CONFIG, "rope_scaling": scaling}
    tensors = checkpoints.weights_of(CONFIG)
    one = read_checkpoint(checkpoints.write_safetensors(tmp_path / "a", config, tensors))
    other = read_checkpoint(checkpoints.write_gguf(
        tmp_path / "a.gguf", CONFIG, tensors, llama__rope__scaling__type=(8, "linear"),
        llama__rope__scaling__factor=(12, 4.0),
    ))  # fmt: skip
    assert one.frequencies == other.frequencies
    assert float(one.frequencies[0]) == 0.25 and isinstance(store.converted(one).architecture, Architecture)


REFUSED_CONFIGS = {
    "architecture 'mamba'": {"model_type": "mamba"},
    "yarn scaling": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "activation 'relu'": {"hidden_act": "relu"},
    "a sliding window": {"model_type": "mistral", "sliding_window": 4096},
    "final_logit_softcapping": {"final_logit_softcapping": 30.0},
    "a size is out of range": {"hidden_size": 0},
    "a part is turned": {"partial_rotary_factor": 0.5},
    "base of positions": {"rope_theta": 0.5},
    "has shape": {"intermediate_size": 256},
    "is missing": {"num_hidden_layers": 3},
    "no use for tensor": {"num_hidden_layers": 1},
    "num_attention_heads": {"num_attention_heads": "many"},
}


@pytest.mark.parametrize("cause", REFUSED_CONFIGS)
def test_what_cannot_be_exact_is_refused(cause: str, folder: Path, tmp_path: Path) -> None:
    source = checkpoints.write_safetensors(tmp_path / "a", CONFIG, checkpoints.weights_of(CONFIG))
    (source / "config.json").write_text(json.dumps({**CONFIG, **REFUSED_CONFIGS[cause]}))
    with pytest.raises(ModelError, match=cause) as caught:
        weights.import_model(source)
    assert "\n" not in str(caught.value) and not folder.exists()


@pytest.mark.parametrize(("changes", "cause"), [
    ({"general__architecture": (8, "falcon")}, "architecture 'falcon'"),
    ({"llama__expert_count": (4, 8)}, "mixture of experts"),
    ({"llama__rope__dimension_count": (4, 32)}, "a part is turned"),
    ({"llama__block_count": None}, "llama.block_count"),
    ({"tokenizer__ggml__model": (8, "t5")}, "tokenizer 't5'"),
    ({"tokenizer__ggml__scores": None}, "scores"),
])  # fmt: skip
def test_gguf_files_that_are_refused(changes: dict[str, Any], cause: str, folder: Path, tmp_path: Path) -> None:
    source = checkpoints.write_gguf(tmp_path / "a.gguf", CONFIG, checkpoints.weights_of(CONFIG), **changes)
    with pytest.raises(ModelError, match=cause):
        weights.import_model(source)
    assert not folder.exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 3000), new=st.binary(min_size=1, max_size=9), cut=st.integers(0, 4000))
def test_damaged_safetensors_are_read_or_refused(at: int, new: bytes, cut: int, tmp_path: Path) -> None:
    source = checkpoints.write_safetensors(tmp_path / "a", CONFIG, {"model.embed_tokens.weight": np.ones((384, 128))})
    file = source / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes((raw[:at] + new + raw[at + len(new) :])[: len(raw) - cut])
    try:
        store.converted(read_checkpoint(source))
    except ModelError as err:
        assert "\n" not in str(err)


# -- vocabularies -----------------------------------------------------------------------------------------------------


PARTS = [b"the", b" the", b"<s>", b"<0x41>", b"\n\n", b"\xe2\x96\x81", b"\0", b"\xff"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "a.gguf"
    return tokenizer_of(read_checkpoint(checkpoints.write_gguf(path, CONFIG, checkpoints.weights_of(CONFIG))))


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(
    st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode()),
    st.lists(st.sampled_from(PARTS)).map(b"".join),
))  # fmt: skip
@example(data=TEXT)
@example(data=b"\0?")
def test_every_byte_string_is_a_list_of_pieces(data: bytes, vocabulary: Tokenizer) -> None:
    ids = vocabulary.encode(data)
    assert vocabulary.decode(ids) == data
    assert not set(ids.tolist()) & {0, 1, 2}  # nothing in the data is a control token


def test_pieces_are_merged_as_their_scores_say(vocabulary: Tokenizer) -> None:
    def of(data: bytes) -> list[bytes]:
        return [vocabulary.token_bytes(int(i)) for i in vocabulary.encode(data)]

    assert of(b" the") == [b" the"] and of(b"  ") == [b"  "] and of(b"\n\n") == [b"\n\n"]
    assert of("中ß".encode()) == ["中".encode(), b"\xc3", b"\x9f"]


# -- importing, exporting, decoding -----------------------------------------------------------------------------------


def options(model: Any) -> CodecOptions:
    return CodecOptions(level=4, model=str(model) if model is not None else None, ensemble="none", lanes=1)


@pytest.mark.parametrize("config", [CONFIG, {**NARROW, "tie_word_embeddings": True}], ids=["plain", "general"])
def test_archives_find_their_model_by_its_hash(config: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    source = checkpoints.write_gguf(tmp_path / "My Model.gguf", config, checkpoints.weights_of(config, 3))
    model = weights.import_model(source)
    assert model.name == "my-model" and model.licence == "mit" and model.path.parent == folder
    assert weights.import_model(source) == model and [m.name for m in weights.imported()] == ["my-model"]
    # With one table for both ends, a model of random weights expects the token that it has just seen.
    archive = nacz.compress(SAME, options=options("my-model"))
    assert len(archive) < 100
    assert nacz.decompress(archive) == SAME  # no name is given: found by its hash
    kept = weights.export("my-model", tmp_path / "kept.naczw")
    model.path.rename(folder / "another-name.naczw")
    assert nacz.decompress(archive) == SAME
    (folder / "another-name.naczw").unlink()
    with pytest.raises(ModelMissingError, match="nacz models import"):
        nacz.decompress(archive)
    assert nacz.decompress(archive, options(kept)) == SAME
    assert nacz.decompress(archive, options(source)) == SAME
    assert weights.import_model(kept, "back").identity == model.identity
    assert nacz.decompress(archive) == SAME


def test_names_are_checked_and_never_taken_twice(folder: Path, tmp_path: Path) -> None:
    first = checkpoints.write_gguf(tmp_path / "a.gguf", CONFIG, checkpoints.weights_of(CONFIG, 1))
    second = checkpoints.write_gguf(tmp_path / "b.gguf", CONFIG, checkpoints.weights_of(CONFIG, 2))
    before = weights.import_model(first, "mine")
    with pytest.raises(OutputExistsError, match="another model is called mine"):
        weights.import_model(second, "mine")
    for name in ("../up", "a/b", ".hidden", "Capital", "", "none", "llama-3.2", "x" * 65, fetch.DEFAULT):
        with pytest.raises(UsageError):
            weights.import_model(second, name)
    assert weights.imported() == (before,)
    with pytest.raises(OutputExistsError):
        weights.export("mine", first)


def test_damage_is_noticed_when_a_model_is_exported(folder: Path, tmp_path: Path) -> None:
    model = weights.import_model(checkpoints.write_gguf(tmp_path / "a.gguf", CONFIG, checkpoints.weights_of(CONFIG)))
    raw = bytearray(model.path.read_bytes())
    raw[-1] ^= 1
    model.path.write_bytes(raw)
    with pytest.raises(ModelError, match="damaged"):
        weights.export(model.name, tmp_path / "out.naczw")
    assert not (tmp_path / "out.naczw").exists()


def test_the_command_line(run: Nacz, folder: Path, tmp_path: Path) -> None:
    source = checkpoints.write_safetensors(tmp_path / "tiny-model", CONFIG, checkpoints.weights_of(CONFIG))
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\n---\n# Tiny\n")
    assert run("models", "import", str(source)) == 0 and run.out.startswith(b"tiny-model: identity ")
    assert run("models", "measure", "tiny-model") == 0 and b"bits per byte" in run.out
    for arguments in (["models"], ["models", "list"]):
        assert run(*arguments) == 0
        (line,) = [line for line in run.out.decode().splitlines() if line.startswith("tiny-model")]
        for words in ("apache-2.0", "en, fr", "KB/s", "imported"):
            assert words in line
    assert run("models", "path", "tiny-model") == 0 and run.out.decode().strip() == str(folder / "tiny-model.naczw")
    assert run("models", "verify", "tiny-model") == 0 and b"ok, sha256" in run.out
    assert run("models", "export", "tiny-model", "kept.naczw") == 0 and (tmp_path / "kept.naczw").is_file()
    assert run("models", "export", "tiny-model", "kept.naczw") == 1
    assert run("models", "export", "-f", "tiny-model", "kept.naczw") == 0
    assert run("models", "export", fetch.DEFAULT, "other.naczw") == 4
    assert run("models", "import", "no-such-file") == 4
    assert run("models", "import", str(source), "--name", "../x") == 1
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    before = sorted(folder.iterdir())
    assert run("models", "import", "bad.gguf") == 4 and run.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before and not (tmp_path / "other.naczw").exists()


def test_levels_that_learn_take_other_models_as_they_are(folder: Path, tmp_path: Path) -> None:
    source = checkpoints.write_gguf(tmp_path / "a.gguf", NARROW, checkpoints.weights_of(NARROW))
    model = weights.import_model(source)
    how = CodecOptions(level=9, model=model.name, ensemble="none")
    assert nacz.decompress(nacz.compress(SAME, options=how)) == SAME
    with pytest.raises(NaczError, match="cannot learn"):
        nacz.compress(TEXT, options=CodecOptions(level=6, model=model.name, learn=2))


# -- the real weights -------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_real_gguf_as_safetensors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantised to float32: the same model to the bit. To half floats: one that predicts alike, and decodes."""
    monkeypatch.delenv("NACZ_OFFLINE")
    monkeypatch.delenv("NACZ_MODEL_DIR")
    gguf, known = fetch.ensure_gguf(), store.load_model(fetch.UNCHANGED)
    monkeypatch.setenv("NACZ_MODEL_DIR", str(folder))
    here = read_checkpoint(gguf)
    names = {own: hub for hub, own in checkpoints.GGUF_NAMES.items()}
    tensors = {}
    for name in here.names:
        parts = name.split(".")
        stem = names[parts[-2]]
        tensors[(f"model.layers.{parts[1]}.{stem}" if parts[0] == "blk" else stem) + ".weight"] = here.read(name)
    config = {
        **CONFIG, "hidden_size": here.dim, "num_hidden_layers": here.layers, "num_attention_heads": here.heads,
        "num_key_value_heads": here.kv_heads, "intermediate_size": here.ffn, "vocab_size": here.rows,
        "rms_norm_eps": here.eps, "rope_theta": here.rope_base, "max_position_embeddings": here.context,
    }  # fmt: skip
    text = (Path(__file__).parent.parent / "README.md").read_bytes()[:1500]
    sizes = {}
    for dtype in ("F32", "F16"):
        folder_of = checkpoints.write_safetensors(tmp_path / dtype, config, tensors, dtype)
        (folder_of / "tokenizer.json").write_text(json.dumps(byte_level(here)))
        model = weights.import_model(folder_of, f"re-exported-{dtype.lower()}")
        assert (model.weights_hash == known.weights_hash.hex()) == (dtype == "F32")
        assert model.tokenizer_hash == known.tokenizer_hash.hex()
        archive = nacz.compress(text, options=options(model.name))
        sizes[dtype] = len(archive)
        assert nacz.decompress(archive, options(model.name)) == text
    assert abs(sizes["F32"] - sizes["F16"]) < 0.01 * sizes["F32"]


def byte_level(checkpoint: Any) -> dict[str, Any]:
    """tokenizer.json of the GGUF's vocabulary."""
    metadata = checkpoint.gguf.metadata
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True},
        ]},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens) if kinds[i] == 1},
                  "merges": metadata["tokenizer.ggml.merges"]},
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in enumerate(tokens) if kinds[i] != 1],
    }  # fmt: skip
