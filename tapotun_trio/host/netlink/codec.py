"""Encodes rtnetlink requests and decodes the kernel's messages about addresses, routes and rules. No I/O.

Follows linux/rtnetlink.h, linux/if_addr.h and linux/fib_rules.h. This is the only module that knows these layouts;
`link_codec` knows those of links.

Requests are built with pyroute2's message classes, at about 100 us each. Answers and notifications are decoded by hand:
a table may have a million routes, a host hundreds of links, and notifications arrive unasked.
Measured on 2026-11-29 with pyroute2 0.9.7, by hand and with its classes: a link 6 us and 271 us, an address 10 us and
46 us, a route 16 us and 71 us.

Where the families differ:

- IPv6 routes have no scope and no TOS. They may be for packets from one network only (rtm_src_len).
- The kernel adds the connected route of an IPv6 address with metric 256, for a /128 too.
- An IPv6 address exists once on an interface. To add it with another prefix length changes nothing.
- A kernel without IPv6 answers an IPv6 dump with IPv4's content, or with a refusal. So readers look at the family.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, AF_UNSPEC, IPPROTO_TCP, inet_ntop
from typing import Final, NamedTuple

from pyroute2.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    rt_scope,
    rt_type,
)
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_TO_TBL, fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import (
    IFA_F_DADFAILED,
    IFA_F_NODAD,
    IFA_F_OPTIMISTIC,
    IFA_F_TENTATIVE,
    ifaddrmsg,
)
from pyroute2.netlink.rtnl.rtmsg import RTNH_F_ONLINK, rtmsg

from ...families import IPAddress, IPNetwork, host_network, with_prefix
from ..items import (
    CONNECTED_METRICS,
    MAIN_TABLE,
    Address,
    ConnectedRoute,
    CurrentRoute,
    HostRoute,
    Route,
    RouteKey,
    Rule,
)
from .messages import append, attribute_numbers, encode, read_number
from .socket import HEADER, attributes

PROTOCOL: Final = 116
"""Our number in rtm_protocol, FRA_PROTOCOL and IFA_PROTO: it marks what we made and may remove. It is the code of 't';
rt_protos of iproute2 has no such number. ``ip route show table all proto 116`` lists our routes."""

KERNEL_PROTOCOL: Final = 2
"""RTPROT_KERNEL, linux/rtnetlink.h: the protocol number of routes that the kernel itself adds for addresses."""
RTN_UNICAST: Final[int] = rt_type["unicast"]
RTN_LOCAL: Final[int] = rt_type["local"]
_RT_SCOPE_UNIVERSE: Final[int] = rt_scope["universe"]
_RT_SCOPE_LINK: Final[int] = rt_scope["link"]  # RT_SCOPE_HOST is beyond it
_RT_SCOPE_NOWHERE: Final[int] = rt_scope["nowhere"]

FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
"""IP version to address family."""
_VERSIONS: Final = {AF_INET: 4, AF_INET6: 6}


_RTA: Final = attribute_numbers(rtmsg)
RTA_DST: Final = _RTA["RTA_DST"]
RTA_OIF: Final = _RTA["RTA_OIF"]
RTA_GATEWAY: Final = _RTA["RTA_GATEWAY"]
RTA_PRIORITY: Final = _RTA["RTA_PRIORITY"]
RTA_PREFSRC: Final = _RTA["RTA_PREFSRC"]
RTA_SRC: Final = _RTA["RTA_SRC"]
RTA_METRICS: Final = _RTA["RTA_METRICS"]
RTA_MULTIPATH: Final = _RTA["RTA_MULTIPATH"]
RTA_TABLE: Final = _RTA["RTA_TABLE"]
RTA_VIA: Final = _RTA["RTA_VIA"]
RTA_PREF: Final = _RTA["RTA_PREF"]
RTA_ENCAP_TYPE: Final = _RTA["RTA_ENCAP_TYPE"]
RTA_ENCAP: Final = _RTA["RTA_ENCAP"]
_FRA: Final[dict[str, int]] = {name: number for number, name, _ in fibmsg.nla_map}
_FRA_PRIORITY: Final = _FRA["FRA_PRIORITY"]
_FRA_FWMARK: Final = _FRA["FRA_FWMARK"]
_FRA_FWMASK: Final = _FRA["FRA_FWMASK"]
_FRA_TABLE: Final = _FRA["FRA_TABLE"]
_FRA_PROTOCOL: Final = _FRA["FRA_PROTOCOL"]
_IFA: Final = attribute_numbers(ifaddrmsg)
_IFA_ADDRESS: Final = _IFA["IFA_ADDRESS"]
_IFA_LOCAL: Final = _IFA["IFA_LOCAL"]
_IFA_FLAGS: Final = _IFA["IFA_FLAGS"]

# pyroute2 0.9.7 has no names for the following.
_RTA_IP_PROTO: Final = 27  # linux/rtnetlink.h, Linux 4.17
RTA_NH_ID: Final = 30  # linux/rtnetlink.h
_RTM_F_LOOKUP_TABLE: Final = 0x1000  # linux/rtnetlink.h
_RTM_F_FIB_MATCH: Final = 0x2000  # linux/rtnetlink.h, Linux 4.13: answer with the route that matched, not its result
_IFA_PROTO: Final = 11  # linux/if_addr.h, Linux 5.18; pyroute2 before 0.9.3 has no name for it


_NOT_PLAIN: Final = frozenset({RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_ENCAP, RTA_NH_ID})

# What follows struct nlmsghdr in a message about a link, an address, and a route.
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # the fields of RouteHeader
_IFADDRMSG_END: Final = HEADER.size + _IFADDRMSG.size
_RTMSG_END: Final = HEADER.size + _RTMSG.size
_FAMILY_AT: Final = HEADER.size  # in struct rtmsg, see `read_route`
_SOURCE_PREFIX_AT: Final = HEADER.size + 2
_DST_OFFSET: Final = _RTMSG_END + 4  # payload of the first attribute of a route request, see `_route_template`


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An IPv4 or IPv6 address in the kernel, on the interface ``index``."""

    index: int
    text: str
    prefix: int
    usable: bool
    """False while the kernel looks for a duplicate (RFC 4862), and after it found one."""
    tracked: bool
    """Whether it is neither link-local, nor a loopback address, nor ours by its protocol number."""


