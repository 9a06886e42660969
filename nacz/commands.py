"""What the commands do with files: name outputs, open both ends, report each file's fate in one line.

Knows files, standard streams, messages and exit codes; does not know arguments (nacz.cli reads them) nor what
is inside an archive (nacz.codec does). One file's failure does not stop the others; the highest code counts.
"""

from __future__ import annotations

import os
import stat
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from nacz import codec, levels
from nacz._version import __version__
from nacz.errors import InternalError, NaczError, UsageError
from nacz.files import atomic_output
from nacz.formats.reader import ArchiveReader
from nacz.formats.records import VERSION
from nacz.metadata import Metadata, metadata_of, read_metadata
from nacz.resume import PartialArchive, PartialPlain
from nacz.segment_coder import LANGUAGE_MODEL, LAST_LEVEL_WITHOUT_WEIGHTS, CodecOptions
from nacz.segments import count_threads
from nacz.terminal import ProgressLine, format_duration, progress_wanted

__all__ = [
    "SUFFIX", "Settings", "compress_file", "decompress_file", "describe", "naming", "report", "run", "standard_stream",
    "test_files", "verify_file",
]  # fmt: skip

SUFFIX = ".nacz"
_LONG = 20.0  # seconds of work that deserve a warning


@dataclass(frozen=True, slots=True)
class Settings:
    """How files are treated, apart from what the codec does with their bytes."""

    options: CodecOptions
    threads: int = 0
    executor: str | None = None
    to_stdout: bool = False
    output: str | None = None
    force: bool = False
    remove: bool = False
    quiet: bool = False
    progress: bool = True
    verbose: int = 0
    suffix: str = SUFFIX
    max_output: int | None = None
    memory_limit: int | None = None
    keep_name: bool = False
    verify: bool | None = None
    resume: bool = False


def report(name: str | None, cause: str) -> None:
    """Write one line about a failure to stderr; `name` is the file it is about."""
    where = f"nacz: {name}: " if name else "nacz: "
    line = (where + cause).replace("\n", " ").encode("utf-8", "backslashreplace").decode("utf-8", "replace")
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # there is no stderr to complain on


def describe(error: BaseException) -> tuple[str | None, str, int]:
    """Return (file that it is about if it says so, cause, exit code)."""
    if isinstance(error, NaczError):
        return None, str(error), error.exit_code
    if isinstance(error, OSError):
        name = error.filename
        return (os.fsdecode(name) if name else None), error.strerror or str(error), UsageError.exit_code
    if isinstance(error, MemoryError):
        return None, "not enough memory", UsageError.exit_code
    cause = f"internal error: {type(error).__name__}: {error}; please report it"
    return None, cause, InternalError.exit_code


def run(action: Callable[[str, Settings], object], names: Sequence[str], settings: Settings) -> int:
    """Call `action` for each file, `-` being stdin; return the highest exit code.

    A closed pipe, an interrupt and a signal end everything and reach the caller.
    """
    if settings.output is not None and len(names) > 1:
        raise UsageError("`-o` takes a single input file")
    code = 0
    for name in names:
        try:
            # Before its name is judged: that a file is not there matters more than its suffix.
            if name != "-" and stat.S_ISDIR(os.stat(name).st_mode):
                raise UsageError("is a directory")
            action(name, settings)
        except BrokenPipeError:
            raise
        except Exception as error:
            about, cause, error_code = describe(error)
            if os.environ.get("NACZ_DEBUG", "0") not in ("", "0"):
                traceback.print_exc()
            report(about or _shown(name), cause)
            code = max(code, error_code)
    return code


def compress_file(name: str, settings: Settings) -> None:
    """Compress one file as the settings say."""
    output = _output_name(name, settings, lambda: _compressed_name(name, settings))
    if output is None and not settings.force and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("compressed data is not written to a terminal; use -f to force it, or -o FILE")
    start = time.monotonic()
    with _input(name, settings) as (reader, status):
        extras = metadata_of(name, status) if settings.keep_name and stat.S_ISREG(status.st_mode) else ()
        with _output(output, status, settings, _fingerprint(settings, extras)) as writer:
            total = status.st_size if stat.S_ISREG(status.st_mode) else None
            _warn_of_long_compression(name, total or 0, settings)
            with ProgressLine(_shown(name), _wants_progress(settings)) as line:
                totals = codec.compress_stream(
                    reader,
                    writer,
                    settings.options,
                    threads=settings.threads,
                    executor=settings.executor,
                    progress=line.update,
                    total=total,
                    extras=extras,
                    verify=settings.verify,
                    earlier=PartialArchive(writer.raw) if writer.may_hold_something else None,
                )
    _finish(name, output, totals, time.monotonic() - start, settings)


