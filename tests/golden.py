"""The golden set: fixed inputs, coded by the tiny model (or the real one), and the hashes of what comes out.

Run as a program it codes the set in this process, decodes it again and prints one JSON object, so that another
process, processor or emulator can be compared: `python tests/golden.py [--model M] [--threads N] [--check] [CASE...]`.
Needs nacz and its dependencies, no test tools: it also runs where those are not.

A hash is of the parameters and the payload of a segment; the container around them, and so the empty file, is tested
elsewhere. Pinned hashes change only when the encoding does: raise `nacz.predictors.transformer.CONTRACT` or the version
of the parameters, say so in the commit, and paste what this prints.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import tiny

from nacz import lane_encoding
from nacz.predictors import language_model
from nacz.predictors.learning import Learning
from nacz.segment_coder import CodecOptions

TOKENS = "bias,habit,ngram,match,recall"  # what the whole ensemble was before bytes
_WORDS = "the of and a in that it was he his with for at as be on not which you this but from had by they is are or"
_WORDS += " river stone window light machine answer number history"
_WORDS += " exactly rounding 1848 3.14159 {x} <p> &amp; naïve 東京"
_SPECIAL = "<|im_start|>user\n<|endoftext|><|im_end|>\n<|im_start|>assistant <repo_name><file_sep>\0<|endoftext|>"


def text(size: int, seed: int = 0) -> bytes:
    """`size` bytes of words, the same for ever; may end inside a character."""
    words, out = _WORDS.split(" "), []
    for i, byte in enumerate(tiny.noise(seed, "words", size).tolist()):
        out.append(words[byte * byte // 256 % len(words)] + ("\n" if i % 13 == 12 else ". " if i % 9 == 8 else " "))
    return "".join(out).encode()[:size]


class Case(NamedTuple):
    data: bytes
    lanes: int = 1
    window: int | None = 256
    ensemble: str = "none"
    learn: int = 0
    version: int = 1  # of learning
    general: bool = False  # the tiny general model in place of the plain one


def cases() -> dict[str, Case]:
    """The edge cases, for the tiny model. Most have about 1.3 bytes per token."""
    return {
        "one byte": Case(b"x"),
        "one escaped byte": Case(b"\xff"),
        "invalid UTF-8": Case(b"caf\xe9 \xf0\x9f\x98 \xc0\x80 \xed\xa0\x80 ok \xff\xfe\x80" * 4),
        "NULs": Case(bytes(150)),
        "special strings": Case(_SPECIAL.encode()),
        "all bytes": Case(bytes(range(256))),
        "random": Case(tiny.noise(0, "random", 200).tobytes()),
        # 13 lanes are three row tiles (5, 4, 4) in the decoder, and the last step is short.
        "many lanes": Case(text(700, 1), lanes=13),
        "unequal lanes": Case(text(900, 2), lanes=2, window=512),
        # More than three times the window: the ring turns over and the distance to the pinned block is capped.
        "beyond the window": Case(text(1100, 3)),
        "ensemble": Case(text(900, 6) + text(900, 6)[:500], lanes=3, ensemble=TOKENS),
        "ensemble of one lane": Case(text(600, 7), ensemble=TOKENS),
        "learning": Case(text(80, 10) * 20, learn=2),
        "learning of one layer in lanes": Case(text(90, 11) * 20, lanes=3, ensemble=TOKENS, learn=1),
        # Past the local layer's positions, and past the window.
        "general": Case(text(500, 14), general=True),
        "general, lanes and ensemble": Case(text(300, 15) * 2, lanes=3, ensemble=TOKENS, general=True),
        "bytes": Case(text(900, 6) + text(900, 6)[:500], lanes=3, ensemble="all"),
        "bytes alone, all bytes": Case(bytes(range(256)) * 2, ensemble="bytes"),
        "bytes, learning": Case(text(90, 11) * 20, lanes=3, ensemble="all", learn=1),
        "bytes, general": Case(text(300, 15) * 2, lanes=3, ensemble="all", general=True),
        "ensemble without memory": Case(text(600, 8), lanes=2, ensemble="bias,habit,ngram,match"),
        "learning, version 2": Case(text(80, 10) * 20, learn=2, version=2),
        "learning, version 2, in lanes": Case(text(90, 11) * 20, lanes=3, ensemble="all", learn=1, version=2),
    }


def gemma_cases() -> dict[str, Case]:
    """For gemma3-270m."""
    return {
        "Gemma, text": Case(text(2048, 4), lanes=2, window=512),
        "Gemma, text, ensemble": Case(text(2048, 9), lanes=2, window=None, ensemble=TOKENS),
        "Gemma, short text": Case(text(400, 5)),  # for emulators
    }


def text_cases() -> dict[str, Case]:
    """For the default model, as levels use it: near heads, all of the ensemble."""
    return {
        "adapted text": Case(text(2048, 16), lanes=2, window=None, ensemble="all"),
        "adapted text, learning": Case(text(3500, 12), lanes=2, window=None, ensemble="all", learn=3, version=2),
        "short adapted text": Case(text(400, 17)),  # for emulators
    }


def real_cases() -> dict[str, Case]:
    """For the same without its adapter."""
    return {
        "real text": Case(text(2048, 4), lanes=2, window=512),
        "real text, ensemble": Case(text(2048, 9), lanes=2, window=512, ensemble=TOKENS),
        "real text, bytes": Case(text(2048, 9), lanes=2, window=512, ensemble="all"),
        "real text, learning": Case(text(3500, 12), lanes=2, window=512, ensemble=TOKENS, learn=2),
        "real text, near heads": Case(text(6000, 13), window=None),
        "short real text": Case(text(400, 5)),  # for emulators
    }


PINNED_TINY = {
    "one byte": "cc09a1b6eac6ca68f4244be12bcc3fe10496bda33e0d469dd46fc7364b6abaf3",
    "one escaped byte": "bbda57d9c9243ccfb4e619851aa6d6015290387249326fbab359de411d4273ff",
    "invalid UTF-8": "280b9ce798a08d6442f088afb1f1478997c4be4482835d1db14e768768b83e01",
    "NULs": "d388c2832fd3bc9e88eba5b1c5407453a4542aaaa6a5fc41cee2ea1675b2ee9e",
    "special strings": "48cb524731444a00b290a63770f4b5196a6a4e1c5d3675332b8c812a4c93e58f",
    "all bytes": "125e7e632ae4c76f7ec3a9154dcd4230395c6a8f2b151379f11d9e24188f1a7e",
    "random": "376ab720de9c97b09c3894097103e9a91bec16b85bf768eaa36fa45077e08656",
    "many lanes": "a79d32180f46c221d5a0062bf7a3c1b1949569a8a9a52f8acb8ec5da5737b73e",
    "unequal lanes": "3a1f78cbb8fafe41e6c4bf51db79d0e6a0e0a43e1ffcd306c8480881e7cfd9f3",
    "beyond the window": "88bff2f41eb27019f7933cd5fd2dbe433265c41304a283c6caab2ea3843a04d2",
    "ensemble": "84faa974aabf4e722871499eff41ad84224457005e226134a14725e8bd7495c5",
    "ensemble of one lane": "f39392a7f1e261e10408527fbac9466d146a171e1b160c84b2e3c95bac82ec87",
    "bytes": "e34befd63aabe035ede591a4a5ca0e7cd9535f4977a515429b786ff9b7a33408",
    "bytes alone, all bytes": "2aadd9315f2fea4fb9ed32a787f8c8cdf1db6b081b2f84072bf168a3f73aac40",
    "bytes, learning": "e18119d7304ea8728db0355d1633f6c76a4bf565a84d9f0c43f357aa78b0f99f",
    "bytes, general": "83b1d7ff6ddd7534ee416f67beed9d1fef37aba3e6c6a09510cfba1ff45cab0c",
    "ensemble without memory": "8363df222b227c020618fc8618057ac1103e5fe4f3e6ac6e8cd89a9f687dcd79",
    "general": "0f3e87c70d155c24c42d93c45d5393aad0692fb5631b05cf0c58877541c958b6",
    "general, lanes and ensemble": "30501716243f2f6189871ee6de6a6f1b2dd01e6d91feb2af6a0321882a54ba2e",
    "learning": "ee684c01c11efa41e09f36db64eea6b0b7af1261c1537362ff32a87d9e8aa82e",
    "learning of one layer in lanes": "72a4d25561752f37ccbb0011aa89139c0e2003431901db712ef3a84f0c4a8812",
    "learning, version 2": "6b7efab218907a549333de93437c61e229f773be7d0c27d9235e63d31ae82eb9",
    "learning, version 2, in lanes": "b8ea50897766ac0305c6ac4dea5488b63bb62fefc58c4ac9758d6c7ff8a80875",
}
PINNED_REAL = {
    "real text": "de75d2830f42147a988707c3ccf520506d7f9a7aad8c830c946b3b30bda6efdc",
    "real text, near heads": "948b26977fcea24d13416918899506a7409bea47f0f85d42283607daf55fe6f3",
    "short real text": "e99c4d34d427591cf553a7320ce2c48f49d3dd4dfc97fff606f00dc1f6b1fb39",
    "real text, ensemble": "63e8a35101855bbc527006eaf794a717c3303c26da05ee9837192206c5db5bfb",
    "real text, bytes": "be0505a7b841f46916b954ba6769fb3930962e7cc468db96ee3d4e5858db7677",
    "real text, learning": "6e4503ec39f5b774476a91b06c4124563ad1893c63906ca20af83a892a7b580f",
}
PINNED_TEXT = {
    "adapted text": "a924a3da77ea724c73b93f00e0e5db13237a3d23a84f2dabc93d53422f3981c1",
    "adapted text, learning": "1b3818852be1fa7104960f7dc4891dabefdc75f96c5afc2be2b5657836cfa322",
    "short adapted text": "11f501ac40c1416e7fc4e2bc7bfce782ec63bbd4396477eca435b375161016b2",
}
PINNED_GEMMA = {
    "Gemma, text": "27447fe2dbbac03f328504e0fe57100e3986b527d5993fdedaec6390d1c121ce",
    "Gemma, text, ensemble": "35f911ef33fbce78df900130823fb5ad2f65fd977692848fa3d116a896445d2c",
    "Gemma, short text": "240a7b0f3cdfca15ac0704119c2f8c579302160ce086c324fc1411abaaaa83b3",
}
PINNED = PINNED_TINY | PINNED_REAL | PINNED_TEXT | PINNED_GEMMA
TINY = "tiny"
# By the model that they are for.
SETS = {TINY: cases, "smollm2-135m": real_cases, "smollm2-135m-text": text_cases, "gemma3-270m": gemma_cases}


def digest(params: bytes, payload: bytes) -> str:
    return hashlib.sha256(len(params).to_bytes(8, "little") + params + payload).hexdigest()


def _learning_of(version: int, layers: int | None, *_: Any) -> Learning | None:
    """As the cases were pinned, whatever levels may come to use."""
    return Learning(layers, 15 if version == 1 else 50, 512, version) if layers else None


def run(names: list[str] | None = None, *, model: str = TINY, threads: int = 1, rows: int = 0) -> dict[str, str]:
    """{case: hash} of this process, of the set for a model. Raises AssertionError when something does not decode."""
    original = language_model.encode_lanes, language_model.learning_of
    found = {}
    if rows:
        language_model.encode_lanes = functools.partial(lane_encoding.encode_lanes, rows=rows)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, case in SETS[model]().items():
                if names and name not in names:
                    continue
                path = model
                if model == TINY:
                    path = str(tiny.write_general(Path(folder)) if case.general else tiny.write(Path(folder)))
                options = CodecOptions(
                    level=6, model=path, window=case.window, lanes=case.lanes, ensemble=case.ensemble,
                    learn=case.learn, offline=True,
                )
                language_model.learning_of = functools.partial(_learning_of, case.version)
                coder = language_model.LanguageModelCoder(options)
                coder.on_trial = False
                params, payload = coder.encode(case.data, options=options, threads=threads, progress=None)
                learns = language_model.Params.from_bytes(params, len(case.data)).learning is not None
                assert learns == bool(case.learn), f"{name}: learning is not what the case is for"
                found[name] = digest(params, payload)
                back = coder.decode(params, payload, len(case.data), threads=threads, progress=None)
                assert back == case.data, f"{name}: other bytes came back"
    finally:
        language_model.encode_lanes, language_model.learning_of = original
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="code the golden set and print its hashes")
    parser.add_argument("--model", default=TINY, choices=SETS, help="a real model on texts instead of the tiny ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=0, help="rows per block when encoding (0: the usual number)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a hash is not the pinned one")
    parser.add_argument("cases", nargs="*", help="names of cases (none: all)")
    args = parser.parse_args()
    from nacz.kernels import dispatch

    started = time.monotonic()
    hashes = run(args.cases, model=args.model, threads=args.threads, rows=args.rows)
    wrong = [name for name, found in hashes.items() if found != PINNED.get(name)]
    report = {
        "kernel": dispatch.chosen()[0],
        "usable": dispatch.usable(),
        "machine": platform.machine(),
        "seconds": round(time.monotonic() - started, 1),
        "wrong": wrong,
        "hashes": hashes,
    }
    print(json.dumps(report, indent=1))
    return 1 if args.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
