"""Decides which pushed networks are left out, because this machine must not or need not route them into the tunnel.
Pure.

The rules:

- A pushed route to martians (`martians`) is left out, because no packet may be routed there.
- A directly attached network wins over a pushed one. So a pushed route is left out if its destination lies in a network
  to which another interface attaches this machine. The metrics do not matter. A wider pushed route stays, because the
  kernel prefers the longer prefix of the attached network anyway.
- The network of the tunnel's own address is pushed too. If it lies in an attached network, the interface keeps the
  address, but without the route to its network. The networks of other tunnels of this program do not count here,
  because two clients of one server are in the same network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import Final

from ..host.items import MAIN_TABLE, Address, AttachedNetwork, Item, Route
from ..martians import martian_kind
from ..status.model import LeftOutReason

_HOST: Final = 32


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One pushed network that is left out.

    Attributes:
        item: the pushed route, or the pushed address whose network is left out.
        attached: the attached network that contains it; None if it is left out for another reason.
    """

    item: Route | Address
    attached: AttachedNetwork | None = None

    @property
    def reason(self) -> LeftOutReason:
        if self.attached is None:
            return "martian"
        return "attached" if isinstance(self.item, Route) else "tunnel-network"

    @property
    def network(self) -> IPv4Network:
        return _network_of(self.item)


def networks_to_compare(items: Iterable[Item], pushed: Collection[Item]) -> frozenset[IPv4Network]:
    """Return the pushed networks that have to be compared with the attached ones."""
    found = (_as_pushed_network(item, pushed) for item in items)
    return frozenset(_network_of(item) for item in found if item is not None)


def leave_out(
    items: Sequence[Item], pushed: Collection[Item], attached: Sequence[AttachedNetwork]
) -> tuple[tuple[Item, ...], tuple[LeftOut, ...]]:
    """Return the items that remain, and the ones that are left out."""
    remaining: list[Item] = []
    left_out: list[LeftOut] = []
    for item in items:
        pushed_item = _as_pushed_network(item, pushed)
        around = None if pushed_item is None else _around(pushed_item, attached)
        if pushed_item is None:
            remaining.append(item)
        elif isinstance(pushed_item, Route) and martian_kind(pushed_item.network) is not None:
            left_out.append(LeftOut(pushed_item))
        elif around is None:
            remaining.append(item)
        else:
            left_out.append(LeftOut(pushed_item, around))
            if isinstance(pushed_item, Address):
                remaining.append(Address(IPv4Interface((pushed_item.interface.ip, _HOST))))
    return tuple(remaining), tuple(left_out)


def _as_pushed_network(item: Item, pushed: Collection[Item]) -> Route | Address | None:
    """Return the item if it routes a network that the server pushed; else None."""
    match item:
        case Address(interface) if interface.network.prefixlen < _HOST:
            return item
        case Route(table=table) if table == MAIN_TABLE and item in pushed:
            return item
        case _:
            return None


def _network_of(item: Route | Address) -> IPv4Network:
    return item.network if isinstance(item, Route) else item.interface.network


def _around(item: Route | Address, attached: Iterable[AttachedNetwork]) -> AttachedNetwork | None:
    """Return the attached network in which the item's network lies; None if there is none."""
    network = _network_of(item)
    for other in attached:
        if _contains(other, network) and not (other.is_tunnel and isinstance(item, Address)):
            return other
    return None


def _contains(attached: AttachedNetwork, network: IPv4Network) -> bool:
    outer = attached.network
    first = int(network.network_address) & int(outer.netmask)
    return network.prefixlen >= outer.prefixlen and first == int(outer.network_address)


def describe_left_out(left_out: LeftOut) -> str:
    """One line for the log."""
    network, attached = left_out.network, left_out.attached
    if attached is None:
        return f"pushed route {network} is left out: it is {martian_kind(network)}; remove it from the server's config"
    if isinstance(left_out.item, Route):
        return (
            f"pushed route {network} is left out while {attached.device} attaches this machine to {attached.network}, "
            "which wins"
        )
    return (
        f"address {left_out.item.interface}, which the server gave, is in network {attached.network}, to which "
        f"{attached.device} attaches this machine and which wins: the tunnel's network {network} cannot be reached; "
        "give the tunnel another network in the server's config"
    )


def describe_back(left_out: LeftOut) -> str:
    """Return a line for the log, which says that a network is used again instead of being left out."""
    assert left_out.attached is not None, "martians do not change"
    what = f"pushed route {left_out.network}" if isinstance(left_out.item, Route) else f"network {left_out.network}"
    attached = left_out.attached
    return f"{what} is used again: {attached.device} no longer attaches this machine to {attached.network}"
