"""Finds the kernel's route to an address as it would be without one of our interfaces, and knows our host routes.

Follows linux/rtnetlink.h, `inet_rtm_getroute` in net/ipv4/route.c, and `inet6_rtm_getroute` in net/ipv6/route.c.

Our own routes may hide the answer:

- A host route of ours wins over the route that would otherwise be used. So one send removes it, asks, and adds it
  again. The kernel executes a send as a whole: very few packets fall into the gap, and a kill cannot come in between.
- The connected route of an address that we gave to a bridge stays too, because the bridge's other networks need it.
  Behind it are the routes through other devices, and those that a dump of the main table has through the bridge.
- A route into our own interface stays, because without it packets would leave this machine unencrypted. To see past
  it, the kernel is asked once for every other device. (In IPv6 these answers pass over a route that refuses packets,
  such as "unreachable", since it has no device.)

A host route of ours carries our protocol number. Its metric is METRIC plus the index of the interface that it was made
for. So the host routes of two interfaces with the same server do not collide; a host route whose interface is gone was
left by a killed run; and another program's route to the same address has a lower metric and wins.

IPv6 has routes for the packets from one network only. Machines with several providers have them, and OpenWrt always
does. A lookup without a source does not find them, and a lookup with one finds the routes of all devices. So if nothing
else leads to the address, they are looked for in a dump of the main table.

IPv6 accepts a gateway that is not link-local only if the main table leads to it through its own device, or by a default
route (ip6_route_check_nh_onlink, net/ipv6/route.c). A route of ours may lead to it. So, within one send, the gateway
gets a route of its own for the moment in which the host route is added.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import islice
from typing import Final, TypeAlias

import trio

from ...errors import shortage_of
from ...families import IPAddress, IPNetwork, is_host
from ..items import MAIN_TABLE, CurrentRoute, HostRoute, NextHop
from . import codec, link_codec
from .codec import PROTOCOL, RTN_LOCAL, RTN_UNICAST, KernelRoute
from .reader import NetworkReader
from .socket import Refusal, Rtnetlink

BridgeNetwork: TypeAlias = tuple[int, IPNetwork]
"""The index of a bridge, and the network of an address that we gave to it."""

METRIC: Final = 0x7400_0000
"""Our protocol number in the upper byte; the lower three bytes are the interface's index."""
_GATEWAY_METRIC: Final = 0x7500_0000  # instead of METRIC, for the momentary route to a gateway
_INDEX_MASK: Final = 0x00FF_FFFF

# linux/rtnetlink.h
_RT_TABLE_DEFAULT: Final = 253
_RT_TABLE_LOCAL: Final = 255
_LOOPBACK_INDEX: Final = 1  # LOOPBACK_IFINDEX, linux/if.h

_DEVICES_PER_SEND: Final = 32
_TRIES: Final = 8  # to look behind host routes that other processes of ours add and remove at the same time

_ALONE: Final = "\0tapotun-trio host routes"
ALONE_S: Final = 0.3  # a look takes a few milliseconds; less than `netconf.reconciler.UNDO_S`
_ALONE_POLL_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class _HidingRoute:
    """A host route of ours that hides the route behind it. ``owner``: the index of the interface that it is for."""

    owner: int
    item: HostRoute


def host_route_metric(owner: int) -> int:
    """The metric of the host routes that are made for the interface with this index."""
    return METRIC | owner & _INDEX_MASK


def add_host_route(item: HostRoute, owner: int, *, replace: bool = True) -> list[bytearray]:
    """The requests that add a host route for the interface ``owner``, to be sent together. The answer to the one in the
    middle counts."""
    request = codec.add_host_route(item, host_route_metric(owner), replace=replace)
    if item.gateway is None or item.gateway.version == 4 or item.gateway.is_link_local:
        return [request]
    to_gateway = HostRoute(item.gateway, item.index)
    metric = _GATEWAY_METRIC | owner & _INDEX_MASK
    return [codec.add_host_route(to_gateway, metric), request, codec.remove_host_route(to_gateway, metric)]


