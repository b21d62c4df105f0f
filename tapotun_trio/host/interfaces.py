"""The Protocols of a host: what the rest of the program needs of the operating system, and no more.

The real implementations are `tun.TunDevice`, `tun_queues.TunQueues`, `netlink.network.Netlink` and `linux.RealHost`;
tests use implementations in memory (tests/fakes.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ..families import IPAddress, IPInterface, IPNetwork
from ..wire.frames import FrameRange
from .items import AttachedNetwork, CurrentRoute, HostRoute, Item, LinkState, NextHop, RouteKey


class Queue(Protocol):
    """Takes frames: each is a 12-byte ``virtio_net_hdr_v1`` (little-endian) and one IP packet of up to 65535 bytes.
    Writing never blocks and never awaits."""

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        """Write one frame. True: taken. None: the device is full; wait for writability and write it again.
        False: the kernel refused this frame (EINVAL and the like); count it as dropped.

        Raises HostError if the interface is gone or down for good.
        """

    def write_burst(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange], /) -> int:
        """Write single frames until the device is full. Each span of ``view`` is a length, which is skipped, and a
        frame. Returns the number of frames taken or refused, and appends the refused ones to ``refused``. Raises as
        `write`."""

    def write_parts(self, parts: Sequence[memoryview | bytes], /) -> bool | None:
        """Write one frame that consists of several parts (at most 1024). Returns and raises as `write`."""

    async def wait_writable(self) -> None:
        """Cancel-safe; a checkpoint. One task at a time."""


@runtime_checkable
class LendableQueue(Protocol):
    """A queue whose descriptor may be lent to the plane, which writes frames to it."""

    @property
    def descriptor(self) -> int | None:
        """None: it is closed."""


@runtime_checkable
class LendableDevice(Protocol):
    """A device whose queues may be lent to the plane, which reads frames from them."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of its queues; empty: it is closed."""


class Device(Protocol):
    """A TUN interface opened with IFF_VNET_HDR. Each read is one frame in the format of `Queue`. Reading never blocks
    and never awaits."""

    @property
    def name(self) -> str: ...

    @property
    def queues(self) -> Sequence[Queue]:
        """The queues for writing, at least one. The answers to a flow that is written to one queue do not wait behind
        the answers to flows of other queues."""

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        """Read frames one after the other. The two bytes before each frame stay unchanged; they are room for its
        length.

        Ends when no frame is waiting, when ``limit_bytes`` are filled, or after ``most`` frames.

        Returns the lengths of the frames (at least 12 each), and whether there may be more. ``into`` needs room for one
        frame of maximum size after the limit, since a frame that does not fit is truncated. Raises HostError if the
        interface is gone.
        """

    async def wait_readable(self) -> None:
        """Cancel-safe; a checkpoint. One task at a time."""


class OwnDevice(Device, Protocol):
    """The device of an interface of ours, as `Host.open_device` makes it."""

    def set_carrier(self, *, up: bool) -> None:
        """Set whether a TAP interface has a carrier, as if a cable were plugged in. Ignored where the kernel cannot do
        it (before Linux 4.20). Raises HostError if the interface is gone."""


