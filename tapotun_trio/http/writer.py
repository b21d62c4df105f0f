"""The sending half of a stream: an endless HTTP body."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from ..errors import EndReason, PeerError
from ..host.net.sockets import UNLIMITED_BYTES, Connection
from ..wire.body import CHUNK_END, LAST_CHUNK, chunk_head

# How long a stream that is replaced or released may take to send its pending bytes and its end.
FINISH_S: Final = 5.0


class BodyWriter:
    """Writes a body piece by piece. What the socket does not take at once is kept, and goes before the next piece.

    A piece is committed as soon as `send` gets it: once its size line is sent, the rest has to follow. So the caller
    sends small pieces of whole frames, and none while bytes are `pending`.

    Attributes:
        pending: committed bytes that wait for the socket.
        finished: the end of the body was committed.
        broken: why nothing more is written; None: it works. Only `mark_broken` sets it.
    """

    __slots__ = ("_chunked", "broken", "connection", "finished", "pending")

    def __init__(self, connection: Connection, *, chunked: bool = True) -> None:
        self.connection = connection
        self.finished = False
        self.broken: EndReason | None = None
        self._chunked = chunked
        self.pending = memoryview(b"")

    @property
    def can_lend(self) -> bool:
        """Whether others may write chunks of frames to the connection while nothing is `pending`."""
        return self._chunked and self.connection.can_lend_sending

    def send(self, piece: bytes | memoryview) -> None:
        """Commit a piece, which is not empty, and send what the socket takes, in one system call without a copy.

        Call it only while not `pending` and not `finished`. Raises PeerError if the connection is broken.
        """
        parts = self._framed(piece)
        sent = self.connection.try_send(parts)
        if sent < sum(map(len, parts)):
            self.pending = memoryview(unsent_tail(parts, sent))

    def mark_broken(self, reason: EndReason) -> None:
        """Write nothing more: the connection failed, or the peer would not read it. The stream's own task ends it."""
        self.broken = self.broken or reason

    def _framed(self, piece: bytes | memoryview) -> list[bytes | memoryview]:
        return [chunk_head(len(piece)), piece, CHUNK_END] if self._chunked else [piece]

    def _end(self) -> list[bytes]:
        return [LAST_CHUNK] if self._chunked else []

    def flush(self) -> None:
        """Send as much of the pending bytes as the socket takes."""
        self.pending = self.pending[self.connection.try_send((self.pending,)) :]

    async def drain(self) -> None:
        """Wait until nothing is pending. A checkpoint. If it is cancelled, the rest stays pending."""
        while self.pending:
            await self.connection.wait_writable()
            self.flush()
        await trio.lowlevel.checkpoint()

    async def finish(self, last_piece: bytes = b"") -> None:
        """Commit ``last_piece``, if there is one, and the end of the body; then send all pending bytes.

        If it is cancelled, call it again to continue, or close the connection, because the body may lack its end.
        """
        if not self.finished:
            self.finished = True
            parts = [self.pending, *(self._framed(last_piece) if last_piece else ())]
            self.pending = memoryview(b"".join([*parts, *self._end()]))
        await self.drain()

    async def try_finish(self, last_piece: bytes = b"") -> None:
        """`finish`, for a stream that is being given up: an error of the connection is ignored."""
        if not self.broken:
            with suppress(PeerError):
                await self.finish(last_piece)

    async def break_off(self) -> None:
        """Send all pending bytes, and leave the body without its end: the peer must see that the stream broke, and
        after which piece.

        A chunked body then lacks its last chunk, and the caller only has to close the connection. A body that ends with
        its connection can only be broken by a reset. A reset overtakes bytes in flight, so this waits until the peer
        has acknowledged everything, and then resets the connection. If the end of the body was committed, it is sent.

        If this is cancelled, it may be called again to continue. Raises PeerError.
        """
        self.connection.limit_unsent(UNLIMITED_BYTES)  # what the kernel holds is still sent after the close
        if self.pending:
            self.flush()
        await self.drain()
        if not self._chunked and not self.finished:
            await self.connection.wait_acknowledged()
            self.connection.abort()

    async def try_break_off(self) -> None:
        """`break_off`, for a stream that is being given up: an error of the connection is ignored."""
        if not self.broken:
            with suppress(PeerError):
                await self.break_off()


def unsent_tail(parts: list[bytes | memoryview], sent: int) -> bytes:
    """A copy of the parts without their first ``sent`` bytes."""
    rest: list[bytes | memoryview] = []
    for part in parts:
        if sent < len(part):
            rest.append(memoryview(part)[sent:] if sent else part)
            sent = 0
        else:
            sent -= len(part)
    return b"".join(rest)
