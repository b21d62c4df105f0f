"""Decides which pushed networks are left out, because this machine must not or need not route them into the tunnel.
Pure.

The rules:

- A pushed route to martians (`martians`) is left out, because no packet may be routed there.
- A directly attached network wins over a pushed one. So a pushed route is left out if its destination lies in a network
  to which another interface attaches this machine. The metrics do not matter. A wider pushed route stays, because the
  kernel prefers the longer prefix of the attached network anyway.
- The network of the tunnel's own address is pushed too. If it lies in an attached network, the interface keeps the
  address, but without the route to its network. If an attached network lies in it, the kernel prefers that one, so this
  part of the tunnel's network cannot be reached. That is reported.
- If the tunnel's address itself lies in an attached network, a machine there may have the same address. The interface
  keeps the address, since the tunnel is of no use without it, and so that machine cannot be reached. That is reported.
- For these two, the networks of other tunnels of this program do not count, because two clients of one server are in
  the same network.
- An address on the bridge of a TAP interface is treated as one on the interface. If it lies in another network of that
  bridge, it keeps no route of its own either. Nothing is reported then: the tunnel is a part of the same segment, so
  everything of that network is reached through the bridge, on whichever side of the tunnel it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from ..families import IPNetwork, host_network, is_host, is_within, with_prefix
from ..host.items import MAIN_TABLE, Address, AttachedNetwork, BridgeAddress, Item, Route
from ..martians import martian_kind
from ..status.model import LeftOutReason


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One pushed network, or a part of it, that is left out.

    Attributes:
        reason: see docs/status.md.
        item: the pushed route, or the pushed address.
        network: what is left out.
        attached: the attached network that wins; None if there is another reason.
    """

    reason: LeftOutReason
    item: Route | Address | BridgeAddress
    network: IPNetwork
    attached: AttachedNetwork | None = None

    @property
    def key(self) -> tuple[LeftOutReason, Item, IPNetwork]:
        """It stays the same while another interface attaches this machine to the same network."""
        return self.reason, self.item, self.network


def networks_to_compare(items: Iterable[Item], pushed: Collection[Item]) -> tuple[frozenset[IPNetwork], ...]:
    """Return the networks of which the attached ones have to be known that contain one, and the networks of which those
    have to be known that lie in one."""
    around: set[IPNetwork] = set()
    within: set[IPNetwork] = set()
    for item in items:
        if isinstance(item, (Address, BridgeAddress)):
            around |= {item.interface.network, host_network(item.interface.ip)}
            within.add(item.interface.network)
        elif _is_pushed_route(item, pushed):
            around.add(item.network)
    return frozenset(around), frozenset(within)


def leave_out(
    items: Sequence[Item], pushed: Collection[Item], attached: Sequence[AttachedNetwork]
) -> tuple[tuple[Item, ...], tuple[LeftOut, ...]]:
    """Return the items that remain, and what is left out."""
    remaining: list[Item] = []
    left_out: list[LeftOut] = []
    others = [each for each in attached if not each.is_tunnel]
    for item in items:
        if isinstance(item, (Address, BridgeAddress)):
            own = item.interface.network
            same_segment = [each for each in others if isinstance(item, BridgeAddress) and each.device == item.bridge]
            found = list(_left_out_of_address(item, [each for each in others if each not in same_segment]))
            left_out += found
            if any(each.reason == "tunnel-network" and each.network == own for each in found) or (
                not is_host(own) and _around(own, same_segment) is not None
            ):
                item = replace(item, interface=with_prefix(item.interface.ip, item.interface.max_prefixlen))
        elif _is_pushed_route(item, pushed):
            if martian_kind(item.network) is not None:
                left_out.append(LeftOut("martian", item, item.network))
                continue
            if (around := _around(item.network, attached)) is not None:
                left_out.append(LeftOut("attached", item, item.network, around))
                continue
        remaining.append(item)
    return tuple(remaining), tuple(left_out)


def _left_out_of_address(item: Address | BridgeAddress, others: Sequence[AttachedNetwork]) -> Iterator[LeftOut]:
    own, ip = item.interface.network, host_network(item.interface.ip)
    if not is_host(own):
        if (around := _around(own, others)) is not None:
            yield LeftOut("tunnel-network", item, own, around)
        else:
            parts = {
                each.network: each
                for each in others
                if own.prefixlen < each.network.prefixlen and not is_host(each.network)
            }
            for part, each in parts.items():
                if is_within(part, own):
                    yield LeftOut("tunnel-network", item, part, each)
    if (around := _around(ip, others)) is not None:
        yield LeftOut("tunnel-address", item, ip, around)


def _is_pushed_route(item: Item, pushed: Collection[Item]) -> TypeGuard[Route]:
    return isinstance(item, Route) and item.table == MAIN_TABLE and item in pushed


def _around(network: IPNetwork, attached: Iterable[AttachedNetwork]) -> AttachedNetwork | None:
    """Return the first attached network that contains ``network``; None if there is none."""
    return next((each for each in attached if is_within(network, each.network)), None)


def describe_left_out(left_out: LeftOut) -> str:
    """One line for the log."""
    network, attached, item = left_out.network, left_out.attached, left_out.item
    if attached is None:
        return f"pushed route {network} is left out: it is {martian_kind(network)}; remove it from the server's config"
    if isinstance(item, Route):
        return (
            f"pushed route {network} is left out while {attached.device} attaches this machine to {attached.network}, "
            "which wins"
        )
    remedy = "give the tunnel another network in the server's config"
    address = f"address {item.interface}, which the server gave,"
    if left_out.reason == "tunnel-address":
        if attached.network == network:
            return f"{address} is one that this machine has already, on {attached.device}; {remedy}"
        return (
            f"{address} is in network {attached.network}, to which {attached.device} attaches this machine: another "
            f"machine there that has the address cannot be reached; {remedy}"
        )
    if network == item.interface.network:
        return (
            f"{address} is in network {attached.network}, to which {attached.device} attaches this machine and which "
            f"wins: the tunnel's network {network} cannot be reached; {remedy}"
        )
    return (
        f"{attached.device} attaches this machine to {network}, which is a part of the tunnel's network "
        f"{item.interface.network} and wins: the tunnel's machines in that part cannot be reached; {remedy}"
    )


def describe_back(left_out: LeftOut) -> str:
    """Return a line for the log, which says that a network is used again instead of being left out."""
    attached = left_out.attached
    assert attached is not None, "martians do not change"
    gone = f"{attached.device} no longer attaches this machine to {attached.network}"
    if left_out.reason == "tunnel-address":
        return f"no attached network contains address {left_out.network.network_address} any more: {gone}"
    what = "pushed route" if isinstance(left_out.item, Route) else "network"
    return f"{what} {left_out.network} is used again: {gone}"
