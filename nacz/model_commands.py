"""`nacz models`: thin calls into nacz.weights, and their results as text."""

from __future__ import annotations

from nacz import weights
from nacz.terminal import ProgressLine, format_size, progress_wanted

__all__ = ["path", "pull", "show", "verify"]


def show() -> int:
    """Print the known models, one per line."""
    for model in weights.list_models():
        if model.exact is not None:
            state = f"ready: {model.exact}"
        elif model.gguf is not None:
            state = f"fetched, converted at first use: {model.gguf}"
        else:
            state = f"not on this machine; `nacz models pull` fetches {format_size(model.download_size)}"
        print(f"{model.name}  {model.licence}  {state}")
    return 0


def path(name: str | None) -> int:
    """Print where the converted weights are, or will be."""
    print(weights.path(name))
    return 0


def pull(name: str | None, quiet: bool) -> int:
    """Fetch and convert the weights, and print their path."""
    with ProgressLine("weights", progress_wanted(quiet)) as line:
        where = weights.pull(name, line.update_model)
    print("ready, but the cache folder cannot be written" if where is None else where)
    return 0


def verify(name: str | None) -> int:
    """Compare the weights on this machine with the known hashes."""
    for file, digest in weights.verify(name).items():
        print(f"{file}: ok, sha256 {digest}")
    return 0