def decompress_file(name: str, settings: Settings) -> None:
    """Decompress one archive as the settings say."""
    said = _metadata(name) if settings.keep_name and name != "-" else Metadata()
    output = _output_name(name, settings, lambda: _plain_name(name, settings, said.name))
    start = time.monotonic()
    with _input(name, settings) as (reader, status):
        like = _status_like(status, said)
        with _output(output, like, settings, "plain") as writer:
            totals = _decode(name, reader, writer, status, settings)
    _finish(name, output, totals, time.monotonic() - start, settings)


def verify_file(name: str, settings: Settings) -> codec.Totals:
    """Decode one archive and compare all checksums; write nothing."""
    start = time.monotonic()
    with _input(name, replace(settings, to_stdout=True)) as (reader, status):
        totals = _decode(name, reader, _Nowhere(), status, settings)
    if settings.verbose and not settings.quiet:
        _say(f"{_shown(name)}: ok, {_figures(totals, time.monotonic() - start)}")
    return totals


def test_files(names: Sequence[str], settings: Settings, as_json: bool) -> int:
    """Test archives; with `as_json` write an array with one object for each to stdout. Returns the highest code."""
    results: list[dict[str, object]] = []

    def test(name: str, settings: Settings) -> None:
        result: dict[str, object] = {"name": name, "ok": False}
        results.append(result)
        try:
            totals = verify_file(name, settings)
        except Exception as error:
            _, cause, code = describe(error)
            result |= {"error": type(error).__name__, "cause": cause, "code": code}
            raise
        result |= {"ok": True, "archive_size": totals.archive_size, "plain_size": totals.plain_size}

    code = run(test, names, settings)
    if as_json:
        import json

        print(json.dumps(results, indent=2), flush=True)
    return code


def _fingerprint(settings: Settings, extras: tuple[tuple[int, bytes], ...]) -> str:
    """Return letters that differ when the archive of the same data would: only an equal run may be gone on with."""
    options = replace(settings.options, offline=False)
    return f"{zlib.crc32(repr((VERSION, __version__, options, extras)).encode()):08x}"


def _metadata(name: str) -> Metadata:
    with open(name, "rb") as file:
        header = ArchiveReader(file).next_member()
    return Metadata() if header is None else read_metadata(header)


def _status_like(status: os.stat_result, said: Metadata) -> os.stat_result:
    """Return the status with the time and mode that the archive says, if it does."""
    if said.modified is None and said.mode is None:
        return status
    mode = status.st_mode if said.mode is None else stat.S_IFMT(status.st_mode) | said.mode
    modified = status.st_mtime_ns if said.modified is None else said.modified
    times = {"st_atime_ns": modified, "st_mtime_ns": modified}
    return os.stat_result((mode, *tuple(status)[1:10]), times)


class _Nowhere:
    def write(self, data: bytes) -> None:
        pass


class _Stream:
    """Gives errors of a stream its name, so that the line on stderr says which side failed."""

    def __init__(self, stream: BinaryIO, name: str, may_hold_something: bool = False) -> None:
        self._stream = stream
        self._name = name
        self.may_hold_something = may_hold_something

    def read(self, size: int) -> bytes:
        with naming(self._name):
            return self._stream.read(size)

    def write(self, data: bytes) -> None:
        with naming(self._name):
            self._stream.write(data)

    @property
    def raw(self) -> BinaryIO:
        return self._stream


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let OSErrors that name no file name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


def _decode(
    name: str,
    reader: _Stream,
    writer: _Stream | _Nowhere,
    status: os.stat_result,
    settings: Settings,
) -> codec.Totals:
    wanted = _wants_progress(settings)
    total = None
    if wanted and stat.S_ISREG(status.st_mode) and name != "-":
        total = _foretell_decompression(name, settings)
    with ProgressLine(_shown(name), wanted) as line:
        return codec.decompress_stream(
            reader,
            writer,
            settings.options,
            threads=settings.threads,
            executor=settings.executor,
            progress=line.update,
            total=total,
            max_output=settings.max_output,
            memory_limit=settings.memory_limit,
            earlier=PartialPlain(writer.raw) if isinstance(writer, _Stream) and writer.may_hold_something else None,
        )


def _foretell_decompression(name: str, settings: Settings) -> int | None:
    """Return the plain size that the headers promise, and warn if it will take long. Only for the eyes."""
    try:
        with open(name, "rb") as file:
            segments = [segment for member in codec.archive_info(file) for segment in member.segments]
    except (OSError, NaczError):
        return None
    if any(segment.predictor == LANGUAGE_MODEL for segment in segments):
        from nacz.info import decoding_seconds

        seconds = decoding_seconds(segments, count_threads(settings.threads))
        if seconds > _LONG:
            _say(f"nacz: {_shown(name)}: about {format_duration(seconds)}")
    return sum(segment.plain_size for segment in segments)


