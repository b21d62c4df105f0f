"""Removes what an earlier run of this program left on the host because it was killed."""

from __future__ import annotations

from ..config.model import InterfaceConfig
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


async def remove_left_over_bridges(host: Host, config: InterfaceConfig, log: Log) -> None:
    """Remove the bridges that killed runs of this interface made and that its config does not ask for any more, and log
    each. A failure is logged as a warning.

    Call it before the interface exists, and while its name is reserved.
    """
    kept = config.bridge.name if config.bridge is not None and config.bridge.create else None
    try:
        async with host.open_network() as network:
            for name in await network.remove_left_over_bridges(config.name, kept):
                log.info("removed bridge %s, left over from a run that was killed", name)
    except HostError as exc:
        log.warning("cannot look for bridges that a killed run left over: %s", exc)