@dataclass(frozen=True, slots=True)
class AssignedAddress:
    """An IPv4 or IPv6 address in the kernel, on the interface ``index``.

    Attributes:
        network: the network to which the address connects the interface; on a point-to-point link, the peer's.
        protocol: the protocol number of the program that added the address (IFA_PROTO); None: the kernel does not
            report it.
    """

    index: int
    ip: IPAddress
    network: IPNetwork
    protocol: int | None


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route in the kernel, or the kernel's answer to a route lookup."""

    network: IPNetwork
    table: int
    protocol: int
    metric: int
    index: int
    """The index of the interface; 0 if the route has none, or several (multipath)."""
    source: IPAddress | None
    selective: bool
    """It is for packets with one TOS, or from one network, only."""
    plain: bool
    """Unicast, for all packets, without a gateway, and in IPv4 with link scope, as our routes are."""
    type: int = RTN_UNICAST
    gateway: IPAddress | None = None
    metrics: bytes = b""
    """The payload of RTA_METRICS."""
    encapsulates: bool = False
    origin: IPNetwork | None = None
    """IPv6: the network whose packets the route is for; None: for all packets."""

    def satisfies(self, route: Route, index: int) -> bool:
        """Whether this is ``route`` through the interface ``index``, with any metric."""
        return self.plain and (self.network, self.table, self.index) == (route.network, route.table, index)


