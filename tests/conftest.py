"""For the tests that run real processes in network namespaces: the `lab`, and what they may rely on."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from functools import cache
from typing import Any, Final

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tapotun_trio.datapath.plane import VARIABLE
from tapotun_trio.host.process.privileges import raise_fd_limit
from tests.harness import Lab, missing, no_leaks, take_signals

from . import timeouts

# Machines differ in speed and are shared: no example fails for taking long.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

take_signals()
raise_fd_limit()  # crowds of thousands take more than the 1,024 that shells and service managers give

_LAB: Final = pytest.StashKey[Lab]()
_missing: Final = cache(missing)


class OneFileAtATime(LoadFileScheduling):  # type: ignore[misc]
    """Runs the tests of a file in one process, as ``--dist loadfile`` does, and all tests of the packages in one: they
    build in the same directories."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/packages" if file.startswith("tests/packages/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneFileAtATime:
    """Distribute the tests when several processes run them (pytest-xdist)."""
    return OneFileAtATime(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Make the timeout of pyproject.toml one that Trio survives."""
    config.pluginmanager.register(timeouts)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A machine that cannot run netns tests: a failure for root and in CI, a skip for a developer's user."""
    if item.get_closest_marker("netns") is None or not (lines := _missing()):
        return
    text = f"netns tests cannot run here: {'; '.join(lines)} (`make test` as root installs what is missing)"
    if os.geteuid() == 0 or os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@pytest.fixture(autouse=True)
def _own_network_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """A netns test changes no interface, address, route or rule of the machine that it runs on."""
    if request.node.get_closest_marker("netns") is None:
        yield
        return
    with no_leaks(None):
        yield


@pytest.fixture(params=["off", "auto"], ids=["pure", "plane"])
def each_plane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: without a plane, and with the native one, if it is built.

    The daemons of a `lab` get it by their environment, the interfaces of a unit test by `support.running`.
    """
    monkeypatch.setenv(VARIABLE, request.param)


@pytest.fixture
def lab(request: pytest.FixtureRequest, _own_network_untouched: None) -> Iterator[Lab]:
    """An empty lab. If the test fails, its report shows the log of every process that ran in it."""
    with Lab() as lab:
        request.node.stash[_LAB] = lab
        yield lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the daemons' logs to the report of a failed test."""
    report = yield
    lab = item.stash.get(_LAB, None)
    if report.failed and lab is not None:
        report.sections += [(f"log of {process.name}", process.tail(100)) for process in lab.processes]
    return report
