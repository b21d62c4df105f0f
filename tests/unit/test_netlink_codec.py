"""Encoding of items and decoding of what stands, against pyroute2 and hand-made messages. No kernel."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from tapotun_trio.families import IPAddress, IPNetwork
from tapotun_trio.host.items import FULL_MASK, MAIN_TABLE, Address, ConnectedRoute, HostRoute, Route, Rule
from tapotun_trio.host.netlink import codec, link_codec
from tapotun_trio.host.netlink.codec import PROTOCOL, KernelRoute

HEADER = struct.Struct("=IHHII")
ROUTE = struct.Struct("BBBBBBBBI")

U32 = st.integers(0, 0xFFFF_FFFF)
IPV4_NETWORKS = st.builds(lambda ip, prefix: IPv4Network((ip, prefix), strict=False), U32, st.integers(0, 32))
IPV6_NETWORKS = st.builds(
    lambda ip, prefix: IPv6Network((ip, prefix), strict=False), st.integers(0, (1 << 128) - 1), st.integers(0, 128)
)
NETWORKS = st.one_of(IPV4_NETWORKS, IPV6_NETWORKS)
ROUTES = st.builds(Route, NETWORKS, st.integers(1, 0xFFFF_FFFF))


def family(network: IPNetwork | IPAddress) -> int:
    return socket.AF_INET if network.version == 4 else socket.AF_INET6


def decoded(kind: Any, message: bytes | bytearray) -> Any:
    length, *_ = HEADER.unpack_from(message)
    assert length == len(message)
    result = kind(bytes(message))
    result.decode()
    return result


@given(st.lists(ROUTES, max_size=5), st.integers(1, 0x7FFF_FFFF), U32)
def test_routes_say_what_was_asked_whatever_came_before(routes: list[Route], index: int, metric: int) -> None:
    for route, data in zip(routes, codec.add_routes(index, routes, metric), strict=True):
        message = decoded(rtmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (24, 0x601)  # create, exclusive
        assert (message["family"], message["dst_len"]) == (family(route.network), route.network.prefixlen)
        assert (message["proto"], message["scope"], message["type"]) == (PROTOCOL, 253, 1)
        assert message["table"] == (route.table if route.table < 256 else 0)
        assert ip_address(message.get_attr("RTA_DST")) == route.network.network_address
        assert message.get_attr("RTA_TABLE") == route.table
        assert message.get_attr("RTA_OIF") == index
        assert (message.get_attr("RTA_PRIORITY") or 0) == metric
        assert message.get_attr("RTA_PREFSRC") is None  # the kernel chooses
    for route, data in zip(routes, codec.remove_routes(index, routes), strict=True):
        message = decoded(rtmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (25, 1)
        assert (message["proto"], message["scope"]) == (PROTOCOL, 255)  # ours, of whatever scope
        assert ip_address(message.get_attr("RTA_DST")) == route.network.network_address
        assert message.get_attr("RTA_OIF") == index
        assert message.get_attr("RTA_PRIORITY") is None
        assert message.get_attr("RTA_PREFSRC") is None


@given(ROUTES, st.integers(1, 0x7FFF_FFFF), U32)
def test_a_route_reads_back_as_it_was_written(route: Route, index: int, metric: int) -> None:
    (data,) = codec.add_routes(index, [route], metric)
    found = codec.read_route(memoryview(data))
    assert found == KernelRoute(route.network, route.table, PROTOCOL, metric, index, None, selective=False, plain=True)
    assert found.satisfies(route, index)
    assert not found.satisfies(route, index + 1)
    assert codec.read_route_key(memoryview(data)) == (route.key, PROTOCOL, index, metric)


@given(NETWORKS, NETWORKS, st.integers(1, 0xFFFF_FFFF))
def test_routes_of_both_families_never_have_the_same_key(one: IPNetwork, other: IPNetwork, table: int) -> None:
    assert (Route(one, table).key == Route(other, table).key) == (one == other)


def route_message(
    *attributes: bytes,
    prefix: int = 0,
    table: int = 254,
    scope: int = 0,
    family: int = socket.AF_INET,
    source_prefix: int = 0,
    tos: int = 0,
) -> memoryview:
    body = ROUTE.pack(family, prefix, source_prefix, tos, table, 16, scope, 1, 0) + b"".join(attributes)
    return memoryview(HEADER.pack(16 + len(body), 24, 2, 1, 0) + body)


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def test_a_default_route_with_a_gateway_as_the_kernel_dumps_it() -> None:
    data = route_message(
        attribute(15, struct.pack("=I", 254)),
        attribute(6, struct.pack("=I", 100)),
        attribute(5, socket.inet_aton("192.0.2.1")),
        attribute(4, struct.pack("=I", 7)),
    )
    gateway = IPv4Address("192.0.2.1")
    network = IPv4Network("0.0.0.0/0")
    assert codec.read_route(data) == KernelRoute(
        network, MAIN_TABLE, 16, 100, 7, None, selective=False, plain=False, gateway=gateway
    )


def test_an_ipv6_route_with_a_gateway_as_the_kernel_dumps_it() -> None:
    data = route_message(
        attribute(15, struct.pack("=I", 254)),
        attribute(1, IPv6Address("2001:db8:1::").packed),
        attribute(6, struct.pack("=I", 1024)),
        attribute(5, IPv6Address("fe80::1").packed),
        attribute(4, struct.pack("=I", 7)),
        attribute(7, IPv6Address("2001:db8::7").packed),
        attribute(20, b"\0"),
        family=socket.AF_INET6,
        prefix=48,
    )
    assert codec.read_route(data) == KernelRoute(
        IPv6Network("2001:db8:1::/48"),
        MAIN_TABLE,
        16,
        1024,
        7,
        IPv6Address("2001:db8::7"),
        selective=False,
        plain=False,
        gateway=IPv6Address("fe80::1"),
    )


@pytest.mark.parametrize(
    ("family", "source_prefix", "tos", "selective", "plain"),
    [
        (socket.AF_INET, 0, 0, False, False),  # with the scope of a gateway
        (socket.AF_INET, 0, 8, True, False),
        (socket.AF_INET6, 0, 0, False, True),
        (socket.AF_INET6, 64, 0, True, False),
    ],
)
def test_routes_for_some_packets_only(family: int, source_prefix: int, tos: int, selective: bool, plain: bool) -> None:
    source = attribute(2, IPv6Address("2001:db8:1:2::").packed) if source_prefix else b""
    found = codec.read_route(route_message(source, family=family, source_prefix=source_prefix, tos=tos))
    assert (found.selective, found.plain) == (selective, plain)
    assert found.origin == (IPv6Network("2001:db8:1:2::/64") if source_prefix else None)


def test_a_multipath_route_without_a_table_attribute() -> None:
    found = codec.read_route(route_message(attribute(9, bytes(8)), table=200, scope=253))
    assert (found.table, found.index, found.plain) == (200, 0, False)


@pytest.mark.parametrize("table", [1, 100, 255, 256, 0xFFFF_FFFF])
@pytest.mark.parametrize(("fwmark", "mask"), [(0, FULL_MASK), (1, FULL_MASK), (FULL_MASK, FULL_MASK), (0x64, 0xFF)])
@pytest.mark.parametrize("version", [4, 6])
def test_rules_name_all_that_makes_them_ours(version: int, fwmark: int, mask: int, table: int) -> None:
    rule = Rule(fwmark, table, mask, version)
    for data, kind, flags in (
        (codec.add_rule(rule, 11_600), 32, 0x601),
        (codec.remove_rule(rule, 11_600), 33, 1),
    ):
        message = decoded(fibmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (kind, flags)
        assert (message["family"], message["action"]) == (codec.FAMILIES[version], 1)
        assert message["table"] == (table if table < 256 else 0)
        assert message.get_attr("FRA_TABLE") == table
        assert message.get_attr("FRA_PRIORITY") == 11_600
        assert message.get_attr("FRA_FWMARK") == fwmark
        assert message.get_attr("FRA_FWMASK") == mask
        assert message.get_attr("FRA_PROTOCOL") == PROTOCOL
        assert codec.read_rule(memoryview(data)) == codec.KernelRule(11_600, table, PROTOCOL, fwmark, mask, version)


def test_rules_of_two_families_do_not_overlap() -> None:
    assert Rule(1, 100).overlaps(Rule(1, 200))
    assert not Rule(1, 100).overlaps(Rule(1, 100, version=6))
    assert str(Rule(1, 100, version=6)) == "IPv6 rule fwmark 1 lookup 100"


@pytest.mark.parametrize("text", ["10.50.0.1/24", "10.50.0.1/32", "2001:db8::1/64", "2001:db8::1/128"])
def test_addresses(text: str) -> None:
    interface = ip_interface(text)
    item = Address(interface)
    for data, kind, flags in (
        (codec.add_address(7, item), 20, 0x501),
        (codec.remove_address(7, item), 21, 1),
    ):
        message = decoded(ifaddrmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (kind, flags)
        assert (message["family"], message["prefixlen"]) == (family(interface), interface.network.prefixlen)
        assert message["index"] == 7
        assert message["flags"] == (0x02 if interface.version == 6 else 0)  # IFA_F_NODAD, linux/if_addr.h
        assert message.get_attr("IFA_LOCAL") == message.get_attr("IFA_ADDRESS") == str(interface.ip)
        found = codec.read_assigned(memoryview(data))
        assert found is not None
        assert (found.index, found.ip, found.network) == (7, interface.ip, interface.network)
        assert found.protocol == (PROTOCOL if kind == 20 else None)
        assert codec.remove_assigned(found) == codec.remove_address(7, item)


@pytest.mark.parametrize(
    ("text", "metric", "source"), [("10.50.0.1/24", None, "10.50.0.1"), ("2001:db8::1/64", 256, None)]
)
def test_a_connected_route_is_made_as_the_kernel_makes_it(text: str, metric: int | None, source: str | None) -> None:
    interface = ip_interface(text)
    message = decoded(rtmsg, codec.add_connected_route(7, ConnectedRoute(interface)))
    assert (message["family"], message["dst_len"]) == (family(interface), interface.network.prefixlen)
    assert (message["proto"], message["header"]["flags"]) == (2, 0x601)  # RTPROT_KERNEL; create, exclusive
    assert message.get_attr("RTA_DST") == str(interface.network.network_address)
    assert (message.get_attr("RTA_PRIORITY"), message.get_attr("RTA_PREFSRC")) == (metric, source)


@pytest.mark.parametrize("gateway", [None, "192.0.2.1", "2001:db8::1", "fe80::1"])
@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:1::10"])
def test_host_routes(address: str, gateway: str | None) -> None:
    if gateway == "192.0.2.1" and ":" in address:
        return
    item = HostRoute(
        ip_address(address), 9, None if gateway is None else ip_address(gateway), metrics=attribute(2, b"1234")
    )
    message = decoded(rtmsg, data := codec.add_host_route(item, 5))
    bits = item.address.max_prefixlen
    assert (message["family"], message["dst_len"], message["header"]["flags"]) == (family(item.address), bits, 0x501)
    assert (message.get_attr("RTA_OIF"), message.get_attr("RTA_PRIORITY")) == (9, 5)
    assert message["flags"] == (0 if gateway is None else 4)  # RTNH_F_ONLINK
    found = codec.read_route(memoryview(data))
    assert (found.gateway, found.metrics, str(found.network)) == (item.gateway, item.metrics, f"{address}/{bits}")
    removal = decoded(rtmsg, codec.remove_host_route(item, 5))
    assert (removal["family"], removal["dst_len"], removal["header"]["type"]) == (family(item.address), bits, 25)


@pytest.mark.parametrize("source", [None, "own"])
@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:1::10"])
def test_route_lookups_have_no_flag_that_a_family_refuses(address: str, match: bool, source: str | None) -> None:
    """inet6_rtm_valid_getroute_req (net/ipv6/route.c) refuses every flag but RTM_F_FIB_MATCH."""
    ip = ip_address(address)
    question = codec.lookup_route(ip, 7, index=3, match=match, source=None if source is None else ip)
    message = decoded(rtmsg, question)
    bits = ip.max_prefixlen
    assert (message["family"], message["dst_len"], message["src_len"]) == (family(ip), bits, bits if source else 0)
    assert message["flags"] == (0x1000 if ip.version == 4 else 0) | (0x2000 if match else 0)
    assert (message.get_attr("RTA_OIF"), message.get_attr("RTA_MARK")) == (3, 7)


def test_links() -> None:
    message = decoded(ifinfmsg, link_codec.set_link_up(7, 1400))
    assert (message["header"]["type"], message["header"]["flags"]) == (16, 1)
    assert (message["index"], message["flags"], message["change"]) == (7, 1, 1)
    assert message.get_attr("IFLA_MTU") == 1400
    assert decoded(ifinfmsg, link_codec.get_link(name="tun0")).get_attr("IFLA_IFNAME") == "tun0"
    assert decoded(ifinfmsg, link_codec.get_link(index=7))["index"] == 7


def test_link_options_are_nested_as_the_kernel_takes_them() -> None:
    silent = link_codec.set_ipv6_silent(7)
    assert bytes(silent[32:]) == attribute(26, attribute(socket.AF_INET6, attribute(8, b"\1")))
    loose = link_codec.set_rp_filter(7, 2)
    assert bytes(loose[32:]) == attribute(
        26, attribute(socket.AF_INET, attribute(1, attribute(8, struct.pack("=I", 2))))
    )
    for data in (silent, loose):
        assert HEADER.unpack_from(data)[0] == len(data)


LINK = struct.Struct("=BxHiII")


def link_message(hardware_type: int, *attributes: bytes) -> memoryview:
    body = LINK.pack(socket.AF_UNSPEC, hardware_type, 7, 0x41, 0) + b"".join(attributes)  # up and running
    return memoryview(HEADER.pack(16 + len(body), 16, 2, 1, 0) + body)


@pytest.mark.parametrize(
    ("hardware_type", "info", "bare", "in_vrf"),
    [
        (1, b"", False, False),
        (1, attribute(1, b"bridge\0"), False, False),
        (0xFFFE, attribute(1, b"tun\0"), True, False),
        (1, attribute(1, b"vrf\0"), False, True),
        (1, attribute(1, b"veth\0") + attribute(4, b"vrf\0"), False, True),
        (1, attribute(1, b"veth\0") + attribute(4, b"bridge\0"), False, False),
    ],
)
def test_links_that_attach_and_those_of_a_vrf(hardware_type: int, info: bytes, bare: bool, in_vrf: bool) -> None:
    """linux/if_link.h: IFLA_LINKINFO (18) with IFLA_INFO_KIND (1) and IFLA_INFO_SLAVE_KIND (4)."""
    found = link_codec.read_attachable_link(link_message(hardware_type, attribute(3, b"eth0\0"), attribute(18, info)))
    assert found is not None
    assert (found.link.name, found.link.index, found.link.running) == ("eth0", 7, True)
    assert (found.bare, found.in_vrf) == (bare, in_vrf)
