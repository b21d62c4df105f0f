"""Notices that a client sends nothing while packets for the server grow too old and are dropped.

Pure: times are seconds on whatever monotonic clock the caller reads.
"""

from __future__ import annotations

from typing import Final

STALLED_S: Final = 2.0  # a stream that is replaced, or that a lost segment holds up, is over that sooner


class Stall:
    """The present stall, if there is one. Asked about once a second.

    Attributes:
        lasted_s: how long nothing has been sent while packets were dropped.
        dropped: how many, since then.
    """

    __slots__ = ("_aged", "_before", "_began", "_sent", "_told", "dropped", "lasted_s")

    def __init__(self) -> None:
        self._sent = self._aged = self._before = 0
        self._began: float | None = None
        self._told = False
        self.lasted_s = 0.0
        self.dropped = 0

    def tick(self, now: float, sent: int, aged: int) -> bool:
        """Whether there is something to say: a stall has lasted for STALLED_S, or one that was told is over.

        ``sent``, ``aged``: packets sent, and dropped for their age, since the start.
        """
        moved, dropping = sent != self._sent, aged != self._aged
        self._sent = sent
        if self._began is None:
            if dropping and not moved:
                self._began, self._before, self._told = now, self._aged, False
            self._aged = aged
            return False
        self._aged = aged
        self.lasted_s, self.dropped = now - self._began, aged - self._before
        if moved:
            self._began = None
            return self._told
        if self._told or self.lasted_s < STALLED_S or not dropping:
            return False
        self._told = True
        return True

    @property
    def over(self) -> bool:
        """Packets are sent again."""
        return self._began is None
