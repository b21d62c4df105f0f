"""Addresses and networks of either family, IPv4 and IPv6. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
"""An address with the prefix length of its network."""
IPNetwork: TypeAlias = IPv4Network | IPv6Network


def host_network(address: IPAddress) -> IPNetwork:
    """The network of this one address: a /32 or a /128."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def is_host(network: IPNetwork) -> bool:
    """Whether it is the network of one address."""
    return network.prefixlen == network.max_prefixlen


def with_prefix(address: IPAddress, prefixlen: int) -> IPInterface:
    """The address with the prefix length of its network. Raises ValueError if the family has no such length."""
    return (
        IPv4Interface((address, prefixlen)) if isinstance(address, IPv4Address) else IPv6Interface((address, prefixlen))
    )


def network_of(address: IPAddress, prefixlen: int) -> IPNetwork:
    """The network of that prefix length in which the address lies."""
    return (IPv4Network if isinstance(address, IPv4Address) else IPv6Network)((address, prefixlen), strict=False)


def is_within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether ``inner`` is ``outer`` or a part of it. False if their families differ."""
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and int(inner.network_address) & int(outer.netmask) == int(outer.network_address)
    )


def stays_on_link(addresses: bytes) -> bool:
    """Whether a packet must not leave the link that it is on: its destination is multicast, or its source or its
    destination is link-local (RFC 4291 section 2.5.6).

    ``addresses``: source and destination of an IPv6 packet, 32 bytes; others are never on a link only.
    """
    return len(addresses) == 32 and (
        addresses[16] == 0xFF
        or (addresses[0] == 0xFE and addresses[1] & 0xC0 == 0x80)
        or (addresses[16] == 0xFE and addresses[17] & 0xC0 == 0x80)
    )


def only_ipv4(addresses: Iterable[IPAddress]) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses, in their order."""
    return tuple(each for each in addresses if isinstance(each, IPv4Address))
