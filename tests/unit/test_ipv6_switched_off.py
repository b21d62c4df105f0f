"""A client whose interface gets no IPv6, as somebody has switched it off: it starts with IPv4, and comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Final

import pytest
import trio

from tapotun_trio.client.backoff import Backoff
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.client.requests import FeatureOffer
from tapotun_trio.config.model import Mark
from tapotun_trio.host.items import Address, BridgePort, DesiredState, Item, ItemsRefused, Route, version_of
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle import interface, restart
from tapotun_trio.lifecycle.registry import Record, Registry
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.log import interface_logger

from ..fakes import MemoryHost, MemoryNetwork
from ..tables import table
from .hostile import logged, until
from .support import client_config, free_port, running
from .test_ipv6_tunnel import A, dual, dual_server

V4: Final = Address(IPv4Interface("10.10.0.2/24"))
V6: Final = Address(IPv6Interface(f"{A}/64"))
ALL: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
PUSHED: Final = Route(IPv4Network("10.60.0.0/24"))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda *args, **kwargs: 0.0)


async def test_ipv6_that_is_switched_off_and_on_by_turns() -> None:
    """Two programs disagree. The first change is followed at once."""
    has_ipv6 = True
    offer = FeatureOffer(frozenset({"ctl", "inet6"}), lambda: has_ipv6, interface_logger("a"))
    assert not offer.is_outdated(5)
    followed = []
    for now in range(5, 36):
        offer.features()
        has_ipv6 = not has_ipv6
        if offer.is_outdated(now):
            followed.append(now)
    assert followed == [5, 15, 25, 35]
    offer.features()
    assert not offer.is_outdated(60)


class RefusingNetwork(MemoryNetwork):
    """As the kernel where disable_ipv6 is set on the interface."""

    def __init__(self, host: RefusingHost) -> None:
        super().__init__(host)
        self._off = host

    async def add(self, name: str, items: Sequence[Item]) -> None:
        if self._off.off and (refused := {item: f"{item}: refused" for item in items if version_of(item) == 6}):
            raise ItemsRefused(refused, lacks_ipv6=True)
        await super().add(name, items)


class RefusingHost(MemoryHost):
    """Something switches IPv6 off whenever an interface appears; of one that is not there nothing is known."""

    off = True
    says_off = True  # False: the reason cannot be seen in the settings

    def has_ipv6(self, name: str) -> bool:
        return not (self.off and self.says_off and name in self.devices)

    @asynccontextmanager
    async def open_network(self) -> AsyncIterator[MemoryNetwork]:
        yield RefusingNetwork(self)


async def test_a_client_with_ipv6_alone_is_back_once_ipv6_is_switched_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "RESTART_S", (0.01, 0.01))
    port, host, registry = free_port(), RefusingHost(), Registry()
    async with running(MemoryHost(), dual_server(port, dual("a", None, A))), trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, [client_config("a", port)], host, registry)
        await until(lambda: registry.select(["a"])[0].restarts >= 3, "some starts")
        host.off = False
        await until(lambda: V6 in host.standing.get("a", []), "the address")
        nursery.cancel_scope.cancel()


async def test_a_client_that_starts_with_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays so, whatever the settings say, and warns that IPv6 goes past the tunnel now. Later IPv6 is switched on,
    and off once more while the server's answer with IPv6 is under way: that ends one stream."""
    monkeypatch.setattr(restart, "RESTART_S", (0.01, 0.01))
    port, host, registry = free_port(), RefusingHost(), Registry()
    host.says_off = False
    server = replace(dual_server(port, dual("a", "10.10.0.2", A)), push_routes=ALL)
    with logged() as log:

        def lines(text: str) -> int:
            return sum(text in it.getMessage() for it in log)

        async with running(MemoryHost(), server), trio.open_nursery() as nursery:
            await nursery.start(run_interfaces, [client_config("a", port)], host, registry)
            await until(lambda: V4 in host.standing.get("a", []), "IPv4")
            await until(lambda: lines("other IPv6 traffic of this machine goes outside") == 1, "the warning")
            [record] = registry.select(["a"])
            restarts, client = record.restarts, record.tunnel
            assert restarts == 1
            assert isinstance(client, TunnelClient)
            monkeypatch.setattr(client._offer, "_has_ipv6", lambda: True)
            client.path_changed("the test")
            await until(lambda: lines("trying again at once") == 1, "the refusal")
            await until(lambda: lines("connected again") == 1, "a stream without IPv6")
            await trio.sleep(0.2)
            assert lines("trying again") == 1, "it is not asked for again at once"
            host.off = False
            client._offer._without_until = 0
            client.path_changed("the test")
            await until(lambda: V6 in host.standing.get("a", []), "the address")
            host.off = True
            assert record.reconfigure is not None
            with pytest.raises(ItemsRefused):
                await record.reconfigure(replace(client_config("a", port), mark=Mark(100, 100)))
            assert V6 in host.standing["a"]
            assert (record.restarts, record.tunnel) == (restarts, client)
            nursery.cancel_scope.cancel()


async def test_a_server_that_has_only_ipv6_for_a_client_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client starts without IPv6, since that was refused at the start before."""
    monkeypatch.setattr(interface, "IPV4_ALONE_S", 5.0)
    port, host = free_port(), MemoryHost()
    record = Record(client_config("a", port))
    record.ipv6_refused = True
    with logged() as log:
        async with (
            open_listeners() as listeners,
            running(MemoryHost(), dual_server(port, dual("a", None, A))) as nursery,
        ):
            await nursery.start(interface.run_interface, record.config, host, listeners, record)
            await until(lambda: any("has only IPv6" in it.getMessage() for it in log), "the first answers")
            await until(lambda: V6 in host.standing.get("a", []), "the address")
    assert not record.ipv6_refused


@table(
    "refused lacks items expected",
    ("IPv6 is off", [V6], True, [V4, V6], True),
    ("it is off, and a pushed route is refused too", [V6, PUSHED], True, [V4, V6, PUSHED], True),
    ("of a client with IPv6 alone", [V6], True, [V6], False),
    ("for another reason", [V6], False, [V4, V6], False),
    ("IPv4 is refused too", [V4, V6], True, [V4, V6], False),
    ("the bridge is refused too", [BridgePort("br0"), V6], True, [V4, V6, BridgePort("br0")], False),
)
def test_when_the_next_start_is_for_ipv4_alone(
    refused: list[Item], lacks: bool, items: list[Item], expected: bool
) -> None:
    refusal = ItemsRefused(dict.fromkeys(refused, "refused"), lacks_ipv6=lacks)
    assert interface._is_ipv6_alone(refusal, DesiredState(1400, tuple(items), frozenset({PUSHED}))) == expected
