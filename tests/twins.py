"""The IPv6 twins of IPv4 addresses, for tests that run in both families: 10.1.0.0/24 becomes fd00::a01:0/120."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tapotun_trio.families import IPAddress

PREFIX: Final = IPv6Address("fd00::")
_MORE_BITS: Final = 96  # an IPv6 address is this much longer

FAMILIES: Final = (4, 6)


def twin(text: str, version: int = 6) -> str:
    """The twin of an address, an address with prefix length or a network. Everything (0.0.0.0/0) becomes ::/0.

    ``version`` 4: the text itself.
    """
    if version == 4:
        return text
    start, slash, length = text.partition("/")
    if slash and int(length) == 0 and start == "0.0.0.0":
        return "::/0"
    address = PREFIX + int(IPv4Address(start))
    return f"{address}/{int(length) + _MORE_BITS}" if slash else str(address)


def twin_of(address: IPv4Address, version: int = 6) -> IPAddress:
    """As `twin`, for an address."""
    return address if version == 4 else PREFIX + int(address)
