"""Keeps the interfaces of one process running, each for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from ..config.model import InterfaceConfig
from ..errors import HostError, leaves
from ..host.ports import Host
from ..log import interface_logger
from .frontdoor import FrontDoor, open_front_door
from .interface import run_interface
from .registry import Record, Registry

RESTART_S: Final = (1.0, 30.0)  # the first pause, doubled up to the last
HEALTHY_S: Final = 60.0  # an interface that lived so long starts again with the first pause


async def run_interfaces(
    configs: Sequence[InterfaceConfig],
    host: Host,
    registry: Registry | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run all of them until cancelled; report started when each has.

    Raises what one of them raises before it has started. Later an interface that fails is started again, and
    the others do not notice. ``registry``: where they can be found while they run.
    """
    registry = registry or Registry()
    async with open_front_door() as door, trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for config in configs:
                starting.start_soon(nursery.start, _supervise, registry.add(config), host, door)
        task_status.started()


class _Started:
    """Passes the first `started` on, and remembers it: the later ones are restarts."""

    def __init__(self, record: Record, task_status: trio.TaskStatus[None]) -> None:
        self._record = record
        self._task_status = task_status
        self.once = False

    def started(self, value: None = None) -> None:
        self._record.started()
        if not self.once:
            self.once = True
            self._task_status.started()


async def _supervise(record: Record, host: Host, door: FrontDoor, *, task_status: trio.TaskStatus[None]) -> None:
    config = record.config
    log = interface_logger(config.name)
    status = _Started(record, task_status)
    pause_s = RESTART_S[0]
    while True:
        begun = trio.current_time()
        try:
            await run_interface(config, host, door, record, task_status=status)
        except* HostError as group:
            if not status.once:
                first = next(leaves(group))
                raise HostError(f"{config.name}: {first}") from first
            for exc in leaves(group):
                log.error("%s", exc)
            record.failed("; ".join(map(str, leaves(group))))
        except* Exception as group:
            if not status.once:
                raise
            log.exception("a bug ended this interface")
            record.failed(f"a bug: {next(leaves(group))!r}")
        if trio.current_time() - begun >= HEALTHY_S:
            pause_s = RESTART_S[0]
        log.warning("starting again in %.0f s", pause_s)
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, RESTART_S[1])
