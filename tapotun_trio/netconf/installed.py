"""The items of one interface that are in the kernel: the record of them, and every change to it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ..cooperative import PART, Steps, run_cooperatively
from ..errors import HostError
from ..host.interfaces import Network
from ..host.items import Address, DesiredState, HostRoute, Item, ItemsRefused

MAX_REFUSAL_LINES: Final = 5  # warnings about refused routes at a time; a server may push hundreds


class InstalledItems:
    """Adds and removes the items of one interface, and records them.

    An item is recorded before it is added, so that what a cancellation or a failure leaves half done is removed with
    the rest.

    A pushed item that the kernel refuses is logged once and left out. It is tried again with the next desired state,
    and when the link comes up again.

    Attributes:
        network: the netlink connection.
        items: what is in the kernel, or may be.
    """

    def __init__(self, network: Network, device_name: str, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self.network = network
        self._name = device_name
        self._log = log
        self.items: list[Item] = []
        self._missing: dict[Item, str] = {}  # pushed items that the kernel refused, and why
        self._mtu: int | None = None

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
        self.items += new
        logged, self._missing = self._missing, {}
        if new:
            try:
                await self.network.add(self._name, new)
            except ItemsRefused as exc:
                if not exc.refused.keys() <= desired.pushed:
                    raise exc.shortage or exc from exc.__cause__
                self._leave_out(exc.refused, logged)
        await self._remove_host_routes({item for item in desired.items if isinstance(item, HostRoute)})

    async def add_host_routes(self, routes: Sequence[HostRoute]) -> frozenset[IPv4Address]:
        """Add host routes past the interface. Returns the addresses whose host route the kernel refused.

        Routes that are already recorded are added again, because the kernel removes a route together with its device.
        """
        self.items += [item for item in routes if item not in self.items]
        if not routes:
            return frozenset()
        try:
            await self.network.add(self._name, routes)
        except ItemsRefused as exc:
            self._log.warning("%s", exc)
            self.items = [item for item in self.items if item not in exc.refused]
            return frozenset(item.address for item in exc.refused if isinstance(item, HostRoute))
        return frozenset()

    async def add_all_again(self) -> None:
        """Add everything that is recorded: after a failure it may be in the kernel or not. Raises HostError."""
        await self.network.add(self._name, self.items)

    async def restore(self) -> None:
        """Add again what the kernel removed when the link went down, and what it refused before."""
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
                self._log.warning(
                    "another program set this interface up again, and not everything could be put back: %s", exc
                )
                return
        else:
            self._missing = {}
        self._log.info("another program set this interface up again: put its addresses and routes back")

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
            self._log.warning("continuing without what the server pushed (its push_routes): %s", reason)
        if len(reasons) > MAX_REFUSAL_LINES:
            self._log.warning("continuing without %d more that the server pushed", len(reasons) - MAX_REFUSAL_LINES)


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
    remake_all = _removes_others(installed, wanted)
    for number, item in enumerate(installed, 1):
        if isinstance(item, HostRoute) or (item in wanted and not remake_all):
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
    """Whether the removal of an unwanted address makes the kernel remove wanted items too.

    With the first address of a network the kernel removes the later ones. With the last address of an interface it
    removes the interface's routes. Any other address is removed alone, and connections over the rest lose no packet.
    """
    addresses = [item for item in installed if isinstance(item, Address)]
    kept = [address for address in addresses if address in wanted]
    if len(kept) == len(addresses):
        return False
    first: dict[IPv4Network, Address] = {}
    for address in addresses:
        first.setdefault(address.interface.network, address)
    return not kept or any(first[address.interface.network] not in wanted for address in kept)
