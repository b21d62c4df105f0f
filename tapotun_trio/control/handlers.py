"""What can be asked of every running process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import trio

from .. import __version__
from ..lifecycle.registry import Registry
from ..lifecycle.snapshot import snapshot_in_parts, state_of
from ..peer.boottime import BootTime, wall_time
from ..status.model import InterfaceStatus, ProcessStatus
from ..text import one_line
from .protocol import DisconnectArguments, DisconnectResult, StatusArguments, WaitArguments, WaitResult
from .server import Command

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    """``name``: of its control socket."""

    name: str
    config_file: str
    started: BootTime


async def process_status(process: Process, registry: Registry, interfaces: list[str]) -> ProcessStatus:
    """How this process is now; ``interfaces``: only these. Raises NoSuchPeerError. Cancel-safe; a checkpoint."""
    found: list[InterfaceStatus] = []
    for status in snapshot_in_parts(registry.select(interfaces)):
        if status is not None:
            found.append(status)
        await trio.lowlevel.checkpoint()
    return ProcessStatus(
        version=__version__,
        pid=os.getpid(),
        name=process.name,
        config_file=one_line(process.config_file),  # a name may be no UTF-8, which JSON has to be
        started_at=wall_time(process.started),
        last_reload=registry.last_reload,
        interfaces=found,
    )


def standard_commands(process: Process, registry: Registry) -> dict[str, Command]:
    """status, wait and disconnect, by name; whoever has more adds them."""

    async def status(arguments: StatusArguments) -> ProcessStatus:
        return await process_status(process, registry, arguments.interfaces)

    async def wait(arguments: WaitArguments) -> WaitResult:
        waiting: dict[str, str] = {}
        with trio.move_on_after(arguments.timeout_s):
            while True:
                # By name each time: a reload may have taken one away.
                records = registry.select(arguments.interfaces)
                waiting = {it.config.name: state_of(it) for it in records if state_of(it) != "up"}
                if not waiting:
                    break
                await trio.sleep(POLL_S)
        return WaitResult([record.config.name for record in records if record.config.name not in waiting], waiting)

    async def disconnect(arguments: DisconnectArguments) -> DisconnectResult:
        return DisconnectResult(registry.disconnect(arguments.interface, arguments.client))

    return {
        "status": Command(StatusArguments, status),
        "wait": Command(WaitArguments, wait, waits=True),
        "disconnect": Command(DisconnectArguments, disconnect),
    }
