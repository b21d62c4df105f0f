"""The items of one interface that are in the kernel: the record of them, and every change to it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Final

import trio

from ..cooperative import PART, Steps, run_cooperatively
from ..errors import HostError
from ..families import IPAddress, IPNetwork
from ..host.interfaces import Network
from ..host.items import (
    DesiredState,
    HostRoute,
    Item,
    ItemsRefused,
    Route,
    RouteKey,
    Rule,
    address_of,
    version_of,
)
from ..log import flap_damped

MAX_REFUSAL_LINES: Final = 5  # warnings about refused routes at a time; a server may push hundreds


class InstalledItems:
    """Adds and removes the items of one interface, and records them.

    An item is recorded before it is added. So if a cancellation or a failure interrupts the adding, the item is still
    removed at the end.

    A pushed item that the kernel refuses is logged once and left out. It is tried again with the next desired state and
    when the link comes up again.

    Attributes:
        network: the netlink connection.
        items: the items that are, or may be, in the kernel. Replace this list; do not change it in place.
    """

    def __init__(self, network: Network, device_name: str, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self.network = network
        self._name = device_name
        self._log = log
        self._warnings = flap_damped()
        self._items: list[Item] = []
        self._route_keys: set[RouteKey] | None = None  # of `items`; None: not computed since they changed
        self._missing: dict[Item, str] = {}  # pushed items that the kernel refused, and why
        self._mtu: int | None = None

    @property
    def refused(self) -> Mapping[Item, str]:
        """The pushed items that the kernel refused, each with the reason."""
        return self._missing

    @property
    def items(self) -> list[Item]:
        return self._items

    @items.setter
    def items(self, items: list[Item]) -> None:
        self._items, self._route_keys = items, None

    @property
    def mtu(self) -> int | None:
        """The MTU in bytes that was set last; None: none was set."""
        return self._mtu

    def may_have_route(self, key: RouteKey) -> bool:
        """Whether a route with this key is among the items. Also True while that is not known; `absent` computes it."""
        return self._route_keys is None or key in self._route_keys

    async def absent(self) -> list[Item]:
        """Return the recorded items that are not in the kernel. Raises HostError."""
        items = self._items
        missing = await self.network.missing(self._name, items)
        if self._route_keys is None:
            keys = await run_cooperatively(_route_keys(items))
            if items is self._items:
                self._route_keys = keys
        return missing

    async def put_back(self, missing: Sequence[Item], *, rules: bool = False) -> None:
        """Set the MTU, set the link up, and add the ``missing`` items (from `absent`) again. Host routes are left out:
        the transport guard decides which of them are needed.

        ``rules``: add all rules again too, and with them what they need of the interface (`Network.add`).

        Raises HostError; the items stay recorded.
        """
        if self._mtu is not None:
            await self.network.link_up(self._name, self._mtu)
        if rules:
            missing = [*missing, *(item for item in self.items if isinstance(item, Rule) and item not in missing)]
        if not missing:
            return
        if misplaced := _misplaced(self.items, missing):
            # When the kernel removes the addresses it removes the routes too, so everything is added again.
            await self.network.remove(self._name, misplaced)
            again: list[Item] = [item for item in self.items if not isinstance(item, HostRoute)]
        else:
            again = await run_cooperatively(_again(self.items, missing))
        await self.network.add(self._name, again)

    async def change(self, desired: DesiredState) -> None:
        """Set the MTU, remove the recorded items that are not desired, and add the desired ones that are not recorded.

        Raises HostError if the kernel refuses an item that was not pushed.
        """
        if desired.mtu != self._mtu:
            await self.network.link_up(self._name, desired.mtu)
            self._mtu = desired.mtu
        obsolete, kept, new = await run_cooperatively(_difference(self.items, desired.items))
        if obsolete:
            await self.network.remove(self._name, obsolete[::-1])
            self.items = kept
        self.items = [*self.items, *new]
        logged, self._missing = self._missing, {}
        if new:
            try:
                await self.network.add(self._name, new)
            except ItemsRefused as exc:
                if not exc.refused.keys() <= desired.pushed:
                    raise exc.shortage or exc.missing_bridge or exc from exc.__cause__
                self._leave_out(exc.refused, logged)
        await self._remove_host_routes({item for item in desired.items if isinstance(item, HostRoute)})

    async def add_host_routes(self, routes: Sequence[HostRoute]) -> frozenset[IPAddress]:
        """Add host routes past the interface. Returns the addresses whose host route the kernel refused.

        Routes that are already recorded are added again, because the kernel removes a route together with its device.
        """
        self.items = [*self.items, *(item for item in routes if item not in self.items)]
        if not routes:
            return frozenset()
        try:
            await self.network.add(self._name, routes)
        except ItemsRefused as exc:
            self._warn(str(exc))
            self.items = [item for item in self.items if item not in exc.refused]
            return frozenset(item.address for item in exc.refused if isinstance(item, HostRoute))
        return frozenset()

    async def add_all_again(self) -> None:
        """Add everything that is recorded: after a failure it may be in the kernel or not. Raises HostError."""
        await self.network.add(self._name, self.items)

    async def restore(self, who: str) -> None:
        """Add again what the kernel removed when the link went down, and what it refused before.

        ``who``: the one that set the link up again, for the log.
        """
        # The missing items come last: they may have been refused because the link was down.
        missing, items = self._missing, self.items
        self.items = [*items, *missing]
        try:
            await self.network.add(self._name, self.items)
        except HostError as exc:
            refused = exc.refused if isinstance(exc, ItemsRefused) else missing
            self._missing = {item: refused[item] for item in missing if item in refused}
            self.items = [item for item in self.items if item not in self._missing]
            if not isinstance(exc, ItemsRefused) or not refused.keys() <= missing.keys():
                # Another program's route may have replaced ours meanwhile. It stays; we try again at the next link up.
                self._log.warning("%s set this interface up again, and not everything could be put back: %s", who, exc)
                return
        else:
            self._missing = {}
        self._log.info("%s set this interface up again: put its addresses and routes back", who)

    async def remove_all(self) -> None:
        """Remove all items. Logs those that could not be removed."""
        try:
            await self.network.remove(self._name, self.items[::-1])
            self.items = []
        except HostError as exc:
            self._log.warning("could not undo everything: %s", exc)

    async def _remove_host_routes(self, wanted: Container[Item]) -> None:
        """Remove the host routes that are not wanted any more, after the routes to which they were exceptions.

        If a wanted one has the same address and table, it has already replaced the old one in the kernel.
        """
        kept = {(item.address, item.table) for item in self.items if isinstance(item, HostRoute) and item in wanted}
        obsolete = [item for item in self.items if isinstance(item, HostRoute) and item not in wanted]
        if present := [item for item in obsolete if (item.address, item.table) not in kept]:
            await self.network.remove(self._name, present)
        self.items = [item for item in self.items if item not in obsolete]

    def _leave_out(self, refused: dict[Item, str], logged: dict[Item, str]) -> None:
        """Continue without these items, and log each unless the same reason was ``logged`` for it before."""
        self.items = [item for item in self.items if item not in refused]
        self._missing = refused
        reasons = [reason for item, reason in refused.items() if logged.get(item) != reason]
        for reason in reasons[:MAX_REFUSAL_LINES]:
            self._warn(f"continuing without what the server pushed (its push_routes): {reason}")
        if len(reasons) > MAX_REFUSAL_LINES:
            self._warn(f"continuing without {len(reasons) - MAX_REFUSAL_LINES} more that the server pushed")

    def _warn(self, text: str) -> None:
        """Log a warning, at a limited rate: a server may push other items with every PARAMS frame."""
        self._warnings.log(self._log, logging.WARNING, trio.current_time(), text)


def _misplaced(items: Iterable[Item], missing: Collection[Item]) -> list[Item]:
    """Return the present addresses that would end up on the wrong side of a missing address of the same network.

    The order matters, because the first address of a network is the source of this machine's packets to it. In IPv4 the
    kernel puts a new address behind the others, in IPv6 before them.
    """
    gone = {item for item in missing if address_of(item) is not None}
    addresses = [(item, interface) for item in items if (interface := address_of(item)) is not None] if gone else []
    networks: set[IPNetwork] = set()
    found: list[Item] = []
    for item, interface in (
        *(each for each in addresses if each[1].version == 4),
        *(each for each in reversed(addresses) if each[1].version == 6),
    ):
        if item in gone:
            networks.add(interface.network)
        elif interface.network in networks:
            found.append(item)
    return found


def _again(items: Sequence[Item], missing: Sequence[Item]) -> Steps[list[Item]]:
    """Return what to add if these items are missing, in the order of ``items``. In steps, as `_difference`."""
    # The route of a mark's table may get another slot, so the rule of that table has to be added again too.
    tables = {item.table for item in missing if isinstance(item, Route)}
    found: list[Item] = [item for item in missing if not isinstance(item, (HostRoute, Rule))]
    yield
    rules = {item for item in missing if isinstance(item, Rule)}
    for number, item in enumerate(items, 1):
        if isinstance(item, Rule) and (item in rules or item.table in tables):
            found.append(item)
        if number % PART == 0:
            yield
    return found


def _route_keys(items: Iterable[Item]) -> Steps[set[RouteKey]]:
    found: set[RouteKey] = set()
    for number, item in enumerate(items, 1):
        if (interface := address_of(item)) is not None:
            item = Route(interface.network)  # its connected route
        if isinstance(item, Route):
            found.add(item.key)
        if number % PART == 0:
            yield
    return found


def _difference(
    installed: Collection[Item], desired: Collection[Item]
) -> Steps[tuple[list[Item], list[Item], list[Item]]]:
    """Which installed items have to go, which stay, and which items are new, each list in its order.

    Host routes always stay here, because they are removed last (`InstalledItems._remove_host_routes`).

    This runs in steps and uses a set for every lookup: there may be tens of thousands of items, and hashing one takes a
    microsecond.
    """
    wanted: set[Item] = set()
    for number, item in enumerate(desired, 1):
        wanted.add(item)
        if number % PART == 0:
            yield
    obsolete: list[Item] = []
    kept: list[Item] = []
    kept_set: set[Item] = set()
    remakes_ipv4 = _removes_others(installed, wanted)
    for number, item in enumerate(installed, 1):
        if isinstance(item, HostRoute) or (item in wanted and not (remakes_ipv4 and version_of(item) == 4)):
            kept.append(item)
            kept_set.add(item)
        else:
            obsolete.append(item)
        if number % PART == 0:
            yield
    new: list[Item] = []
    for number, item in enumerate(desired, 1):
        if item not in kept_set:
            new.append(item)
        if number % PART == 0:
            yield
    return obsolete, kept, new


def _removes_others(installed: Iterable[Item], wanted: Container[Item]) -> bool:
    """Whether the removal of an unwanted IPv4 address makes the kernel remove wanted IPv4 items too.

    With the first address of a network the kernel removes the later ones. With the last IPv4 address of an interface it
    removes the interface's IPv4 routes. Any other address, and each of IPv6, is removed alone, and connections over the
    rest lose no packet.
    """
    addresses = [
        (item, interface)
        for item in installed
        if (interface := address_of(item)) is not None and interface.version == 4
    ]
    kept = [interface for item, interface in addresses if item in wanted]
    if len(kept) == len(addresses):
        return False
    first: dict[IPNetwork, Item] = {}
    for item, interface in addresses:
        first.setdefault(interface.network, item)
    return not kept or any(first[interface.network] not in wanted for interface in kept)
