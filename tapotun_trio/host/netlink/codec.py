"""Items of a plan and the rtnetlink messages for them: encoding and decoding, no I/O.

Follows linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h and linux/fib_rules.h, through pyroute2's message
classes, which this module alone knows. Everything here is IPv4; family and lengths say so in every message.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network
from typing import Any, Final, Literal

from ..items import Address, Route, Rule
from ._pyroute2 import fibmsg, ifaddrmsg, ifinfmsg, rtmsg
from .socket import attributes

PROTOCOL: Final = 116
"""Ours, in rtm_protocol, FRA_PROTOCOL and IFA_PROTO: what we made and may remove. It is 't'; rt_protos of
iproute2 has no such number. ``ip route show table all proto 116`` lists the routes of ours that stand."""

# linux/netlink.h
_REQUEST: Final = 0x01
_DUMP: Final = 0x300
_REPLACE: Final = 0x100
_EXCL: Final = 0x200
_CREATE: Final = 0x400

# linux/rtnetlink.h
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_RTM_GETRULE: Final = 34
_RTN_UNICAST: Final = 1
_RT_SCOPE_LINK: Final = 253
_RT_SCOPE_NOWHERE: Final = 255
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3

_IFA_PROTO: Final = 11  # linux/if_addr.h
_IFF_UP: Final = 1  # linux/if.h
_FR_ACT_TO_TBL: Final = 1  # linux/fib_rules.h
_WHOLE_MARK: Final = 0xFFFF_FFFF

# linux/if_link.h and linux/ip.h, for IFLA_AF_SPEC
_IFLA_AF_SPEC: Final = 26
_IFLA_INET_CONF: Final = 1
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_IN6_ADDR_GEN_MODE_NONE: Final = 1
_IPV4_DEVCONF_RP_FILTER: Final = 8
_IPV4_DEVCONF_PROMOTE_SECONDARIES: Final = 20

_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_MULTIPATH: Final = 9
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RTA_ENCAP: Final = 22
_RTA_NH_ID: Final = 30
_RTA_NOT_PLAIN: Final = frozenset({_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP, _RTA_NH_ID})

_DST_LENGTH_OFFSET: Final = 17  # of rtm_dst_len in a route message, see `read_route`
_RTMSG: Final = struct.Struct("BxBBBBB")  # from there: prefix length, tos, table, protocol, scope, type
_RTMSG_END: Final = 28
_DST_OFFSET: Final = _RTMSG_END + 4  # of the first attribute's payload


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route in the kernel. ``index`` is its interface's, 0 if it has none or several (multipath)."""

    network: IPv4Network
    table: int
    protocol: int
    metric: int
    index: int
    tos: int
    plain: bool
    """Unicast with link scope and no gateway, as ours are."""

    def serves(self, route: Route, index: int) -> bool:
        """Whether this is, but for its metric, what `route` asks for through that interface."""
        return self.plain and (self.network, self.table, self.index) == (route.network, route.table, index)


@dataclass(frozen=True, slots=True)
class KernelRule:
    """A rule in the kernel. ``fwmark`` is None where the rule looks at no mark, or at a part of it."""

    priority: int
    table: int
    protocol: int
    fwmark: int | None


def get_link(*, name: str = "", index: int = 0) -> bytearray:
    """By name, or by index."""
    attrs: list[tuple[str, object]] = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    if name:
        attrs.append(("IFLA_IFNAME", name))
    return _encode(ifinfmsg, _RTM_GETLINK, 0, {"index": index}, attrs)


def read_link(data: bytes) -> Link:
    message = _decode(ifinfmsg, data)
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & _IFF_UP),
    )


def set_link_up(index: int, mtu: int) -> bytearray:
    fields = {"index": index, "flags": _IFF_UP, "change": _IFF_UP}
    return _encode(ifinfmsg, _RTM_NEWLINK, 0, fields, [("IFLA_MTU", mtu)])


def set_ipv6_silent(index: int) -> bytearray:
    """No automatic link-local address, hence no duplicate detection, router solicitations or group reports.

    The kernel refuses with EAFNOSUPPORT where the interface has no IPv6: switched off, or the MTU below 1280.
    """
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
    return _with_af_spec(index, _attribute(socket.AF_INET6, mode))


