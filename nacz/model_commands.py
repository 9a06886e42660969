"""`nacz models`: thin calls into nacz.weights, and their results as text."""

from __future__ import annotations

from nacz.terminal import ProgressLine, format_size, progress_wanted
from nacz.weights import fetch

__all__ = ["path", "pull", "show", "verify"]


def show() -> int:
    """Print the known models, one per line."""
    for model in fetch.known_models():
        where = fetch.gguf_path(model.name)
        state = str(where) if where.is_file() else "not on this machine; run `nacz models pull`"
        print(f"{model.name}  {format_size(model.gguf_size)}  {model.licence}  {state}")
    return 0


def path(name: str | None) -> int:
    """Print where the weights are, or will be."""
    print(fetch.gguf_path(name or fetch.DEFAULT))
    return 0


def pull(name: str | None, quiet: bool) -> int:
    """Fetch the weights and print their path."""
    name = name or fetch.DEFAULT
    with ProgressLine(f"fetching {name}", progress_wanted(quiet)) as line:
        where = fetch.ensure_gguf(name, progress=line.update_bytes)
    print(where)
    return 0


def verify(name: str | None) -> int:
    """Compare the hash of the weights with the known one."""
    name = name or fetch.DEFAULT
    print(f"{name}: ok, sha256 {fetch.verify_gguf(name)}")
    return 0
