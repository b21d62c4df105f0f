"""What the machine's clocks tell beside the time."""

from __future__ import annotations

import time


def time_asleep_s() -> float:
    """Seconds that this machine has been suspended since it booted (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
