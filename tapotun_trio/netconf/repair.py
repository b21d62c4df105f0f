"""When to put back what others take away. No I/O, no clock.

The other program may take it away again at once, for ever. So each repair within a minute is followed by a longer
pause, and after too many of them the interface rests for a while.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
PAUSE_S: Final = (0.5, 5.0)  # after the first repair within the window; doubled up to the last
MOST: Final = 10  # repairs within the window
REST_S: Final = 60.0  # after that many


class RepairLimit:
    """The repairs of one interface within the last minute. All times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._rests_until = 0.0

    def wait_s(self, now: float) -> float:
        """How long to wait for the next repair; 0: it may be made now."""
        while self._times and self._times[0] <= now - WINDOW_S:
            self._times.popleft()
        if now < self._rests_until:
            return self._rests_until - now
        if not self._times:
            return 0.0
        pause_s: float = min(PAUSE_S[0] * 2 ** (len(self._times) - 1), PAUSE_S[1])
        return max(0.0, self._times[-1] + pause_s - now)

    def repaired(self, now: float) -> None:
        """A repair was made or tried. If it was one too many, the next ones rest."""
        self._times.append(now)
        if len(self._times) >= MOST:
            self._times.clear()
            self._rests_until = now + REST_S

    def rests(self, now: float) -> bool:
        """Whether too many repairs were needed lately."""
        return now < self._rests_until

    def reset(self) -> None:
        """The operator asked for a repair, so the next one may be made at once."""
        self._times.clear()
        self._rests_until = 0.0
