"""The options of the command line, each defined once for all commands that have it.

Knows names, types and help; does not know what any command does with them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from nacz.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "DECODE", "ENCODE", "FILES", "FINGERPRINT", "JSON", "LEVEL", "LIMITS", "MODEL", "OUTPUT", "TALK", "THREADS",
    "WORKERS", "complete_file", "names_or_stdin", "together",
]  # fmt: skip

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def complete_file(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a name with files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


FILES = click.argument("files", nargs=-1, metavar="[FILE]...", shell_complete=complete_file)
TALK = together(
    click.option("-q", "--quiet", is_flag=True, help="No progress, no notes."),
    click.option("--no-progress", is_flag=True, help="No progress, as when stderr is no terminal."),
    click.option("-v", "--verbose", count=True, help="Say what was done."),
)
THREADS = click.option(
    "-T",
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    envvar="NACZ_THREADS",
    metavar="N",
    help="Threads to use, 0 for all cores. Never changes the result.",
)
WORKERS = together(
    THREADS,
    click.option(
        "--executor",
        default="auto",
        envvar="NACZ_EXECUTOR",
        metavar="NAME",
        help="Who codes segments: processes, threads, gpus, none, dask://HOST:PORT.",
    ),
)
OUTPUT = together(
    click.option("-c", "--stdout", "to_stdout", is_flag=True, help="Write to stdout."),
    click.option("-o", "--output", metavar="OUT", shell_complete=complete_file, help="Write to OUT, `-` for stdout."),
    click.option("-f", "--force", is_flag=True, help="Overwrite files; write archives to a terminal."),
    click.option("-k", "--keep", is_flag=True, help="Keep the input (the default)."),
    click.option("--rm", "remove", is_flag=True, help="Remove the input once the output is complete."),
    click.option("-S", "--suffix", default=".nacz", metavar="SUFFIX", help="Suffix instead of .nacz."),
)
MODEL = together(
    click.option("--model", metavar="NAME", help="Language model by name or path; `none` to do without."),
    click.option("--offline", is_flag=True, help="Never fetch weights."),
)
FINGERPRINT = click.option(
    "--ignore-fingerprint", is_flag=True, help="Try what another machine wrote in floating point."
)


def _size(value: str) -> int:
    """A number of bytes, perhaps with K, M or G for powers of 1024."""
    match = re.fullmatch(r"(\d+)([kKmMgG]?)(?:i?[bB])?", value.strip())
    if match is None:
        raise click.BadParameter(f"not a number of bytes: {value}")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


LIMITS = together(
    click.option("--max-output", type=_size, metavar="SIZE", help="Refuse to decode more than SIZE bytes."),
    click.option("-M", "--memlimit", type=_size, metavar="SIZE", help="Refuse to decode with more memory than SIZE."),
)
JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
_NAMES = click.option("-N", "--name", "keep_name", is_flag=True, help="Keep name, time and mode; use them.")
_RESUME = click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped; same bytes in the end.")
ENCODE = together(
    _NAMES,
    _RESUME,
    click.option("--verify/--no-verify", default=None, help="Decode each segment before it is written, or not."),
    click.option("--backend", type=click.Choice(["exact", "llama", "transformers"]), help="Who runs the model."),
)
DECODE = together(_NAMES, _RESUME)


def _preset(number: int) -> Decorator:
    names = {1: ("-1", "--fast"), 9: ("-9", "--best")}.get(number, (f"-{number}",))
    # Nine lines of help would say less than the one at --level.
    return click.option(*names, "preset", flag_value=number, type=int, default=None, hidden=True)


LEVEL = together(
    click.option(
        "--level",
        "--preset",
        type=click.IntRange(1, 9),
        default=6,
        envvar="NACZ_LEVEL",
        metavar="1-9",
        help="Effort, also -1 to -9. 1 to 3 need no weights.  [default: 6]",
    ),
    *(_preset(number) for number in range(1, 10)),
    click.option("--window", type=click.IntRange(min=1), metavar="N", help="Tokens of context."),
    click.option("--lanes", type=click.IntRange(min=1), metavar="N", help="Streams coded in lockstep."),
    click.option("--ensemble", metavar="NAMES", help="What mixes in: bias,habit,ngram,match,recall,bytes; none."),
    click.option("--learn", type=click.IntRange(0, 256), metavar="LAYERS", help="How many last layers learn; 0: none."),
)


def names_or_stdin(files: Sequence[str]) -> Sequence[str]:
    """Return the files, or `-` when there are none. Raises UsageError when stdin is a terminal then."""
    if files:
        return files
    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("no file is named and stdin is a terminal; see `nacz --help`")
    return ("-",)
