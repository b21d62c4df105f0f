"""The commands that every running process answers on its control socket: status, macs, wait, disconnect."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import trio

from .. import __version__
from ..cooperative import run_cooperatively
from ..datapath.plane import running_plane
from ..lifecycle.registry import Record, Registry
from ..lifecycle.snapshot import problem_of, snapshot_in_steps, state_of
from ..peer.boottime import BootTime, wall_time
from ..status.macs import MacTableStatus
from ..status.model import InterfaceState, PlaneStatus, ProcessStatus
from ..text import one_line
from .protocol import (
    DisconnectArguments,
    DisconnectResult,
    MacsArguments,
    MacsResult,
    StatusArguments,
    WaitArguments,
    WaitResult,
)
from .server import Command

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    """What identifies this process. ``name`` is the name of its control socket."""

    name: str
    config_file: str
    started: BootTime


async def process_status(process: Process, registry: Registry, interfaces: list[str]) -> ProcessStatus:
    """The status of this process and of ``interfaces``; an empty list means all of them.

    Raises NoSuchPeerError. Cancel-safe; a checkpoint.
    """
    kind, why = running_plane()
    found = await run_cooperatively(snapshot_in_steps(registry.select(interfaces)))
    return ProcessStatus(
        version=__version__,
        pid=os.getpid(),
        name=process.name,
        hostname=one_line(os.uname().nodename),
        config_file=one_line(process.config_file),  # a file name may be invalid UTF-8, which JSON cannot hold
        started_at=wall_time(process.started),
        last_reload=registry.last_reload,
        plane=PlaneStatus(kind=kind, why=why),
        update=registry.update_status(),
        interfaces=found,
    )


async def mac_tables(registry: Registry, interfaces: list[str], limit: int) -> list[MacTableStatus]:
    """The MAC addresses behind each of ``interfaces`` that is a server with a TAP interface; an empty list means all.

    ``limit``: how many of each interface at most. Raises NoSuchPeerError. Cancel-safe; a checkpoint.
    """
    await trio.lowlevel.checkpoint()
    found: list[MacTableStatus] = []
    for record in registry.select(interfaces):
        if record.mac_table is not None:
            rows, total = await run_cooperatively(record.mac_table(limit))
            found.append(MacTableStatus(interface=record.config.name, total=total, macs=rows))
    return found


def standard_commands(process: Process, registry: Registry) -> dict[str, Command]:
    """The handlers of status, macs, wait and disconnect, by name. `app` adds those of reload."""

    async def status(arguments: StatusArguments) -> ProcessStatus:
        return await process_status(process, registry, arguments.interfaces)

    async def macs(arguments: MacsArguments) -> MacsResult:
        tables = await mac_tables(registry, arguments.interfaces, arguments.limit)
        return MacsResult(name=process.name, interfaces=tables)

    async def wait(arguments: WaitArguments) -> WaitResult:
        states: dict[str, InterfaceState] = {}
        waiting: dict[str, str] = {}
        records: list[Record] = []
        with trio.move_on_after(arguments.timeout_s):
            while True:
                # The interfaces are looked up by name each time, because a reload may remove one.
                records = registry.select(arguments.interfaces)
                states = {record.config.name: state_of(record) for record in records}
                waiting = {name: state for name, state in states.items() if state != "up"}
                if not waiting:
                    break
                await trio.sleep(POLL_S)
        up = [name for name in states if name not in waiting]
        problems = {record.config.name: problem_of(record) for record in records}
        return WaitResult(up, waiting, {name: text for name, text in problems.items() if text is not None})

    async def disconnect(arguments: DisconnectArguments) -> DisconnectResult:
        return DisconnectResult(registry.disconnect(arguments.interface, arguments.client))

    return {
        "status": Command(StatusArguments, status),
        "macs": Command(MacsArguments, macs),
        "wait": Command(WaitArguments, wait, waits=True),
        "disconnect": Command(DisconnectArguments, disconnect),
    }
