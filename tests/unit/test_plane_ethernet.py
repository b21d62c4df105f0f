"""As test_plane_differential, of a TAP interface: one behaviour, three speeds.

The program is a client, for which all frames are alike, or a hub whose switch knows who has which MAC address. What a
real switch decides is in its own tests; this one decides in all the ways there are: into the device, to another client,
to all others, and not at all.
"""

from __future__ import annotations

import itertools
import select
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.counters import Counters, DropReason
from tapotun_trio.datapath.plane import (
    ALL_FRAMES,
    BY_MACS,
    BY_MACS_GUARDED,
    DeliverNow,
    Flows,
    Lane,
    Plane,
    Verdict,
    current_plane,
)
from tapotun_trio.datapath.receiver import Receiver, deliver_ethernet
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.tun_io import DeviceWriter, read_device
from tapotun_trio.host.net.sockets import Connection
from tapotun_trio.host.tun_queues import TunQueues
from tapotun_trio.log import interface_logger
from tapotun_trio.macs import is_group, is_reserved
from tapotun_trio.routing.address_guard import AddressGuard, is_ordinary
from tapotun_trio.routing.link_local import LinkLocalTable
from tapotun_trio.wire import control
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.ethernet import ip_header_at
from tapotun_trio.wire.frames import BASE_PING, MACS, FrameRange, FrameReader
from tapotun_trio.wire.vnet import is_bounded, validate_ethernet_vnet

from ..chunkings import cut, cuts
from ..packets import frame, ipv4, ipv6
from ..planes import Tun
from ..tap_frames import ARP, BROADCAST, IPV6, SERVICE_VLAN, arp, behind_ethernet, ethernet, tag
from . import test_plane_differential as differential
from .test_plane_differential import (
    EVERYONE_READS,
    SMALL_DEVICE_BYTES,
    Break,
    Bytes,
    End,
    Packets,
    Peer,
    Read,
    Reload,
    Rotate,
    Scenario,
    Step,
    Take,
    World,
    _nothing_too_old,
    bodies_of,
    chunked,
    flow_of,
    tcp_segment,
    tso,
    udp_packet,
    unmerged,
    without_id,
)
from .test_wire_merge import fold, udp, udp6
from .test_wire_merge_tcp import tcp

__all__ = ["_nothing_too_old"]  # a fixture

STATIONS: Final = tuple(bytes.fromhex(f"02000000000{n}") for n in (2, 3, 4))
A, B, C = STATIONS
HUB: Final = bytes.fromhex("020000000001")
BEHIND: Final = bytes.fromhex("0200000000b0")  # behind the device, on the hub's bridge
UNKNOWN: Final = bytes.fromhex("0200000000ff")
RESERVED: Final = bytes.fromhex("0180c2000000")
MULTICAST: Final = bytes.fromhex("01005e0000fb")
MANY: Final = (*STATIONS, HUB, BEHIND, UNKNOWN, RESERVED, MULTICAST, BROADCAST)
TAGS: Final = (b"", b"", b"", tag(7), tag(7, SERVICE_VLAN), tag(1, SERVICE_VLAN) + tag(2))
DEVICE: Final = -1
# Addresses of client 0 and of the server, where claims are looked at.
OWN: Final = (bytes([10, 0, 0, 1]), bytes.fromhex("fd000000000000000000000000000001"))
HUBS: Final = (bytes([10, 0, 0, 9]), bytes.fromhex("fd000000000000000000000000000009"))
LOCAL: Final = bytes.fromhex("fe800000000000000000000000000005")  # the first one's that claims it

_VNET: Final = struct.Struct("<BBHHHHH")


