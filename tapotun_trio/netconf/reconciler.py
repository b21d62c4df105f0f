"""The route task: makes the kernel look as the interface's plan says, and undoes every item at the end."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import trio

from ..cooperative import PART, Steps, run_cooperatively
from ..errors import HostError, ShortageError
from ..host.interfaces import Host, Network
from ..host.items import Address, DesiredState, HostRoute, Item, ItemsRefused
from ..host.netlink.rewatch import Rewatch
from .transport_guard import TransportGuard

COMPLAINTS: Final = 5  # lines about refused routes at a time; a server may push hundreds
_ENDED: Final = "this interface ended meanwhile"
AGAIN_S: Final = (0.5, 10.0)  # the first pause before the way back is tried again, doubled up to the last
UNDO_S: Final = 0.8  # teardown is to be over within a second, even beside a netlink that does not answer


@dataclass(frozen=True, slots=True)
class _Look:
    """Ask again how the transport gets to where it goes. ``thorough``: also if nothing seems amiss."""

    thorough: bool


class _Order:
    """What the task is to do, and what came of it. ``desired``: None: put back what stands in our notes."""

    __slots__ = ("desired", "done", "refusal")

    def __init__(self, desired: DesiredState | _Look | None) -> None:
        self.desired = desired
        self.done = trio.Event()
        self.refusal: HostError | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Whoever ordered it never waits for a task that is no more."""
        if error is not None:
            self.refusal = error if isinstance(error, HostError) else HostError(_ENDED)
        self.done.set()


