"""What the doctor asks the kernel of this machine. Blocking; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

import trio

from .network import open_netlink


@dataclass(frozen=True, slots=True)
class Footprint:
    """``addresses``: those that others may reach this machine by, each with its interface. ``left_over``: what host
    routes of runs that were killed lead somewhere."""

    addresses: tuple[tuple[IPv4Address, str], ...] = ()
    left_over: tuple[str, ...] = ()


def look_at_kernel() -> Footprint:
    """Raises HostError if the kernel does not answer."""
    return trio.run(_look)


async def _look() -> Footprint:
    async with open_netlink() as network:
        return Footprint(tuple(await network.addresses()), tuple(await network.left_over()))
