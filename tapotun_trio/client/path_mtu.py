"""Detects that the path drops large packets, and makes the next streams use smaller TCP segments.

The kernel does not learn this by itself if a firewall drops the ICMP messages (RFC 2923, section 2.1).
`host.net.segments` detects it on one connection; this module combines that for all streams of a client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from ..errors import EndReason, PeerError
from ..host.net.segments import SegmentLimits
from ..host.net.sockets import KEEPALIVE_S
from .large_ping import LargePing
from .streams import ClientStream

S = TypeVar("S", bound=ClientStream)


class PathMtu:
    """Learns which segment size passes to each address of the server.

    Attributes:
        limits: the segment sizes for the next connections, by address.
    """

    __slots__ = ("_large_ping", "_proving", "limits")

    def __init__(self, limits: SegmentLimits) -> None:
        self.limits = limits
        self._large_ping = LargePing()
        # Segments are missing. Until it is clear why, the kernel sends TCP keepalive probes more often.
        self._proving = False

    def look(self, now: float, streams: Sequence[S]) -> list[S]:
        """End the streams whose large segments are lost, and return them. Call this twice a second.

        ``now``: by trio's clock. ``streams``: all streams that are running.
        """
        states = [(stream, stream.connection.segments()) for stream in streams]
        heard_at: dict[str | None, float] = {}  # by address, since another address may have another path
        for stream, state in states:
            if state is not None:
                address = stream.connection.remote_address
                heard_at[address] = max(heard_at.get(address, -math.inf), now - state.ack_age_s)
        ended = []
        for stream, state in states:
            address = stream.connection.remote_address
            if state is not None and address is not None and stream.segments.look(now, state, heard_at[address]):
                stream.abandon(self.limits.reduce(address, state.mss))
                ended.append(stream)
        proving = any(stream.segments.wants_proof for stream in streams)
        if proving or self._proving:
            for stream in streams:
                stream.connection.keepalive_after(1 if proving else KEEPALIVE_S)
        self._proving = proving
        return ended

    def stream_failed(self, failure: PeerError | None) -> None:
        """A stream or an attempt has failed. If the reason was silence, a large PING is due."""
        if failure is not None and failure.reason is EndReason.SILENT:
            self._large_ping.fell_silent()

    def due_ping(self, download: object, clock_ns: int) -> bytes | None:
        """The large PING to send; None: send none now (`LargePing.take`)."""
        return self._large_ping.take(download, clock_ns)

    def answered(self, payload: bytes) -> bool:
        """A PONG arrived. Returns whether it answers a large PING."""
        return self._large_ping.answered(payload)
