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
from nacz.kernels.compile import compiled

from . import contexts as cx
from .arith import LANES, learn16, mac, touch
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
from .tables import LOGIT_MAX

TRAIN, ENCODE, DECODE = 0, 1, 2

ORIGIN = LOGIT_MAX + 1


@njit(nogil=True, inline="always")
def dot(x: Any, w: Any, at: Any, n: int) -> Any:
    total: Any = np.int32(0)
    for i in range(n):
        total = mac(total, x[i], w[at + i])
    return total >> 8


@njit(nogil=True, inline="always")
def learn(x: Any, w: Any, at: int, n: int, e: int) -> None:
    for i in range(0, n, LANES):
        learn16(w, at + i, x, i, np.int32(e))


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
    FADES = level.rate_decay_binary
    # Only numbers are captured: a captured function has a new identity in every process, and Numba's cache would
    # never find the compiled loop again (2.9 s per start instead of a fraction).
    ND = level.direct
    PAIRS = level.pairs
    NP = len(PAIRS)
    PBASE = N * 256
    PLACES = N if K < 3 else 2 * N
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

    @compiled
    def run(  # type: ignore[no-untyped-def]
        buf, start, stop, mode, payload, coder, reg, t, sm, rm, mm, w, wc, w2, x, h, slot_hash, base,
        base0, idx,
        heads, ind, dt, dbase, didx, apm, sel, xo, nex, stretch, squash, rec, minlen,
    ):  # fmt: skip
        lines = (len(t) - DIRECT) >> 6
        hmask = (len(heads) // NM) - 1
        midx = xo[16:]
        rdecay = FADES if reg[cx.KIND] & cx.BINARY else RDECAY
        for pos in range(start, stop):
            # ---- per byte: match candidates, contexts
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
            if LEVEL == 1:
                cx.contexts_1(h, reg, buf, pos, ind)
            elif LEVEL == 2:
                cx.contexts_2(h, reg, buf, pos, ind)
            else:
                cx.contexts_3(h, reg, buf, pos, ind)
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
                if NP > 0:
                    for i in range(NP):
                        j = PBASE + (i << 16) + ((idx[PAIRS[i][0]] & 255) << 8) + (idx[PAIRS[i][1]] & 255)
                        idx[PLACES + i] = j
                        x[MBASE + 2 * NM + 1 + i] = stretch[sm[j] >> 19]
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
                    e = ((goal - squash[xo[k] + ORIG]) * (RATE + RBOOST * rdecay // (rdecay + v))) >> 8
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
                for i in range(NP):
                    adapt(sm, idx[PLACES + i], goal22, LIMIT, rec)
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
