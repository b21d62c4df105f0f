"""The sockets into which the operating system is plugged: what `tunnel` needs of a host, and no more.

The real ones are `tun.TunDevice`, `netlink.Netlink` and what `changes` opens; the tests join two interfaces
through in-memory ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from ..wire.frames import FrameRange
from .items import HostRoute, Item, NextHop


class Queue(Protocol):
    """Where frames are written to: a 12-byte ``virtio_net_hdr_v1`` (little-endian) and one IP packet of up to 65535
    bytes each. Writing never blocks and never awaits."""

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        """Write one frame. True: taken. None: the device is full, wait for writability and write it again.
        False: the kernel refused this frame (EINVAL and the like); count it as dropped.

        Raises HostError if the interface is gone or down for good.
        """

    def write_burst(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange], /) -> int:
        """Write single frames, each from behind its length on, until the device is full. Returns how many were taken or
        refused; the latter are added to ``refused``. Raises as `write`."""

    def write_parts(self, parts: Sequence[memoryview | bytes], /) -> bool | None:
        """Write one frame that lies in several places (at most 1024); answers and raises as `write`."""

    async def wait_writable(self) -> None:
        """Cancel-safe; a checkpoint. One task at a time."""


class Device(Protocol):
    """A TUN interface opened with IFF_VNET_HDR. Each read is one frame, as a `Queue` takes them, and never blocks and
    never awaits."""

    @property
    def name(self) -> str: ...

    @property
    def queues(self) -> Sequence[Queue]:
        """At least one. What comes back of a flow that is written to one of them does not wait behind what comes back
        of others."""

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        """Read frames, one behind the other, each behind two bytes that are left as they are: room for its length.
        Until none is waiting, or ``limit_bytes`` are filled, or it were ``most``.

        Returns the frames' lengths (>= 12 each), and whether there may be more. ``into`` has room for one largest frame
        behind the limit: what does not fit is cut off. Raises HostError if the interface is gone.
        """

    async def wait_readable(self) -> None:
        """Cancel-safe; a checkpoint. One task at a time."""


class Network(Protocol):
    """Programs one interface's link, addresses, routes and rules. Everything that it makes carries our
    protocol number where the kernel has a place for one.

    Every method sends its items as one batch, raises HostError naming the first item that failed, and is
    cancel-safe in this sense: a cancelled batch may be half made, and every item of it may be removed.
    An item that is refused keeps none of the others from being made or removed.
    """

    async def link_up(self, name: str, mtu: int) -> None:
        """Set the MTU in bytes and bring the link up. Idempotent: also used to change the MTU alone."""

    async def add(self, name: str, items: Sequence[Item]) -> None:
        """Make the items, in order. One that stands already as ours is replaced, not an error; a route that
        stands as somebody else's (other protocol number) is a HostError; a rule stands beside other people's.

        Put a rule behind the route of its table, and remove it before: a rule of ours without a route of ours
        counts as left over from a killed run. (Where that route is refused, the rule is not tried.)

        Raises ItemsRefused, with everything that was refused."""

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        """Remove the items. One that is not there, or whose interface is gone, is not an error."""

    async def next_hop(
        self, name: str, address: IPv4Address, mark: int | None, hidden: Sequence[HostRoute] = ()
    ) -> NextHop | None:
        """How packets to the address, with this fwmark, leave this machine if the interface ``name`` does not count,
        and neither do ``hidden``, host routes that were made for it and stand. None: not at all.

        Raises HostError if the kernel does not say."""

    async def leads_into(self, name: str, address: IPv4Address, mark: int | None) -> bool:
        """Whether such packets leave through the interface ``name`` at present. Raises HostError likewise."""

    async def remove_left_over(self) -> list[str]:
        """Remove the host routes of runs that were killed: those whose interface is gone. Returns their addresses."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened to this machine's ways into the network."""

    what: str
    """For one log line: ``eth0 is up; eth0: address 192.0.2.7 added``."""
    addresses: frozenset[str]
    """All local addresses that this machine has now, IPv4 and IPv6, with neither prefix nor zone."""


class OwnedName(Protocol):
    """An interface's name that is this process's alone."""

    @property
    def doubt(self) -> str | None:
        """Why another start of this program might not see that; None: it will."""

    def require_free(self) -> None:
        """Before the device is opened. Raises HostError if somebody else has made an interface of that name."""


class Host(Protocol):
    """What `app` hands to the interfaces."""

    def own_name(self, name: str) -> AbstractAsyncContextManager[OwnedName]:
        """Have an interface's name in this network namespace until exit, before anything is done for that interface.
        One that is just being given up is waited for.

        Raises HostError: another process runs such an interface, or an interface of that name is there. Cancel-safe.
        """

    def open_device(self, name: str, queues: int = 1) -> AbstractContextManager[Device]:
        """Create the TUN interface ``name`` (1-15 bytes), down and without addresses; it is gone at exit.

        Raises HostError: the name is taken, no /dev/net/tun, no CAP_NET_ADMIN.
        """

    def open_network(self) -> AbstractAsyncContextManager[Network]:
        """A netlink connection of its own, closed at exit."""

    def open_changes(self) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """What happens from now on to the paths that a connection may take: addresses, links that have one, and
        default routes; several things at once are one change. What belongs to interfaces of ours is left out.

        Closed at exit. Waiting for the next change is cancel-safe: none is lost.
        Opening and iterating raise HostError; after that there is nothing more to come, and it may be opened again.
        """

    def open_link(self, name: str) -> AbstractAsyncContextManager[AsyncIterator[bool]]:
        """Whether the interface ``name`` is up, each time that somebody sets it down or up; it is up when this is
        called. Down and up again at once is one True.

        Closed at exit. Cancel-safe and failing as `open_changes`.
        """


@dataclass(frozen=True, slots=True)
class PathState:
    """A TCP connection's view of its path (TCP_INFO).

    Attributes:
        rtt_s: smoothed round trip.
        min_rtt_s: the shortest of the last minutes.
        rate_bytes_s: at which data was delivered last.
        flying_bytes: sent, and neither acknowledged nor lost, as far as one knows.
        unsent_bytes: taken by the kernel and not yet sent.
        sent_segments: ever, each time it was sent.
        resent_segments: of these.
    """

    rtt_s: float
    min_rtt_s: float
    rate_bytes_s: float
    flying_bytes: int
    unsent_bytes: int
    sent_segments: int
    resent_segments: int

    @property
    def queue_s(self) -> float:
        """What of the round trip is waiting in queues."""
        return self.rtt_s - self.min_rtt_s
