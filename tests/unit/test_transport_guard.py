"""A client's own connections and its plan, with the kernel in memory: what is made, in which order, and when."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface
from typing import Final

import pytest
import trio

from tapotun_trio.config.model import ServerConfig
from tapotun_trio.errors import PeerError
from tapotun_trio.families import IPAddress
from tapotun_trio.host.items import Address, DesiredState, HostRoute, Item, NextHop, Route
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.log import interface_logger
from tapotun_trio.netconf.transport_guard import TransportGuard

from ..fakes import HANG_S, MemoryHost, MemoryNetwork
from ..twins import Family, both_families
from .support import allowed, client_config, free_port, running, server_config

SERVER: Final = IPv4Address("127.0.0.1")
WAY: Final = NextHop(IPv4Network("0.0.0.0/0"), index=3, device="eth0", gateway=IPv4Address("192.0.2.1"), metric=100)
EXCEPTION: Final = HostRoute(SERVER, 3, IPv4Address("192.0.2.1"))
COVER: Final = Route(IPv4Network("0.0.0.0/1"))
ELSEWHERE: Final = Route(IPv4Network("10.60.0.0/24"))
ADDRESS: Final = Address(IPv4Interface("10.10.0.2/24"))


def pushing(port: int, *routes: Route, keepalive_s: float = 10.0) -> ServerConfig:
    config = server_config(port, allowed("a", "10.10.0.2"))
    return replace(config, push_routes=tuple(it.network for it in routes), keepalive_s=keepalive_s)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(HANG_S):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def standing(host: MemoryHost) -> list[Item]:
    return host.standing.get("a", [])


async def test_a_host_route_comes_before_what_covers_the_server_and_goes_after_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, Item]] = []

    async def add(self: MemoryNetwork, name: str, items: Sequence[Item]) -> None:
        told.extend(("add", it) for it in items)
        await real_add(self, name, items)

    async def remove(self: MemoryNetwork, name: str, items: Sequence[Item]) -> None:
        told.extend(("remove", it) for it in items)
        await real_remove(self, name, items)

    real_add, real_remove = MemoryNetwork.add, MemoryNetwork.remove
    monkeypatch.setattr(MemoryNetwork, "add", add)
    monkeypatch.setattr(MemoryNetwork, "remove", remove)
    monkeypatch.setattr(logging.getLogger("tapotun_trio"), "propagate", True)
    host, hub, port = MemoryHost(), MemoryHost(), free_port()
    host.ways[SERVER] = WAY
    record = Record(config := pushing(port, COVER, ELSEWHERE))
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        await nursery.start(run_interface, config, hub, listeners, record)
        async with running(host, client_config("a", port)):
            await until(lambda: {COVER, ELSEWHERE} <= set(standing(host)))
            assert set(standing(host)) == {EXCEPTION, ADDRESS, COVER, ELSEWHERE}
            assert told.index(("add", EXCEPTION)) < told.index(("add", COVER))
            lines = [it.getMessage() for it in caplog.records if "the tunnel's own connections go" in it.getMessage()]
            assert len(lines) == 1
            told.clear()
            assert record.reconfigure is not None
            await record.reconfigure(pushing(port, ELSEWHERE))  # taken back
            await until(lambda: EXCEPTION not in standing(host))
            assert set(standing(host)) == {ADDRESS, ELSEWHERE}
            assert told.index(("remove", COVER)) < told.index(("remove", EXCEPTION))
            told.clear()
            await record.reconfigure(pushing(port, ELSEWHERE, COVER))
            await until(lambda: COVER in standing(host))
            assert told.index(("add", EXCEPTION)) < told.index(("add", COVER))
        nursery.cancel_scope.cancel()


async def test_the_host_route_follows_the_way() -> None:
    host, port = MemoryHost(), free_port()
    host.ways[SERVER] = WAY
    async with running(MemoryHost(), pushing(port, COVER)), running(host, client_config("a", port)):
        await until(lambda: COVER in standing(host))
        host.ways[SERVER] = replace(WAY, index=4, gateway=IPv4Address("198.51.100.1"))
        host.change("default route changed", "127.0.0.1")
        other = HostRoute(SERVER, 4, IPv4Address("198.51.100.1"))
        await until(lambda: other in standing(host))
        assert [it for it in standing(host) if isinstance(it, HostRoute)] == [other]
        del host.ways[SERVER]  # no default route any more
        host.change("default route changed", "127.0.0.1")
        await until(lambda: other not in standing(host))
        assert not [it for it in standing(host) if isinstance(it, HostRoute)]
        assert COVER in standing(host)


@pytest.mark.parametrize("why", ["unknown", "refused", "unusable"])
async def test_where_no_host_route_can_be_had_the_covering_route_is_left_out(why: str) -> None:
    host, port = MemoryHost(), free_port()
    host.ways[SERVER] = replace(WAY, usable=why != "unusable")
    host.ways_fail = why == "unknown"
    if why == "refused":
        host.refused.add(EXCEPTION)
    async with running(MemoryHost(), pushing(port, COVER, ELSEWHERE)), running(host, client_config("a", port)):
        await until(lambda: ELSEWHERE in standing(host))
        await trio.sleep(0.1)
        assert standing(host) == [ADDRESS, ELSEWHERE]


async def test_a_route_of_somebody_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapotun_trio.netconf.transport_guard.CHECK_S", 0.05)
    host, port = MemoryHost(), free_port()
    host.ways[SERVER] = WAY
    async with running(MemoryHost(), pushing(port)), running(host, client_config("a", port)):
        await until(lambda: ADDRESS in standing(host))
        assert standing(host) == [ADDRESS]
        host.ways[SERVER] = replace(WAY, captured_by=(IPv4Network("127.0.0.0/8"), 254))
        host.led_into.add(SERVER)
        await until(lambda: EXCEPTION in standing(host))


async def test_without_a_session_for_three_keepalives_it_is_withdrawn_and_comes_back() -> None:
    host, port = MemoryHost(), free_port()
    host.ways[SERVER] = WAY
    config = pushing(port, COVER, ELSEWHERE, keepalive_s=1.0)
    async with trio.open_nursery() as nursery:

        async def client() -> None:
            async with running(host, client_config("a", port)):
                await trio.sleep_forever()

        async with running(MemoryHost(), config):
            nursery.start_soon(client)
            await until(lambda: {COVER, ELSEWHERE, EXCEPTION} <= set(standing(host)))
        gone = trio.current_time()
        await until(lambda: COVER not in standing(host))
        assert trio.current_time() - gone >= 1.0  # not at once
        await until(lambda: standing(host) == [ADDRESS, ELSEWHERE])
        async with running(MemoryHost(), config):
            await until(lambda: {COVER, EXCEPTION} <= set(standing(host)))
            nursery.cancel_scope.cancel()
    assert host.left_over == []


def guard() -> TransportGuard:
    return TransportGuard(None, interface_logger("a"))


async def test_every_address_of_an_attempt_is_asked_for_before_it_is_tried() -> None:
    it, seen = guard(), list[frozenset[IPAddress]]()

    async def look(thorough: bool) -> None:
        await trio.lowlevel.checkpoint()
        assert thorough
        seen.append(it.addresses)

    first, second, third = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), IPv6Address("2001:db8::1")
    with it.attempt() as attempt:
        await attempt.resolved(["192.0.2.1"])  # there is no interface yet, so nobody to decide
    assert seen == []
    with it.rechecking(look):
        with it.attempt() as attempt:
            # A link-local address says itself on which link it is, so no route can lead it elsewhere.
            await attempt.resolved(["192.0.2.1", "2001:db8::1", "192.0.2.2", "fe80::1%lo"])
            assert seen == [{first, second, third}]
        assert it.addresses == {first, second, third}  # until something else is tried
        with it.attempt() as attempt:
            await attempt.resolved(["192.0.2.2"])
        assert it.addresses == {second}
        assert len(seen) == 2
    with it.attempt() as attempt:
        await attempt.resolved(["192.0.2.1"])  # nor is there one any more
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("interface", "refused"),
    [
        ("192.0.2.1/24", True),
        ("192.0.2.2/24", False),
        ("192.0.2.2/31", False),
        ("192.0.2.9/30", False),
        ("192.0.2.2/30", False),
        ("192.0.2.0/31", False),
        ("192.0.2.1/32", True),
    ],
)
@both_families
async def test_an_address_that_takes_the_server_s_away(interface: str, refused: bool, family: Family) -> None:
    it, own, server = guard(), ip_interface(family(interface)), family("192.0.2.1")
    with it.attempt() as attempt:
        await attempt.resolved([server])
    if not refused:
        it.refuse_own([own])
        return
    with pytest.raises(PeerError, match=f"address {own}, which would make {server} unreachable"):
        it.refuse_own([own])


async def test_a_connection_whose_local_address_is_gone_is_known_before_it_is_open() -> None:
    it = guard()
    here, elsewhere = frozenset({"127.0.0.1"}), frozenset({"192.0.2.9"})
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
        with it.attempt() as attempt:
            attempt.connecting(sock)
            assert not it.has_lost_an_address(elsewhere)  # it has none yet
            sock.connect(server.getsockname())
            assert not it.has_lost_an_address(here)
            assert it.has_lost_an_address(elsewhere)
        assert not it.has_lost_an_address(elsewhere)
        connection = Connection(sock, "the server")
        it.opened(connection)
        assert it.has_lost_an_address(elsewhere)
        connection.close()
        assert not it.has_lost_an_address(elsewhere)


@pytest.mark.parametrize("address", ["192.0.2.4", "192.0.2.7"])
async def test_a_network_s_ends_are_taken_away_too(address: str) -> None:
    """The kernel would make a broadcast address of it."""
    it = guard()
    with it.attempt() as attempt:
        await attempt.resolved([address])
    with pytest.raises(PeerError, match="unreachable"):
        it.refuse_own([IPv4Interface("192.0.2.5/30")])


async def test_of_ipv6_only_the_first_address_of_a_network_is_taken_away() -> None:
    """All routers have it (RFC 4291 section 2.6.1), and a client may be one. There is no broadcast."""
    for address, refused in (("fd00::4", True), ("fd00::7", False)):
        it = guard()
        with it.attempt() as attempt:
            await attempt.resolved([address])
        with pytest.raises(PeerError, match="unreachable") if refused else nullcontext():
            it.refuse_own([IPv6Interface("fd00::5/126")])


async def test_where_the_name_does_not_resolve_any_pushed_route_may_stand_between() -> None:
    it, host = guard(), MemoryHost()
    plan = DesiredState(1500, (ADDRESS, ELSEWHERE), frozenset([ELSEWHERE]))
    async with host.open_network() as network:
        it.session_begins()
        it.unresolved()
        assert (await it.decide(network, "a", plan, ())).items == plan.items
        it.tick(trio.current_time() + 31, connected=False, heard=False, silence_s=30)
        assert (await it.decide(network, "a", plan, ())).items == (ADDRESS,)
        it.session_begins()
        assert (await it.decide(network, "a", plan, ())).items == plan.items


async def test_no_connection_goes_through_a_tunnel_that_another_one_carries() -> None:
    """The server's other address is reached through the tunnel only, as ::/0 is pushed and nobody else routes IPv6."""
    host, other = MemoryHost(), IPv6Address("2001:db8::10")
    desired = DesiredState(1500, (Address(IPv6Interface("fd00::2/64")), Route(IPv6Network("::/0"))))
    guard = TransportGuard(None, interface_logger("a"))

    async def recheck(thorough: bool) -> None:
        decision = await guard.decide(MemoryNetwork(host), "a", desired, ())
        assert set(desired.items) <= set(decision.items)

    async def tried() -> list[bool]:
        with guard.attempt() as attempt:
            await attempt.resolved([str(other), str(SERVER)])
            return [attempt.may_try(str(other)), attempt.may_try(str(SERVER))]

    with guard.rechecking(recheck):
        host.ways[SERVER] = WAY
        assert await tried() == [False, True]
        host.ways[other] = NextHop(IPv6Network("::/0"), index=3, device="eth0", gateway=IPv6Address("fe80::1"))
        assert await tried() == [True, True]
        host.ways.clear()  # nothing carries the tunnel, so nothing goes through it
        assert await tried() == [True, True]
        host.ways[SERVER] = WAY
        assert await tried() == [False, True]
    assert await tried() == [True, True]  # the interface is gone
