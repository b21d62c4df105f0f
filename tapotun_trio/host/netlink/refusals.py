"""Says for people which item the kernel refused, why, and what to do about it."""

from __future__ import annotations

import errno
from typing import Final

from ...errors import HostError, shortage_of
from ..ipv6 import START_WITH_IPV6, where_switched_off
from ..items import (
    MAIN_TABLE,
    Address,
    BridgeAddress,
    BridgePort,
    ConnectedRoute,
    HostRoute,
    Item,
    OwnBridge,
    Route,
    Rule,
    version_of,
)
from ..process.privileges import missing_net_admin
from .link_codec import Link
from .socket import Refusal

IPV6_MIN_MTU: Final = 1280  # in bytes; below it, the kernel gives an interface no IPv6 (linux/ipv6.h)

_TRANSIENT: Final = frozenset({errno.ENOMEM, errno.ENOBUFS})  # the same request may succeed later


def describe(item: Item, name: str) -> str:
    match item:
        case Address(interface):
            return f"address {interface} dev {name}"
        case BridgeAddress(bridge, interface):
            return f"address {interface} dev {bridge}"
        case OwnBridge(bridge):
            return f"bridge {bridge}"
        case BridgePort(bridge):
            return f"interface {name} as a port of bridge {bridge}"
        case ConnectedRoute(interface):
            return f"route {interface.network} dev {name}"
        case Route(network, table):
            return f"route {network} dev {name}" + (f" table {table}" if table != MAIN_TABLE else "")
        case Rule():
            return f"{item} of {name}"
        case HostRoute(table=table):
            return f"host route {item}" + (f" table {table}" if table != MAIN_TABLE else "") + f" past {name}"


def _ipv6_remedy(item: Item, link: Link, refusal: Refusal) -> str | None:
    """What to do if the interface has no IPv6; None: that is not the reason."""
    if version_of(item) != 6:
        return None
    if refusal.errno == errno.EACCES:
        where, command = where_switched_off(link.name)
        return f"IPv6 is switched off {where}: `{command}`, or remove IPv6 from the config"
    if refusal.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        return f"this machine has no IPv6: {START_WITH_IPV6}, or remove IPv6 from the config"
    if refusal.errno in (errno.EINVAL, errno.ENODEV) and link.mtu < IPV6_MIN_MTU:
        return f"the interface has no IPv6, as its MTU is {link.mtu} bytes: IPv6 needs {IPV6_MIN_MTU}"
    return None


class NoIPv6Error(HostError):
    """The kernel refused an item because IPv6 is switched off (disable_ipv6)."""


def refused_item(item: Item, link: Link, refusal: Refusal) -> HostError:
    what, remedy = describe(item, link.name), _ipv6_remedy(item, link, refusal)
    if refusal.errno != errno.EACCES or remedy is None:
        return refused(what, link.name, refusal, remedy)
    return NoIPv6Error(f"{what}: {refusal.text}; {remedy}")


def refused(what: str, name: str, refusal: Refusal, remedy: str | None = None) -> HostError:
    remedies = {
        errno.ENETDOWN: f"the interface is down: `ip link set {name} up`, and keep other programs from setting it down",
        errno.EINVAL: "this kernel does not support it: remove it from the config that asks for it",
        errno.ENODEV: "the interface is gone: another program deleted it",
    }
    if refusal.errno in _TRANSIENT:
        shortage = shortage_of(OSError(refusal.errno, refusal.text), what)
        assert shortage is not None
        return shortage
    if remedy is None:
        remedy = missing_net_admin() if refusal.errno == errno.EPERM else remedies.get(refusal.errno)
    return HostError(f"{what}: {refusal.text}" + (f"; {remedy}" if remedy else ""))
