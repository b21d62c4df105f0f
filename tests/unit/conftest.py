"""Fixtures for unit tests."""

from __future__ import annotations

import codecs
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.datapath.codel import CoDel
from tapotun_trio.datapath.tx_queue import TxQueue

NOBODY: Final = 65534


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


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Makes the process an ordinary user until the end of the test, who may look into the test's directory."""

    import tapotun_trio.doctor.run
    import tapotun_trio.host.net.tls_files
    import tapotun_trio.probe.run  # noqa: F401 - an ordinary user may not be able to read the library

    for codec in ("ascii", "idna", "latin-1"):
        codecs.lookup(codec)
    before = os.geteuid()
    for directory in (tmp_path, *tmp_path.parents):
        if directory == tmp_path or directory.name.startswith(("pytest-", "popen-")):  # those that pytest has made
            directory.chmod(0o755)
    yield lambda: os.seteuid(NOBODY) if before == 0 else None
    os.seteuid(before)
