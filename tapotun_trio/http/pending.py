"""Connections that have not shown a token yet: a bounded number, the oldest pushed out by the newest."""

from __future__ import annotations

from typing import Final

from ..host.net.sockets import Connection

MAX_CONNECTIONS: Final = 256


class PendingConnections:
    """Whoever holds connections open without a token costs a bounded number of descriptors, and cannot keep an
    honest client out: that one's head comes at once, and the oldest silent connection goes for it."""

    __slots__ = ("_connections", "_limit", "evicted")

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self._connections: dict[Connection, None] = {}  # in the order of their coming
        self._limit = limit
        self.evicted = 0

    def enter(self, connection: Connection) -> None:
        """A connection was accepted. May abort the oldest one here; its task then ends with PeerError."""
        if len(self._connections) >= self._limit:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            self.evicted += 1
            oldest.abort()
        self._connections[connection] = None

    def leave(self, connection: Connection) -> bool:
        """It showed a token, or it is gone. May be called again. Returns whether it was still here."""
        was_here = connection in self._connections
        self._connections.pop(connection, None)
        return was_here
