"""Keeps the interfaces of one process running, each for itself, and changes them when the config does."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from ..config.diff import Change
from ..config.model import InterfaceConfig
from ..errors import HostError, ShortageError, leaves, shortage_of
from ..host.interfaces import Host
from ..http.acceptor import ListenerManager, open_listeners
from ..log import flap_damped, interface_logger
from .interface import run_interface
from .registry import Record, Registry

RESTART_S: Final = (1.0, 30.0)  # the first pause, doubled up to the last
HEALTHY_S: Final = 60.0  # an interface that lived so long starts again with the first pause


class Interfaces:
    """All that run. Made by `run_interfaces`."""

    def __init__(self, nursery: trio.Nursery, host: Host, listeners: ListenerManager, registry: Registry) -> None:
        self._nursery = nursery
        self._host = host
        self._listeners = listeners
        self._registry = registry
        self._lock = trio.Lock()

    async def start(self, config: InterfaceConfig, *, whatever_comes: bool = False) -> None:
        """Run one more. Raises what it raises before it has started; then it does not run.

        ``whatever_comes``: that is tried again, as if it had run before.
        """
        record = self._registry.add(config)
        try:
            await self._nursery.start(_supervise, record, self._host, self._listeners, whatever_comes)
        except BaseException:
            self._registry.remove(config.name)
            raise

    async def change(self, changes: Sequence[Change]) -> None:
        """Make all of these changes, or none. Raises HostError if this machine refuses one, or a bug ends it; then
        what was there before is there again, or is tried again until it is.

        Cancelled, what was made stays. Whoever comes meanwhile waits, and so does who comes on the way back.
        """
        async with self._lock:
            # Before anything is stopped for what cannot be had. No name that is added is one of ours now.
            await require_names(self._host, [change.name for change in changes if change.kind == "added"])
            refusal = await self._make_all(changes, back=False)
            if refusal is not None:
                await self._make_all([change.inverse for change in reversed(changes)], back=True)
                raise refusal

    async def _make_all(self, changes: Sequence[Change], *, back: bool) -> HostError | None:
        """First what frees names, addresses and ports, last what needs them. Returns the first refusal.

        ``back``: undo; what was not made yet is left as it is.
        """
        for change in changes:
            if change.kind in ("removed", "restart"):
                await self._stop(change.name)
        live = [change for change in changes if change.kind == "live"]
        while live:
            refused = [(it, refusal) for it in live if (refusal := await self._make(it, back=back)) is not None]
            if len(refused) == len(live):
                return refused[0][1]
            live = [change for change, _ in refused]  # what it wants may have been another interface's until now
        for change in changes:
            if change.kind != "live" and (refusal := await self._make(change, back=back)) is not None:
                return refusal
        return None

    async def _make(self, change: Change, *, back: bool) -> HostError | None:
        """Returns why not."""
        refusal: HostError | None = None
        log = interface_logger(change.name)
        try:
            await self._try(change, back=back)
        except* HostError as group:
            refusal = next(leaves(group))
        except* Exception as group:
            log.exception("internal error while this change was made")
            refusal = HostError(f"{change.name}: internal error: {next(leaves(group))!r}")
        return refusal

    async def _try(self, change: Change, *, back: bool) -> None:
        record, after = self._registry.get(change.name), change.after
        if record is not None and record.config is after:
            return
        if change.kind == "live" and after is not None and record is not None and record.reconfigure is not None:
            before, record.config = record.config, after  # should it fail and start again meanwhile
            try:
                await record.reconfigure(after)
                return
            except BaseException as exc:  # a bug too
                if not (back and isinstance(exc, Exception)):
                    record.config = before
                    raise
        await self._stop(change.name)  # also one that is just starting again, as it was told before
        if after is None:
            return
        try:
            await self.start(after)
        except Exception:
            if not back:
                raise
            await self.start(after, whatever_comes=True)

    async def _stop(self, name: str) -> None:
        record = self._registry.get(name)
        if record is not None:
            record.scope.cancel()
            await record.ended.wait()
            self._registry.remove(name)


async def require_names(host: Host, names: Iterable[str]) -> None:
    """Raises HostError if an interface of one of these names could not start, since somebody else has it."""
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
    """Run all of them until cancelled; report started when each has.

    Raises what one of them raises before it has started. Later an interface that fails is started again, and
    the others do not notice. ``registry``: where they can be found while they run.
    """
    registry = registry or Registry()
    async with open_listeners() as listeners, trio.open_nursery() as nursery:
        interfaces = Interfaces(nursery, host, listeners, registry)
        async with trio.open_nursery() as starting:
            for config in configs:
                starting.start_soon(_start_in_time, interfaces, config)
        registry.sort(config.name for config in configs)
        nursery.start_soon(trio.sleep_forever)  # a reload may leave none for a while
        task_status.started(interfaces)


async def _start_in_time(interfaces: Interfaces, config: InterfaceConfig) -> None:
    """As `Interfaces.start`, but for a shortage of this machine, which passes: then it is tried again until it runs."""
    try:
        await interfaces.start(config)
        return
    except* ShortageError as group:
        interface_logger(config.name).warning("%s; trying again", next(leaves(group)))
    await interfaces.start(config, whatever_comes=True)


class _Started:
    """Passes the first `started` on, and remembers it: the later ones are restarts."""

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
    record: Record, host: Host, listeners: ListenerManager, whatever_comes: bool, *, task_status: trio.TaskStatus[None]
) -> None:
    try:
        with record.scope:
            await _keep_running(record, host, listeners, _Started(record, task_status, once=whatever_comes))
    finally:
        record.ended.set()


async def _keep_running(record: Record, host: Host, listeners: ListenerManager, status: _Started) -> None:
    log = interface_logger(record.config.name)
    rate_limited = flap_damped()
    pause_s = RESTART_S[0]
    while True:
        begun, told = trio.current_time(), True
        try:
            await run_interface(record.config, host, listeners, record, task_status=status)
        except* HostError as group:
            if not status.once:
                first = next(leaves(group))
                if isinstance(first, ShortageError):
                    raise first from group
                raise HostError(f"{record.config.name}: {first}") from first
            told = rate_limited.log(log, logging.ERROR, trio.current_time(), "; ".join(map(str, leaves(group))))
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
                told = rate_limited.log(log, logging.ERROR, now, str(shortage))
                record.failed(str(shortage))
            else:
                told = rate_limited.log(log, logging.ERROR, now, "internal error, interface stopped", traceback=True)
                record.failed(f"internal error: {next(leaves(group))!r}")
        if trio.current_time() - begun >= HEALTHY_S:
            pause_s = RESTART_S[0]
        log.log(logging.WARNING if told else logging.DEBUG, "restarting in %.0f s", pause_s)
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, RESTART_S[1])
