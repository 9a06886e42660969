"""The loop that reads the primer: fills what is looked up by context, learns no maps and no mixers.

Knows that all bytes are known, so slots are asked for AHEAD bytes before they are used: a third of the time of the loop
that codes. The part of the primer that comes last teaches the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nacz.kernels.compile import compiled

from . import contexts as cx
from .arith import touch
from .settings import Level
from .slots import (
    DIRECT,
    DIRECT_BITS,
    ROW,
    adapt,
    count_run,
    direct_hash,
    find_slot,
    head_line,
    line_of,
    remember,
    row_hash,
)

AHEAD = 8


def build(level: Level) -> Any:
    """Compile-time specialisation for one level."""
    LEVEL = level.number
    N = level.contexts
    FIRST_HASHED = level.first_hashed
    NM = level.matches
    RUNS = level.runs
    ND = level.direct
    DMASK = (1 << DIRECT_BITS) - 1
    WAITING = 2 * (N + ND)

    @compiled
    def read(  # type: ignore[no-untyped-def]
        buf, start, stop, reg, t, h, base, base0, heads, ind, dt, nex, rec, minlen, waiting
    ):
        lines = (len(t) - DIRECT) >> 6
        hmask = (len(heads) // NM) - 1
        for pos in range(start, stop + AHEAD):
            queue = (pos & (AHEAD - 1)) * WAITING
            old = pos - AHEAD
            if old >= start:
                c: Any = np.int64(buf[old])
                c1: Any = np.int64(buf[old - 1]) if old > 0 else 0
                for half in range(2):
                    row = half * (1 + (c >> 4))
                    base[0] = (c1 * 17 + row) * ROW
                    if FIRST_HASHED == 2:
                        base[1] = (256 * 17 + row) * ROW
                    k = queue + half * N
                    for i in range(FIRST_HASHED, N):
                        v = waiting[k + i]
                        base[i] = find_slot(t, v, line_of(v, lines))
                    if RUNS and half == 0:
                        for i in range(N):
                            base0[i] = base[i]
                    part = c >> 4 if half == 0 else c & 15
                    for i in range(N):
                        b = base[i] + 1
                        remember(t, b + 1, part >> 3, nex)
                        remember(t, b + 2 + (part >> 3), (part >> 2) & 1, nex)
                        remember(t, b + 4 + (part >> 2), (part >> 1) & 1, nex)
                        remember(t, b + 8 + (part >> 1), part & 1, nex)
                    for i in range(ND):
                        j = np.int64(waiting[queue + 2 * N + half * ND + i])
                        node = 1
                        for bitpos in range(4):
                            bit = (part >> (3 - bitpos)) & 1
                            adapt(dt, j + node, (bit << 22) - bit, 255, rec)
                            node = node * 2 + bit
                if RUNS:
                    for i in range(N):
                        count_run(t, base0[i], c)
            if pos < stop:
                if LEVEL == 1:
                    cx.contexts_1(h, reg, buf, pos, ind)
                elif LEVEL == 2:
                    cx.contexts_2(h, reg, buf, pos, ind)
                else:
                    cx.contexts_3(h, reg, buf, pos, ind)
                c = np.int64(buf[pos])
                row = 1 + (c >> 4)
                for i in range(FIRST_HASHED, N):
                    v = row_hash(h[i], 0)
                    waiting[queue + i] = v
                    touch(t, line_of(v, lines))
                    v = row_hash(h[i], row)
                    waiting[queue + N + i] = v
                    touch(t, line_of(v, lines))
                for i in range(ND):
                    v = direct_hash(reg, i)
                    k = (cx.mix(v, 32 * i) & DMASK) << 4
                    waiting[queue + 2 * N + i] = k
                    touch(dt, k)
                    k = (cx.mix(v, row + 32 * i) & DMASK) << 4
                    waiting[queue + 2 * N + ND + i] = k
                    touch(dt, k)
                for m in range(NM):
                    need = minlen[m]
                    if pos > need:
                        c1 = reg[cx.C4] & 0xFF
                        heads[m * (hmask + 1) + reg[cx.HEADS + m] + ((c1 ^ (c1 >> 4)) & 15)] = pos
                    if pos >= need:
                        k = head_line(buf, pos, need - 1, hmask)
                        reg[cx.HEADS + m] = k
                        touch(heads, m * (hmask + 1) + k)
                cx.absorb_indirect(reg, ind, c)
                cx.absorb(reg, pos, c)

    return read
