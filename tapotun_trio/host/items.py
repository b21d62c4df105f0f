"""The desired state of the kernel for an interface, as plain data.

A desired state is a set of items that either are in the kernel or are not. The reconciler compares two states and
applies the difference, so applying the empty state undoes every other state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..errors import HostError, MissingBridgeError, ShortageError
from ..families import IPAddress, IPInterface, IPNetwork

MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h
LOCAL_TABLE = 255  # RT_TABLE_LOCAL
MAIN_METRICS: Final[Mapping[int, int]] = {4: 0, 6: 1}
"""The metric of our routes in the main table, by IP version: the best that there is, so that ours is either used or
refused. The kernel takes an IPv6 metric of 0 as 1024, and gives its connected routes 256."""
CONNECTED_METRICS: Final[Mapping[int, int]] = {4: 0, 6: 256}
"""The metrics of the kernel's connected routes: IP6_RT_PRIO_ADDRCONF, net/ipv6_route.h."""
FULL_MASK = 0xFFFF_FFFF  # compares all bits of a fwmark


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix on the interface. The kernel adds the connected route itself."""

    interface: IPInterface


@dataclass(frozen=True, slots=True)
class ConnectedRoute:
    """The connected route of an address: the kernel adds it together with the address. It is never part of a desired
    state. It becomes an item only when another program has removed the route but left the address."""

    interface: IPInterface


RouteKey: TypeAlias = tuple[int, int, int, int]
"""What identifies a route of one interface: IP version, destination, prefix length, table."""


@dataclass(frozen=True, slots=True)
class Route:
    """``network`` goes out through the interface, with no gateway."""

    network: IPNetwork
    table: int = MAIN_TABLE

    @property
    def key(self) -> RouteKey:
        network = self.network
        return network.version, int(network.network_address), network.prefixlen, self.table


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets of IP ``version`` whose fwmark equals ``fwmark`` in the bits of ``mask`` are looked up in ``table`` (all
    uint32). The rule outlives the interface unless it is removed."""

    fwmark: int
    table: int
    mask: int = FULL_MASK
    version: int = 4

    def matches(self, mark: int) -> bool:
        """Whether the kernel applies this rule to packets with this fwmark (fib_rule_match)."""
        return (mark ^ self.fwmark) & self.mask == 0

    def overlaps(self, other: Rule) -> bool:
        """Whether there is a packet that both rules match."""
        return self.version == other.version and (self.fwmark ^ other.fwmark) & self.mask & other.mask == 0

    def __str__(self) -> str:
        mask = "" if self.mask == FULL_MASK else f"/{self.mask:#x}"
        mark = f"{self.fwmark:#x}" if mask else str(self.fwmark)
        return f"{'IPv6 ' if self.version == 6 else ''}rule fwmark {mark}{mask} lookup {self.table}"


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route to one address that bypasses the interface. Its prefix is the longest possible, so it wins.

    The route outlives the interface unless it is removed, because its device is not ours.

    Attributes:
        address: the destination.
        index: the index of the device through which the route leads.
        gateway: the next hop; None if the address is directly reachable on that device.
        source, metrics: copied from the route that ``address`` would take without our interface; ``metrics`` is the
            payload of RTA_METRICS as the kernel gave it.
    """

    address: IPAddress
    index: int
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    metrics: bytes = b""
    table: int = MAIN_TABLE
    device: str = field(default="", compare=False)
    """The device's name, for people."""

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway is not None else ""
        return f"{self.address}{via} dev {self.device}"


@dataclass(frozen=True, slots=True)
class OwnBridge:
    """A bridge of ours: it is made before its port, is up, and is removed at the end. A killed run leaves it behind;
    the next one takes it over, and knows it by its ifalias."""

    name: str


@dataclass(frozen=True, slots=True)
class BridgePort:
    """The interface is a port of this bridge, with these options (linux/if_link.h, IFLA_BRPORT_*)."""

    bridge: str
    isolated: bool = False
    learning: bool = True
    bpdu_guard: bool = False