def by_flow(frames: list[bytes], *, merged: bool) -> dict[bytes, list[bytes]]:
    """``frames``: each from its vnet header on. ``merged``: maybe; then they are cut again as the kernel cuts them."""
    flows: dict[bytes, list[bytes]] = {}
    for data in frames:
        whole = struct.pack("<H", min(len(data) - 12, 0xFFFF)) + data
        at = ip_header_at(memoryview(whole), 0, len(whole)) if len(whole) >= 28 else 0
        if not at:
            flows.setdefault(data[12:24], []).append(data)  # both MAC addresses
            continue
        header, less = whole[14:at], at - 14
        flags, gso, hdr_len, size, start, offset, buffers = _VNET.unpack_from(data)
        vnet = _VNET.pack(flags, gso, hdr_len and hdr_len - less & 0xFFFF, size, start - less & 0xFFFF, offset, buffers)
        inner = vnet + data[12 + less :]
        cut_again = cut_ipv6 if inner[12] >> 4 == 6 else lambda data: unmerged([data])
        for one in cut_again(inner) if merged else [without_id(inner)]:
            flows.setdefault(header + flow_of(one), []).append(one)
    return flows


def cut_ipv6(data: bytes) -> list[bytes]:
    """As `unmerged`, for a packet of UDP or TCP over IPv6 without extension headers, from its vnet header on."""
    header, size = int.from_bytes(data[2:4], "little"), int.from_bytes(data[4:6], "little")
    if data[1] not in (4, 5) or not size or len(data) <= 12 + header or header < 48:
        return [data]
    head, above, payload = data[12:52], data[52 : 12 + header], data[12 + header :]
    is_udp, out = data[1] == 5, []
    for at in range(0, len(payload), size):
        one = payload[at : at + size]
        length = len(above) + len(one)
        pseudo = fold(head[8:] + struct.pack("!HH", 17 if is_udp else 6, length)).to_bytes(2, "big")
        if is_udp:
            upper = above[:4] + length.to_bytes(2, "big") + pseudo
        else:
            sequence = (int.from_bytes(above[4:8], "big") + at & 0xFFFFFFFF).to_bytes(4, "big")
            flags = above[13] & ~(8 if at + size < len(payload) else 0)  # PSH
            upper = above[:4] + sequence + above[8:13] + bytes([flags]) + above[14:16] + pseudo + above[18:]
        vnet = _VNET.pack(1, 0, 0, 0, 40, 6 if is_udp else 16, 0)
        out.append(vnet + head[:4] + length.to_bytes(2, "big") + head[6:] + upper + one)
    return out


