"""Networks whose addresses no host can have, so no packet may come from them or be routed to them. Pure.

The kernel calls such addresses martians too. 169.254.0.0/16 is not a martian: hosts have link-local addresses, and some
clouds and other VPNs use that network for addresses inside a tunnel.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Final

_KINDS: Final = (
    (IPv4Network("255.255.255.255/32"), "the broadcast address"),  # RFC 919
    (IPv4Network("0.0.0.0/8"), 'in "this network" (0.0.0.0/8)'),  # RFC 1122 section 3.2.1.3
    (IPv4Network("127.0.0.0/8"), "in the loopback network (127.0.0.0/8)"),  # RFC 1122 section 3.2.1.3
    (IPv4Network("224.0.0.0/4"), "multicast (224.0.0.0/4)"),  # RFC 5771
    (IPv4Network("240.0.0.0/4"), "reserved (240.0.0.0/4)"),  # RFC 1112 section 4
    (IPv4Network("224.0.0.0/3"), "multicast and reserved (224.0.0.0/3)"),  # the union of the two networks above
)

MARTIANS: Final = tuple(network for network, _ in _KINDS)

# The martians that no config can give to a host. (Linux treats 240.0.0.0/4 as unicast, and some operators use it.)
HOSTLESS: Final = tuple(map(IPv4Network, ("255.255.255.255/32", "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4")))


def is_hostless(network: IPv4Network) -> bool:
    """Whether no host can have an address of this network."""
    return any(network.subnet_of(hostless) for hostless in HOSTLESS)


def martian_kind(network: IPv4Network) -> str | None:
    """If all addresses of ``network`` are martians, return a phrase that follows "is"; else None.

    A network that also contains other addresses does not count, such as a default route or half of one.
    """
    first = int(network.network_address)
    for martians, kind in _KINDS:
        if network.prefixlen >= martians.prefixlen and first & int(martians.netmask) == int(martians.network_address):
            return kind
    return None
