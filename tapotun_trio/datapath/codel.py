"""When to drop from a queue so that it stays short: Controlled Delay, RFC 8289.

A queue that drains within an interval does its job and is left alone. A queue in which even the *shortest* wait was
above the target for a whole interval only adds delay. From then on packets are dropped at its head, ever more often,
until their senders have slowed down.

No clock of its own: times are seconds on any monotonic clock that the caller reads.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

TARGET_S: Final = 0.005  # RFC 8289 section 4.4: 5 to 10 % of the interval
INTERVAL_S: Final = 0.1  # section 4.3: a round trip of most paths
# Section 5.3: nothing is dropped from a queue of at most one full packet. This is one with its frame header.
MTU_BYTES: Final = 1514
# Section 5.5: if dropping begins again within this many intervals, it continues at the rate at which it ended.
_RECENT_INTERVALS: Final = 16


class CoDel:
    """The control law of one queue. Ask `should_drop` for each head of the queue, in order, before it is taken."""

    __slots__ = (
        "_count",
        "_drop_next",
        "_dropping",
        "_first_above_time",
        "_interval_s",
        "_last_count",
        "_target_s",
    )

    def __init__(self, target_s: float = TARGET_S, interval_s: float = INTERVAL_S) -> None:
        self._target_s = target_s
        self._interval_s = interval_s
        self._first_above_time: float | None = None  # when dropping begins, if no wait is below the target until then
        self._dropping = False
        self._drop_next = 0.0  # when to drop next
        self._count = 0  # drops since this dropping state began
        self._last_count = 0  # the count at which this dropping state began

    @property
    def dropping(self) -> bool:
        """Whether the queue has been too long for an interval, and is being shortened."""
        return self._dropping

    def should_drop(self, waited_s: float, backlog_bytes: int, now: float) -> bool:
        """Whether to drop the head of the queue. If so, ask again for the one behind it.

        Args:
            waited_s: how long the head has waited.
            backlog_bytes: the size of the queue, including its head.
            now: never goes back.
        """
        if waited_s < self._target_s or backlog_bytes <= MTU_BYTES:
            self._first_above_time = None
            self._dropping = False
            return False
        if self._first_above_time is None:
            self._first_above_time = now + self._interval_s
        if self._dropping:
            if now < self._drop_next:
                return False
            self._count += 1
            self._drop_next = self._control_law(self._drop_next)
            return True
        if now < self._first_above_time:
            return False
        self._dropping = True
        delta = self._count - self._last_count
        recent = now - self._drop_next < _RECENT_INTERVALS * self._interval_s
        self._count = self._last_count = delta if delta > 1 and recent else 1
        self._drop_next = self._control_law(now)
        return True

    def on_empty(self) -> None:
        """The queue ran empty, so no packet waits."""
        self._first_above_time = None
        self._dropping = False

    def _control_law(self, at: float) -> float:
        return at + self._interval_s / sqrt(self._count)
