"""How the kernel reaches an address without us, and the host routes that follow from it, against the real kernel."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

import pytest
import trio

from tapotun_trio.host.items import MAIN_TABLE, HostRoute, ItemsRefused, NextHop
from tapotun_trio.host.netlink.network import Netlink, open_netlink
from tapotun_trio.host.netlink.route_lookup import METRIC
from tapotun_trio.host.tun import open_tun

from .families import BOTH, Family
from .fresh_namespace import Json, in_fresh_namespace, ip

pytestmark = pytest.mark.netns

SERVER: Final = "203.0.113.10"
COVER: Final = "203.0.113.0/24"


def cable(family: Family, name: str, address: str) -> None:
    ip("link", "add", name, "type", "veth", "peer", "name", f"far-{name}")
    family.ip("addr", "add", address, "dev", name, *(["nodad"] if family.version == 6 else []))
    for end in (name, f"far-{name}"):
        ip("link", "set", end, "up")


def exception(family: Family, way: NextHop | None) -> HostRoute:
    assert way is not None
    return HostRoute(family.host(SERVER), way.index, way.gateway, way.source, way.metrics, device=way.device)


def host_routes(family: Family) -> list[Json]:
    found: list[Json] = family.ip("route", "show", "table", "all", "proto", "116")
    return [it for it in found if it.get("metric", 0) >= METRIC]


async def look(family: Family, network: Netlink, *hidden: HostRoute, mark: int | None = None) -> NextHop | None:
    return await network.next_hop("tun0", family.host(SERVER), mark, hidden)


@BOTH
@in_fresh_namespace
async def test_the_way_is_the_same_whatever_of_ours_stands_in_front(family: Family) -> None:
    cable(family, "eth0", "192.0.2.7/24")
    family.ip("route", "add", "default", "via", "192.0.2.1", "src", "192.0.2.7", "mtu", "1400", "metric", "100")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            bare = await look(family, network)
            assert bare is not None
            assert (bare.network, bare.table, bare.metric) == (family.network("0.0.0.0/0"), MAIN_TABLE, 100)
            assert (bare.device, bare.gateway, bare.source) == (
                "eth0",
                family.host("192.0.2.1"),
                family.host("192.0.2.7"),
            )
            assert bare.usable
            assert bare.captured_by is None
            item = exception(family, bare)
            await network.add("tun0", [family.address("10.0.0.2/24"), family.route(COVER)])
            assert await network.leads_into("tun0", family.host(SERVER), None)
            await network.add("tun0", [item])
            assert not await network.leads_into("tun0", family.host(SERVER), None)
            behind = await look(family, network, item)
            assert behind is not None
            assert exception(family, behind) == item
            assert behind.captured_by == (family.network(COVER), MAIN_TABLE)
            [standing] = host_routes(family)
            assert (standing["dst"], standing["gateway"], standing["dev"]) == (
                family(SERVER),
                family("192.0.2.1"),
                "eth0",
            )
            assert (standing["prefsrc"], standing["metrics"]) == (family("192.0.2.7"), [{"mtu": 1400}])
            # Another gateway: the same question has another answer, and a host route takes the old one's place.
            family.ip("route", "replace", "default", "via", "192.0.2.2", "metric", "100")
            moved = exception(family, await look(family, network, item))
            assert moved.gateway == family.host("192.0.2.2")
            await network.add("tun0", [moved])
            [standing] = host_routes(family)
            assert standing["gateway"] == family("192.0.2.2")
            family.ip("route", "del", "default")
            assert await look(family, network, moved) is None
            await network.remove("tun0", [moved])
            assert host_routes(family) == []


@BOTH
@in_fresh_namespace
async def test_of_several_devices_the_one_that_the_kernel_would_take(family: Family) -> None:
    for number in range(3):
        cable(family, f"eth{number}", f"192.0.{number}.7/24")
    family.ip("route", "add", "default", "via", "192.0.0.1", "metric", "50")
    family.ip("route", "add", "default", "via", "192.0.1.1", "metric", "40")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", [family.route("203.0.113.10/32")])
            assert exception(family, await look(family, network)).device == "eth1"
            family.ip("route", "add", "203.0.0.0/8", "via", "192.0.2.1", "metric", "60")
            assert exception(family, await look(family, network)).device == "eth2"
            family.ip("route", "add", "unreachable", "203.0.113.0/24", "metric", "7")
            behind = await look(family, network)
            if family.version == 4:
                assert behind is None
            else:  # it has no device, so it is passed over behind our route, but only there
                assert exception(family, behind).device == "eth2"
                await network.remove("tun0", [family.route("203.0.113.10/32")])
                assert await look(family, network) is None


@pytest.mark.parametrize(
    "kind",
    [
        "neighbour",
        "multipath",
        "link-local gateway",
        "gateway outside",
        "captured gateway",
        "nexthop object",
        "nexthop group",
    ],
)
@BOTH
@in_fresh_namespace
async def test_next_hops_of_every_kind(family: Family, kind: str) -> None:
    cable(family, "eth0", "192.0.2.7/24")
    cable(family, "eth1", "198.51.100.7/24")
    match kind:
        case "neighbour":
            family.ip("route", "add", "203.0.112.0/23", "dev", "eth0", "scope", "link")
        case "multipath":
            family.ip("route", "add", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "198.51.100.1")
        case "link-local gateway":
            words = ["via", "inet6", "fe80::1"] if family.version == 4 else ["via", "fe80::1"]
            family.ip("route", "add", "default", *words, "dev", "eth0")
        case "gateway outside":
            family.ip("route", "add", "default", "via", "203.0.114.1", "dev", "eth0", "onlink")
        case "captured gateway":  # by our own route
            family.ip("route", "add", "default", "via", "203.0.113.1", "dev", "eth0", "onlink")
        case "nexthop object" | "nexthop group":
            family.ip("nexthop", "add", "id", "7", "via", "192.0.2.1", "dev", "eth0")
            family.ip("nexthop", "add", "id", "8", "via", "198.51.100.1", "dev", "eth1")
            ip("nexthop", "add", "id", "9", "group", "7/8")
            family.ip("route", "add", "default", "nhid", "7" if kind == "nexthop object" else "9")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            item = exception(family, await look(family, network))
            await network.add("tun0", [item, family.route(COVER)])
            [found] = family.ip("route", "get", family(SERVER))
            assert found["dev"] == item.device in ("eth0", "eth1")
            if kind == "link-local gateway":
                assert item.gateway == IPv6Address("fe80::1")
            assert exception(family, await look(family, network, item)).device in ("eth0", "eth1")
            assert len(host_routes(family)) == 1
            await network.add("tun0", [item])
            assert len(host_routes(family)) == 1
            await network.remove("tun0", [family.route(COVER), item])
            assert host_routes(family) == []


@BOTH
@in_fresh_namespace
async def test_a_table_before_the_main_one(family: Family) -> None:
    cable(family, "eth0", "192.0.2.7/24")
    family.ip("route", "add", "default", "via", "192.0.2.1")
    family.ip("route", "add", "default", "via", "192.0.2.9", "table", "200")
    family.ip("rule", "add", "fwmark", "200", "lookup", "200", "priority", "1000")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", [family.route(COVER)])
            marked, plain = await look(family, network, mark=200), await look(family, network)
            assert marked is not None
            assert plain is not None
            assert (marked.table, marked.above_main, marked.gateway) == (200, True, family.host("192.0.2.9"))
            assert (plain.table, plain.above_main, plain.gateway) == (
                MAIN_TABLE,
                False,
                family.host("192.0.2.1"),
            )
            family.ip("rule", "del", "fwmark", "200", "lookup", "200")
            family.ip("rule", "add", "fwmark", "200", "lookup", "200", "priority", "40000")
            late = await look(family, network, mark=200)
            assert late is not None
            assert late.table == MAIN_TABLE
            own = await network.next_hop("tun0", family.host("192.0.2.7"), None)
            assert own is not None
            assert own.above_main


@BOTH
@in_fresh_namespace
async def test_only_what_has_no_interface_is_left_over(family: Family) -> None:
    cable(family, "eth0", "192.0.2.7/24")
    family.ip("route", "add", "default", "via", "192.0.2.1")
    async with open_netlink() as network:
        with open_tun("tun1"):
            await network.link_up("tun1", 1500)
            with open_tun("tun0"):
                await network.link_up("tun0", 1500)
                item = exception(family, await look(family, network))
                await network.add("tun0", [item])
                await network.add("tun1", [item])
                assert len(host_routes(family)) == 2
                # One interface looks behind the host routes of both, and leaves the other's as it was.
                assert exception(family, await look(family, network, item)) == item
                assert len(host_routes(family)) == 2
                assert await network.remove_left_over() == []
            assert await network.left_over() == [family(SERVER)]
            assert await network.remove_left_over() == [family(SERVER)]
            [other] = host_routes(family)
            # Of ours by its number, and without our metric.
            family.ip("route", "add", SERVER, "via", "192.0.2.3", "proto", "116")
            await network.remove("tun1", [item])
            assert await network.remove_left_over() == []
            assert other not in host_routes(family)
            assert family.ip("route", "get", family(SERVER))[0]["gateway"] == family("192.0.2.3")


@BOTH
@in_fresh_namespace
async def test_a_host_route_that_the_kernel_refuses_names_itself(family: Family) -> None:
    cable(family, "eth0", "192.0.2.7/24")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            item = HostRoute(family.host(SERVER), 999, family.host("192.0.2.1"), device="eth9")
            with pytest.raises(ItemsRefused, match=family("host route 203.0.113.10 via 192.0.2.1 dev eth9 past tun0")):
                await network.add("tun0", [item])
            with trio.fail_after(5):
                await network.remove("tun0", [item])


@BOTH
@in_fresh_namespace
async def test_two_that_look_at_once_leave_each_other_s_host_routes(family: Family) -> None:
    cable(family, "eth0", "192.0.2.7/24")
    family.ip("route", "add", "default", "via", "192.0.2.1", "metric", "100")
    with open_tun("tun0"), open_tun("tun1"):
        async with open_netlink() as one, open_netlink() as other, trio.open_nursery() as nursery:
            for name, network in (("tun0", one), ("tun1", other)):
                await network.link_up(name, 1500)
            item = exception(family, await look(family, one))
            await one.add("tun0", [item, family.route(COVER)])
            await other.add("tun1", [item])

            async def keep_looking(name: str, network: Netlink) -> None:
                for _ in range(50):
                    way = await network.next_hop(name, family.host(SERVER), None, [item])
                    assert exception(family, way) == item
                    assert way is not None
                    assert way.network.prefixlen == 0

            nursery.start_soon(keep_looking, "tun0", one)
            nursery.start_soon(keep_looking, "tun1", other)
        assert len(host_routes(family)) == 2
