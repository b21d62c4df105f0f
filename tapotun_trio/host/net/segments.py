"""A path that passes small packets and drops large ones, without the ICMP message that would say so: how to notice it,
and which size of segment to use instead.

The kernel's own answer (RFC 4821, sysctl net.ipv4.tcp_mtu_probing) is off by default, and belongs to the whole
network namespace. Here a connection is judged by its TCP_INFO, and the next connection to that address announces a
smaller maximum segment size in its SYN (TCP_MAXSEG, tcp(7)), which limits both directions.

Pure: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...errors import EndReason, PeerError

# Maximum segment sizes to try one after the other. With IPv6's 60 bytes of headers the first fits into 1280 bytes, the
# least MTU of IPv6 (RFC 8200 section 5); with IPv4's 40 the last fits into 576, which every host takes (RFC 1122
# section 3.3.3).
SIZES: Final = (1220, 1000, 536)

# A segment is lost for its size if it was sent this many times more (after 0.2, 0.6 and 1.4 s on a short path).
RESENDS: Final = 3
# A gap in what was received is not a passing loss if it is this old, and this many round trips. By then the peer has
# sent the segment again three times.
GAP_S: Final = 2.0
GAP_ROUND_TRIPS: Final = 10

UNLIMITED: Final = 65535
_MAX_ADDRESSES: Final = 64  # that are remembered
_SMALL_BYTES: Final = SIZES[-1]  # a loss of so little is not one of size


@dataclass(frozen=True, slots=True)
class SegmentState:
    """What TCP_INFO (struct tcp_info, linux/tcp.h), SO_MEMINFO, SIOCINQ and SIOCOUTQ say about a connection's segments.

    Attributes:
        mss: the largest segment that is sent now.
        flying_bytes: sent and not acknowledged, also if known to be lost.
        retransmits: how often the oldest of these was sent again for want of an answer.
        acked_bytes: acknowledged since the start.
        received_bytes: received in order since the start.
        gap: something was received behind a segment that is missing.
        ack_age_s: since the last segment from the peer, of whatever kind.
        rtt_s: the smoothed round trip.
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

    Large segments are lost if one that was sent again and again is not acknowledged, or if a gap in what was received
    is not filled, although small packets have passed since that began, and there was another try since then. Without
    the last condition a path that comes back after an outage would look the same.
    """

    __slots__ = ("_acked", "_gap_since", "_passed_at", "_received", "_resent_then", "_stalled_since")

    def __init__(self) -> None:
        self._acked = self._received = -1
        self._stalled_since: float | None = None
        self._resent_then: int | None = None  # retransmits when small packets were first seen to pass
        self._gap_since: float | None = None
        self._passed_at: float | None = None  # when small packets were first seen to pass

    def look(self, now: float, state: SegmentState, heard_at: float = -math.inf) -> bool:
        """Whether large segments are lost, in either direction.

        ``heard_at``: when something last arrived from the same machine, also on another connection.
        """
        heard_at = max(heard_at, now - state.ack_age_s)
        return self._look_sent(now, state, heard_at) | self._look_received(now, state, heard_at)

    @property
    def missing(self) -> bool:
        """Segments are missing, for whatever reason."""
        return self._stalled_since is not None or self._gap_since is not None

    @property
    def wants_proof(self) -> bool:
        """Segments are missing, and it is not known whether small packets pass."""
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
        # The peer's timer doubles with each try, so its next try comes before the time since the first has doubled.
        # The gap may be older than known by the time between two looks.
        outage_s = self._passed_at - self._gap_since
        return now - self._gap_since >= max(GAP_S, GAP_ROUND_TRIPS * state.rtt_s, 2 * outage_s + 1.0)


class SegmentLimits:
    """The largest segment that passes to each address, as far as connections to it were found to lose larger ones."""

    __slots__ = ("_limits", "_tell")

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """``tell``: called with a line for people when a limit was found that no failure tells of."""
        self._limits: dict[str, int | None] = {}  # None: no size has helped
        self._tell = tell

    def limit(self, address: str) -> int | None:
        """For the next connection to an IP address; None: no limit."""
        return self._limits.get(address)

    def smaller(self, address: str) -> tuple[int, ...]:
        """The sizes to try if the limit should prove to be too large. None if that was tried in vain."""
        limit = self._limits.get(address, UNLIMITED)
        return () if limit is None else tuple(size for size in SIZES if size < limit)

    def reduce(self, address: str, mss: int) -> PeerError:
        """Segments of ``mss`` bytes are lost on the way from or to ``address``: use smaller ones from now on. Returns
        the error that ends their connection."""
        known = address in self._limits
        size = self._limits.get(address)
        if not known or (size is not None and mss <= size):  # otherwise the connection is older than the limit
            size = next_size(mss)
        self._set(address, size)
        return PeerError(explain(address, mss, size), reason=EndReason.PATH_MTU, key="path-mtu")

    def problem(self, address: str) -> str | None:
        """What is wrong with the path to an address, for people; None: nothing that is known."""
        return explain(address, None, self._limits[address]) if address in self._limits else None

    def found(self, address: str, size: int) -> None:
        """A connection with segments of ``size`` works where one with larger ones does not."""
        self._set(address, size)
        self._tell(explain(address, None, size))

    def forget(self) -> None:
        """The path is another one."""
        self._limits.clear()

    def _set(self, address: str, size: int | None) -> None:
        self._limits.pop(address, None)
        if len(self._limits) >= _MAX_ADDRESSES:
            del self._limits[next(iter(self._limits))]
        self._limits[address] = size


def next_size(mss: int) -> int | None:
    """The next smaller size to try; None: there is none. ``mss``: what is lost, with or without TCP's options."""
    return next((size for size in SIZES if size < mss - 16), None)


def explain(address: str, mss: int | None, size: int | None) -> str:
    """A path MTU black hole, for people. ``mss``: the segments that are lost, if known; ``size``: what is used now."""
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
