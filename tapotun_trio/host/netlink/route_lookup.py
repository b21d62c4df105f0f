"""How the kernel reaches an address, and host routes that keep an address out of our interface.

Follows linux/rtnetlink.h and `inet_rtm_getroute` in net/ipv4/route.c. Messages are made by hand, as they are few.

What stands of ours may hide the answer. A host route of ours is in front of the route that would be taken without it:
so it is removed, the question is asked, and it is made again, all in one send. The kernel works a send off at once, so
hardly a packet meets the gap, and no kill can come in between. A route into our own interface is left standing, as
without it packets would leave this machine in the clear; behind it we see by asking for each other device by itself.

A host route of ours carries our protocol number, and as its metric METRIC and the number of the interface that it was
made for. So two interfaces with the same server do not meet; one whose interface is gone is left over from a killed
run; and somebody else's route to the same address has a better metric and wins.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from itertools import islice
from typing import Final

from ..items import MAIN_TABLE, HostRoute, NextHop
from .codec import PROTOCOL, KernelRoute
from .reader import NetworkReader
from .socket import Refusal, Rtnetlink, attributes
from .tracker import dump_links, read_link

METRIC: Final = 0x7400_0000
"""Our protocol number in the upper byte; the lower three are the interface's number."""
_INDEX_MASK: Final = 0x00FF_FFFF

# linux/rtnetlink.h
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_REQUEST: Final = 0x01
_REPLACE_OR_CREATE: Final = 0x100 | 0x400
_RTM_F_LOOKUP_TABLE: Final = 0x1000
_RTM_F_FIB_MATCH: Final = 0x2000  # Linux 4.13: the route itself, and not what became of it
_RTN_UNICAST: Final = 1
_RTN_LOCAL: Final = 2
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_LINK: Final = 253
_RT_SCOPE_NOWHERE: Final = 255
_RTNH_F_ONLINK: Final = 4
_RT_TABLE_DEFAULT: Final = 253
_RT_TABLE_LOCAL: Final = 255
_LOOPBACK: Final = 1  # LOOPBACK_IFINDEX

_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_METRICS: Final = 8
_RTA_TABLE: Final = 15
_RTA_MARK: Final = 16
_RTA_VIA: Final = 18
_RTA_ENCAP: Final = 22
_RTA_IP_PROTO: Final = 27  # Linux 4.17

# struct nlmsghdr, then struct rtmsg: family, prefix lengths, tos, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=IHHIIBBBBBBBBI")

_DEVICES: Final = 32  # asked for in one send


@dataclass(frozen=True, slots=True)
class _Answer:
    """A route, or the way that a packet takes."""

    network: IPv4Network
    table: int
    protocol: int
    type: int
    metric: int
    index: int
    gateway: IPv4Address | IPv6Address | None
    source: IPv4Address | None
    metrics: bytes
    encapsulates: bool


@dataclass(frozen=True, slots=True)
class _Front:
    """A host route of ours that hides what is behind it. ``owner``: the number of the interface that it is for."""

    owner: int
    item: HostRoute


def _front(address: IPv4Address, match: _Answer) -> _Front | None:
    """None: this is not one."""
    if match.protocol != PROTOCOL or match.network.prefixlen != 32 or match.metric & ~_INDEX_MASK != METRIC:
        return None
    item = HostRoute(address, match.index, match.gateway, match.source, match.metrics, match.table)
    return _Front(match.metric & _INDEX_MASK, item)


def host_route_metric(index: int) -> int:
    """Of the host routes of the interface with this number."""
    return METRIC | index & _INDEX_MASK


def host_route_owner(route: KernelRoute) -> int | None:
    """The number (its lower 24 bits) of the interface that it was made for; None: it is no host route of ours."""
    if route.protocol != PROTOCOL or route.network.prefixlen != 32 or route.metric & ~_INDEX_MASK != METRIC:
        return None
    return route.metric & _INDEX_MASK


def add_host_route(owner: int, item: HostRoute) -> bytearray:
    """Takes the place of the one before to the same address, if the interface ``owner`` has one, without a gap.

    The gateway is told to be on the device (RTNH_F_ONLINK): the kernel is not to look for it in a network that the
    other end has just pushed.
    """
    scope = _RT_SCOPE_LINK if item.gateway is None else _RT_SCOPE_UNIVERSE
    flags = 0 if item.gateway is None else _RTNH_F_ONLINK
    attrs = _host_route(owner, item)
    if item.source is not None:
        attrs += _attribute(_RTA_PREFSRC, item.source.packed)
    if item.metrics:
        attrs += _attribute(_RTA_METRICS, item.metrics)
    return _message(_RTM_NEWROUTE, _REPLACE_OR_CREATE, item.table, scope, flags, attrs)


