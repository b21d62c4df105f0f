"""Limits the rate of wrong tokens. It has no clock: each caller passes the time, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

# A burst of attempts, then one attempt per interval.
ADDRESS_BURST: Final = 5
ADDRESS_INTERVAL_S: Final = 12.0
PROCESS_BURST: Final = 30
PROCESS_INTERVAL_S: Final = 2.0
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
    """Counts wrong tokens, for each address and in all.

    The total does not limit an address that has sent the right token before: an attack from many addresses must not
    lock out the operator or the metrics scraper.
    """

    def __init__(self) -> None:
        self._process = _Bucket(PROCESS_BURST, PROCESS_INTERVAL_S)
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()  # the most recent failure last
        self._known: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """How many entries it keeps, at most twice MAX_ADDRESSES: those that have failed, and that have succeeded."""
        return len(self._addresses) + len(self._known)

    def wait_s(self, address: str, now: float) -> float:
        """How long tokens from this address are refused unchecked, in seconds; 0: they are checked."""
        bucket = self._addresses.get(address)
        own_s = 0.0 if bucket is None else bucket.wait_s(now)
        return own_s if address in self._known else max(own_s, self._process.wait_s(now))

    def failed(self, address: str, now: float) -> None:
        """The address has sent a wrong token."""
        self._process.failed(now)
        bucket = self._addresses.pop(address, None)
        self._addresses[address] = bucket = bucket or _Bucket(ADDRESS_BURST, ADDRESS_INTERVAL_S)
        bucket.failed(now)
        oldest, least = next(iter(self._addresses.items()))
        if len(self._addresses) > MAX_ADDRESSES or least.is_clean(now):
            del self._addresses[oldest]

    def succeeded(self, address: str) -> None:
        """The address has sent the right token."""
        self._known.pop(address, None)
        self._known[address] = None
        if len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)