@dataclass(frozen=True, slots=True)
class KernelRule:
    """A rule in the kernel. A rule with mask 0 ignores the mark."""

    priority: int
    table: int
    protocol: int
    fwmark: int
    mask: int
    version: int = 4

    @property
    def item(self) -> Rule:
        """The item from which this program would have made the same rule."""
        return Rule(self.fwmark, self.table, self.mask, self.version)


class RouteHeader(NamedTuple):
    """struct rtmsg."""

    family: int
    dst_len: int
    src_len: int
    tos: int
    table: int
    protocol: int
    scope: int
    type: int
    flags: int


# -- addresses


def add_address(index: int, item: Address) -> bytearray:
    """Idempotent: replaces the same address with the same prefix. An IPv6 address is usable at once, since no duplicate
    is looked for."""
    message = _address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, item)
    return append(message, _IFA_PROTO, bytes([PROTOCOL]))  # kernels before 5.18 ignore it


def remove_address(index: int, item: Address) -> bytearray:
    return _address(RTM_DELADDR, 0, index, item)


def _address(kind: int, flags: int, index: int, item: Address) -> bytearray:
    interface = item.interface
    address = str(interface.ip)
    fields = {
        "family": FAMILIES[interface.version],
        "prefixlen": interface.network.prefixlen,
        "flags": IFA_F_NODAD if interface.version == 6 else 0,
        "index": index,
    }
    return encode(ifaddrmsg, kind, flags, fields, [("IFA_LOCAL", address), ("IFA_ADDRESS", address)])


def dump_addresses(index: int = 0, family: int = AF_UNSPEC) -> bytearray:
    """Request the addresses of one interface (0: all) and one family (AF_UNSPEC: both). `read_address` and
    `read_assigned` decode the answers.

    Filter the answers again: before Linux 5.0 the kernel sends the addresses of all interfaces.
    """
    return encode(ifaddrmsg, RTM_GETADDR, NLM_F_DUMP, {"family": family, "index": index}, [])


def read_address(message: memoryview) -> KernelAddress | None:
    """Decode RTM_NEWADDR or RTM_DELADDR. None if the address is neither IPv4 nor IPv6."""
    family, prefix, flags, scope, index = _IFADDRMSG.unpack_from(message, HEADER.size)
    if family not in (AF_INET, AF_INET6):
        return None
    found = dict(attributes(message[_IFADDRMSG_END:]))
    # On a point-to-point link IFA_ADDRESS is the peer's.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None:
        return None
    if _IFA_FLAGS in found:  # all 32 bits; the header has the lower 8
        flags = read_number(found[_IFA_FLAGS])
    tentative = bool(flags & IFA_F_TENTATIVE) and not flags & IFA_F_OPTIMISTIC
    protocol = found.get(_IFA_PROTO)
    return KernelAddress(
        index,
        inet_ntop(family, packed),
        prefix,
        usable=not (tentative or flags & IFA_F_DADFAILED),
        tracked=scope < _RT_SCOPE_LINK and (protocol is None or protocol[0] != PROTOCOL),
    )


def read_assigned(message: memoryview) -> AssignedAddress | None:
    """Decode an RTM_NEWADDR. None if the address is neither IPv4 nor IPv6."""
    family, prefix, _, _, index = _IFADDRMSG.unpack_from(message, HEADER.size)
    if family not in _VERSIONS:
        return None
    found = dict(attributes(message[_IFADDRMSG_END:]))
    peer = found.get(_IFA_ADDRESS)
    own = found.get(_IFA_LOCAL, peer)
    if own is None or peer is None:
        return None
    protocol = found.get(_IFA_PROTO)
    return AssignedAddress(
        index,
        _read_ip(family, own),
        _network(family, read_number(peer, "big"), prefix),
        None if protocol is None else protocol[0],
    )


def remove_assigned(found: AssignedAddress) -> bytearray:
    """Removes an address as it was found in the kernel."""
    interface = with_prefix(found.ip, found.network.prefixlen)
    return remove_address(found.index, Address(interface))


