"""What a client's connections have to do with a change of the machine's network: tables of cases, and the whole client
with a kernel in memory."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest
import trio

from tapotun_trio.client import path_watch as module
from tapotun_trio.client.path_table import PathTable
from tapotun_trio.host.interfaces import Change
from tapotun_trio.host.items import CurrentRoute

from ..fakes import MemoryHost
from ..tables import table
from .support import allowed, client_config, free_port, running, server_config
from .test_transport_guard import until

SERVER: Final = "203.0.113.10"
SERVER6: Final = "2001:db8::10"
WIFI: Final = CurrentRoute(3, "192.0.2.1", "192.0.2.7")
CABLE: Final = CurrentRoute(4, "198.51.100.1", "198.51.100.7")


def change(*touched: str, links: frozenset[int] = frozenset(), incomplete: bool = False) -> Change:
    return Change("x", frozenset(), touched_addresses=frozenset(touched), touched_links=links, incomplete=incomplete)


@table(
    "before now happened concerned",
    ("nothing at all", WIFI, WIFI, None, False),
    ("docker0 goes up or down", WIFI, WIFI, change("172.17.0.1", links=frozenset({9})), False),
    ("an address on another link", WIFI, WIFI, change("198.51.100.7"), False),
    ("a worse default route", WIFI, WIFI, change(), False),
    ("another address on the same link", WIFI, WIFI, change("192.0.2.99"), False),
    ("the source address was gone for a moment", WIFI, WIFI, change("192.0.2.7"), True),
    ("the link was down for a moment", WIFI, WIFI, change(links=frozenset({3})), True),
    ("a better default route", WIFI, CABLE, change(), True),
    ("the same, without a notification", WIFI, CABLE, None, True),
    ("another gateway", WIFI, CurrentRoute(3, "192.0.2.2", "192.0.2.7"), change(), True),
    ("another source", WIFI, CurrentRoute(3, "192.0.2.1", "192.0.2.8"), change(), True),
    ("the route is gone", WIFI, None, change(), True),
    ("it is back", None, WIFI, change(), True),
    ("there is still none", None, None, change("172.17.0.1", links=frozenset({9})), False),
    ("notifications were lost", WIFI, WIFI, change(incomplete=True), True),
)
def test_changes(
    before: CurrentRoute | None, now: CurrentRoute | None, happened: Change | None, concerned: bool
) -> None:
    paths = PathTable()
    assert paths.update([SERVER], {SERVER: before}, None) == set()
    assert paths.update([SERVER], {SERVER: now}, happened) == ({SERVER} if concerned else set())
    assert paths.update([SERVER], {SERVER: now}, change("172.17.0.1", links=frozenset({9}))) == set()


def test_an_address_of_which_nothing_is_known_may_be_concerned() -> None:
    paths = PathTable()
    assert paths.update([SERVER], {SERVER: WIFI}, change()) == {SERVER}
    assert paths.update([SERVER, SERVER6], {SERVER: WIFI, SERVER6: WIFI}, change()) == {SERVER6}
    # It is forgotten with its last connection.
    assert paths.update([SERVER], {SERVER: WIFI}, change()) == set()
    assert paths.update([SERVER, SERVER6], {SERVER: WIFI, SERVER6: WIFI}, change()) == {SERVER6}


def test_a_route_into_the_tunnel_is_not_a_path() -> None:
    """Somebody's route captures the server, and a moment later the host route around it is made."""
    paths = PathTable()
    paths.update([SERVER], {SERVER: WIFI}, None)
    assert paths.update([SERVER], {}, change()) == set()
    assert paths.update([SERVER], {SERVER: WIFI}, None) == set()
    assert paths.update([SERVER], {}, None) == set()
    assert paths.update([SERVER], {SERVER: CABLE}, None) == {SERVER}


@pytest.fixture(name="lines")
def _lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """How many lines of the log hold a text."""
    monkeypatch.setattr(logging.getLogger("tapotun_trio"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    return lambda text: sum(text in record.getMessage() for record in caplog.records)


async def test_streams_go_on_through_changes_of_others(
    lines: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUTE_CHECK_S", 1e9)
    host, port = MemoryHost(), free_port()
    async with (
        running(MemoryHost(), server_config(port, allowed("a", "10.10.0.2"))),
        running(host, client_config("a", port)),
    ):
        await until(lambda: lines("upload to ") == 1)
        for number in range(20):
            host.change(f"docker0 is {'up' if number % 2 else 'down'}", "127.0.0.1", touched=["172.17.0.1"], links=[9])
        await until(lambda: lines("docker0 is ") == 20)
        assert lines("that concerns no stream") == 20
        assert lines("renewing the streams") == 0
        assert lines("upload to ") == 1
        host.change("eth0 was down for a moment", "127.0.0.1", touched=["127.0.0.1"], links=[1])
        await until(lambda: lines("eth0 was down for a moment: renewing the streams") == 1)
        await until(lambda: lines("upload to ") == 2)
        monkeypatch.setattr(module, "ROUTE_CHECK_S", 0.05)
        host.change("docker0 is gone", "127.0.0.1", links=[9])  # from the next look on
        await until(lambda: lines("docker0 is gone: that concerns no stream") == 1)
        host.current["127.0.0.1"] = CurrentRoute(4, None, "127.0.0.1")  # a route of which the kernel did not tell us
        await until(lambda: lines("the route to 127.0.0.1 changed: renewing the streams") == 1)
        await until(lambda: lines("upload to ") == 3)


async def test_a_client_without_a_stream_is_woken_by_what_may_help(lines: Callable[[str], int]) -> None:
    """Not by docker0, which would have it try once a second."""
    host, port = MemoryHost(), free_port()
    async with running(host, client_config("a", port)):
        await until(lambda: lines("trying again in") >= 1)
        host.change("docker0 is up", "127.0.0.1", links=[9])
        await until(lambda: lines("docker0 is up: ") == 1)
        host.change("docker0 is down", "127.0.0.1", links=[9])
        await until(lambda: lines("docker0 is down: that concerns no stream") == 1)
        host.current["127.0.0.1"] = CurrentRoute(4)
        host.change("default route changed", "127.0.0.1")
        await until(lambda: lines("default route changed: renewing the streams") == 1)


async def test_an_attempt_from_an_address_that_is_gone_is_begun_again_at_once(
    lines: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the server does not answer its GET."""
    monkeypatch.setattr("tapotun_trio.client.rotation.ATTEMPT_S", 1e9)
    host = MemoryHost()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server = trio.socket.from_stdlib_socket(listener.dup())
        with server:
            config = replace(client_config("a", listener.getsockname()[1]), transport="http")
            async with running(host, config):
                first, _ = await server.accept()
                with first:
                    assert (await first.recv(100)).startswith(b"GET")
                    host.change("docker0 is up", "127.0.0.1", links=[9])
                    await until(lambda: lines("docker0 is up: that concerns no stream") == 1)
                    host.change("wlan0: address 127.0.0.1 removed", "192.0.2.9")
                    with trio.fail_after(10):
                        while await first.recv(4096):
                            pass
                        second, _ = await server.accept()
                    second.close()
