"""Limits the rate of wrong tokens. It has no clock: each caller passes the time, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, IPv6Network
from typing import Final

# A burst of attempts, then one attempt per interval.
ADDRESS_BURST: Final = 5
ADDRESS_INTERVAL_S: Final = 12.0
MAX_ADDRESSES: Final = 1024

# IPv4 addresses of machines behind a stateless translator (RFC 6052 section 2.1)
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")


class _Bucket:
    """A rate limit, as the moment when all failures will have expired (the generic cell rate algorithm)."""

    __slots__ = ("_burst", "_clean_at", "_interval_s")

    def __init__(self, burst: int, interval_s: float) -> None:
        self._burst = burst
        self._interval_s = interval_s
        self._clean_at = 0.0

    def failed(self, now: float) -> None:
        limit = now + self._burst * self._interval_s
        self._clean_at = min(max(self._clean_at, now) + self._interval_s, limit)

    def wait_s(self, now: float) -> float:
        return max(0.0, self._clean_at - now - (self._burst - 1) * self._interval_s)

    def is_clean(self, now: float) -> bool:
        return self._clean_at <= now


class Limiter:
    """Counts wrong tokens for each address; of IPv6, for each network with a prefix of 64 bits.

    A machine may have all addresses of such a network (RFC 7934), so a limit for each would limit nothing. Each link
    has a link-local network of its own, which its zone names.

    There is no limit for all addresses together. An attacker with many addresses could exhaust it, and the operator
    could then not log in from a new address. A token that can be guessed within the limits of many addresses is too
    short.
    """

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()  # the most recent failure last

    def __len__(self) -> int:
        """How many addresses and networks are counted, at most MAX_ADDRESSES."""
        return len(self._addresses)

    def wait_s(self, address: str, now: float) -> float:
        """How long tokens from this address are refused unchecked, in seconds; 0: they are checked."""
        bucket = self._addresses.get(_origin(address))
        return 0.0 if bucket is None else bucket.wait_s(now)

    def failed(self, address: str, now: float) -> None:
        """The address has sent a wrong token."""
        origin = _origin(address)
        bucket = self._addresses.pop(origin, None)
        self._addresses[origin] = bucket = bucket or _Bucket(ADDRESS_BURST, ADDRESS_INTERVAL_S)
        bucket.failed(now)
        oldest, least = next(iter(self._addresses.items()))
        if len(self._addresses) > MAX_ADDRESSES or least.is_clean(now):
            del self._addresses[oldest]


def _origin(address: str) -> str:
    """The address, or the network of an IPv6 one, whose wrong tokens are counted together."""
    try:
        ipv6 = IPv6Address(address)
    except ValueError:
        return address
    if ipv6.ipv4_mapped is not None:
        return str(ipv6.ipv4_mapped)
    if ipv6 in _TRANSLATED:
        return address
    network = str(IPv6Network((int(ipv6), 64), strict=False))
    return network if ipv6.scope_id is None else f"{network}%{ipv6.scope_id}"
