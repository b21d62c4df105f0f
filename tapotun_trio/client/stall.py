"""Notices that a client sends nothing while packets for the server grow too old and are dropped.

Pure: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

import logging
from typing import Final

STALLED_S: Final = 2.0  # a stream that is being replaced, or waits for a lost segment, continues sooner


class Stall:
    """The present stall, if there is one. `tick` is to be called once a second.

    Attributes:
        lasted_s: how long nothing has been sent while packets were dropped.
        dropped: packets dropped in that time.
    """

    __slots__ = ("_aged", "_aged_before", "_began", "_noticed", "_reported", "_sent", "dropped", "lasted_s")

    def __init__(self) -> None:
        self._sent = self._aged = self._aged_before = 0
        self._began: float | None = None  # None: there is no stall
        self._noticed = False  # the stall has lasted for STALLED_S
        self._reported = False  # and `tick` has returned True for that
        self.lasted_s = 0.0
        self.dropped = 0

    def tick(self, now: float, sent: int, aged: int, *, tell: bool = True) -> bool:
        """Whether to report something: a stall has lasted for STALLED_S, or a reported one is over.

        Args:
            sent: packets sent since the start.
            aged: packets dropped for their age since the start.
            tell: report a stall that reaches STALLED_S in this call. If false, neither that stall nor its end is
                reported.
        """
        moved, dropping = sent != self._sent, aged != self._aged
        self._sent = sent
        if self._began is None:
            if dropping and not moved:
                self._began, self._aged_before = now, self._aged
                self._noticed = self._reported = False
            self._aged = aged
            return False
        self._aged = aged
        self.lasted_s, self.dropped = now - self._began, aged - self._aged_before
        if moved:
            self._began = None
            return self._reported
        if self._noticed or self.lasted_s < STALLED_S or not dropping:
            return False
        self._noticed, self._reported = True, tell
        return tell

    def report(self, why: str) -> tuple[int, str]:
        """The level and the text of a log line, after a `tick` that returned True. ``why``: why nothing is sent."""
        if self.over:
            text = f"the upload goes on after {self.lasted_s:.0f} s; {self.dropped} packets had grown too old"
            return logging.INFO, text
        text = f"nothing was sent for {self.lasted_s:.0f} s, and {self.dropped} packets grew too old: {why}"
        return logging.WARNING, text

    @property
    def over(self) -> bool:
        """Whether packets are sent again."""
        return self._began is None
