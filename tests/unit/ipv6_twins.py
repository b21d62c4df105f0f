"""Makes the IPv6 twin of a test that is written with IPv4 addresses, so that both families are tested by one text.

Every IPv4 address ``a.b.c.d/n`` becomes the same 32 bits within fd00::/96, with the prefix length n + 96. So two twins
are equal, or one is inside of the other, exactly if that is so for their originals. 0.0.0.0/0 and special addresses
(loopback, multicast, broadcast) lose their meaning, so tests of those need texts of their own.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import pytest

_START: Final = int(IPv6Address("fd00::"))
_IPV4: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+)(/\d+)?|(?<=beyond /)(\d+)")


def as_ipv6(value: Any) -> Any:
    """A copy of JSON, of a text or of a tuple, in which every IPv4 address is replaced by its twin."""
    if isinstance(value, dict):
        return {key: as_ipv6(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_ipv6, value))
    return _IPV4.sub(_twin, value) if isinstance(value, str) else value


def _twin(match: re.Match[str]) -> str:
    if match[3]:
        return str(int(match[3]) + 96)
    address = IPv6Address(_START + int(IPv4Address(match[1])))
    return f"{address}/{int(match[2][1:]) + 96}" if match[2] else str(address)


def as_it_is(value: Any) -> Any:
    """The value itself: the IPv4 test beside its twin."""
    return value


both_families = pytest.mark.parametrize("family", [as_it_is, as_ipv6], ids=["ipv4", "ipv6"])
"""Runs a test twice; it applies ``family`` to what it is written with."""
