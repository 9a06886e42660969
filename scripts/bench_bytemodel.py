"""Sizes and CPU seconds of the byte model on files, every payload decoded and compared.

    python scripts/bench_bytemodel.py LEVELS FILE[:BYTES] ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nacz.predictors import bytemodel


def main(levels: str, names: list[str]) -> int:
    for level in map(int, levels):
        bytemodel.decompress(bytemodel.compress(b"warm", level), 4, level)  # not counted: loading the compiled loop
        for name in names:
            path, _, limit = name.partition(":")
            data = Path(path).read_bytes()[: int(limit) if limit else None]
            start = time.process_time()
            payload = bytemodel.compress(data, level)
            middle = time.process_time()
            same = bytemodel.decompress(payload, len(data), level) == data
            stop = time.process_time()
            word = "ok" if same else "DIFFERENT"
            times = f"{middle - start:.2f} {stop - middle:.2f}"
            print(level, Path(path).name, len(data), len(payload), times, word, flush=True)
            if not same:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
