"""Byte model."""
from __future__ import annotations

import functools

import numpy as np

from ...coder import binary
from . import kernel, tables
from . import contexts as cx
from .settings import LEVELS


@functools.cache
def _compiled(level):
    return kernel.build(LEVELS[level])


class Model:
    def __init__(self, level, size):
        L = self.level = LEVELS[level]
        bits = min(L.table_bits, max(16, (max(size,1) * L.contexts * 48).bit_length()))
        self.buf = np.zeros(size + 8, np.uint8)
        self.t = np.zeros(kernel.DIRECT + (1 << bits), np.uint8)
        p0 = tables.initial_probability_table().astype(np.int64)
        self.sm = np.tile((p0 << 9 | 12).astype(np.int32), L.contexts)
        self.rm = np.zeros((L.contexts + 1, 16, 2), np.int32)
        for k in range(16):
            self.rm[:, k, 1] = ((k * 2 + 1 << 22) // (k * 2 + 2)) << 9
            self.rm[:, k, 0] = ((1 << 22) // (k * 2 + 2)) << 9
        self.rm = self.rm.reshape(-1)
        self.mm = np.zeros((L.matches, 32, 9, 2), np.int32)
        for k in range(32):
            self.mm[:, k, :, 1] = ((k * 2 + 1 << 22) // (k * 2 + 2)) << 9
            self.mm[:, k, :, 0] = ((1 << 22) // (k * 2 + 2)) << 9
        self.mm = self.mm.reshape(-1)
        w = np.zeros((L.set_rows, L.mixer_width), np.int32)
        w[:, 0 : L.contexts * L.inputs : L.inputs] = L.weight
        w[:, L.contexts * L.inputs : L.contexts * L.inputs + 2 * (L.direct + L.matches) : 2] = L.weight
        self.w = w.reshape(-1)
        self.wc = np.zeros(L.set_rows, np.int32)
        self.dt = np.full(16 << 18, 1 << 30, np.int32)
        self.dh = np.zeros(8, np.int64)
        self.dbase = np.zeros(8, np.uint32)
        self.didx = np.zeros(8, np.uint32)
        self.w2 = np.full(256 * L.sets, 65536 // L.sets, np.int32)
        self.x = np.zeros(L.mixer_width, np.int32)
        self.hs = np.zeros(L.contexts, np.uint32)
        self.h = np.zeros(L.contexts, np.int64)
        self.base = np.zeros(L.contexts, np.uint32)
        self.base0 = np.zeros(L.contexts, np.uint32)
        self.idx = np.zeros(2 * L.contexts, np.uint32)
        hb = min(22, max(10, size.bit_length()))
        self.heads = np.zeros(L.matches << hb, np.int32)
        self.ind = np.zeros(2 * 65536, np.int32)
        sq = tables.squash_table()
        knots = np.minimum(np.arange(kernel.KNOTS) * 256, 2 * kernel.ORIGIN - 1)
        self.apm = np.tile((sq[knots].astype(np.int32) << 6), 2 * 65536)
        self.sel = np.zeros(16, np.int64)
        self.xo = np.zeros(32, np.int64)
        self.reg = np.zeros(cx.REG_SIZE, np.int64)
        self.minlen = np.array(L.match_lengths, np.int64)
        self.consts = (tables.next_state_table(), tables.stretch_table(), sq, tables.reciprocal_table())

    def run(self, start, stop, mode, payload, coder):
        _compiled(self.level.number)(self.buf, start, stop, mode, payload, coder, self.reg, self.t, self.sm, self.rm, self.mm,
            self.w, self.wc, self.w2, self.x, self.h, self.hs, self.base, self.base0, self.idx, self.heads, self.ind, self.dt, self.dh, self.dbase, self.didx, self.apm, self.sel, self.xo,
            *self.consts, self.minlen)


def compress(data, level, progress=None):
    n = len(data)
    m = Model(level, n)
    m.buf[:n] = np.frombuffer(data, np.uint8)
    st = binary.new_encoder()
    out = np.zeros(n * 2 + 100, np.uint8)
    m.run(0, n, 1, out, st)
    return out[: binary.finish(st, out)].tobytes()


def decompress(payload, size, level, progress=None):
    m = Model(level, size)
    a = np.frombuffer(payload, np.uint8)
    # same signature as the encoder: a writable copy
    a = a.copy()
    st = binary.new_decoder(a)
    m.run(0, size, 2, a, st)
    return m.buf[:size].tobytes()
