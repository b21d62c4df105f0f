"""When to drop from a queue so that it stays short: Controlled Delay, RFC 8289.

Queues that drain within an interval do their job and are let be. One whose *shortest* wait stayed above the target
for a whole interval only adds delay: from then on packets are dropped at its head, ever more often, until the senders
have slowed down.

No clock of its own: times are seconds on whatever monotonic clock the caller reads.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

TARGET_S: Final = 0.005  # RFC 8289 section 4.4: 5 to 10 % of the interval
INTERVAL_S: Final = 0.1  # section 4.3: a round trip of most paths
# Section 5.3: a queue of no more than one full packet is never dropped from. With the frame's own header.
MTU_BYTES: Final = 1514
# Section 5.5: drops that begin again within so many intervals go on at the rate at which the last ones ended.
_RECENT_INTERVALS: Final = 16


class CoDel:
    """The control law of one queue. Ask `drops` for each head of the queue, in order, before it is taken."""

    __slots__ = ("_above_until", "_before", "_count", "_dropping", "_interval_s", "_next", "_target_s")

    def __init__(self, target_s: float = TARGET_S, interval_s: float = INTERVAL_S) -> None:
        self._target_s = target_s
        self._interval_s = interval_s
        self._above_until: float | None = None  # first_above_time: when waits above the target become too many
        self._dropping = False
        self._next = 0.0  # drop_next
        self._count = 0  # drops since this dropping state began
        self._before = 0  # lastcount: where the count began then

    @property
    def dropping(self) -> bool:
        """The queue has stood for too long, and is being shortened."""
        return self._dropping

    def drops(self, waited_s: float, backlog_bytes: int, now: float) -> bool:
        """Whether to drop the head of the queue, which has waited so long, with so much in the queue, itself included.

        If so, ask again for the one behind it. ``now`` never goes back.
        """
        if waited_s < self._target_s or backlog_bytes <= MTU_BYTES:
            self._above_until = None
            self._dropping = False
            return False
        if self._above_until is None:
            self._above_until = now + self._interval_s
        if self._dropping:
            if now < self._next:
                return False
            self._count += 1
            self._next = self._control_law(self._next)
            return True
        if now < self._above_until:
            return False
        self._dropping = True
        since = self._count - self._before
        recent = now - self._next < _RECENT_INTERVALS * self._interval_s
        self._count = self._before = since if since > 1 and recent else 1
        self._next = self._control_law(now)
        return True

    def empty(self) -> None:
        """The queue ran empty: nobody waits."""
        self._above_until = None
        self._dropping = False

    def _control_law(self, at: float) -> float:
        return at + self._interval_s / sqrt(self._count)
