"""The language-model predictor: a segment of bytes to tokens, to lanes, to one coded stream, and back.

Chooses window and lanes from level and size, never from the machine, and writes all that decoding needs into the
segment's parameters. Knows models, tokenizers and lanes. Does not know files or the container.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nacz.coder.range_coder import RangeEncoder
from nacz.errors import CorruptDataError, UnsupportedVersionError, UsageError
from nacz.formats.varint import decode_varint, encode_varint
from nacz.kernels.attention import BLOCK
from nacz.kernels.cdf import total_bits
from nacz.kernels.dispatch import chosen
from nacz.kernels.rope import POSITIONS
from nacz.lane_decoding import decode_lanes
from nacz.lane_encoding import LearningLosesError, Stake, bits_of, encode_lanes
from nacz.lanes import Engine, Progress, lane_lengths
from nacz.predictors.ensemble import Ensemble, MakeEnsemble, make_ensemble
from nacz.predictors.learning import MAX_ROWS, RATE_UNITS, Learning
from nacz.predictors.members import ALL, BYTES, parse_members
from nacz.predictors.networks import cache_bytes, fitted, make_shape, make_weights, states_have_any_norm
from nacz.predictors.preset import PRESETS, preset, preset_of
from nacz.predictors.reach import Near, near_of
from nacz.predictors.spelling import spelling_of
from nacz.predictors.transformer import CONTRACT, Shape
from nacz.segment_coder import (
    LANGUAGE_MODEL,
    CodecOptions,
    ModelIdentity,
    ModelProgress,
    SegmentProgress,
    TrialProgress,
    trial_progress,
)  # fmt: skip
from nacz.weights.general import GeneralArchitecture
from nacz.weights.store import LoadedModel, load_model

# Bits of the parameters' version: an ensemble mixes in; the network learns; some heads see less than the window.
MIXED, LEARNS, NEAR = 1, 2, 4
# What decides whether a segment learns: at least so many blocks and so many rows, and a quarter of a longer segment, up
# to so many. Beside adapter and ensemble, what learning gives is not to be seen in fewer (docs/experiments.md).
TRIAL_BLOCKS, TRIAL_ROWS, MOST_TRIAL_ROWS = 4, 2048, 16384
SHORT = 64  # tokens up to which an ensemble, which has to be named and knows nothing yet, is tried and may be left out
MIN_WINDOW, MAX_WINDOW = 2 * BLOCK, 128 * BLOCK
MAX_LANES = 256
MAX_CACHE = 2 << 30  # bytes of keys and values that a decoder will ever take
LANE_POSITIONS = 16 * 2048  # lanes x what a head sees in the mean: bounds the cache to 380 MB for the default model


Coded = tuple[bytes, bytes]  # parameters and payload

# By number of layers, from docs/experiments.md.
_RATES = ((6, Learning(6, 70, 512)), (12, Learning(12, 50, 512)), (256, Learning(256, 20, 128)))


class _Effort(NamedTuple):
    """What a level buys: tokens of context, the same and a table of near heads where the model has one, how long a lane
    must be before another one starts, how the network learns, and what mixes in."""

    window: int
    near: tuple[int, int]
    lane_tokens: int
    learning: Learning | None = None
    members: int = ALL


# A lane starts without context, which costs about 50 bytes; more lanes decode faster. Measured in docs/experiments.md.
EFFORTS = {
    4: _Effort(512, (8_192, 1), 3_000),
    5: _Effort(1_024, (8_192, 2), 4_500),
    6: _Effort(2_048, (8_192, 3), 6_000),
    7: _Effort(2_048, (8_192, 3), 16_000, _RATES[1][1]),
    8: _Effort(4_096, (8_192, 4), 32_000, Learning(256, 40, 512)),
    9: _Effort(8_192, (8_192, 0), 100_000, _RATES[2][1]),
}


class Params(NamedTuple):
    """Parameters of a segment, as recorded: window in positions, number of lanes, number of tokens, bits of the
    ensemble's members, how the network learns, which heads see less than the window, and the number of the ensemble's
    preset."""

    window: int
    lanes: int
    tokens: int
    members: int = 0
    learning: Learning | None = None
    near: Near | None = None
    preset: int = 0

    def to_bytes(self) -> bytes:
        version = (MIXED if self.members else 0) | (LEARNS if self.learning else 0) | (NEAR if self.near else 0)
        values = [version, self.window // BLOCK, self.lanes, self.tokens]
        if self.members:
            values += [self.preset, self.members]
        if self.learning:
            values += [self.learning.version, *self.learning[:3]]
        return b"".join(map(encode_varint, values)) + (self.near.to_bytes() if self.near else b"")

    @classmethod
    def from_bytes(cls, data: bytes, plain_size: int) -> Params:
        """Parse and check everything that does not need the model. Raises CorruptDataError, UnsupportedVersionError."""
        at = 0

        def take(count: int) -> list[int]:
            nonlocal at
            values = []
            for _ in range(count):
                value, at = decode_varint(data, at, "a language-model parameter")
                values.append(value)
            return values

        version, members, learning, near, number = take(1)[0], 0, None, None, 0
        if version > MIXED | LEARNS | NEAR:
            raise UnsupportedVersionError(f"language-model parameters of unknown version: {version}")
        blocks, lanes, tokens = take(3)
        if version & MIXED:
            number, members = take(2)
            if number >= PRESETS:
                raise UnsupportedVersionError(f"an ensemble of unknown version: {number}")
            if not 1 <= members <= ALL:
                raise UnsupportedVersionError(f"an ensemble with unknown members: {members}")
        if version & LEARNS:
            kind = take(1)[0]
            if kind not in RATE_UNITS:
                raise UnsupportedVersionError(f"learning of unknown version: {kind}")
            layers, rate, rows = take(3)
            learning = Learning(layers, rate, rows, kind)
            if not (1 <= layers <= 256 and 1 <= rate <= RATE_UNITS[kind] and 1 <= rows <= MAX_ROWS):
                raise CorruptDataError("the parameters of learning are out of range")
        if version & NEAR:
            near, at = Near.from_bytes(data, at)
        window = blocks * BLOCK
        # No token is shorter than half a byte (an escaped byte is two tokens).
        if at != len(data) or not MIN_WINDOW <= window <= MAX_WINDOW or not 1 <= tokens <= 2 * plain_size:
            raise CorruptDataError("the language-model parameters of a segment are out of range")
        if not 1 <= lanes <= min(tokens, MAX_LANES) or tokens > lanes * POSITIONS:
            raise CorruptDataError(f"a segment of {tokens} tokens cannot have {lanes} lanes")
        return cls(window, lanes, tokens, members, learning, near, number)


def default_lanes(tokens: int, seen: int, lane_tokens: int) -> int:
    """Lanes for a segment, a function of its tokens and the level's effort alone. seen: positions that a head sees in
    the mean."""
    # Compiled code looks positions up without a check, so no lane may outgrow the tables.
    return max(1, -(-tokens // POSITIONS), min(tokens // lane_tokens, LANE_POSITIONS // seen, MAX_LANES))


class LanguageModelCoder:
    """Codes segments with an exact language model (see SegmentCoder). Loads the model when first needed."""

    predictor_id = LANGUAGE_MODEL
    # Context does not cross segments: 4 MB is long against any window and short enough to bound what damage costs.
    default_segment_size = 4_000_000
    needs_model = True
    # Learning has to gain on a segment's first blocks. False: what is to learn does so, as golden archives want it.
    on_trial = True

    def __init__(self, options: CodecOptions) -> None:
        self._options = options
        self._model: LoadedModel | None = None
        self._loading = threading.Lock()  # threads may have segments for one coder

    def _loaded(self, progress: ModelProgress | None = None) -> LoadedModel:
        with self._loading:
            if self._model is None:
                self._model = load_model(self._options.model, offline=self._options.offline, progress=progress)
            return self._model

    def model_identity(self, progress: ModelProgress | None = None) -> ModelIdentity:
        model = self._loaded(progress)
        return ModelIdentity.of(model.name, model.weights_hash, model.tokenizer_hash, CONTRACT)

    def encode(
        self, data: bytes, *, options: CodecOptions, threads: int, progress: SegmentProgress | None
    ) -> tuple[bytes, bytes]:
        model = self._loaded()
        tokens = model.vocabulary.encode(data)
        effort = EFFORTS[max(min(options.level, 9), 4)]
        # A window that was asked for is that of all heads.
        near = None if options.window else near_of(model.name, effort.near[1], effort.near[0] // BLOCK)
        # Where most layers see what is near only, those that see all of a longer window cost little.
        longer = near is not None or getattr(model.architecture, "local", 0) > 0
        window = options.window or (effort.near[0] if longer else effort.window)
        if window % BLOCK or not MIN_WINDOW <= window <= MAX_WINDOW:
            raise UsageError(f"window must be a multiple of {BLOCK} from {MIN_WINDOW} to {MAX_WINDOW}: {window}")
        shape = make_shape(model.architecture, window, near)
        seen = BLOCK * int(shape.begin[-1]) // shape.reach.size
        lanes = options.lanes or default_lanes(tokens.size, seen, effort.lane_tokens)
        lanes = min(lanes, int(tokens.size))
        if tokens.size > lanes * POSITIONS:
            raise UsageError(f"too few lanes for {tokens.size} tokens, of which a lane takes {POSITIONS}: {lanes}")
        longest = int(lane_lengths(tokens.size, lanes)[0])
        if near is not None and longest <= BLOCK * min(blocks for blocks in near.heads if blocks):
            near = None  # every head sees everything
        if lanes > MAX_LANES or cache_bytes(fitted(shape, longest), lanes) > MAX_CACHE:
            raise UsageError(f"too many lanes for a decoder's memory: {lanes}")
        members = effort.members if options.ensemble is None else parse_members(options.ensemble)
        learning = learning_of(options.learn, effort.learning, members)
        if isinstance(model.architecture, GeneralArchitecture):
            if options.learn:
                raise UsageError("this kind of model cannot learn while it codes; leave out --learn")
            learning = None
        if learning is not None:
            learning = learning._replace(layers=min(learning.layers, shape.layers))
        if learning is not None and tokens.size <= lanes * max(1, learning.rows // lanes):
            learning = None  # nothing is learned from the last block
        number = preset_of(model.tokenizer_hash) if members else 0

        def run(
            members: int, how: Learning | None, report: Progress | None, **options: Any
        ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
            return encode_lanes(
                chosen()[1], shape, make_weights(model), model.vocabulary.bos_id, tokens, lanes, threads, report,
                ensemble=mixed_in(members, number, model), learning=how, engine=None if how else _engine(model),
                **options,
            )  # fmt: skip

        def params(members: int, how: Learning | None) -> bytes:
            return Params(
                window, lanes, int(tokens.size), members, how, near, number if members else 0
            ).to_bytes()

        def coded(members: int, how: Learning | None, report: Progress | None, stake: Stake | None = None) -> Coded:
            coder = RangeEncoder(total_bits(shape.vocab))
            run(members, how, report, coder=coder, stake=stake)
            return params(members, how), coder.finish()

        report = _translated(progress, model, tokens.size, lanes)
        if learning is not None and not self.on_trial:
            return coded(members, learning, report)
        if learning is not None:
            trial = _Trial(learning, lanes, int(tokens.size), trial_progress(progress))
            plainly = run(members, None, trial.first, steps=trial.steps)[1]
            saying_so = 8 * (len(params(members, learning)) - len(params(members, None)))
            stake = Stake(trial.steps, bits_of(shape, plainly) - saying_so)
            try:
                return coded(members, learning, trial.second(report), stake)
            except LearningLosesError:
                pass
        found = coded(members, None, report)
        if members and options.ensemble is None and tokens.size <= SHORT:
            found = min(found, coded(0, None, None), key=lambda parts: sum(map(len, parts)))
        return found

    def decode(
        self, params: bytes, payload: bytes, plain_size: int, *, threads: int, progress: SegmentProgress | None
    ) -> bytes:
        p = Params.from_bytes(params, plain_size)
        model = self._loaded()
        shape = make_shape(model.architecture, p.window, p.near)
        if cache_bytes(fitted(shape, int(lane_lengths(p.tokens, p.lanes)[0])), p.lanes) > MAX_CACHE:
            raise CorruptDataError("a segment asks for more memory than any encoder would")
        if p.learning is not None and isinstance(model.architecture, GeneralArchitecture):
            raise CorruptDataError("a segment says that a model learns which cannot")
        if p.learning is not None and p.learning.layers > shape.layers:
            raise CorruptDataError("a segment says that more layers learn than there are")
        tokens = decode_lanes(
            chosen()[1], shape, make_weights(model), model.vocabulary.bos_id, np.frombuffer(payload, np.uint8),
            p.tokens, p.lanes, threads, _translated(progress, model, p.tokens, p.lanes),
            mixed_in(p.members, p.preset, model), p.learning, _engine(model) if p.learning is None else None,
        )  # fmt: skip
        return model.vocabulary.decode(tokens)


def learning_of(layers: int | None, usual: Learning | None, members: int) -> Learning | None:
    """How that many last layers learn, the fewer the faster, beside these members; None for none.

    layers: None for as many as the level does, which is `usual`. Rates are those beside an ensemble, which learns what
    repeats; without one there is more to learn, and twice the rate gains more (docs/experiments.md).
    """
    if layers is not None:
        usual = next((how for most, how in _RATES if layers <= most), _RATES[-1][1])._replace(layers=layers)
    if usual is None or usual.layers <= 0:
        return None
    return usual if members else usual._replace(rate=2 * usual.rate)


class _Trial:
    """The first blocks of a segment are coded without learning too, and then go on with it unless that was no larger.

    steps: of each lane. `first` and what `second` returns tell how far the two are; once learning has won, the second
    tells of the segment.
    """

    def __init__(self, learning: Learning, lanes: int, tokens: int, trying: TrialProgress | None) -> None:
        block = max(1, learning.rows // lanes)
        rows = max(TRIAL_ROWS, min(tokens // 4, MOST_TRIAL_ROWS))
        self.steps = block * max(TRIAL_BLOCKS, -(-rows // (block * lanes)))
        self._rows, self._trying = min(self.steps * lanes, tokens), trying

    def first(self, done: NDArray[np.int64], ids: NDArray[np.int32], coded: int) -> None:
        if self._trying is not None:
            self._trying(int(done.sum()), 2 * self._rows)

    def second(self, report: Progress | None) -> Progress | None:
        def told(done: NDArray[np.int64], ids: NDArray[np.int32], coded: int) -> None:
            rows = int(done.sum())
            if rows > self._rows and report is not None:
                report(done, ids, coded)
            elif self._trying is not None:
                self._trying(min(self._rows + rows, 2 * self._rows), 2 * self._rows)

        return told


def _engine(model: LoadedModel) -> Engine | None:
    """Who runs the transformer: torch on the device that NACZ_DEVICE names (cuda:0, say), None for compiled code.
    Raises UsageError."""
    device = os.environ.get("NACZ_DEVICE", "")
    if not device:
        return None
    if importlib.util.find_spec("torch") is None:
        raise UsageError("a device needs the extra `torch`: pip install 'nacz[torch]'")
    from nacz.predictors.torch_transformer import engine_for

    return engine_for(model, device)


def mixed_in(members: int, number: int = 0, model: LoadedModel | None = None) -> MakeEnsemble | None:
    """What makes the ensemble of a segment, from the preset of that number; None without members. model: whose
    vocabulary `bytes` spells."""
    if not members:
        return None
    start = preset(number)
    spelling = spelling_of(model) if model is not None and members & BYTES else None

    def make(starts: NDArray[np.int64], ahead: int, shape: Shape) -> Ensemble:
        normal = states_have_any_norm(shape)
        return make_ensemble(members, starts, ahead, shape.dim, shape.vocab, start, normal, spelling)

    return make


def _translated(
    progress: SegmentProgress | None, model: LoadedModel, tokens: int, lanes: int
) -> Progress | None:
    """Progress in tokens per lane to progress in plain bytes. An escaped byte counts half for each of its tokens."""
    if progress is None:
        return None
    vocabulary = model.vocabulary
    halves = np.zeros(model.architecture.vocab, np.int64)
    halves[: vocabulary.n_vocab] = 2 * vocabulary.lengths.astype(np.int64)
    halves[list(vocabulary.escape_ids)] = 1
    starts = np.concatenate([[0], np.cumsum(lane_lengths(tokens, lanes))])

    def report(done: NDArray[np.int64], ids: NDArray[np.int32], coded: int) -> None:
        plain = sum(int(halves[ids[s : s + n]].sum()) for s, n in zip(starts, done, strict=False)) // 2
        progress(plain, coded, int(done.sum()))

    return report