class Hub:
    """A switch that knows all stations, and asks nobody. ``guard``: looks into what clients may claim, as `Segment`
    has it do; None: nobody does."""

    def __init__(
        self,
        senders: Sequence[Sender],
        counters: Sequence[Counters],
        device_drops: Counter[str],
        guard: AddressGuard | None = None,
    ) -> None:
        self._guard = guard
        self._senders = senders
        self._counters = counters
        self._device_drops = device_drops
        self.known = len(senders)
        self._link_local = LinkLocalTable(lambda mac: None)
        self._flows: dict[int, Flows] = {}

    def decide(self, port: int, view: memoryview, at: int) -> int | DropReason | None:
        """A client, DEVICE, or why not. None: to all others."""
        macs: bytes
        (macs,) = MACS.unpack_from(view, at)
        destination, source = macs[:6], macs[6:]
        if is_group(source) or (port != DEVICE and source != STATIONS[port]):
            return DropReason.BAD_MAC
        if is_reserved(destination):
            return DropReason.RESERVED_MAC
        if destination in STATIONS[: self.known]:
            owner = STATIONS.index(destination)
        elif destination in (HUB, BEHIND):
            owner = DEVICE
        else:
            return None
        return DropReason.SAME_SIDE if owner == port else owner

    def needs_look(self, view: memoryview, at: int) -> bool:
        length = view[at] | view[at + 1] << 8
        return self._guard is not None and not is_ordinary(view, at + 14, at + 14 + length)

    def refuses(self, port: int, view: memoryview, at: int, length: int) -> bool:
        if self._guard is None or not self.needs_look(view, at):
            return False
        return self._guard.refuses(port, view[at + 14 : at + 14 + length], self._link_local, 0.0)

    def flood(self, port: int, frames: memoryview, count: int) -> None:
        for number, sender in enumerate(self._senders):
            if number != port and sender.streaming:
                sender.send(frames, count)

    def send(self, port: int, view: memoryview, frames: list[tuple[int | None, FrameRange]]) -> None:
        """Frames of a client or the device, adjacent ones together. None: to all others."""
        for to, group in itertools.groupby(frames, key=lambda it: it[0]):
            ranges = [it for _, it in group]
            while ranges:
                number = 1
                while number < len(ranges) and ranges[number][0] == ranges[number - 1][1]:
                    number += 1
                run, ranges = ranges[:number], ranges[number:]
                data, count = view[run[0][0] : run[-1][1]], sum(it[2] for it in run)
                if to is None:
                    self.flood(port, data, count)
                else:
                    self._senders[to].send(data, count)

    def from_device(self, view: memoryview, frames: list[FrameRange]) -> None:
        out: list[tuple[int | None, FrameRange]] = []
        for start, stop, count in frames:
            to = self.decide(DEVICE, view, start)
            if isinstance(to, DropReason):
                self._device_drops[to] += count
            else:
                out.append((to, (start, stop, count)))
        self.send(DEVICE, view, out)

    def from_client(self, port: int, view: memoryview, frames: list[FrameRange], device: DeviceWriter) -> None:
        counters = self._counters[port]
        inward: list[FrameRange] = []
        out: list[tuple[int | None, FrameRange]] = []
        try:
            for start, stop, count in frames:
                length, size = view[start] | view[start + 1] << 8, view[start + 6] | view[start + 7] << 8
                to = self.decide(port, view, start)
                if self.refuses(port, view, start, length):
                    counters.drops[DropReason.ARP_GUARD] += count
                elif to == DEVICE:
                    if view[start + 3] and not is_bounded(length, size):
                        counters.drops[DropReason.DEVICE_REFUSED] += count
                    else:
                        inward.append((start, stop, count))
                elif isinstance(to, DropReason):
                    counters.drops[to] += count
                elif not validate_ethernet_vnet(view[start:stop]):
                    counters.drops[DropReason.DEVICE_REFUSED] += count
                else:
                    if to is None:
                        inward.append((start, stop, count))
                    out.append((to, (start, stop, count)))
                counters.rx_packets += count
                counters.rx_bytes += count * length
        finally:
            self.send(port, view, out)
            device.write_all(view, inward, counters.drops)

    def reload(self, known: int) -> None:
        self.known = known
        for flows in self._flows.values():
            flows.hand_back()

    # -- for the plane

    def flows(self, plane: Plane) -> Flows:
        return self._flows_of(DEVICE, plane, self._device_drops)

    def judge(self, view: memoryview, at: int) -> Verdict:
        return self._verdict(DEVICE, view, at)

    def lane(self, port: int, writer: DeviceWriter) -> Lane | DeliverNow:
        def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
            self.from_client(port, reader.view, frames, writer)

        plane = current_plane()
        if plane is None or writer.outlet is None:
            return deliver
        counters = self._counters[port]
        flows = self._flows_of(port, plane, counters.drops)

        def judge(view: memoryview, at: int) -> Verdict:
            return None if self.needs_look(view, at) else self._verdict(port, view, at)

        return Lane(flows, writer.outlet, deliver, judge, counters)

    def _flows_of(self, port: int, plane: Plane, drops: Counter[str]) -> Flows:
        if port not in self._flows:
            rules = BY_MACS if self._guard is None or port == DEVICE else BY_MACS_GUARDED
            self._flows[port] = Flows(plane, rules, drops, ethernet=True)
        return self._flows[port]

    def _verdict(self, port: int, view: memoryview, at: int) -> Verdict:
        to, plane = self.decide(port, view, at), current_plane()
        if to is None or isinstance(to, DropReason) or plane is None:
            return to if isinstance(to, DropReason) else None
        return True if to == DEVICE else self._senders[to].port(plane)