@dataclass(frozen=True, slots=True)
class BridgeAddress:
    """An address on the bridge, because the port of a bridge can use none of its own."""

    bridge: str
    interface: IPInterface


Item: TypeAlias = Address | ConnectedRoute | Route | Rule | HostRoute | OwnBridge | BridgePort | BridgeAddress


def version_of(item: Item) -> int:
    """The IP version; 0: the item has none."""
    match item:
        case OwnBridge() | BridgePort():
            return 0
        case BridgeAddress(_, interface):
            return interface.version
        case Address(interface) | ConnectedRoute(interface):
            return interface.version
        case Route(network):
            return network.version
        case Rule(version=version):
            return version
        case HostRoute(address):
            return address.version


def address_of(item: Item) -> IPInterface | None:
    """The address that the item gives this machine, on the interface or on its bridge; None: it gives none."""
    match item:
        case Address(interface) | BridgeAddress(_, interface):
            return interface
        case _:
            return None


@dataclass(frozen=True, slots=True)
class NextHop:
    """How the kernel reaches an address if one interface of ours and its host routes are ignored.

    Attributes:
        network, table, metric: the values of the route that the kernel uses.
        index, device: the index and the name of the device.
        gateway, source, metrics: as in `HostRoute`.
        above_main: the table is looked up before the main table, so no route of the main table can change the result.
        usable: a host route can copy it.
        captured_by: the route (network and table) that at present leads the address into our interface.
    """

    network: IPNetwork
    table: int = MAIN_TABLE
    metric: int = 0
    index: int = 0
    device: str = ""
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    metrics: bytes = b""
    above_main: bool = False
    usable: bool = True
    captured_by: tuple[IPNetwork, int] | None = None


@dataclass(frozen=True, slots=True)
class LinkState:
    """The current state of an interface of ours in the kernel.

    Attributes:
        up: the administrative state.
        mtu: in bytes.
        is_strict: strict reverse path filtering (rp_filter 1) applies to packets from the interface.
        blocked_reason: why its bridge passes nothing on between it and the other ports, and what to do about it. None:
            the bridge passes frames on, or there is no bridge, or nothing has to be done: a spanning tree blocks the
            port, or the bridge is down and an interface of this program sets it up again.
    """

    name: str
    up: bool
    mtu: int
    is_strict: bool = False
    blocked_reason: str | None = None


@dataclass(frozen=True, slots=True)
class CurrentRoute:
    """How the kernel currently sends packets to an address.

    Attributes:
        index: the index of the outgoing device.
        gateway: the next hop; None if the address is directly reachable on that device.
        source: the local address that a new connection would have. None for IPv6, where the kernel chooses among
            several temporary addresses.
    """

    index: int
    gateway: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class AttachedNetwork:
    """A network that this machine reaches without a gateway, through an interface other than ours.

    Attributes:
        device: the name of that interface.
        is_tunnel: the interface is, or may be, one of this program, so the network is that of a tunnel.
    """

    network: IPNetwork
    device: str
    is_tunnel: bool = False


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything that one interface wants: its MTU in bytes, and the items in the order in which they are added.

    ``pushed``: the items that the other end asked for. The interface also works without them.
    """

    mtu: int
    items: tuple[Item, ...] = ()
    pushed: frozenset[Item] = frozenset()


class ItemsRefused(HostError):
    """The kernel refused some items; all others were added. The text is that of the first refusal.

    Attributes:
        refused: the refused items, each with the kernel's reason and what to do about it.
        shortage: the first refusal that is due to a temporary shortage of this machine; None if there is none.
        missing_bridge: the first refusal, if each of them is due to a bridge that does not exist; otherwise None.
        lacks_ipv6: an item was refused because IPv6 is switched off (disable_ipv6).
    """

    def __init__(
        self,
        refused: Mapping[Item, str],
        shortage: ShortageError | None = None,
        missing_bridge: MissingBridgeError | None = None,
        *,
        lacks_ipv6: bool = False,
    ) -> None:
        super().__init__(next(iter(refused.values())))
        self.refused = dict(refused)
        self.shortage = shortage
        self.missing_bridge = missing_bridge
        self.lacks_ipv6 = lacks_ipv6
