"""Keeps the interfaces of one process running, each independently, and applies changes of the config."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import trio

from ..config.diff import Change
from ..config.model import ClientConfig, InterfaceConfig, ServerConfig
from ..errors import HostError, MissingBridgeError, ShortageError, leaves, shortage_of
from ..host.interfaces import Host
from ..http.virtual_hosts import ListenerManager, open_listeners
from ..log import flap_damped, interface_logger
from .interface import run_interface
from .registry import Record, Registry
from .restart import RestartPause


class Interfaces:
    """The running interfaces. Made by `run_interfaces`."""

    def __init__(self, nursery: trio.Nursery, host: Host, listeners: ListenerManager, registry: Registry) -> None:
        self._nursery = nursery
        self._host = host
        self._listeners = listeners
        self._registry = registry
        self._lock = trio.Lock()

    async def start(self, config: InterfaceConfig, *, retry_start: bool = False) -> None:
        """Run one more interface. If its start fails, the error is raised and the interface does not run.

        ``retry_start``: a start that fails is retried instead, as after a failure of a running interface.
        """
        record = self._registry.add(config)
        try:
            await self._nursery.start(_supervise, record, self._host, self._listeners, retry_start)
        except BaseException:
            self._registry.remove(config.name)
            raise

    async def change(self, changes: Sequence[Change]) -> None:
        """Make all of these changes, or none.

        If this machine refuses a change, or an internal error ends it, the former state is restored (an interface that
        does not start again at once is retried) and HostError is raised. Calls wait for each other.

        When it is cancelled, the changes that were made stay.
        """
        async with self._lock:
            # Names and bridges are checked before anything is stopped. This process uses none of the added names now.
            await require_names(self._host, [change.name for change in changes if change.kind == "added"])
            waiting = {change.name for change in changes if self._can_wait(change)}
            await self._require_bridges(changes, waiting)
            refusal = await self._make_all(changes, waiting, back=False)
            if refusal is not None:
                await self._make_all([change.inverse for change in reversed(changes)], waiting, back=True)
                raise refusal

    async def repair(self) -> list[str]:
        """Put back what other programs have removed from the running interfaces, without the limits on repairs. Returns
        a line for each item that was put back. Items that cannot be put back are logged and shown in the status."""
        lines: list[str] = []
        async with self._lock:
            for record in self._registry:
                if record.repair is None:
                    continue
                name = record.config.name
                try:
                    lines += [f"{name}: {what}" for what in await record.repair()]
                except HostError as exc:
                    interface_logger(name).warning("not everything that is missing could be put back: %s", exc)
        return lines

    def _can_wait(self, change: Change) -> bool:
        """Whether the interface has the same bridge before the change and after it, and may start without it: a client,
        or a server that does not run at present, perhaps because the bridge is missing."""
        before, after, record = change.before, change.after, self._registry.get(change.name)
        if before is None or after is None or record is None or after.bridge is None or before.bridge != after.bridge:
            return False
        return isinstance(after, ClientConfig) or record.reconfigure is None

    async def _require_bridges(self, changes: Sequence[Change], waiting: Collection[str]) -> None:
        """Raise HostError if an interface that is about to start could not become a port of its bridge, or if one that
        has its bridge, or is ``waiting`` for it, would lose it."""
        ending = {change.name: change.before for change in changes if change.kind in ("removed", "restart")}
        removed = {each.bridge.name for each in ending.values() if each and each.bridge and each.bridge.create}
        staying = [record.config for record in self._registry if record.config.name not in ending]
        after = [*staying, *(change.after for change in changes if change.after is not None)]
        starting = [change.after for change in changes if change.after and change.kind in ("added", "restart")]
        keeping = [*staying, *(each for each in starting if each.name in waiting)]
        users = [each for each in starting if each.name not in waiting or isinstance(each, ServerConfig)]
        # Nothing but a bridge that is missing keeps a server waiting: what else is wrong would be told when it starts.
        must = {each.name for each in users}
        users += [each for each in keeping if each.bridge and not each.bridge.create and each.bridge.name in removed]
        kept = {each.name for each in keeping}  # without a bridge at present, they have none to lose
        wanted = {
            each.name: each.bridge for each in users if each.bridge is not None and not _awaits_bridge(each, after)
        }
        if not wanted:
            return
        async with self._host.open_network() as network:
            for name, bridge in wanted.items():
                try:
                    await network.require_bridge(name, bridge.name, create=bridge.create, ending=ending.keys())
                except MissingBridgeError as exc:
                    if exc.ends or name not in kept:
                        raise MissingBridgeError(f"{name}: {exc}") from exc
                except ShortageError:
                    raise
                except HostError as exc:
                    if name not in kept or name in must:
                        raise HostError(f"{name}: {exc}") from exc

    async def _make_all(self, changes: Sequence[Change], waiting: Collection[str], *, back: bool) -> HostError | None:
        """Make first the changes that free names, addresses and ports, then those that need them. Returns the first
        error.

        Args:
            waiting: the names of interfaces that may start without their bridge; see `_can_wait`.
            back: undo the changes; those that were not made yet are skipped.
        """
        for change in changes:
            if change.kind in ("removed", "restart"):
                await self._stop(change.name)
        live = [change for change in changes if change.kind == "live"]
        while live:
            made = [(change, await self._make(change, waiting, back=back)) for change in live]
            refused = [(change, error) for change, error in made if error is not None]
            if len(refused) == len(live):
                return refused[0][1]
            live = [change for change, _ in refused]  # another interface may have had the address until now
        for change in sorted(changes, key=_uses_foreign_bridge):
            if change.kind != "live" and (refusal := await self._make(change, waiting, back=back)) is not None:
                return refusal
        return None

    async def _make(self, change: Change, waiting: Collection[str], *, back: bool) -> HostError | None:
        """Make one change. Returns the error, if there is one."""
        refusal: HostError | None = None
        log = interface_logger(change.name)
        try:
            await self._try(change, waiting, back=back)
        except* HostError as group:
            refusal = next(leaves(group))
        except* Exception as group:
            log.exception("internal error while this change was made")
            refusal = HostError(f"{change.name}: internal error: {next(leaves(group))!r}")
        return refusal

    async def _try(self, change: Change, waiting: Collection[str], *, back: bool) -> None:
        record, after = self._registry.get(change.name), change.after
        if record is not None and record.config is after:
            return
        if change.kind == "live" and after is not None and record is not None and record.reconfigure is not None:
            before, record.config = record.config, after  # now: the interface may restart during the change
            try:
                await record.reconfigure(after)
                return
            except BaseException as exc:  # internal errors as well
                if not (back and isinstance(exc, Exception)):
                    record.config = before
                    raise
        await self._stop(change.name)  # also an interface that is just restarting with its former config
        if after is None:
            return
        try:
            await self.start(after, retry_start=_awaits_bridge(after, [each.config for each in self._registry]))
        except* Exception as group:
            is_bridgeless = all(isinstance(each, MissingBridgeError) for each in leaves(group))
            if not (back or (change.name in waiting and is_bridgeless)):
                raise
            await self.start(after, retry_start=True)

    async def _stop(self, name: str) -> None:
        record = self._registry.get(name)
        if record is not None:
            record.scope.cancel()
            await record.ended.wait()
            self._registry.remove(name)


def _uses_foreign_bridge(change: Change) -> bool:
    """Such an interface is started after the others, one of which may make the bridge."""
    return change.after is not None and change.after.bridge is not None and not change.after.bridge.create


def _awaits_bridge(config: InterfaceConfig, others: Iterable[InterfaceConfig]) -> bool:
    """Whether one of the others makes the bridge that this interface becomes a port of. It may be a client, which makes
    it when the server has answered; so a start without the bridge is tried again."""
    bridge = config.bridge
    if bridge is None or bridge.create:
        return False
    made = (other.bridge for other in others)
    return any(other is not None and other.create and other.name == bridge.name for other in made)


async def require_names(host: Host, names: Iterable[str]) -> None:
    """Raises HostError if one of these names belongs to another process or to an interface of other software."""
    for name in names:
        try:
            async with host.own_name(name):
                pass
        except HostError as exc:
            raise HostError(f"{name}: {exc}") from exc


async def run_interfaces(
    configs: Sequence[InterfaceConfig],
    host: Host,
    registry: Registry | None = None,
    *,
    task_status: trio.TaskStatus[Interfaces] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run all interfaces until cancelled. Reports started when each of them has started.

    An error before that is raised, except that of an interface that becomes a port of a bridge that another one makes:
    it starts after the others, and is retried. So is one whose bridge is missing (`_start_or_retry`). Afterwards an
    interface that fails is restarted, and the others are not affected.
    ``registry``: gets the running interfaces.
    """
    registry = registry or Registry()
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        interfaces = Interfaces(nursery, host, listeners, registry)
        waiting = [config for config in configs if _awaits_bridge(config, configs)]
        async with trio.open_nursery() as starting:
            for config in configs:
                if config not in waiting:
                    starting.start_soon(_start_or_retry, interfaces, config)
        for config in waiting:
            await interfaces.start(config, retry_start=True)
        registry.sort(config.name for config in configs)
        nursery.start_soon(trio.sleep_forever)  # a reload may leave no interface for a while
        task_status.started(interfaces)