class Client:
    """What a client does: everything goes to the server, and what comes from there into the device."""

    def __init__(self, sender: Sender, counters: Counters) -> None:
        self._sender = sender
        self._counters = counters
        self._flows: dict[str, Flows] = {}

    def from_device(self, view: memoryview, frames: list[FrameRange]) -> None:
        at = frames[0][0] if frames else 0
        end, total = at, 0
        for start, stop, count in [*frames, (-1, -1, 0)]:
            if start != end and total:
                self._sender.send(view[at:end], total)
                at, total = start, 0
            end = stop
            total += count

    def flows(self, plane: Plane) -> Flows:
        return self._flows.setdefault("out", Flows(plane, ALL_FRAMES, self._counters.drops, ethernet=True))

    def judge(self, view: memoryview, at: int) -> Verdict:
        plane = current_plane()
        return None if plane is None else self._sender.port(plane)

    def lane(self, writer: DeviceWriter) -> Lane | DeliverNow:
        def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
            deliver_ethernet(reader.view, frames, writer, self._counters)

        plane = current_plane()
        if plane is None or writer.outlet is None:
            return deliver
        flows = self._flows.setdefault("in", Flows(plane, ALL_FRAMES, self._counters.drops, ethernet=True))
        return Lane(flows, writer.outlet, deliver, lambda view, at: True, self._counters)


class Segment(World):
    """A world of a TAP interface."""

    def __init__(self, scenario: Scenario, nursery: trio.Nursery, stack: ExitStack) -> None:
        self.scenario = scenario
        self.nursery = nursery
        self._stack = stack
        log = interface_logger("hub")
        self.tuns = [Tun("hub", SMALL_DEVICE_BYTES if scenario.small_device else None) for _ in range(scenario.queues)]
        for tun in self.tuns:
            stack.callback(tun.close)
        devices = [tun.device for tun in self.tuns]
        device = devices[0]
        if scenario.queues > 1:
            device = TunQueues(devices, select.epoll())  # type: ignore[assignment]
            stack.callback(device.close)
        self.device_drops = Counter()
        self.writers = [DeviceWriter(queue, self.device_drops, ethernet=True) for queue in devices]
        self.host_got = []
        self.counters = [Counters() for _ in range(3 if scenario.server else 1)]
        senders = [Sender(counters) for counters in self.counters]
        lanes: list[Callable[[], Lane | DeliverNow]]
        guard = AddressGuard({0: frozenset(OWN)}, frozenset(HUBS)) if scenario.guarded else None
        self._hub = Hub(senders, self.counters, self.device_drops, guard) if scenario.server else None
        if self._hub is not None:
            judge: Hub | Client = self._hub
            lanes = [partial(self._hub.lane, n, self.writers[n % len(self.writers)]) for n in range(3)]
            only: Callable[[], Sender | None] = lambda: None  # noqa: E731
        else:
            judge = client = Client(senders[0], self.counters[0])
            lanes = [partial(client.lane, self.writers[0])]
            only = lambda: senders[0]  # noqa: E731
        self.peers = [
            Peer(self, sender, partial(self._receiver, sender, lane), lambda _: None, True)
            for sender, lane in zip(senders, lanes, strict=True)
        ]
        for writer in self.writers:
            nursery.start_soon(writer.run)
        dispatch = judge.from_device
        nursery.start_soon(partial(read_device, device, _nobody, only, log, judge, ethernet=dispatch))
        for peer in self.peers:
            peer.attach()
            nursery.start_soon(peer.receive)

    def _receiver(
        self,
        sender: Sender,
        lane: Callable[[], Lane | DeliverNow],
        connection: Connection,
        notes: list[tuple[int, bytes]],
    ) -> Receiver:
        async def deliver(reader: FrameReader, frames: list[FrameRange]) -> None:
            now = lane()
            (now.deliver if isinstance(now, Lane) else now)(reader, frames)

        async def on_control(kind: int, payload: bytes) -> None:
            notes.append((kind, payload))

        reader = FrameReader(ChunkedBody(), control=self.scenario.control, ethernet=True)
        return Receiver(connection, reader, deliver, on_control, sender.send_control, lane)

    def reload(self, clients: int) -> None:
        if self._hub is not None:
            self._hub.reload(clients)

    def device_frames(self) -> dict[bytes, list[bytes]]:
        return by_flow(self.host_got, merged=True)

    def stream_frames(self, body: bytes) -> dict[bytes, list[bytes]]:
        return by_flow(differential.decode(body, ethernet=True), merged=False)


