"""Watches the addresses of this machine, because no client may use one of them as a source address; and those that it
has in an Ethernet segment, because no client may use or claim one of them there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from ..families import IPInterface
from ..host.interfaces import AddressedLink, Host, Network
from ..host.netlink.rewatch import Rewatch
from ..log import Log

# The addresses are also read this often, because those of our own interfaces change without a notification (see
# `Host.open_changes`).
CHECK_S: Final = 10.0
# Those of one link are read more often, which costs four short requests to the kernel: half a millisecond of the
# processor. Another MAC address of it is not reported, and a client could use that until then.
LINK_CHECK_S: Final = 1.0

T = TypeVar("T")


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
    hint = "clients may send from addresses that this machine gets meanwhile"
    await _watch(host, log, hint, lambda network: network.machine_addresses(), CHECK_S, on_addresses, task_status)


async def watch_addressed(
    host: Host,
    log: Log,
    name: str,
    addressed: str,
    on_state: Callable[[AddressedLink], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The same for the bridge that the TAP interface ``name`` is a port of, or for the interface itself if it is none;
    see `Network.addressed_link`. While there is no bridge, its last addresses stay.

    ``addressed``: the name of the bridge or the interface."""
    hint = f"clients may use addresses that {addressed} gets meanwhile"

    def read(network: Network) -> Awaitable[AddressedLink | None]:
        return network.addressed_link(name, addressed)

    await _watch(host, log, hint, read, LINK_CHECK_S, on_state, task_status)


async def _watch(
    host: Host,
    log: Log,
    hint: str,
    read: Callable[[Network], Awaitable[T | None]],
    check_s: float,
    on_addresses: Callable[[T], None],
    task_status: trio.TaskStatus[None],
) -> None:
    """
    Args:
        hint: what it means that the addresses cannot be read.
        read: returns None if the last addresses stay.
        check_s: how often to read without a notification.
    """
    started = False

    async def watch() -> None:
        nonlocal started
        try:
            async with host.open_changes() as changes, host.open_network() as network:
                retry.worked()
                known: T | None = None
                while True:
                    present = await read(network)
                    if present is not None and present != known:
                        known = present
                        on_addresses(present)
                    if not started:
                        started = True
                        task_status.started()
                    with trio.move_on_after(check_s):
                        await anext(changes)
        finally:
            if not started:
                started = True
                task_status.started()

    retry = Rewatch(log, hint)
    await retry.keep(watch)
