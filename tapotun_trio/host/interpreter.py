"""What all threads share of the interpreter, while one of them has much to do.

Both ways to be considerate may be nested, and held by several threads at a time: the first makes the change and the last
one undoes it.
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
    """A change that holds as long as somebody wants it."""

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
"""While a thread computes: the event loop gets its turn soon."""

collecting_later: Final = _Shared(_collect_later)
"""While many objects are made: no search for cyclic garbage, which would look at all of them again and again, and holds
every thread up for 100 ms where there are 300,000. Cyclic garbage stays until the end: it is for work that does end."""


def settle() -> None:
    """What stands now (modules, config, sessions) is to stay: searches for cyclic garbage need not look at it any more.

    For once, at the start. What of it becomes cyclic garbage later is never found, so it is not for what comes and goes.
    """
    gc.collect()
    gc.freeze()
