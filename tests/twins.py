"""Makes the IPv6 twin of a test that is written with IPv4 addresses, so that both families are tested by one text.

Every IPv4 address ``a.b.c.d/n`` becomes the same 32 bits within fd00::/96, with the prefix length n + 96. So two twins
are equal, or one is inside of the other, exactly if that is so for their originals. Special addresses (loopback,
multicast, broadcast) lose their meaning, so tests of those need texts of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, TypeAlias

import pytest

from tapotun_trio.families import IPAddress

FAMILIES: Final = (4, 6)
_START: Final = IPv6Address("fd00::")
_MORE_BITS: Final = 96  # an IPv6 address is this much longer
_IPV4: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+)(/\d+)?|(?<=beyond /)(\d+)")


Family: TypeAlias = Callable[[Any], Any]
"""What `both_families` hands to a test: makes the text, tuple or JSON of this family from one of IPv4."""


def as_ipv6(value: Any) -> Any:
    """A copy of JSON, of a text or of a tuple, in which every IPv4 address is replaced by its twin."""
    if isinstance(value, dict):
        return {key: as_ipv6(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_ipv6, value))
    return _IPV4.sub(_replace, value) if isinstance(value, str) else value


def _replace(match: re.Match[str]) -> str:
    if match[3]:
        return str(int(match[3]) + _MORE_BITS)
    address = _START + int(IPv4Address(match[1]))
    return f"{address}/{int(match[2][1:]) + _MORE_BITS}" if match[2] else str(address)


def as_it_is(value: Any) -> Any:
    """The value itself: the IPv4 test beside its twin."""
    return value


both_families = pytest.mark.parametrize("family", [as_it_is, as_ipv6], ids=["ipv4", "ipv6"])
"""Runs a test twice; it applies ``family`` to what it is written with."""


def twin(text: str, version: int = 6) -> str:
    """The twin of an address, an address with prefix length or a network; but everything (0.0.0.0/0) becomes ::/0.

    ``version`` 4: the text itself.
    """
    if version == 4:
        return text
    return "::/0" if text == "0.0.0.0/0" else str(as_ipv6(text))


def twin_of(address: IPv4Address, version: int = 6) -> IPAddress:
    """As `twin`, for an address."""
    return address if version == 4 else _START + int(address)
