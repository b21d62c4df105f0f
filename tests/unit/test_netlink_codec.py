"""Encoding of items and decoding of what stands, against pyroute2 and hand-made messages. No kernel."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from tapotun_trio.host.items import FULL_MASK, MAIN_TABLE, Address, Route, Rule
from tapotun_trio.host.netlink import codec
from tapotun_trio.host.netlink.codec import PROTOCOL, KernelRoute

HEADER = struct.Struct("=IHHII")
ROUTE = struct.Struct("BBBBBBBBI")

U32 = st.integers(0, 0xFFFF_FFFF)
NETWORKS = st.builds(lambda address, prefix: IPv4Network((address, prefix), strict=False), U32, st.integers(0, 32))
ROUTES = st.builds(Route, NETWORKS, st.integers(1, 0xFFFF_FFFF))


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
        assert (message["family"], message["dst_len"]) == (socket.AF_INET, route.network.prefixlen)
        assert (message["proto"], message["scope"], message["type"]) == (PROTOCOL, 253, 1)
        assert message["table"] == (route.table if route.table < 256 else 0)
        assert message.get_attr("RTA_DST") == str(route.network.network_address)
        assert message.get_attr("RTA_TABLE") == route.table
        assert message.get_attr("RTA_OIF") == index
        assert (message.get_attr("RTA_PRIORITY") or 0) == metric
        assert message.get_attr("RTA_PREFSRC") is None  # the kernel chooses
    for route, data in zip(routes, codec.remove_routes(index, routes), strict=True):
        message = decoded(rtmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (25, 1)
        assert (message["proto"], message["scope"]) == (PROTOCOL, 255)  # ours, of whatever scope
        assert message.get_attr("RTA_DST") == str(route.network.network_address)
        assert message.get_attr("RTA_OIF") == index
        assert message.get_attr("RTA_PRIORITY") is None
        assert message.get_attr("RTA_PREFSRC") is None


@given(ROUTES, st.integers(1, 0x7FFF_FFFF), U32)
def test_a_route_reads_back_as_it_was_written(route: Route, index: int, metric: int) -> None:
    (data,) = codec.add_routes(index, [route], metric)
    found = codec.read_route(memoryview(data))
    assert found == KernelRoute(route.network, route.table, PROTOCOL, metric, index, None, 0, plain=True)
    assert found.satisfies(route, index)
    assert not found.satisfies(route, index + 1)


def route_message(*attributes: bytes, prefix: int = 0, table: int = 254, scope: int = 0) -> memoryview:
    body = ROUTE.pack(socket.AF_INET, prefix, 0, 0, table, 16, scope, 1, 0) + b"".join(attributes)
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
    assert codec.read_route(data) == KernelRoute(network, MAIN_TABLE, 16, 100, 7, None, 0, plain=False, gateway=gateway)


def test_a_multipath_route_without_a_table_attribute() -> None:
    found = codec.read_route(route_message(attribute(9, bytes(8)), table=200, scope=253))
    assert (found.table, found.index, found.plain) == (200, 0, False)


@pytest.mark.parametrize("table", [1, 100, 255, 256, 0xFFFF_FFFF])
@pytest.mark.parametrize(("fwmark", "mask"), [(0, FULL_MASK), (1, FULL_MASK), (FULL_MASK, FULL_MASK), (0x64, 0xFF)])
def test_rules_name_all_that_makes_them_ours(fwmark: int, mask: int, table: int) -> None:
    rule = Rule(fwmark, table, mask)
    for data, kind, flags in (
        (codec.add_rule(rule, 11_600), 32, 0x601),
        (codec.remove_rule(rule, 11_600), 33, 1),
    ):
        message = decoded(fibmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (kind, flags)
        assert (message["family"], message["action"]) == (socket.AF_INET, 1)
        assert message["table"] == (table if table < 256 else 0)
        assert message.get_attr("FRA_TABLE") == table
        assert message.get_attr("FRA_PRIORITY") == 11_600
        assert message.get_attr("FRA_FWMARK") == fwmark
        assert message.get_attr("FRA_FWMASK") == mask
        assert message.get_attr("FRA_PROTOCOL") == PROTOCOL
        assert codec.read_rule(memoryview(data)) == codec.KernelRule(11_600, table, PROTOCOL, fwmark, mask)


def test_addresses() -> None:
    item = Address(IPv4Interface("10.50.0.1/24"))
    for data, kind, flags in (
        (codec.add_address(7, item), 20, 0x501),
        (codec.remove_address(7, item), 21, 1),
    ):
        message = decoded(ifaddrmsg, data)
        assert (message["header"]["type"], message["header"]["flags"]) == (kind, flags)
        assert (message["family"], message["prefixlen"], message["index"]) == (socket.AF_INET, 24, 7)
        assert message.get_attr("IFA_LOCAL") == message.get_attr("IFA_ADDRESS") == "10.50.0.1"


def test_links() -> None:
    message = decoded(ifinfmsg, codec.set_link_up(7, 1400))
    assert (message["header"]["type"], message["header"]["flags"]) == (16, 1)
    assert (message["index"], message["flags"], message["change"]) == (7, 1, 1)
    assert message.get_attr("IFLA_MTU") == 1400
    assert decoded(ifinfmsg, codec.get_link(name="tun0")).get_attr("IFLA_IFNAME") == "tun0"
    assert decoded(ifinfmsg, codec.get_link(index=7))["index"] == 7


def test_link_options_are_nested_as_the_kernel_takes_them() -> None:
    silent = codec.set_ipv6_silent(7)
    assert bytes(silent[32:]) == attribute(26, attribute(socket.AF_INET6, attribute(8, b"\1")))
    loose = codec.set_rp_filter(7, 2)
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
    found = codec.read_attachable_link(link_message(hardware_type, attribute(3, b"eth0\0"), attribute(18, info)))
    assert found is not None
    assert (found.link.name, found.link.index, found.link.running) == ("eth0", 7, True)
    assert (found.bare, found.in_vrf) == (bare, in_vrf)
