"""From scores of a block to byte weights, where a query does not see the block from its beginning.

The vector code of `nacz.kernels.spans.weigh_span` with a first key beside the number of those that are seen, for layers
whose queries see the newest positions only.

Knows spans of 128 numbers. Does not know blocks, heads or layers.
"""

from __future__ import annotations

from typing import Any

from nacz.kernels.compile import intrinsic
from nacz.kernels.compile import numba_types as types
from nacz.kernels.spans import _span as span
from nacz.kernels.spans import weigh


@intrinsic
def weigh_part(
    typingctx: Any, sums: Any, at: Any, key_sum: Any, key_step: Any, value_step: Any, index: Any, step: Any, first: Any,
    seen: Any, out: Any, to: Any,
) -> Any:  # fmt: skip
    """`weigh_span` for keys from `first` on and below `seen` (int32), of which there is at least one."""

    i, f, n = types.int64, types.float32, types.int32
    return span(
        types.UniTuple(types.int32, 3)(sums, i, key_sum, key_step, value_step, i, f, n, n, out, i),
        lambda e: weigh(e, 9, begin=e.args[7], seen=e.args[8]),
    )
