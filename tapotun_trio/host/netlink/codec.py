"""Encodes rtnetlink requests and decodes the kernel's messages about links, addresses, routes and rules. No I/O.

Follows linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h and linux/fib_rules.h. This is the only module that knows
these layouts.

Requests are built with pyroute2's message classes, at about 100 us each. Answers and notifications are decoded by hand:
a table may have a million routes, a host hundreds of links, and notifications arrive unasked.
Measured on 2026-11-29 with pyroute2 0.9.7, by hand and with its classes: a link 6 us and 271 us, an address 10 us and
46 us, a route 16 us and 71 us.

This program configures IPv4 only. Links and addresses are read for both families.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from socket import AF_INET, AF_INET6, AF_UNSPEC, IPPROTO_TCP, inet_ntop
from typing import Any, Final, Literal, NamedTuple

from pyroute2.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    rt_scope,
    rt_type,
)
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_TO_TBL, fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_DADFAILED, IFA_F_OPTIMISTIC, IFA_F_TENTATIVE, ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_RUNNING, IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import RTNH_F_ONLINK, rtmsg

from ..items import MAIN_TABLE, Address, ConnectedRoute, CurrentRoute, HostRoute, Route, RouteKey, Rule
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


def _attribute_numbers(message: Any) -> dict[str, int]:
    """The attribute numbers of a pyroute2 message class: the positions in its map of names."""
    return {name: number for number, (name, *_) in enumerate(message.nla_map)}


_RTA: Final = _attribute_numbers(rtmsg)
RTA_DST: Final = _RTA["RTA_DST"]
RTA_OIF: Final = _RTA["RTA_OIF"]
RTA_GATEWAY: Final = _RTA["RTA_GATEWAY"]
RTA_PRIORITY: Final = _RTA["RTA_PRIORITY"]
RTA_PREFSRC: Final = _RTA["RTA_PREFSRC"]
RTA_METRICS: Final = _RTA["RTA_METRICS"]
RTA_MULTIPATH: Final = _RTA["RTA_MULTIPATH"]
RTA_TABLE: Final = _RTA["RTA_TABLE"]
RTA_VIA: Final = _RTA["RTA_VIA"]
RTA_PREF: Final = _RTA["RTA_PREF"]
RTA_ENCAP_TYPE: Final = _RTA["RTA_ENCAP_TYPE"]
RTA_ENCAP: Final = _RTA["RTA_ENCAP"]
_IFLA: Final = _attribute_numbers(ifinfmsg)
_IFLA_IFNAME: Final = _IFLA["IFLA_IFNAME"]
_IFLA_MTU: Final = _IFLA["IFLA_MTU"]
_IFLA_LINKINFO: Final = _IFLA["IFLA_LINKINFO"]
_IFLA_AF_SPEC: Final = _IFLA["IFLA_AF_SPEC"]
_FRA: Final[dict[str, int]] = {name: number for number, name, _ in fibmsg.nla_map}
_FRA_PRIORITY: Final = _FRA["FRA_PRIORITY"]
_FRA_FWMARK: Final = _FRA["FRA_FWMARK"]
_FRA_FWMASK: Final = _FRA["FRA_FWMASK"]
_FRA_TABLE: Final = _FRA["FRA_TABLE"]
_FRA_PROTOCOL: Final = _FRA["FRA_PROTOCOL"]
_IFA: Final = _attribute_numbers(ifaddrmsg)
_IFA_ADDRESS: Final = _IFA["IFA_ADDRESS"]
_IFA_LOCAL: Final = _IFA["IFA_LOCAL"]
_IFA_FLAGS: Final = _IFA["IFA_FLAGS"]

# pyroute2 0.9.7 has no names for the following.
_RTA_IP_PROTO: Final = 27  # linux/rtnetlink.h, Linux 4.17
RTA_NH_ID: Final = 30  # linux/rtnetlink.h
_RTM_F_LOOKUP_TABLE: Final = 0x1000  # linux/rtnetlink.h
_RTM_F_FIB_MATCH: Final = 0x2000  # linux/rtnetlink.h, Linux 4.13: answer with the route that matched, not its result
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3  # linux/rtnetlink.h
_IFA_PROTO: Final = 11  # linux/if_addr.h, Linux 5.18; pyroute2 before 0.9.3 has no name for it
_IFLA_NEW_NETNSID: Final = 45  # linux/if_link.h, Linux 4.16
_IFLA_INFO_KIND: Final = 1  # linux/if_link.h
_IFLA_INFO_SLAVE_KIND: Final = 4  # linux/if_link.h
_ARPHRD_NONE: Final = 0xFFFE  # linux/if_arp.h
_IFLA_INET_CONF: Final = 1  # linux/if_link.h
_IFLA_INET6_ADDR_GEN_MODE: Final = 8  # linux/if_link.h
_IN6_ADDR_GEN_MODE_NONE: Final = 1  # linux/if_link.h
_IPV4_DEVCONF_RP_FILTER: Final = 8  # linux/ip.h
_IPV4_DEVCONF_PROMOTE_SECONDARIES: Final = 20  # linux/ip.h

_NETCONFA_IFINDEX: Final = 1  # linux/netconf.h
_NETCONFA_RP_FILTER: Final = 3  # linux/netconf.h
NETCONF_ALL: Final = -1  # NETCONFA_IFINDEX_ALL, linux/netconf.h: the settings in conf/all

_NOT_PLAIN: Final = frozenset({RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_ENCAP, RTA_NH_ID})

# What follows struct nlmsghdr in a message about a link, an address, and a route.
_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of changed flags
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # the fields of RouteHeader
_IFINFOMSG_END: Final = HEADER.size + _IFINFOMSG.size
_IFADDRMSG_END: Final = HEADER.size + _IFADDRMSG.size
_RTMSG_END: Final = HEADER.size + _RTMSG.size
_NETCONFMSG_END: Final = HEADER.size + 4  # one byte, the family, and padding (linux/netconf.h)
_DST_OFFSET: Final = _RTMSG_END + 4  # payload of the first attribute of a route request, see `_route_template`


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    admin_up: bool
    """The administrator set it up (IFF_UP)."""
    running: bool
    """It is set up and has a carrier (IFF_UP and IFF_RUNNING)."""
    mtu: int = 0
    """In bytes; 0 if the message did not contain it."""


@dataclass(frozen=True, slots=True)
class AttachableLink:
    """A link, with the properties that decide whether it attaches this machine to the networks of its addresses.

    Attributes:
        bare: the link's packets have no link-layer header (ARPHRD_NONE). TUN interfaces are such links.
        in_vrf: the link is a VRF or belongs to one, so only sockets bound to the VRF use it.
    """

    link: Link
    bare: bool
    in_vrf: bool


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
    """An IPv4 address in the kernel, on the interface ``index``.

    Attributes:
        network: the network to which the address connects the interface; on a point-to-point link, the peer's.
        protocol: the protocol number of the program that added the address (IFA_PROTO); None: the kernel does not
            report it.
    """

    index: int
    ip: IPv4Address
    network: IPv4Network
    protocol: int | None


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """An IPv4 route in the kernel, or the kernel's answer to a route lookup."""

    network: IPv4Network
    table: int
    protocol: int
    metric: int
    index: int
    """The index of the interface; 0 if the route has none, or several (multipath)."""
    source: IPv4Address | None
    tos: int
    plain: bool
    """Unicast, with link scope and without a gateway, as our routes are."""
    type: int = RTN_UNICAST
    gateway: IPv4Address | IPv6Address | None = None
    metrics: bytes = b""
    """The payload of RTA_METRICS."""
    encapsulates: bool = False

    def satisfies(self, route: Route, index: int) -> bool:
        """Whether this is ``route`` through the interface ``index``, with any metric."""
        return self.plain and (self.network, self.table, self.index) == (route.network, route.table, index)


