"""Reports to the log and to the service manager (sd_notify) when the interfaces are up. From then on, the service
manager also gets their state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from .host.process.sd_notify import ServiceManager
from .lifecycle.registry import Record, Registry
from .lifecycle.snapshot import state_of
from .log import Log

POLL_S: Final = 0.1  # until the process is ready
STATUS_S: Final = 2.0  # from then on
IMPATIENT_S: Final = 30.0  # how long an interface that is not up is checked every POLL_S; then every second
_MAX_LISTED: Final = 4  # interfaces that the status line names one by one


async def notify_service_manager(manager: ServiceManager, registry: Registry, ready_timeout_s: float, log: Log) -> None:
    """Report readiness, then the state and the watchdog's keepalive, until cancelled. Call it once the interfaces run.

    The process is ready when every interface is up: a server listens, a client's streams carry packets. After
    ``ready_timeout_s`` it is reported as ready in any case, with a warning.
    """
    deadline = trio.current_time() + ready_timeout_s
    ready = False
    pause_s = STATUS_S if manager.watchdog_s is None else min(STATUS_S, manager.watchdog_s / 2)
    while True:
        states = {record.config.name: state_of(record) for record in registry}
        waiting = ", ".join(f"{name} is {state}" for name, state in states.items() if state != "up")
        if not ready and (not waiting or trio.current_time() >= deadline):
            if waiting:
                log.warning(
                    "not up within %g s: %s; reporting ready in any case, and still trying", ready_timeout_s, waiting
                )
            manager.ready()
            ready = True
        refused = registry.last_reload is not None and registry.last_reload.error is not None
        manager.status(describe(registry) + ("; the last reload was refused" if refused else ""))
        if manager.watchdog_s is not None:
            manager.watchdog()
        await trio.sleep(pause_s if ready else min(POLL_S, pause_s))


async def log_ready(registry: Registry, log: Log) -> None:
    """Log ``ready`` when an interface is up for the first time: a server listens, a client's streams carry packets.

    Interfaces that are up at the same time share a line. Runs until cancelled, since a reload adds interfaces.
    """
    told: set[Record] = set()
    waited_s = 0.0
    while True:
        records = set(registry)
        ready = [record for record in registry if record not in told and state_of(record) in ("up", "degraded")]
        if ready:
            log.info("ready: %s", ", ".join(record.config.name for record in ready))
        told = (told & records) | set(ready)
        waited_s = 0.0 if told == records else waited_s
        pause_s = STATUS_S if told == records else POLL_S if waited_s < IMPATIENT_S else 1.0
        await trio.sleep(pause_s)
        waited_s += pause_s


def describe(records: Iterable[Record]) -> str:
    """One line: ``tun0 up, 3 of 5 clients; tun1 connecting``."""
    interfaces = list(records)
    if len(interfaces) > _MAX_LISTED:
        up = [record for record in interfaces if state_of(record) == "up"]
        return f"{len(up)} of {len(interfaces)} interfaces up"
    return "; ".join(map(_describe, interfaces))


def _describe(record: Record) -> str:
    text = f"{record.config.name} {state_of(record)}"
    sessions = None if record.tunnel is None else record.tunnel.sessions
    if sessions is not None:
        connected = [session for session in sessions if session.state == "connected"]
        text += f", {len(connected)} of {len(sessions)} clients"
    return text
