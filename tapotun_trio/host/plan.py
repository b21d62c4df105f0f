"""What an interface wants from the kernel, as plain data.

A plan is a set of things that either stand or do not. Whoever programs it compares two plans and makes the
difference; the empty plan is therefore the undo of every plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TypeAlias

from ..errors import HostError, ShortageError

MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix on the interface. The kernel adds the connected route itself."""

    interface: IPv4Interface


@dataclass(frozen=True, slots=True)
class Route:
    """``network`` goes out through the interface, with no gateway.

    ``source`` is the preferred source address (RTA_PREFSRC) or None for the kernel's choice.
    """

    network: IPv4Network
    table: int = MAIN_TABLE
    source: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets with this fwmark are looked up in ``table`` (both uint32). Outlives the interface unless removed."""

    fwmark: int
    table: int


Item: TypeAlias = Address | Route | Rule


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one interface wants: its MTU in bytes, and the items in the order in which they are made.

    ``pushed``: those of the items that the other end asked for, and without which the interface works all the same.
    """

    mtu: int
    items: tuple[Item, ...] = ()
    pushed: frozenset[Item] = frozenset()


class ItemsRefused(HostError):
    """The kernel refused some items; all others were made. The text is that of the first one.

    Attributes:
        refused: each of them, with the kernel's reason and what to do about it.
        shortage: that of the first one that was refused for a shortage of this machine, which passes; None: none was.
    """

    def __init__(self, refused: Mapping[Item, str], shortage: ShortageError | None = None) -> None:
        super().__init__(next(iter(refused.values())))
        self.refused = dict(refused)
        self.shortage = shortage
