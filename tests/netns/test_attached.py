"""To which networks this machine is attached, and how addresses are reached, against the real kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from typing import Final

import pytest
import trio

from tapotun_trio.host.items import CurrentRoute
from tapotun_trio.host.netlink.network import Netlink, open_netlink
from tapotun_trio.host.tun import open_tun
from tests.harness import wait_until

from ..tables import table
from .families import BOTH, Family
from .fresh_namespace import in_fresh_namespace, ip

pytestmark = pytest.mark.netns

IPV4: Final = Family(4)

LAN: Final = ("10.60.0.0/24", "eth0")
NODAD: Final = {4: (), 6: ("nodad",)}
CARRIER_S: Final = 20.0


def cable(name: str, *addresses: str, family: Family = IPV4) -> None:
    ip("link", "add", name, "type", "veth", "peer", "name", f"far-{name}")
    for text in addresses:
        family.ip("addr", "add", *text.split(), "dev", name, *NODAD[family.version])
    for end in (name, f"far-{name}"):
        ip("link", "set", end, "up")
    wait_until(lambda: ip("link", "show", name)[0]["operstate"] == "UP", CARRIER_S, f"the carrier of {name}")


@asynccontextmanager
async def tunnel(family: Family = IPV4) -> AsyncIterator[Netlink]:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", [family.address("10.10.0.2/24")])
            yield network


async def attached(family: Family, network: Netlink, *networks: str) -> list[tuple[str, str]]:
    found = await network.attached("tun0", [family.network(it) for it in networks])
    return [(str(it.network), it.device) for it in found]


def words(*lines: str) -> list[list[str]]:
    return [line.split() for line in lines]


@table(
    "setup pushed expected",
    ("the LAN itself", words("addr add 10.60.0.7/24 dev eth0"), ["10.60.0.0/24"], [LAN]),
    ("a part of it", words("addr add 10.60.0.7/24 dev eth0"), ["10.60.0.128/25"], [LAN]),
    ("wider than the LAN", words("addr add 10.60.0.7/24 dev eth0"), ["10.60.0.0/16"], []),
    ("elsewhere", words("addr add 10.60.0.7/24 dev eth0"), ["10.61.0.0/24"], []),
    ("with a metric", words("addr add 10.60.0.7/24 dev eth0 metric 100"), ["10.60.0.0/24"], [LAN]),
    (
        "as a DHCP client does it",
        words(
            "addr add 10.60.0.7/24 dev eth0 noprefixroute",
            "route add 10.60.0.0/24 dev eth0 proto dhcp scope link src 10.60.0.7 metric 600",
        ),
        ["10.60.0.0/24"],
        [LAN],
    ),
    (
        "as an operator does it",
        words("addr add 10.60.0.7/24 dev eth0 noprefixroute", "route add 10.60.0.0/24 dev eth0 metric 50"),
        ["10.60.0.0/25"],
        [LAN],
    ),
    ("an address without a route", words("addr add 10.60.0.7/24 dev eth0 noprefixroute"), ["10.60.0.0/24"], []),
    (
        "a route by a gateway only",
        words(
            "addr add 192.0.2.7/24 dev eth0",
            "addr add 10.60.0.7/24 dev eth0 noprefixroute",
            "route add 10.60.0.0/24 via 192.0.2.1",
        ),
        ["10.60.0.0/24"],
        [],
    ),
    (
        "in another table, for everybody",
        words(
            "addr add 10.60.0.7/24 dev eth0 noprefixroute",
            "route add 10.60.0.0/24 dev eth0 table 100",
            "rule add lookup 100 priority 40000",
        ),
        ["10.60.0.0/24"],
        [LAN],
    ),
    (
        "in another table, for the LAN's own address",
        words(
            "addr add 10.60.0.7/24 dev eth0 noprefixroute",
            "route add 10.60.0.0/24 dev eth0 table 1000",
            "rule add from 10.60.0.7 lookup 1000",
        ),
        ["10.60.0.64/26"],
        [LAN],
    ),
    (
        "in another table that has nothing but a default route",
        words(
            "addr add 10.60.0.7/24 dev eth0",
            "route add default via 10.60.0.1 table 100",
            "rule add from 10.60.0.7 lookup 100",
        ),
        ["10.60.0.0/24"],
        [LAN],
    ),
    (
        "in a table that nothing leads to",
        words("addr add 10.60.0.7/24 dev eth0 noprefixroute", "route add 10.60.0.0/24 dev eth0 table 100"),
        ["10.60.0.0/24"],
        [],
    ),
    ("the address alone", words("addr add 10.60.0.7/32 dev eth0"), ["10.60.0.7/32"], [("10.60.0.7/32", "eth0")]),
    ("around an address alone", words("addr add 10.60.0.7/32 dev eth0"), ["10.60.0.0/24"], []),
    (
        "the peer of a point-to-point link",
        words("addr add 10.60.0.7 peer 10.60.0.1/32 dev eth0"),
        ["10.60.0.1/32"],
        [("10.60.0.1/32", "eth0")],
    ),
    ("around the peer", words("addr add 10.60.0.7 peer 10.60.0.1/32 dev eth0"), ["10.60.0.0/24"], []),
    ("two addresses", words("addr add 10.60.0.6/31 dev eth0"), ["10.60.0.6/31"], [("10.60.0.6/31", "eth0")]),
    ("on the loopback", words("addr add 10.60.0.7/24 dev lo"), ["10.60.0.0/25"], [("10.60.0.0/24", "lo")]),
    ("a LAN with a link that is down", words("addr add 10.60.0.7/24 dev eth0", "link set eth0 down"), [LAN[0]], []),
    (
        "two LANs",
        words("addr add 10.60.0.7/24 dev eth0", "addr add 10.61.0.7/24 dev eth1"),
        ["10.60.0.0/24", "10.61.0.0/26", "10.62.0.0/16"],
        [LAN, ("10.61.0.0/24", "eth1")],
    ),
    (
        "with a longer route by a gateway within it",
        words("addr add 10.60.0.7/24 dev eth0", "route add 10.60.0.128/25 via 10.60.0.9"),
        ["10.60.0.0/24"],
        [LAN],
    ),
)
@BOTH
@in_fresh_namespace
async def test_attached_networks(
    family: Family, setup: list[list[str]], pushed: list[str], expected: list[tuple[str, str]]
) -> None:
    for name in ("eth0", "eth1"):
        cable(name)
    for line in setup:
        _set_up(family, line)
    wanted = [(family(net), device) for net, device in expected]
    async with tunnel(family) as network:
        assert await attached(family, network, *pushed) == wanted
        # The same while our own routes stand in front.
        await network.add("tun0", [family.route(it) for it in pushed if it not in _refused(family, pushed)])
        assert await attached(family, network, *pushed) == wanted


@table(
    "setup within expected",
    ("a part of the tunnel's network", words("addr add 10.60.0.7/24 dev eth0 metric 100"), ["10.60.0.0/16"], [LAN]),
    ("an address alone", words("addr add 10.60.0.7/32 dev eth0"), ["10.60.0.0/16"], []),
    ("a link that is down", words("addr add 10.60.0.7/24 dev eth0", "link set eth0 down"), ["10.60.0.0/16"], []),
)
@BOTH
@in_fresh_namespace
async def test_attached_networks_within(
    family: Family, setup: list[list[str]], within: list[str], expected: list[tuple[str, str]]
) -> None:
    cable("eth0")
    for line in setup:
        _set_up(family, line)
    async with tunnel(family) as network:
        found = await network.attached("tun0", (), [family.network(it) for it in within])
        assert [(str(it.network), it.device) for it in found] == [(family(net), device) for net, device in expected]


def _set_up(family: Family, words: list[str]) -> None:
    if words[0] == "link":
        ip(*words)
    elif words[0] == "addr":
        family.ip(*words, *NODAD[family.version])
        if "peer" in words:  # the kernel adds its IPv6 route a moment later (addrconf_dad_completed)
            peer = family(words[words.index("peer") + 1]).partition("/")[0]
            wait_until(
                lambda: peer in [it["dst"] for it in family.ip("route", "show")], CARRIER_S, f"a route to {peer}"
            )
    else:
        family.ip(*words)


def _refused(family: Family, pushed: Sequence[str]) -> set[str]:
    """Those that the kernel would refuse, since a route with our metric is there."""
    standing = {it["dst"] for it in family.ip("route", "show") if it.get("metric", 0) == family.main_metric}
    return {it for it in pushed if family(it).removesuffix("/32") in standing}


@BOTH
@in_fresh_namespace
async def test_a_carrier_that_comes_and_goes(family: Family) -> None:
    """As docker0's does with its containers."""
    ip("link", "add", "docker0", "type", "bridge")
    ip("link", "set", "docker0", "up")
    family.ip("addr", "add", "172.17.0.1/16", "dev", "docker0", *NODAD[family.version])
    async with tunnel(family) as network:

        async def until(expected: list[tuple[str, str]]) -> None:
            with trio.fail_after(CARRIER_S):
                while await attached(family, network, "172.17.3.0/24") != expected:  # noqa: ASYNC110 - linkwatch takes a second
                    await trio.sleep(0.05)

        for _ in range(2):
            cable("veth0")
            ip("link", "set", "veth0", "master", "docker0")
            await until([(family("172.17.0.0/16"), "docker0")])
            assert await attached(family, network, "172.16.0.0/12") == []
            ip("link", "del", "veth0")
            await until([])


