"""What the README tells people to run exists and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_scripts_are_there_and_executable() -> None:
    named = re.findall(r"^(scripts/\S+)", "\n".join(blocks("sh")), re.M)
    assert named == ["scripts/quickstart", "scripts/test"]
    for name in named:
        assert os.access(ROOT / name, os.X_OK)


def test_shell_commands_work(tmp_path: Path) -> None:
    commands = [line.split("#")[0].strip() for line in blocks("sh")[1].splitlines()]
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
    assert (tmp_path / "server.log.nacz").exists() and (tmp_path / "folder.tar.nacz").exists()


def test_python_example_works() -> None:
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), {})


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
