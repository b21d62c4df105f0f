"""Networks whose addresses no host can have, so no packet may come from them or be routed to them. Pure.

The kernel calls such addresses martians too. 169.254.0.0/16 is not a martian: hosts have link-local addresses, and some
clouds and other VPNs use that network for addresses inside a tunnel. IPv6's link-local addresses are martians here,
because each link has them anyway, so they never have a meaning at the other end of a tunnel.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Final

from .families import IPNetwork, is_within

_KINDS: Final[tuple[tuple[IPNetwork, str], ...]] = (
    (IPv4Network("255.255.255.255/32"), "the broadcast address"),  # RFC 919
    (IPv4Network("0.0.0.0/8"), 'in "this network" (0.0.0.0/8)'),  # RFC 1122 section 3.2.1.3
    (IPv4Network("127.0.0.0/8"), "in the loopback network (127.0.0.0/8)"),  # RFC 1122 section 3.2.1.3
    (IPv4Network("224.0.0.0/4"), "multicast (224.0.0.0/4)"),  # RFC 5771
    (IPv4Network("240.0.0.0/4"), "reserved (240.0.0.0/4)"),  # RFC 1112 section 4
    (IPv4Network("224.0.0.0/3"), "multicast and reserved (224.0.0.0/3)"),  # the union of the two networks above
    (IPv6Network("::/128"), "the unspecified address"),  # RFC 4291 section 2.5.2
    (IPv6Network("::1/128"), "the loopback address"),  # RFC 4291 section 2.5.3
    (IPv6Network("::ffff:0:0/96"), "IPv4-mapped (::ffff:0:0/96)"),  # RFC 4291 section 2.5.5.2
    (IPv6Network("ff00::/8"), "multicast (ff00::/8)"),  # RFC 4291 section 2.7
    (IPv6Network("fe80::/10"), "link-local (fe80::/10)"),  # RFC 4291 section 2.5.6: no router forwards them
)

MARTIANS: Final = tuple(network for network, _ in _KINDS)

# The martians that no config can give to a host. (Linux treats 240.0.0.0/4 as unicast, and some operators use it.)
HOSTLESS: Final[tuple[IPNetwork, ...]] = (
    *map(IPv4Network, ("255.255.255.255/32", "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4")),
    *map(IPv6Network, ("::/128", "::1/128", "::ffff:0:0/96", "ff00::/8", "fe80::/10")),
)


def is_hostless(network: IPNetwork) -> bool:
    """Whether no host can have an address of this network."""
    return any(is_within(network, hostless) for hostless in HOSTLESS)


def martian_kind(network: IPNetwork) -> str | None:
    """If all addresses of ``network`` are martians, return a phrase that follows "is"; else None.

    A network that also contains other addresses does not count, such as a default route or half of one.
    """
    return next((kind for martians, kind in _KINDS if is_within(network, martians)), None)
