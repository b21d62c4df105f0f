"""One line in the log for each session that is over: why, how long it was, what it carried and dropped."""

from __future__ import annotations

import logging

import trio

from ..datapath.counters import Counters
from ..datapath.rtt import RoundTrip
from ..log import Log, flap_damped
from ..status.render import ago
from .boottime import BootTime, boottime, wall_time


class SessionLog:
    """Of one peer's sessions, one after the other."""

    __slots__ = ("_began", "_counters", "_rate_limited", "_rtt")

    def __init__(self, counters: Counters, rtt: RoundTrip) -> None:
        self._counters = counters
        self._rtt = rtt
        self._began: tuple[BootTime, Counters] | None = None  # and what was counted then; None: there is no session
        self._rate_limited = flap_damped()

    def begin(self) -> None:
        """A session begins, or goes on."""
        self._began = self._began or (boottime(), self._counters.copy())

    def end(self, log: Log, why: str) -> None:
        """It is over; if there was one."""
        if self._began is None:
            return
        (began, before), self._began = self._began, None
        lasted = ago(wall_time(began), wall_time(boottime()))
        carried = f"{self._counters.since(before).summary()}; round trip {self._rtt}"
        text = f"session ended after {lasted}: {why}; {carried}"
        self._rate_limited.log(log, logging.INFO, trio.current_time(), text)
