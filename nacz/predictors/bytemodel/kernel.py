"""The loop over bits: look up, mix, refine, code, learn. One compiled function per level from one source.

Knows slots, adaptive maps, mixers and the binary coder; knows no files and no meaning of a context. Integer
arithmetic only: shifts of non-negative amounts, products that stay inside int64, indices masked or bounded, so the
interpreted function (`.py_func`) and the compiled one cannot differ, nor can two machines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from nacz.coder.binary import decode_bit, encode_bit

from . import contexts as cx
from .arith import LANES, learn16, mac, touch
from .settings import Level
from .tables import LOGIT_MAX

TRAIN, ENCODE, DECODE = 0, 1, 2
AHEAD = 8  # bytes whose slots are on their way while the primer is read

SLOT = 21  # two check bytes, 15 states, last byte, its run, two spare
WAYS = 3  # slots per 64-byte line
ROW = 32
DIRECT = (257 * 17 + 1) * ROW  # order 0 and order 1 need no check: rows of 32 bytes, and one row to end on a whole line
DIRECT_BITS = 18  # log2 of the rows of plain probabilities
ORIGIN = LOGIT_MAX + 1


@njit(cache=True, nogil=True, inline="always")
def dot(x: Any, w: Any, at: Any, n: int) -> Any:
    total: Any = np.int32(0)
    for i in range(n):
        total = mac(total, x[i], w[at + i])
    return total >> 8


@njit(cache=True, nogil=True, inline="always")
def learn(x: Any, w: Any, at: int, n: int, e: int) -> None:
    for i in range(0, n, LANES):
        learn16(w, at + i, x, i, np.int32(e))


@njit(cache=True, nogil=True, inline="always")
def find_slot(t: Any, h: Any, at: Any) -> Any:
    """The slot of hash `h` in the line at `at`: its own if there, else the least experienced one, emptied."""
    check = h & 0xFFFF
    lo = check & 0xFF
    hi = check >> 8
    if t[at] + t[at + 1] * 256 == check:
        return at
    if t[at + 21] + t[at + 22] * 256 == check:
        return at + 21
    if t[at + 42] + t[at + 43] * 256 == check:
        return at + 42
    a = t[at + 2]
    b = t[at + 23]
    c = t[at + 44]
    if b < a:
        at += 21
        a = b
        if c < a:
            at += 21
    elif c < a:
        at += 42
    t[at] = lo
    t[at + 1] = hi
    for i in range(2, SLOT):
        t[at + i] = 0
    return at


@njit(cache=True, nogil=True, inline="always")
def row_hash(h: Any, row: Any) -> Any:
    """The hash of a context together with its first or second nibble's row."""
    return ((h + row * 0x35A7BD3B) * 0x3D4D51CB) & cx.M32


@njit(cache=True, nogil=True, inline="always")
def line_of(v: Any, lines: Any) -> Any:
    return DIRECT + (((v >> 8) ^ (v << 3)) & (lines - 1)) * 64


@njit(cache=True, nogil=True, inline="always")
def adapt(maps: Any, j: Any, goal: Any, limit: int, rec: Any) -> None:
    """Move the map at `j`, a probability of 22 bits above a count of 9, towards `goal`: an average that slows down."""
    v = maps[j]
    n = v & 511
    p = v >> 9
    p += ((goal - p) * rec[n]) >> 16
    if n < limit:
        n += 1
    maps[j] = (p << 9) | n


@njit(cache=True, nogil=True, inline="always")
def count_run(t: Any, at: Any, c: Any) -> None:
    """The last byte that was seen in a slot, and how many times in a row."""
    if t[at + 17] == c and t[at + 18] != 0:
        if t[at + 18] < 255:
            t[at + 18] += 1
    else:
        t[at + 17] = c
        t[at + 18] = 1


@njit(cache=True, nogil=True, inline="always")
def direct_hash(reg: Any, i: int) -> Any:
    """Contexts of the plain probabilities: orders 1 to 3 and the word."""
    c4 = reg[cx.C4]
    if i == 0:
        return c4 & 0xFF
    if i == 1:
        return c4 & 0xFFFF
    if i == 2:
        return c4 & 0xFFFFFF
    return cx.mix(reg[cx.WORD0], c4 & 0xFF)


@njit(cache=True, nogil=True)
def head_line(buf: Any, pos: int, count: int, mask: int) -> int:
    """The line of the heads for the `count` bytes before `pos`; the byte at `pos` chooses inside of it."""
    h = 0
    for j in range(count):
        h = (h * 0x2F0B4C47 + buf[pos - 1 - j] + 1) & cx.M32
    return (((h * 0x2C1B3C6D) & cx.M32) >> 8) & mask & ~15