@dataclass(frozen=True, slots=True)
class KernelRule:
    """An IPv4 rule in the kernel. A rule with mask 0 ignores the mark."""

    priority: int
    table: int
    protocol: int
    fwmark: int
    mask: int

    @property
    def item(self) -> Rule:
        """The item from which this program would have made the same rule."""
        return Rule(self.fwmark, self.table, self.mask)


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


# -- links


def get_link(*, name: str = "", index: int = 0) -> bytearray:
    """Request one link, by name or by index."""
    attrs: list[tuple[str, object]] = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    if name:
        attrs.append(("IFLA_IFNAME", name))
    return _encode(ifinfmsg, RTM_GETLINK, 0, {"index": index}, attrs)


def dump_links() -> bytearray:
    """Request all links; `read_link` and `read_tun_index` decode the answers."""
    # The statistics would be three quarters of an answer.
    return _encode(ifinfmsg, RTM_GETLINK, NLM_F_DUMP, {}, [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)])


def read_link(message: memoryview) -> Link | None:
    """Decode RTM_NEWLINK or RTM_DELLINK. None if the message is about a bridge port instead of the link itself."""
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(message, HEADER.size)
    if family != AF_UNSPEC:
        return None
    name, mtu = "", 0
    for number, payload in attributes(message[_IFINFOMSG_END:]):
        if number == _IFLA_IFNAME:
            name = bytes(payload).rstrip(b"\0").decode(errors="surrogateescape")
        elif number == _IFLA_MTU:  # after the name, see rtnl_fill_ifinfo
            mtu = read_number(payload)
            break
    running = IFF_UP | IFF_RUNNING
    return Link(index, name, admin_up=bool(flags & IFF_UP), running=flags & running == running, mtu=mtu)