@BOTH
@in_fresh_namespace
async def test_our_own_interface_and_other_tunnels_of_ours(family: Family) -> None:
    async with tunnel(family) as network:
        assert await attached(family, network, "10.10.0.0/25") == []
        with open_tun("tun1"):
            await network.link_up("tun1", 1500)
            await network.add("tun1", [family.address("10.10.0.3/24")])
            [found] = await network.attached("tun0", [family.network("10.10.0.0/25")])
            assert (str(found.network), found.device, found.is_tunnel) == (family("10.10.0.0/24"), "tun1", True)
            # Another program's tunnel, where the kernel says whose address it is.
            family.ip("addr", "add", "10.30.0.3/24", "dev", "tun1")
            [found] = await network.attached("tun0", [family.network("10.30.0.0/24")])
            assert not found.is_tunnel


@BOTH
@in_fresh_namespace
async def test_many_addresses(family: Family) -> None:
    cable("eth0", *(f"10.{n >> 8}.{n & 255}.7/24" for n in range(100)), family=family)
    async with tunnel(family) as network:
        found = await attached(family, network, *(f"10.0.{n}.0/24" for n in range(200)))
        assert sorted(found) == sorted((family(f"10.0.{n}.0/24"), "eth0") for n in range(100))


@in_fresh_namespace
async def test_networks_of_both_families_at_once() -> None:
    ipv6 = Family(6)
    cable("eth0", "10.60.0.7/24")
    ipv6.ip("addr", "add", "10.61.0.7/24", "dev", "eth0", "nodad")
    async with tunnel() as network:
        found = await network.attached(
            "tun0",
            [IPV4.network("10.60.0.0/25"), ipv6.network("10.60.0.0/25")],
            [IPV4.network("10.0.0.0/8"), ipv6.network("10.61.0.0/16")],
        )
        assert [str(it.network) for it in found] == ["10.60.0.0/24", ipv6("10.61.0.0/24")]


