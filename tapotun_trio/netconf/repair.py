"""Limits how often to put back what other programs remove. No I/O, no clock.

The other program may remove it again at once, every time. So each further repair within a minute is followed by a
longer pause. After too many repairs there is a longer rest, without repairs.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
PAUSE_S: Final = (0.5, 5.0)  # pause after the first repair within the window, and the longest; doubles each time
MOST: Final = 10  # repairs allowed within the window
REST_S: Final = 60.0  # how long no repair is made after that many


class RepairLimit:
    """The repairs of one interface within the last minute. All times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._rests_until = 0.0

    def wait_s(self, now: float) -> float:
        """Return how long to wait before the next repair, in seconds; 0: it may be made now."""
        while self._times and self._times[0] <= now - WINDOW_S:
            self._times.popleft()
        if now < self._rests_until:
            return self._rests_until - now
        if not self._times:
            return 0.0
        pause_s: float = min(PAUSE_S[0] * 2 ** (len(self._times) - 1), PAUSE_S[1])
        return max(0.0, self._times[-1] + pause_s - now)

    def repaired(self, now: float) -> None:
        """Record that a repair was made or tried. If the window now has too many, the rest begins."""
        self._times.append(now)
        if len(self._times) >= MOST:
            self._times.clear()
            self._rests_until = now + REST_S

    def rests(self, now: float) -> bool:
        """Whether repairs rest, because too many were needed lately."""
        return now < self._rests_until

    def reset(self) -> None:
        """Allow the next repair at once, because the operator asked for it."""
        self._times.clear()
        self._rests_until = 0.0
