"""Converted models: one model is one file, damage is noticed, and a model is found, made and kept by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import xxhash
from nacz.formats.records import ModelIdentity

from nacz import weights
from nacz.errors import ModelError, ModelMismatchError, ModelMissingError
from nacz.weights import fetch, pinned, store
from nacz.weights.exact import Architecture, ExactModel, array_layout

NAME = fetch.DEFAULT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no network."""
    monkeypatch.setenv("NACZ_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("NACZ_OFFLINE", "1")
    return tmp_path / "models"


@pytest.fixture
def converting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Converting the default model gives the tiny one; the list counts how often."""
    made: list[str] = []

    def convert(gguf: Any, tokenizer: bytes, progress: Any) -> ExactModel:
        made.append("converted")
        if progress is not None:
            progress(1, 1)
        return tiny.model()

    monkeypatch.setattr(store, "read_checkpoint", lambda path: path)
    monkeypatch.setattr(store, "adapted", lambda checkpoint, data: checkpoint)
    monkeypatch.setattr(store, "convert", convert)
    monkeypatch.setattr(store, "tokenizer_of", lambda checkpoint: tiny.tokenizer())
    monkeypatch.setattr(store.fetch, "ensure_gguf", lambda name, **kwargs: folder / "weights.gguf")
    monkeypatch.setattr(store.fetch, "verify_gguf", lambda name: "0" * 64)
    monkeypatch.setitem(store.PINNED, NAME, store.weights_hash_of(tiny.model()).hex())
    return made


def equal(found: store.LoadedModel, expected: ExactModel) -> None:
    assert found.architecture == expected.architecture and found.tokenizer == expected.tokenizer
    assert set(found.arrays) == set(expected.arrays)
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, expected.arrays[name])
        assert array.ctypes.data % 64 == 0 and not array.flags.writeable and array.dtype.isnative


def test_round_trip(tmp_path: Path) -> None:
    model = tiny.model()
    weights_hash = store.save(model, tmp_path / "a")
    loaded = store.load(tmp_path / "a")
    equal(loaded, model)
    assert loaded.weights_hash == weights_hash == store.weights_hash_of(model) == store.weights_hash_of(loaded)
    assert loaded.name == "" and loaded.path == tmp_path / "a"
    assert loaded.vocabulary.hash == loaded.tokenizer_hash.hex() == tiny.tokenizer().hash
    equal(store.in_memory(model), model)
    assert store.in_memory(model).weights_hash == weights_hash


def test_a_file_is_mapped_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "model.naczw"
    store.save(tiny.model(), path)
    model = store.load(path)
    assert store.load(path) is model
    store.save(tiny.model(seed=1), path)
    other = store.load(path)
    assert other is not model and other.weights_hash != model.weights_hash
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError):
        store.load(path)


def test_the_file_is_a_function_of_the_model(tmp_path: Path) -> None:
    model = tiny.model()
    turned = ExactModel(model.architecture, dict(reversed(model.arrays.items())), model.tokenizer)
    store.save(model, tmp_path / "a")
    store.save(turned, tmp_path / "b")
    store.save(store.load(tmp_path / "a"), tmp_path / "a")  # over the file that is mapped
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_hash_covers_weights_and_shape_but_not_the_tokenizer() -> None:
    model = tiny.model()
    known = store.weights_hash_of(model)
    assert store.weights_hash_of(ExactModel(model.architecture, model.arrays, b"other")) == known
    assert store.weights_hash_of(tiny.model(1)) != known
    other = Architecture(**{**model.architecture.as_dict(), "rope_base": 20000.0})
    assert store.weights_hash_of(ExactModel(other, model.arrays, model.tokenizer)) != known


def test_arrays_must_be_those_of_the_architecture(tmp_path: Path) -> None:
    model = tiny.model()
    for arrays in (
        {},
        {**model.arrays, "extra": np.zeros(1)},
        {**model.arrays, "embed": model.arrays["embed"][:-1]},
        {**model.arrays, "embed": model.arrays["embed"].astype(np.int32)},
    ):
        with pytest.raises(ModelError):
            store.save(ExactModel(model.architecture, arrays, model.tokenizer), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tiny.write(tmp_path)
    good = path.read_bytes()
    header = 24 + struct.unpack_from("<I", good, 12)[0]
    places = [*range(header), *range(header, len(good), 5003), len(good) - 1]
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(ModelError, match=path.name):
            store.load(path)
    for size in (0, 1, 23, 24, header - 1, header, header + 64, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ModelError, match=path.name):
            store.load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(ModelError):
        store.load(path)
    with pytest.raises(ModelError):
        store.load(tmp_path)
    with pytest.raises(ModelMissingError):
        store.load(tmp_path / "none")


@pytest.mark.parametrize("value", [np.inf, np.nan, -1.0, 17.0])
def test_steps_that_could_overflow_are_refused(tmp_path: Path, value: float) -> None:
    """Checksums say that a file is whole, not that its maker meant well."""
    model = tiny.model()
    step = model.arrays["down_step"].copy()
    step[5] = value
    store.save(ExactModel(model.architecture, {**model.arrays, "down_step": step}, model.tokenizer), tmp_path / "a")
    with pytest.raises(ModelError, match="down_step"):
        store.load(tmp_path / "a")


def test_hostile_sizes_are_refused(tmp_path: Path) -> None:
    """A header with right checksums and an impossible architecture."""
    good = bytearray(tiny.write(tmp_path).read_bytes())
    size = struct.unpack_from("<I", good, 12)[0]
    shape = 24 + struct.calcsize("<QQ32s32sQ")
    for field, value in ((0, 3), (1, 0), (1, 1 << 31), (5, 1 << 20), (6, 0)):
        bad = bytearray(good)
        struct.pack_into("<I", bad, shape + 4 * field, value)
        struct.pack_into("<Q", bad, 16, xxhash.xxh3_64_intdigest(bytes(bad[24 : 24 + size])))
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ModelError):
            store.load(tmp_path / "bad")


def test_a_tokenizer_for_another_model_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(ModelError):
        store.in_memory(ExactModel(model.architecture, model.arrays, b"nonsense")).vocabulary  # noqa: B018


def test_layout_matches_the_conversion() -> None:
    for _, (dtype, count) in array_layout(tiny.ARCHITECTURE).items():
        assert np.dtype(dtype).newbyteorder("=") in ("int8", "int16", "int32", "float32") and count > 0


def test_default_model_is_converted_once(folder: Path, converting: list[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    for _ in range(3):
        model = store.load_model(progress=lambda *moment: seen.append(moment))
        assert model.name == NAME and model.path == store.exact_path()
        equal(model, tiny.model())
    assert converting == ["converted"] and seen == [("convert", 1, 1)]
    assert store.load_model(NAME).weights_hash == model.weights_hash
    assert store.load_model(model.path).weights_hash == model.weights_hash
    assert [path.name for path in folder.iterdir()] == [f"{NAME}.1.naczw"]


def test_a_damaged_or_other_conversion_is_made_again(folder: Path, converting: list[str]) -> None:
    store.load_model()
    path = store.exact_path()
    path.write_bytes(path.read_bytes()[:-100])
    equal(store.load_model(), tiny.model())
    store.save(tiny.model(7), path)
    equal(store.load_model(), tiny.model())
    assert len(converting) == 3


def test_a_conversion_that_differs_is_refused(
    folder: Path, converting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store.PINNED, NAME, "12" * 32)
    with pytest.raises(ModelMismatchError, match="1212"):
        store.load_model()
    assert not folder.exists()


def test_without_a_writable_folder_the_model_lives_in_memory(
    folder: Path, converting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    model = store.load_model()
    assert model.path is None and model.name == NAME
    equal(model, tiny.model())


def test_stale_parts_are_swept(folder: Path, converting: list[str]) -> None:
    import os

    folder.mkdir()
    old, young = folder / f".x{store.SUFFIX}.1234.nacz-part", folder / f".y{store.SUFFIX}.1234.nacz-part"
    for part in (old, young):
        part.touch()
    os.utime(old, (0, 0))
    store.load_model()
    assert not old.exists() and young.exists()


def test_paths_and_unknown_names(folder: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path)
    assert store.load_model(str(path)).name == ""
    with pytest.raises(ModelMissingError, match=NAME):
        store.load_model("no-such-model")
    with pytest.raises(ModelError):
        store.load_model(tmp_path)
    (tmp_path / "text").write_text("neither")
    with pytest.raises(ModelError):
        store.load_model(tmp_path / "text")


def test_a_gguf_path_is_converted_once_per_content(folder: Path, converting: list[str], tmp_path: Path) -> None:
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF one")
    for _ in range(2):
        equal(store.load_model(gguf), tiny.model())
    assert len(converting) == 1
    gguf.write_bytes(b"GGUF two")
    store.load_model(gguf)
    assert len(converting) == 2 and len(list(folder.iterdir())) == 2


def test_missing_weights_say_what_to_do(folder: Path) -> None:
    with pytest.raises(ModelMissingError, match="nacz models pull"):
        store.load_model()
    with pytest.raises(ModelMissingError):
        weights.verify()


def test_calls_for_the_command_line(folder: Path, converting: list[str]) -> None:
    status, *_ = weights.list_models()
    assert status.name == NAME and status.exact is None and status.gguf is None
    assert weights.pull() == weights.path() == store.exact_path(NAME)
    status, *_ = weights.list_models()
    assert status.exact == weights.path(NAME)
    assert weights.verify()[weights.path()] == store.PINNED[NAME]
    for call in (weights.pull, weights.path, weights.verify):
        with pytest.raises(ModelError):
            call("no-such-model")
    data = bytearray(weights.path().read_bytes())
    data[-5000] ^= 1
    weights.path().write_bytes(data)
    with pytest.raises(ModelError):
        weights.verify()


@pytest.mark.weights
@pytest.mark.parametrize("name", [fetch.DEFAULT, fetch.UNCHANGED])
def test_the_real_conversion_is_pinned(name: str) -> None:
    assert store.conversion_hash(name) == store.PINNED[name]


@pytest.mark.weights
def test_archives_need_no_name_for_the_real_model() -> None:
    from nacz.predictors.transformer import CONTRACT

    model = store.load_model(NAME)
    identity = ModelIdentity.of("", model.weights_hash, model.tokenizer_hash, CONTRACT)
    assert pinned.DIGESTS[identity.digest.hex()] == NAME == model.name