def _nobody(view: memoryview, at: int) -> Sender | None:
    raise AssertionError("a TAP interface does not ask for a packet's sender")


compare = partial(differential.compare, make=Segment)


# ------------------------------------------------------------------ chosen scenarios


def datagrams(
    source: bytes, to: bytes, size: int = 60, count: int = 1, *, tags: bytes = b"", six: bool = False
) -> bytes:
    """Frames that may be merged, and differ in their numbers."""
    made = (
        udp6(n.to_bytes(4, "big") + bytes(size)) if six else udp(n.to_bytes(4, "big") + bytes(size), ident=n)
        for n in range(count)
    )
    return b"".join(behind_ethernet(it, source=source, to=to, tags=tags) for it in made)


def claims(source: bytes, to: bytes, tags: bytes = b"") -> list[bytes]:
    """ARP and neighbour advertisements for the addresses of client 0 and of the server, and for a link-local one."""
    made = []
    for mine, six in (OWN, HUBS, (None, LOCAL)):
        if mine is not None:
            packet = b"\0\1\x08\0\6\4\0\2" + source + mine + to + mine
            made.append(ethernet(packet, ARP, to=to, source=source, tags=tags))
        packet = ipv6("fd00::1", "ff02::1", b"\x88" + bytes(7) + six, 58)
        made.append(ethernet(packet, IPV6, to=to, source=source, tags=tags))
    return made


def others(source: bytes, to: bytes, count: int = 1) -> bytes:
    """Frames without a flow."""
    kinds = (
        arp(source=source, to=to),
        behind_ethernet(frame(ipv4("10.0.0.1", "10.0.0.2", b"ping", 1)), source=source, to=to),
        behind_ethernet(frame(ipv6("fd00::1", "ff02::1", bytes(24), 58)), source=source, to=to),
        frame(to + source + b"\0\3LLC"),
        frame(to + source + b"\x88\xb5"),
        *claims(source, to),
    )
    return b"".join(kinds[n % len(kinds)] for n in range(count))


def apart(frames: bytes) -> tuple[bytes, ...]:
    """As the host sends them, each from its vnet header on."""
    out, at = [], 0
    while at < len(frames):
        end = at + 14 + int.from_bytes(frames[at : at + 2], "little")
        out.append(frames[at + 2 : end])
        at = end
    return tuple(out)


def ordinary(six: bool, tags: bytes) -> tuple[Step, ...]:
    make = partial(datagrams, six=six, tags=tags)
    return (
        Bytes(0, (chunked(make(A, HUB, 1400, 5)), *(chunked(make(A, HUB, 1400, 8)) for _ in range(10)))),
        Bytes(0, (chunked(make(A, HUB, 9000, 20)),) * 2),
        Bytes(1, (chunked(make(B, A, 1400, 5) + make(B, C, 1400, 5)), chunked(make(B, A, 9000, 10)))),
        Bytes(0, (chunked(behind_ethernet(tso("10.0.0.1", "10.0.0.2", 30_000), source=A, to=B, tags=tags)),) * 3),
        *EVERYONE_READS,
        Packets(0, apart(make(HUB, A, 1400, 30) + make(BEHIND, B, 1400, 30) + make(HUB, C, 1400))),
        *EVERYONE_READS,
        Packets(0, apart(make(HUB, A, 1400, 60) + others(HUB, BROADCAST, 3) + make(HUB, A))),
        Packets(1, apart(make(HUB, B, 1400, 60) + make(HUB, A))),
        Bytes(0, (chunked(others(A, BROADCAST, 10)),)),  # before the claims of C
        Bytes(2, (chunked(others(C, BROADCAST, 20) + make(C, MULTICAST, 100, 20) + make(C, A, 100, 20)),) * 2),
    )


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("tags", TAGS[2:])
@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        (Scenario(()), 100),
        (Scenario((), queues=2), 100),
        (Scenario((), server=False), 100),
        (Scenario((), small_sockets=True), 50),
        (Scenario((), small_device=True), 30),
        (Scenario((), tcp=True, small_sockets=True, server=False), 20),
        (Scenario((), guarded=True), 100),
    ],
)
def test_the_ordinary_case_is_the_planes(scenario: Scenario, least: int, tags: bytes, six: bool) -> None:
    """So that none of the comparisons here is one of the pure path with itself."""
    if scenario.guarded and tags not in (b"", tag(7)):
        least = 30  # behind other tags each frame of a client is looked at
    moved = compare(replace(scenario, steps=ordinary(six, tags)))
    assert moved.get("native", least) >= least
    assert moved["python"] >= 20


