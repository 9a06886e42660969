"""The verbs around compressing: info, bench, explain, doctor, completion, man.

Knows their arguments; each imports its module when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from nacz.cli_options import FILES, JSON, names_or_stdin

__all__ = ["TOOLS"]


@click.command(short_help="Tell all that headers say.")
@FILES
@JSON
def info(files: Sequence[str], as_json: bool) -> int:
    """Tell what archives hold, what made them and what decoding needs, from their headers alone."""
    from nacz import info as details

    return details.show(names_or_stdin(files), as_json)


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


TOOLS: tuple[click.Command, ...] = (info, doctor, completion, man)
