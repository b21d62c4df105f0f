"""The status of the running interfaces, from counters that are kept in any case. Nothing here waits.

Each tunnel adds what it knows: see `server.status` and `client.status`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..config.model import ServerConfig
from ..cooperative import Steps
from ..macs import mac_text
from ..peer.boottime import wall_time
from ..status.model import InterfaceState, InterfaceStatus
from ..text import one_line, shorten
from .registry import LAST_ERROR_CHARS, Record


def snapshot_in_steps(records: Iterable[Record]) -> Steps[list[InterfaceStatus]]:
    """Return the status of each interface. Runs in steps, and other tasks run between them; each status is as of its
    own step."""
    found: list[InterfaceStatus] = []
    for record in records:
        common, tunnel = _common(record), record.tunnel
        found.append(common if tunnel is None else (yield from tunnel.status(common)))
        yield
    return found


def state_of(record: Record) -> InterfaceState:
    """The interface's state alone, which costs less than its status."""
    if record.tunnel is None:
        return "starting" if record.last_error is None else "failed"
    if not record.ready:
        return "starting"
    state = record.tunnel.interface_state
    return "degraded" if state == "up" and record.health.degraded is not None else state


def problem_of(record: Record) -> str | None:
    """Return why the interface is not up, on one line; None: it is up, or nothing has failed yet."""
    state = state_of(record)
    if state == "up":
        return None
    problem = (
        record.health.degraded
        if state == "degraded"
        else (record.tunnel and record.tunnel.problem) or record.last_error
    )
    return None if problem is None else one_line(shorten(problem, LAST_ERROR_CHARS))


def _common(record: Record) -> InterfaceStatus:
    """The part of the status that is known without the tunnel."""
    config = record.config
    status = InterfaceStatus(
        name=config.name,
        kind="client",
        state=state_of(record),
        since=wall_time(record.since),
        device=config.device,
        mac=None if record.mac is None else mac_text(record.mac),
        bridge=None if config.bridge is None else config.bridge.name,
        restarts=record.restarts,
        last_error=record.last_error,
        problem=problem_of(record),
        degraded=record.health.degraded,
        repairs=record.health.repairs,
    )
    if not isinstance(config, ServerConfig):
        return status
    return msgspec.structs.replace(
        status,
        kind="server",
        addresses=[*map(str, config.nets), *map(str, config.ips)],
        mtu_bytes=config.mtu,
        path=config.path,
    )
