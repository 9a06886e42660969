"""The man page, in roff, from the commands and options that click knows and the words of nacz.cli_text.

    nacz man > ~/.local/share/man/man1/nacz.1

Knows roff; does not know what any command does.
"""

from __future__ import annotations

import re

import click

from nacz import levels
from nacz._version import __version__
from nacz.cli_text import ENVIRONMENT, EXAMPLES, EXIT_CODES

__all__ = ["page"]


def page(root: click.Group) -> str:
    """Return nacz(1). Every verb and every option that is not hidden is in it."""
    out = [
        f'.TH NACZ 1 "" "nacz {__version__}" "User Commands"',
        ".SH NAME",
        "nacz \\- " + _text((root.help or "").strip().rstrip(".").lower()),
        ".SH SYNOPSIS",
        *_synopsis("nacz [OPTION]... [FILE]..."),
        *_synopsis("nacz VERB [OPTION]... [FILE]..."),
        ".SH DESCRIPTION",
        "Without a verb, flags and files are read in the form of gzip. Without FILE, or for \\-, stdin is read and",
        "stdout is written. The input is kept unless \\-\\-rm is given. The first use of the language model fetches",
        "its weights.",
        ".SS Options without a verb",
    ]
    flags = next(command for command in root.commands.values() if command.hidden and _is_flag_form(command))
    out += _options(flags)
    for name, command in root.commands.items():
        if not command.hidden:
            out += _verb(f"nacz {name}", command)
    out += [".SH LEVELS", f"On {_text(levels.TEXT_IN_WORDS)}; {_text(levels.MACHINE)}; KB of CPU seconds:"]
    out += [".nf", *(_text(line) for line in levels.table()), ".fi"]
    out += [".SH ENVIRONMENT", *_table(ENVIRONMENT)]
    out += [".SH EXIT STATUS", *_table({str(code): cause for code, cause in EXIT_CODES.items()})]
    out += ["Another signal n ends it with 128 + n."]
    out += [".SH SIGNALS", "SIGUSR1, and SIGINFO where there is one, write a line about the work so far to stderr."]
    out += [".SH EXAMPLES", *_table(EXAMPLES)]
    out += [".SH SEE ALSO", "gzip(1), xz(1), zstd(1), tar(1)"]
    return "\n".join(out) + "\n"


def _is_flag_form(command: click.Command) -> bool:
    return any(parameter.name == "do_decompress" for parameter in command.params)


def _verb(name: str, command: click.Command) -> list[str]:
    if isinstance(command, click.Group):
        return [part for sub, inner in command.commands.items() for part in _verb(f"{name} {sub}", inner)]
    arguments = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
    out = [f".SS {_text(' '.join([name, '[OPTION]...', *arguments]))}"]
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            out += [".nf", *(_text(line.strip()) for line in paragraph.splitlines()[1:]), ".fi"]
        else:
            out += [_text(" ".join(paragraph.split()))]
    return out + _options(command)


def _options(command: click.Command) -> list[str]:
    out = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            names = ", ".join([*option.opts, *option.secondary_opts])
            value = "" if option.is_flag or option.count else " " + option.make_metavar(click.Context(command))
            out += [".TP", f"\\fB{_text(names)}\\fR{_text(value)}", _text(option.help or "")]
    return out


def _table(rows: dict[str, str]) -> list[str]:
    return [line for name, what in rows.items() for line in (".TP", f"\\fB{_text(name)}\\fR", _text(what))] + [".PP"]


def _synopsis(line: str) -> list[str]:
    return [f"\\fB{_text(line[:4])}\\fR{_text(line[4:])}", ".br"]


def _text(text: str) -> str:
    """Text that roff takes as text."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", re.sub(r" *\[default: [^\]]*\]", "", escaped))