# -- routes


def add_routes(index: int, routes: Iterable[Route], metric: int) -> Iterator[bytearray]:
    """The kernel refuses with EEXIST if the table has any route to the same network with that metric."""
    return _routes(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, index, routes, metric)


def remove_routes(index: int, routes: Iterable[Route]) -> Iterator[bytearray]:
    """Removes routes of any metric, but only ours through that interface."""
    return _routes(RTM_DELROUTE, 0, index, routes, 0)


def _routes(kind: int, flags: int, index: int, routes: Iterable[Route], metric: int) -> Iterator[bytearray]:
    """One message per route.

    pyroute2 takes about 100 us to encode a message, and there may be tens of thousands. Most routes of a long list
    differ in their destination only, so one message of each shape is encoded and then copied with other destinations.
    """
    for route in routes:
        network, table = route.network, route.table
        packed = network.network_address.packed
        message = bytearray(_route_template(kind, flags, index, network.version, network.prefixlen, table, metric))
        message[_DST_OFFSET : _DST_OFFSET + len(packed)] = packed
        yield message


@lru_cache(maxsize=64)
def _route_template(kind: int, flags: int, index: int, version: int, prefix: int, table: int, metric: int) -> bytes:
    """The message for a route to 0.0.0.0/prefix or ::/prefix."""
    attrs: list[tuple[str, object]] = [("RTA_OIF", index), ("RTA_TABLE", table)]
    if metric:
        attrs.append(("RTA_PRIORITY", metric))
    # In a removal, "nowhere" means every scope. IPv6 ignores scopes.
    scope = _RT_SCOPE_LINK if kind == RTM_NEWROUTE else _RT_SCOPE_NOWHERE
    return bytes(_route(kind, flags, _network(FAMILIES[version], 0, prefix), table, scope, attrs))


def add_connected_route(index: int, item: ConnectedRoute) -> bytearray:
    """Request to add the route exactly as the kernel does (fib_add_ifaddr, net/ipv4/fib_frontend.c;
    addrconf_prefix_route, net/ipv6/addrconf.c), so that the kernel removes it together with the address. The kernel
    refuses with EEXIST if the main table has any route to the same network with that metric (`CONNECTED_METRICS`)."""
    network = item.interface.network
    attrs: list[tuple[str, object]] = [("RTA_OIF", index), ("RTA_TABLE", MAIN_TABLE)]
    if network.version == 4:
        attrs.append(("RTA_PREFSRC", str(item.interface.ip)))
    else:
        attrs.append(("RTA_PRIORITY", CONNECTED_METRICS[6]))
    flags = NLM_F_CREATE | NLM_F_EXCL
    return _route(RTM_NEWROUTE, flags, network, MAIN_TABLE, _RT_SCOPE_LINK, attrs, protocol=KERNEL_PROTOCOL)


def add_host_route(item: HostRoute, metric: int, *, replace: bool = True) -> bytearray:
    """Adds the route; atomically replaces an earlier one to the same address with the same metric. Without ``replace``
    an earlier route stays, and the kernel refuses this one: the owner has made the earlier one meanwhile.

    RTNH_F_ONLINK declares the gateway a neighbour on the device. Without it the kernel would look for the gateway in
    the routing table, and could find it in a network that the other end has just pushed.
    """
    attrs = _host_route_attributes(item, metric)
    if item.source is not None:
        attrs.append(("RTA_PREFSRC", str(item.source)))
    scope = _RT_SCOPE_LINK if item.gateway is None else _RT_SCOPE_UNIVERSE
    flags = 0 if item.gateway is None else RTNH_F_ONLINK
    network = host_network(item.address)
    message = _route(
        RTM_NEWROUTE,
        NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL),
        network,
        item.table,
        scope,
        attrs,
        flags,
    )
    # They are raw bytes, as the kernel gave them for the route that this one copies.
    return append(message, RTA_METRICS, item.metrics) if item.metrics else message


