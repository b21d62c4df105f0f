"""Finds the IPv6 addresses at which a NAT64 reaches IPv4 hosts (RFC 7050, RFC 6052). Pure.

A network without IPv4 may have a NAT64, and a name server that invents IPv6 addresses for names that have none
(DNS64). For an IPv4 address in a URL no name server is asked. So the prefix of the NAT64 is taken from the addresses
that the name server invents for WELL_KNOWN_NAME, whose IPv4 addresses are known to everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

WELL_KNOWN_NAME: Final = "ipv4only.arpa"
_WELL_KNOWN: Final = frozenset({IPv4Address("192.0.0.170").packed, IPv4Address("192.0.0.171").packed})

# Where an address has the bytes of the IPv4 address, by the bytes of the prefix. Byte 8 is always zero (RFC 6052
# section 2.2).
_POSITIONS: Final = {
    12: (12, 13, 14, 15),
    8: (9, 10, 11, 12),
    7: (7, 9, 10, 11),
    6: (6, 7, 9, 10),
    5: (5, 6, 7, 9),
    4: (4, 5, 6, 7),
}

Prefix: TypeAlias = bytes
"""4, 5, 6, 7, 8 or 12 bytes."""


def find_prefixes(addresses: Iterable[str]) -> list[Prefix]:
    """The prefixes of the network's NAT64s, from the IPv6 addresses of WELL_KNOWN_NAME. Empty if there is none.

    One address may be read with several prefixes. The right one is the one that fits most addresses, so it comes first.
    """
    found: Counter[Prefix] = Counter()
    for packed in {IPv6Address(address).packed for address in addresses}:
        for length, positions in _POSITIONS.items():
            if bytes(packed[at] for at in positions) in _WELL_KNOWN and (length == 12 or not packed[8]):
                found[packed[:length]] += 1
    return [prefix for prefix, _ in found.most_common()]


def synthesize(prefix: Prefix, address: str) -> str:
    """The IPv6 address at which the NAT64 with this prefix reaches an IPv4 address."""
    packed = bytearray(prefix.ljust(16, b"\0"))
    for at, byte in zip(_POSITIONS[len(prefix)], IPv4Address(address).packed, strict=True):
        packed[at] = byte
    return str(IPv6Address(bytes(packed)))