def test_drops_are_counted_by_reason() -> None:
    """Also those that the plane knows, and frames to all, which it never does."""
    one = Bytes(
        0,
        (
            chunked(
                datagrams(UNKNOWN, HUB, count=9)
                + others(A, RESERVED, 7)
                + datagrams(A, A, count=9)
                + others(A, UNKNOWN, 5)
                + datagrams(A, HUB, count=9)
                + others(MULTICAST, HUB, 3)
            ),
        ),
    )
    host = Packets(0, apart(others(HUB, RESERVED, 7) + datagrams(BEHIND, HUB, count=9) + others(HUB, BROADCAST, 5)))
    assert compare(Scenario((*[one] * 4, *[host] * 4, *EVERYONE_READS))).get("native", 20) >= 20


@pytest.mark.parametrize("server", [True, False])
def test_runts_and_giants(server: bool) -> None:
    """A stream ends at a runt, after the frames before it; a device may bring them, and what is longer than a frame."""
    known = Bytes(0, (chunked(datagrams(A, HUB, count=9)),) * 3)
    for size in (2, 12, 13, 14, 15):
        runt = struct.pack("<H", size) + bytes(12) + (HUB + A + bytes(9))[:size]
        steps = (known, Bytes(0, (chunked(datagrams(A, HUB, count=9) + runt + datagrams(A, HUB, count=9)),)))
        compare(Scenario(steps, server=server))
    host = [bytes(12) + (A + HUB + bytes(70_000))[:size] for size in (0, 1, 13, 14, 15, 19, 39, 65_535, 65_536, 65_600)]
    compare(
        Scenario((Packets(0, (*host, *apart(datagrams(HUB, A, count=20)), *host)), Read(0, 1 << 30)), server=server)
    )


