"""The doctor's queries to this machine's kernel. Blocking; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from ...families import IPAddress
from .network import open_netlink


@dataclass(frozen=True, slots=True)
class Footprint:
    """Attributes:
    addresses: the addresses by which others may reach this machine, each with the name of its interface.
    left_over: the destinations of host routes that killed runs left.
    """

    addresses: tuple[tuple[IPAddress, str], ...] = ()
    left_over: tuple[str, ...] = ()


def read_footprint() -> Footprint:
    """Raises HostError if the kernel does not answer."""
    return trio.run(_read)


async def _read() -> Footprint:
    async with open_netlink() as network:
        return Footprint(tuple(await network.addresses()), tuple(await network.left_over()))
