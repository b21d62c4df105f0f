"""What an interface wants from the kernel, as plain data.

A plan is a set of things that either stand or do not. Whoever programs it compares two plans and makes the
difference; the empty plan is therefore the undo of every plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from typing import TypeAlias

from ..errors import HostError, ShortageError

MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix on the interface. The kernel adds the connected route itself."""

    interface: IPv4Interface


@dataclass(frozen=True, slots=True)
class Route:
    """``network`` goes out through the interface, with no gateway."""

    network: IPv4Network
    table: int = MAIN_TABLE


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets with this fwmark are looked up in ``table`` (both uint32). Outlives the interface unless removed."""

    fwmark: int
    table: int


@dataclass(frozen=True, slots=True)
class HostRoute:
    """``address`` alone goes past the interface: out of the device with number ``index``, by ``gateway`` unless it is
    a neighbour. Longer than any other route, so it wins. It outlives the interface unless removed, as it leads
    through somebody else's device.

    ``source`` and ``metrics`` (the payload of RTA_METRICS, as the kernel gave it) are those of the route that
    ``address`` would take if the interface were not there.
    """

    address: IPv4Address
    index: int
    gateway: IPv4Address | IPv6Address | None = None
    source: IPv4Address | None = None
    metrics: bytes = b""
    table: int = MAIN_TABLE
    device: str = field(default="", compare=False)
    """The device's name, for people."""

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway is not None else ""
        return f"{self.address}{via} dev {self.device}"


Item: TypeAlias = Address | Route | Rule | HostRoute


@dataclass(frozen=True, slots=True)
class NextHop:
    """How the kernel reaches an address if one interface of ours and its host routes are left out.

    Attributes:
        network, table, metric: those of the route that it takes.
        index, device: the number and the name of the device.
        gateway, source, metrics: as in `HostRoute`.
        above_main: the table is looked up before the main one, so no route of the main table can change this way.
        usable: a host route can be made of it.
        captured_by: the route (network and table) that leads the address into our interface at present.
    """

    network: IPv4Network
    table: int = MAIN_TABLE
    metric: int = 0
    index: int = 0
    device: str = ""
    gateway: IPv4Address | IPv6Address | None = None
    source: IPv4Address | None = None
    metrics: bytes = b""
    above_main: bool = False
    usable: bool = True
    captured_by: tuple[IPv4Network, int] | None = None


@dataclass(frozen=True, slots=True)
class DesiredState:
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
