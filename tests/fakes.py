"""A host in memory: devices whose other side is the test, and a kernel that only records what is set."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import trio

from tapotun_trio.errors import HostError, MissingBridgeError
from tapotun_trio.families import IPAddress, IPInterface, IPNetwork, is_within
from tapotun_trio.host.interfaces import AddressedLink, Change, InterfaceChange
from tapotun_trio.host.items import (
    AttachedNetwork,
    BridgeAddress,
    BridgePort,
    CurrentRoute,
    HostRoute,
    Item,
    ItemsRefused,
    LinkState,
    NextHop,
    OwnBridge,
    Route,
    RouteKey,
    Rule,
)
from tapotun_trio.wire.frames import LENGTH_BYTES, FrameRange

PLAIN_VNET: Final = bytes(12)

# A packet that has not arrived by then never will, even on a busy machine.
HANG_S: Final = 30.0

T = TypeVar("T")


class MemoryDevice:
    """A TUN device. What the test puts into `inbound` the program reads; what the program writes, the
    test takes with `receive`."""

    def __init__(self, name: str, queue_count: int = 1) -> None:
        self.name = name
        self.queue_count = queue_count
        self.inbound: deque[bytes] = deque()
        self.outbound: deque[bytes] = deque()
        self.writable = True
        self.refuses = False  # as the kernel does while the link is down
        self.closed = False
        self.mac: bytes | None = None  # of a TAP device
        self.is_port = False
        self.carrier = True
        self.fault: Exception | None = None  # raised at the program's next wait for a frame
        self._changed = trio.Event()

    # -- the program's side: host.ports.Device

    @property
    def queues(self) -> list[MemoryDevice]:
        return [self] * self.queue_count

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        self._check()
        lengths: list[int] = []
        at = LENGTH_BYTES
        while len(lengths) < most and at < limit_bytes + LENGTH_BYTES:
            frame = self._next()
            if frame is None:
                return lengths, False
            frame = frame[: len(into) - at]
            into[at : at + len(frame)] = frame
            lengths.append(len(frame))
            at += len(frame) + LENGTH_BYTES
        return lengths, True

    def _next(self) -> bytes | None:
        return self.inbound.popleft() if self.inbound else None

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        self._check()
        if not self.writable:
            return None
        if self.refuses or frame[0] & ~3:  # flags that virtio does not have: what the kernel says EINVAL to
            return False
        self.outbound.append(bytes(frame))
        self._notify()
        return True

    def write_burst(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange], /) -> int:
        for number, span in enumerate(spans):
            taken = self.write(view[span[0] + LENGTH_BYTES : span[1]])
            if taken is None:
                return number
            if not taken:
                refused.append(span)
        return len(spans)

    def write_parts(self, parts: Sequence[memoryview | bytes], /) -> bool | None:
        return self.write(b"".join(parts))

    def set_carrier(self, *, up: bool) -> None:
        self._check()
        if self.mac is not None:
            self.carrier = up
            self._notify()

    async def wait_carrier(self, *, up: bool) -> None:
        with trio.fail_after(HANG_S):
            while self.carrier != up:
                await self._changed.wait()

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fault is not None:
            raise self.fault
        while not self.inbound:
            await self._changed.wait()
            self._check()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.writable:
            await self._changed.wait()
            self._check()

    # -- the test's side

    def send(self, packet: bytes, vnet: bytes = PLAIN_VNET) -> None:
        """The host sends a packet out through the interface."""
        self.inbound.append(vnet + packet)
        self._notify()

    def close(self) -> None:
        self.closed = True

    def set_writable(self, writable: bool) -> None:
        self.writable = writable
        self._notify()

    async def receive(self) -> bytes:
        """The next frame that the program wrote, vnet header and packet."""
        with trio.fail_after(HANG_S):
            while not self.outbound:
                await self._changed.wait()
        return self.outbound.popleft()

    @property
    def unread(self) -> bool:
        """Whether the program has not read everything yet."""
        return bool(self.inbound)

    def take(self) -> list[bytes]:
        """All that the program wrote and nobody has received."""
        frames = list(self.outbound)
        self.outbound.clear()
        return frames

    async def receive_packet(self) -> bytes:
        return (await self.receive())[len(PLAIN_VNET) :]

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _check(self) -> None:
        if self.closed:
            raise HostError(f"{self.name} is gone")


class MemoryNetwork:
    """Records the items that are set, and refuses those in `MemoryHost.refused`."""

    def __init__(self, host: MemoryHost) -> None:
        self._host = host

    async def link_up(self, name: str, mtu: int) -> None:
        await trio.lowlevel.checkpoint()
        self._host.mtus[name] = mtu
        self._host.down.discard(name)

    async def index(self, name: str) -> int:
        await trio.lowlevel.checkpoint()
        return self._host.index_of(name)

    async def state(self, name: str) -> LinkState | None:
        await trio.lowlevel.checkpoint()
        if name in self._host.moved:
            return None
        now = self._host.renamed.get(name, name)
        is_strict = name in self._host.strict
        return LinkState(now, name not in self._host.down, self._host.mtus.get(name, 0), is_strict)

    async def missing(self, name: str, items: Sequence[Item]) -> list[Item]:
        await trio.lowlevel.checkpoint()
        self._host.looks += 1
        if self._host.ways_fail:
            raise HostError("the kernel does not say")
        return [item for item in items if item not in self._host.standing.get(name, [])]

    async def rename(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        del self._host.renamed[name]

    async def add(self, name: str, items: Sequence[Item]) -> None:
        refused: dict[Item, str] = {}
        bridgeless: list[MissingBridgeError] = []
        for item in items:
            await trio.lowlevel.checkpoint()
            if isinstance(item, (BridgePort, BridgeAddress)) and item.bridge in self._host.missing_bridges:
                bridgeless.append(MissingBridgeError(f"there is no bridge {item.bridge}"))
                refused[item] = str(bridgeless[-1])
                continue
            if item in self._host.refused:
                refused[item] = f"{item}: refused"
                continue
            standing = self._host.standing.setdefault(name, [])
            if isinstance(item, HostRoute):  # takes the place of the one before
                standing[:] = [
                    route for route in standing if not (isinstance(route, HostRoute) and _same_place(route, item))
                ]
            if item not in standing:
                standing.append(item)
            if isinstance(item, Rule) and item.version == 4:
                self._host.strict.discard(name)
        if refused:
            is_all = bridgeless and len(bridgeless) == len(refused)
            raise ItemsRefused(refused, missing_bridge=bridgeless[0] if is_all else None)

    async def remove(self, name: str, items: Sequence[Item]) -> None:
        for item in items:
            await trio.lowlevel.checkpoint()
            if item in self._host.standing.get(name, []):
                self._host.standing[name].remove(item)

    async def next_hop(
        self, name: str, address: IPAddress, mark: int | None, hidden: Sequence[HostRoute] = ()
    ) -> NextHop | None:
        await trio.lowlevel.checkpoint()
        if self._host.ways_fail:
            raise HostError("the kernel does not say")
        return self._host.ways.get(address)

    async def leads_into(self, name: str, address: IPAddress, mark: int | None) -> bool:
        """Not by what is made here: nothing is carried."""
        await trio.lowlevel.checkpoint()
        return address in self._host.led_into

    async def current_routes(
        self, name: str, addresses: Collection[str], mark: int | None
    ) -> dict[str, CurrentRoute | None]:
        """By the same way as ever, unless the test says otherwise."""
        await trio.lowlevel.checkpoint()
        return {it: self._host.current.get(it, CurrentRoute(1, None, it)) for it in addresses}

    async def attached(
        self, name: str, networks: Collection[IPNetwork], within: Collection[IPNetwork] = ()
    ) -> list[AttachedNetwork]:
        await trio.lowlevel.checkpoint()
        if self._host.ways_fail:
            raise HostError("the kernel does not say")
        return [
            it
            for it in self._host.attached
            if any(is_within(net, it.network) for net in networks) or any(is_within(it.network, net) for net in within)
        ]

    async def machine_addresses(self) -> frozenset[IPInterface]:
        await trio.lowlevel.checkpoint()
        return frozenset(self._host.machine)

    async def require_bridge(self, name: str, bridge: str, *, create: bool, ending: Collection[str]) -> None:
        await trio.lowlevel.checkpoint()
        if bridge in self._host.taken:
            raise HostError(self._host.taken[bridge])
        if create:
            return
        makers = [each for each, items in self._host.standing.items() if OwnBridge(bridge) in items]
        for maker in makers:
            if maker in ending:
                raise MissingBridgeError(f"interface {maker} made bridge {bridge}", ends=True)
        if not makers and bridge in self._host.missing_bridges:
            raise MissingBridgeError(f"there is no bridge {bridge}")

    async def addressed_link(self, name: str, addressed: str) -> AddressedLink | None:
        await trio.lowlevel.checkpoint()
        found = self._host.addresses.get(addressed)
        return None if found is None else AddressedLink(self._host.bridge_mac, frozenset(found))

    async def remove_left_over(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def remove_left_over_bridges(self, name: str, kept: str | None) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []


def _same_place(one: HostRoute, other: HostRoute) -> bool:
    return (one.address, one.table) == (other.address, other.table)


class MemoryName:
    """host.ports.OwnedName of a `MemoryHost`."""

    def __init__(self, host: MemoryHost, name: str) -> None:
        self._host = host
        self._name = name
        self.doubt = host.doubt

    def require_free(self) -> None:
        if self._name in self._host.taken:
            raise HostError(self._host.taken[self._name])


class MemoryHost:
    """host.ports.Host. A test sees every device that was opened, and every item that stands."""

    def __init__(self, make_device: Callable[[str, int], MemoryDevice] = MemoryDevice) -> None:
        """``make_device``: from a name and a number of queues."""
        self._make_device = make_device
        self.devices: dict[str, MemoryDevice] = {}
        self.mtus: dict[str, int] = {}
        self.strict: set[str] = set()  # interfaces with a strict reverse path filter
        self.standing: dict[str, list[Item]] = {}
        self.refused: set[Item] = set()
        self.missing_bridges: set[str] = set()
        self.ways: dict[IPAddress, NextHop] = {}  # without our interfaces
        self.ways_fail = False
        self.led_into: set[IPAddress] = set()
        self.current: dict[str, CurrentRoute | None] = {}
        self.attached: list[AttachedNetwork] = []
        self.machine: set[IPInterface] = set()
        self.deaf = False  # to changes: watching is refused
        self.owned: set[str] = set()  # names
        self.taken: dict[str, str] = {}  # names that somebody else has: why they are refused
        self.doubt: str | None = None
        self.ipv6 = True
        self.bridge_mac = bytes.fromhex("02005e100001")
        self.addresses: dict[str, set[IPAddress]] = {}  # of interfaces that are not ours
        self._opened = trio.Event()
        self._watching: list[trio.MemorySendChannel[Change]] = []
        self._watching_links: dict[int, list[trio.MemorySendChannel[InterfaceChange]]] = {}
        self._names: list[str] = []  # by index
        self.down: set[str] = set()
        self.moved: set[str] = set()  # interfaces that are in another network namespace
        self.renamed: dict[str, str] = {}  # our name for it: the one that it has
        self.looks = 0  # for what is missing

    def has_ipv6(self, name: str) -> bool:
        return self.ipv6

    @asynccontextmanager
    async def own_name(self, name: str) -> AsyncIterator[MemoryName]:
        await trio.lowlevel.checkpoint()
        owned = MemoryName(self, name)
        owned.require_free()
        if name in self.owned:
            raise HostError(f"the name is taken: process 1 runs an interface {name}")
        self.owned.add(name)
        try:
            yield owned
        finally:
            assert name not in self.devices, "the name outlives the device"
            self.owned.remove(name)

    @contextmanager
    def open_device(
        self, name: str, queues: int = 1, mac: bytes | None = None, *, is_port: bool = False
    ) -> Iterator[MemoryDevice]:
        assert name in self.owned
        device = self.devices[name] = self._make_device(name, queues)
        device.mac, device.carrier, device.is_port = mac, mac is None, is_port
        self._opened.set()
        self._opened = trio.Event()
        try:
            yield device
        finally:
            device.close()
            del self.devices[name]

    @asynccontextmanager
    async def open_network(self) -> AsyncIterator[MemoryNetwork]:
        yield MemoryNetwork(self)

    @asynccontextmanager
    async def open_changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        async with self._watch(self._watching) as changes:
            yield changes

    @asynccontextmanager
    async def open_interface(
        self, index: int, is_route: Callable[[RouteKey], bool]
    ) -> AsyncIterator[AsyncIterator[InterfaceChange]]:
        async with self._watch(self._watching_links.setdefault(index, [])) as changes:
            yield changes

    def index_of(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    @asynccontextmanager
    async def _watch(self, watching: list[trio.MemorySendChannel[T]]) -> AsyncIterator[AsyncIterator[T]]:
        await trio.lowlevel.checkpoint()
        if self.deaf:
            raise HostError("cannot watch: refused")
        send, receive = trio.open_memory_channel[T](100)
        watching.append(send)
        try:
            with send, receive:
                yield receive
        finally:
            watching.remove(send)

    # -- the test's side

    def change(
        self,
        what: str,
        *addresses: str,
        touched: Collection[str] = (),
        links: Collection[int] = (),
        incomplete: bool = False,
    ) -> None:
        """Something happens to the paths; these local addresses are left."""
        change = Change(
            what,
            frozenset(addresses),
            touched_addresses=frozenset(touched),
            touched_links=frozenset(links),
            incomplete=incomplete,
        )
        for watch in self._watching:
            watch.send_nowait(change)

    def set_link(self, name: str, up: bool) -> None:
        """Somebody sets an interface up or down, which takes its routes away."""
        if up:
            self.down.discard(name)
        else:
            self.down.add(name)
            self.standing[name] = [item for item in self.standing[name] if not isinstance(item, Route)]
        self.tell(name, toggled=True)

    def take(self, name: str, *items: Item) -> None:
        """Somebody removes items of an interface."""
        for item in items:
            self.standing[name].remove(item)
        self.tell(name)

    def tell(self, name: str, *, toggled: bool = False, moved: bool = False, returned: bool = False) -> None:
        """The kernel reports that something was done to an interface."""
        for watch in self._watching_links[self.index_of(name)]:
            watch.send_nowait(InterfaceChange(toggled, moved, returned=returned))

    @property
    def watchers(self) -> int:
        """How many watch what happens here."""
        return len(self._watching) + sum(map(len, self._watching_links.values()))

    async def device(self, name: str) -> MemoryDevice:
        """The device of that name, as soon as there is one."""
        with trio.fail_after(HANG_S):
            while name not in self.devices:
                await self._opened.wait()
        return self.devices[name]

    @property
    def left_over(self) -> list[Item]:
        return [item for items in self.standing.values() for item in items]
