"""What holds for every test that runs the daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Lab

from .topologies import SECRETS


@pytest.fixture(autouse=True)
def _logs_are_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """No daemon logs a token, nor a traceback: that would be a bug of the program, not an event."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Lab = request.getfixturevalue("lab")
    yield
    for process in lab.processes:
        if "tapotun" in process.name:
            found = SECRETS.search(process.log)
            assert found is None, f"token in the log: {found}\n{process.tail()}"
            assert "Traceback" not in process.log, process.tail()