def is_move(message: memoryview) -> bool:
    """Whether an RTM_DELLINK says that the link was moved to another network namespace."""
    return any(number == _IFLA_NEW_NETNSID for number, _ in attributes(message[_IFINFOMSG_END:]))


def read_sender(message: memoryview) -> int:
    """Return the netlink port number of the program whose request caused the notification; 0 for the kernel itself."""
    sender: int = HEADER.unpack_from(message)[4]
    return sender


def read_attachable_link(message: memoryview) -> AttachableLink | None:
    """Decode a message about a link, as `read_link` does."""
    link = read_link(message)
    if link is None:
        return None
    hardware_type = _IFINFOMSG.unpack_from(message, HEADER.size)[1]
    info = dict(attributes(message[_IFINFOMSG_END:])).get(_IFLA_LINKINFO)
    kinds = {} if info is None else dict(attributes(info))
    in_vrf = any(bytes(kinds.get(number, b"")) == b"vrf\0" for number in (_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND))
    return AttachableLink(link, bare=hardware_type == _ARPHRD_NONE, in_vrf=in_vrf)


def read_tun_index(message: memoryview) -> int | None:
    """The index from an RTM_NEWLINK. None if the link is neither a TUN nor a TAP interface."""
    for number, payload in attributes(message[_IFINFOMSG_END:]):
        if number == _IFLA_LINKINFO and bytes(dict(attributes(payload)).get(_IFLA_INFO_KIND, b""))[:4] == b"tun\0":
            index: int = _IFINFOMSG.unpack_from(message, HEADER.size)[2]
            return index
    return None


def set_link_up(index: int, mtu: int) -> bytearray:
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return _encode(ifinfmsg, RTM_NEWLINK, 0, fields, [("IFLA_MTU", mtu)])


def set_link_down(index: int) -> bytearray:
    return _encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index, "flags": 0, "change": IFF_UP}, [])


def rename_link(index: int, name: str) -> bytearray:
    """Request a new name for a link. The kernel refuses with EBUSY if the link is up (before Linux 6.2), and with
    EEXIST if the name is taken."""
    return _encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [("IFLA_IFNAME", name)])


def set_queue_length(index: int, packets: int) -> bytearray:
    return _encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, [("IFLA_TXQLEN", packets)])


def is_link(message: bytes) -> bool:
    """Whether the answer to `get_link` is a link (and not a refusal)."""
    return len(message) >= HEADER.size and HEADER.unpack_from(message)[1] == RTM_NEWLINK


def set_ipv6_silent(index: int) -> bytearray:
    """Switch off the automatic link-local address, and so duplicate detection, router solicitations and group reports.

    The kernel refuses with EAFNOSUPPORT if the interface has no IPv6: switched off, or the MTU is below 1280.
    """
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
    return _with_af_spec(index, _attribute(AF_INET6, mode))


def set_promote_secondaries(index: int) -> bytearray:
    """Keep the other addresses of a subnet when the first one is removed; by default the kernel removes them too
    (devinet.c)."""
    return _set_ipv4_option(index, _IPV4_DEVCONF_PROMOTE_SECONDARIES, 1)


def set_rp_filter(index: int, mode: int) -> bytearray:
    """``mode`` as in ip-sysctl: 0 off, 1 strict, 2 loose. Sets the interface's own value; the value of "all" may be
    higher."""
    return _set_ipv4_option(index, _IPV4_DEVCONF_RP_FILTER, mode)


