"""Reads which items of one interface are in the kernel, to find the items that other programs have removed.

An inventory needs one dump per table, which the kernel filters by our protocol number and the interface, and one set
lookup per item. It takes about 5 us per route. The work is done in steps, and other tasks run between them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET
from typing import Final

from ...cooperative import PART, Steps
from ..items import MAIN_TABLE, Address, ConnectedRoute, HostRoute, Item, Route, RouteKey, Rule
from . import codec
from .codec import KERNEL_PROTOCOL, PROTOCOL
from .reader import NetworkReader
from .route_lookup import host_route_metric
from .socket import Rtnetlink

_HOST: Final = 32


@dataclass(slots=True)
class Present:
    """The items of one interface that are in the kernel, of the kinds that were asked for.

    Attributes:
        addresses: each with its prefix length.
        connected: the destination and the prefix length of each route that the kernel itself added.
        host_routes: the destination and the table of each host route.
    """

    addresses: set[tuple[str, int]] = field(default_factory=set)
    connected: set[tuple[int, int]] = field(default_factory=set)
    routes: set[RouteKey] = field(default_factory=set)
    rules: set[Rule] = field(default_factory=set)
    host_routes: set[tuple[IPv4Address, int]] = field(default_factory=set)

    def has(self, item: Item) -> bool:
        match item:
            case Address(interface):
                return (str(interface.ip), interface.network.prefixlen) in self.addresses
            case Route():
                return item.key in self.routes
            case Rule():
                return item in self.rules
            case HostRoute(address=address, table=table):
                return (address, table) in self.host_routes
            case ConnectedRoute(interface):
                network = interface.network
                is_made = network.prefixlen < _HOST  # a /32 address gets no connected route
                return not is_made or (int(network.network_address), network.prefixlen) in self.connected


def absent(items: Iterable[Item], present: Present) -> Steps[list[Item]]:
    """Return the items that are not present, in their order, and the connected routes that present addresses lack.

    Runs in steps, since there may be tens of thousands of items.
    """
    found: list[Item] = []
    networks: set[IPv4Network] = set()
    for number, item in enumerate(items, 1):
        if not present.has(item):
            found.append(item)
        elif isinstance(item, Address) and item.interface.network not in networks:
            networks.add(item.interface.network)  # only the first address of a network has its route
            if not present.has(route := ConnectedRoute(item.interface)):
                found.append(route)
        if number % PART == 0:
            yield
    return found


class Inventory:
    """Reads for the interface ``index``. All methods are checkpoints, cancel-safe, and raise HostError."""

    def __init__(self, kernel: Rtnetlink, reader: NetworkReader, index: int) -> None:
        self._kernel = kernel
        self._reader = reader
        self._index = index

    async def read(self, items: Collection[Item], priorities: Mapping[Rule, int]) -> Present:
        """Read what the kernel has of the kinds of these items. ``priorities``: the priorities of our rules."""
        kinds = {type(item) for item in items}
        present = Present()
        if Address in kinds:
            present.addresses = await self._addresses()
            present.connected = set(await self._connected(MAIN_TABLE))
            connected = (ConnectedRoute(item.interface) for item in items if isinstance(item, Address))
            if not all(map(present.has, connected)):  # the interface may have been put into a VRF
                present.connected.update(await self._connected(0))
        if Route in kinds:
            for table in {item.table for item in items if isinstance(item, Route)}:
                present.routes.update(await self._routes(table))
        if Rule in kinds:
            present.rules = {
                rule.item
                for rule in await self._reader.rules()
                if rule.protocol == PROTOCOL and priorities.get(rule.item) == rule.priority
            }
        if HostRoute in kinds:
            metric = host_route_metric(self._index)
            found = await self._reader.ours(lambda route: route.network.prefixlen == 32 and route.metric == metric)
            present.host_routes = {(route.network.network_address, route.table) for route in found}
        return present

    async def _addresses(self) -> set[tuple[str, int]]:
        def read(message: memoryview) -> tuple[str, int] | None:
            address = codec.read_address(message)
            return None if address is None or address.index != self._index else (address.text, address.prefix)

        return set(await self._kernel.dump(codec.dump_addresses(self._index, AF_INET), read))

    async def _connected(self, table: int) -> list[tuple[int, int]]:
        """Return destination and prefix length of each connected route. ``table``: 0 means all tables."""

        def read(message: memoryview) -> tuple[int, int] | None:
            key, protocol, index, _ = codec.read_route_key(message)
            found = (protocol, index) == (KERNEL_PROTOCOL, self._index) and table in (0, key[2])
            return key[:2] if found else None

        return await self._kernel.dump(codec.dump_routes(table, KERNEL_PROTOCOL, self._index), read)

    async def _routes(self, table: int) -> list[RouteKey]:
        # Another interface of ours may have taken over a route of the main table. Such a route is not missing.
        only = 0 if table == MAIN_TABLE else self._index

        def read(message: memoryview) -> RouteKey | None:
            key, protocol, index, metric = codec.read_route_key(message)
            found = index == only if only else metric == 0
            return key if found and (key[2], protocol) == (table, PROTOCOL) else None

        return await self._kernel.dump(codec.dump_routes(table, PROTOCOL, only), read)
