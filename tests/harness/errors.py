"""What the harness raises, and the one way in which it waits.

::

    HarnessError
    ├── CommandError     a tool ran and failed, or is not there
    ├── ProcessError     a daemon ended that should have been running
    ├── WaitError      something did not happen in its time (a TimeoutError too)
    ├── TransferError    bytes did not arrive as they were sent
    └── LeakError        something was left behind (an AssertionError too)

The texts are for a person before a failed test: they say what was awaited and end with the last lines of the
log in question.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.05


class HarnessError(Exception):
    """Base of everything below."""


class CommandError(HarnessError):
    """A tool ran and failed, or could not be run."""


class ProcessError(HarnessError):
    """A daemon ended that should have been running."""


class WaitError(HarnessError, TimeoutError):
    """Something did not happen in its time."""


class TransferError(HarnessError):
    """Bytes did not arrive as they were sent."""


class LeakError(HarnessError, AssertionError):
    """Something was left behind, or taken away."""


def wait_until(probe: Callable[[], T | None], timeout: float, what: str, detail: Callable[[], str] = str) -> T:
    """Call `probe` again and again until it returns something true; return that.

    `timeout` is in seconds; the probe is called at least once, and once more at the end. Raises WaitError:
    "waited 3 s for <what>", followed by `detail()`.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE_S
    while True:
        last_try = time.monotonic() >= deadline
        if answer := probe():
            return answer
        if last_try:
            raise WaitError("\n".join(filter(None, [f"waited {timeout:g} s for {what}", detail()])))
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