def host_route_owner(route: KernelRoute) -> int | None:
    """The lower 24 bits of the index of the interface that the route was made for; None if it is no host route of
    ours."""
    kind = route.metric & ~_INDEX_MASK
    if route.protocol != PROTOCOL or not is_host(route.network) or kind not in (METRIC, _GATEWAY_METRIC):
        return None
    return route.metric & _INDEX_MASK


def _hiding_route(address: IPAddress, match: KernelRoute) -> _HidingRoute | None:
    owner = host_route_owner(match)
    if owner is None:
        return None
    item = HostRoute(address, match.index, match.gateway, match.source, match.metrics, match.table)
    return _HidingRoute(owner, item)


def _everything(route: KernelRoute) -> IPNetwork:
    """The network of a default route, in place of that of a host route."""
    return route.network.supernet(new_prefix=0)


@asynccontextmanager
async def alone() -> AsyncIterator[None]:
    """A lock to hold while host routes are added, removed or looked behind, by one task at a time among all processes
    of this network namespace. It is the name of an abstract socket, which belongs to the namespace and is freed even by
    kill -9.

    The lock is advisory. A task that has waited for ALONE_S continues without it, since any process may take that name.
    A task also continues if this machine lacks a resource for the lock, such as a descriptor, because the interface
    must outlive a shortage.
    """
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
        except OSError as exc:
            if shortage_of(exc, "") is None:
                raise
        else:
            with trio.move_on_after(ALONE_S):
                await _take_name(sock)
        yield


async def _take_name(sock: socket.socket) -> None:
    while True:
        try:
            sock.bind(_ALONE)
            return
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                return  # an emulated kernel may have no such names
        await trio.sleep(_ALONE_POLL_S)