@njit(cache=True, nogil=True, inline="always")
def remember(t: Any, at: Any, bit: int, nex: Any) -> None:
    """One more bit for the history at `at`."""
    t[at] = nex[2 * t[at] + bit]


def build_reader(level: Level) -> Any:
    """Compile-time specialisation, for one level, of the loop that reads the primer.

    Reading only fills what is looked up by context; maps and mixers learn enough from the part of the primer that comes
    last. As all bytes are known, slots are asked for AHEAD bytes before they are used.
    """
    LEVEL = level.number
    N = level.contexts
    FIRST_HASHED = level.first_hashed
    NM = level.matches
    RUNS = level.runs
    ND = level.direct
    DMASK = (1 << DIRECT_BITS) - 1
    WAITING = 2 * (N + ND)

    @njit(cache=True, nogil=True)
    def read(  # type: ignore[no-untyped-def]
        buf, start, stop, reg, t, h, base, base0, heads, ind, dt, nex, rec, minlen, waiting
    ):
        lines = (len(t) - DIRECT) >> 6
        hmask = (len(heads) // NM) - 1
        for pos in range(start, stop + AHEAD):
            queue = (pos & (AHEAD - 1)) * WAITING
            old = pos - AHEAD
            if old >= start:
                c = np.int64(buf[old])
                c1 = np.int64(buf[old - 1]) if old > 0 else 0
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


def build(level: Level) -> Any:
    """Compile-time specialisation of the loop for one level."""
    LEVEL = level.number
    N = level.contexts
    K = level.inputs
    FIRST_HASHED = level.first_hashed
    NM = level.matches
    SETS = level.sets
    FINALS = level.finals
    NI = level.mixer_width
    RUNS = level.runs
    LIMIT = level.limit
    RATE = level.rate
    RATE2 = level.rate2
    RBOOST = level.rate_boost
    RDECAY = level.rate_decay
    # Only numbers are captured: a captured function has a new identity in every process, and Numba's cache would
    # never find the compiled loop again (2.9 s per start instead of a fraction).
    ND = level.direct
    DLIMIT = 255
    DBASE = N * K
    MBASE = level.match_input
    DMASK = (1 << DIRECT_BITS) - 1
    KNOTS = level.knots
    BUCKET = 13 - (KNOTS.bit_length() - 1)  # log2 of the logits between two knots of an APM
    PART = (1 << BUCKET) - 1
    AMASK = 0x3FFF if LEVEL == 1 else 0xFFFF
    ORIG = ORIGIN
    LMAX = LOGIT_MAX

    @njit(cache=True, nogil=True)
    def run(  # type: ignore[no-untyped-def]
        buf, start, stop, mode, payload, coder, reg, t, sm, rm, mm, w, wc, w2, x, h, slot_hash, base,
        base0, idx,
        heads, ind, dt, dbase, didx, apm, sel, xo, nex, stretch, squash, rec, minlen,
    ):  # fmt: skip
        lines = (len(t) - DIRECT) >> 6
        hmask = (len(heads) // NM) - 1
        midx = xo[16:]
        for pos in range(start, stop):
            # ---- per byte: contexts, match candidates
            if LEVEL == 1:
                cx.contexts_1(h, reg, buf, pos, ind)
            elif LEVEL == 2:
                cx.contexts_2(h, reg, buf, pos, ind)
            else:
                cx.contexts_3(h, reg, buf, pos, ind)
            c4 = reg[cx.C4]
            c1 = c4 & 0xFF
            for m in range(NM):
                r = cx.MATCH0 + 4 * m
                need = minlen[m]
                if pos > need:
                    slot = m * (hmask + 1) + reg[cx.HEADS + m] + ((c1 ^ (c1 >> 4)) & 15)
                    if reg[r + 1] < 16:
                        ptr = heads[slot]
                        if ptr > 0 and ptr != reg[r]:
                            length = 0
                            while length < 32 and ptr > length and buf[ptr - 1 - length] == buf[pos - 1 - length]:
                                length += 1
                            if length >= need and length > reg[r + 1]:
                                reg[r] = ptr
                                reg[r + 1] = length
                                reg[r + 2] = 0
                    heads[slot] = pos
                if pos >= need:
                    k = head_line(buf, pos, need - 1, hmask)
                    reg[cx.HEADS + m] = k
                    touch(heads, m * (hmask + 1) + k)
                reg[r + 3] = buf[reg[r]] + 256 if reg[r] > 0 and (reg[r + 1] > 0 or reg[r + 2] < 8) else 0
            known = 0
            if mode != 2:
                known = buf[pos]
            c0 = 1
            node = 1
            for bitpos in range(8):
                if bitpos == 0 or bitpos == 4:
                    node = 1
                    row = 0 if bitpos == 0 else c0 - 15
                    base[0] = (c1 * 17 + row) * ROW
                    if FIRST_HASHED == 2:
                        base[1] = (256 * 17 + row) * ROW
                    for i in range(FIRST_HASHED, N):
                        v = row_hash(h[i], row)
                        k = line_of(v, lines)
                        idx[i] = k
                        slot_hash[i] = v
                        touch(t, k)
                    for i in range(FIRST_HASHED, N):
                        base[i] = find_slot(t, slot_hash[i], np.int64(idx[i]))
                    for i in range(ND):
                        dbase[i] = (cx.mix(direct_hash(reg, i), row + 32 * i) & DMASK) << 4
                        touch(dt, np.int64(dbase[i]))
                    if RUNS and bitpos == 0:
                        for i in range(N):
                            base0[i] = base[i]
                a0 = (c0 | (c1 << 8)) * KNOTS
                a1 = (65536 + (cx.mix(c4 & 0xFFFFFF, c0) & AMASK)) * KNOTS
                touch(apm, a0)
                touch(apm, a1)
                if KNOTS > 16:
                    touch(apm, a0 + 16)
                    touch(apm, a1 + 16)
                if LEVEL == 3:
                    a2 = (131072 + (cx.mix(c4 & 0xFFFF, c0) & AMASK)) * KNOTS
                    a3 = (196608 + (cx.mix(reg[cx.WORD0] + c1, c0) & AMASK)) * KNOTS
                    touch(apm, a2)
                    touch(apm, a2 + 16)
                    touch(apm, a3)
                    touch(apm, a3 + 16)
                # ---- predict: matches
                longest = 0
                for m in range(NM):
                    r = cx.MATCH0 + 4 * m
                    pb = reg[r + 3]
                    k = MBASE + 2 * m
                    if pb != 0 and (pb >> (8 - bitpos)) == c0:
                        e = (pb >> (7 - bitpos)) & 1
                        length = reg[r + 1]
                        q = length
                        if length >= 16:
                            q = 16 + (length - 16) // 8 if length < 64 else min(22 + length // 64, 31)
                        j = ((m * 32 + q) * 9 + reg[r + 2]) * 2 + e
                        midx[m] = j
                        p = mm[j] >> 9
                        x[k] = stretch[p >> 10]
                        x[k + 1] = (p - 2097152) >> 11
                        if q > longest:
                            longest = q
                    else:
                        midx[m] = -1
                        x[k] = 0
                        x[k + 1] = 0
                # ---- predict: contexts
                hits = 0
                for i in range(N):
                    s = t[base[i] + 1 + node]
                    j = i * 256 + s
                    idx[i] = j
                    p = sm[j] >> 9
                    a = stretch[p >> 10]
                    b = (p - 2097152) >> 11
                    if s == 0:
                        a = 0
                        b = 0
                    x[i * K] = a
                    if K > 1:
                        x[i * K + 1] = b
                    if i < 8:
                        hits += s != 0
                    if K > 2:
                        b = base0[i]
                        rb = t[b + 17] + 256
                        rc = t[b + 18]
                        e = (rb >> (7 - bitpos)) & 1
                        j = (i * 16 + min(rc, 15)) * 2 + e
                        if rc == 0 or (rb >> (8 - bitpos)) != c0:
                            j = N * 32
                        a = stretch[rm[j] >> 19]
                        if j == N * 32:
                            a = 0
                        x[i * K + 2] = a
                        idx[N + i] = j
                for i in range(ND):
                    j = dbase[i] + node
                    didx[i] = j
                    p = dt[j] >> 9
                    x[DBASE + 2 * i] = stretch[p >> 10]
                    x[DBASE + 2 * i + 1] = (p - 2097152) >> 11
                x[MBASE + 2 * NM] = 256
                # ---- mix
                if LEVEL == 1:
                    sel[0] = c0
                elif LEVEL == 2:
                    sel[0] = c0
                    sel[1] = 256 + longest * 8 + hits - 1 if hits > 0 else 256 + longest * 8
                    sel[2] = 512 + c1
                else:
                    sel[0] = c0
                    sel[1] = 256 + longest
                    sel[2] = 512 + c1
                    sel[3] = 768 + ((c4 >> 8) & 0xFF)
                    sel[4] = 1024 + bitpos * 16 + hits
                    sel[5] = 1280 + (reg[cx.CLASSES] & 0xFF)
                    sel[6] = 1536 + min(reg[cx.WORDLEN], 15) * 8 + bitpos
                    sel[7] = 1664 + (reg[cx.CLASSES] & 0xFFF)
                    sel[8] = 5760 + ((c4 >> 16) & 0xFF)
                for k in range(SETS):
                    v = dot(x, w, sel[k] * NI, NI)
                    if v > LMAX:
                        v = LMAX
                    elif v < -LMAX:
                        v = -LMAX
                    xo[k] = v
                if SETS > 1:
                    o2 = c0 * SETS
                    v = 0
                    for k in range(SETS):
                        v += xo[k] * w2[o2 + k]
                    v = min(max(v >> 16, -LMAX), LMAX)
                else:
                    v = xo[0]
                va = v
                if FINALS > 1:
                    # A second opinion by the last byte, averaged as logits.
                    o3 = (256 + c1) * SETS
                    vb = 0
                    for k in range(SETS):
                        vb += xo[k] * w2[o3 + k]
                    vb = min(max(vb >> 16, -LMAX), LMAX)
                    v = (va + vb) >> 1
                pm = squash[v + ORIG]
                # ---- refine
                knot = (v + ORIG) >> BUCKET
                frac = (v + ORIG) & PART
                a0 += knot
                a1 += knot
                p0 = (apm[a0] * (PART + 1 - frac) + apm[a0 + 1] * frac) >> (BUCKET + 6)
                p1 = (apm[a1] * (PART + 1 - frac) + apm[a1 + 1] * frac) >> (BUCKET + 6)
                if LEVEL == 3:
                    a2 += knot
                    a3 += knot
                    p2 = (apm[a2] * (PART + 1 - frac) + apm[a2 + 1] * frac) >> (BUCKET + 6)
                    p3 = (apm[a3] * (PART + 1 - frac) + apm[a3 + 1] * frac) >> (BUCKET + 6)
                    pf = (pm + p0 + 2 * p1 + 2 * p2 + 2 * p3 + 4) >> 3
                else:
                    pf = (pm + p0 + 2 * p1 + 2) >> 2
                if pf < 1:
                    pf = 1
                elif pf > 65535:
                    pf = 65535
                # ---- code
                if mode == 2:
                    bit = decode_bit(coder, payload, pf)
                else:
                    bit = (known >> (7 - bitpos)) & 1
                    if mode == 1:
                        encode_bit(coder, payload, pf, bit)
                # ---- learn
                goal = bit << 16
                if SETS > 1:
                    e = ((goal - squash[va + ORIG]) * RATE2) >> 8
                    for k in range(SETS):
                        w2[o2 + k] += (xo[k] * e + 8192) >> 14
                    if FINALS > 1:
                        e = ((goal - squash[vb + ORIG]) * RATE2) >> 8
                        for k in range(SETS):
                            w2[o3 + k] += (xo[k] * e + 8192) >> 14
                for k in range(SETS):
                    v = wc[sel[k]]
                    if v < 1023:
                        wc[sel[k]] = v + 1
                    e = ((goal - squash[xo[k] + ORIG]) * (RATE + RBOOST * RDECAY // (RDECAY + v))) >> 8
                    learn(x, w, sel[k] * NI, NI, e)
                goal22 = (bit << 22) - bit
                for i in range(N):
                    j = idx[i]
                    adapt(sm, j, goal22, LIMIT, rec)
                    remember(t, base[i] + 1 + node, bit, nex)
                    if K > 2:
                        j = idx[N + i]
                        adapt(rm, j, goal22, LIMIT, rec)
                for i in range(ND):
                    j = didx[i]
                    adapt(dt, j, goal22, DLIMIT, rec)
                for m in range(NM):
                    j = midx[m]
                    if j >= 0:
                        adapt(mm, j, goal22, 255, rec)
                k = a0 + (frac >> (BUCKET - 1))
                apm[k] += (goal22 - apm[k]) >> 6
                k = a1 + (frac >> (BUCKET - 1))
                apm[k] += (goal22 - apm[k]) >> 6
                if LEVEL == 3:
                    k = a2 + (frac >> (BUCKET - 1))
                    apm[k] += (goal22 - apm[k]) >> 6
                    k = a3 + (frac >> (BUCKET - 1))
                    apm[k] += (goal22 - apm[k]) >> 6
                c0 = c0 * 2 + bit
                node = node * 2 + bit
            # ---- per byte: remember
            c = c0 & 0xFF
            buf[pos] = c
            if RUNS:
                for i in range(N):
                    count_run(t, base0[i], c)
            for m in range(NM):
                r = cx.MATCH0 + 4 * m
                if reg[r + 3] != 0:
                    reg[r] += 1
                    if reg[r + 3] == c + 256:
                        if reg[r + 1] < 65535:
                            reg[r + 1] += 1
                        if reg[r + 1] >= 16:
                            reg[r + 2] = 0
                    else:
                        reg[r + 1] = 0
                        if reg[r + 2] < 8:
                            reg[r + 2] += 1
                        if LEVEL == 1:
                            reg[r + 2] = 8
                else:
                    reg[r] = 0
            cx.absorb_indirect(reg, ind, c)
            cx.absorb(reg, pos, c)

    return run
