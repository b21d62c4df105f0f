"""How the kernel reaches an address without us, and the host routes that follow from it, against the real kernel."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from typing import Final

import pytest
import trio

from tapotun_trio.host.items import MAIN_TABLE, Address, HostRoute, ItemsRefused, NextHop, Route
from tapotun_trio.host.netlink.network import Netlink, open_netlink
from tapotun_trio.host.netlink.route_lookup import METRIC
from tapotun_trio.host.tun import open_tun

from .fresh_namespace import Json, in_fresh_namespace, ip

pytestmark = pytest.mark.netns

SERVER: Final = IPv4Address("203.0.113.10")
COVER: Final = Route(IPv4Network("203.0.113.0/24"))


def cable(name: str, address: str) -> None:
    ip("link", "add", name, "type", "veth", "peer", "name", f"far-{name}")
    ip("addr", "add", address, "dev", name)
    for end in (name, f"far-{name}"):
        ip("link", "set", end, "up")


def exception(way: NextHop | None) -> HostRoute:
    assert way is not None
    return HostRoute(SERVER, way.index, way.gateway, way.source, way.metrics, device=way.device)


def host_routes() -> list[Json]:
    found: list[Json] = ip("-4", "route", "show", "table", "all", "proto", "116")
    return [it for it in found if it.get("metric", 0) >= METRIC]


async def look(network: Netlink, *hidden: HostRoute, mark: int | None = None) -> NextHop | None:
    return await network.next_hop("tun0", SERVER, mark, hidden)


@in_fresh_namespace
async def test_the_way_is_the_same_whatever_of_ours_stands_in_front() -> None:
    cable("eth0", "192.0.2.7/24")
    ip("route", "add", "default", "via", "192.0.2.1", "src", "192.0.2.7", "mtu", "1400", "metric", "100")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            bare = await look(network)
            assert bare is not None
            assert (bare.network, bare.table, bare.metric) == (IPv4Network("0.0.0.0/0"), MAIN_TABLE, 100)
            assert (bare.device, bare.gateway, bare.source) == (
                "eth0",
                IPv4Address("192.0.2.1"),
                IPv4Address("192.0.2.7"),
            )
            assert bare.usable
            assert bare.captured_by is None
            item = exception(bare)
            await network.add("tun0", [Address(IPv4Interface("10.0.0.2/24")), COVER])
            assert await network.leads_into("tun0", SERVER, None)
            await network.add("tun0", [item])
            assert not await network.leads_into("tun0", SERVER, None)
            behind = await look(network, item)
            assert behind is not None
            assert exception(behind) == item
            assert behind.captured_by == (COVER.network, MAIN_TABLE)
            [standing] = host_routes()
            assert (standing["dst"], standing["gateway"], standing["dev"]) == (str(SERVER), "192.0.2.1", "eth0")
            assert (standing["prefsrc"], standing["metrics"]) == ("192.0.2.7", [{"mtu": 1400}])
            # Another gateway: the same question has another answer, and a host route takes the old one's place.
            ip("route", "replace", "default", "via", "192.0.2.2", "metric", "100")
            moved = exception(await look(network, item))
            assert moved.gateway == IPv4Address("192.0.2.2")
            await network.add("tun0", [moved])
            [standing] = host_routes()
            assert standing["gateway"] == "192.0.2.2"
            ip("route", "del", "default")
            assert await look(network, moved) is None
            await network.remove("tun0", [moved])
            assert host_routes() == []


@in_fresh_namespace
async def test_of_several_devices_the_one_that_the_kernel_would_take() -> None:
    for number in range(3):
        cable(f"eth{number}", f"192.0.{number}.7/24")
    ip("route", "add", "default", "via", "192.0.0.1", "metric", "50")
    ip("route", "add", "default", "via", "192.0.1.1", "metric", "40")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", [Route(IPv4Network("203.0.113.10/32"))])
            assert exception(await look(network)).device == "eth1"
            ip("route", "add", "203.0.0.0/8", "via", "192.0.2.1", "metric", "60")
            assert exception(await look(network)).device == "eth2"
            ip("route", "add", "unreachable", "203.0.113.0/24")
            assert await look(network) is None


@pytest.mark.parametrize("kind", ["neighbour", "multipath", "ipv6 gateway", "gateway outside"])
@in_fresh_namespace
async def test_next_hops_of_every_kind(kind: str) -> None:
    cable("eth0", "192.0.2.7/24")
    cable("eth1", "198.51.100.7/24")
    match kind:
        case "neighbour":
            ip("route", "add", "203.0.112.0/23", "dev", "eth0", "scope", "link")
        case "multipath":
            ip("route", "add", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "198.51.100.1")
        case "ipv6 gateway":
            ip("-4", "route", "add", "default", "via", "inet6", "fe80::1", "dev", "eth0")
        case "gateway outside":
            ip("route", "add", "default", "via", "203.0.113.1", "dev", "eth0", "onlink")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            item = exception(await look(network))
            await network.add("tun0", [item, COVER])
            [found] = ip("route", "get", str(SERVER))
            assert found["dev"] == item.device in ("eth0", "eth1")
            if kind == "ipv6 gateway":
                assert item.gateway == IPv6Address("fe80::1")
            assert exception(await look(network, item)).device in ("eth0", "eth1")
            await network.remove("tun0", [COVER, item])
            assert host_routes() == []


@in_fresh_namespace
async def test_a_table_before_the_main_one() -> None:
    cable("eth0", "192.0.2.7/24")
    ip("route", "add", "default", "via", "192.0.2.1")
    ip("route", "add", "default", "via", "192.0.2.9", "table", "200")
    ip("rule", "add", "fwmark", "200", "lookup", "200", "priority", "1000")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", [COVER])
            marked, plain = await look(network, mark=200), await look(network)
            assert marked is not None
            assert plain is not None
            assert (marked.table, marked.above_main, marked.gateway) == (200, True, IPv4Address("192.0.2.9"))
            assert (plain.table, plain.above_main, plain.gateway) == (MAIN_TABLE, False, IPv4Address("192.0.2.1"))
            ip("rule", "del", "fwmark", "200", "lookup", "200")
            ip("rule", "add", "fwmark", "200", "lookup", "200", "priority", "40000")
            late = await look(network, mark=200)
            assert late is not None
            assert late.table == MAIN_TABLE
            own = await network.next_hop("tun0", IPv4Address("192.0.2.7"), None)
            assert own is not None
            assert own.above_main


@in_fresh_namespace
async def test_only_what_has_no_interface_is_left_over() -> None:
    cable("eth0", "192.0.2.7/24")
    ip("route", "add", "default", "via", "192.0.2.1")
    async with open_netlink() as network:
        with open_tun("tun1"):
            await network.link_up("tun1", 1500)
            with open_tun("tun0"):
                await network.link_up("tun0", 1500)
                item = exception(await look(network))
                await network.add("tun0", [item])
                await network.add("tun1", [item])
                assert len(host_routes()) == 2
                # One interface looks behind the host routes of both, and leaves the other's as it was.
                assert exception(await look(network, item)) == item
                assert len(host_routes()) == 2
                assert await network.remove_left_over() == []
            assert await network.left_over() == [str(SERVER)]
            assert await network.remove_left_over() == [str(SERVER)]
            [other] = host_routes()
            ip("route", "add", f"{SERVER}", "via", "192.0.2.3", "proto", "116")  # of ours by its number, and no metric
            await network.remove("tun1", [item])
            assert await network.remove_left_over() == []
            assert other not in host_routes()
            assert ip("route", "get", str(SERVER))[0]["gateway"] == "192.0.2.3"


@in_fresh_namespace
async def test_a_host_route_that_the_kernel_refuses_names_itself() -> None:
    cable("eth0", "192.0.2.7/24")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            item = HostRoute(SERVER, 999, IPv4Address("192.0.2.1"), device="eth9")
            with pytest.raises(ItemsRefused, match=r"host route 203.0.113.10 via 192.0.2.1 dev eth9 past tun0"):
                await network.add("tun0", [item])
            with trio.fail_after(5):
                await network.remove("tun0", [item])


@in_fresh_namespace
async def test_two_that_look_at_once_leave_each_other_s_host_routes() -> None:
    cable("eth0", "192.0.2.7/24")
    ip("route", "add", "default", "via", "192.0.2.1", "metric", "100")
    with open_tun("tun0"), open_tun("tun1"):
        async with open_netlink() as one, open_netlink() as other, trio.open_nursery() as nursery:
            for name, network in (("tun0", one), ("tun1", other)):
                await network.link_up(name, 1500)
            item = exception(await look(one))
            await one.add("tun0", [item, COVER])
            await other.add("tun1", [item])

            async def keep_looking(name: str, network: Netlink) -> None:
                for _ in range(50):
                    way = await network.next_hop(name, SERVER, None, [item])
                    assert exception(way) == item
                    assert way is not None
                    assert way.network.prefixlen == 0

            nursery.start_soon(keep_looking, "tun0", one)
            nursery.start_soon(keep_looking, "tun1", other)
        assert len(host_routes()) == 2
