"""Networks whose addresses no host on a network has, so that no packet may come from there or be routed there. Pure.

The kernel calls such addresses martians too. Not among them is 169.254.0.0/16: hosts have link-local addresses, and
some clouds and other VPNs use that network for addresses inside a tunnel.
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
    (IPv4Network("224.0.0.0/3"), "multicast and reserved (224.0.0.0/3)"),  # nothing but the two before
)

MARTIANS: Final = tuple(network for network, _ in _KINDS)


def martian_kind(network: IPv4Network) -> str | None:
    """What the addresses of ``network`` are, as a phrase that follows "is", if all of them are martians; else None.

    A network that holds other addresses too is none, such as a default route or half of one.
    """
    first = int(network.network_address)
    for martians, kind in _KINDS:
        if network.prefixlen >= martians.prefixlen and first & int(martians.netmask) == int(martians.network_address):
            return kind
    return None
