"""What the README tells people to run exists and does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nacz import levels

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_scripts_are_there_and_executable() -> None:
    named = re.findall(r"^(scripts/\S+)", "\n".join(blocks("sh")), re.M)
    assert named == ["scripts/quickstart", "scripts/test"]
    for name in named:
        assert os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_shell_commands_work(name: str, tmp_path: Path) -> None:
    lines = "".join(blocks("sh", (ROOT / name).read_text(encoding="utf-8"))).splitlines()
    commands = [line.split("#")[0].strip() for line in lines if not line.startswith("scripts/")]
    assert commands.pop(0) == "pip install ."
    (tmp_path / "book.txt").write_bytes(b"It is a truth universally acknowledged. " * 20)
    (tmp_path / "server.log").write_bytes(b"2026-01-01 GET /index.html 200\n" * 50)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NACZ_LEVEL": "1",  # no weights in this tier
    }
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "back.txt").read_bytes() == (tmp_path / "book.txt").read_bytes()
    assert (tmp_path / "folder.tar.nacz").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_examples_work(path: Path) -> None:
    names: dict[str, object] = {}
    for example in blocks("python", path.read_text(encoding="utf-8")):
        exec(compile(example, path.name, "exec"), names)


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "BENCHMARKS.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_table_of_levels_is_that_of_the_help() -> None:
    assert levels.markdown() in README


def test_measured_figures_reach_the_table_and_a_label_has_to_fit(tmp_path: Path) -> None:
    for name in ("scripts", "nacz"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "nacz" / "__init__.py").write_text("")  # the table alone
    row = {"coder": "nacz", "options": {}, "sha256": "0", "bits_per_byte": 1.25, "plain_size": 50_000,
           "memory": 5 * 10**8, "compress_cpu": 10.0, "decompress_cpu": 100.0}  # fmt: skip
    rows = [row | {"setting": str(level)} for level in range(1, 10)] + [row | {"coder": "gzip", "setting": "9"}]
    figures = {"rows": rows, "machine": "A Processor", "date": "2026-01-02", "commit": "abc"}

    def run(machine: str, *more: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "figures").write_text(json.dumps(figures | {"machine": machine}))
        command = [sys.executable, tmp_path / "scripts" / "levels", tmp_path / "figures", *more]
        return subprocess.run(command, capture_output=True, text=True)

    long = "A Processor Of Very Many Cores, 2 cores, Linux"
    assert "name the PROCESSOR in fewer" in run(long).stderr
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README, "nothing is written"
    assert run(long, "Processor").returncode == 0
    table = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| 9 | learning model | 1.250 | 5.0 KB/s | 0.50 KB/s | 500 MB |" in table
    assert "2 cores of an Processor, 2026-01-02, commit abc.\n<!-- end of levels -->" in table


def test_every_document_is_in_the_list() -> None:
    for path in DOCUMENTS[1:]:
        assert f"(docs/{path.name})" in README, path.name
