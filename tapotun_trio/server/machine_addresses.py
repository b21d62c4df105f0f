"""Watches the addresses of this machine, because no client may use one of them as a source address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from ..families import IPInterface
from ..host.interfaces import Host
from ..host.netlink.rewatch import Rewatch
from ..log import Log

# The addresses are also read this often, because those of our own interfaces change without a notification (see
# `Host.open_changes`).
CHECK_S: Final = 10.0


async def watch_machine_addresses(
    host: Host,
    log: Log,
    on_addresses: Callable[[frozenset[IPInterface]], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``on_addresses`` with the addresses of this machine now and after each change. Runs for ever.

    They are those of `Network.machine_addresses`. ``task_status`` is told after the first attempt to read them. A
    failure to read them is logged.
    """
    started = False

    async def watch() -> None:
        nonlocal started
        try:
            async with host.open_changes() as changes, host.open_network() as network:
                retry.worked()
                known: frozenset[IPInterface] | None = None
                while True:
                    present = await network.machine_addresses()
                    if present != known:
                        known = present
                        on_addresses(present)
                    if not started:
                        started = True
                        task_status.started()
                    with trio.move_on_after(CHECK_S):
                        await anext(changes)
        finally:
            if not started:
                started = True
                task_status.started()

    retry = Rewatch(log, "clients may send from addresses that this machine gets meanwhile")
    await retry.keep(watch)