def remove_host_route(owner: int, item: HostRoute) -> bytearray:
    return _message(_RTM_DELROUTE, 0, item.table, _RT_SCOPE_NOWHERE, 0, _host_route(owner, item))


def remove_standing(route: KernelRoute) -> bytearray:
    """A host route of ours, as it was found."""
    attrs = _attribute(_RTA_DST, route.network.network_address.packed)
    attrs += _u32(_RTA_PRIORITY, route.metric) + _u32(_RTA_TABLE, route.table)
    return _message(_RTM_DELROUTE, 0, route.table, _RT_SCOPE_NOWHERE, 0, attrs)


def get_way(address: IPv4Address, mark: int, *, index: int = 0, match: bool) -> bytearray:
    """How a TCP packet with this fwmark goes. ``index``: through this device only. ``match``: asks for the route, else
    for the next hop that was chosen."""
    attrs = _attribute(_RTA_DST, address.packed) + _attribute(_RTA_IP_PROTO, bytes([socket.IPPROTO_TCP]))
    if mark:
        attrs += _u32(_RTA_MARK, mark)
    if index:
        attrs += _u32(_RTA_OIF, index)
    flags = _RTM_F_LOOKUP_TABLE | (_RTM_F_FIB_MATCH if match else 0)
    length = _ROUTE.size + len(attrs)
    head = _ROUTE.pack(length, _RTM_GETROUTE, _REQUEST, 0, 0, socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, flags)
    return bytearray(head + attrs)


def _host_route(owner: int, item: HostRoute) -> bytes:
    attrs = _attribute(_RTA_DST, item.address.packed) + _u32(_RTA_OIF, item.index)
    attrs += _u32(_RTA_PRIORITY, host_route_metric(owner)) + _u32(_RTA_TABLE, item.table)
    if isinstance(item.gateway, IPv4Address):
        attrs += _attribute(_RTA_GATEWAY, item.gateway.packed)
    elif item.gateway is not None:
        attrs += _attribute(_RTA_VIA, struct.pack("=H", socket.AF_INET6) + item.gateway.packed)
    return attrs


