"""A `Connection` as a trio stream, for libraries such as trio-websocket."""

from __future__ import annotations

import math

import trio

from ..errors import PeerError
from ..host.net.sockets import Connection
from .heads import READ_BYTES


class ConnectionStream(trio.abc.Stream):
    """trio.abc.Stream over a connection that was partly read already.

    Args:
        first: bytes to return before those of the connection.
        limit_bytes: how much may be received behind ``first``; with more the stream breaks.
    """

    def __init__(self, connection: Connection, first: bytes = b"", *, limit_bytes: float = math.inf) -> None:
        self._connection = connection
        self._first = first
        self._left_bytes = limit_bytes

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises trio.BrokenResourceError. If it is cancelled, it may have sent a part."""
        try:
            await self._connection.send_all(bytes(data))
        except PeerError as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Raises trio.BrokenResourceError."""
        try:
            await self._connection.wait_writable()
        except PeerError as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Raises trio.BrokenResourceError."""
        limit = max_bytes or READ_BYTES
        if self._first:
            await trio.lowlevel.checkpoint()
            received, self._first = self._first[:limit], self._first[limit:]
            return received
        buffer = memoryview(bytearray(limit))
        try:
            size = await self._connection.receive(buffer)
        except PeerError as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise trio.BrokenResourceError("the other end has sent too much")
        return bytes(buffer[:size])

    async def aclose(self) -> None:
        self._connection.close()
        await trio.lowlevel.checkpoint()
