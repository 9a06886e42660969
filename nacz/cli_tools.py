"""The verbs around compressing: info, bench, explain, doctor, completion, man.

Knows their arguments; each imports its module when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nacz.cli_options import FILES, JSON, MODEL, TALK, THREADS, complete_file, names_or_stdin, together

__all__ = ["TOOLS"]


@click.command(short_help="Tell all that headers say.")
@FILES
@JSON
def info(files: Sequence[str], as_json: bool) -> int:
    """Tell what archives hold, what made them and what decoding needs, from their headers alone."""
    from nacz import info as details

    return details.show(names_or_stdin(files), as_json)


_WRITE = {
    "json": "Write all figures as JSON; `-` for stdout.",
    "html": "Write a page with tables and picture.",
    "png": "Write a picture: bits per byte against speed.",
    "markdown": "Write the tables as Markdown.",
}


@click.command(short_help="Measure nacz and others on the same bytes.")
@click.argument("files", nargs=-1, metavar="[FILE|CORPUS[:OFFSET:LENGTH]]...", shell_complete=complete_file)
@click.option("--levels", "levels_text", default="1-9", metavar="LIST", help="Levels of nacz, as 1-9 or 1,3,6 or none.")
@click.option(
    "--peers", "peers_text", default="all", metavar="LIST",
    help="Of gzip, bzip2, xz, zstd, brotli, ppmd, zpaq, perhaps with a setting as zstd:3; or all, or none.",
)  # fmt: skip
@click.option("--ablate", is_flag=True, help="Also each level without, and with only, each part of its ensemble.")
@click.option("--download", "may_download", is_flag=True, help="Download a public corpus that is missing.")
@together(
    *(click.option(f"--{kind}", metavar="OUT", shell_complete=complete_file, help=_WRITE[kind]) for kind in _WRITE)
)
@click.option("--state", metavar="FILE", shell_complete=complete_file, help="Keep rows here; go on from those there.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, metavar="N", help="Measure N times; the best counts.")
@THREADS
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")
def bench(files: Sequence[str], **arguments: Any) -> int:
    """Compress, decompress and compare files with all levels and peers; tell sizes, speeds and memory.

    A corpus, such as enwik8, is looked for in the folder that NACZ_CORPORA names; its sha256 is checked. Without a file
    a small text that every installation has is measured.
    """
    from nacz.bench import command

    context = click.get_current_context()
    outputs = {kind: arguments.pop(kind) for kind in _WRITE}
    return command.bench(
        files, outputs={kind: path for kind, path in outputs.items() if path is not None},
        command=context.meta.get("nacz.arguments", []), **arguments,
    )  # fmt: skip


@click.command(short_help="Show what each token costs.")
@click.argument("file", shell_complete=complete_file)
@click.option("--html", "output", metavar="OUT", shell_complete=complete_file, help="Write a page, `-` for stdout.")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@MODEL
@THREADS
@TALK
def explain(file: str, quiet: bool, no_progress: bool, verbose: int, **arguments: Any) -> int:
    """Show what each token of a text costs in bits, what was expected in its place, and which predictor carried it.

    With --html as a page of its own that needs no network; without it a table of the predictors and the most expensive
    passages. As at level 6 in one lane: the language model with all of the ensemble, nothing learns.
    """
    from nacz.explain import command

    return command.explain_file(file, quiet=quiet or no_progress, **arguments)


@click.command(short_help="Check this machine.")
@click.option("--no-speed", is_flag=True, help="Leave out the round trips that estimate the speed.")
@JSON
def doctor(no_speed: bool, as_json: bool) -> int:
    """Check this machine: processor, kernels and their self-test, models, caches, speed."""
    from nacz import doctor as checks

    return checks.show(not no_speed, as_json)


@click.command(short_help="Print a completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that lets a shell complete the arguments of nacz.

    \b
    bash: nacz completion bash > ~/.local/share/bash-completion/completions/nacz
    zsh:  nacz completion zsh > "${fpath[1]}/_nacz"
    fish: nacz completion fish > ~/.config/fish/completions/nacz.fish
    """
    from click.shell_completion import get_completion_class

    chosen = get_completion_class(shell)
    assert chosen is not None
    root = click.get_current_context().find_root().command
    # Only the script: the constructor alone does not ask the shell for its version.
    click.echo(chosen.source_template % chosen(root, {}, "nacz", "_NACZ_COMPLETE").source_vars())
    return 0


@click.command(short_help="Print the man page.")
def man() -> int:
    """Print the man page, made from the same definitions as `--help`."""
    from nacz import man_page

    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    click.echo(man_page.page(root), nl=False)
    return 0


TOOLS: tuple[click.Command, ...] = (info, bench, explain, doctor, completion, man)
