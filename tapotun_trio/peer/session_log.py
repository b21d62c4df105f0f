"""One log line for each session that has ended: the reason, the duration, and what was carried and dropped."""

from __future__ import annotations

import logging

import trio

from ..datapath.counters import Counters
from ..datapath.rtt import RoundTrip
from ..log import Log, flap_damped
from ..status.duration import ago
from .boottime import BootTime, boottime, wall_time


class SessionLog:
    """Logs the sessions of one peer, one after the other."""

    __slots__ = ("_counters", "_rate_limited", "_rtt", "_start")

    def __init__(self, counters: Counters, rtt: RoundTrip) -> None:
        self._counters = counters
        self._rtt = rtt
        self._start: tuple[BootTime, Counters] | None = None  # when the session began, and its counters then
        self._rate_limited = flap_damped()

    def begin(self) -> None:
        """A session begins, or goes on with another stream."""
        if self._start is None:
            self._start = (boottime(), self._counters.copy())

    def end(self, log: Log, reason: str) -> None:
        """The session, if there is one, has ended. ``reason``: for people."""
        if self._start is None:
            return
        (started, before), self._start = self._start, None
        duration = ago(wall_time(started), wall_time(boottime()))
        carried = f"{self._counters.since(before).summary()}; round trip {self._rtt}"
        text = f"session ended after {duration}: {reason}; {carried}"
        self._rate_limited.log(log, logging.INFO, trio.current_time(), text)
