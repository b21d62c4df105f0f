"""Hears of changes to addresses, links and routes as the kernel makes them: `Host.open_changes` and `open_link`.

Follows netlink(7) and rtnetlink(7): a socket that joined multicast groups gets a copy of every notification. If it
does not read in time, what does not fit is dropped and the next read fails with ENOBUFS; then the state is read
anew, and that something was missed counts as a change.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import AsyncIterator, Container, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Final, Generic, Protocol, Self, TypeVar

import trio

from ...errors import HostError, shortage_of
from ..interfaces import Change
from ..items import MAIN_TABLE
from .socket import Rtnetlink, split
from .tracker import (
    HALF_DEFAULT,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    Address,
    Link,
    LinkTracker,
    NetworkTracker,
    dump_addresses,
    dump_links,
    read_address,
    read_link,
)

# A change is told when it has been quiet for so long: a DHCP client, or `ip link set down`, makes several at once.
SETTLE_S: Final = 0.3
# Or when it has not been quiet for so long.
SETTLE_LIMIT_S: Final = 1.5

# linux/rtnetlink.h: as bits for bind(2), 1 << (RTNLGRP_* - 1)
_LINK: Final = 0x1
_IPV4_IFADDR: Final = 0x10
_IPV4_ROUTE: Final = 0x40
_IPV6_IFADDR: Final = 0x100
_IPV6_ROUTE: Final = 0x400

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; socket has no names for these two
_SO_RCVBUFFORCE: Final = 33
# As the kernel counts, a notification about a link is 2 to 4 KiB: a few hundred at once.
_RECEIVE_BUFFER_BYTES: Final = 1 << 20
# The largest is about a link with all its extras, some KiB; the kernel's own buffers for these end at 16 KiB.
_MESSAGE_BYTES: Final = 32 * 1024

T_co = TypeVar("T_co", covariant=True)


class _Notifications:
    """A netlink socket that joined multicast groups, in the network namespace of the thread that made it."""

    def __init__(self, groups: int) -> None:
        """Raises HostError."""
        with _as_host_error():
            self._buffer = memoryview(bytearray(_MESSAGE_BYTES))
            self._sock = _join(groups)

    def close(self) -> None:
        self._sock.close()

    async def receive(self) -> Iterator[tuple[int, int, memoryview]] | None:
        """The messages of the next datagram: type, flags, and all of it, valid until the next call. None:
        notifications were lost.

        A checkpoint; cancelled, it has taken nothing. Raises HostError.
        """
        with _as_host_error():
            while True:
                try:
                    length, address = await self._sock.recvfrom_into(self._buffer)
                except OSError as exc:
                    if exc.errno == errno.ENOBUFS:
                        return None
                    raise
                if address[0] == 0:  # nl_pid: the kernel's. Who has CAP_NET_ADMIN may send to the groups, too.
                    return ((kind, flags, message) for kind, flags, _, message in split(self._buffer[:length]))


class _Tracker(Protocol[T_co]):
    """What is known, and what is new of it: `surroundings.NetworkTracker` or `LinkTracker`."""

    @property
    def dirty(self) -> bool: ...
    def handle_message(self, kind: int, flags: int, message: memoryview) -> bool: ...
    def lose(self) -> None: ...
    def load(self, links: Iterable[Link], addresses: Iterable[Address]) -> None: ...
    def drain(self) -> T_co | None: ...


class _Watch(Generic[T_co]):
    """Hears, lets it settle, tells: the async iterator behind both ways of watching.

    What was heard is in the picture, so that a cancelled `__anext__` loses nothing.
    """

    def __init__(self, notifications: _Notifications, picture: _Tracker[T_co]) -> None:
        self._notifications = notifications
        self._picture = picture
        self._stale = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        while True:
            while not self._picture.dirty:
                await self._handle_messages()
            await self._settle()
            if self._stale:
                await self.load()
            drain = self._picture.drain()
            if drain is not None:
                return drain

    async def load(self) -> None:
        """Read the state from the kernel. Raises HostError."""
        with _as_host_error():
            kernel = Rtnetlink()
        try:
            links = await kernel.dump(dump_links(), read_link)
            addresses = await kernel.dump(dump_addresses(), read_address)
        finally:
            kernel.close()
        self._picture.load(links, addresses)
        self._stale = False

    async def _settle(self) -> None:
        limit = trio.current_time() + SETTLE_LIMIT_S
        with trio.move_on_after(SETTLE_S) as quiet:
            while True:
                if await self._handle_messages():
                    quiet.deadline = min(trio.current_time() + SETTLE_S, limit)

    async def _handle_messages(self) -> bool:
        """Wait for a datagram and take it in. Returns whether it says that something has happened."""
        messages = await self._notifications.receive()
        if messages is None:
            self._picture.lose()
            self._stale = True
            return True
        dirty = False
        for kind, flags, message in messages:
            dirty |= self._picture.handle_message(kind, flags, message)
        return dirty


@asynccontextmanager
async def open_changes(own: Container[str]) -> AsyncIterator[AsyncIterator[Change]]:
    """As `Host.open_changes`. ``own``: the names of this process's interfaces, asked whenever something happens."""
    surroundings = NetworkTracker(own)
    groups = _LINK | _IPV4_IFADDR | _IPV4_ROUTE | _IPV6_IFADDR | _IPV6_ROUTE
    async with _watching(groups, surroundings) as watch:
        # After joining, so that nothing is missed in between; what is heard twice changes nothing.
        await watch.load()
        surroundings.drain()
        yield watch


@asynccontextmanager
async def open_link(name: str) -> AsyncIterator[AsyncIterator[bool]]:
    """As `Host.open_link`."""
    async with _watching(_LINK, LinkTracker(name)) as watch:
        yield watch


@asynccontextmanager
async def _watching(groups: int, picture: _Tracker[T_co]) -> AsyncIterator[_Watch[T_co]]:
    with closing(_Notifications(groups)) as notifications:
        yield _Watch(notifications, picture)


def _join(groups: int) -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        # Each makes it cheaper, none is needed: the second takes CAP_NET_ADMIN, and an emulated kernel may have
        # no filters.
        with suppress(OSError):
            _attach_filter(sock)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        sock.bind((0, groups))
        sock.connect((0, 0))  # from now on the kernel lets nobody else send to this socket alone
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


def _attach_filter(sock: socket.socket) -> None:
    """Have the kernel drop notifications about other routes than default ones of the main table.

    On a router they come by the ten thousand, and each would wake us. linux/filter.h, struct sock_filter: code
    u16, jumps if true and if false u8 (in instructions), k u32. A notification is the first and only message of
    its datagram; loads are big-endian, netlink is in host order.
    """
    load_u16, load_u8, equal, greater, accept = 0x28, 0x30, 0x15, 0x25, 0x06
    everything, nothing = 0xFFFF_FFFF, 0
    program = [
        (load_u16, 0, 0, 4),  # nlmsg_type
        (equal, 1, 0, socket.htons(RTM_NEWROUTE)),
        (equal, 0, 4, socket.htons(RTM_DELROUTE)),  # not a route: accept
        (load_u8, 0, 0, 17),  # rtm_dst_len
        (greater, 3, 0, HALF_DEFAULT),
        (load_u8, 0, 0, 20),  # rtm_table; a larger number is 252 there
        (equal, 0, 1, MAIN_TABLE),
        (accept, 0, 0, everything),
        (accept, 0, 0, nothing),
    ]
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
