"""Limits the rate of wrong tokens. It has no clock: each caller passes the time, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

# A burst of attempts, then one attempt per interval.
ADDRESS_BURST: Final = 5
ADDRESS_INTERVAL_S: Final = 12.0
MAX_ADDRESSES: Final = 1024


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
    """Counts wrong tokens for each address.

    There is no limit for all addresses together. An attacker with many addresses could exhaust it, and the operator
    could then not log in from a new address. A token that can be guessed within the limits of many addresses is too
    short.
    """

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()  # the most recent failure last

    def __len__(self) -> int:
        """How many addresses are counted, at most MAX_ADDRESSES."""
        return len(self._addresses)

    def wait_s(self, address: str, now: float) -> float:
        """How long tokens from this address are refused unchecked, in seconds; 0: they are checked."""
        bucket = self._addresses.get(address)
        return 0.0 if bucket is None else bucket.wait_s(now)

    def failed(self, address: str, now: float) -> None:
        """The address has sent a wrong token."""
        bucket = self._addresses.pop(address, None)
        self._addresses[address] = bucket = bucket or _Bucket(ADDRESS_BURST, ADDRESS_INTERVAL_S)
        bucket.failed(now)
        oldest, least = next(iter(self._addresses.items()))
        if len(self._addresses) > MAX_ADDRESSES or least.is_clean(now):
            del self._addresses[oldest]
