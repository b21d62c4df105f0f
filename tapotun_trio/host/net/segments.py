"""Detects a path MTU black hole, and chooses a smaller segment size. Such a path passes small packets and drops large
ones, without sending the ICMP message that would report it.

The kernel has a remedy (RFC 4821, sysctl net.ipv4.tcp_mtu_probing), but it is off by default and applies to the whole
network namespace. So this module judges each connection by its TCP_INFO. The next connection to that address announces
a smaller maximum segment size in its SYN (TCP_MAXSEG, tcp(7)), which limits both directions.

Pure: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...errors import EndReason, PeerError

# Maximum segment sizes to try, one after the other. The first fits, with IPv6's 60 bytes of headers, into 1280 bytes,
# the least MTU of IPv6 (RFC 8200 section 5). The last fits, with IPv4's 40, into 576, which every host accepts (RFC
# 1122 section 3.3.3).
SIZES: Final = (1220, 1000, 536)

# After this many retransmissions a segment may be lost because of its size (they come after 0.2, 0.6 and 1.4 s on a
# short path).
RESENDS: Final = 3
# A gap in the received data is more than a passing loss once it is older than both of these: GAP_S seconds, and this
# many round trips. By then the peer has sent the segment again three times.
GAP_S: Final = 2.0
GAP_ROUND_TRIPS: Final = 10

UNLIMITED: Final = 65535
_MAX_ADDRESSES: Final = 64  # remembered at most
_SMALL_BYTES: Final = SIZES[-1]  # if no more than this is missing, its size is not the reason


@dataclass(frozen=True, slots=True)
class SegmentState:
    """What TCP_INFO (struct tcp_info, linux/tcp.h), SO_MEMINFO, SIOCINQ and SIOCOUTQ say about a connection's segments.

    Attributes:
        mss: the largest segment that is sent now.
        flying_bytes: sent and not acknowledged, including bytes known to be lost.
        retransmits: how often the oldest unacknowledged segment was sent again after a timeout.
        acked_bytes: acknowledged since the start.
        received_bytes: received in order since the start.
        gap: data was received that follows a missing segment.
        ack_age_s: time since the last segment of any kind from the peer.
        rtt_s: the smoothed round-trip time.
    """

    mss: int
    flying_bytes: int
    retransmits: int
    acked_bytes: int
    received_bytes: int
    gap: bool
    ack_age_s: float
    rtt_s: float


class SegmentWatch:
    """Judges one connection. Call `look` about once a second.

    Large segments count as lost under three conditions. A segment stays unacknowledged after several retransmissions,
    or a gap in the received data is not filled. Small packets have passed since then. And after these packets there was
    another retransmission: without this condition, a path that recovers from an outage would look the same.
    """

    __slots__ = ("_acked", "_gap_since", "_passed_at", "_received", "_resent_then", "_stalled_since")

    def __init__(self) -> None:
        self._acked = self._received = -1
        self._stalled_since: float | None = None
        self._resent_then: int | None = None  # retransmits when small packets were first seen to pass
        self._gap_since: float | None = None
        self._passed_at: float | None = None  # when small packets were first seen to pass

    def look(self, now: float, state: SegmentState, heard_at: float = -math.inf) -> bool:
        """Return whether large segments are lost, in either direction.

        ``heard_at``: when data last arrived from the same machine, on any connection.
        """
        heard_at = max(heard_at, now - state.ack_age_s)
        return self._look_sent(now, state, heard_at) | self._look_received(now, state, heard_at)

    @property
    def missing(self) -> bool:
        """Whether segments are missing, for any reason."""
        return self._stalled_since is not None or self._gap_since is not None

    @property
    def wants_proof(self) -> bool:
        """Whether segments are missing and it is not yet known whether small packets pass."""
        stalled = self._stalled_since is not None and self._resent_then is None
        return stalled or (self._gap_since is not None and self._passed_at is None)

    def _look_sent(self, now: float, state: SegmentState, heard_at: float) -> bool:
        if state.acked_bytes != self._acked or not state.retransmits or state.flying_bytes <= _SMALL_BYTES:
            self._acked = state.acked_bytes
            self._stalled_since = self._resent_then = None
            return False
        if self._stalled_since is None:
            self._stalled_since = now
        if self._resent_then is None:
            if heard_at > self._stalled_since:
                self._resent_then = state.retransmits
            return False
        return state.retransmits >= max(RESENDS, self._resent_then + 1)

    def _look_received(self, now: float, state: SegmentState, heard_at: float) -> bool:
        if state.received_bytes != self._received or not state.gap:
            self._received = state.received_bytes
            self._gap_since = self._passed_at = None
            return False
        if self._gap_since is None:
            self._gap_since = now
            return False
        if self._passed_at is None:
            if heard_at > self._gap_since:
                self._passed_at = now
            return False
        # The peer's retransmission timer doubles each time. So its next try comes before the time since the first try
        # has doubled. The gap may be older than its recorded start, by up to the interval between two looks.
        outage_s = self._passed_at - self._gap_since
        return now - self._gap_since >= max(GAP_S, GAP_ROUND_TRIPS * state.rtt_s, 2 * outage_s + 1.0)


class SegmentLimits:
    """The segment size limit for each address. An address has one once a connection to it was found to lose larger
    segments."""

    __slots__ = ("_limits", "_tell")

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """``tell``: called with a line for people when a limit was found without a failed connection."""
        self._limits: dict[str, int | None] = {}  # None: no size worked
        self._tell = tell

    def limit(self, address: str) -> int | None:
        """Return the limit for the next connection to an IP address; None: no limit."""
        return self._limits.get(address)

    def smaller(self, address: str) -> tuple[int, ...]:
        """Return the sizes to try if the current limit proves too large; empty if none of them worked."""
        limit = self._limits.get(address, UNLIMITED)
        return () if limit is None else tuple(size for size in SIZES if size < limit)

    def reduce(self, address: str, mss: int) -> PeerError:
        """Record that segments of ``mss`` bytes to or from ``address`` are lost, and use smaller ones from now on.
        Returns the error with which to end that connection."""
        known = address in self._limits
        size = self._limits.get(address)
        if not known or (size is not None and mss <= size):  # otherwise the connection is older than the limit
            size = next_size(mss)
        self._set(address, size)
        return PeerError(explain(address, mss, size), reason=EndReason.PATH_MTU, key="path-mtu")

    def problem(self, address: str) -> str | None:
        """Describe what is wrong with the path to an address, for people. None: no problem is known."""
        return explain(address, None, self._limits[address]) if address in self._limits else None

    def found(self, address: str, size: int) -> None:
        """Record that a connection with segments of ``size`` works, and one with larger segments does not."""
        self._set(address, size)
        self._tell(explain(address, None, size))

    def forget(self) -> None:
        """Forget all limits, because the path has changed."""
        self._limits.clear()

    def _set(self, address: str, size: int | None) -> None:
        self._limits.pop(address, None)
        if len(self._limits) >= _MAX_ADDRESSES:
            del self._limits[next(iter(self._limits))]
        self._limits[address] = size


def next_size(mss: int) -> int | None:
    """Return the next smaller size to try; None: there is none. ``mss``: the size that is lost, with or without TCP's
    options."""
    return next((size for size in SIZES if size < mss - 16), None)


def explain(address: str, mss: int | None, size: int | None) -> str:
    """Describe a path MTU black hole, for people. ``mss``: the size of the lost segments, if known; ``size``: the size
    used now."""
    text = f"small packets pass to and from {address}, large ones do not (MTU)"
    if mss is not None:
        text += f": segments of {mss} bytes are lost"
    if size is None:
        text += ", and smaller ones do not help"
    else:
        text += f"; using segments of at most {size} bytes"
    return f"{text}; {REMEDY}"


REMEDY: Final = (
    "let ICMP type 3 code 4 (fragmentation needed) and ICMPv6 type 2 pass in every firewall on the path, "
    "or lower the MTU of the link to it"
)
