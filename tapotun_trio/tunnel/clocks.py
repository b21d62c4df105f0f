"""What the machine's clocks tell beside the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NewType

# Seconds on a clock that neither stops while the machine sleeps nor jumps when its time is set (clock_gettime(2)).
Moment = NewType("Moment", float)


def time_asleep_s() -> float:
    """Seconds that this machine has been suspended since it booted (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def moment() -> Moment:
    """Now, to be told to people later on."""
    return Moment(time.clock_gettime(time.CLOCK_BOOTTIME))


def date_of(past: Moment) -> datetime:
    """When that was, UTC, to the second, by what the machine takes for the time now: it may have been set since."""
    return datetime.fromtimestamp(round(time.time() - (moment() - past)), UTC)