@pytest.mark.parametrize("server", [True, False])
def test_impossible_vnet_headers(server: bool) -> None:
    """Each ends the stream of who sends it to a client; into the device goes all that is bounded, and it may refuse."""
    good = datagrams(A, B, 1400)
    first = datagrams(A, B, count=9) + datagrams(A, HUB, count=9)
    for vnet in (
        _VNET.pack(4, 0, 0, 0, 0, 0, 0),
        _VNET.pack(1, 0, 0, 0, 13, 6, 0),
        _VNET.pack(1, 0, 0, 0, 20, 6, 0),
        _VNET.pack(0, 0, 13, 0, 0, 0, 0),
        _VNET.pack(0, 0, 14, 0, 0, 0, 0),
        _VNET.pack(1, 1, 54, 1, 34, 16, 0),
        _VNET.pack(1, 1, 54, 500, 34, 16, 0),
        _VNET.pack(1, 5, 42, 500, 34, 6, 0),
    ):
        bad = good[:2] + vnet + good[14:]
        for one in (bad, bad[:14] + HUB + bad[20:]):
            steps = (Bytes(0, (chunked(first),) * 2), Bytes(0, (chunked(first + one + first),)), *EVERYONE_READS)
            compare(Scenario(steps, server=server))


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("small_device", [True, False])
def test_merging_of_many_kinds(server: bool, small_device: bool) -> None:
    """Also where the device is full in between, so that Python writes the rest."""
    key = bytes([10, 10, 0, 2, 10, 10, 0, 1])

    def wrapped(frames: list[bytes], tags: bytes = b"") -> list[bytes]:
        return [behind_ethernet(it, source=A, to=HUB, tags=tags) for it in frames]

    one, two = ([tcp(bytes([n]) * 1000, n * 1000, port=port, addresses=key) for n in range(60)] for port in (1, 2))
    dgrams = [udp(bytes([n]) * (1000 if n % 9 else 7), ident=n, addresses=key) for n in range(60)]
    for flows in (
        (wrapped(one),),
        (wrapped(one), wrapped(two), wrapped(dgrams)),
        (wrapped(dgrams), wrapped(dgrams, tag(7))),
        (wrapped(one), wrapped(dgrams, tag(7)), [arp(source=A, to=HUB)] * 3),
        (wrapped(dgrams, TAGS[-1]), wrapped(one, tag(7, SERVICE_VLAN))),
    ):
        mixed = b"".join(it for group in itertools.zip_longest(*flows, fillvalue=b"") for it in group)
        steps = (Bytes(0, (chunked(others(A, HUB)),)), *(Bytes(0, (chunked(mixed, 1 << 17),)),) * 2, Take(5)) * 2
        compare(Scenario(steps, server=server, small_device=small_device))


@pytest.mark.parametrize("server", [True, False])
def test_every_cut_of_a_stream(server: bool) -> None:
    body = (
        chunked(others(A, HUB, 5), 20)
        + chunked(BASE_PING + control.ping(1) + frame(HUB + A + b"\x88\xb5"), 7)
        + b"1;x=y\r\n\x0e\r\n0002\r\n\0\0\r\n"
        + chunked(bytes(11) + HUB + A + b"\x88\xb5" + others(A, B, 2), 13)
        + b"0\r\nName: value\r\n\r\nGET / HTTP/1.1\r\n"
    )
    steps: tuple[Step, ...] = (
        Bytes(0, (chunked(datagrams(A, HUB, count=2) + datagrams(A, B, count=2)),)),
        Bytes(0, tuple(body[at : at + 1] for at in range(len(body)))),
    )
    compare(Scenario(steps, server=server))


# ------------------------------------------------------------------ any scenario

vnet_headers = st.sampled_from(
    [
        bytes(12),
        bytes(12),
        _VNET.pack(1, 0, 0, 0, 34, 6, 0),
        _VNET.pack(1, 0, 0, 0, 13, 6, 0),
        _VNET.pack(2, 0, 0, 0, 0, 0, 0),
        _VNET.pack(0x80, 0, 0, 0, 0, 0, 0),
        _VNET.pack(0, 0, 13, 0, 0, 0, 0),
        _VNET.pack(1, 1, 54, 1, 34, 16, 0),
        _VNET.pack(1, 1, 54, 1400, 34, 16, 0),
        _VNET.pack(1, 4, 74, 1400, 54, 16, 0),
        _VNET.pack(1, 5, 42, 100, 34, 6, 0),
    ]
)
macs = st.sampled_from(MANY)