class Reconciler:
    """Owns the addresses, routes and rules of one interface.

    Where somebody sets the interface down, the kernel takes the routes away, and up again does not bring them
    back: then we do, once each time. Nothing else that others do to the interface is undone, as they may mean it.

    A pushed item that the kernel refuses is told once and left out; the next plan, and the next time that the link
    comes up, try it again. A shortage of this machine is told to whoever gave the order, who may give it again; until
    then what stood before stands. Any other refusal is the end of the interface.

    An item is written down before it is made: what is cancelled or fails in between is undone with the rest.

    A client's transport must not end up in its own tunnel: its guard decides what of a plan may stand.
    """

    def __init__(
        self,
        host: Host,
        device_name: str,
        log: logging.LoggerAdapter[logging.Logger],
        guard: TransportGuard | None = None,
    ) -> None:
        self._host = host
        self._name = device_name
        self._log = log
        self._guard = guard
        self._made: list[Item] = []
        self._missing: dict[Item, str] = {}  # pushed items that were refused, and why
        self._mtu: int | None = None
        self._orders, self._inbox = trio.open_memory_channel[_Order](0)

    async def run(
        self, desired: DesiredState, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Apply ``desired``, report started, then apply what `apply` brings, and put back what went with the link; undo
        everything when cancelled.

        Raises HostError if the kernel refuses an item that was not pushed.
        """
        async with self._host.open_network() as network:
            try:
                await self._install(network, desired)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_link)
                    task_status.started()
                    async for order in self._inbox:
                        with order:
                            if order.desired is None:
                                await self._put_back(network)
                            elif isinstance(order.desired, _Look):
                                if order.desired.thorough or await self._is_amiss(network):
                                    order.refusal = await self._try(network, desired, desired)
                            else:
                                order.refusal = await self._try(network, desired, order.desired)
                                desired = desired if order.refusal else order.desired
            finally:
                self._inbox.close()
                with trio.move_on_after(UNDO_S, shield=True) as deadline:
                    await self._undo(network)
                if deadline.cancelled_caught:
                    self._log.warning("netlink did not answer; left behind: %s", self._made)

    async def apply(self, desired: DesiredState) -> None:
        """Have the task make the difference between what stands and ``desired``. Returns when it is made.

        Raises HostError if the kernel refuses an item that was not pushed; then what stood before stands again. Or if
        the task is over: because of this very order, or of something else.
        """
        await self._order(desired)

    async def look(self, thorough: bool) -> None:
        """Have the task ask again how the transport gets to where it goes, and do what follows from that; or, unless
        ``thorough``, only if something seems amiss. Raises as `apply`."""
        await self._order(_Look(thorough))

    async def _order(self, desired: DesiredState | _Look | None) -> None:
        """None: put back what stands in our notes."""
        order = _Order(desired)
        try:
            await self._orders.send(order)
        except trio.BrokenResourceError:
            raise HostError(_ENDED) from None
        await order.done.wait()
        if order.refusal is not None:
            await trio.lowlevel.checkpoint_if_cancelled()  # who ends with the task has nothing to complain of
            raise order.refusal

    async def _watch_link(self) -> None:
        async def watch() -> None:
            async with self._host.open_link(self._name) as changes:
                if retry.lapsed:  # the link may have been down and up unseen; nothing is done twice
                    await self._order(None)
                retry.worked()
                async for up in changes:
                    if up:
                        await self._order(None)
                    else:
                        self._log.warning("somebody set this interface down: nothing passes until it is up again")

        retry = Rewatch(self._log, "if somebody sets this interface down, its routes will stay away")
        await retry.keep(watch)

    async def _put_back(self, network: Network) -> None:
        # What was missing is tried after the rest: it may have been refused because the link was down.
        missing, made = self._missing, self._made
        self._made = [*made, *missing]
        try:
            await network.add(self._name, self._made)
            self._missing = {}
            self._log.info("somebody set this interface up again: put its addresses and routes back")
        except HostError as exc:
            refused = exc.refused if isinstance(exc, ItemsRefused) else missing
            self._missing = {item: refused[item] for item in missing if item in refused}
            self._made = [item for item in self._made if item not in self._missing]
            if isinstance(exc, ItemsRefused) and refused.keys() <= missing.keys():
                self._log.info("somebody set this interface up again: put its addresses and routes back")
                return
            # Somebody else's route may have taken the place meanwhile. It stays; we try again the next time only.
            self._log.warning("somebody set this interface up again, and not everything could be put back: %s", exc)

    async def _try(self, network: Network, before: DesiredState, desired: DesiredState) -> HostError | None:
        """Change to ``desired``, or back to the one before; returns why. Raises HostError if there is no way back."""
        try:
            await self._install(network, desired)
        except HostError as exc:
            await self._change_back(network, before, exc)
            return exc
        return None

    async def _change_back(self, network: Network, before: DesiredState, why: HostError) -> None:
        """Change back to ``before``; after a shortage try until it is done. Raises HostError for any other reason."""
        pause_s, shortage = AGAIN_S[0], isinstance(why, ShortageError)
        while True:
            try:
                await self._install(network, before)
                if shortage:  # what was asked of the kernel may have been done or not, whatever our notes say
                    await network.add(self._name, self._made)
                return
            except ShortageError as exc:
                shortage = True
                self._log.debug("%s; trying again in %.1f s", exc, pause_s)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S[1])

    async def _is_amiss(self, network: Network) -> bool:
        try:
            return self._guard is not None and await self._guard.is_amiss(network, self._name)
        except HostError:
            return True  # whoever looks more closely says why

    async def _install(self, network: Network, desired: DesiredState) -> None:
        await self._change(
            network, desired if self._guard is None else await self._guarded(self._guard, network, desired)
        )

    async def _guarded(self, guard: TransportGuard, network: Network, desired: DesiredState) -> DesiredState:
        """What of the plan may stand. The host routes that the rest of it needs are made when this returns."""
        refused: set[IPv4Address] = set()
        while True:  # Ends: each round but the last takes an address away from those that may have a host route.
            decision = await guard.decide(network, self._name, desired, self._made, refused)
            self._made += [item for item in decision.exceptions if item not in self._made]
            try:
                if decision.exceptions:  # also if they stand by our notes: the kernel takes them away with their device
                    await network.add(self._name, decision.exceptions)
            except ItemsRefused as exc:
                self._log.warning("%s", exc)
                self._made = [item for item in self._made if item not in exc.refused]
                refused |= {item.address for item in exc.refused if isinstance(item, HostRoute)}
            else:
                return replace(desired, items=decision.items)

    async def _change(self, network: Network, desired: DesiredState) -> None:
        if desired.mtu != self._mtu:
            await network.link_up(self._name, desired.mtu)
            self._mtu = desired.mtu
        gone, kept, fresh = await run_cooperatively(_difference(self._made, desired.items))
        if gone:
            await network.remove(self._name, gone[::-1])
            self._made = kept
        self._made += fresh
        told, self._missing = self._missing, {}
        if fresh:
            try:
                await network.add(self._name, fresh)
            except ItemsRefused as exc:
                if not exc.refused.keys() <= desired.pushed:
                    raise exc.shortage or exc from exc.__cause__
                self._leave_out(exc.refused, told)
        await self._remove_host_routes(network, {item for item in desired.items if isinstance(item, HostRoute)})

    async def _remove_host_routes(self, network: Network, wanted: Container[Item]) -> None:
        """Remove those that are not wanted any more: after the routes that they were exceptions to. One that another
        to the same address has taken the place of is gone already."""
        kept = {(item.address, item.table) for item in self._made if isinstance(item, HostRoute) and item in wanted}
        gone = [item for item in self._made if isinstance(item, HostRoute) and item not in wanted]
        if idle := [item for item in gone if (item.address, item.table) not in kept]:
            await network.remove(self._name, idle)
        self._made = [item for item in self._made if item not in gone]

    def _leave_out(self, refused: dict[Item, str], told: dict[Item, str]) -> None:
        """Go on without these, and say so unless that was ``told`` in the same words."""
        self._made = [item for item in self._made if item not in refused]
        self._missing = refused
        news = [reason for item, reason in refused.items() if told.get(item) != reason]
        for reason in news[:COMPLAINTS]:
            self._log.warning("goes on without what the server pushed (its push_routes): %s", reason)
        if len(news) > COMPLAINTS:
            self._log.warning("goes on without %d more that the server pushed", len(news) - COMPLAINTS)

    async def _undo(self, network: Network) -> None:
        try:
            await network.remove(self._name, self._made[::-1])
            self._made = []
        except HostError as exc:
            self._log.warning("could not undo everything: %s", exc)


def _difference(made: Collection[Item], desired: Collection[Item]) -> Steps[tuple[list[Item], list[Item], list[Item]]]:
    """What of ``made`` has to go for ``desired``, what of it stays, and what is to be added, each in its order. Host
    routes stay: they go last (`_remove_host_routes`).

    In steps, and with every item looked up in a set: there may be tens of thousands, and to hash one takes a
    microsecond.
    """
    wanted: set[Item] = set()
    for number, item in enumerate(desired, 1):
        wanted.add(item)
        if number % PART == 0:
            yield
    gone: list[Item] = []
    kept: list[Item] = []
    standing: set[Item] = set()
    afresh = _takes_others_along(made, wanted)
    for number, item in enumerate(made, 1):
        if isinstance(item, HostRoute) or (item in wanted and not afresh):
            kept.append(item)
            standing.add(item)
        else:
            gone.append(item)
        if number % PART == 0:
            yield
    fresh: list[Item] = []
    for number, item in enumerate(desired, 1):
        if item not in standing:
            fresh.append(item)
        if number % PART == 0:
            yield
    return gone, kept, fresh


def _takes_others_along(made: Iterable[Item], wanted: Container[Item]) -> bool:
    """Whether the kernel, when what is not wanted goes, takes along what is: with the first address of a network those
    after it, and with the last address of an interface its routes. Any other address goes alone, and whoever uses
    the rest loses no packet."""
    addresses = [item for item in made if isinstance(item, Address)]
    kept = [address for address in addresses if address in wanted]
    if len(kept) == len(addresses):
        return False
    first: dict[IPv4Network, Address] = {}
    for address in addresses:
        first.setdefault(address.interface.network, address)
    return not kept or any(first[address.interface.network] not in wanted for address in kept)
