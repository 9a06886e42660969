"""A second Python for work of this package. Knows how it finds the modules; does not know what it does."""

from __future__ import annotations

import sys

__all__ = ["command"]


def command(module: str) -> list[str]:
    """Command line of a Python that runs `main` of a module. Its modules, wherever they came from, are those of this
    process."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"]