@st.composite
def items(draw: st.DrawFn) -> bytes:
    """Something that stands in the body of a stream; mostly frames."""
    kind = draw(st.integers(0, 16))
    source, to, tags = draw(st.sampled_from([*MANY, A, A, A, B, HUB])), draw(macs), draw(st.sampled_from(TAGS))
    if kind < 3:
        payload = draw(
            st.sampled_from([b"", b"\x45", bytes(46), b"\x45" + bytes(60), b"\x60" + bytes(60), bytes(1400)])
        )
        kinds = st.sampled_from([b"\x08\0", b"\x86\xdd", b"\x08\6", b"\x88\xb5", b"\0\3", b"\x81\0"])
        return frame(to + source + tags + draw(kinds) + payload, draw(vnet_headers)) * draw(
            st.sampled_from([1, 2, 9, 30])
        )
    if kind < 6:
        ends = draw(st.sampled_from([("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]))
        make = ipv6 if ":" in ends[0] else ipv4
        inner = make(*ends, bytes(draw(st.sampled_from([0, 4, 20, 600]))), draw(st.sampled_from([1, 6, 17, 17, 58])))
        whole = behind_ethernet(frame(inner), source=source, to=to, tags=tags)
        return (whole[:2] + draw(vnet_headers) + whole[14:]) * draw(st.sampled_from([1, 2, 9, 30]))
    if kind < 10:
        count, size, flows = (
            draw(st.integers(1, 30)),
            draw(st.sampled_from([16, 17, 64, 1200])),
            draw(st.integers(1, 3)),
        )
        last = draw(st.sampled_from([size, size, 9]))
        make_one = udp_packet if draw(st.booleans()) else tcp_segment
        key = bytes([10, 0, 0, 1, 10, 0, 0, 2])
        frames = [make_one(key, n % flows, n // flows, size if n < count - 1 else last) for n in range(count)]
        mixed = draw(st.booleans())
        frames = [
            behind_ethernet(it, source=source, to=to, tags=tag(n % 2) if mixed else tags) for n, it in enumerate(frames)
        ]
        damage = draw(st.sampled_from([None, None, 15, 21, 27, 38, 47, 54, 64]))
        if damage is not None and damage < len(frames[0]):
            victim = frames[count // 2]
            frames[count // 2] = victim[:damage] + bytes([victim[damage] ^ 1]) + victim[damage + 1 :]
        return b"".join(frames)
    match kind:
        case 10:
            ends = draw(st.sampled_from([("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]))
            whole = tso(*ends, draw(st.sampled_from([1400, 5000, 60_000])), extensions=draw(st.integers(0, 2)))
            return behind_ethernet(whole, source=source, to=to, tags=tags)
        case 11:
            return BASE_PING * draw(st.integers(1, 20))
        case 12:
            return control.ping(draw(st.integers(0, 9)))
        case 13 | 14:
            return others(source, to, draw(st.integers(1, 12)))
        case 15:
            return draw(st.sampled_from(claims(source, to, tags))) * draw(st.integers(1, 20))
        case _:  # malformed, perhaps
            return draw(st.one_of(st.binary(max_size=40), st.just(frame(bytes(14))), st.just(b"\5\0xxxxx")))


host_frames = items().map(lambda data: apart(data) if data[:2] not in (b"\0\0", b"\1\0") else (data,))
deliveries = st.builds(
    lambda queue, groups: Packets(queue, tuple(itertools.chain(*groups))),
    st.integers(0, 1),
    st.lists(host_frames, max_size=6),
)


@st.composite
def arrivals(draw: st.DrawFn) -> Bytes:
    return Bytes(draw(st.integers(0, 2)), tuple(cut(draw(bodies_of(items())), draw(cuts))))


steps = st.one_of(
    arrivals(),
    arrivals(),
    deliveries,
    st.builds(Take, st.sampled_from([1, 5, 1 << 30])),
    st.builds(Read, st.integers(0, 2), st.sampled_from([1, 1000, 1 << 20])),
    st.builds(End, st.integers(0, 2), st.booleans()),
    st.builds(Break, st.integers(0, 2)),
    st.builds(Rotate, st.integers(0, 2)),
    st.builds(Reload, st.sampled_from([1, 2, 3, 3, 3])),
)
scenarios = st.builds(
    Scenario,
    steps=st.lists(steps, min_size=1, max_size=8).map(tuple),
    server=st.sampled_from([True, True, False]),
    control=st.booleans(),
    queues=st.sampled_from([1, 2]),
    small_sockets=st.booleans(),
    small_device=st.booleans(),
    tcp=st.booleans(),
    guarded=st.booleans(),
)


@settings(
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(scenarios)
def test_all_paths_do_the_same(scenario: Scenario) -> None:
    compare(scenario)
