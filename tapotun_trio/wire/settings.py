"""What a server asks of a client's interface, in PARAMS (`params`) or in ``x-tun-conf`` (`tunconf`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..families import IPInterface, IPNetwork, host_network
from ..martians import is_hostless

# RFC 8200 section 5. The kernel takes IPv6 away from an interface with a smaller one.
MIN_IPV6_MTU_BYTES: Final = 1280

# A bridge has the smallest MTU of its ports, so a TAP interface below 1280 would take IPv6 away from the bridge. The
# largest is 65535 less the Ethernet header (drivers/net/tun.c).
TAP_MTU_BYTES: Final = (MIN_IPV6_MTU_BYTES, 65513)


@dataclass(frozen=True, slots=True)
class InterfaceSettings:
    """The settings of a client's interface.

    Attributes:
        mtu: the MTU in bytes.
        addresses: of both families; at least one, but maybe none on a TAP interface.
        routes: pushed by the server; of both families.
    """

    mtu: int
    addresses: tuple[IPInterface, ...]
    routes: tuple[IPNetwork, ...] = ()


def usable(addresses: Sequence[IPInterface]) -> bool:
    """Whether there is at least one address, none is there twice, and an interface can have each of them. One address
    with two prefix lengths is there twice: an interface has an address of IPv6 only once."""
    ips = [address.ip for address in addresses]
    return 0 < len(ips) == len(set(ips)) and not any(is_hostless(host_network(ip)) for ip in ips)