def read_rp_filter_change(message: memoryview) -> int | None:
    """Decode an RTM_NEWNETCONF. Returns the index of the interface whose rp_filter was set, or NETCONF_ALL. None: the
    message is about something else."""
    found = dict(attributes(message[_NETCONFMSG_END:]))
    if message[HEADER.size] != AF_INET or not found.keys() >= {_NETCONFA_IFINDEX, _NETCONFA_RP_FILTER}:
        return None
    index: int = struct.unpack_from("=i", found[_NETCONFA_IFINDEX])[0]
    return index


def _set_ipv4_option(index: int, option: int, value: int) -> bytearray:
    conf = _attribute(_IFLA_INET_CONF, _attribute(option, struct.pack("=I", value)))
    return _with_af_spec(index, _attribute(AF_INET, conf))


def _with_af_spec(index: int, family: bytes) -> bytearray:
    # Encoded by hand: pyroute2 knows IFLA_INET_CONF as the kernel dumps it (an array), not as the kernel expects it
    # (nested).
    return _append(_encode(ifinfmsg, RTM_NEWLINK, 0, {"index": index}, []), _IFLA_AF_SPEC, family)


# -- addresses


def add_address(index: int, item: Address) -> bytearray:
    """Idempotent: replaces the same address with the same prefix."""
    message = _address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, item)
    return _append(message, _IFA_PROTO, bytes([PROTOCOL]))  # kernels before 5.18 ignore it


def remove_address(index: int, item: Address) -> bytearray:
    return _address(RTM_DELADDR, 0, index, item)


def _address(kind: int, flags: int, index: int, item: Address) -> bytearray:
    address = str(item.interface.ip)
    fields = {"family": AF_INET, "prefixlen": item.interface.network.prefixlen, "index": index}
    return _encode(ifaddrmsg, kind, flags, fields, [("IFA_LOCAL", address), ("IFA_ADDRESS", address)])


def dump_addresses(index: int = 0, family: int = AF_UNSPEC) -> bytearray:
    """Request the addresses of one interface (0: all) and one family (AF_UNSPEC: both). `read_address` decodes the
    answers; for IPv4, `read_assigned` does too.

    Filter the answers again: before Linux 5.0 the kernel sends the addresses of all interfaces.
    """
    return _encode(ifaddrmsg, RTM_GETADDR, NLM_F_DUMP, {"family": family, "index": index}, [])


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
    """Decode an IPv4 RTM_NEWADDR. None for other families, which kernels before 4.20 send even if they were not
    requested."""
    family, prefix, _, _, index = _IFADDRMSG.unpack_from(message, HEADER.size)
    if family != AF_INET:
        return None
    found = dict(attributes(message[_IFADDRMSG_END:]))
    peer = found.get(_IFA_ADDRESS)
    own = found.get(_IFA_LOCAL, peer)
    if own is None or peer is None:
        return None
    protocol = found.get(_IFA_PROTO)
    return AssignedAddress(
        index,
        IPv4Address(bytes(own)),
        IPv4Network((bytes(peer), prefix), strict=False),
        None if protocol is None else protocol[0],
    )


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
        message = bytearray(_route_template(kind, flags, index, route.network.prefixlen, route.table, metric))
        message[_DST_OFFSET : _DST_OFFSET + 4] = route.network.network_address.packed
        yield message


@lru_cache(maxsize=64)
def _route_template(kind: int, flags: int, index: int, prefix: int, table: int, metric: int) -> bytes:
    """The message for a route to 0.0.0.0/prefix."""
    attrs: list[tuple[str, object]] = [("RTA_OIF", index), ("RTA_TABLE", table)]
    if metric:
        attrs.append(("RTA_PRIORITY", metric))
    # In a removal, "nowhere" means every scope.
    scope = _RT_SCOPE_LINK if kind == RTM_NEWROUTE else _RT_SCOPE_NOWHERE
    return bytes(_route(kind, flags, IPv4Network((0, prefix)), table, scope, attrs))


def add_connected_route(index: int, item: ConnectedRoute) -> bytearray:
    """Request to add the route exactly as the kernel does (fib_add_ifaddr, net/ipv4/fib_frontend.c), so that the kernel
    removes it together with the address. The kernel refuses with EEXIST if the main table has any route to the same
    network with metric 0."""
    attrs: list[tuple[str, object]] = [
        ("RTA_OIF", index),
        ("RTA_TABLE", MAIN_TABLE),
        ("RTA_PREFSRC", str(item.interface.ip)),
    ]
    flags = NLM_F_CREATE | NLM_F_EXCL
    network = item.interface.network
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
    network = IPv4Network(item.address)
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
    return _append(message, RTA_METRICS, item.metrics) if item.metrics else message


