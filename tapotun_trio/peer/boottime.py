"""A clock that goes on while the machine is suspended, and the detection of suspends."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final, NewType

# Seconds on CLOCK_BOOTTIME, which neither stops during a suspend nor jumps when the time is set (clock_gettime(2)).
BootTime = NewType("BootTime", float)

SUSPENDED_S: Final = 2.0  # a suspend is noticed once the boot clock has gained this much on the monotonic one


def suspended_total_s() -> float:
    """Seconds that this machine has been suspended since it booted (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class SuspendDetector:
    """Notices that the machine was suspended."""

    def __init__(self) -> None:
        self._total_s = suspended_total_s()

    def suspended_s(self) -> float:
        """How long the machine was suspended since the last call, in seconds; 0 if it was not."""
        before_s, self._total_s = self._total_s, suspended_total_s()
        elapsed_s = self._total_s - before_s
        return elapsed_s if elapsed_s > SUSPENDED_S else 0.0


def boottime() -> BootTime:
    """The time now."""
    return BootTime(time.clock_gettime(time.CLOCK_BOOTTIME))


def wall_time(past: BootTime) -> datetime:
    """``past`` in UTC, rounded to seconds. Computed from the machine's present time, which may have been set since."""
    return datetime.fromtimestamp(round(time.time() - (boottime() - past)), UTC)
