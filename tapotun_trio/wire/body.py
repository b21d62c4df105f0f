"""Finds the bytes of an endless HTTP/1.1 body among the bytes that frame it.

A decoder is called repeatedly. Each call returns the next *span* of a buffer that contains body bytes only. A decoder
copies nothing and does not know frames. Chunk boundaries have no meaning to a reader of the body.

Layout of a chunked body (RFC 9112 section 7.1)::

    1f4 [;extension] CR LF   <500 bytes> CR LF   ...   0 CR LF  [trailer-field CR LF]*  CR LF
    \\____ size line ____/                              last-chunk                     end

Untrusted input; raises PeerError only. Bare LF, white space before a size, signs and empty sizes are refused, because
bytes that two parsers read differently can smuggle requests (RFC 9112 section 11.2).
"""

from __future__ import annotations

import re
from mmap import mmap
from typing import Final, Protocol

from ..errors import EndReason, PeerError

MAX_LINE_BYTES: Final = 1024  # a size line with extensions, or one trailer field; real lines are ten times shorter
MAX_TRAILER_BYTES: Final = 8 * 1024
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_MAX_HEX_DIGITS: Final = 16  # 2**64; h11 takes 20

# A size line as nearly every sender writes it, parsed in one step. Finding it, cutting it out and checking it piece by
# piece costs three times as much: whenever that code runs, the CPU's caches are cold.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n").match

# A field of the trailer (RFC 9112 section 5). A request that is smuggled in behind a missing end does not match.
_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")

_SIZE, _PAYLOAD_END, _TRAILER = range(3)


class Body(Protocol):
    """A body decoder. ``buffer[pos:end]`` are the bytes from the socket that were not decoded yet."""

    @property
    def ended(self) -> bool:
        """Whether the body is complete. Then the bytes from the last span's stop on follow the body."""

    def span(self, buffer: bytearray | mmap, pos: int, end: int) -> tuple[int, int]:
        """The next ``(start, stop)`` of body bytes within ``buffer[pos:end]``; call again with pos = stop.

        An empty span has one of three meanings. If its stop is ``end``, all input was used. If the body has `ended`,
        what begins at its stop follows the body. Otherwise there was much framing and no body byte yet: call again,
        maybe after other work. Raises PeerError for malformed framing.
        """

    def eof(self) -> None:
        """The connection ended. Raises PeerError unless the body may end here."""


class ChunkedBody:
    """``Transfer-Encoding: chunked``. Trailers are checked and discarded."""

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # payload bytes of the current chunk that have not come yet
        self._line = b""  # the beginning of a line whose end has not come yet
        self._state = _SIZE
        self._trailer_bytes = 0

    def span(self, buffer: bytearray | mmap, pos: int, end: int) -> tuple[int, int]:
        while True:
            if left := self._left:
                stop = pos + left
                if stop > end:
                    stop = end
                self._left = left - (stop - pos)
                return pos, stop
            if pos == end or self.ended:
                return pos, pos
            if not self._line:  # a shortcut for the ordinary case; the code below handles it, too
                if self._state == _PAYLOAD_END and pos + 2 <= end and buffer[pos : pos + 2] == b"\r\n":
                    self._state = _SIZE
                    pos += 2
                    if pos == end:
                        return pos, pos
                if self._state == _SIZE and (size := _SIZE_LINE(buffer, pos, end)):
                    self._left = int(size[1], 16)
                    self._state = _PAYLOAD_END if self._left else _TRAILER
                    pos = size.end()
                    continue
            newline = buffer.find(b"\n", pos, end)
            stop = newline + 1 if newline >= 0 else end
            line = self._line + buffer[pos:stop]
            if len(line) > MAX_LINE_BYTES:
                raise PeerError(f"chunk line longer than {MAX_LINE_BYTES} bytes", reason=EndReason.BAD_CHUNK)
            pos = stop
            if newline < 0:
                self._line = line
                return pos, pos
            self._line = b""
            if line[-2:-1] != b"\r":
                raise PeerError("chunk line ends in a bare LF", reason=EndReason.BAD_CHUNK)
            self._take_line(line[:-2])

    def _take_line(self, line: bytes) -> None:
        if self._state == _PAYLOAD_END:
            if line:
                raise PeerError("chunk is longer than its size says", reason=EndReason.BAD_CHUNK)
            self._state = _SIZE
        elif self._state == _SIZE:
            self._left = _chunk_size(line)
            self._state = _PAYLOAD_END if self._left else _TRAILER
        elif line:
            if not _FIELD.fullmatch(line):
                raise PeerError("a line of the trailer is not a header field", reason=EndReason.BAD_CHUNK)
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise PeerError(f"trailers longer than {MAX_TRAILER_BYTES} bytes", reason=EndReason.BAD_CHUNK)
        else:
            self.ended = True

    def eof(self) -> None:
        if not self.ended:
            raise PeerError("connection closed inside a chunked body", reason=EndReason.CLOSED)

    def lend(self) -> tuple[int, bool] | None:
        """The state, for another decoder that continues: how many payload bytes of the current chunk have not come yet,
        and whether a chunk has begun before. None: only this decoder can continue, because it holds a part of a line,
        or the trailer has begun."""
        if self._line or self._state == _TRAILER:
            return None
        return self._left, self._state == _PAYLOAD_END

    def take_back(self, left: int, after_payload: int) -> None:
        """Continue from the state of the other decoder; see `lend`."""
        self._left = left
        self._state = _PAYLOAD_END if after_payload else _SIZE


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not digits or len(digits) > _MAX_HEX_DIGITS or not _HEX.issuperset(digits):
        raise PeerError("chunk size is not a hexadecimal number", reason=EndReason.BAD_CHUNK)
    return int(digits, 16)


class LengthBody:
    """``Content-Length: n``: the next n bytes, without any framing."""

    __slots__ = ("_left",)

    def __init__(self, length_bytes: int) -> None:
        self._left = length_bytes

    @property
    def ended(self) -> bool:
        return self._left == 0

    def span(self, buffer: bytearray | mmap, pos: int, end: int) -> tuple[int, int]:
        stop = min(end, pos + self._left)
        self._left -= stop - pos
        return pos, stop

    def eof(self) -> None:
        if self._left:
            raise PeerError(f"connection closed {self._left} bytes before the body's end", reason=EndReason.CLOSED)


class CloseBody:
    """A body without framing that ends with its connection (RFC 9112 section 6.3, item 8): an HTTP/1.0 response."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False

    def span(self, buffer: bytearray | mmap, pos: int, end: int) -> tuple[int, int]:
        return pos, end

    def eof(self) -> None:
        self.ended = True


def chunk_head(size_bytes: int) -> bytes:
    """The size line before a chunk of ``size_bytes`` bytes, which must be above 0: a chunk of 0 bytes ends the body."""
    return b"%x\r\n" % size_bytes


CHUNK_END: Final = b"\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