class Network(Protocol):
    """Configures one interface's link, addresses, routes and rules. All items that it adds carry our protocol number,
    if the kernel has a field for it.

    ``name``: the interface that has this name at the first call. Later calls mean the same interface, even if it was
    renamed.

    Every method sends its items as one batch, and raises HostError naming the first item that failed. After a
    cancellation a part of the batch may be in the kernel, and every item of it may be removed. A refused item does not
    keep the others from being added or removed.
    """

    async def link_up(self, name: str, mtu: int) -> None:
        """Set the MTU in bytes and bring the link up. Idempotent: also used to change the MTU alone.

        The interface gets no IPv6 link-local address, so it sends nothing of its own. With an MTU below 1280 it has no
        IPv6 at all, and loses its IPv6 addresses and routes."""

    async def index(self, name: str) -> int:
        """The interface's index."""

    async def state(self, name: str) -> LinkState | None:
        """Return the interface's current state. None: the interface is gone, or in another network namespace."""

    async def missing(self, name: str, items: Sequence[Item]) -> list[Item]:
        """Return the items that were added but are not in the kernel now, in their order. If an address has lost its
        connected route, the list contains a `ConnectedRoute`. Costs one dump per table, and lookups in steps; other
        tasks run between the steps."""

    async def rename(self, name: str) -> None:
        """Give the interface its name ``name`` again. Before Linux 6.2 the interface must be set down for that, and it
        stays down."""

    async def add(self, name: str, items: Sequence[Item]) -> None:
        """Add the items, in order.

        An item of ours that exists is replaced. If a route exists with another protocol number, it belongs to another
        program, and the new route is refused. A rule is added even if other programs have the same one.

        With an IPv4 rule, strict reverse path filtering is switched to loose on the interface, since it would drop the
        replies to packets that the rule matches.

        A rule has to come after the route of its table, and has to be removed before it: a rule of ours without a route
        of ours counts as left by a killed run. (If that route is refused, the rule is not tried.)

        Raises ItemsRefused, with everything that was refused."""

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        """Remove the items. An item that does not exist, or whose interface is gone, is not an error."""

    async def next_hop(
        self, name: str, address: IPAddress, mark: int | None, hidden: Sequence[HostRoute] = ()
    ) -> NextHop | None:
        """How packets to the address, with this fwmark, would leave this machine without the interface ``name`` and
        without ``hidden``, the host routes that were added for it. None: there is no route.

        Raises HostError if the kernel does not answer."""

    async def leads_into(self, name: str, address: IPAddress, mark: int | None) -> bool:
        """Whether packets to the address leave through the interface ``name`` at present. Raises as `next_hop`."""

    async def current_routes(
        self, name: str, addresses: Collection[str], mark: int | None
    ) -> dict[str, CurrentRoute | None]:
        """Return how packets with this fwmark are currently sent to each of the addresses, IPv4 and IPv6. None: there
        is no route. IPv6 link-local addresses are left out, and so are addresses that are routed into the interface
        ``name``. That interface need not exist.

        Raises HostError if the kernel does not answer."""

    async def attached(
        self, name: str, networks: Collection[IPNetwork], within: Collection[IPNetwork] = ()
    ) -> list[AttachedNetwork]:
        """Return the attached networks (see `netlink.attached`) that contain one of ``networks``, and those of at least
        two addresses that lie in one of ``within``. Networks of the interface ``name`` do not count. Raises as
        `next_hop`."""

    async def machine_addresses(self) -> frozenset[IPInterface]:
        """Return the addresses of this machine, each with its prefix length, except IPv6 link-local ones, which each
        link has. Raises as `next_hop`."""

    async def addressed_link(self, name: str, addressed: str) -> AddressedLink | None:
        """Return what the bridge has that the interface ``name`` is a port of, even if the bridge was renamed. If the
        interface is no port, what the link called ``addressed`` has. That may be the interface itself, even if it was
        renamed. None: there is none. Raises as `next_hop`."""

    async def require_bridge(self, name: str, bridge: str, *, create: bool, ending: Collection[str]) -> None:
        """Check whether an interface ``name`` could be a port of a bridge, or could make it (``create``), once the
        interfaces ``ending`` are gone with the bridges that they made.

        Raises MissingBridgeError if there is no bridge then. Raises HostError if the name is another link's, or if the
        bridge cannot be made because another program made one. Also raises as `next_hop`."""

    async def remove_left_over(self) -> list[str]:
        """Remove the host routes that killed runs left: those whose interface is gone. Returns their destinations."""

    async def remove_left_over_bridges(self, name: str, kept: str | None) -> list[str]:
        """Remove the bridges that killed runs of the interface ``name`` made, except the one called ``kept``. Call it
        while the name is reserved and there is no such interface. Returns the names of the bridges."""


@dataclass(frozen=True, slots=True)
class AddressedLink:
    """What a TAP interface has at present, or the bridge whose port it is.

    Attributes:
        mac: its MAC address.
        addresses: all of its IP addresses, link-local ones, too.
    """

    mac: bytes
    addresses: frozenset[IPAddress]


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed that may affect the paths of this machine's connections."""

    what: str
    """For one log line: ``eth0 is up; eth0: address 192.0.2.7 added``."""
    addresses: frozenset[str]
    """All local addresses that this machine has now, IPv4 and IPv6, without prefix length and zone."""
    touched_addresses: frozenset[str] = field(default=frozenset(), kw_only=True)
    """Addresses that were added, removed, or removed and added again, and the addresses of the links in
    ``touched_links``."""
    touched_links: frozenset[int] = field(default=frozenset(), kw_only=True)
    """Indexes of links that went up or down, or were down for a moment."""
    incomplete: bool = field(default=False, kw_only=True)
    """Notifications were lost, so there were more changes than are listed here."""


