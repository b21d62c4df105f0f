"""What stands in the kernel now: links, routes and rules, ours and other people's. Reads only."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ...errors import HostError
from ..items import Route
from . import codec
from .codec import PROTOCOL, KernelRoute, KernelRule, Link
from .socket import Refusal, Rtnetlink, attributes
from .tracker import dump_addresses, dump_links, read_address, read_link

_IFINFOMSG_END: Final = 32  # struct nlmsghdr and struct ifinfomsg
_INDEX_AT: Final = slice(20, 24)  # ifi_index
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1

# rt_protos of iproute2: as `ip route` prints them.
_PROTOCOL_NAMES: Final = {
    2: "kernel",
    3: "boot",
    4: "static",
    12: "bird",
    16: "dhcp",
    186: "bgp",
    188: "ospf",
}


class NetworkReader:
    """Questions to the kernel. All are checkpoints, cancel-safe, and raise HostError as `Rtnetlink` does."""

    def __init__(self, kernel: Rtnetlink) -> None:
        self._kernel = kernel

    async def find_link(self, *, name: str = "", index: int = 0) -> Link | None:
        """By name, or by index; None if there is none."""
        answer = await self._kernel.ask(codec.get_link(name=name, index=index))
        if not isinstance(answer, Refusal):
            return codec.read_link(answer)
        if answer.errno == errno.ENODEV:
            return None
        raise HostError(f"cannot look up interface {name or index}: {answer.text}")

    async def link(self, name: str) -> Link:
        """As `find_link`, but its absence is a HostError."""
        link = await self.find_link(name=name)
        if link is None:
            raise HostError(f"interface {name} does not exist (any more)")
        return link

    async def routes(self, table: int, *, protocol: int = 0, network: IPv4Network | None = None) -> list[KernelRoute]:
        """The routes of a table; only those of one protocol unless it is 0, only those to ``network`` if given."""

        def read(data: memoryview) -> KernelRoute | None:
            route = codec.read_route(data)
            fits = (
                route.table == table
                and protocol in (0, route.protocol)
                and (network is None or route.network == network)
            )
            return route if fits else None

        return await self._kernel.dump(codec.get_routes(table, protocol), read)

    async def ours(self, fits: Callable[[KernelRoute], bool]) -> list[KernelRoute]:
        """The routes with our protocol number, of all tables, that ``fits`` says yes to."""

        def read(data: memoryview) -> KernelRoute | None:
            route = codec.read_route(data)
            return route if route.protocol == PROTOCOL and fits(route) else None

        return await self._kernel.dump(codec.get_routes(0, PROTOCOL), read)

    async def tun_indexes(self) -> set[int]:
        """The numbers of all TUN and TAP interfaces, whoever made them."""

        def read(data: memoryview) -> int | None:
            for kind, payload in attributes(data[_IFINFOMSG_END:]):
                if (
                    kind == _IFLA_LINKINFO
                    and bytes(dict(attributes(payload)).get(_IFLA_INFO_KIND, b""))[:4] == b"tun\0"
                ):
                    return int.from_bytes(data[_INDEX_AT], sys.byteorder)
            return None

        return set(await self._kernel.dump(dump_links(), read))

    async def addresses(self) -> list[tuple[IPv4Address, str]]:
        """IPv4 addresses, but for loopback's and link-local ones, each with the name of its interface."""
        names = {link.index: link.name for link in await self._kernel.dump(dump_links(), read_link)}
        found = await self._kernel.dump(dump_addresses(), read_address)
        addresses = [(IPv4Address(it.text), names.get(it.index, "")) for it in found if ":" not in it.text]
        return [it for it in addresses if not (it[0].is_loopback or it[0].is_link_local)]

    async def rules(self) -> list[KernelRule]:
        return await self._kernel.dump(codec.get_rules(), codec.read_rule)

    async def slot_owners(self, tables: set[int]) -> dict[tuple[int, int], int]:
        """Who of us has which slot: (table, slot) to the index of an interface."""
        return {
            (table, route.metric): route.index
            for table in tables
            for route in await self.routes(table, protocol=PROTOCOL)
        }

    async def obstacle(self, route: Route) -> str:
        """What stands in the way of a route, and what to do about it."""
        for other in await self.routes(route.table, network=route.network):
            if (other.metric, other.tos) == (0, 0):
                link = await self.find_link(index=other.index) if other.index else None
                protocol = _PROTOCOL_NAMES.get(other.protocol, str(other.protocol))
                through = f" through {link.name}" if link else ""
                return (
                    f"another route of protocol {protocol}{through} stands in the way: "
                    "remove it, or take this network out of the config that asks for it"
                )
        return "another route stood in the way and is gone again: try once more"
