"""What the command line says about itself beyond its options: examples, levels, environment, exit codes.

One source for `--help`, the man page and the tests that compare the documents with it. Knows words only.
"""

from __future__ import annotations

from nacz import levels

__all__ = ["ENVIRONMENT", "EXAMPLES", "EXIT_CODES", "epilog"]

EXAMPLES = {
    "nacz FILE": "compress FILE to FILE.nacz, keep FILE",
    "nacz -d FILE.nacz": "decompress; -t test, -l list",
    "nacz -9 -c < A > B": "from stdin to stdout",
    "tar -I nacz -cf A.tar.nacz FOLDER": "with GNU tar",
    "tar -I nacz -xf A.tar.nacz": "and back",
    "tar --use-compress-program 'nacz -d' -xf A.tar.nacz": "with bsdtar",
}

ENVIRONMENT = {
    "NACZ_LEVEL": "the level where none is given, 1 to 9",
    "NACZ_THREADS": "the number of threads where none is given, 0 for all cores",
    "NACZ_EXECUTOR": "who codes segments where nothing is given",
    "NACZ_DEVICE": "cuda:0 or another device of torch that shall run the transformer; never changes a result",
    "NACZ_DEVICES": "the devices for `--executor gpus`, with commas, instead of all GPUs",
    "NACZ_BACKEND_THREADS": "threads of a floating-point backend, 1 by default; another number, another fingerprint",
    "NACZ_BACKEND_DEVICE": "device of a floating-point backend, cpu by default",
    "NACZ_MODEL_DIR": "the folder for weights, instead of nacz/models in the user's cache folder",
    "NACZ_CACHE_DIR": "the folder for compiled code, instead of nacz in the user's cache folder",
    "NACZ_OFFLINE": "1: never fetch weights or corpora",
    "NACZ_KERNEL": "the implementation of the arithmetic; never changes a result",
    "NACZ_CORPORA": "where `nacz bench` looks for files and corpora by name",
    "NACZ_DEBUG": "1: show the traceback of a failure",
    "NO_COLOR": "set to anything: no colours",
}

EXIT_CODES = {
    0: "ok",
    1: "usage or environment",
    2: "corrupt data",
    3: "internal error",
    4: "model missing or different",
    130: "interrupted",
    141: "the reader of a pipe has gone",
}


def epilog() -> str:
    """Return what stands at the end of `nacz --help`, for click."""
    lines = ["Also in the form of gzip, for example:"]
    lines += [f"  {command:<34} {what}" for command, what in EXAMPLES.items()]
    lines += ["", "\b", f"Levels, on {levels.TEXT_IN_WORDS}:"]
    lines += ["  " + line for line in levels.table()]
    lines += [f"  KB of CPU seconds, {levels.MACHINE};"]
    lines += ["  the language model shares its work among threads, the learning one less so."]
    lines += ["", "\b", f"Environment: {_folded(list(ENVIRONMENT))}."]
    lines += [f"Exit codes: {_folded([f'{code} {cause}' for code, cause in EXIT_CODES.items()])}."]
    return "\b\n" + "\n".join(lines)


def _folded(words: list[str]) -> str:
    """Join with commas, a line break before what would pass 76 characters."""
    lines, used = [""], 14
    for word in words:
        if used + len(word) + 2 > 76:
            lines.append("")
            used = 0
        lines[-1] += word + ", "
        used += len(word) + 2
    return "\n".join(line.rstrip() for line in lines).rstrip(",")
