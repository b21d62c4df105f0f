"""Changes settings of the interpreter while one thread has much work. All threads share these settings.

Each change may be held several times at once: the first holder makes it, and the last one undoes it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

# By default a thread that computes keeps the interpreter for 5 ms, and the event loop waits for that after every system
# call. While another thread read a config of 5,000 clients, the loop had gaps of up to 60 ms; with 0.5 ms up to 8 ms.
SWITCH_S: Final = 0.0005


class _Shared:
    """A change that lasts while at least one holder has it."""

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
"""Hold this while a thread computes, so that the event loop waits at most `SWITCH_S` for the interpreter."""

collecting_later: Final = _Shared(_collect_later)
"""Hold this while many objects are created. The garbage collector would examine all of them again and again, and for
300,000 objects it stops every thread for 100 ms. Cyclic garbage stays in memory meanwhile, so hold this for bounded
work only."""


def settle() -> None:
    """Make the garbage collector ignore every object that exists now, such as modules, config and sessions.

    They are still freed when nothing refers to them, but not if they become cyclic garbage. So objects that come and go
    by the thousand must end without cycles, as streams and sessions do (tests/unit/test_garbage.py).
    """
    gc.freeze()