class RouteLookup:
    """Route queries to the kernel. All are checkpoints, cancel-safe, and raise HostError as `Rtnetlink` does."""

    def __init__(self, kernel: Rtnetlink, reader: NetworkReader) -> None:
        self._kernel = kernel
        self._reader = reader

    async def leads_into(
        self, own: int, address: IPAddress, mark: int, on_bridge: Collection[BridgeNetwork] = ()
    ) -> bool:
        """Whether a packet to the address leaves through the interface ``own`` at present, or because of one of its
        networks ``on_bridge``."""
        questions = [
            codec.lookup_route(address, mark, match=match) for match in ((False, True) if on_bridge else (False,))
        ]
        answers = [
            codec.read_route(memoryview(answer))
            for answer in await self._kernel.ask_together(questions)
            if isinstance(answer, bytes)
        ]
        return any(answer.index == own or (answer.index, answer.network) in on_bridge for answer in answers)

    async def current_routes(self, own: int, addresses: Collection[str], mark: int) -> dict[str, CurrentRoute | None]:
        """As `Network.current_routes`. ``own``: the index of the interface whose routes are left out; 0: none."""
        found: dict[str, CurrentRoute | None] = {}
        # An IPv6 link-local address is reached through the link that the connection has chosen, so no route has to be
        # looked up.
        asked = (each for each in map(ip_address, addresses) if each.version == 4 or not each.is_link_local)
        while some := list(islice(asked, _DEVICES_PER_SEND)):
            questions = [codec.lookup_current_route(address, mark) for address in some]
            for address, answer in zip(some, await self._kernel.ask_together(questions), strict=True):
                route = codec.read_current_route(memoryview(answer)) if isinstance(answer, bytes) else None
                if route is None or route.index != own:
                    found[str(address)] = route
        return found

    async def next_hop(
        self,
        own: int,
        address: IPAddress,
        mark: int,
        hidden: Sequence[HostRoute],
        on_bridge: Collection[BridgeNetwork] = (),
    ) -> NextHop | None:
        """How the address is reached without the interface ``own``, without ``hidden``, its host routes that are in the
        kernel, and without its networks ``on_bridge``. None: there is no route."""
        hiding = [_HidingRoute(own, item) for item in hidden if item.address == address]
        tries = 0
        while True:
            questions = [codec.lookup_route(address, mark, match=match) for match in (True, False)]
            match, chosen = await self._ask_without(hiding, questions)
            if match is None or chosen is None:
                return await self._by_origin({own & _INDEX_MASK}, address, mark)
            found = _hiding_route(address, match)
            if found is None or tries == _TRIES:
                break
            tries += 1
            if found not in hiding:
                # This route was made for another interface of ours. It shows what was found for that one, perhaps long
                # ago, so look behind it.
                hiding.append(found)
        if found is not None:  # another process adds it again each time, so that process has just looked
            return await self._next_hop_of(replace(match, network=_everything(match)), chosen, mark)
        # The routes behind may lead into one of the interfaces that these host routes were made for.
        ours = {own & _INDEX_MASK, *(route.owner & _INDEX_MASK for route in hiding)}
        is_on_bridge = (match.index, match.network) in on_bridge
        if chosen.index & _INDEX_MASK not in ours and not is_on_bridge:
            return await self._next_hop_of(match, chosen, mark)
        captured_by = (match.network, match.table) if chosen.index == own or is_on_bridge else None
        behind: dict[int, KernelRoute] = {}  # through a bridge, by its index
        candidates: list[tuple[tuple[int, int, int], int, KernelRoute]] = []
        devices = iter(await self._devices_except(ours))
        while some := list(islice(devices, _DEVICES_PER_SEND)):
            questions = [codec.lookup_route(address, mark, index=index, match=True) for index in some]
            for index, answer in zip(some, await self._ask_without(hiding, questions), strict=True):
                if answer is not None and (index, answer.network) in on_bridge:
                    answer = await self._behind(index, on_bridge, address)
                    if answer is not None:
                        behind[index] = answer
                if answer is not None and answer.type == RTN_UNICAST:
                    if _hiding_route(address, answer) is not None:  # a route of a process that did not wait for us
                        answer = replace(answer, network=_everything(answer))
                    priority = await self._rule_priority(address.version, answer.table, mark)
                    candidates.append(((priority, -answer.network.prefixlen, answer.metric), index, answer))
        if not candidates:
            next_hop = await self._by_origin(ours, address, mark)
            return None if next_hop is None else replace(next_hop, captured_by=captured_by)
        _, index, best = min(candidates, key=lambda candidate: candidate[:2])
        if index in behind:
            return replace(await self._next_hop_of(best, best, mark), captured_by=captured_by)
        (chosen,) = await self._ask_without(hiding, [codec.lookup_route(address, mark, index=index, match=False)])
        if chosen is None:
            return None
        return replace(await self._next_hop_of(best, chosen, mark), captured_by=captured_by)

    async def _behind(self, index: int, on_bridge: Collection[BridgeNetwork], address: IPAddress) -> KernelRoute | None:
        """The route of the main table that leads to the address through the bridge with this index, without our own
        networks on it. None: there is none."""
        routes = [
            route
            for route in await self._reader.through(address.version, MAIN_TABLE, index)
            if address in route.network
            and (index, route.network) not in on_bridge
            and host_route_owner(route) is None
            and not route.selective
        ]
        return min(routes, key=lambda route: (-route.network.prefixlen, route.metric), default=None)

    async def _by_origin(self, ours: set[int], address: IPAddress, mark: int) -> NextHop | None:
        """The next hop by a route of the main table for the packets from one network, in which this machine has an
        address. That address is the source. The longest prefix wins, then the lowest metric. None: there is none."""
        if address.version == 4:
            return None
        routes = [
            route
            for route in await self._reader.by_origin(MAIN_TABLE)
            if route.type == RTN_UNICAST and route.index & _INDEX_MASK not in {0, *ours} and address in route.network
        ]
        if not routes:
            return None
        found = await self._kernel.dump(codec.dump_addresses(), codec.read_assigned)
        own = [each for each in found if not each.ip.is_link_local and each.index & _INDEX_MASK not in ours]
        for route in sorted(routes, key=lambda route: (-route.network.prefixlen, route.metric)):
            assert route.origin is not None
            sources = [each for each in own if each.ip in route.origin]
            if sources:
                # An address of the route's own device is the one that its provider has given.
                source = min(sources, key=lambda each: each.index != route.index)
                return replace(await self._next_hop_of(route, route, mark), source=source.ip)
        return None

    async def _ask_without(
        self, hiding: Sequence[_HidingRoute], questions: Sequence[bytearray]
    ) -> list[KernelRoute | None]:
        """The answers as they are without the routes ``hiding``. None: no route."""
        removals = [codec.remove_host_route(route.item, host_route_metric(route.owner)) for route in hiding]
        batch = [bytearray(removal) for removal in removals]
        batch += questions
        # A route that cannot be added again was useless already: its device is down, or has lost an address.
        for route in hiding:
            batch += add_host_route(route.item, route.owner, replace=False)
        answers = await self._kernel.ask_together(batch)
        # If its owner removed it before we did, it must not come back.
        gone = [removal for removal, answer in zip(removals, answers, strict=False) if isinstance(answer, Refusal)]
        if gone:
            await self._kernel.transact(gone)
        found = answers[len(hiding) : len(hiding) + len(questions)]
        return [codec.read_route(memoryview(answer)) if isinstance(answer, bytes) else None for answer in found]

    async def _next_hop_of(self, match: KernelRoute, chosen: KernelRoute, mark: int) -> NextHop:
        """``match`` is the route, and ``chosen`` the next hop that the kernel selected from it."""
        link = await self._reader.find_link(index=chosen.index)
        usable = chosen.type == RTN_UNICAST and link is not None and not match.encapsulates
        return NextHop(
            network=match.network,
            table=match.table,
            metric=match.metric,
            index=chosen.index,
            device="" if link is None else link.name,
            gateway=chosen.gateway,
            source=match.source,
            metrics=match.metrics,
            # For this machine's own addresses the kernel may answer with the main table, and yet looks at the local
            # table first.
            above_main=chosen.type == RTN_LOCAL or await self._is_above_main(match.network.version, match.table, mark),
            usable=usable,
        )

    async def _devices_except(self, ours: set[int]) -> list[int]:
        links = await self._kernel.dump(link_codec.dump_links(), link_codec.read_link)
        excluded = {*ours, _LOOPBACK_INDEX}
        return [link.index for link in links if link.admin_up and link.index & _INDEX_MASK not in excluded]

    async def _is_above_main(self, version: int, table: int, mark: int) -> bool:
        if table in (MAIN_TABLE, _RT_TABLE_DEFAULT, _RT_TABLE_LOCAL):
            return table == _RT_TABLE_LOCAL
        main = await self._rule_priority(version, MAIN_TABLE, mark)
        return await self._rule_priority(version, table, mark) < main

    async def _rule_priority(self, version: int, table: int, mark: int) -> int:
        """The priority of the first rule to this table that may match a packet with the mark."""
        rules = await self._reader.rules(version)
        priorities = [rule.priority for rule in rules if rule.table == table and rule.item.matches(mark)]
        return min(priorities, default=1 << 32)


async def left_over(reader: NetworkReader) -> list[KernelRoute]:
    """Host routes of ours whose interface is gone: a killed run left them."""
    found = await reader.ours(lambda route: host_route_owner(route) is not None)
    existing = {index & _INDEX_MASK for index in await reader.tun_indexes()} if found else set()
    return [route for route in found if host_route_owner(route) not in existing]
