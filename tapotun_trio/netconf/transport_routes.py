"""What of a plan would carry the tunnel's own connections into the tunnel, and what to do about it. Pure.

The rules:

- An item *captures* an address if the kernel would take it for packets of the transport to that address, in place of
  the way that it knows without us: a route, or the network of an interface address, that holds the address and is
  longer than the present way's route; and in a table that is asked for these packets: the main one, unless the
  present way's table comes before it, or another one that a rule of the plan leads them to by their fwmark.
- A captured address is *excepted*: a host route leads it by the present way, so the rest of the captured network is
  still reached through the tunnel.
- Where that cannot be, what captures it is *left out*: the route, or of an interface address its network. So is a
  route to that very address, which no host route can be in front of.
- Without a session for a while, pushed routes that capture an address are *withdrawn*.
- An address that cannot be reached at present without us has nothing to be excepted by. What captures it stays: its
  way comes back by a change that we hear of, and until then packets would only leave by somebody else's route.
- An interface address that is the server's own, or makes it a broadcast address, is left out in any case: the kernel
  looks there first, and no route helps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from ..host.items import MAIN_TABLE, Address, HostRoute, Item, NextHop, Route, Rule
from ..status.model import TransportAction

_HOST: Final = 32
_NO_BROADCAST: Final = 31  # from this prefix length on (RFC 3021)


@dataclass(frozen=True, slots=True)
class Conflict:
    """One item that would capture one address of the transport.

    ``item``: None: a route that somebody else made. ``way``: by which the address is reached, None: none is known.
    """

    network: IPv4Network
    address: IPv4Address
    action: TransportAction
    item: Item | None
    way: NextHop | None


@dataclass(frozen=True, slots=True)
class Decision:
    """``items``: what is to stand, with ``exceptions`` before everything else."""

    items: tuple[Item, ...]
    exceptions: tuple[HostRoute, ...]
    conflicts: tuple[Conflict, ...]


def decide(
    items: Sequence[Item],
    ways: Mapping[IPv4Address, NextHop | None],
    mark: int | None,
    *,
    pushed: Collection[Item] = frozenset(),
    withdraws: bool = False,
    withdraws_all: bool = False,
    made: Collection[Item] = (),
) -> Decision:
    """What is to stand of ``items``.

    Args:
        ways: of each address of the transport how it is reached without the interface; None: not at present.
        mark: the transport's fwmark.
        pushed: those of the items that go when there is no session.
        withdraws: there is no session. ``withdraws_all``: nor is it known where the server is.
        made: what stands of ours already, so that it is not taken for somebody else's.
    """
    tables = {item.table for item in items if isinstance(item, Rule) and item.fwmark == (mark or 0)}
    ours = {it for it in map(_place, made) if it is not None}
    conflicts: list[Conflict] = []
    exceptions: dict[tuple[IPv4Address, int], HostRoute] = {}
    dropped: set[Item] = set()
    narrowed: set[Item] = set()
    if withdraws and withdraws_all:
        dropped |= set(pushed) & set(items)
    for address, way in ways.items():
        for item in _capturing(items, address, way, tables):
            action = _action(item, address, way, withdrawn=withdraws and item in pushed)
            if action is None:
                continue
            network, table = _place_of(item)
            conflicts.append(Conflict(network, address, action, item, way))
            if action == "excepted" and way is not None:
                exceptions[address, table] = _host_route(address, way, table)
            elif isinstance(item, Address) and not takes(item.interface, address):
                narrowed.add(item)
            else:
                dropped.add(item)
        if way is not None and way.captured_by is not None and way.captured_by not in ours:
            network, table = way.captured_by
            helps = way.usable and network.prefixlen < _HOST
            conflicts.append(Conflict(network, address, "excepted" if helps else "captured", None, way))
            if helps:
                exceptions[address, table] = _host_route(address, way, table)
    # What was dropped for one address needs no exception for another one.
    kept = [item for item in items if item not in dropped | narrowed]
    needed = tuple(
        exception
        for (address, table), exception in exceptions.items()
        if (way := ways[address]) is not None
        and (
            any(_place_of(item)[1] == table for item in _capturing(kept, address, way, tables))
            or (way.captured_by is not None and way.captured_by not in ours and way.captured_by[1] == table)
        )
    )
    bare = {item.table for item in dropped if isinstance(item, Route) and item.table != MAIN_TABLE}
    standing = [
        Address(IPv4Interface((item.interface.ip, _HOST))) if isinstance(item, Address) and item in narrowed else item
        for item in items
        if item not in dropped and not (isinstance(item, Rule) and item.table in bare)
    ]
    return Decision((*needed, *dict.fromkeys(standing)), needed, tuple(conflicts))


def takes(interface: IPv4Interface, address: IPv4Address) -> bool:
    """Whether an interface with this address makes ``address`` one of this machine, or a broadcast one."""
    network = interface.network
    ends = (network.network_address, network.broadcast_address) if network.prefixlen < _NO_BROADCAST else ()
    return address == interface.ip or address in ends


def _action(item: Item, address: IPv4Address, way: NextHop | None, *, withdrawn: bool) -> TransportAction | None:
    """None: nothing can and needs to be done."""
    if withdrawn:
        return "withdrawn"
    if isinstance(item, Address) and takes(item.interface, address):
        return "left-out"
    if way is None:
        return None
    if not way.usable or _place_of(item)[0].prefixlen == _HOST:
        return "left-out"
    return "excepted"


def _capturing(items: Iterable[Item], address: IPv4Address, way: NextHop | None, tables: Set[int]) -> list[Item]:
    """Those of the items that the kernel would follow to the address in place of ``way``."""
    return [item for item in items if _captures(item, address, way, tables)]


def _captures(item: Item, address: IPv4Address, way: NextHop | None, tables: Set[int]) -> bool:
    place = _place(item)
    if place is None:
        return False
    if isinstance(item, Address) and takes(item.interface, address):
        return True  # by the kernel's local table, which it asks first
    network, table = place
    if address not in network:
        return False
    if table == MAIN_TABLE:
        if way is not None and way.above_main:
            return False
    elif table not in tables:
        return False
    if way is None or way.table != table:
        return True
    # Of two as long as each other the better metric wins; ours is 0, and the kernel refuses a second with that one.
    return (network.prefixlen, way.metric) > (way.network.prefixlen, 0)


def _place(item: Item) -> tuple[IPv4Network, int] | None:
    """The network and the table of the route that an item makes; None: it makes none into the interface."""
    match item:
        case Address(interface):
            return interface.network, MAIN_TABLE
        case Route(network, table):
            return network, table
        case _:
            return None


def _place_of(item: Item) -> tuple[IPv4Network, int]:
    place = _place(item)
    assert place is not None, f"{item} makes no route"
    return place


def _host_route(address: IPv4Address, way: NextHop, table: int) -> HostRoute:
    return HostRoute(address, way.index, way.gateway, way.source, way.metrics, table, way.device)


def describe(conflicts: Sequence[Conflict]) -> str:
    """One phrase for a log line, of conflicts over one address that ended in the same way."""
    first = conflicts[0]
    what = f"{_cause(first)} covers {first.address}, where the tunnel's own connections go"
    if len(conflicts) > 1:
        what += f" (and so do {len(conflicts) - 1} more)"
    return f"{what}: {outcome(first)}"


def host_route_text(conflict: Conflict) -> str | None:
    """The host route of an excepted address, as `ip route` has it."""
    if conflict.action != "excepted" or conflict.way is None:
        return None
    return str(_host_route(conflict.address, conflict.way, MAIN_TABLE))


def outcome(conflict: Conflict) -> str:
    """What was done about it."""
    match conflict.action:
        case "excepted":
            return f"host route {host_route_text(conflict)} keeps them out of the tunnel"
        case "left-out":
            return "it is left out; take it from the server's config"
        case "withdrawn":
            return "withdrawn until there is a session again"
        case "captured":
            return "it carries them into the tunnel; remove it"


def _cause(conflict: Conflict) -> str:
    match conflict.item:
        case Address(interface):
            return f"the network of address {interface}, which the server gave,"
        case Route(network, table):
            return f"the default route of mark table {table}" if table != MAIN_TABLE else f"pushed route {network}"
        case _:
            return f"route {conflict.network}, which is not ours,"
