"""Longest-prefix match. Its cost depends on the number of prefix *lengths* in use, not on the number of prefixes."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Final, Generic, TypeVar

from ..families import IPNetwork

_STEP: Final = 200  # entries between two yields; they take about half a millisecond

T = TypeVar("T")


class PrefixTable(Generic[T]):
    """An immutable map from networks of one family to values.

    It has one dict per prefix length, which are searched from the longest to the shortest.

    If a network is given twice, the first value counts, as in a linear scan.
    """

    __slots__ = ("_levels",)

    def __init__(self, entries: Iterable[tuple[IPNetwork, T]]) -> None:
        self._levels: list[tuple[int, dict[int, tuple[T, ...]]]] = []
        for _ in self._fill(entries):
            pass

    @classmethod
    def in_steps(cls, entries: Iterable[tuple[IPNetwork, T]]) -> Generator[None, None, PrefixTable[T]]:
        """Build a table in steps, so that the caller can do other work in between."""
        table = cls(())
        yield from table._fill(entries)
        return table

    def _fill(self, entries: Iterable[tuple[IPNetwork, T]]) -> Generator[None, None, None]:
        levels: dict[int, tuple[int, dict[int, tuple[T, ...]]]] = {}
        for number, (network, value) in enumerate(entries, 1):
            if network.prefixlen not in levels:
                levels[network.prefixlen] = int(network.netmask), {}
            level = levels[network.prefixlen][1]
            # Tuples, because the garbage collector stops tracking those that hold numbers only.
            values = level.setdefault(int(network.network_address), (value,))
            if values[-1] != value:
                level[int(network.network_address)] = (*values, value)
            if number % _STEP == 0:
                yield
        self._levels = [levels[length] for length in sorted(levels, reverse=True)]

    def lookup(self, address: int) -> T | None:
        """The value of the longest prefix that contains ``address`` (in host byte order), or None."""
        for mask, level in self._levels:
            values = level.get(address & mask)
            if values is not None:
                return values[0]
        return None

    def lookup_other(self, address: int, unwanted: T) -> T | None:
        """As `lookup`, but ignores entries with the value ``unwanted``, so the match may be a shorter prefix."""
        for mask, level in self._levels:
            for value in level.get(address & mask, ()):
                if value != unwanted:
                    return value
        return None
