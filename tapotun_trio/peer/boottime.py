"""What the machine's clocks tell beside the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final, NewType

# Seconds on a clock that neither stops while the machine sleeps nor jumps when its time is set (clock_gettime(2)).
BootTime = NewType("BootTime", float)

SUSPENDED_S: Final = 2.0  # a jump of the boot clock against the monotonic one by this much is a suspend


def time_asleep_s() -> float:
    """Seconds that this machine has been suspended since it booted (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Sleeps:
    """Notices when the machine was suspended."""

    def __init__(self) -> None:
        self._asleep_s = time_asleep_s()

    def last_s(self) -> float:
        """For how long, since the last call; 0: it was not."""
        before_s, self._asleep_s = self._asleep_s, time_asleep_s()
        slept_s = self._asleep_s - before_s
        return slept_s if slept_s > SUSPENDED_S else 0.0


def boottime() -> BootTime:
    """Now, to be told to people later on."""
    return BootTime(time.clock_gettime(time.CLOCK_BOOTTIME))


def wall_time(past: BootTime) -> datetime:
    """When that was, UTC, to the second, by what the machine takes for the time now: it may have been set since."""
    return datetime.fromtimestamp(round(time.time() - (boottime() - past)), UTC)
