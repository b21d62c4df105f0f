"""Finds out that the path drops large packets, and has the next streams sent with smaller segments.

Some firewall drops the ICMP messages that would tell the kernel (RFC 2923, section 2.1). `host.net.segments` recognises
this at one connection; here it is put together for all streams of a client.
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
    """What is known of the size of the packets that pass.

    Attributes:
        limits: the segment sizes for the next connections, by address.
    """

    __slots__ = ("_large_ping", "_proving", "limits")

    def __init__(self, limits: SegmentLimits) -> None:
        self.limits = limits
        self._large_ping = LargePing()
        self._proving = False  # segments are missing; the kernel asks for signs of life more often

    def look(self, now: float, streams: Sequence[S]) -> list[S]:
        """End the streams whose large segments are lost; returns them. To be called twice a second.

        ``now``: trio's clock. ``streams``: all that run.
        """
        states = [(stream, stream.connection.segments()) for stream in streams]
        heard_at: dict[str | None, float] = {}  # by address: another one may be reached by another way
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
        """A stream, or an attempt, has failed. After a silence, a large PING is due."""
        if failure is not None and failure.reason is EndReason.SILENT:
            self._large_ping.fell_silent()

    def due_ping(self, download: object, clock_ns: int) -> bytes | None:
        """The large PING to send (`LargePing.take`)."""
        return self._large_ping.take(download, clock_ns)

    def answered(self, payload: bytes) -> bool:
        """A PONG arrived. Returns whether it answers a large PING."""
        return self._large_ping.answered(payload)