def _warn_of_long_compression(name: str, size: int, settings: Settings) -> None:
    """Say how long compression will take if that is long, and how long at the best level without weights."""
    level, threads = settings.options.level, count_threads(settings.threads)
    seconds = levels.seconds(level, size, threads)
    if seconds < _LONG or settings.options.model == "none" or not _wants_progress(settings):
        return
    words = f"about {format_duration(seconds)} at level {level}"
    if level > LAST_LEVEL_WITHOUT_WEIGHTS:
        other = LAST_LEVEL_WITHOUT_WEIGHTS
        words += f", {format_duration(levels.seconds(other, size, threads))} at level {other}"
    _say(f"nacz: {_shown(name)}: {words}")


def _wants_progress(settings: Settings) -> bool:
    return progress_wanted(settings.quiet or not settings.progress)


def _shown(name: str) -> str:
    return "stdin" if name == "-" else name


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _figures(totals: codec.Totals, seconds: float) -> str:
    plain, archive = totals.plain_size, totals.archive_size
    parts = [f"{plain} bytes plain, {archive} in the archive"]
    if plain:
        parts.append(f"{8 * archive / plain:.4f} bpb")
    if totals.tokens:
        parts.append(f"{totals.tokens / max(seconds, 1e-9):.0f} tokens/s")
    parts.append(f"{plain / max(seconds, 1e-9) / 1000:.1f} KB/s")
    parts.append(f"{seconds:.1f} s")
    return ", ".join(parts)


def _finish(name: str, output: str | None, totals: codec.Totals, seconds: float, settings: Settings) -> None:
    if settings.remove and name != "-" and output is not None and os.path.isfile(output):
        os.unlink(name)
    if settings.verbose and not settings.quiet:
        _say(f"{_shown(name)} -> {output or 'stdout'}: {_figures(totals, seconds)}")


def _output_name(name: str, settings: Settings, default: Callable[[], str]) -> str | None:
    """Return the path to write to, None for stdout."""
    if settings.to_stdout or settings.output == "-":
        return None
    if settings.output is not None:
        return settings.output
    return None if name == "-" else default()


def _compressed_name(name: str, settings: Settings) -> str:
    if name.endswith(settings.suffix) and not settings.force:
        raise UsageError(f"already has the suffix `{settings.suffix}`; use -f to compress it again")
    return name + settings.suffix


def _plain_name(name: str, settings: Settings, original: str | None) -> str:
    folder, base = os.path.split(name)
    if original is not None:
        return os.path.join(folder, original)
    if not base.endswith(settings.suffix) or base == settings.suffix:
        raise UsageError(f"has no suffix `{settings.suffix}`; name the output with -o FILE, or use -c")
    return os.path.join(folder, base[: -len(settings.suffix)])


@contextmanager
def _input(name: str, settings: Settings) -> Iterator[tuple[_Stream, os.stat_result]]:
    if name == "-":
        yield _Stream(standard_stream("stdin"), "stdin"), _pipe_status()
        return
    status = os.stat(name)
    if not stat.S_ISREG(status.st_mode) and not (settings.to_stdout or settings.output):
        raise UsageError("is not a regular file; use -c or -o FILE")
    if settings.output and settings.output != "-" and os.path.exists(settings.output):
        if os.path.samefile(name, settings.output):
            raise UsageError("input and output are the same file")
    with open(name, "rb") as file:
        yield _Stream(file, name), os.fstat(file.fileno())


def _pipe_status() -> os.stat_result:
    """The status of no file in particular: of no kind, of no size."""
    return os.stat_result((0,) * 10)


@contextmanager
def _output(output: str | None, source: os.stat_result, settings: Settings, kind: str) -> Iterator[_Stream]:
    if output is None:
        stream = standard_stream("stdout")
        yield _Stream(stream, "stdout")
        with naming("stdout"):
            stream.flush()
        return
    like = source if stat.S_ISREG(source.st_mode) else None
    with naming(output):
        with atomic_output(output, overwrite=settings.force, like=like, kind=kind, resume=settings.resume) as file:
            yield _Stream(file, output, settings.resume and stat.S_ISREG(os.fstat(file.fileno()).st_mode))


def standard_stream(name: str) -> BinaryIO:
    """Return the binary stdin or stdout. Raises UsageError when the process was started without it."""
    stream = getattr(sys, name)
    if stream is None:
        raise UsageError(f"{name} is closed")
    binary: BinaryIO = stream.buffer
    return binary
