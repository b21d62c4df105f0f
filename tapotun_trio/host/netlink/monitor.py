"""Watches the kernel for changes to addresses, links, routes and rules: `Host.open_changes` and `Host.open_interface`.

Follows netlink(7) and rtnetlink(7): a socket that has joined multicast groups gets a copy of every notification. If it
does not read in time, the kernel drops what does not fit into the receive buffer, and the next read fails with
ENOBUFS. Then the state is read again, and the loss itself counts as a change.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Final, Generic, Protocol, Self, TypeAlias, TypeVar

import trio
from pyroute2.netlink import NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV4_RULE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_IPV6_RULE,
    RTMGRP_LINK,
)

from ...errors import HostError, shortage_of
from ..interfaces import Change, InterfaceChange
from ..items import MAIN_TABLE, RouteKey
from . import bridge_codec, codec, link_codec
from .codec import KERNEL_PROTOCOL, PROTOCOL, KernelAddress
from .link_codec import Link
from .socket import Refusal, Rtnetlink, split
from .tracker import HALF_DEFAULT, InterfaceTracker, NetworkTracker

# A change is reported after this much silence: a DHCP client, or `ip link set down`, makes several changes at once.
SETTLE_S: Final = 0.3
# A change is reported after this time even if there was no silence.
SETTLE_LIMIT_S: Final = 1.5

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; Python's socket module has no names for these two
_SO_RCVBUFFORCE: Final = 33
_RTMGRP_IPV4_NETCONF: Final = 1 << 24 - 1  # RTNLGRP_IPV4_NETCONF, linux/rtnetlink.h; pyroute2 has no name for the bit
# By the kernel's accounting a notification about a link takes 2 to 4 KiB: room for a few hundred.
RECEIVE_BUFFER_BYTES: Final = 1 << 20
# The largest message is about a link with all its attributes, some KiB; the kernel's own buffers for them are 16 KiB.
_MESSAGE_BYTES: Final = 32 * 1024

T_co = TypeVar("T_co", covariant=True)


class Notifications:
    """A netlink socket that joined multicast groups, in the network namespace of the thread that made it."""

    def __init__(self, groups: int, route_filter: FilterProgram) -> None:
        """``route_filter``: selects the notifications about routes to receive. Raises HostError."""
        with _as_host_error():
            self._buffer = memoryview(bytearray(_MESSAGE_BYTES))
            self._sock = _join(groups, route_filter)

    def close(self) -> None:
        self._sock.close()

    async def receive(self) -> Iterator[tuple[int, int, memoryview]] | None:
        """The messages of the next datagram: type, flags, and the whole message, valid until the next call. None:
        notifications were lost.

        A checkpoint; if it is cancelled, it has taken nothing. Raises HostError.
        """
        with _as_host_error():
            while True:
                try:
                    length, address = await self._sock.recvfrom_into(self._buffer)
                except OSError as exc:
                    if exc.errno == errno.ENOBUFS:
                        return None
                    raise
                # nl_pid 0 is the kernel's. Any process with CAP_NET_ADMIN may send to the groups, too.
                if address[0] == 0:
                    return ((kind, flags, message) for kind, flags, _, message in split(self._buffer[:length]))


class _Tracker(Protocol[T_co]):
    """The known state and its changes: `tracker.NetworkTracker` or `tracker.InterfaceTracker`."""

    @property
    def dirty(self) -> bool: ...
    def handle_message(self, kind: int, flags: int, message: memoryview) -> bool: ...
    def overflow(self) -> None: ...
    def load(self, links: Iterable[Link], addresses: Iterable[KernelAddress]) -> None: ...
    def drain(self) -> T_co | None: ...


class _Monitor(Generic[T_co]):
    """An async iterator over the changes that a tracker finds in the notifications, after they have settled.

    All that was received is in the tracker, so a cancelled `__anext__` loses nothing.
    """

    def __init__(self, notifications: Notifications, tracker: _Tracker[T_co]) -> None:
        self._notifications = notifications
        self._tracker = tracker
        self._stale = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        while True:
            while not self._tracker.dirty:
                await self._handle_messages()
            await self._settle()
            if self._stale:
                await self.load()
            change = self._tracker.drain()
            if change is not None:
                return change

    async def load(self) -> None:
        """Read the state from the kernel. Raises HostError."""
        with _as_host_error():
            kernel = Rtnetlink()
        try:
            links = await kernel.dump(link_codec.dump_links(), link_codec.read_link)
            addresses = await kernel.dump(codec.dump_addresses(), codec.read_address)
        finally:
            kernel.close()
        self._tracker.load(links, addresses)
        self._stale = False

    async def _settle(self) -> None:
        limit = trio.current_time() + SETTLE_LIMIT_S
        with trio.move_on_after(SETTLE_S) as silence:
            while True:
                if await self._handle_messages():
                    silence.deadline = min(trio.current_time() + SETTLE_S, limit)

    async def _handle_messages(self) -> bool:
        """Wait for one datagram and give it to the tracker. Returns whether it says that something has happened."""
        messages = await self._notifications.receive()
        if messages is None:
            self._tracker.overflow()
            self._stale = True
            return True
        dirty = False
        for kind, flags, message in messages:
            if self._tracker.handle_message(kind, flags, message):
                dirty = True
        return dirty


@asynccontextmanager
async def open_changes(own: Container[str]) -> AsyncIterator[AsyncIterator[Change]]:
    """As `Host.open_changes`. ``own``: the names of this process's interfaces, looked up at each change."""
    tracker = NetworkTracker(own)
    groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
    async with _open_monitor(groups, tracker, DEFAULT_ROUTES) as monitor:
        # Loaded after joining, so that nothing is missed in between. A notification about a loaded item changes
        # nothing.
        await monitor.load()
        tracker.drain()
        yield monitor