@table(
    "routes pushed expected",
    ("by the kernel", words("fd00:60::/64 proto kernel metric 256"), ["fd00:60::/64"], ["fd00:60::/64"]),
    ("by a program", words("fd00:60::/64 proto ra metric 100"), ["fd00:60::/65"], ["fd00:60::/64"]),
    ("shorter than most", words("fd00:60::/56 proto ra"), ["fd00:60:0:1::/64"], ["fd00:60::/56"]),
    ("wider than it", words("fd00:60::/64 proto ra"), ["fd00:60::/48"], []),
    ("elsewhere", words("fd00:60::/64 proto ra"), ["fd00:61::/64"], []),
    ("one without the address", words("fd00:61::/64 proto ra"), ["fd00:61::/64"], []),
    ("by a gateway", words("fd00:60::/64 via fe80::1 proto ra"), ["fd00:60::/64"], []),
    ("as a VPN does it", words("fd00:60::/64 proto static"), ["fd00:60::/64"], []),
    ("half of everything", words("::/1 proto kernel", "8000::/1 proto kernel"), ["8000::/1", "fd00:60::/64"], []),
    ("none", [], ["fd00:60::/64"], []),
)
@in_fresh_namespace
async def test_an_ipv6_address_whose_network_a_router_advertises(
    routes: list[list[str]], pushed: list[str], expected: list[str]
) -> None:
    """As where DHCPv6 gives addresses: a /128. The network of the link comes from an advertisement."""
    ipv6 = Family(6)
    cable("eth0", "fd00:60::7/128", family=ipv6)
    for destination, *how in routes:
        ip("-6", "route", "add", destination, "dev", "eth0", *how)
    wanted = [(network, "eth0") for network in expected]
    async with tunnel(ipv6) as network:
        assert await attached(ipv6, network, *pushed) == wanted
        await network.add("tun0", [ipv6.route(it) for it in pushed])
        assert await attached(ipv6, network, *pushed) == wanted


@pytest.mark.parametrize("numbers", [(6, 7), (7, 6), (4, 5, 6, 7)])
@in_fresh_namespace
async def test_neighbouring_addresses_of_which_none_says_the_network(numbers: tuple[int, ...]) -> None:
    """The kernel's local table answers for each of them."""
    ipv6 = Family(6)
    cable("eth0", *(f"fd00:60::{number}/128" for number in numbers), family=ipv6)
    ip("-6", "route", "add", "fd00:60::/64", "dev", "eth0", "proto", "ra")
    async with tunnel(ipv6) as network:
        assert await attached(ipv6, network, "fd00:60::/64") == [("fd00:60::/64", "eth0")]