def remove_host_route(item: HostRoute, metric: int) -> bytearray:
    attrs = _host_route_attributes(item, metric)
    return _route(RTM_DELROUTE, 0, host_network(item.address), item.table, _RT_SCOPE_NOWHERE, attrs)


def remove_kernel_route(route: KernelRoute) -> bytearray:
    """Removes a route of ours as it was found in the kernel."""
    attrs: list[tuple[str, object]] = [("RTA_PRIORITY", route.metric), ("RTA_TABLE", route.table)]
    return _route(RTM_DELROUTE, 0, route.network, route.table, _RT_SCOPE_NOWHERE, attrs)


def _host_route_attributes(item: HostRoute, metric: int) -> list[tuple[str, object]]:
    attrs: list[tuple[str, object]] = [
        ("RTA_OIF", item.index),
        ("RTA_PRIORITY", metric),
        ("RTA_TABLE", item.table),
    ]
    if item.gateway is not None and item.gateway.version == item.address.version:
        attrs.append(("RTA_GATEWAY", str(item.gateway)))
    elif item.gateway is not None:  # IPv4 through an IPv6 gateway (RFC 5549)
        attrs.append(("RTA_VIA", {"family": AF_INET6, "addr": str(item.gateway)}))
    return attrs


def _route(
    kind: int,
    flags: int,
    network: IPNetwork,
    table: int,
    scope: int,
    attrs: Sequence[tuple[str, object]],
    route_flags: int = 0,
    protocol: int = PROTOCOL,
) -> bytearray:
    """Build a request to add or remove a route. Its first attribute is the destination."""
    fields = {
        "family": FAMILIES[network.version],
        "dst_len": network.prefixlen,
        "table": _short_table(table),
        "proto": protocol,
        "type": RTN_UNICAST,
        "scope": scope,
        "flags": route_flags,
    }
    return encode(rtmsg, kind, flags, fields, [("RTA_DST", str(network.network_address)), *attrs])


def dump_routes(version: int, table: int, protocol: int = 0, index: int = 0) -> bytearray:
    """Request the routes of one IP version and table (0: all tables), one protocol (0: all protocols) and one device
    (0: all).

    Filter the answers again: a kernel before 4.20 sends all tables, and one without IPv6 sends IPv4's.
    """
    fields: dict[str, int] = {"family": FAMILIES[version], "proto": protocol}
    attrs: list[tuple[str, object]] = [("RTA_TABLE", table)]
    if index:
        attrs.append(("RTA_OIF", index))
    return encode(rtmsg, RTM_GETROUTE, NLM_F_DUMP, fields, attrs)


def lookup_route(
    address: IPAddress, mark: int, *, index: int = 0, match: bool, source: IPAddress | None = None
) -> bytearray:
    """Ask how a TCP packet with this fwmark would be routed. `read_route` decodes the answer.

    Args:
        address: the destination.
        mark: the fwmark; 0 for none.
        index: if not 0, only routes through this device count. With an IPv6 ``source``, other routes count too, so the
            answer has to be checked (RT6_LOOKUP_F_IFACE, net/ipv6/route.c).
        match: ask for the route that matches; otherwise for the next hop that was chosen from it.
        source: the packet's source address, which must be one of this machine. None: the kernel chooses.
    """
    attrs: list[tuple[str, object]] = [("RTA_DST", str(address))]
    if source is not None:
        attrs.append(("RTA_SRC", str(source)))
    if mark:
        attrs.append(("RTA_MARK", mark))
    if index:
        attrs.append(("RTA_OIF", index))
    flags = _RTM_F_LOOKUP_TABLE if address.version == 4 else 0  # IPv6 always answers with the table
    if match:
        flags |= _RTM_F_FIB_MATCH
    bits = address.max_prefixlen
    fields: dict[str, int] = {
        "family": FAMILIES[address.version],
        "dst_len": bits,
        "src_len": 0 if source is None else bits,
        "flags": flags,
    }
    return append(encode(rtmsg, RTM_GETROUTE, 0, fields, attrs), _RTA_IP_PROTO, bytes([IPPROTO_TCP]))


