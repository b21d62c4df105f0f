"""One line in the log for each session that is over: why, how long it was, what it carried and dropped."""

from __future__ import annotations

import logging

import trio

from ..datapath.counters import Counters
from ..datapath.rtt import RoundTrip
from ..log import Log, flapping
from ..status.render import ago
from .boottime import Moment, date_of, moment


class Summary:
    """Of one peer's sessions, one after the other."""

    __slots__ = ("_began", "_counters", "_rtt", "_sparingly")

    def __init__(self, counters: Counters, rtt: RoundTrip) -> None:
        self._counters = counters
        self._rtt = rtt
        self._began: tuple[Moment, Counters] | None = None  # and what was counted then; None: there is no session
        self._sparingly = flapping()

    def begin(self) -> None:
        """A session begins, or goes on."""
        self._began = self._began or (moment(), self._counters.copy())

    def end(self, log: Log, why: str) -> None:
        """It is over; if there was one."""
        if self._began is None:
            return
        (began, before), self._began = self._began, None
        lasted = ago(date_of(began), date_of(moment()))
        carried = f"{self._counters.since(before).summary()}; round trip {self._rtt}"
        text = f"session ended after {lasted}: {why}; {carried}"
        self._sparingly.log(log, logging.INFO, trio.current_time(), text)
