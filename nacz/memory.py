"""How much memory decoding a segment takes, told from its header before anything is allocated.

Knows what the predictors keep while they work; does not know limits. Used only when a caller sets one.
"""

from __future__ import annotations

from nacz.errors import CorruptDataError
from nacz.formats.records import SegmentHeader
from nacz.segment_coder import BYTE_MODEL, FLOATS, LANGUAGE_MODEL

__all__ = ["BASE", "decoding_memory"]

# The interpreter with what it imports, compiled code, and the tables that do not depend on the segment.
BASE = 150_000_000
_PER_TOKEN = 16
_PER_LANE = 12  # per lane and word of the vocabulary: frequencies, their sums, logits


def decoding_memory(header: SegmentHeader, model: str | None, offline: bool) -> int:
    """Return about how many bytes decoding the segment takes, weights included.

    For the language model its file is looked up (and fetched unless `offline`), because its shape decides. Raises
    CorruptDataError and ModelError.
    """
    needed: int = BASE + 2 * header.plain_size + 2 * header.payload_size
    if header.predictor in FLOATS:
        from nacz.predictors.float_model import memory_of

        return needed + memory_of(header, model, offline)
    if header.predictor == BYTE_MODEL:
        from nacz.predictors.bytemodel.codec import level_of
        from nacz.predictors.bytemodel.model import memory as tables

        try:
            return needed + tables(level_of(header.params), header.plain_size)
        except CorruptDataError:
            return needed  # another predictor in its place, or one that will refuse
    if header.predictor != LANGUAGE_MODEL:
        return needed
    from nacz.lanes import lane_lengths
    from nacz.predictors.ensemble import memory
    from nacz.predictors.language_model import Params
    from nacz.predictors.learning import learning_bytes
    from nacz.predictors.networks import cache_bytes, fitted, make_shape
    from nacz.weights.store import load_model

    params = Params.from_bytes(header.params, header.plain_size)
    weights = load_model(model, offline=offline)
    shape = make_shape(weights.architecture, params.window, params.near)
    longest = int(lane_lengths(params.tokens, params.lanes)[0])
    needed += sum(array.nbytes for array in weights.arrays.values()) + len(weights.tokenizer)
    needed += cache_bytes(fitted(shape, longest), params.lanes) + _PER_TOKEN * params.tokens
    if params.members:
        needed += memory(params.members, params.tokens, params.lanes, shape.dim, shape.vocab)
    if params.learning is not None:
        needed += learning_bytes(fitted(shape, longest), params.learning, params.lanes)
    return needed + _PER_LANE * params.lanes * shape.vocab
