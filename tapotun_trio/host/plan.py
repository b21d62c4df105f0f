"""What an interface wants from the kernel, as plain data.

A plan is a set of things that either stand or do not. Whoever programs it compares two plans and makes the
difference; the empty plan is therefore the undo of every plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TypeAlias

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
    """Everything one interface wants: its MTU in bytes, and the items in the order in which they are made."""

    mtu: int
    items: tuple[Item, ...] = ()
