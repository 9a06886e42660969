"""How each compressor is called, which settings it has, and whether it is here.

A coder is a name with a setting ("zstd:19"). A Python module is preferred, because then its time can be taken without
the start of a process; else a program on PATH. Knows compressors; does not know what is measured.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nacz.errors import UsageError
from nacz.predictors.members import MEMBERS

__all__ = ["PEERS", "Coder", "Missing", "nacz_coder", "parse_peers", "words"]

Function = Callable[[bytes], bytes]


class Missing(Exception):
    """The coder is not on this machine; the message says what would bring it."""


@dataclass(frozen=True, slots=True)
class Coder:
    """A compressor with its setting. `options` are those of nacz.CodecOptions beyond the level, as JSON has them."""

    name: str
    setting: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} -{self.setting}" + (f" {words(self.options)}" if self.options else "")

    def functions(self, threads: int) -> tuple[Function, Function]:
        """(compress, decompress), both ready to be called. Raises Missing."""
        if self.name == "nacz":
            return _nacz(int(self.setting), threads, self.options)
        return PEERS[self.name].make(self.setting)

    def version(self) -> str:
        """What is run, for the record. Raises Missing."""
        if self.name == "nacz":
            from nacz._version import __version__

            return __version__
        return PEERS[self.name].version()


@dataclass(frozen=True, slots=True)
class Peer:
    """Another compressor: its default setting, the settings that it takes, how it is called, and its version."""

    default: str
    settings: tuple[str, ...]
    make: Callable[[str], tuple[Function, Function]]
    version: Callable[[], str]


def words(options: dict[str, Any]) -> str:
    """What a person calls options beyond the level: which predictors there are, and whether the network learns."""
    if set(options) - {"ensemble", "learn"}:
        return " ".join(f"{key}={value}" for key, value in options.items())
    names = [name for name in options.get("ensemble", ",".join(MEMBERS)).split(",") if name in MEMBERS]
    if "learn" in options:
        return "without learning" if names else "without either"
    if not names:
        return "without ensemble"
    if len(names) == 1:
        return f"only {names[0]}"
    return "without " + ", ".join(name for name in MEMBERS if name not in names)


def nacz_coder(level: int, options: dict[str, Any] | None = None) -> Coder:
    """nacz at a level, perhaps with other options."""
    return Coder("nacz", str(level), options or {})


def parse_peers(text: str) -> list[Coder]:
    """Read "gzip,zstd:3,zstd:19"; "all" and "none" are what they say. Raises UsageError."""
    if text == "none":
        return []
    coders = []
    for word in PEERS if text == "all" else text.split(","):
        name, _, setting = word.strip().partition(":")
        if name not in PEERS:
            raise UsageError(f"no peer is called `{name}`; known: {', '.join(PEERS)}, all, none")
        peer = PEERS[name]
        setting = setting or peer.default
        if setting not in peer.settings:
            raise UsageError(f"{name} has no setting `{setting}`; it has {', '.join(peer.settings)}")
        coders.append(Coder(name, setting))
    return coders


def _nacz(level: int, threads: int, options: dict[str, Any]) -> tuple[Function, Function]:
    import nacz

    chosen = nacz.CodecOptions(level=level, **options)
    return (
        lambda data: nacz.compress(data, options=chosen, threads=threads),
        lambda data: nacz.decompress(data, threads=threads),
    )


def _gzip(setting: str) -> tuple[Function, Function]:
    import gzip

    return (lambda data: gzip.compress(data, int(setting), mtime=0)), gzip.decompress


def _bzip2(setting: str) -> tuple[Function, Function]:
    import bz2

    return (lambda data: bz2.compress(data, int(setting))), bz2.decompress


def _xz(setting: str) -> tuple[Function, Function]:
    import lzma

    preset = int(setting.rstrip("e")) | (lzma.PRESET_EXTREME if setting.endswith("e") else 0)
    return (lambda data: lzma.compress(data, preset=preset)), lzma.decompress


def _zstd(setting: str) -> tuple[Function, Function]:
    if _has("zstandard"):
        import zstandard

        one = zstandard.ZstdCompressor(level=int(setting), write_checksum=True)
        return (
            lambda data: bytes(one.compress(data)),
            lambda data: bytes(zstandard.decompress(data)),
        )
    ultra = ["--ultra"] if int(setting) > 19 else []
    return _filter(["zstd", "-q", "-c", *ultra, f"-{setting}"]), _filter(["zstd", "-q", "-c", "-d"])


def _brotli(setting: str) -> tuple[Function, Function]:
    if _has("brotli"):
        import brotli

        return (
            lambda data: bytes(brotli.compress(data, quality=int(setting), lgwin=24)),
            lambda data: bytes(brotli.decompress(data)),
        )
    return _filter(["brotli", "-c", "-q", setting, "-w", "24"]), _filter(["brotli", "-c", "-d"])


_PPMD_MEMORY = 256 << 20
_PACKAGE = "needs the Python package {} (pip install 'nacz[bench]')"


def _ppmd(setting: str) -> tuple[Function, Function]:
    if not _has("pyppmd"):
        raise Missing(_PACKAGE.format("pyppmd"))
    import pyppmd

    order = int(setting)

    def compress(data: bytes) -> bytes:
        encoder = pyppmd.Ppmd7Encoder(order, _PPMD_MEMORY)
        return bytes(len(data).to_bytes(8, "little") + encoder.encode(data) + encoder.flush())

    def decompress(archive: bytes) -> bytes:
        size = int.from_bytes(archive[:8], "little")
        decoder = pyppmd.Ppmd7Decoder(order, _PPMD_MEMORY)
        plain = decoder.decode(archive[8:], size)
        while len(plain) < size:  # its last bytes may want a nudge
            plain += decoder.decode(b"\0", size - len(plain))
        return bytes(plain)

    return compress, decompress


def _zpaq(setting: str) -> tuple[Function, Function]:
    program = _program("zpaq")

    def compress(data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "plain").write_bytes(data)
            _call([program, "a", "archive.zpaq", "plain", f"-m{setting}", "-t1"], folder)
            return (Path(folder) / "archive.zpaq").read_bytes()

    def decompress(archive: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "archive.zpaq").write_bytes(archive)
            _call([program, "x", "archive.zpaq", "-t1"], folder)
            return (Path(folder) / "plain").read_bytes()

    return compress, decompress


def _call(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _filter(command: list[str]) -> Function:
    whole = [_program(command[0]), *command[1:]]
    return lambda data: subprocess.run(whole, input=data, check=True, stdout=subprocess.PIPE).stdout


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"zstd": "zstandard", "brotli": "brotli"}.get(name)
        other = f" or the Python package {package} (pip install 'nacz[bench]')" if package else ""
        raise Missing(f"needs the program {name} on PATH{other}")
    return found


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _standard() -> str:
    import platform

    return f"Python {platform.python_version()}"


def _of_package(package: str, program: str | None) -> Callable[[], str]:
    def version() -> str:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as of

        try:
            return f"{package} {of(package)}"
        except PackageNotFoundError:
            if program is None:
                raise Missing(_PACKAGE.format(package)) from None
            return f"{os.path.basename(_program(program))} on PATH"

    return version


_NINE = tuple("123456789")
PEERS = {
    "gzip": Peer("9", _NINE, _gzip, _standard),
    "bzip2": Peer("9", _NINE, _bzip2, _standard),
    "xz": Peer("9e", (*"0123456789", *(f"{n}e" for n in range(10))), _xz, _standard),
    "zstd": Peer("19", tuple(str(n) for n in range(1, 23)), _zstd, _of_package("zstandard", "zstd")),
    "brotli": Peer("11", tuple(str(n) for n in range(12)), _brotli, _of_package("brotli", "brotli")),
    "ppmd": Peer("12", tuple(str(n) for n in range(2, 65)), _ppmd, _of_package("pyppmd", None)),
    "zpaq": Peer("5", tuple("12345"), _zpaq, lambda: f"{os.path.basename(_program('zpaq'))} on PATH"),
}
