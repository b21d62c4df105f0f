"""Decides which of a client's connections are affected by a change of this machine's network. No I/O.

A connection is affected if its local address, its link, or the route to the server has changed. All other changes are
ignored: containers come and go, other links flap, and a default route with a higher metric is not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..host.interfaces import Change
from ..host.items import CurrentRoute


class PathTable:
    """The last known routes to the addresses that the client connects to."""

    def __init__(self) -> None:
        self._routes: dict[str, CurrentRoute | None] = {}

    def update(
        self, remotes: Collection[str], routes: Mapping[str, CurrentRoute | None], change: Change | None
    ) -> frozenset[str]:
        """Store the current routes to ``remotes``. Returns the addresses whose path has changed.

        Args:
            remotes: the addresses that the client is connected to or is about to connect to.
            routes: their current routes. An address is missing if its route leads into our own interface. Such an
                address is about to get a route that bypasses the interface, so its path counts as unchanged.
            change: what the kernel has reported; None: nothing, this is a periodic lookup.
        """
        concerned: set[str] = set()
        for address in remotes:
            if change is not None and change.incomplete:
                concerned.add(address)
            elif address in routes:
                now = routes[address]
                if address not in self._routes:  # the route before the change is not known
                    is_concerned = change is not None
                else:
                    is_concerned = self._routes[address] != now or _touches(change, now)
                if is_concerned:
                    concerned.add(address)
        known = {**self._routes, **routes}
        self._routes = {address: known[address] for address in remotes if address in known}
        return frozenset(concerned)


def _touches(change: Change | None, route: CurrentRoute | None) -> bool:
    """Whether the link or the source address of this route has changed or was gone for a moment."""
    if change is None or route is None:
        return False
    return route.index in change.touched_links or route.source in change.touched_addresses
