"""One set of functions for both kinds of transformer, plain and general, told apart by the types of shapes.

Compiled callers get the one that fits when they are compiled. Knows that there are two kinds; does not know what either
computes.
"""

from __future__ import annotations

from typing import Any

from nacz.errors import CorruptDataError
from nacz.kernels.attention import BLOCK, HEAD
from nacz.kernels.compile import overload
from nacz.predictors import general, scratch, transformer
from nacz.predictors.general import GeneralShape
from nacz.predictors.reach import Near
from nacz.predictors.transformer import Cache, Shape
from nacz.weights.exact import Architecture, ExactModel
from nacz.weights.general import SANDWICH, GeneralArchitecture

__all__ = [
    "cache_bytes", "fitted", "forward", "head", "head_part", "make_cache", "make_scratch", "make_scratches",
    "make_shape", "make_weights", "states_have_any_norm",
]  # fmt: skip


def make_shape(arch: Architecture, window: int, near: Near | None = None) -> Shape:
    """Shape for a window of `window` positions, of which near heads of a plain model see the newest. A general model's
    has another type and all that callers ask of a Shape. Raises CorruptDataError when `near` is of another model."""
    made: Any
    if not isinstance(arch, GeneralArchitecture):
        made = transformer.make_shape(arch, window, near)
    elif near is not None:
        raise CorruptDataError("a table of near heads of another model")
    else:
        made = general.make_general_shape(arch, window)
    shape: Shape = made
    return shape


def fitted(shape: Shape, longest: int) -> Shape:
    """The shape with no more cache blocks than a lane of `longest` tokens fills; what is predicted stays the same."""
    fits: Shape = transformer.fitted(shape, longest)
    return fits


def make_weights(model: ExactModel) -> Any:
    """Weights of a model as compiled code takes them."""
    if isinstance(model.architecture, GeneralArchitecture):
        return general.make_general_weights(model)
    return transformer.make_weights(model)


def make_cache(shape: Any, lanes: int) -> Cache:
    """An empty cache."""
    if isinstance(shape, GeneralShape):
        return general.make_general_cache(shape, lanes)
    return transformer.make_cache(shape, lanes)


def make_scratch(shape: Any, rows: int) -> Any:
    """Work space for calls of up to `rows` rows."""
    if isinstance(shape, GeneralShape):
        return general.make_general_scratch(shape, rows)
    return scratch.make_scratch(shape, rows)


def make_scratches(shape: Any, rows: int, parts: int) -> list[Any]:
    """The same for threads that share a pass: `parts` of them, one where a general model runs."""
    if isinstance(shape, GeneralShape):
        return [general.make_general_scratch(shape, rows)]
    return list(scratch.make_scratches(shape, rows, parts))


def cache_bytes(shape: Any, lanes: int) -> int:
    """Memory that the keys and values of `lanes` lanes take, in bytes."""
    width = shape.width if isinstance(shape, GeneralShape) else HEAD
    return lanes * int(shape.begin[-1]) * BLOCK * (2 * width + 12)


def states_have_any_norm(shape: Any) -> int:
    """1 where gains make hidden rows longer or shorter than sqrt(dim), else 0."""
    return int(isinstance(shape, GeneralShape) and bool(shape.features & SANDWICH))


def _is_general(shape: Any) -> bool:
    return getattr(shape, "instance_class", None) is GeneralShape


def forward(kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any) -> None:
    """`forward` of the kind that the shape is of."""
    run = general.general_forward if isinstance(shape, GeneralShape) else transformer.forward
    run(kern, shape, w, cache, s, tokens, groups, trace)


def head(kern: Any, shape: Any, w: Any, s: Any, first: int, m: int, logits: Any) -> None:
    """`head` of the kind that the shape is of."""
    run = general.general_head if isinstance(shape, GeneralShape) else transformer.head
    run(kern, shape, w, s, first, m, logits)


def head_part(kern: Any, shape: Any, w: Any, s: Any, first: int, m: int, logits: Any) -> None:
    """What one of those who share a pass does of `head`."""
    run = general.general_head if isinstance(shape, GeneralShape) else transformer.head_part
    run(kern, shape, w, s, first, m, logits)


# What compiled callers get. "always" puts the call into the caller: as a function of its own it would be one more place
# where all that is below is compiled again.
@overload(forward, inline="always")
def _compiled_forward(kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any) -> Any:
    run = general.general_forward if _is_general(shape) else transformer.forward

    def call(kern: Any, shape: Any, w: Any, cache: Any, s: Any, tokens: Any, groups: Any, trace: Any) -> None:
        run(kern, shape, w, cache, s, tokens, groups, trace)

    return call


@overload(head_part, inline="always")
def _compiled_head_part(kern: Any, shape: Any, w: Any, s: Any, first: Any, m: Any, logits: Any) -> Any:
    run = general.general_head if _is_general(shape) else transformer.head_part

    def call(kern: Any, shape: Any, w: Any, s: Any, first: Any, m: Any, logits: Any) -> None:
        run(kern, shape, w, s, first, m, logits)

    return call


@overload(head, inline="always")
def _compiled_head(kern: Any, shape: Any, w: Any, s: Any, first: Any, m: Any, logits: Any) -> Any:
    run = general.general_head if _is_general(shape) else transformer.head

    def call(kern: Any, shape: Any, w: Any, s: Any, first: Any, m: Any, logits: Any) -> None:
        run(kern, shape, w, s, first, m, logits)

    return call
