"""Watches whether this machine's path to the server changes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import trio

from ..host.interfaces import Change, Host
from ..host.netlink.rewatch import Rewatch
from ..log import Log
from ..netconf.transport_guard import TransportGuard
from .path_table import PathTable

# How often the route to the server is looked up. One lookup takes 0.2 ms.
ROUTE_CHECK_S: Final = 2.0

# Called with the change that the kernel has reported (None: a periodic lookup), all addresses that the client is
# connected to or is about to connect to, and the addresses whose path has changed (`PathTable.update`).
OnChange = Callable[[Change | None, Collection[str], Collection[str]], None]


class PathWatch:
    """Watches the routes to the addresses that one client connects to."""

    def __init__(
        self,
        name: str,
        guard: TransportGuard,
        log: Log,
        *,
        mark: int | None,
        on_change: OnChange,
        on_lapse: Callable[[str], None],
    ) -> None:
        """
        Args:
            name: the client's own interface.
            mark: the fwmark of the connections.
            on_change: called for each change, and after each lookup.
            on_lapse: called with a text for the log if changes may have been missed.
        """
        self._name = name
        self._guard = guard
        self._log = log
        self._mark = mark
        self._on_change = on_change
        self._on_lapse = on_lapse
        self._paths = PathTable()
        self._wait, self._due = trio.CancelScope(), False
        guard.on_new_remotes = self._look_now

    async def run(self, host: Host) -> None:
        """Watch for ever. Raises HostError, except for a shortage.

        The routes are also looked up every ROUTE_CHECK_S, since the kernel does not report all route changes. And they
        are looked up before the client connects to a new address, so that later lookups have a route to compare with.
        While the kernel's notifications are not available, a lost path is noticed only when its streams fall silent.
        """

        async def watch() -> None:
            async with host.open_changes() as changes, host.open_network() as network:
                if retry.lapsed:
                    self._on_lapse("this machine's addresses and routes may have changed unseen")
                retry.worked()
                while True:
                    change = None
                    with trio.move_on_after(ROUTE_CHECK_S) as self._wait:
                        if self._due:
                            self._wait.cancel()
                        change = await anext(changes)
                    self._due = False
                    if change is not None:
                        self._guard.mark_dirty()
                    remotes = self._guard.remotes
                    routes = await network.current_routes(self._name, remotes, self._mark)
                    self._on_change(change, remotes, self._paths.update(remotes, routes, change))

        retry = Rewatch(self._log, "a lost path will be noticed later, by its silence")
        await retry.keep(watch)

    def _look_now(self) -> None:
        self._due = True
        self._wait.cancel()