def set_promote_secondaries(index: int) -> bytearray:
    """Without it, removing an address removes every later one of the same subnet too (devinet.c)."""
    return _set_ipv4_option(index, _IPV4_DEVCONF_PROMOTE_SECONDARIES, 1)


def set_rp_filter(index: int, mode: int) -> bytearray:
    """``mode`` as in ip-sysctl: 0 off, 1 strict, 2 loose. This interface's own; "all" may be higher."""
    return _set_ipv4_option(index, _IPV4_DEVCONF_RP_FILTER, mode)


def add_address(index: int, item: Address) -> bytearray:
    """Idempotent: replaces the same address with the same prefix."""
    return _address(_RTM_NEWADDR, _CREATE | _REPLACE, index, item)


def remove_address(index: int, item: Address) -> bytearray:
    return _address(_RTM_DELADDR, 0, index, item)


def add_routes(index: int, routes: Iterable[Route], metric: int) -> Iterator[bytearray]:
    """Refused with EEXIST if anybody's route to the same network stands in the table with that metric."""
    return _routes(_RTM_NEWROUTE, _CREATE | _EXCL, index, routes, metric)


def remove_routes(index: int, routes: Iterable[Route]) -> Iterator[bytearray]:
    """Of any metric, but only ours through that interface."""
    return _routes(_RTM_DELROUTE, 0, index, routes, 0)


def get_routes(table: int, protocol: int = 0) -> bytearray:
    """Of one table; of any protocol if it is 0. A kernel before 4.20 sends all tables: filter again."""
    fields = {"family": socket.AF_INET, "proto": protocol}
    return _encode(rtmsg, _RTM_GETROUTE, _DUMP, fields, [("RTA_TABLE", table)])


def read_route(data: memoryview) -> KernelRoute:
    """By hand: 4 us instead of pyroute2's 80, as a table may have a million routes.

    ::

        struct nlmsghdr | struct rtmsg                                                | attributes
        0               | 16      17      18  19   20    21       22     23   24      | 28
                        | family, prefix, src tos, table, protocol scope, type, flags |
    """
    prefix, tos, table, protocol, scope, type_ = _RTMSG.unpack_from(data, _DST_LENGTH_OFFSET)
    found = dict(attributes(data[_RTMSG_END:]))
    return KernelRoute(
        network=IPv4Network((_number(found.get(_RTA_DST), "big"), prefix)),
        table=_number(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        protocol=protocol,
        metric=_number(found.get(_RTA_PRIORITY)),
        index=_number(found.get(_RTA_OIF)),
        tos=tos,
        plain=(type_, scope) == (_RTN_UNICAST, _RT_SCOPE_LINK) and not _RTA_NOT_PLAIN & found.keys(),
    )


def _number(payload: memoryview | None, order: Literal["little", "big"] = sys.byteorder) -> int:
    """An integer attribute; 0 if it is absent."""
    return 0 if payload is None else int.from_bytes(payload, order)


def add_rule(item: Rule, priority: int) -> bytearray:
    """Refused with EEXIST if the very same rule stands."""
    return _rule(_RTM_NEWRULE, _CREATE | _EXCL, item, priority)


def remove_rule(item: Rule, priority: int) -> bytearray:
    return _rule(_RTM_DELRULE, 0, item, priority)


def get_rules() -> bytearray:
    return _encode(fibmsg, _RTM_GETRULE, _DUMP, {"family": socket.AF_INET}, [])


def read_rule(data: memoryview) -> KernelRule:
    message = _decode(fibmsg, bytes(data))
    mask = message.get_attr("FRA_FWMASK") or 0
    return KernelRule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=_table(message, "FRA_TABLE"),
        protocol=message.get_attr("FRA_PROTOCOL") or 0,
        # The kernel leaves the mark out where it is 0.
        fwmark=(message.get_attr("FRA_FWMARK") or 0) if mask == _WHOLE_MARK else None,
    )


