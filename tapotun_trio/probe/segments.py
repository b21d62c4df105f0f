"""Notices that large packets are lost in silence, while other measurements run."""

from __future__ import annotations

import math
from typing import Final

import trio

from ..errors import PeerError
from ..host.net.segments import SegmentLimits, SegmentWatch
from ..host.net.sockets import Connection

LOOK_S: Final = 0.3


class LossWatch:
    """Watches connections.

    Attributes:
        failure: large segments are lost, and the limit for the next connections has been lowered; None: not so far.
        lost_bytes: the size of the segments that are lost.
        address: their other end.
    """

    def __init__(self, limits: SegmentLimits) -> None:
        self._limits = limits
        self._connections: list[tuple[Connection, SegmentWatch]] = []
        self.failure: PeerError | None = None
        self.lost_bytes = 0
        self.address: str | None = None

    def add(self, connection: Connection) -> None:
        """Watch this connection, too. An idle one is asked for signs of life once a second."""
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
        heard_at: dict[str | None, float] = {}  # by address: another one may be reached by another way
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
