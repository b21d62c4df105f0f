"""Longest-prefix match whose cost depends on how many prefix *lengths* are in use, not on how many prefixes."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Generic, TypeVar

_STEP: Final = 200  # entries, which take about half a millisecond

T = TypeVar("T")


class PrefixTable(Generic[T]):
    """An immutable map from networks to values. One dict per prefix length, asked longest first.

    Of a network that is given twice the first value answers, as in a linear scan.
    """

    __slots__ = ("_levels",)

    def __init__(self, entries: Iterable[tuple[IPv4Network, T]]) -> None:
        self._levels: list[tuple[int, dict[int, tuple[T, ...]]]] = []
        for _ in self._fill(entries):
            pass

    @classmethod
    def in_steps(cls, entries: Iterable[tuple[IPv4Network, T]]) -> Generator[None, None, PrefixTable[T]]:
        """Makes one, for a caller that has other things to do in between."""
        table = cls(())
        yield from table._fill(entries)
        return table

    def _fill(self, entries: Iterable[tuple[IPv4Network, T]]) -> Generator[None, None, None]:
        levels: dict[int, dict[int, tuple[T, ...]]] = {}
        for number, (network, value) in enumerate(entries, 1):
            level = levels.setdefault(network.prefixlen, {})
            # Tuples, of which most hold one number: the garbage collector does not have to look at them again.
            given = level.setdefault(int(network.network_address), (value,))
            if given[-1] != value:
                level[int(network.network_address)] = (*given, value)
            if number % _STEP == 0:
                yield
        self._levels = [
            (0xFFFFFFFF << (32 - length) & 0xFFFFFFFF, levels[length]) for length in sorted(levels, reverse=True)
        ]

    def lookup(self, address: int) -> T | None:
        """The value of the longest prefix that holds ``address`` (host order), or None."""
        for mask, level in self._levels:
            values = level.get(address & mask)
            if values is not None:
                return values[0]
        return None

    def lookup_other(self, address: int, unwanted: T) -> T | None:
        """As `lookup`, over all entries but those of ``unwanted``: a shorter prefix may answer."""
        for mask, level in self._levels:
            for value in level.get(address & mask, ()):
                if value != unwanted:
                    return value
        return None


def host_network(address: IPv4Address) -> IPv4Network:
    """The /32 of one address."""
    return IPv4Network((address, 32))
