"""Reads links, addresses, routes and rules from the kernel: ours and those of other programs. Changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from ipaddress import ip_address
from socket import AF_INET6
from typing import Final

from pyroute2.netlink.rtnl import rt_proto

from ...errors import HostError
from ...families import IPAddress, IPNetwork
from ..items import LOCAL_TABLE, MAIN_TABLE
from . import codec, link_codec
from .codec import FAMILIES, KERNEL_PROTOCOL, PROTOCOL, RTN_UNICAST, AssignedAddress, KernelRoute, KernelRule
from .link_codec import Link
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
        answer = await self._kernel.ask(link_codec.get_link(name=name, index=index))
        if not isinstance(answer, Refusal):
            return link_codec.read_link(memoryview(answer))
        if answer.errno == errno.ENODEV:
            return None
        raise HostError(f"cannot look up interface {name or index}: {answer.text}")

    async def link(self, name: str) -> Link:
        """As `find_link`, but raises HostError if there is none."""
        link = await self.find_link(name=name)
        if link is None:
            raise HostError(f"interface {name} does not exist (any more)")
        return link

    async def routes(
        self, version: int, table: int, *, protocol: int = 0, network: IPNetwork | None = None
    ) -> list[KernelRoute]:
        """The routes of one IP version and table: only those of ``protocol`` unless it is 0, only those to ``network``
        if given."""

        def read(message: memoryview) -> KernelRoute | None:
            route = codec.read_route(message)
            matches = (
                (route.network.version, route.table) == (version, table)
                and protocol in (0, route.protocol)
                and (network is None or route.network == network)
            )
            return route if matches else None

        return await self._kernel.dump(codec.dump_routes(version, table, protocol), read)

    async def by_origin(self, table: int) -> list[KernelRoute]:
        """The IPv6 routes of a table that are for packets from one network only.

        The kernel cannot be asked for these alone, and a router may have every route of the Internet. So the others are
        told by one byte, and not decoded.
        """

        def read(message: memoryview) -> KernelRoute | None:
            if not codec.has_origin(message):
                return None
            route = codec.read_route(message)
            return route if route.origin is not None and route.table == table else None

        return await self._kernel.dump(codec.dump_routes(6, table), read)

    async def through(self, version: int, table: int, index: int) -> list[KernelRoute]:
        """The routes of one IP version and table that lead through the interface with this index, and through no other
        one. The kernel leaves out the rest, which may be every route of the Internet."""

        def read(message: memoryview) -> KernelRoute | None:
            route = codec.read_route(message)
            return route if (route.network.version, route.table, route.index) == (version, table, index) else None

        return await self._kernel.dump(codec.dump_routes(version, table, index=index), read)

    async def connected(self, version: int, index: int) -> set[IPNetwork]:
        """The networks to which the kernel's own routes of one IP version lead through the interface with this index,
        in any table but that of local addresses."""

        def read(message: memoryview) -> IPNetwork | None:
            route = codec.read_route(message)
            is_one = (route.network.version, route.protocol, route.index) == (version, KERNEL_PROTOCOL, index)
            return route.network if is_one and route.type == RTN_UNICAST and route.table != LOCAL_TABLE else None

        return set(await self._kernel.dump(codec.dump_routes(version, 0, KERNEL_PROTOCOL, index), read))

    async def ours(
        self, matches: Callable[[KernelRoute], bool], versions: Collection[int] = tuple(FAMILIES)
    ) -> list[KernelRoute]:
        """The routes of these IP versions in all tables that have our protocol number and for which ``matches`` returns
        True."""

        def read(message: memoryview) -> KernelRoute | None:
            route = codec.read_route(message)
            is_ours = (route.network.version, route.protocol) == (version, PROTOCOL)
            return route if is_ours and matches(route) else None

        found: list[KernelRoute] = []
        for version in versions:
            found += await self._kernel.dump(codec.dump_routes(version, 0, PROTOCOL), read)
        return found

    async def tun_indexes(self) -> set[int]:
        """The indexes of all TUN and TAP interfaces, ours and those of other programs."""
        return set(await self._kernel.dump(link_codec.dump_links(), link_codec.read_tun_index))

    async def addresses(self) -> list[tuple[IPAddress, str]]:
        """All addresses except loopback and link-local ones, each with the name of its interface."""
        links = await self._kernel.dump(link_codec.dump_links(), link_codec.read_link)
        names = {link.index: link.name for link in links}
        found = await self._kernel.dump(codec.dump_addresses(), codec.read_address)
        addresses = [(ip_address(item.text), names.get(item.index, "")) for item in found]
        return [(address, name) for address, name in addresses if not (address.is_loopback or address.is_link_local)]

    async def link_local(self, index: int) -> list[AssignedAddress]:
        """The link-local IPv6 addresses of the interface with this index."""
        found = await self._kernel.dump(codec.dump_addresses(index, AF_INET6), codec.read_assigned)
        return [each for each in found if (each.index, each.ip.version) == (index, 6) and each.ip.is_link_local]

    async def rules(self, version: int) -> list[KernelRule]:
        """The rules of one IP version."""

        def read(message: memoryview) -> KernelRule | None:
            rule = codec.read_rule(message)
            return rule if rule is not None and rule.version == version else None

        return await self._kernel.dump(codec.dump_rules(version), read)

    async def slot_owners(self, version: int, tables: set[int]) -> dict[tuple[int, int], int]:
        """Which interface of ours has which slot for an IP version: (table, slot) to the index of the interface."""
        return {
            (table, route.metric): route.index
            for table in tables
            for route in await self.routes(version, table, protocol=PROTOCOL)
        }

    async def describe_obstacle(self, network: IPNetwork, table: int, metric: int) -> str:
        """The route that keeps another one with this metric from being added, and what to do about it, for an error."""
        for other in await self.routes(network.version, table, network=network):
            if other.metric == metric and not other.selective:
                link = await self.find_link(index=other.index) if other.index else None
                protocol = _PROTOCOL_NAMES.get(other.protocol, str(other.protocol))
                through = f" through {link.name}" if link else ""
                remedy = "remove it, or take this network out of the config that asks for it"
                if network.prefixlen == 0 and table == MAIN_TABLE:
                    halves = " and ".join(str(half) for half in network.subnets())
                    remedy = f"route {halves} instead, which win over any default route"
                return f"another route of protocol {protocol}{through} conflicts with it: {remedy}"
        return "a route that conflicted with it is gone again: try once more"
