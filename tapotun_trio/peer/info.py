"""What is known of a peer beside its counters: where from, since when, heard when, and how fast. For status."""

from __future__ import annotations

from collections import deque
from typing import Final

from ..datapath.counters import Counters
from .boottime import BootTime, boottime

RATE_TICKS: Final = 5  # a rate is told over so many ticks


class PeerInfo:
    """One peer, from the interface's start on.

    Attributes:
        endpoint: its address as this end, or the proxy before it, saw it last.
        agent: its software, as it says itself; None: it does not say.
        extended: control frames were agreed on the newest stream; None: there was none yet.
        connected_since: when it came; None: it is not there.
        heard: when something came last: frames, or a ping of a peer that has none. To one tick.
        since: when it came or went last; at first, when we began to look for it.
        reconnects: how often it came again; the replacement of a stream in its time is none.
    """

    __slots__ = (
        "_arrivals",
        "_samples",
        "agent",
        "connected_since",
        "endpoint",
        "extended",
        "heard",
        "reconnects",
        "since",
    )

    def __init__(self) -> None:
        self.endpoint: str | None = None
        self.agent: str | None = None
        self.extended: bool | None = None
        self.connected_since: BootTime | None = None
        self.heard: BootTime | None = None
        self.reconnects = 0
        self.since = boottime()
        self._arrivals = 0
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=RATE_TICKS + 1)

    def arrive(self, endpoint: str, agent: str | None, *, extended: bool, continues: bool) -> None:
        """A download begins. ``continues``: in place of one that still ran, of the same session."""
        now = boottime()
        if not continues or self.connected_since is None:
            self.reconnects += self._arrivals > 0
            self._arrivals += 1
            self.connected_since = self.since = now
        if agent is not None or not continues:  # else it has said that on the stream before
            self.agent = agent
        self.endpoint, self.extended = endpoint, extended
        self.heard = now

    def leave(self) -> None:
        """Its last download is over."""
        if self.connected_since is not None:
            self.connected_since, self.since = None, boottime()

    def tick(self, now: float, counters: Counters, *, heard: bool) -> None:
        """Once a second or so. ``heard``: something came since the last time. ``now``: any monotonic clock."""
        if heard:
            self.heard = boottime()
        self._samples.append((now, counters.rx_bytes, counters.tx_bytes))

    @property
    def rates(self) -> tuple[float, float]:
        """Received and sent, bit/s, over the last ticks; zeros until there were two."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (began, rx_then, tx_then), (ended, rx_now, tx_now) = self._samples[0], self._samples[-1]
        elapsed_s = ended - began
        if elapsed_s <= 0:
            return 0.0, 0.0
        return 8 * (rx_now - rx_then) / elapsed_s, 8 * (tx_now - tx_then) / elapsed_s