@in_fresh_namespace
async def test_an_advertised_network_within_the_tunnel_s() -> None:
    ipv6 = Family(6)
    cable("eth0", "fd00:60::7/128", "fd00:60::8/128", family=ipv6)
    ip("-6", "route", "add", "fd00:60::/64", "dev", "eth0", "proto", "ra")
    async with tunnel(ipv6) as network:
        found = await network.attached("tun0", (), [ipv6.network("fd00::/16")])
        assert [(str(it.network), it.device) for it in found] == [("fd00:60::/64", "eth0")]
        ip("link", "set", "eth0", "down")
        assert await network.attached("tun0", (), [ipv6.network("fd00::/16")]) == []


@in_fresh_namespace
async def test_an_ipv6_address_whose_own_table_says_another_device() -> None:
    """An IPv6 lookup with a source address prefers the device that it is asked about, and may answer with another."""
    ipv6 = Family(6)
    for name in ("eth0", "eth1"):
        cable(name)
    ipv6.ip("addr", "add", "10.60.0.7/24", "dev", "eth0", "nodad", "noprefixroute")
    ipv6.ip("route", "add", "10.60.0.0/24", "dev", "eth1")
    async with tunnel(ipv6) as network:
        assert await attached(ipv6, network, "10.60.0.0/24") == []


@in_fresh_namespace
async def test_the_machine_s_addresses() -> None:
    cable("eth0", "192.0.2.7/24", "198.51.100.7 peer 198.51.100.1/32")
    ip("addr", "add", "2001:db8::7/64", "dev", "eth0", "nodad")
    async with tunnel() as network:
        assert any(it["local"].startswith("fe80:") for it in ip("addr", "show", "dev", "eth0")[0]["addr_info"])
        expected = ["127.0.0.1/8", "192.0.2.7/24", "198.51.100.7/32", "10.10.0.2/24", "::1/128", "2001:db8::7/64"]
        assert await network.machine_addresses() == {ip_interface(it) for it in expected}


@in_fresh_namespace
async def test_current_routes() -> None:
    cable("eth0", "192.0.2.7/24")
    ip("addr", "add", "2001:db8::7/64", "dev", "eth0", "nodad")
    index = ip("link", "show", "eth0")[0]["ifindex"]
    far, far6, link_local = "203.0.113.10", "2001:db8:1::10", "fe80::1"
    async with tunnel() as network:

        async def look(*addresses: str, mark: int | None = None) -> dict[str, CurrentRoute | None]:
            return await network.current_routes("tun0", addresses, mark)

        assert await look(far, far6, link_local, "fe80::1%eth0") == {far: None, far6: None}
        ip("route", "add", "default", "via", "192.0.2.1")
        ip("-6", "route", "add", "default", "via", "2001:db8::1")
        direct = CurrentRoute(index, None, "192.0.2.7")
        routed, routed6 = CurrentRoute(index, "192.0.2.1", "192.0.2.7"), CurrentRoute(index, "2001:db8::1")
        expected = {far: routed, far6: routed6, "192.0.2.9": direct}
        assert await look(*expected) == expected
        # What changes nothing: a worse default route, another address on the link.
        ip("route", "add", "default", "via", "192.0.2.3", "metric", "10")
        ip("addr", "add", "192.0.2.99/24", "dev", "eth0")
        ip("addr", "add", "2001:db8::99/64", "dev", "eth0", "nodad")
        assert await look(*expected) == expected
        ip("route", "add", "blackhole", "203.0.113.0/24")
        assert await look(far) == {far: None}
        ip("route", "del", "blackhole", "203.0.113.0/24")
        # A host route around the tunnel is the same path, and one into the tunnel is none.
        await network.add("tun0", [IPV4.route("203.0.113.0/24")])
        assert await look(far) == {}
        ip("route", "add", far, "via", "192.0.2.1")
        assert await look(far) == {far: routed}
        # As the transport's mark is routed.
        ip("route", "add", "default", "via", "192.0.2.4", "table", "200")
        ip("rule", "add", "fwmark", "200", "lookup", "200")
        assert await look(far, mark=200) == {far: CurrentRoute(index, "192.0.2.4", "192.0.2.7")}
        assert await network.current_routes("not0", [far], None) == {far: routed}
        assert await look(*(f"203.0.114.{n}" for n in range(100))) == {f"203.0.114.{n}": routed for n in range(100)}
