"""Settings of the interpreter that all threads share, changed while one of them has much to do.

Each may be held several times at once: the first holder makes the change, and the last one undoes it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

# By default a thread that computes keeps the interpreter for 5 ms, and the event loop waits for it anew after every
# system call. With 0.5 ms a loop beside a thread that read 5,000 clients had gaps of 8 ms at most, with 5 ms of 60.
SWITCH_S: Final = 0.0005


class _Shared:
    """A change that holds while anyone holds it."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._lock = Lock()
        self._held = 0
        self._undo: Callable[[], None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._held:
                self._undo = self._change()
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1
                if not self._held and self._undo is not None:
                    self._undo()


def _switch_often() -> Callable[[], None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_S))
    return lambda: sys.setswitchinterval(before)


def _collect_later() -> Callable[[], None]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


switching_often: Final = _Shared(_switch_often)
"""Hold it while a thread computes: then the event loop waits at most `SWITCH_S` for the interpreter."""

collecting_later: Final = _Shared(_collect_later)
"""Hold it while many objects are made. The garbage collector would look at all of them again and again, and stops every
thread for 100 ms where there are 300,000. Cyclic garbage stays in memory until the end, so hold it for bounded work."""


def settle() -> None:
    """Have the garbage collector ignore every object that exists now, such as modules, config and sessions.

    They are freed as ever when nothing refers to them. What becomes cyclic garbage of them never is, so what comes and
    goes by the thousand must end without cycles: streams do, and so do sessions (tests/unit/test_garbage.py).
    """
    gc.freeze()
