"""Two whole interfaces, joined by real sockets on loopback and by devices in memory; no root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, ip_interface, ip_network
from typing import Any, Literal

import pytest
import trio

from tapotun_trio.client import client as client_module
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.config.model import AuthHeader, Mark, ServerConfig, TransportChoice
from tapotun_trio.host.items import Address, Item, Route, Rule
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.netconf.desired import pushed_routes
from tapotun_trio.server.session import ForwardingTable, Session
from tapotun_trio.wire import tunconf

from ..fakes import MemoryDevice, MemoryHost, MemoryNetwork
from ..packets import ip
from ..twins import FAMILIES, Family, as_it_is, both_families, twin
from .hostile import until
from .support import allowed, client_config, counting_streams, free_port, running, server_config

pytestmark = pytest.mark.usefixtures("nothing_dropped_on_purpose")


@both_families
async def test_packets_cross_both_ways(family: Family) -> None:
    port = free_port()
    host = MemoryHost()
    me, server = family("10.10.0.2"), family("10.10.0.1")
    config = server_config(port, allowed("a", me), mtu=1400)
    with counting_streams() as begun:
        async with running(host, config, client_config("a", port)):
            hub, a = await host.device("hub"), await host.device("a")
            await until(lambda: begun["upload"], "the upload: until then a packet may grow too old")
            up = ip(me, server, b"up")
            a.send(up)
            assert await hub.receive_packet() == up
            down = ip(server, me, b"down")
            hub.send(down)
            assert await a.receive_packet() == down
            assert host.mtus == {"hub": 1400, "a": 1400}
            assert host.standing["a"] == [Address(ip_interface(family("10.10.0.2/24")))]


@pytest.mark.parametrize("transport", ["http", "websocket"])
@pytest.mark.parametrize("auth_header", ["x-api-key", "authorization", "both"])
@both_families
async def test_the_token_in_either_header(auth_header: AuthHeader, transport: TransportChoice, family: Family) -> None:
    port = free_port()
    host = MemoryHost()
    client = replace(client_config("a", port), auth_header=auth_header, transport=transport)
    async with running(host, server_config(port, allowed("a", family("10.10.0.2"))), client):
        hub, a = await host.device("hub"), await host.device("a")
        up = ip(family("10.10.0.2"), family("10.10.0.1"), b"up")
        a.send(up)
        assert await hub.receive_packet() == up


@both_families
async def test_client_to_client_without_touching_the_device(family: Family) -> None:
    port = free_port()
    host = MemoryHost()
    b = allowed("b", family("10.10.0.3"), routes=family(("10.70.0.0/24",)))
    server = server_config(port, allowed("a", family("10.10.0.2")), b)
    async with running(host, server, client_config("a", port), client_config("b", port)):
        device_a, device_b = await host.device("a"), await host.device("b")
        # Until b's first download, the server does not know whether b takes IPv6, and drops it.
        await until(lambda: host.standing.get("b"), "b's download")
        packet = ip(family("10.10.0.2"), family("10.70.0.9"), b"across")
        device_a.send(packet)
        assert await device_b.receive_packet() == packet
        assert not host.devices["hub"].outbound
        assert Route(ip_network(family("10.70.0.0/24"))) in host.standing["hub"]


@pytest.mark.parametrize("version", FAMILIES)
async def test_marks(version: int) -> None:
    port = free_port()
    host = MemoryHost()
    mark = Mark(100, 200)
    client = allowed("a", twin("10.10.0.2", version))
    async with running(host, server_config(port, client, mark=mark), client_config("a", port, mark)):
        await host.device("a")
        await until(lambda: all(len(host.standing.get(name, ())) > 2 for name in ("hub", "a")), "the rules")
        for name in ("hub", "a"):
            everything = Route(ip_network(twin("0.0.0.0/0", version)), 200)
            assert host.standing[name][-2:] == [everything, Rule(100, 200, version=version)]


ROTATIONS = 5
"""Of each stream, at least: in a second there are about thirty."""

PUSHED = ("10.60.0.0/24", "10.60.0.128/25", "10.0.0.0/8", "10.10.0.0/24", "10.10.0.9/32")


def pushing(port: int, peers: Literal[1, 2], family: Family = as_it_is) -> ServerConfig:
    clients = (
        allowed("a", family("10.10.0.2"), routes=family(("10.60.0.0/24",))),
        allowed("b", family("10.10.0.3"), routes=family(("10.60.0.0/25",))),
    )
    return replace(server_config(port, *clients), push_routes=tuple(map(ip_network, family(PUSHED))), peers=peers)


def routes(*networks: str) -> list[Route]:
    return [Route(ip_network(network)) for network in networks]


@pytest.mark.parametrize("peers", [1, 2])
@both_families
async def test_pushed_routes_but_for_what_a_client_has_itself(peers: Literal[1, 2], family: Family) -> None:
    port = free_port()
    host = MemoryHost()
    async with running(host, pushing(port, peers, family), client_config("a", port), client_config("b", port)):
        for name, address, expected in (
            ("a", family("10.10.0.2/24"), routes(family("10.0.0.0/8"))),
            ("b", family("10.10.0.3/24"), routes(*family(("10.60.0.0/24", "10.60.0.128/25", "10.0.0.0/8")))),
        ):
            await host.device(name)
            with trio.fail_after(5):
                while len(host.standing.get(name, [])) <= len(expected):  # noqa: ASYNC110 - PARAMS may come later
                    await trio.sleep(0.01)
            assert host.standing[name] == [Address(ip_interface(address)), *expected]


@pytest.mark.parametrize("peers", [1, 2])
def test_a_deployed_client_is_told_pushed_routes_in_generation_2_only(peers: Literal[1, 2]) -> None:
    config = pushing(1, peers)
    told = Session(0, config.clients[0], config, ForwardingTable()).parameters.tun_conf
    assert told is not None
    conf = tunconf.decode(told)
    assert conf.addresses == (IPv4Interface("10.10.0.2/24"),)
    assert conf.routes == ((IPv4Network("10.0.0.0/8"),) if peers == 2 else ())


@pytest.mark.parametrize("version", FAMILIES)
def test_a_pushed_default_route_is_sent_unless_it_is_the_client_s_own(version: int) -> None:
    default = twin("0.0.0.0/0", version)
    clients = allowed("a", twin("10.10.0.2", version), routes=(default,)), allowed("b", twin("10.10.0.3", version))
    pushed = ip_network(default), ip_network(twin("10.60.0.0/24", version))
    config = replace(server_config(1, *clients), push_routes=pushed)
    assert [pushed_routes(config, client) for client in clients] == [(), config.push_routes]


@both_families
async def test_a_rotation_leaves_pushed_routes_alone(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    """The header of generation 1 has no routes, and PARAMS has them."""
    removed: list[Item] = []

    async def remove(self: MemoryNetwork, name: str, items: Sequence[Item]) -> None:
        removed.extend(items)
        await undo(self, name, items)

    undo = MemoryNetwork.remove
    monkeypatch.setattr(MemoryNetwork, "remove", remove)
    port = free_port()
    host = MemoryHost()
    client = replace(client_config("b", port), rotate_s=(0.02, 0.05))
    with counting_streams() as begun:
        async with running(host, pushing(port, 1, family), client):
            await until(lambda: len(host.standing.get("b", [])) == 4, "the pushed routes")
            first = begun["download"]
            await until(lambda: begun["download"] >= first + ROTATIONS, "the rotations")
            assert len(host.standing["b"]) == 4
            assert removed == []


@both_families
async def test_a_burst_larger_than_the_socket_takes_arrives_whole_and_in_order(family: Family) -> None:
    port = free_port()
    host = MemoryHost()
    me, server = family("10.10.0.2"), family("10.10.0.1")
    async with running(host, server_config(port, allowed("a", me)), client_config("a", port)):
        hub, a = await host.device("hub"), await host.device("a")
        packets = [ip(me, server, n.to_bytes(4, "big") * 8000) for n in range(60)]
        for packet in packets:
            a.send(packet)
        for packet in packets:
            assert await hub.receive_packet() == packet


@both_families
async def test_rotation_loses_duplicates_and_reorders_nothing(family: Family) -> None:
    port = free_port()
    host = MemoryHost()
    client = replace(client_config("a", port), rotate_s=(0.02, 0.05))
    with counting_streams() as begun:
        async with running(host, server_config(port, allowed("a", family("10.10.0.2"))), client):
            hub, a = await host.device("hub"), await host.device("a")
            await until(lambda: begun["upload"], "the first upload")
            begun.clear()

            async def stream(source: MemoryDevice, head: tuple[str, str]) -> None:
                for n in range(1000):
                    source.send(ip(*head, n.to_bytes(4, "big") * 100))
                    await trio.sleep(0.001)

            async def check(sink: MemoryDevice, head: tuple[str, str]) -> None:
                for n in range(1000):
                    assert await sink.receive_packet() == ip(*head, n.to_bytes(4, "big") * 100)

            up: tuple[str, str] = family(("10.10.0.2", "10.10.0.1"))
            down = up[::-1]
            async with trio.open_nursery() as traffic:
                traffic.start_soon(stream, a, up)
                traffic.start_soon(check, hub, up)
                traffic.start_soon(stream, hub, down)
                traffic.start_soon(check, a, down)
            assert min(begun["download"], begun["upload"]) >= ROTATIONS, begun


async def test_an_answer_that_overtakes_the_end_of_an_upload_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the server's answer is there before the client's task, which sent the end, runs again."""
    finish = BodyWriter.finish

    async def finish_and_wait(self: BodyWriter, last_piece: bytes = b"") -> None:
        await finish(self, last_piece)
        await trio.sleep(0.05)

    def client_of(*args: Any, **options: Any) -> TunnelClient:
        clients.append(TunnelClient(*args, **options))
        return clients[-1]

    clients: list[TunnelClient] = []
    monkeypatch.setattr(client_module, "TunnelClient", client_of)
    monkeypatch.setattr(BodyWriter, "finish", finish_and_wait)
    port = free_port()
    client = replace(client_config("a", port), rotate_s=(0.02, 0.05))
    with counting_streams() as begun:
        async with running(MemoryHost(), server_config(port, allowed("a", "10.10.0.2")), client):
            await until(lambda: begun["upload"] >= ROTATIONS, "the rotations")
    assert [it.counters.ends.total() for it in clients] == [0]
