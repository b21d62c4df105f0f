"""Removes what an earlier run of this program left on the host because it was killed."""

from __future__ import annotations

from ..errors import HostError
from ..host.interfaces import Host
from ..log import Log


async def remove_left_over_routes(host: Host, log: Log) -> None:
    """Remove the host routes of killed runs, and log each. A failure is logged as a warning.

    Call it before the first connection: such a route may lead that connection to a gateway that no longer exists.
    """
    try:
        async with host.open_network() as network:
            for address in await network.remove_left_over():
                log.info("removed host route %s, left over from a run that was killed", address)
    except HostError as exc:
        log.warning("cannot look for host routes that a killed run left over: %s", exc)
