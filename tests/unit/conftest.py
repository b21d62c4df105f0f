"""Fixtures for unit tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tapotun_trio.datapath.codel import CoDel
from tapotun_trio.datapath.tx_queue import TxQueue


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what the test sets up for the program's log."""
    root = logging.getLogger("tapotun")
    handlers, filters, level, propagate = root.handlers[:], root.filters[:], root.level, root.propagate
    yield
    root.handlers[:], root.filters[:], root.propagate = handlers, filters, propagate
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients use it if it is set, and no test is meant to."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def nothing_dropped_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the transmit queues drop nothing. On a busy machine packets wait longer than a queue keeps them; with this
    fixture a missing packet was lost by a bug."""
    monkeypatch.setattr(TxQueue, "expire", lambda *_: None)
    monkeypatch.setattr(CoDel, "should_drop", lambda *_: False)
