"""Reads which items of one interface are in the kernel, to find the items that other programs have removed.

An inventory needs one dump per table, which the kernel filters by our protocol number and the interface, and one set
lookup per item. It takes about 5 us per route. The work is done in steps, and other tasks run between them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ...cooperative import PART, Steps
from ...families import IPAddress, IPNetwork, is_host
from ..items import (
    MAIN_METRICS,
    MAIN_TABLE,
    Address,
    BridgeAddress,
    BridgePort,
    ConnectedRoute,
    HostRoute,
    Item,
    OwnBridge,
    Route,
    RouteKey,
    Rule,
)
from . import codec
from .codec import FAMILIES, KERNEL_PROTOCOL, PROTOCOL
from .reader import NetworkReader
from .route_lookup import host_route_metric
from .socket import Rtnetlink


@dataclass(slots=True)
class Present:
    """The items of one interface that are in the kernel, of the kinds that were asked for.

    Attributes:
        addresses: each with its prefix length.
        connected: the IP version, the destination and the prefix length of each route that the kernel itself added.
        host_routes: the destination and the table of each host route.
        bridging: the items of the bridge; `Bridges.present` finds them.
    """

    addresses: set[tuple[IPAddress, int]] = field(default_factory=set)
    connected: set[tuple[int, int, int]] = field(default_factory=set)
    routes: set[RouteKey] = field(default_factory=set)
    rules: set[Rule] = field(default_factory=set)
    host_routes: set[tuple[IPAddress, int]] = field(default_factory=set)
    bridging: set[Item] = field(default_factory=set)

    def has(self, item: Item) -> bool:
        match item:
            case Address(interface):
                return (interface.ip, interface.network.prefixlen) in self.addresses
            case Route():
                return item.key in self.routes
            case Rule():
                return item in self.rules
            case HostRoute(address=address, table=table):
                return (address, table) in self.host_routes
            case OwnBridge() | BridgePort() | BridgeAddress():
                return item in self.bridging
            case ConnectedRoute(interface):
                network = interface.network
                is_made = network.prefixlen < 32 or network.version == 6  # a /32 address gets none, and a /128 does
                return not is_made or Route(network).key[:3] in self.connected


def absent(items: Iterable[Item], present: Present) -> Steps[list[Item]]:
    """Return the items that are not present, in their order, and the connected routes that present addresses lack.

    Runs in steps, since there may be tens of thousands of items.
    """
    found: list[Item] = []
    networks: set[IPNetwork] = set()
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
        """Read what the kernel has of the kinds and IP versions of these items. ``priorities``: the priorities of our
        rules."""
        present = Present()
        addresses = [item for item in items if isinstance(item, Address)]
        versions: set[int] = {item.interface.version for item in addresses}
        for version in versions:
            present.addresses |= await self._addresses(version)
            present.connected.update(await self._connected(version, MAIN_TABLE))
            connected = (ConnectedRoute(item.interface) for item in addresses if item.interface.version == version)
            if not all(map(present.has, connected)):  # the interface may have been put into a VRF
                present.connected.update(await self._connected(version, 0))
        tables = {(item.network.version, item.table) for item in items if isinstance(item, Route)}
        for version, table in tables:
            present.routes.update(await self._routes(version, table))
        for version in {item.version for item in items if isinstance(item, Rule)}:
            present.rules.update(
                rule.item
                for rule in await self._reader.rules(version)
                if rule.protocol == PROTOCOL and priorities.get(rule.item) == rule.priority
            )
        if host_versions := {item.address.version for item in items if isinstance(item, HostRoute)}:
            metric = host_route_metric(self._index)
            found = await self._reader.ours(
                lambda route: is_host(route.network) and route.metric == metric, host_versions
            )
            present.host_routes = {(route.network.network_address, route.table) for route in found}
        return present

    async def _addresses(self, version: int) -> set[tuple[IPAddress, int]]:
        def read(message: memoryview) -> tuple[IPAddress, int] | None:
            found = codec.read_assigned(message)
            return None if found is None or found.index != self._index else (found.ip, found.network.prefixlen)

        return set(await self._kernel.dump(codec.dump_addresses(self._index, FAMILIES[version]), read))

    async def _connected(self, version: int, table: int) -> list[tuple[int, int, int]]:
        """Return IP version, destination and prefix length of each connected route. ``table``: 0 means all tables."""

        def read(message: memoryview) -> tuple[int, int, int] | None:
            key, protocol, index, _ = codec.read_route_key(message)
            found = (protocol, index) == (KERNEL_PROTOCOL, self._index) and table in (0, key[3])
            return key[:3] if found else None

        return await self._kernel.dump(codec.dump_routes(version, table, KERNEL_PROTOCOL, self._index), read)

    async def _routes(self, version: int, table: int) -> list[RouteKey]:
        # Another interface of ours may have taken over a route of the main table. Such a route is not missing.
        only = 0 if table == MAIN_TABLE else self._index
        best = MAIN_METRICS[version]

        def read(message: memoryview) -> RouteKey | None:
            key, protocol, index, metric = codec.read_route_key(message)
            found = index == only if only else metric == best
            return key if found and (key[3], protocol) == (table, PROTOCOL) else None

        return await self._kernel.dump(codec.dump_routes(version, table, PROTOCOL, only), read)
