"""What of a push is left out: tables of what a server pushes and what a machine is attached to, and the whole client
with a kernel in memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Final

import pytest
import trio

from tapotun_trio.cooperative import run_now
from tapotun_trio.errors import HostError
from tapotun_trio.families import is_within, with_prefix
from tapotun_trio.host.items import (
    Address,
    AttachedNetwork,
    DesiredState,
    HostRoute,
    Item,
    NextHop,
    Route,
    Rule,
)
from tapotun_trio.host.netlink.attached import Candidate, candidates, probe_address
from tapotun_trio.host.netlink.codec import AssignedAddress
from tapotun_trio.http.virtual_hosts import open_listeners
from tapotun_trio.lifecycle.interface import run_interface
from tapotun_trio.lifecycle.registry import Record
from tapotun_trio.log import interface_logger
from tapotun_trio.netconf.left_out import describe_back, describe_left_out, leave_out, networks_to_compare
from tapotun_trio.netconf.push_filter import PushFilter
from tapotun_trio.status.model import InterfaceStatus

from ..fakes import MemoryHost
from ..tables import table
from ..twins import FAMILIES, Family, both_families, twin
from .support import allowed, client_config, free_port, running, server_config
from .test_transport_guard import ADDRESS, ELSEWHERE, pushing, standing, until

LAN: Final = AttachedNetwork(IPv4Network("192.168.1.0/24"), "eth0")
OTHER: Final = AttachedNetwork(IPv4Network("172.17.0.0/16"), "docker0")
TUNNEL: Final = AttachedNetwork(IPv4Network("10.10.0.0/24"), "tun1", is_tunnel=True)
OURS: Final = "10.10.0.2/24"
MIDNIGHT: Final = datetime(2026, 1, 1, tzinfo=UTC)


def left_out(*pushes: str, address: str = OURS, version: int = 4) -> list[str]:
    """What is left out, as text. What remains must be everything else, in its order."""
    attached = [replace(it, network=ip_network(twin(str(it.network), version))) for it in (LAN, OTHER, TUNNEL)]
    items: list[Item] = [Address(ip_interface(address)), *(Route(ip_network(it)) for it in pushes)]
    items += [Route(ip_network(twin("0.0.0.0/0", version)), 100), Rule(7, 100, version=version)]
    pushed = frozenset(items[1 : 1 + len(pushes)])
    remaining, found = leave_out(items, pushed, attached)
    gone = {it.item for it in found if isinstance(it.item, Route) or it.network == it.item.interface.network}
    own = ip_interface(address)
    bare = Address(with_prefix(own.ip, own.max_prefixlen))
    assert list(remaining) == [
        bare if isinstance(it, Address) and it in gone else it
        for it in items
        if it not in gone or isinstance(it, Address)
    ]
    around, within = networks_to_compare(items, pushed)
    assert all(it.network in around or any(is_within(it.network, net) for net in within) for it in found)
    return [f"{it.network} {it.reason}" for it in found]


@table(
    "pushes expected",
    ("nothing", [], []),
    ("the network itself", ["192.168.1.0/24"], ["192.168.1.0/24 attached"]),
    ("a part of it", ["192.168.1.128/25"], ["192.168.1.128/25 attached"]),
    ("one address of it", ["192.168.1.9/32"], ["192.168.1.9/32 attached"]),
    ("a wider one", ["192.168.0.0/16"], []),
    ("a default route", ["0.0.0.0/0"], []),
    ("the halves of one", ["0.0.0.0/1", "128.0.0.0/1"], []),
    ("its neighbour", ["192.168.2.0/24"], []),
    ("one of several", ["10.60.0.0/16", "172.17.3.0/24"], ["172.17.3.0/24 attached"]),
    ("of both", ["192.168.1.0/25", "172.17.0.0/16"], ["192.168.1.0/25 attached", "172.17.0.0/16 attached"]),
    ("within another tunnel's", ["10.10.0.0/25"], ["10.10.0.0/25 attached"]),
)  # fmt: skip
@pytest.mark.parametrize("version", FAMILIES)
def test_routes(pushes: list[str], expected: list[str], version: int) -> None:
    wanted = [" ".join((twin(network, version), reason)) for network, reason in map(str.split, expected)]
    assert left_out(*(twin(it, version) for it in pushes), version=version) == wanted


@table(
    "pushes expected",
    ("of IPv4: loopback", ["127.0.0.0/8"], ["127.0.0.0/8 martian"]),
    ("of IPv4: martians and others", ["224.0.0.0/4", "10.1.0.0/16", "255.255.255.255/32"],
     ["224.0.0.0/4 martian", "255.255.255.255/32 martian"]),
    ("of IPv6: what every machine or link has", ["::1/128", "fe80::/64", "ff02::/16", "2001:db8::/32", "::/128"],
     ["::1/128 martian", "fe80::/64 martian", "ff02::/16 martian", "::/128 martian"]),
    ("of IPv6: IPv4's addresses", ["::ffff:10.0.0.0/104"], ["::ffff:10.0.0.0/104 martian"]),
    ("of IPv6: everything, and the halves of the Internet", ["::/0", "2000::/3", "8000::/1"], []),
)  # fmt: skip
def test_martians(pushes: list[str], expected: list[str]) -> None:
    wanted = [" ".join((str(ip_network(network)), reason)) for network, reason in map(str.split, expected)]
    assert left_out(*pushes) == wanted


def test_the_same_numbers_of_the_other_family_are_other_networks() -> None:
    """A comparison of numbers alone would find 192.168.1.0/24 in an IPv6 network with the same number."""
    odd = AttachedNetwork(IPv6Network((int(IPv4Address("192.168.1.0")), 24), strict=False), "eth0")
    push = Route(IPv4Network("192.168.1.0/25"))
    assert leave_out([push], [push], [odd]) == ((push,), ())


@table(
    "address expected",
    ("in a network of its own", OURS, []),
    ("in the LAN's", "192.168.1.50/24", ["192.168.1.0/24 tunnel-network", "192.168.1.50/32 tunnel-address"]),
    ("in a part of it", "192.168.1.200/25", ["192.168.1.128/25 tunnel-network", "192.168.1.200/32 tunnel-address"]),
    ("in a wider one", "192.168.1.50/16", ["192.168.1.0/24 tunnel-network", "192.168.1.50/32 tunnel-address"]),
    ("elsewhere in a wider one", "192.168.9.50/16", ["192.168.1.0/24 tunnel-network"]),
    ("alone", "192.168.1.50/32", ["192.168.1.50/32 tunnel-address"]),
    ("in a network of another tunnel, as two clients of one server are", "10.10.0.9/24", []),
)
@pytest.mark.parametrize("version", FAMILIES)
def test_the_address(address: str, expected: list[str], version: int) -> None:
    wanted = [" ".join((twin(network, version), reason)) for network, reason in map(str.split, expected)]
    assert left_out(address=twin(address, version), version=version) == wanted


def test_the_lines_name_network_device_and_remedy() -> None:
    items: list[Item] = [Address(IPv4Interface("192.168.1.50/24"))]
    items += [Route(IPv4Network(it)) for it in ("192.168.1.0/25", "224.0.0.0/4")]
    _, (address, alone, route, martian) = leave_out(items, items[1:], [LAN])
    _, (part, _) = leave_out([Address(IPv4Interface("192.168.1.50/16"))], [], [LAN])
    own = AttachedNetwork(IPv4Network("192.168.1.50/32"), "eth0")
    _, (twice,) = leave_out([Address(IPv4Interface("192.168.1.50/32"))], [], [own, LAN])
    for line, words in (
        (describe_left_out(alone), ["192.168.1.50/24", "eth0 attaches", "cannot be reached", "another network"]),
        (describe_left_out(part), ["192.168.1.0/24", "eth0", "part of the tunnel's network 192.168.0.0/16", "another"]),
        (describe_left_out(twice), ["192.168.1.50/32", "this machine has already, on eth0"]),
        (describe_back(alone), ["192.168.1.50 any more", "eth0"]),
        (describe_left_out(address), ["192.168.1.50/24", "192.168.1.0/24", "eth0", "another network"]),
        (describe_left_out(route), ["pushed route 192.168.1.0/25", "192.168.1.0/24", "eth0"]),
        (describe_left_out(martian), ["224.0.0.0/4", "multicast", "remove it"]),
        (describe_back(route), ["192.168.1.0/25 is used again", "eth0"]),
        (describe_back(address), ["192.168.1.0/24 is used again", "eth0"]),
    ):
        assert all(it in line for it in words), line


# -- what a machine is attached to


def address(index: int, text: str, peer: str | None = None, protocol: int | None = 0) -> AssignedAddress:
    interface = ip_interface(text)
    network = interface.network if peer is None else ip_network(peer)
    return AssignedAddress(index, interface.ip, network, protocol)


def translated(addresses: list[AssignedAddress], version: int) -> list[AssignedAddress]:
    return [
        replace(it, ip=ip_address(twin(str(it.ip), version)), network=ip_network(twin(str(it.network), version)))
        for it in addresses
    ]


@table(
    "addresses pushed expected",
    ("none", [], ["10.0.0.0/8"], []),
    ("the network", [address(3, "10.1.0.5/24")], ["10.1.0.0/24"], [(3, "10.1.0.0/24")]),
    ("a part", [address(3, "10.1.0.5/24")], ["10.1.0.128/25"], [(3, "10.1.0.0/24")]),
    ("wider", [address(3, "10.1.0.5/24")], ["10.0.0.0/8"], []),
    ("elsewhere", [address(3, "10.1.0.5/24")], ["10.2.0.0/24"], []),
    ("its own interface", [address(9, "10.1.0.5/24")], ["10.1.0.0/24"], []),
    ("the address alone", [address(3, "10.1.0.5/32")], ["10.1.0.5/32"], [(3, "10.1.0.5/32")]),
    ("the address within its network", [address(3, "10.1.0.5/24")], ["10.1.0.5/32"],
     [(3, "10.1.0.5/32"), (3, "10.1.0.0/24")]),
    ("around an address alone", [address(3, "10.1.0.5/32")], ["10.1.0.0/24"], []),
    ("the peer of a point-to-point link", [address(3, "10.1.0.5/32", "10.9.0.1/32")], ["10.9.0.1/32"],
     [(3, "10.9.0.1/32")]),
    ("around the peer", [address(3, "10.1.0.5/32", "10.9.0.1/32")], ["10.9.0.0/24"], []),
    ("two on one network", [address(3, "10.1.0.5/24"), address(4, "10.1.0.6/24")], ["10.1.0.0/24"],
     [(3, "10.1.0.0/24"), (4, "10.1.0.0/24")]),
    ("a second address of the network", [address(3, "10.1.0.5/24"), address(3, "10.1.0.6/24")], ["10.1.0.0/24"],
     [(3, "10.1.0.0/24")]),
)  # fmt: skip
@pytest.mark.parametrize("version", FAMILIES)
def test_candidates(
    addresses: list[AssignedAddress], pushed: list[str], expected: list[tuple[int, str]], version: int
) -> None:
    networks = [ip_network(twin(it, version)) for it in pushed]
    found = candidates(translated(addresses, version), networks, own=9)
    assert [(it.index, str(it.network)) for it in found] == [(index, twin(it, version)) for index, it in expected]
    # Those of the other family have nothing to do with it.
    assert candidates(translated(addresses, 10 - version), networks, own=9) == []


@table(
    "addresses within expected",
    ("none", [], ["10.0.0.0/8"], []),
    ("a part", [address(3, "10.1.0.5/24")], ["10.0.0.0/8"], [(3, "10.1.0.0/24")]),
    ("the same", [address(3, "10.1.0.5/24")], ["10.1.0.0/24"], [(3, "10.1.0.0/24")]),
    ("wider", [address(3, "10.1.0.5/24")], ["10.1.0.0/25"], []),
    ("an address alone", [address(3, "10.1.0.5/32")], ["10.0.0.0/8"], []),
    ("its own", [address(9, "10.1.0.5/24")], ["10.0.0.0/8"], []),
)
@pytest.mark.parametrize("version", FAMILIES)
def test_candidates_within(
    addresses: list[AssignedAddress], within: list[str], expected: list[tuple[int, str]], version: int
) -> None:
    networks = [ip_network(twin(it, version)) for it in within]
    found = candidates(translated(addresses, version), (), own=9, within=networks)
    assert [(it.index, str(it.network)) for it in found] == [(index, twin(it, version)) for index, it in expected]


def test_the_link_local_network_of_a_link_is_none_to_which_it_attaches() -> None:
    """With IPv4 it may be one, such as that of a cloud."""
    everything = [ip_network("0.0.0.0/0"), ip_network("fc00::/6")]
    found = candidates([address(3, "fe80::5/64"), address(3, "169.254.0.5/16")], (), own=9, within=everything)
    assert [str(it.network) for it in found] == ["169.254.0.0/16"]


@both_families
def test_what_the_local_table_has_needs_no_route(family: Family) -> None:
    pushed = [ip_network(it) for it in family(("10.1.0.5/32", "198.51.100.0/24"))]
    found = candidates([address(3, family("10.1.0.5/24")), address(1, family("198.51.100.1/24"))], pushed, own=9)
    assert [(str(it.network), it.is_local) for it in found] == [
        (family("10.1.0.5/32"), True),
        (family("10.1.0.0/24"), False),
        (family("198.51.100.0/24"), True),
    ]
    assert all(isinstance(it, Candidate) for it in found)


@table(
    "network own expected",
    ("the first", "10.1.0.0/24", "10.1.0.5", "10.1.0.1"),
    ("not its own", "10.1.0.0/24", "10.1.0.1", "10.1.0.2"),
    ("of two", "10.1.0.4/31", "10.1.0.4", "10.1.0.5"),
    ("the other of two", "10.1.0.4/31", "10.1.0.5", "10.1.0.4"),
    ("a peer", "10.9.0.1/32", "10.1.0.5", "10.9.0.1"),
)
@both_families
def test_probes(network: str, own: str, expected: str, family: Family) -> None:
    assert probe_address(ip_network(family(network)), ip_address(family(own))) == ip_address(family(expected))


# -- the filter


async def test_each_change_is_one_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tapotun_trio"), "propagate", True)
    caplog.set_level(logging.INFO)
    host, it = MemoryHost(), PushFilter(interface_logger("a"))
    push, martian = Route(IPv4Network("192.168.1.0/25")), Route(IPv4Network("127.0.0.0/8"))
    desired = DesiredState(1500, (ADDRESS, push, martian), frozenset([push, martian]))

    def lines() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    async with host.open_network() as network:
        assert await it.acceptable(network, "a", desired) == (ADDRESS, push)
        [line] = lines()
        assert "127.0.0.0/8" in line
        host.attached.append(LAN)
        assert await it.is_outdated(network, "a")
        assert await it.acceptable(network, "a", desired) == (ADDRESS,)
        [line] = lines()
        assert "192.168.1.0/25 is left out" in line
        for _ in range(3):
            assert not await it.is_outdated(network, "a")
            assert await it.acceptable(network, "a", desired) == (ADDRESS,)
        host.ways_fail = True  # what was known goes on to count
        assert await it.acceptable(network, "a", desired) == (ADDRESS,)
        [line] = lines()
        assert "cannot find out" in line
        with pytest.raises(HostError):
            await it.is_outdated(network, "a")
        host.ways_fail = False
        host.attached.clear()
        assert await it.is_outdated(network, "a")
        assert await it.acceptable(network, "a", desired) == (ADDRESS, push)
        [line] = lines()
        assert "192.168.1.0/25 is used again" in line
        host.attached.append(LAN)
        await it.acceptable(network, "a", desired)
        assert lines()
        # The server takes it back: then nothing is used again.
        assert await it.acceptable(network, "a", DesiredState(1500, (ADDRESS,))) == (ADDRESS,)
        assert lines() == []
        assert it.left_out == ()


async def test_a_server_that_pushes_hundreds_of_martians_gets_a_few_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tapotun_trio"), "propagate", True)
    pushes = tuple(Route(IPv4Network(f"127.0.{n}.0/24")) for n in range(200))
    host, it = MemoryHost(), PushFilter(interface_logger("a"))
    async with host.open_network() as network:
        for turn in range(50):  # as often as a hostile server changes its mind
            some = pushes[turn:]
            await it.acceptable(network, "a", DesiredState(1500, some, frozenset(some)))
            await it.acceptable(network, "a", DesiredState(1500))
    lines = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert len(lines) <= 20
    assert "(and 195 more)" in lines[4].getMessage()


# -- the whole client


@both_families
async def test_a_client_that_roams_into_the_pushed_network(family: Family) -> None:
    """And out again: each time as soon as the kernel says that something has changed."""
    host, port = MemoryHost(), free_port()
    own, elsewhere = Address(ip_interface(family("10.10.0.2/24"))), Route(ip_network(family("10.60.0.0/24")))
    server = replace(server_config(port, allowed("a", family("10.10.0.2"))), push_routes=(elsewhere.network,))
    async with running(MemoryHost(), server), running(host, client_config("a", port)):
        await until(lambda: standing(host) == [own, elsewhere])
        for _ in range(2):
            host.attached.append(AttachedNetwork(ip_network(family("10.60.0.0/16")), "eth1"))
            host.change("eth1: address added", "127.0.0.1")
            await until(lambda: standing(host) == [own])
            host.attached.clear()
            host.change("eth1: address removed", "127.0.0.1")
            await until(lambda: standing(host) == [own, elsewhere])


async def test_a_route_that_appears_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapotun_trio.netconf.transport_guard.CHECK_S", 0.05)
    host, port = MemoryHost(), free_port()
    async with running(MemoryHost(), pushing(port, ELSEWHERE)), running(host, client_config("a", port)):
        await until(lambda: standing(host) == [ADDRESS, ELSEWHERE])
        host.attached.append(AttachedNetwork(ELSEWHERE.network, "eth1"))
        await until(lambda: standing(host) == [ADDRESS])
        host.attached.clear()
        await until(lambda: standing(host) == [ADDRESS, ELSEWHERE])


async def test_pushed_martians_are_not_made() -> None:
    """By a server that does not check its config, in the header and in PARAMS."""
    host, port = MemoryHost(), free_port()
    pushes = [Route(IPv4Network(it)) for it in ("127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "0.0.0.0/8")]
    halves = [Route(IPv4Network(it)) for it in ("0.0.0.0/1", "128.0.0.0/1")]
    config, record = client_config("a", port), Record(client_config("a", port))
    async with running(MemoryHost(), pushing(port, *pushes, ELSEWHERE, *halves)), open_listeners() as listeners:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_interface, config, host, listeners, record)
            await until(lambda: halves[1] in standing(host))
            assert standing(host) == [ADDRESS, ELSEWHERE, *halves]

            def shown() -> InterfaceStatus:
                assert record.tunnel is not None
                common = InterfaceStatus(name="a", kind="client", state="up", since=MIDNIGHT)
                return run_now(record.tunnel.status(common))

            await until(lambda: shown().peers[0].routes != [])  # told once the kernel has all of them
            status = shown()
            assert [(it.route, it.reason) for it in status.left_out] == [(str(it.network), "martian") for it in pushes]
            assert status.peers[0].routes == [str(it.network) for it in (ELSEWHERE, *halves)]
            nursery.cancel_scope.cancel()
    assert host.left_over == []


@both_families
async def test_the_tunnel_s_network_is_the_client_s_own(family: Family) -> None:
    """The address stays, without its network; and the transport still has its host route where it needs one."""
    host, port, server = MemoryHost(), free_port(), IPv4Address("127.0.0.1")
    cover, own = Route(IPv4Network("0.0.0.0/1")), Address(ip_interface(family("10.10.0.2/24")))
    host.ways[server] = NextHop(IPv4Network("0.0.0.0/0"), index=3, device="eth0", gateway=IPv4Address("192.0.2.1"))
    host.attached.append(AttachedNetwork(own.interface.network, "eth0"))
    bare = Address(with_prefix(own.interface.ip, own.interface.max_prefixlen))
    addresses = tuple(dict.fromkeys(["10.10.0.2", family("10.10.0.2")]))
    config = replace(server_config(port, allowed("a", addresses)), push_routes=(cover.network,))
    async with running(MemoryHost(), config), running(host, client_config("a", port)):
        await until(lambda: {bare, cover} <= set(standing(host)))
        past = HostRoute(server, 3, IPv4Address("192.0.2.1"))
        assert {it for it in standing(host) if it != ADDRESS} == {bare, cover, past}
        host.attached.clear()
        host.change("eth0 is down", "127.0.0.1")
        await until(lambda: own in standing(host))
        assert bare not in standing(host)
