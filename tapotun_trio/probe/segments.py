"""Detects that the path silently drops large packets, while other measurements run."""

from __future__ import annotations

import math
from typing import Final

import trio

from ..errors import PeerError
from ..host.net.segments import SegmentLimits, SegmentWatch
from ..host.net.sockets import Connection

LOOK_S: Final = 0.3


class LossWatch:
    """Watches connections for the loss of large segments.

    Attributes:
        failure: set when large segments turn out to be lost, after lowering the limit for later connections.
        lost_bytes: the size of the lost segments.
        address: the remote address of their connection.
    """

    def __init__(self, limits: SegmentLimits) -> None:
        self._limits = limits
        self._connections: list[tuple[Connection, SegmentWatch]] = []
        self.failure: PeerError | None = None
        self.lost_bytes = 0
        self.address: str | None = None

    def add(self, connection: Connection) -> None:
        """Watch this connection, too. While it is idle, the kernel sends a TCP keepalive probe once a second."""
        self._connections.append((connection, SegmentWatch()))
        connection.keepalive_after(1)

    async def run(self, scope: trio.CancelScope) -> None:
        """Watch for ever; cancel ``scope`` when large segments are lost."""
        while True:
            await trio.sleep(LOOK_S)
            if self._look(trio.current_time()):
                scope.cancel()
                return

    def _look(self, now: float) -> bool:
        states = [(connection, watch, connection.segments()) for connection, watch in self._connections]
        heard_at: dict[str | None, float] = {}  # by address, since another address may have another path
        for connection, _, state in states:
            if state is not None:
                address = connection.remote_address
                heard_at[address] = max(heard_at.get(address, -math.inf), now - state.ack_age_s)
        for connection, watch, state in states:
            address = connection.remote_address
            if state is None or address is None or not watch.look(now, state, heard_at[address]):
                continue
            self.failure = self._limits.reduce(address, state.mss)
            self.lost_bytes, self.address = state.mss, address
            return True
        return False
