"""Finds the items that would lead the tunnel's own connections into the tunnel, and decides what to do. Pure.

The rules, for each address of the transport:

- An item *captures* the address if the kernel would use it for the transport's packets instead of the present next hop
  (the next hop without this interface). Such an item is a route, or an interface address with its network. Its
  network contains the address, and its prefix is longer than that of the present route. Its table is one that the
  kernel looks up for these packets: the main table, unless the present route's table comes before it; or a table to
  which a rule of the desired state leads packets with the transport's fwmark.
- A captured address is *excepted*: a host route leads it to the present next hop. So the rest of the captured network
  still goes through the tunnel.
- Where there can be no host route, the item is *left out*: the route, or of an interface address only its network. A
  route to exactly this address is left out too, because no host route is longer.
- Without a session for a while, pushed routes that capture an address are *withdrawn*.
- An address that cannot be reached at present without this interface has no next hop for a host route. The items that
  capture it stay. When a route to it appears, the kernel reports that change; until then, without the items, packets
  for the tunnel would leave by other routes. The guard lets no connection be made to it while there is a way to another
  address of the transport, such as one of the other family.
- An interface address that is the server's own, or makes the server's address a broadcast address, is always
  left out: the kernel looks up its local table first, so no route helps. The same holds for the gateway to the server:
  if its address were one of this machine, the kernel would no longer answer it, and its packets would be martians.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from ..families import IPAddress, IPInterface, IPNetwork, is_host, with_prefix
from ..host.items import (
    CONNECTED_METRICS,
    MAIN_METRICS,
    MAIN_TABLE,
    Address,
    BridgeAddress,
    HostRoute,
    Item,
    NextHop,
    Route,
    Rule,
    address_of,
)
from ..status.model import TransportAction


@dataclass(frozen=True, slots=True)
class Conflict:
    """One route that would capture one address of the transport.

    Attributes:
        network: the route's network.
        address: the transport's address, or the gateway to it if that is captured.
        action: what was done about it.
        item: makes the route; None: the route is not ours.
        next_hop: how the address is reached without the interface; None: not at present.
    """

    network: IPNetwork
    address: IPAddress
    action: TransportAction
    item: Item | None
    next_hop: NextHop | None


@dataclass(frozen=True, slots=True)
class Decision:
    """``items``: all that is to be made, beginning with the ``exceptions``."""

    items: tuple[Item, ...]
    exceptions: tuple[HostRoute, ...]
    conflicts: tuple[Conflict, ...]


def decide(
    items: Sequence[Item],
    next_hops: Mapping[IPAddress, NextHop | None],
    mark: int | None,
    *,
    pushed: Collection[Item] = frozenset(),
    withdraws: bool = False,
    withdraws_all: bool = False,
    made: Collection[Item] = (),
) -> Decision:
    """Which of ``items`` may be made, and the host routes that they need.

    Args:
        next_hops: for each address of the transport, how it is reached without the interface; None: it cannot be
            reached at present.
        mark: the transport's fwmark.
        pushed: the items that are withdrawn when there is no session.
        withdraws: there is no session.
        withdraws_all: the addresses of the server are not known either.
        made: the items that the interface has now, which must not be mistaken for routes of others.
    """
    tables = {item.table for item in items if isinstance(item, Rule) and item.matches(mark or 0)}
    ours = {route for route in map(_route_of, made) if route is not None}
    conflicts: list[Conflict] = []
    exceptions: dict[tuple[IPAddress, int], HostRoute] = {}
    dropped: set[Item] = set()
    narrowed: set[Item] = set()  # interface addresses without their networks
    if withdraws and withdraws_all:
        dropped |= set(pushed) & set(items)
    for address, next_hop in next_hops.items():
        for item in _capturing(items, address, next_hop, tables):
            action = _action(item, address, next_hop, withdrawn=withdraws and item in pushed)
            if action is None:
                continue
            network, table = _expect_route_of(item)
            gateway = _captured_gateway(item, next_hop)
            conflicts.append(Conflict(network, gateway or address, action, item, next_hop))
            if action == "excepted" and next_hop is not None:
                exceptions[address, table] = _host_route(address, next_hop, table)
            elif isinstance(item, (Address, BridgeAddress)) and not (gateway or makes_local(item.interface, address)):
                narrowed.add(item)
            else:
                dropped.add(item)
        if next_hop is not None and next_hop.captured_by is not None and next_hop.captured_by not in ours:
            network, table = next_hop.captured_by
            helps = next_hop.usable and not is_host(network)
            conflicts.append(Conflict(network, address, "excepted" if helps else "captured", None, next_hop))
            if helps:
                exceptions[address, table] = _host_route(address, next_hop, table)
    # An item that was dropped for one address needs no exception for another one.
    kept = [item for item in items if item not in dropped | narrowed]
    needed = tuple(
        exception
        for (address, table), exception in exceptions.items()
        if (next_hop := next_hops[address]) is not None
        and (
            any(_expect_route_of(item)[1] == table for item in _capturing(kept, address, next_hop, tables))
            or (
                next_hop.captured_by is not None
                and next_hop.captured_by not in ours
                and next_hop.captured_by[1] == table
            )
        )
    )
    emptied = {
        (item.network.version, item.table) for item in dropped if isinstance(item, Route) and item.table != MAIN_TABLE
    }
    remaining = [
        _without_network(item) if isinstance(item, (Address, BridgeAddress)) and item in narrowed else item
        for item in items
        if item not in dropped and not (isinstance(item, Rule) and (item.version, item.table) in emptied)
    ]
    return Decision((*needed, *dict.fromkeys(remaining)), needed, tuple(conflicts))


def _without_network(item: Address | BridgeAddress) -> Item:
    return replace(item, interface=with_prefix(item.interface.ip, item.interface.max_prefixlen))


def makes_local(interface: IPInterface, address: IPAddress) -> bool:
    """Whether an interface with this address makes ``address`` one of this machine, or a broadcast address.

    With IPv6 a router has the first address of the network too (RFC 4291 section 2.6.1), and there is no broadcast.
    """
    network = interface.network
    if address == interface.ip:
        return True
    if network.max_prefixlen - network.prefixlen < 2:  # RFC 3021, RFC 6164
        return False
    return address == network.network_address or (network.version == 4 and address == network.broadcast_address)


def _action(item: Item, address: IPAddress, next_hop: NextHop | None, *, withdrawn: bool) -> TransportAction | None:
    """What to do about an item that captures the address. None: nothing can be done, and the item stays."""
    if withdrawn:
        return "withdrawn"
    if (interface := address_of(item)) is not None and makes_local(interface, address):
        return "left-out"
    if next_hop is None:
        return None
    if _captured_gateway(item, next_hop) is not None:
        return "left-out"
    if not next_hop.usable or is_host(_expect_route_of(item)[0]):
        return "left-out"
    return "excepted"


def _capturing(items: Iterable[Item], address: IPAddress, next_hop: NextHop | None, tables: Set[int]) -> list[Item]:
    """Those of the items that the kernel would use for the address instead of ``next_hop``."""
    return [item for item in items if _captures(item, address, next_hop, tables)]


def _captures(item: Item, address: IPAddress, next_hop: NextHop | None, tables: Set[int]) -> bool:
    route = _route_of(item)
    if route is None:
        return False
    if (interface := address_of(item)) is not None and makes_local(interface, address):
        return True  # the route is in the kernel's local table, which comes before all others
    if _captured_gateway(item, next_hop) is not None:
        return True
    network, table = route
    if address not in network:
        return False
    if table == MAIN_TABLE:
        if next_hop is not None and next_hop.above_main:
            return False
    elif table not in tables:
        return False
    if next_hop is None or next_hop.table != table:
        return True
    # Of two routes with equal prefixes the kernel uses the one with the lower metric, or else the first that was there.
    ours = (MAIN_METRICS if isinstance(item, Route) else CONNECTED_METRICS)[network.version]
    return (network.prefixlen, next_hop.metric) > (next_hop.network.prefixlen, ours)


def _captured_gateway(item: Item, next_hop: NextHop | None) -> IPAddress | None:
    """The gateway, if the item is an address that makes it one of this machine, or a broadcast address; else None."""
    gateway = None if next_hop is None else next_hop.gateway
    interface = address_of(item)
    if interface is not None and gateway is not None and makes_local(interface, gateway):
        return gateway
    return None


def _route_of(item: Item) -> tuple[IPNetwork, int] | None:
    """The network and the table of the route into the interface, or into its bridge, that an item makes; None: it makes
    none."""
    match item:
        case Address(interface) | BridgeAddress(_, interface):
            return interface.network, MAIN_TABLE
        case Route(network, table):
            return network, table
        case _:
            return None


def _expect_route_of(item: Item) -> tuple[IPNetwork, int]:
    route = _route_of(item)
    assert route is not None, f"{item} makes no route"
    return route


def _host_route(address: IPAddress, next_hop: NextHop, table: int) -> HostRoute:
    return HostRoute(
        address, next_hop.index, next_hop.gateway, next_hop.source, next_hop.metrics, table, next_hop.device
    )


def describe(conflicts: Sequence[Conflict]) -> str:
    """One phrase for a log line about conflicts over one address that had the same outcome."""
    first = conflicts[0]
    text = f"{_cause(first)} covers {first.address}, where the tunnel's own connections go"
    interface = None if first.item is None else address_of(first.item)
    if interface is not None and first.next_hop is not None and first.address == first.next_hop.gateway:
        address = f"address {interface}, which the server gave,"
        text = f"{address} would replace the gateway {first.address} of the tunnel's own connections"
    if len(conflicts) > 1:
        text += f" (and so do {len(conflicts) - 1} more)"
    return f"{text}: {_outcome(first)}"


def host_route_text(conflict: Conflict) -> str | None:
    """The host route of an excepted address, in the form of `ip route`."""
    if conflict.action != "excepted" or conflict.next_hop is None:
        return None
    return str(_host_route(conflict.address, conflict.next_hop, MAIN_TABLE))


def _outcome(conflict: Conflict) -> str:
    match conflict.action:
        case "excepted":
            return f"host route {host_route_text(conflict)} keeps them out of the tunnel"
        case "left-out":
            return "it is left out; remove it from the server's config"
        case "withdrawn":
            return "withdrawn until there is a session again"
        case "captured":
            return "it carries them into the tunnel; remove it"


def _cause(conflict: Conflict) -> str:
    match conflict.item:
        case Address(interface) | BridgeAddress(_, interface):
            return f"the network of address {interface}, which the server gave,"
        case Route(network, table):
            return f"the default route of mark table {table}" if table != MAIN_TABLE else f"pushed route {network}"
        case _:
            return f"route {conflict.network}, which is not ours,"
