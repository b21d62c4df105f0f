"""What the log says when an interface is up: the first time, and after each outage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network

import pytest
import trio

from tapotun_trio.client.outage import Outage
from tapotun_trio.config.model import TransportChoice
from tapotun_trio.host.items import Route
from tapotun_trio.log import process_logger
from tapotun_trio.readiness import log_ready
from tapotun_trio.status.duration import span

from ..fakes import MemoryHost
from ..tables import table
from .hostile import logged
from .support import client_config, free_port
from .test_status import pair, world


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    with logged() as records:
        yield records


def lines(log: list[logging.LogRecord], start: str) -> list[str]:
    return [it.getMessage() for it in log if it.levelno == logging.INFO and it.getMessage().startswith(start)]


async def until(log: list[logging.LogRecord], start: str, count: int = 1) -> list[str]:
    with trio.fail_after(60):
        while len(found := lines(log, start)) < count:  # noqa: ASYNC110 - a log has no event
            await trio.sleep(0.01)
    return found


# ------------------------------------------------------------------ ready


async def test_ready_is_when_packets_pass(log: list[logging.LogRecord]) -> None:
    """A server is when it listens, a client when its streams carry packets; each once."""
    hub, client = pair()
    alone = client_config("alone", free_port())  # nothing listens there
    async with world(hub, client, alone) as it, trio.open_nursery() as nursery:
        nursery.start_soon(log_ready, it.registry, process_logger())
        await until(log, "ready: ", 1)
        await it.connected()
        told = ", ".join(line.removeprefix("ready: ") for line in await until(log, "ready: ", 1))
        with trio.fail_after(60):
            while "a" not in told.split(", "):
                told = ", ".join(line.removeprefix("ready: ") for line in lines(log, "ready: "))
                await trio.sleep(0.01)
        assert sorted(told.split(", ")) == ["a", "hub"]
        assert it.interface("alone").state == "connecting"
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ connected again


def test_an_outage() -> None:
    outage = Outage()
    outage.begin(1.0)  # it has never been connected
    assert outage.end(3.0) is None
    assert outage.end(4.0) is None
    outage.begin(5.0)
    outage.begin(6.0)
    assert outage.end(8.0) == 3.0
    assert outage.end(9.0) is None


@table(
    "seconds text",
    ("nothing", 0.0, "0 s"),
    ("a moment", 0.04, "0 s"),
    ("tenths", 0.31, "0.3 s"),
    ("nearly a second", 0.97, "1 s"),
    ("seconds", 3.4, "3 s"),
    ("a minute", 59.7, "1 min"),
    ("more", 3 * 3600 + 61.0, "3 h 1 min"),
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_connected_again(transport: TransportChoice, log: list[logging.LogRecord]) -> None:
    async with world(*pair(transport)) as it:
        await it.connected()
        assert lines(log, "connected again") == []
        for number in (1, 2):
            assert it.registry.disconnect(None, "a") == 1
            again = await until(log, "connected again after ", number)
            await it.connected()
        assert len(again) == 2


# ------------------------------------------------------------------ why not


async def test_why_a_client_is_connecting() -> None:
    async with world(client_config("a", free_port())) as it:
        await it.until(lambda: it.interface("a").problem is not None)
        problem = it.interface("a").problem
        assert problem is not None
        assert problem.startswith("download: cannot connect to 127.0.0.1")
    async with world(*pair()) as it:
        await it.connected()
        assert it.interface("a").problem is None
        assert it.interface("hub").problem is None


async def test_routes_that_the_kernel_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told apart from those that this machine has."""
    hub, client = pair()
    hub = replace(hub, push_routes=(IPv4Network("10.98.0.0/16"), IPv4Network("10.99.0.0/16")))
    made = MemoryHost.__init__

    def refusing(self: MemoryHost) -> None:
        made(self)
        self.refused.add(Route(IPv4Network("10.99.0.0/16")))

    monkeypatch.setattr(MemoryHost, "__init__", refusing)
    async with world(hub, client) as it:
        await it.connected()
        await it.until(lambda: bool(it.peer("a").refused_routes))
        server = it.peer("a")
        assert server.routes == ["10.98.0.0/16"]
        assert list(server.refused_routes) == ["10.99.0.0/16"]
        assert "refused" in server.refused_routes["10.99.0.0/16"]