def lookup_current_route(address: IPAddress, mark: int) -> bytearray:
    """Ask how a TCP packet with this fwmark (0: none) is currently routed. `read_current_route` decodes the answer."""
    attrs: list[tuple[str, object]] = [("RTA_DST", str(address))]
    if mark:
        attrs.append(("RTA_MARK", mark))
    fields: dict[str, int] = {"family": FAMILIES[address.version], "dst_len": address.max_prefixlen}
    return append(encode(rtmsg, RTM_GETROUTE, 0, fields, attrs), _RTA_IP_PROTO, bytes([IPPROTO_TCP]))


def read_current_route(message: memoryview) -> CurrentRoute | None:
    """Decode the answer to `lookup_current_route`. None: the kernel has no route, or its route discards the packet."""
    header = read_route_header(message)
    if header.type not in (RTN_UNICAST, RTN_LOCAL):
        return None
    found = read_route_attributes(message)
    gateway = found.get(RTA_GATEWAY)
    via = found.get(RTA_VIA)  # struct rtvia: family u16, address
    source = found.get(RTA_PREFSRC) if header.family == AF_INET else None
    return CurrentRoute(
        read_number(found.get(RTA_OIF)),
        inet_ntop(header.family, gateway) if gateway is not None else None if via is None else bytes(via).hex(),
        None if source is None else inet_ntop(AF_INET, source),
    )


def read_route_header(message: memoryview) -> RouteHeader:
    return RouteHeader._make(_RTMSG.unpack_from(message, HEADER.size))


def read_route_attributes(message: memoryview) -> dict[int, memoryview]:
    """Attribute number to payload, which is valid while the message is."""
    return dict(attributes(message[_RTMSG_END:]))


def read_route_key(message: memoryview) -> tuple[RouteKey, int, int, int]:
    """Return the key, the protocol, the device (0: none, or several) and the metric of a route. Faster than
    `read_route`, for tables with thousands of routes."""
    family, prefix, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(message, HEADER.size)
    found = read_route_attributes(message)
    if RTA_TABLE in found:
        table = read_number(found[RTA_TABLE])
    key = 4 if family == AF_INET else 6, read_number(found.get(RTA_DST), "big"), prefix, table
    return key, protocol, read_number(found.get(RTA_OIF)), read_number(found.get(RTA_PRIORITY))


def has_origin(message: memoryview) -> bool:
    """Whether an RTM_NEWROUTE of IPv6 is for packets from one network only (`KernelRoute.origin`). Much faster than
    `read_route`."""
    return message[_FAMILY_AT] == AF_INET6 and message[_SOURCE_PREFIX_AT] != 0


def read_route(message: memoryview) -> KernelRoute:
    """Decode an RTM_NEWROUTE about IPv4 or IPv6, unicast forwarding (not `ip mroute`).

    ::

        struct nlmsghdr | struct rtmsg                                                            | attributes
        0               | 16      17       18       19   20     21        22     23    24         | 28
                        | family, dst_len, src_len, tos, table, protocol, scope, type, flags (u32) |
    """
    family, prefix, source_prefix, tos, table, protocol, scope, type_, _ = _RTMSG.unpack_from(message, HEADER.size)
    found = read_route_attributes(message)
    source = found.get(RTA_PREFSRC)
    is_direct = type_ == RTN_UNICAST and (family == AF_INET6 or scope == _RT_SCOPE_LINK)
    return KernelRoute(
        # Host bits are allowed: in the answer to a lookup, the destination may be longer than the prefix of the route.
        network=_network(family, read_number(found.get(RTA_DST), "big"), prefix),
        table=read_number(found[RTA_TABLE]) if RTA_TABLE in found else table,
        protocol=protocol,
        metric=read_number(found.get(RTA_PRIORITY)),
        index=read_number(found.get(RTA_OIF)),
        source=None if source is None else _read_ip(family, source),
        selective=bool(tos or source_prefix),
        plain=is_direct and not (source_prefix or _NOT_PLAIN & found.keys()),
        type=type_,
        gateway=_gateway(family, found),
        metrics=bytes(found.get(RTA_METRICS, b"")),
        encapsulates=RTA_ENCAP in found,
        origin=_network(family, read_number(found.get(RTA_SRC), "big"), source_prefix)
        if source_prefix and family == AF_INET6
        else None,
    )


