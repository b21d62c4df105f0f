"""What is known about a peer besides its counters, for status: address, software, times and rates."""

from __future__ import annotations

from collections import deque
from typing import Final

from ..datapath.counters import Counters
from .boottime import BootTime, boottime

RATE_TICKS: Final = 5  # a rate is the average over this many ticks


class PeerInfo:
    """What is known about one peer, from the start of the interface on.

    Attributes:
        endpoint: its newest address, as this end or the proxy in front of it saw it; None: it never connected.
        agent: name and version of its software, as the peer says; None: it does not say.
        tls: the TLS version of its newest stream, such as ``TLS 1.3``; None: this end's connection has no TLS.
        encrypted: whether the client used TLS for its newest stream, to the server or to the first proxy in between;
            None: not known.
        extended: control frames were agreed on for the newest stream; None: there was no stream yet.
        ipv6: the feature ``inet6`` was agreed on for the newest stream; None: there was no stream yet.
        connected_since: when it connected; None: it is not connected.
        last_heard: when frames or a ping last arrived, to within one tick.
        seen_before: when the peer was last heard before this object was made; None: never. A new object is made if the
            interface or the peer's token is replaced.
        state_since: when it connected or disconnected last; before the first time, when the interface started.
        reconnects: how often it has connected again. A stream that replaces another in time does not count.
    """

    __slots__ = (
        "_connects",
        "_samples",
        "agent",
        "connected_since",
        "encrypted",
        "endpoint",
        "extended",
        "ipv6",
        "last_heard",
        "reconnects",
        "seen_before",
        "state_since",
        "tls",
    )

    def __init__(self) -> None:
        self.endpoint: str | None = None
        self.agent: str | None = None
        self.tls: str | None = None
        self.encrypted: bool | None = None
        self.extended: bool | None = None
        self.ipv6: bool | None = None
        self.connected_since: BootTime | None = None
        self.last_heard: BootTime | None = None
        self.seen_before: BootTime | None = None
        self.reconnects = 0
        self.state_since = boottime()
        self._connects = 0
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=RATE_TICKS + 1)

    def mark_connected(self, endpoint: str, agent: str | None, *, extended: bool, continues: bool) -> None:
        """A download begins. ``continues``: it replaces a download of the same session that was still running."""
        now = boottime()
        if not continues or self.connected_since is None:
            if self._connects > 0:
                self.reconnects += 1
            self._connects += 1
            self.connected_since = self.state_since = now
        if agent is not None or not continues:  # otherwise the peer named its software on the stream before
            self.agent = agent
        self.endpoint, self.extended = endpoint, extended
        self.last_heard = now

    def mark_disconnected(self) -> None:
        """The peer has no download any more."""
        if self.connected_since is not None:
            self.connected_since, self.state_since = None, boottime()

    def tick(self, now: float, counters: Counters, *, heard: bool) -> None:
        """To be called once a second or so.

        ``now``: seconds on any monotonic clock. ``heard``: something arrived since the last call.
        """
        if heard:
            self.last_heard = boottime()
        self._samples.append((now, counters.rx_bytes, counters.tx_bytes))

    @property
    def last_seen(self) -> BootTime | None:
        """When it was last heard, even if that was before this object existed; None: never."""
        return self.seen_before if self.last_heard is None else self.last_heard

    @property
    def rates(self) -> tuple[float, float]:
        """The rates received and sent, in bit/s, over the last ticks; zeros before the second tick."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (then, rx_then, tx_then), (now, rx_now, tx_now) = self._samples[0], self._samples[-1]
        elapsed_s = now - then
        if elapsed_s <= 0:
            return 0.0, 0.0
        return 8 * (rx_now - rx_then) / elapsed_s, 8 * (tx_now - tx_then) / elapsed_s
