"""The task that makes the kernel agree with an interface's desired state, and undoes everything at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import trio

from ..errors import HostError, ShortageError
from ..families import IPAddress
from ..host.interfaces import Host, InterfaceChange
from ..host.items import DesiredState, Item
from ..host.netlink.rewatch import Rewatch
from .installed import InstalledItems
from .repairer import UNKNOWN_CHANGE, GoneError, Health, Repairer
from .transport_guard import TransportGuard

_ENDED: Final = "this interface ended meanwhile"
AGAIN_S: Final = (0.5, 10.0)  # the first pause before the old state is tried again, doubled up to the last
UNDO_S: Final = 0.8  # teardown has to be over within a second, even if netlink does not answer


@dataclass(frozen=True, slots=True)
class _Recheck:
    """Check again how the transport is routed. ``thorough``: even if nothing seems wrong."""

    thorough: bool


@dataclass(frozen=True, slots=True)
class _Look:
    """A request to put back what is missing after ``change``. ``forced``: see `Repairer.look`."""

    change: InterfaceChange = UNKNOWN_CHANGE
    forced: bool = False


class _Request:
    """A request to the task, and its outcome. The task works on it within this context manager."""

    __slots__ = ("action", "done", "put_back", "refusal")

    def __init__(self, action: DesiredState | _Recheck | _Look) -> None:
        self.action = action
        self.done = trio.Event()
        self.refusal: HostError | None = None
        self.put_back: list[str] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """The requester is answered even if this request ends the task."""
        if error is not None:
            self.refusal = error if isinstance(error, HostError) else HostError(_ENDED)
        self.done.set()


class Reconciler:
    """Owns the addresses, routes and rules of one interface.

    If another program removes any of them, that is noticed and they are put back (`Repairer`).

    A pushed item that the kernel refuses is left out (`InstalledItems`). A shortage of this machine is reported to the
    requester, who may repeat the request; until then the old state stays. Any other refusal ends the interface.

    A client's transport must not be routed into its own tunnel: the guard decides which items are allowed.
    """

    def __init__(
        self,
        host: Host,
        device_name: str,
        log: logging.LoggerAdapter[logging.Logger],
        guard: TransportGuard | None = None,
        health: Health | None = None,
    ) -> None:
        """``health``: is updated when something is missing or put back."""
        self._host = host
        self._name = device_name
        self._log = log
        self._guard = guard
        self._health = health or Health()
        self._installed: InstalledItems | None = None
        self._requests, self._inbox = trio.open_memory_channel[_Request](0)

    @property
    def refused(self) -> Mapping[Item, str]:
        """The pushed items that the kernel refused, each with the reason. They are tried again at the next change."""
        return {} if self._installed is None else self._installed.refused

    async def run(
        self, desired: DesiredState, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Apply ``desired`` and report started. Then serve requests, and put back what other programs remove. Undoes
        everything when cancelled.

        Raises HostError if the kernel refuses an item that was not pushed, or if the interface is gone from this
        network namespace.
        """
        async with self._host.open_network() as network:
            installed = self._installed = InstalledItems(network, self._name, self._log)
            wanted = desired

            async def reinstall() -> None:
                await self._install(installed, wanted)

            repairer = Repairer(self._name, installed, self._health, self._log, reinstall)
            self._health.set_degraded(None)
            try:
                await self._install(installed, desired)
                index = await network.index(self._name)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, index, installed)
                    nursery.start_soon(self._repair_when_due, repairer)
                    task_status.started()
                    async for request in self._inbox:
                        with request:
                            match request.action:
                                case _Look(change, forced):
                                    try:
                                        request.put_back = await repairer.look(change, forced=forced)
                                    except GoneError:
                                        raise
                                    except HostError as exc:
                                        request.refusal = exc
                                case _Recheck(thorough):
                                    if thorough or await self._is_transport_captured(installed):
                                        request.refusal = await self._try(installed, wanted, wanted)
                                case DesiredState() as newer:
                                    request.refusal = await self._try(installed, wanted, newer)
                                    if request.refusal is None:
                                        wanted = newer
            finally:
                self._inbox.close()
                with trio.move_on_after(UNDO_S, shield=True) as deadline:
                    await installed.remove_all()
                if deadline.cancelled_caught:
                    self._log.warning("netlink did not answer; left behind: %s", installed.items)

    async def apply(self, desired: DesiredState) -> None:
        """Have the task change the kernel's state to ``desired``. Returns when that is done.

        Raises HostError if the kernel refuses an item that was not pushed; then the old state is in the kernel again.
        Also raises HostError if the task has ended, because of this request or for another reason.
        """
        await self._request(desired)

    async def recheck(self, thorough: bool) -> None:
        """Have the task check how the transport is routed, and decide again if something seems wrong, or in any case if
        ``thorough``. Raises as `apply`."""
        await self._request(_Recheck(thorough))

    async def repair(self) -> list[str]:
        """Have the task put back everything that is missing, including the interface's name and its state "up". Returns
        a phrase for each item that was put back; empty if nothing was missing. Raises HostError if an item could not be
        put back, or if the task has ended."""
        return (await self._request(_Look(forced=True))).put_back

    async def _request(self, action: DesiredState | _Recheck | _Look) -> _Request:
        request = _Request(action)
        try:
            await self._requests.send(request)
        except trio.BrokenResourceError:
            raise HostError(_ENDED) from None
        await request.done.wait()
        if request.refusal is not None:
            # If the requester is cancelled as well, its cancellation is the outcome.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise request.refusal
        return request

    async def _watch(self, index: int, installed: InstalledItems) -> None:
        async def watch() -> None:
            async with self._host.open_interface(index, installed.may_have_route) as changes:
                # Items may have been removed before this watch began, for example after the previous watch failed.
                await self._request(_Look())
                retry.worked()
                async for change in changes:
                    await self._request(_Look(change))

        retry = Rewatch(self._log, "what another program takes away from this interface will stay away")
        await retry.keep(watch)

    async def _repair_when_due(self, repairer: Repairer) -> None:
        while True:
            await repairer.wait_due()
            await self._request(_Look())

    async def _try(self, installed: InstalledItems, before: DesiredState, desired: DesiredState) -> HostError | None:
        """Change to ``desired``. If that fails, change back and return the reason. Raises HostError if changing back
        fails."""
        try:
            await self._install(installed, desired)
        except HostError as exc:
            await self._change_back(installed, before, after_shortage=isinstance(exc, ShortageError))
            return exc
        return None

    async def _change_back(self, installed: InstalledItems, before: DesiredState, *, after_shortage: bool) -> None:
        """Change back to ``before``; after a shortage, try until it succeeds. Raises HostError for any other reason."""
        pause_s = AGAIN_S[0]
        while True:
            try:
                await self._install(installed, before)
                if after_shortage:  # the kernel may have executed a request or not, so the record may be wrong
                    await installed.add_all_again()
                return
            except ShortageError as exc:
                after_shortage = True
                self._log.debug("%s; trying again in %.1f s", exc, pause_s)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S[1])

    async def _is_transport_captured(self, installed: InstalledItems) -> bool:
        try:
            return self._guard is not None and await self._guard.is_amiss(installed.network, self._name)
        except HostError:
            return True  # the thorough check reports the reason

    async def _install(self, installed: InstalledItems, desired: DesiredState) -> None:
        if self._guard is not None:
            desired = await self._allowed(self._guard, installed, desired)
        await installed.change(desired)

    async def _allowed(self, guard: TransportGuard, installed: InstalledItems, desired: DesiredState) -> DesiredState:
        """The part of the desired state that is allowed. The host routes that it needs are added when this returns."""
        refused: frozenset[IPAddress] = frozenset()
        while True:  # This loop ends: each round but the last removes an address from those that may have a host route.
            decision = await guard.decide(installed.network, self._name, desired, installed.items, refused)
            newly_refused = await installed.add_host_routes(decision.exceptions)
            if not newly_refused:
                return replace(desired, items=decision.items)
            refused |= newly_refused