@dataclass(frozen=True, slots=True)
class InterfaceChange:
    """A change to an interface of ours, made by this process or by another program.

    Attributes:
        toggled: the interface was set down, or up, or both.
        moved: the interface was moved to another network namespace.
        returned: no other program is to blame. All that happened is that another interface of this program, perhaps of
            another process, lost routes that both wanted.
        senders: the netlink port numbers of the programs that made the change, usually process ids. 0 is the kernel
            itself, or the unknown program that removed an IPv6 address.
    """

    toggled: bool = False
    moved: bool = False
    senders: frozenset[int] = frozenset()
    returned: bool = False


class OwnedName(Protocol):
    """An interface's name that is reserved for this process."""

    @property
    def doubt(self) -> str | None:
        """Why another start of this program might not notice the reservation; None: it will notice."""

    def require_free(self) -> None:
        """Call before opening the device. Raises HostError if another program has created an interface of that name.
        Raises ShortageError if this machine lacks the memory or descriptors to find out."""


class Host(Protocol):
    """What `app` passes to the interfaces."""

    def has_ipv6(self, name: str) -> bool:
        """Whether the interface ``name`` can have IPv6 addresses; or, if there is no such interface, whether a new one
        could. False if the kernel has no IPv6, or if it is switched off (disable_ipv6). It may change at any time.
        Where this machine lacks the descriptors to find out, the answer is the last one, or else True. The name ``all``
        stands for every interface: False if IPv6 is switched off on the whole machine."""

    def own_name(self, name: str) -> AbstractAsyncContextManager[OwnedName]:
        """Reserve an interface's name in this network namespace until exit. Call this before anything else is done for
        the interface. Waits a moment in case another process is just releasing the name.

        Raises HostError if another process runs an interface of that name, or if one exists. Raises ShortageError if
        this machine lacks the memory or descriptors to find out. Cancel-safe.
        """

    def open_device(
        self, name: str, queues: int = 1, mac: bytes | None = None, *, is_port: bool = False
    ) -> AbstractContextManager[OwnDevice]:
        """Create the TUN interface ``name`` (1-15 bytes), down and without addresses; it is gone at exit.

        ``mac``: create a TAP interface with this MAC address, and without a carrier. ``is_port``: it is going to be a
        port of a bridge, which takes no packets itself.

        It has fewer than ``queues`` queues where the limit of open files is low.

        Raises HostError if the name is taken, or without /dev/net/tun or CAP_NET_ADMIN.
        """

    def open_network(self) -> AbstractAsyncContextManager[Network]:
        """A netlink connection of its own, closed at exit."""

    def open_changes(self) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Report changes that may affect the paths of connections, from now on: of addresses, of links that have an
        address, and of default routes. Several changes at once are reported as one. Our own interfaces are left out.

        Closed at exit. Waiting for the next change is cancel-safe: none is lost. Opening and iterating raise HostError;
        then the iterator is finished, and may be opened again.
        """

    def open_interface(
        self, index: int, is_route: Callable[[RouteKey], bool]
    ) -> AbstractAsyncContextManager[AsyncIterator[InterfaceChange]]:
        """Report the changes, from now on, after which an item of ours may be missing. These are changes to the
        interface ``index`` itself, which must be up when this is called, and the removal of any of its addresses,
        routes or host routes, or of our rules. The removal of a route counts even if another interface of ours had
        taken the route over, and so does the end of any other TUN interface, with which such routes vanish without a
        notification. A reverse path filter that is set to another mode counts too. Changes at the same time are
        reported as one. Lost notifications are reported as a change.

        Closed at exit. Cancel-safe, and raises as `open_changes`.

        Args:
            is_route: tells whether the interface has a route with this key (`items.RouteKey`). If so, its replacement
                by another program's route is reported too.
        """


@dataclass(frozen=True, slots=True)
class PathState:
    """A TCP connection's view of its path (TCP_INFO).

    Attributes:
        rtt_s: smoothed round trip.
        min_rtt_s: the shortest round trip of the last minutes.
        rate_bytes_s: the latest delivery rate.
        flying_bytes: sent, and neither acknowledged nor known to be lost.
        unsent_bytes: taken by the kernel and not yet sent.
        sent_segments: all transmissions since the start, retransmissions included.
        resent_segments: the retransmissions.
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
        """The part of the round trip that is spent in queues."""
        return self.rtt_s - self.min_rtt_s
