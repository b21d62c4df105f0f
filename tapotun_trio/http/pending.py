"""Connections that have not shown a token yet. Their number is bounded; the newest evicts the oldest."""

from __future__ import annotations

from typing import Final

from ..host.net.sockets import Connection

MAX_CONNECTIONS: Final = 256  # for all endpoints of the process together
PENDING_PART: Final = 4  # pending connections use at most 1/PENDING_PART of the limit on open files


class PendingConnections:
    """Bounds the descriptors that peers without a token can hold.

    They cannot keep an honest client out: its request head comes at once, and the oldest silent connection is evicted
    for it.

    Attributes:
        limit: the maximum number of connections. If it is lowered, existing connections stay until they end.
        evicted: how many connections were aborted to make room for a newer one.
    """

    __slots__ = ("_connections", "evicted", "limit")

    def __init__(self, limit: int) -> None:
        self._connections: dict[Connection, None] = {}  # in the order of their arrival
        self.limit = limit
        self.evicted = 0

    def __len__(self) -> int:
        """How many connections are pending now."""
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        """A connection was accepted. May abort the oldest one; the task of that one then ends with PeerError."""
        if len(self._connections) >= self.limit:
            self.evict()
        self._connections[connection] = None

    def evict(self) -> bool:
        """Abort the oldest connection; its task then ends with PeerError. Returns whether there was one."""
        oldest = next(iter(self._connections), None)
        if oldest is None:
            return False
        del self._connections[oldest]
        self.evicted += 1
        oldest.abort()
        return True

    def remove(self, connection: Connection) -> bool:
        """The connection has shown a token, or has closed. May be called again. Returns whether it was still
        pending."""
        was_here = connection in self._connections
        self._connections.pop(connection, None)
        return was_here