def remove_host_route(item: HostRoute, metric: int) -> bytearray:
    attrs = _host_route_attributes(item, metric)
    return _route(RTM_DELROUTE, 0, IPv4Network(item.address), item.table, _RT_SCOPE_NOWHERE, attrs)


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
    if isinstance(item.gateway, IPv4Address):
        attrs.append(("RTA_GATEWAY", str(item.gateway)))
    elif item.gateway is not None:
        attrs.append(("RTA_VIA", {"family": AF_INET6, "addr": str(item.gateway)}))
    return attrs


def _route(
    kind: int,
    flags: int,
    network: IPv4Network,
    table: int,
    scope: int,
    attrs: Sequence[tuple[str, object]],
    route_flags: int = 0,
    protocol: int = PROTOCOL,
) -> bytearray:
    """Build a request to add or remove a route. Its first attribute is the destination."""
    fields = {
        "family": AF_INET,
        "dst_len": network.prefixlen,
        "table": _short_table(table),
        "proto": protocol,
        "type": RTN_UNICAST,
        "scope": scope,
        "flags": route_flags,
    }
    return _encode(rtmsg, kind, flags, fields, [("RTA_DST", str(network.network_address)), *attrs])


def dump_routes(table: int, protocol: int = 0, index: int = 0) -> bytearray:
    """Request the routes of one table (0: all tables), one protocol (0: all protocols) and one device (0: all).

    Filter the answers again: a kernel before 4.20 sends all tables.
    """
    fields = {"family": AF_INET, "proto": protocol}
    attrs: list[tuple[str, object]] = [("RTA_TABLE", table)]
    if index:
        attrs.append(("RTA_OIF", index))
    return _encode(rtmsg, RTM_GETROUTE, NLM_F_DUMP, fields, attrs)


