"""Which of a client's connections a change of this machine's network concerns. No I/O.

A connection is concerned if its local address, its link, or the route to the server has changed. Anything else that
happens to addresses, links and routes is none of its business: containers come and go, other links flap, and a default
route of a higher metric is not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..host.interfaces import Change
from ..host.items import CurrentRoute


class PathTable:
    """The routes to the addresses that the client's connections go to, as they were last seen."""

    def __init__(self) -> None:
        self._routes: dict[str, CurrentRoute | None] = {}

    def update(
        self, remotes: Collection[str], routes: Mapping[str, CurrentRoute | None], change: Change | None
    ) -> frozenset[str]:
        """Take over the present routes to ``remotes``. Returns those to which a new connection would take another path,
        or a path that has changed.

        Args:
            remotes: the addresses that connections go to, or will.
            routes: their routes. An address that leads into our own interface at present is missing; it is about to get
                a route around it, so its path stays what it was.
            change: what the kernel has reported; None: nothing, the routes were looked up anyway.
        """
        concerned: set[str] = set()
        for address in remotes:
            if change is not None and change.incomplete:
                concerned.add(address)
            elif address in routes:
                now = routes[address]
                if address not in self._routes:  # what it was before the change is not known
                    is_concerned = change is not None
                else:
                    is_concerned = self._routes[address] != now or _touches(change, now)
                if is_concerned:
                    concerned.add(address)
        known = {**self._routes, **routes}
        self._routes = {address: known[address] for address in remotes if address in known}
        return frozenset(concerned)


def _touches(change: Change | None, route: CurrentRoute | None) -> bool:
    """Whether the link of this route, or the source address, has changed or was gone for a moment."""
    if change is None or route is None:
        return False
    return route.index in change.touched_links or route.source in change.touched_addresses
