"""Where a stream of plain bytes is cut into segments: after so many bytes, and where text and other data meet.

Looks ahead for half a segment at most. Depends on the bytes only, not on how they arrive. Knows sizes and kinds; does
not know predictors.
"""

from __future__ import annotations

from collections.abc import Iterator

from nacz.kinds import WINDOW, best_cut, is_text

__all__ = ["Cutter"]

# As many windows must be of another kind in a row. A segment costs some 30 bytes and what its predictor forgets, which
# for the byte model is more; text that the byte model gets instead of the language model costs about an eighth.
_RUN = 4
_SMALLEST = 1 << 16  # segments that are wanted smaller are not cut by kind


class Cutter:
    """Cuts a stream into segments of `size` bytes. The last of several has between a half and one and a half of it, so
    that no short rest has to be learned from nothing.

    With `binary_size` the stream is also cut where text begins or ends, if it stays so for four windows, and this is
    the size for what is not text.
    """

    def __init__(self, size: int, binary_size: int | None = None) -> None:
        self._size = self._text_size = size
        self._binary_size = size if binary_size is None else binary_size
        self._by_kind = binary_size is not None and min(size, binary_size) >= _SMALLEST
        self._buffer = bytearray()
        self._base = 0  # offset of the buffer in the stream
        self._is_first = True
        self._is_text: bool | None = None  # of the segment in the buffer, None until it is settled
        self._run_is_text = False
        self._run_start = 0
        self._run = 0  # windows of the same kind up to here

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[bytes, bool]]:
        """Take some more bytes and yield the segments that are certain: (bytes, whether it is the only one)."""
        view = memoryview(data)
        at = 0
        while at < len(view):
            size, wanted = self._wanted()
            if len(self._buffer) >= wanted:  # only where segments have just become smaller again
                yield self._take(size), False
                continue
            stop = wanted
            if self._by_kind:
                window_end = (self._base + len(self._buffer)) // WINDOW * WINDOW + WINDOW
                stop = min(wanted, window_end - self._base)
            piece = view[at : at + stop - len(self._buffer)]
            self._buffer += piece
            at += len(piece)
            if self._by_kind and (self._base + len(self._buffer)) % WINDOW == 0:
                cut = self._look()
                if cut:
                    yield self._take(cut), False
                    continue
            if len(self._buffer) == wanted:
                yield self._take(size), False

    @property
    def held(self) -> bytes:
        """The bytes that were fed and belong to no segment yet."""
        return bytes(self._buffer)

    def learn(self, like_binary: bool) -> None:
        """Give the next segments of text the size of what is not text, or their own: `like_binary` says whether the
        last segment was coded like that, so that its predictor shall not forget too early."""
        self._text_size = max(self._size, self._binary_size) if like_binary and self._by_kind else self._size

    def rest(self, is_end: bool = True) -> Iterator[tuple[bytes, bool]]:
        """Yield what is left, if anything; `is_end`: nothing more will come."""
        while len(self._buffer) >= self._wanted()[1]:
            yield self._take(self._wanted()[0]), False
        if self._buffer:
            is_only = self._is_first and is_end
            self._is_text, self._run = None, 0
            yield self._take(len(self._buffer)), is_only

    def _wanted(self) -> tuple[int, int]:
        """Bytes of the next segment, and how many must be known before it is cut."""
        size = self._binary_size if self._is_text is False else self._text_size
        return size, size + size // 2 + 1

    def _take(self, size: int) -> bytes:
        segment = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._base += size
        self._is_first = False
        return segment

    def _look(self) -> int:
        """Judge the window that has just become complete; return where to cut the buffer, 0 for nowhere."""
        end = self._base + len(self._buffer)
        start = max(end - WINDOW, self._base)
        kind = is_text(memoryview(self._buffer)[start - self._base :])
        if kind != self._run_is_text or self._run == 0:
            self._run_is_text, self._run_start, self._run = kind, start, 0
        self._run += 1
        if self._run != _RUN or kind == self._is_text:
            return 0
        before, self._is_text = self._is_text, kind
        if before is None:
            return 0
        first = max(self._run_start - WINDOW, self._base)
        part = bytes(memoryview(self._buffer)[first - self._base : self._run_start + WINDOW - self._base])
        return first - self._base + best_cut(part, first, before)
