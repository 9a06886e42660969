"""Payloads of the byte model: two bytes of record width and kind, then coded bits; or letters without memory.

Knows the payload's layout and the segment protocol; knows no container and no checksum. A damaged payload decodes to
other bytes of the right number: whoever stores payloads must store a checksum too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nacz.coder import binary
from nacz.errors import CorruptDataError, UnsupportedVersionError, UsageError

from . import kernel, letters
from .analysis import looks_binary, looks_random, record_width
from .contexts import BINARY, TABLE
from .model import KIND_SHIFT, Model
from .settings import LEVELS, PARAMS_VERSION

if TYPE_CHECKING:
    from typing_extensions import Buffer

Progress = Callable[[int, int], None]
"""Called with plain bytes done and payload bytes so far; may raise to cancel."""

_PIECE = 1 << 16
_TRIAL = 1 << 15
_HEAD = 2
_LETTERS = 0xFFFF
"""In place of width and kind: there is no model, only letters drawn at random."""


def _check_level(level: int) -> None:
    if level not in LEVELS:
        raise UsageError(f"the byte model has levels 1 to {len(LEVELS)}: {level}")


def compress(data: Buffer, level: int, progress: Progress | None = None) -> bytes:
    """Payload of `data`; empty for empty data."""
    _check_level(level)
    plain = np.frombuffer(memoryview(data), dtype=np.uint8)
    size = len(plain)
    if size == 0:
        return b""
    alphabet = letters.alphabet(plain)
    at_random = _HEAD + len(letters.pack_alphabet(alphabet)) + letters.least(size, len(alphabet))
    coded = b"" if len(alphabet) == 1 else _coded(plain, level, form_of(plain, level), progress)
    if coded and len(coded) <= at_random:
        return coded
    plainly = _LETTERS.to_bytes(_HEAD, "little") + letters.compress(plain, alphabet)
    return coded if 0 < len(coded) <= len(plainly) else plainly


def form_of(plain: npt.NDArray[np.uint8], level: int) -> int:
    """Width of a record and kind of `plain`. Whether it is best taken for a table, a piece of it is asked."""
    if not looks_binary(plain):
        return 0
    width = record_width(plain)
    form = width | BINARY << KIND_SHIFT
    if level < 3 or width == 0:
        return form
    table = form | TABLE << KIND_SHIFT
    start = max(0, (len(plain) - _TRIAL) // 2)
    piece = plain[start : start + _TRIAL]
    return min(form, table, key=lambda f: len(_coded(piece, level, f, None)))


def _coded(plain: npt.NDArray[np.uint8], level: int, form: int, progress: Progress | None) -> bytes:
    size = len(plain)
    model = Model(level, size, form)
    first = model.start
    model.buf[first : first + size] = plain
    state = binary.new_encoder()
    out = np.zeros(size // 2 + _PIECE, dtype=np.uint8)
    for start in range(0, size, _PIECE):
        stop = min(size, start + _PIECE)
        need = int(state[binary.POS]) + 8 * binary.MAX_BYTES_PER_BIT * (stop - start) + 2 * binary.FLUSH_BYTES
        if need > len(out):
            out = np.concatenate([out, np.zeros(need + need // 4 - len(out), dtype=np.uint8)])
        model.run(first + start, first + stop, kernel.ENCODE, out, state)
        if progress is not None:
            progress(stop, _HEAD + int(state[binary.POS]))
    return form.to_bytes(_HEAD, "little") + out[: binary.finish(state, out)].tobytes()


def decompress(payload: Buffer, size: int, level: int, progress: Progress | None = None) -> bytes:
    """The `size` bytes that `compress` was given; `size` arbitrary bytes for a payload that it did not write."""
    _check_level(level)
    if size == 0:
        return b""
    coded = np.frombuffer(memoryview(payload), dtype=np.uint8)
    form = int.from_bytes(coded[:_HEAD].tobytes(), "little")
    if form == _LETTERS:
        plain = letters.decompress(coded[_HEAD:], size)
        if progress is not None:
            progress(size, len(coded))
        return plain
    # A copy: the compiled loop has one signature, and the encoder writes where the decoder reads.
    coded = coded[_HEAD:].copy()
    model = Model(level, size, form)
    first = model.start
    state = binary.new_decoder(coded)
    for start in range(0, size, _PIECE):
        stop = min(size, start + _PIECE)
        model.run(first + start, first + stop, kernel.DECODE, coded, state)
        if progress is not None:
            progress(stop, min(_HEAD + int(state[binary.POS]), _HEAD + len(coded)))
    return model.buf[first : first + size].tobytes()


def estimate_incompressible(data: Buffer) -> bool:
    """Whether coding `data` is not worth the time. Quick: about a hundredth of level 1's own."""
    return looks_random(np.frombuffer(memoryview(data), dtype=np.uint8))


def level_of(params: bytes) -> int:
    """The level that the parameters of a segment name. Raises UnsupportedVersionError for another version and
    CorruptDataError for what `encode` does not write."""
    if len(params) == 2 and params[0] != PARAMS_VERSION:
        raise UnsupportedVersionError(f"a segment of the byte model of an unknown version: {params[0]}")
    if len(params) != 2 or params[1] not in LEVELS:
        raise CorruptDataError("a segment of the byte model has parameters that no version writes")
    return params[1]


class ByteModelCoder:
    """The byte model as a predictor of segments."""

    predictor_id = 1
    default_segment_size = 1 << 24
    needs_model = False

    def __init__(self, options: Any = None) -> None:
        """Takes nothing from `options` yet: the level comes with each call."""

    def model_identity(self, progress: Any = None) -> None:
        return None

    def encode(self, data: bytes, *, options: Any, threads: int, progress: Any) -> tuple[bytes, bytes]:
        """(version and level, payload); the data itself, for the caller to store, if it cannot be predicted."""
        if estimate_incompressible(data):
            return b"", bytes(data)
        level = min(options.level, max(LEVELS))
        step = None if progress is None else lambda done, coded: progress(done, coded, 0)
        return bytes([PARAMS_VERSION, level]), compress(data, level, step)

    def decode(self, params: bytes, payload: bytes, plain_size: int, *, threads: int, progress: Any) -> bytes:
        """Raises UnsupportedVersionError for another version, CorruptDataError for what `encode` does not write."""
        level = level_of(params)
        step = None if progress is None else lambda done, coded: progress(done, coded, 0)
        return decompress(payload, plain_size, level, step)
