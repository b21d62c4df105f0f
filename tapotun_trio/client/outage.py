"""Measures how long a client was disconnected, for a log line when it is connected again.

Pure: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations


class Outage:
    """The time between the loss of a connection and the next one."""

    __slots__ = ("_connected_once", "_lost_at")

    def __init__(self) -> None:
        self._connected_once = False
        self._lost_at: float | None = None

    def begin(self, now: float) -> None:
        """A stream was lost. Ignored before the first connection and during an outage."""
        if self._connected_once and self._lost_at is None:
            self._lost_at = now

    def end(self, now: float) -> float | None:
        """Packets pass in both directions. Returns how long the outage lasted, in seconds; None: there was none."""
        self._connected_once = True
        lost_at, self._lost_at = self._lost_at, None
        return None if lost_at is None else now - lost_at
