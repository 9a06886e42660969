"""Threads that work on one forward pass together, and passes that follow each other through the layers.

One lane is one chain of positions, yet threads can be at it together in two ways. A decoder, whose few rows wait for
weights, keys and values, lets each thread make some columns of every product and some heads: all `meet` after each
step. An encoder forwards a block of positions while another thread, a layer behind it, forwards the next block, which
sees the keys and values of the former: it `follow`s. Neither changes what is added to what, so no bit depends on it.

Who waits looks again and again, since a step takes microseconds; after a while it lets others have the processor.

Knows counters in memory. Does not know what is computed between them, nor who starts the threads.
"""

from __future__ import annotations

import platform
import sys
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from nacz.kernels.compile import inner, intrinsic
from nacz.kernels.compile import numba_types as types
from nacz.kernels.tiles import I32, I64, address, function

FINISHED = 1 << 62
LINE = 8  # int64 in a cache line: a counter has one for itself
PATIENCE = 4096  # looks before others may have the processor


class Share(NamedTuple):
    """What one thread does of a pass: part `part` of `parts`. met: int64[parts * LINE], how often each part has met the
    others; before, after: int64[1], through how many layers the block before and this one have attended."""

    part: int
    parts: int
    met: Any
    before: Any
    after: Any


class Turn(NamedTuple):
    """A block's place among those of its lane: `before` and `after` of `Share`."""

    before: Any
    after: Any


def first_turn() -> Turn:
    """The turn of a block that follows nobody."""
    return Turn(np.full(1, FINISHED, np.int64), np.zeros(1, np.int64))


def next_turn(turn: Turn) -> Turn:
    """That of the block after."""
    return Turn(turn.after, np.zeros(1, np.int64))


def end_turn(turn: Turn) -> None:
    """Let nobody wait for this block any more, whether it was forwarded or not."""
    turn.after[0] = FINISHED


def make_shares(parts: int) -> list[Share]:
    """Shares of passes that follow nobody."""
    met, turn = np.zeros(parts * LINE, np.int64), first_turn()
    return [Share(part, parts, met, turn.before, turn.after) for part in range(parts)]


def release(share: Share) -> None:
    """Let nobody wait for this part any more: it will not come."""
    share.met[share.part * LINE] = FINISHED


@intrinsic
def _load(typingctx: Any, place: Any) -> Any:
    """int64 at an address; what is read afterwards is no older."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _store(typingctx: Any, place: Any, value: Any) -> Any:
    """int64 to an address; who reads it sees what was written before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _pause(typingctx: Any) -> Any:
    """Tell the processor that this loop waits."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            builder.call(function(builder, "llvm.x86.sse2.pause", ir.VoidType()), [])
        elif platform.machine() in ("aarch64", "arm64"):
            builder.call(function(builder, "llvm.aarch64.hint", ir.VoidType(), I32), [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _give_way(typingctx: Any) -> Any:
    """Let another thread have the processor."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sys.platform != "win32":
            builder.call(function(builder, "sched_yield", I32), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inner
def _reach(place: Any, value: Any) -> None:
    """Wait until the counter at an address is at least `value`."""
    looks = 0
    while _load(place) < value:
        _pause()
        looks += 1
        if looks > PATIENCE:
            _give_way()


@inner
def meet(share: Share) -> None:
    """Wait until all parts have come here. What any of them has written can be read afterwards."""
    if share.parts == 1:
        return
    met = address(share.met, 0)
    times = share.met[share.part * LINE] + 1
    _store(met + share.part * LINE * 8, times)
    for part in range(share.parts):
        _reach(met + part * LINE * 8, times)


@inner
def follow(share: Share, layers: int) -> None:
    """Wait until the block before has attended in so many layers."""
    _reach(address(share.before, 0), layers)


@inner
def pass_on(share: Share, layers: int) -> None:
    """Tell the block after that this one has attended in so many layers."""
    _store(address(share.after, 0), layers)


@inner
def begin_of(n: int, share: Share) -> int:
    """Where this part of n things begins; `end_of` is where it ends."""
    return n * share.part // share.parts


@inner
def end_of(n: int, share: Share) -> int:
    """See `begin_of`."""
    return n * (share.part + 1) // share.parts
