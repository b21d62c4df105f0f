"""When the process is ready, for the service manager that started it, and how it is since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from .host.process.sd_notify import ServiceManager
from .lifecycle.registry import Record, Registry
from .lifecycle.snapshot import state_of
from .log import Log
from .server.server import TunnelServer

POLL_S: Final = 0.1  # until ready
STATUS_S: Final = 2.0  # afterwards
_SEVERAL: Final = 4  # interfaces that a status tells one by one


async def tell(manager: ServiceManager, registry: Registry, ready_timeout_s: float, log: Log) -> None:
    """Tell it that we are ready as soon as every interface is up (a server listens, a client's streams carry packets),
    or after ``ready_timeout_s`` with a warning; then how we are, and that we live; until cancelled.

    The interfaces have started.
    """
    deadline = trio.current_time() + ready_timeout_s
    ready = False
    pause_s = STATUS_S if manager.watchdog_s is None else min(STATUS_S, manager.watchdog_s / 2)
    while True:
        states = {record.config.name: state_of(record) for record in registry}
        waiting = ", ".join(f"{name} is {state}" for name, state in states.items() if state != "up")
        if not ready and (not waiting or trio.current_time() >= deadline):
            if waiting:
                log.warning("not up within %g s: %s; ready all the same, and still trying", ready_timeout_s, waiting)
            manager.ready()
            ready = True
        refused = registry.last_reload is not None and registry.last_reload.error is not None
        manager.status(describe(registry) + ("; the last reload was refused" if refused else ""))
        if manager.watchdog_s is not None:
            manager.watchdog()
        await trio.sleep(pause_s if ready else min(POLL_S, pause_s))


def describe(records: Iterable[Record]) -> str:
    """One line: ``tun0 up, 3 of 5 clients; tun1 connecting``."""
    all_of_them = list(records)
    if len(all_of_them) > _SEVERAL:
        up = sum(state_of(record) == "up" for record in all_of_them)
        return f"{up} of {len(all_of_them)} interfaces up"
    return "; ".join(map(_describe, all_of_them))


def _describe(record: Record) -> str:
    text = f"{record.config.name} {state_of(record)}"
    if isinstance(record.tunnel, TunnelServer):
        sessions = record.tunnel.sessions
        text += f", {sum(it.state == 'connected' for it in sessions)} of {len(sessions)} clients"
    return text