@asynccontextmanager
async def open_interface(
    index: int, is_route: Callable[[RouteKey], bool]
) -> AsyncIterator[AsyncIterator[InterfaceChange]]:
    """Implements `Host.open_interface`."""
    tracker = InterfaceTracker(index, is_route, await _master_of(index))
    groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV4_RULE | _RTMGRP_IPV4_NETCONF
    groups |= RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE | RTMGRP_IPV6_RULE
    async with _open_monitor(groups, tracker, OUR_ROUTES) as monitor:
        yield monitor


async def _master_of(index: int) -> int:
    """The index of the bridge that a link is a port of; 0: of none. If it becomes one before the notifications are
    read, the first of them says so. Raises HostError."""
    with _as_host_error():
        kernel = Rtnetlink()
    try:
        answer = await kernel.ask(link_codec.get_link(index=index))
    finally:
        kernel.close()
    return 0 if isinstance(answer, Refusal) else bridge_codec.read_master(memoryview(answer))


@asynccontextmanager
async def _open_monitor(
    groups: int, tracker: _Tracker[T_co], route_filter: FilterProgram
) -> AsyncIterator[_Monitor[T_co]]:
    with closing(Notifications(groups, route_filter)) as notifications:
        yield _Monitor(notifications, tracker)


def _join(groups: int, route_filter: FilterProgram) -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        # Both are optimisations and may fail: an emulated kernel may have no filters, and the larger buffer takes
        # CAP_NET_ADMIN.
        with suppress(OSError):
            attach_filter(sock, route_filter)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        sock.bind((0, groups))
        sock.connect((0, 0))  # from now on only the kernel may send to this socket's own address
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


# Instructions of struct sock_filter, linux/filter.h: code u16; jumps if true and if false, u8, in instructions; k u32.
# Each datagram holds exactly one notification. The filter loads numbers as big-endian, but netlink uses host order.
FilterProgram: TypeAlias = tuple[tuple[int, int, int, int], ...]
_LOAD_U16, _LOAD_U8, _EQUAL, _GREATER, _ANY_BIT, _ACCEPT = 0x28, 0x30, 0x15, 0x25, 0x45, 0x06
_EVERYTHING, _NOTHING = 0xFFFF_FFFF, 0
_NEW_ROUTE, _DEL_ROUTE = socket.htons(RTM_NEWROUTE), socket.htons(RTM_DELROUTE)

# Accepts only notifications about default routes of the main table. A router gets tens of thousands of other route
# notifications, and each would wake this process.
DEFAULT_ROUTES: Final[FilterProgram] = (
    (_LOAD_U16, 0, 0, 4),  # nlmsg_type
    (_EQUAL, 1, 0, _NEW_ROUTE),
    (_EQUAL, 0, 4, _DEL_ROUTE),  # not a route: accept
    (_LOAD_U8, 0, 0, 17),  # rtm_dst_len
    (_GREATER, 3, 0, HALF_DEFAULT),
    (_LOAD_U8, 0, 0, 20),  # rtm_table; it is 252 for table numbers above 255
    (_EQUAL, 0, 1, MAIN_TABLE),
    (_ACCEPT, 0, 0, _EVERYTHING),
    (_ACCEPT, 0, 0, _NOTHING),
)

# Accepts the removal of routes with our protocol number or the kernel's, and routes that replaced another route.
OUR_ROUTES: Final[FilterProgram] = (
    (_LOAD_U16, 0, 0, 4),  # nlmsg_type
    (_EQUAL, 4, 0, _NEW_ROUTE),
    (_EQUAL, 0, 5, _DEL_ROUTE),  # not a route: accept
    (_LOAD_U8, 0, 0, 21),  # rtm_protocol
    (_EQUAL, 3, 0, PROTOCOL),
    (_EQUAL, 2, 3, KERNEL_PROTOCOL),
    (_LOAD_U16, 0, 0, 6),  # nlmsg_flags
    (_ANY_BIT, 0, 1, socket.htons(NLM_F_REPLACE)),
    (_ACCEPT, 0, 0, _EVERYTHING),
    (_ACCEPT, 0, 0, _NOTHING),
)


def attach_filter(sock: socket.socket, program: FilterProgram) -> None:
    code = array.array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    address, _ = code.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), address))


@contextmanager
def _as_host_error() -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError) as exc:
        doing = "cannot watch for changes of addresses and routes"
        raise shortage_of(exc, doing) or HostError(f"{doing}: {getattr(exc, 'strerror', exc)}") from exc
