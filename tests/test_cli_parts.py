"""The command line for parts, damage, limits, metadata and going on after an interruption.

Run with `pytest tests/test_cli_parts.py`. Uses the order-0 test predictor.
"""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import order0
import pytest
from cli_runner import Nacz
from nacz.formats.index import read_map
from nacz.formats.records import MemberHeader
from test_cli import names

import nacz
from nacz import metadata
from nacz.errors import InternalError

TEXT = bytes(32 + (i * i // 7 + i % 13) % (20 + 5 * (i // 4096)) for i in range(30000))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """Seven segments of the test predictor's size."""
    path = tmp_path / "big"
    path.write_bytes(TEXT)
    return path


def test_cat(run: Nacz, big: Path) -> None:
    assert run("-1", "big") == 0
    for span, wanted in (
        (None, TEXT),
        ("0:10", TEXT[:10]),
        ("5000:5000", b""),
        ("9000:21000", TEXT[9000:21000]),
        ("-7:", TEXT[-7:]),
        (":-29990", TEXT[:10]),
        ("29999:99999", TEXT[-1:]),
        ("99999:", b""),
    ):
        arguments = [] if span is None else [f"--range={span}"]
        assert run("cat", *arguments, "big.nacz") == 0
        assert run.out == wanted
        assert run("cat", *arguments, stdin=Path("big.nacz").read_bytes()) == 0
        assert run.out == wanted
    assert run("cat", "big.nacz", "big.nacz") == 0 and run.out == TEXT * 2
    assert run("cat", "--range", "x", "big.nacz") == 1
    assert run("cat", "--max-output", "9", "--range", "0:10", "big.nacz") == 1 and run.out == b""
    assert run("cat", "big") == 2
    assert run("cat", "missing") == 1


def test_repair(run: Nacz, big: Path, tmp_path: Path) -> None:
    assert run("-1", "big") == 0
    assert run("repair", "big.nacz", "-o", "whole") == 0
    assert (tmp_path / "whole").read_bytes() == TEXT and run.err == ""
    good = (tmp_path / "big.nacz").read_bytes()
    place = read_map(io.BytesIO(good)).places[2]
    damaged = bytearray(good)
    damaged[place.offset + 100] ^= 1
    (tmp_path / "bad.nacz").write_bytes(damaged)
    rest = TEXT[:8192] + TEXT[12288:]
    assert run("repair", "bad.nacz", "-o", "part") == 2
    assert (tmp_path / "part").read_bytes() == rest
    assert "plain bytes 8192 to 12287" in run.err
    assert run("repair", "--json", "bad.nacz", "-o", "part") == 1
    assert run("repair", "--json", "-f", "bad.nacz", "-o", "part") == 2
    (lost,) = json.loads(run.out)["lost"]
    assert (lost["plain_start"], lost["plain_end"]) == (8192, 12288)
    assert run("repair", "-", "-o", "-", stdin=bytes(damaged)) == 2 and run.out == rest
    (tmp_path / "none.nacz").write_bytes(b"x" * 100)
    before = names(tmp_path)
    assert run("repair", "none.nacz", "-o", "none") == 2
    assert names(tmp_path) == before
    assert run("repair", "big.nacz", "-f", "-o", "big.nacz") == 1
    assert run("repair", "big.nacz", "-o", "less", "--max-output", str(len(TEXT) - 1)) == 1
    assert "less" not in names(tmp_path)
    assert run("repair", "big.nacz", "-o", "less", "--max-output", str(len(TEXT))) == 0


def test_testing_as_json(run: Nacz, big: Path, tmp_path: Path) -> None:
    assert run("-1", "big") == 0
    (tmp_path / "bad.nacz").write_bytes(b"nothing")
    assert run("test", "--json", "big.nacz", "bad.nacz") == 2
    good, bad = json.loads(run.out)
    assert good["ok"] and good["plain_size"] == len(TEXT)
    assert not bad["ok"] and bad["error"] == "CorruptDataError" and bad["code"] == 2


def test_limits(run: Nacz, big: Path) -> None:
    assert run("-1", "big") == 0
    assert run("-dc", "-M", "10M", "big.nacz") == 1 and "memory" in run.err and run.out == b""
    assert run("-t", "-M", "1g", "big.nacz") == 0
    assert run("-t", "--max-output", "29K", "big.nacz") == 1
    assert run("-t", "--max-output", "30k", "big.nacz") == 0
    assert run("-t", "-M", "much", "big.nacz") == 1


def test_names_times_and_modes(run: Nacz, big: Path, tmp_path: Path) -> None:
    big.chmod(0o640)
    os.utime(big, ns=(1, 981_158_400_123_456_789))
    assert run("-1", "-N", "big", "-o", "x.nacz") == 0
    assert run("-1", "big", "-o", "plain.nacz") == 0
    os.rename("x.nacz", "renamed")
    os.utime("renamed")
    os.chmod("renamed", 0o600)
    big.unlink()
    assert run("-d", "-N", "renamed") == 0
    made = big.stat()
    assert big.read_bytes() == TEXT and stat.S_IMODE(made.st_mode) == 0o640
    assert made.st_mtime_ns == 981_158_400_123_456_789
    assert run("-d", "-N", "plain.nacz") == 0 and (tmp_path / "plain").read_bytes() == TEXT
    assert run("-d", "renamed", "-o", "other") == 0
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "name",
    [b"", b".", b"..", b"../x", b"/etc/x", b"a\\b", b"a\0b", b"c:x", b"-rf", b"~x", b"COM1.t", b"a\nb", b"x" * 256],
)  # fmt: skip
def test_names_that_are_not_used(name: bytes) -> None:
    header = MemberHeader((), ((2, name), (4, b"\x80"), (6, b"\xff\x3f")))
    assert metadata.read_metadata(header) == metadata.Metadata()


def test_verify(run: Nacz, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("-1", "--verify", "big") == 0
    assert nacz.decompress((tmp_path / "big.nacz").read_bytes()) == TEXT
    decode = order0.Order0Coder.decode
    wrong = lambda *a, **k: decode(*a, **k)[:-1] + b"!"  # noqa: E731
    monkeypatch.setattr(order0.Order0Coder, "decode", wrong)
    assert run("-1", "--verify", "big", "-o", "other") == InternalError.exit_code
    assert "other" not in names(tmp_path)


def interrupted(run: Nacz, monkeypatch: pytest.MonkeyPatch, after: int, *arguments: str) -> None:
    """Run with --resume and interrupt it in segment `after`."""
    for method in ("encode", "decode"):
        original = getattr(order0.Order0Coder, method)
        calls = []

        def stop(*a: object, original: object = original, calls: list[int] = calls, **k: object) -> object:
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return original(*a, **k)  # type: ignore[operator]

        monkeypatch.setattr(order0.Order0Coder, method, stop)
    assert run(*arguments, "--resume") == 130
    monkeypatch.undo()


@pytest.mark.parametrize("after", [0, 1, 3, 6])
@pytest.mark.parametrize("change", ["as it is", "cut", "damaged", "more"])
def test_resuming(
    run: Nacz, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, change: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("-1", "big", "-o", "whole") == 0
    whole = (tmp_path / "whole").read_bytes()
    runs = (["-1", "big"], "big.nacz", whole), (["-d", "whole", "-o", "back"], "back", TEXT)
    for arguments, output, wanted in runs:
        order0.install()
        interrupted(run, monkeypatch, after, *arguments)
        os.chdir(tmp_path)
        (partial,) = [name for name in names(tmp_path) if name.startswith(".")]
        assert output not in names(tmp_path)
        data = bytearray((tmp_path / partial).read_bytes())
        if change == "cut":
            data = data[: len(data) * 2 // 3]
        elif change == "damaged" and data:
            data[len(data) // 2] ^= 1
        elif change == "more":
            data += b"E garbage" * 20
        (tmp_path / partial).write_bytes(data)
        assert run(*arguments, "--resume") == 0
        assert (tmp_path / output).read_bytes() == wanted
        assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_only_an_equal_run_is_resumed(
    run: Nacz, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(run, monkeypatch, 3, "-1", "big")
    os.chdir(tmp_path)
    (partial,) = [name for name in names(tmp_path) if name.startswith(".")]
    assert run("-2", "--resume", "big") == 0
    assert partial in names(tmp_path), "made with another level: not touched"
    big.write_bytes(TEXT[::-1])
    assert run("-1", "--resume", "-f", "big") == 0
    assert partial not in names(tmp_path)
    assert nacz.decompress((tmp_path / "big.nacz").read_bytes()) == TEXT[::-1]