def lookup_route(
    address: IPv4Address, mark: int, *, index: int = 0, match: bool, source: IPv4Address | None = None
) -> bytearray:
    """Ask how a TCP packet with this fwmark would be routed.

    Args:
        address: the destination.
        mark: the fwmark; 0 for none.
        index: if not 0, only routes through this device count.
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
    flags = _RTM_F_LOOKUP_TABLE
    if match:
        flags |= _RTM_F_FIB_MATCH
    fields = {"family": AF_INET, "dst_len": 32, "src_len": 0 if source is None else 32, "flags": flags}
    return _append(_encode(rtmsg, RTM_GETROUTE, 0, fields, attrs), _RTA_IP_PROTO, bytes([IPPROTO_TCP]))


def lookup_current_route(address: IPv4Address | IPv6Address, mark: int) -> bytearray:
    """Ask how a TCP packet with this fwmark (0: none) is currently routed. `read_current_route` decodes the answer."""
    attrs: list[tuple[str, object]] = [("RTA_DST", str(address))]
    if mark:
        attrs.append(("RTA_MARK", mark))
    family = AF_INET if address.version == 4 else AF_INET6
    fields: dict[str, int] = {"family": family, "dst_len": address.max_prefixlen}
    return _append(_encode(rtmsg, RTM_GETROUTE, 0, fields, attrs), _RTA_IP_PROTO, bytes([IPPROTO_TCP]))


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
    """Return the key, the protocol, the device (0: none, or several) and the metric of an IPv4 route. Faster than
    `read_route`, for tables with thousands of routes."""
    _, prefix, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(message, HEADER.size)
    found = read_route_attributes(message)
    if RTA_TABLE in found:
        table = read_number(found[RTA_TABLE])
    key = read_number(found.get(RTA_DST), "big"), prefix, table
    return key, protocol, read_number(found.get(RTA_OIF)), read_number(found.get(RTA_PRIORITY))


def read_route(message: memoryview) -> KernelRoute:
    """Decode an IPv4 RTM_NEWROUTE.

    ::

        struct nlmsghdr | struct rtmsg                                                            | attributes
        0               | 16      17       18       19   20     21        22     23    24         | 28
                        | family, dst_len, src_len, tos, table, protocol, scope, type, flags (u32) |
    """
    _, prefix, _, tos, table, protocol, scope, type_, _ = _RTMSG.unpack_from(message, HEADER.size)
    found = read_route_attributes(message)
    source = found.get(RTA_PREFSRC)
    return KernelRoute(
        # Host bits are allowed: in the answer to a lookup, the destination may be longer than the prefix of the route.
        network=IPv4Network((read_number(found.get(RTA_DST), "big"), prefix), strict=False),
        table=read_number(found[RTA_TABLE]) if RTA_TABLE in found else table,
        protocol=protocol,
        metric=read_number(found.get(RTA_PRIORITY)),
        index=read_number(found.get(RTA_OIF)),
        source=None if source is None else IPv4Address(bytes(source)),
        tos=tos,
        plain=(type_, scope) == (RTN_UNICAST, _RT_SCOPE_LINK) and not _NOT_PLAIN & found.keys(),
        type=type_,
        gateway=_gateway(found),
        metrics=bytes(found.get(RTA_METRICS, b"")),
        encapsulates=RTA_ENCAP in found,
    )


def _gateway(found: dict[int, memoryview]) -> IPv4Address | IPv6Address | None:
    if RTA_GATEWAY in found:
        return IPv4Address(bytes(found[RTA_GATEWAY]))
    via = found.get(RTA_VIA)  # struct rtvia: family u16, address
    return IPv6Address(bytes(via[2:])) if via is not None and len(via) == 18 else None


# -- rules


def add_rule(item: Rule, priority: int) -> bytearray:
    """The kernel refuses with EEXIST if exactly this rule exists."""
    return _rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, item, priority)


def remove_rule(item: Rule, priority: int) -> bytearray:
    return _rule(RTM_DELRULE, 0, item, priority)


def _rule(kind: int, flags: int, item: Rule, priority: int) -> bytearray:
    fields = {"family": AF_INET, "table": _short_table(item.table), "action": FR_ACT_TO_TBL}
    attrs: list[tuple[str, object]] = [
        ("FRA_PRIORITY", priority),
        ("FRA_FWMARK", item.fwmark),
        # Without a mask, the kernel takes mark 0 for "any mark".
        ("FRA_FWMASK", item.mask),
        ("FRA_TABLE", item.table),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    return _encode(fibmsg, kind, flags, fields, attrs)


def dump_rules() -> bytearray:
    """Request all rules; `read_rule` decodes the answers."""
    return _encode(fibmsg, RTM_GETRULE, NLM_F_DUMP, {"family": AF_INET}, [])


def read_rule(message: memoryview) -> KernelRule | None:
    """Decode RTM_NEWRULE or RTM_DELRULE. None if the rule is not about IPv4.

    ::

        struct nlmsghdr | struct fib_rule_hdr                                                     | attributes
        0               | 16      17       18       19   20     21, 22    23      24              | 28
                        | family, dst_len, src_len, tos, table, reserved, action, flags (u32)     |
    """
    family, _, _, _, table, _, _, _, _ = _RTMSG.unpack_from(message, HEADER.size)  # struct rtmsg has the same shape
    if family != AF_INET:
        return None
    found = dict(attributes(message[_RTMSG_END:]))
    return KernelRule(
        priority=read_number(found.get(_FRA_PRIORITY)),
        table=read_number(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        protocol=read_number(found.get(_FRA_PROTOCOL)),
        # The kernel omits both if they are 0.
        fwmark=read_number(found.get(_FRA_FWMARK)),
        mask=read_number(found.get(_FRA_FWMASK)),
    )


# -- parts of messages


def _short_table(table: int) -> int:
    """The table's number for the byte in the header; 0 (RT_TABLE_UNSPEC) if it fits into the attribute only."""
    return table if table < 256 else 0


def read_number(payload: memoryview | None, order: Literal["little", "big"] = sys.byteorder) -> int:
    """The value of an integer attribute, by default in host order; 0 if the attribute is absent."""
    return 0 if payload is None else int.from_bytes(payload, order)


def _encode(
    message_class: Any, kind: int, flags: int, fields: dict[str, int], attrs: Sequence[tuple[str, object]]
) -> bytearray:
    message = message_class()
    message.update(fields)
    message["attrs"] = attrs
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message.encode()
    return bytearray(message.data)


def _attribute(number: int, payload: bytes) -> bytes:
    """struct nlattr (length u16, type u16) and the padded payload, for what pyroute2 cannot encode."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, number) + payload + b"\0" * (-length % 4)


def _append(message: bytearray, number: int, payload: bytes) -> bytearray:
    """The message with one more attribute."""
    message += _attribute(number, payload)
    struct.pack_into("=I", message, 0, len(message))
    return message
