"""Reads links, addresses, routes and rules from the kernel: ours and those of other programs. Changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from pyroute2.netlink.rtnl import rt_proto

from ...errors import HostError
from ..items import Route
from . import codec
from .codec import PROTOCOL, KernelRoute, KernelRule, Link
from .socket import Refusal, Rtnetlink

# The names of protocols as `ip route` prints them; pyroute2 0.9.7 has no names for the last two (rt_protos of
# iproute2).
_PROTOCOL_NAMES: Final[dict[int, str]] = {**rt_proto, 186: "bgp", 188: "ospf"}


class NetworkReader:
    """Queries to the kernel. All are checkpoints, cancel-safe, and raise HostError as `Rtnetlink` does."""

    def __init__(self, kernel: Rtnetlink) -> None:
        self._kernel = kernel

    async def find_link(self, *, name: str = "", index: int = 0) -> Link | None:
        """The link with this name or this index; None if there is none."""
        answer = await self._kernel.ask(codec.get_link(name=name, index=index))
        if not isinstance(answer, Refusal):
            return codec.read_link(memoryview(answer))
        if answer.errno == errno.ENODEV:
            return None
        raise HostError(f"cannot look up interface {name or index}: {answer.text}")

    async def link(self, name: str) -> Link:
        """As `find_link`, but raises HostError if there is none."""
        link = await self.find_link(name=name)
        if link is None:
            raise HostError(f"interface {name} does not exist (any more)")
        return link

    async def routes(self, table: int, *, protocol: int = 0, network: IPv4Network | None = None) -> list[KernelRoute]:
        """The routes of a table: only those of ``protocol`` unless it is 0, only those to ``network`` if given."""

        def read(message: memoryview) -> KernelRoute | None:
            route = codec.read_route(message)
            matches = (
                route.table == table
                and protocol in (0, route.protocol)
                and (network is None or route.network == network)
            )
            return route if matches else None

        return await self._kernel.dump(codec.dump_routes(table, protocol), read)

    async def ours(self, matches: Callable[[KernelRoute], bool]) -> list[KernelRoute]:
        """The routes of all tables that have our protocol number and for which ``matches`` returns True."""

        def read(message: memoryview) -> KernelRoute | None:
            route = codec.read_route(message)
            return route if route.protocol == PROTOCOL and matches(route) else None

        return await self._kernel.dump(codec.dump_routes(0, PROTOCOL), read)

    async def tun_indexes(self) -> set[int]:
        """The indexes of all TUN and TAP interfaces, ours and those of other programs."""
        return set(await self._kernel.dump(codec.dump_links(), codec.read_tun_index))

    async def addresses(self) -> list[tuple[IPv4Address, str]]:
        """All IPv4 addresses except loopback and link-local ones, each with the name of its interface."""
        links = await self._kernel.dump(codec.dump_links(), codec.read_link)
        names = {link.index: link.name for link in links}
        found = await self._kernel.dump(codec.dump_addresses(), codec.read_address)
        addresses = [(IPv4Address(item.text), names.get(item.index, "")) for item in found if ":" not in item.text]
        return [(address, name) for address, name in addresses if not (address.is_loopback or address.is_link_local)]

    async def rules(self) -> list[KernelRule]:
        return await self._kernel.dump(codec.dump_rules(), codec.read_rule)

    async def slot_owners(self, tables: set[int]) -> dict[tuple[int, int], int]:
        """Which interface of ours has which slot: (table, slot) to the index of the interface."""
        return {
            (table, route.metric): route.index
            for table in tables
            for route in await self.routes(table, protocol=PROTOCOL)
        }

    async def describe_obstacle(self, route: Route) -> str:
        """The other route that keeps this one from being added, and what to do about it, for an error."""
        for other in await self.routes(route.table, network=route.network):
            if (other.metric, other.tos) == (0, 0):
                link = await self.find_link(index=other.index) if other.index else None
                protocol = _PROTOCOL_NAMES.get(other.protocol, str(other.protocol))
                through = f" through {link.name}" if link else ""
                return (
                    f"another route of protocol {protocol}{through} conflicts with it: "
                    "remove it, or take this network out of the config that asks for it"
                )
        return "a route that conflicted with it is gone again: try once more"