async def _start_or_retry(interfaces: Interfaces, config: InterfaceConfig) -> None:
    """As `Interfaces.start`, but what may pass by itself makes it retry until it starts: a shortage of this machine, or
    a missing bridge. While a machine boots, this program may start before the one that makes the bridges."""
    try:
        await interfaces.start(config)
        return
    except* ShortageError as group:
        interface_logger(config.name).warning("%s; trying again", next(leaves(group)))
    except* MissingBridgeError:
        pass  # told by the start that follows, unless the bridge is there by then
    await interfaces.start(config, retry_start=True)


class _Started:
    """Passes the first `started` on, and only that one: later ones are restarts."""

    def __init__(self, record: Record, task_status: trio.TaskStatus[None], *, once: bool) -> None:
        self._record = record
        self._task_status = task_status
        self.once = once
        if once:
            task_status.started()

    def started(self, value: None = None) -> None:
        self._record.started()
        if not self.once:
            self.once = True
            self._task_status.started()


async def _supervise(
    record: Record, host: Host, listeners: ListenerManager, retry_start: bool, *, task_status: trio.TaskStatus[None]
) -> None:
    try:
        with record.scope:
            await _keep_running(record, host, listeners, _Started(record, task_status, once=retry_start))
    finally:
        record.ended.set()