def _address(kind: int, flags: int, index: int, item: Address) -> bytearray:
    address = str(item.interface.ip)
    fields = {"family": socket.AF_INET, "prefixlen": item.interface.network.prefixlen, "index": index}
    attrs: list[tuple[str, object]] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    message = _encode(ifaddrmsg, kind, flags, fields, attrs)
    if kind == _RTM_NEWADDR:  # Linux 5.18, older ones skip it; pyroute2 has no name for it before 0.9.3
        _append(message, _attribute(_IFA_PROTO, bytes([PROTOCOL])))
    return message


def _routes(kind: int, flags: int, index: int, routes: Iterable[Route], metric: int) -> Iterator[bytearray]:
    """pyroute2 takes 80 us for a message. Most of a long list differ in nothing but their destination, so one
    of each shape is encoded, and the others are copies with another destination."""
    for route in routes:
        message = bytearray(_route_shape(kind, flags, index, route.network.prefixlen, route.table, metric))
        message[_DST_OFFSET : _DST_OFFSET + 4] = route.network.network_address.packed
        yield message


@lru_cache(maxsize=64)
def _route_shape(kind: int, flags: int, index: int, prefix: int, table: int, metric: int) -> bytes:
    """The message for a route to 0.0.0.0/prefix."""
    fields = {
        "family": socket.AF_INET,
        "dst_len": prefix,
        "table": _short_table(table),
        "proto": PROTOCOL,
        "type": _RTN_UNICAST,
        # To a removal, "nowhere" is every scope.
        "scope": _RT_SCOPE_LINK if kind == _RTM_NEWROUTE else _RT_SCOPE_NOWHERE,
    }
    attrs: list[tuple[str, object]] = [
        ("RTA_DST", "0.0.0.0"),  # the first, for `_DST_OFFSET`
        ("RTA_OIF", index),
        ("RTA_TABLE", table),
    ]
    if metric:
        attrs.append(("RTA_PRIORITY", metric))
    return bytes(_encode(rtmsg, kind, flags, fields, attrs))


def _rule(kind: int, flags: int, item: Rule, priority: int) -> bytearray:
    fields = {"family": socket.AF_INET, "table": _short_table(item.table), "action": _FR_ACT_TO_TBL}
    attrs: list[tuple[str, object]] = [
        ("FRA_PRIORITY", priority),
        ("FRA_FWMARK", item.fwmark),
        # Without a mask, the kernel takes mark 0 for "any mark".
        ("FRA_FWMASK", _WHOLE_MARK),
        ("FRA_TABLE", item.table),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    return _encode(fibmsg, kind, flags, fields, attrs)


def _short_table(table: int) -> int:
    """For the header's byte; a larger table stands in the attribute alone (RT_TABLE_UNSPEC says so)."""
    return table if table < 256 else 0


def _table(message: Any, attribute: str) -> int:
    table: int | None = message.get_attr(attribute)
    return message["table"] if table is None else table


def _set_ipv4_option(index: int, option: int, value: int) -> bytearray:
    conf = _attribute(_IFLA_INET_CONF, _attribute(option, struct.pack("=I", value)))
    return _with_af_spec(index, _attribute(socket.AF_INET, conf))


def _with_af_spec(index: int, family: bytes) -> bytearray:
    # By hand: pyroute2 knows IFLA_INET_CONF as the kernel dumps it, an array, and not as it takes it, nested.
    message = _encode(ifinfmsg, _RTM_NEWLINK, 0, {"index": index}, [])
    _append(message, _attribute(_IFLA_AF_SPEC, family))
    return message


def _attribute(kind: int, payload: bytes) -> bytes:
    """struct nlattr and its payload, padded: length u16, type u16, payload."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _append(message: bytearray, attribute: bytes) -> None:
    message += attribute
    struct.pack_into("=I", message, 0, len(message))


def _encode(
    kind: Any, number: int, flags: int, fields: dict[str, int], attrs: Sequence[tuple[str, object]]
) -> bytearray:
    message = kind()
    message.update(fields)
    message["attrs"] = attrs
    message["header"]["type"] = number
    message["header"]["flags"] = _REQUEST | flags
    message.encode()
    return bytearray(message.data)


def _decode(kind: Any, data: bytes) -> Any:
    message = kind(data)
    message.decode()
    return message