def _gateway(family: int, found: dict[int, memoryview]) -> IPAddress | None:
    if RTA_GATEWAY in found:
        return _read_ip(family, found[RTA_GATEWAY])
    via = found.get(RTA_VIA)  # struct rtvia: family u16, address
    return IPv6Address(bytes(via[2:])) if via is not None and len(via) == 18 else None


# -- rules


def add_rule(item: Rule, priority: int) -> bytearray:
    """The kernel refuses with EEXIST if exactly this rule exists."""
    return _rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, item, priority)


def remove_rule(item: Rule, priority: int) -> bytearray:
    return _rule(RTM_DELRULE, 0, item, priority)


def _rule(kind: int, flags: int, item: Rule, priority: int) -> bytearray:
    fields = {"family": FAMILIES[item.version], "table": _short_table(item.table), "action": FR_ACT_TO_TBL}
    attrs: list[tuple[str, object]] = [
        ("FRA_PRIORITY", priority),
        ("FRA_FWMARK", item.fwmark),
        # Without a mask, the kernel takes mark 0 for "any mark".
        ("FRA_FWMASK", item.mask),
        ("FRA_TABLE", item.table),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    return encode(fibmsg, kind, flags, fields, attrs)


def dump_rules(version: int) -> bytearray:
    """Request all rules of one IP version; `read_rule` decodes the answers."""
    return encode(fibmsg, RTM_GETRULE, NLM_F_DUMP, {"family": FAMILIES[version]}, [])


def read_rule(message: memoryview) -> KernelRule | None:
    """Decode RTM_NEWRULE or RTM_DELRULE. None if the rule is about neither IPv4 nor IPv6.

    ::

        struct nlmsghdr | struct fib_rule_hdr                                                     | attributes
        0               | 16      17       18       19   20     21, 22    23      24              | 28
                        | family, dst_len, src_len, tos, table, reserved, action, flags (u32)     |
    """
    family, _, _, _, table, _, _, _, _ = _RTMSG.unpack_from(message, HEADER.size)  # struct rtmsg has the same shape
    if family not in _VERSIONS:
        return None
    found = dict(attributes(message[_RTMSG_END:]))
    return KernelRule(
        priority=read_number(found.get(_FRA_PRIORITY)),
        table=read_number(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        protocol=read_number(found.get(_FRA_PROTOCOL)),
        # The kernel omits both if they are 0.
        fwmark=read_number(found.get(_FRA_FWMARK)),
        mask=read_number(found.get(_FRA_FWMASK)),
        version=_VERSIONS[family],
    )


# -- parts of messages


def _short_table(table: int) -> int:
    """The table's number for the byte in the header; 0 (RT_TABLE_UNSPEC) if it fits into the attribute only."""
    return table if table < 256 else 0


def _read_ip(family: int, packed: memoryview) -> IPAddress:
    return IPv4Address(bytes(packed)) if family == AF_INET else IPv6Address(bytes(packed))


def _network(family: int, address: int, prefix: int) -> IPNetwork:
    """The network of the prefix, without the address's other bits."""
    if family == AF_INET:
        return IPv4Network((address, prefix), strict=False)
    return IPv6Network((address, prefix), strict=False)