async def _keep_running(record: Record, host: Host, listeners: ListenerManager, status: _Started) -> None:
    log = interface_logger(record.config.name)
    rate_limited = flap_damped()
    pause = RestartPause()
    while True:
        begun, logged = trio.current_time(), True
        try:
            await run_interface(record.config, host, listeners, record, task_status=status)
        except* HostError as group:
            if not status.once:
                first = next(leaves(group))
                if isinstance(first, ShortageError):
                    raise first from group
                kind = MissingBridgeError if isinstance(first, MissingBridgeError) else HostError
                raise kind(f"{record.config.name}: {first}") from first
            logged = rate_limited.log(log, logging.ERROR, trio.current_time(), "; ".join(map(str, leaves(group))))
            record.failed("; ".join(map(str, leaves(group))))
        except* Exception as group:
            found = [shortage_of(exc, "cannot go on") for exc in leaves(group)]
            shortage = found[0] if None not in found else None
            if not status.once:
                if shortage is None:
                    raise
                raise shortage from group
            now = trio.current_time()
            if shortage is not None:
                logged = rate_limited.log(log, logging.ERROR, now, str(shortage))
                record.failed(str(shortage))
            else:
                logged = rate_limited.log(log, logging.ERROR, now, "internal error, interface stopped", traceback=True)
                record.failed(f"internal error: {next(leaves(group))!r}")
        pause_s = pause.next_s(lived_s=trio.current_time() - begun)
        log.log(logging.WARNING if logged else logging.DEBUG, "restarting in %.0f s", pause_s)
        await trio.sleep(pause_s)