def _message(kind: int, flags: int, table: int, scope: int, route_flags: int, attrs: bytes) -> bytearray:
    length = _ROUTE.size + len(attrs)
    short = table if table < 256 else 0
    head = _ROUTE.pack(
        *(length, kind, _REQUEST | flags, 0, 0),
        *(socket.AF_INET, 32, 0, 0, short, PROTOCOL, scope, _RTN_UNICAST, route_flags),
    )
    return bytearray(head + attrs)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _u32(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _read(message: bytes) -> _Answer:
    *_, prefix, _, _, table, protocol, _, type_, _ = _ROUTE.unpack_from(message)
    found = dict(attributes(memoryview(message)[_ROUTE.size :]))
    gateway: IPv4Address | IPv6Address | None = None
    if _RTA_GATEWAY in found:
        gateway = IPv4Address(bytes(found[_RTA_GATEWAY]))
    elif _RTA_VIA in found and len(found[_RTA_VIA]) == 18:
        gateway = IPv6Address(bytes(found[_RTA_VIA][2:]))
    source = found.get(_RTA_PREFSRC)
    network = bytes(found.get(_RTA_DST, bytes(4)))
    return _Answer(
        network=IPv4Network((network, prefix), strict=False),
        table=_number(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        protocol=protocol,
        type=type_,
        metric=_number(found.get(_RTA_PRIORITY, b"")),
        index=_number(found.get(_RTA_OIF, b"")),
        gateway=gateway,
        source=None if source is None else IPv4Address(bytes(source)),
        metrics=bytes(found.get(_RTA_METRICS, b"")),
        encapsulates=_RTA_ENCAP in found,
    )


def _number(payload: memoryview | bytes) -> int:
    return struct.unpack("=I", payload)[0] if len(payload) == 4 else 0


class RouteLookup:
    """Questions to the kernel. Checkpoints, cancel-safe, and raise HostError as `Rtnetlink` does."""

    def __init__(self, kernel: Rtnetlink, standing: NetworkReader) -> None:
        self._kernel = kernel
        self._standing = standing

    async def leads_into(self, own: int, address: IPv4Address, mark: int) -> bool:
        """Whether a packet to the address leaves through the interface ``own`` at present."""
        (answer,) = await self._kernel.ask_together([get_way(address, mark, match=False)])
        return isinstance(answer, bytes) and _read(answer).index == own

    async def way(self, own: int, address: IPv4Address, mark: int, hidden: Sequence[HostRoute]) -> NextHop | None:
        """How the address is reached without the interface ``own`` and without ``hidden``, host routes of its own that
        stand. None: not at all."""
        fronts = [_Front(own, item) for item in hidden if item.address == address]
        while True:
            match, chosen = await self._behind(fronts, [get_way(address, mark, match=it) for it in (True, False)])
            if match is None or chosen is None:
                return None
            front = _front(address, match)
            if front is None or front in fronts:
                break
            fronts.append(front)  # of another interface of ours: it says what that one found, perhaps a while ago
        # Those whose host routes are in front have routes behind them that lead into themselves.
        ours = {own & _INDEX_MASK, *(front.owner & _INDEX_MASK for front in fronts)}
        if chosen.index & _INDEX_MASK not in ours:
            return await self._made_of(match, chosen, mark)
        captured_by = (match.network, match.table) if chosen.index == own else None
        ways: list[tuple[tuple[int, int, int], int, _Answer]] = []
        devices = iter(await self._devices(ours))
        while some := list(islice(devices, _DEVICES)):
            found = await self._behind(fronts, [get_way(address, mark, index=it, match=True) for it in some])
            for index, answer in zip(some, found, strict=True):
                if answer is not None and answer.type == _RTN_UNICAST:
                    order = await self._order(answer.table, mark)
                    ways.append(((order, -answer.network.prefixlen, answer.metric), index, answer))
        if not ways:
            return None
        _, index, best = min(ways, key=lambda it: it[:2])
        (chosen,) = await self._behind(fronts, [get_way(address, mark, index=index, match=False)])
        if chosen is None:
            return None
        way = await self._made_of(best, chosen, mark)
        return replace(way, captured_by=captured_by)

    async def _behind(self, fronts: Sequence[_Front], questions: Sequence[bytearray]) -> list[_Answer | None]:
        """The answers as they are without ``fronts``. None: no route."""
        batch = [remove_host_route(it.owner, it.item) for it in fronts]
        batch += questions
        # One that cannot be made again was of no use any more: its device is down, or has lost an address.
        batch += [add_host_route(it.owner, it.item) for it in fronts]
        answers = await self._kernel.ask_together(batch)
        # Its owner may have removed one before we did, and then it must not be there again.
        gone = [it for it, answer in zip(fronts, answers, strict=False) if isinstance(answer, Refusal)]
        if gone:
            await self._kernel.transact([remove_host_route(it.owner, it.item) for it in gone])
        found = answers[len(fronts) : len(fronts) + len(questions)]
        return [_read(it) if isinstance(it, bytes) else None for it in found]

    async def _made_of(self, match: _Answer, chosen: _Answer, mark: int) -> NextHop:
        """``match`` is the route, and ``chosen`` the next hop of it, where it has several."""
        link = await self._standing.find_link(index=chosen.index)
        usable = chosen.type == _RTN_UNICAST and link is not None and not match.encapsulates
        return NextHop(
            network=match.network,
            table=match.table,
            metric=match.metric,
            index=chosen.index,
            device="" if link is None else link.name,
            gateway=chosen.gateway,
            source=match.source,
            metrics=match.metrics,
            # This machine's own addresses: the kernel may say that they are in the main table, and looks there first.
            above_main=chosen.type == _RTN_LOCAL or await self._is_above_main(match.table, mark),
            usable=usable,
        )

    async def _devices(self, ours: set[int]) -> list[int]:
        links = await self._kernel.dump(dump_links(), read_link)
        return [it.index for it in links if it.admin_up and it.index & _INDEX_MASK not in {*ours, _LOOPBACK}]

    async def _is_above_main(self, table: int, mark: int) -> bool:
        if table in (MAIN_TABLE, _RT_TABLE_DEFAULT, _RT_TABLE_LOCAL):
            return table == _RT_TABLE_LOCAL
        return await self._order(table, mark) < await self._order(MAIN_TABLE, mark)

    async def _order(self, table: int, mark: int) -> int:
        """The priority of the first rule to this table that a packet with the mark may follow."""
        priorities = [
            rule.priority
            for rule in await self._standing.rules()
            if rule.table == table and rule.fwmark in (None, mark)
        ]
        return min(priorities, default=1 << 32)


async def left_over(standing: NetworkReader) -> list[KernelRoute]:
    """Host routes of ours whose interface is gone: those of a killed run."""
    found = await standing.ours(lambda route: host_route_owner(route) is not None)
    living = {index & _INDEX_MASK for index in await standing.tun_indexes()} if found else set()
    return [route for route in found if host_route_owner(route) not in living]
