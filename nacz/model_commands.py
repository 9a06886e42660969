"""`nacz models`: thin calls into nacz.weights, and their results as text."""

from __future__ import annotations

from nacz import weights
from nacz.terminal import ProgressLine, format_size, progress_wanted

__all__ = ["export", "import_model", "measure", "path", "pull", "show", "verify"]

_ROW = "{:<24} {:>9}  {:<14} {:<16} {:>6} {:>10}  {}"


def show() -> int:
    """Print the known models and the imported ones, one per line."""
    print(_ROW.format("model", "size", "licence", "languages", "bpb", "speed", "state"))
    for model in weights.list_models():
        size = model.download_size
        if model.exact is not None:
            state, size = f"ready: {model.exact}", model.exact.stat().st_size
        elif model.gguf is not None:
            state = f"fetched, converted at first use: {model.gguf}"
        else:
            state = f"not on this machine; `nacz models pull {model.name}` fetches {format_size(model.download_size)}"
        figures = _figures(model.bpb, model.speed)
        print(_ROW.format(model.name, format_size(size), model.licence, model.languages, *figures, state))
    for brought in weights.imported():
        languages = ", ".join(brought.languages[:3]) + (" ..." if len(brought.languages) > 3 else "")
        measured = brought.measured
        print(_ROW.format(
            brought.name, format_size(brought.size), brought.licence or "not said", languages or "not said",
            *_figures(measured.bpb if measured else 0.0, measured.speed if measured else 0.0),
            f"imported, identity {brought.identity}: {brought.path}",
        ))  # fmt: skip
    return 0


def _figures(bpb: float, speed: float) -> tuple[str, str]:
    return f"{bpb:.3f}" if bpb else "-", f"{speed:.2g} KB/s" if speed else "-"


def path(name: str | None) -> int:
    """Print where the converted weights are, or will be."""
    print(weights.path(name))
    return 0


def pull(name: str | None, accept: bool, quiet: bool) -> int:
    """Fetch and convert the weights, and print their path; their terms first, if there are any."""
    if accept and weights.terms(name):
        print(weights.terms(name))
    with ProgressLine("weights", progress_wanted(quiet)) as line:
        where = weights.pull(name, line.update_model, accept)
    print("ready, but the cache folder cannot be written" if where is None else where)
    return 0


def verify(name: str | None) -> int:
    """Compare the weights on this machine with the known hashes."""
    for file, digest in weights.verify(name).items():
        print(f"{file}: ok, sha256 {digest}")
    return 0


def import_model(source: str, name: str | None, quiet: bool) -> int:
    """Convert and keep a model, and print its name, identity and path."""
    with ProgressLine("weights", progress_wanted(quiet)) as line:
        model = weights.import_model(source, name, line.update_model)
    print(f"{model.name}: identity {model.identity}, weights {model.weights_hash}, {model.path}")
    return 0


def export(name: str, target: str, force: bool) -> int:
    """Copy a model to a file, and print how to use it."""
    where = weights.export(name, target, force)
    print(f"{where}: all that decoding needs; use it with --model {where}, or `nacz models import {where}`")
    return 0


def measure(name: str | None, quiet: bool) -> int:
    """Measure a model on the text that every installation has, and print the figures."""
    from nacz.weights import measuring

    with ProgressLine("measuring", progress_wanted(quiet)) as line:
        found = measuring.measure(name, line.update_model)
    print(f"{found.bpb:.3f} bits per byte, {found.speed:.2g} KB per CPU second, on {found.size} bytes of {found.text}")
    return 0
