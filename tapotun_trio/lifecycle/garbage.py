"""Keeps Python's garbage collector from pausing a server with thousands of clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..host.process.interpreter import collecting_later, settle

MANY_CLIENTS: Final = 1000  # the collector needs 15 ms to examine their sessions, about 100 ms for several thousand


@contextmanager
def making_sessions(clients: int) -> Iterator[None]:
    """Hold this while the sessions of ``clients`` clients are made. The garbage collector does not run within the
    block. If there are many sessions, it ignores them from then on."""
    with collecting_later():
        yield
        if clients >= MANY_CLIENTS:
            settle()
