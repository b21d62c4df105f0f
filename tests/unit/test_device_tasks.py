"""tunnel.device: bursts from the device to the senders, and frames to a device that is full for a while."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.datapath.counters import Counters, DropReason
from tapotun_trio.datapath.sender import SOCKET_FULL_WAIT_S, Sender
from tapotun_trio.datapath.tun_io import BURST_BYTES, QUEUE_BYTES, DeviceWriter, read_device
from tapotun_trio.errors import HostError, PeerError
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.wire.frames import HEADER_BYTES, LENGTH_BYTES, MAX_PACKET_BYTES

from ..fakes import PLAIN_VNET, MemoryDevice
from ..packets import frame, ipv4
from ..streams import memory_pair

settle = trio.testing.wait_all_tasks_blocked


class RecordingSender(Sender):
    """Takes notes of the runs that it is given."""

    def __init__(self) -> None:
        super().__init__(Counters())
        self.runs: list[tuple[bytes, int]] = []

    def send(self, frames: memoryview | bytes, packets: int) -> None:
        self.runs.append((bytes(frames), packets))


class Clients:
    """Says whose a frame is by the last byte of its destination: 1, 2, ..., and nobody's for 0."""

    def __init__(self, number: int) -> None:
        self.senders = [RecordingSender() for _ in range(number)]
        self.asked = 0

    def classify(self, view: memoryview, at: int) -> Sender | None:
        self.asked += 1
        client = view[at + HEADER_BYTES + 19]
        return self.senders[client - 1] if client else None


def nobody() -> None:
    """No sender is the only one."""


def packet(client: int, number: int = 0, size: int = 40) -> bytes:
    return ipv4("10.0.0.1", f"10.0.0.{client}", number.to_bytes(4, "big") * ((size - 20) // 4))


async def read_all(device: MemoryDevice, clients: Clients) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_device, device, clients.classify, nobody)
        while device.inbound:
            await settle()
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ out of the device


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30))
async def test_runs_of_adjacent_frames(destinations: list[int]) -> None:
    """One slice for each run of frames to one client, in wire format; a frame that is nobody's parts a run."""
    device, clients = MemoryDevice("tun0"), Clients(3)
    for number, client in enumerate(destinations):
        device.send(packet(client, number), bytes([number]) * 10 + b"\0\0")
    await read_all(device, clients)
    frames = [
        (client, frame(packet(client, number), bytes([number]) * 10 + b"\0\0"))
        for number, client in enumerate(destinations)
    ]
    runs = [(client, [it for _, it in run]) for client, run in groupby(frames, key=lambda pair: pair[0])]
    for client, sender in enumerate(clients.senders, 1):
        assert sender.runs == [(b"".join(run), len(run)) for to, run in runs if to == client]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([24, 40, 1000]), st.integers(1, 40)), min_size=1, max_size=6)
)
async def test_many_of_a_size_go_where_each_would(crowds: list[tuple[int, int, int]]) -> None:
    """Also if they are judged as one; with what the kernel left in num_buffers gone."""
    device, clients = MemoryDevice("tun0"), Clients(2)
    packets = [packet(to, n, size) for to, size, count in crowds for n in range(count)]
    for number, it in enumerate(packets):
        device.send(it, bytes(10) + bytes([number & 0xFF, 0xEE]))
    await read_all(device, clients)
    for client, sender in enumerate(clients.senders, 1):
        assert b"".join(run for run, _ in sender.runs) == b"".join(frame(it) for it in packets if it[19] == client)
        assert sum(count for _, count in sender.runs) == sum(it[19] == client for it in packets)


async def test_a_burst_is_bounded() -> None:
    device, clients = MemoryDevice("tun0"), Clients(1)
    large = packet(1, 7, 60_000)
    for _ in range(50):
        device.send(large)
    await read_all(device, clients)
    runs = clients.senders[0].runs
    assert sum(packets for _, packets in runs) == 50
    assert all(len(run) < BURST_BYTES + HEADER_BYTES + MAX_PACKET_BYTES for run, _ in runs)
    assert b"".join(run for run, _ in runs) == frame(large) * 50


async def test_the_largest_packet_at_the_very_end_of_a_burst() -> None:
    device, clients = MemoryDevice("tun0"), Clients(1)
    whole, rest = divmod(BURST_BYTES - 1, HEADER_BYTES + MAX_PACKET_BYTES)  # one byte more, and the burst were complete
    sizes = [*[MAX_PACKET_BYTES] * whole, rest - HEADER_BYTES, MAX_PACKET_BYTES]
    packets = [b"\x45" + bytes(18) + b"\1" + bytes(size - 20) for size in sizes]
    for it in packets:
        device.send(it)
    await read_all(device, clients)
    [(run, count)] = clients.senders[0].runs
    assert (run, count) == (b"".join(map(frame, packets)), len(packets))


async def test_what_the_kernel_left_in_num_buffers_does_not_go_out() -> None:
    device, clients = MemoryDevice("tun0"), Clients(1)
    device.send(packet(1), b"\x01" * 12)
    await read_all(device, clients)
    assert clients.senders[0].runs == [(frame(packet(1), b"\x01" * 10 + b"\0\0"), 1)]


@pytest.mark.parametrize("size", [0, 1, 19])
async def test_what_is_too_short_for_a_packet_is_passed_over(size: int) -> None:
    device, clients = MemoryDevice("tun0"), Clients(1)
    device.send(packet(1, 1))
    device.send(bytes(size))
    device.send(packet(1, 2))
    await read_all(device, clients)
    assert clients.senders[0].runs == [(frame(packet(1, 1)), 1), (frame(packet(1, 2)), 1)]


async def test_the_device_is_gone() -> None:
    device = MemoryDevice("tun0")
    device.send(packet(1))
    device.closed = True
    with pytest.raises(HostError):
        await read_device(device, Clients(1).classify, nobody)


class EndlessDevice(MemoryDevice):
    """A host that sends faster than we read: there is always a packet more."""

    def __init__(self, endless: bytes) -> None:
        super().__init__("tun0")
        self.endless = endless
        self.reads = 0

    def _next(self) -> bytes:
        self.reads += 1
        assert self.reads < 100_000, "read_device never yields"
        return self.endless

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(PLAIN_VNET + packet(1, 0, 60_000), id="for a client"),
        pytest.param(PLAIN_VNET + packet(1), id="small ones for a client"),
        pytest.param(PLAIN_VNET + packet(0), id="nobody's"),
        pytest.param(PLAIN_VNET, id="too short for a packet"),
    ],
)
async def test_a_host_that_never_stops_sending_leaves_room_for_other_tasks(endless: bytes) -> None:
    """Every loop that could run forever yields after a bounded burst. A flood that nobody gets is enough."""
    device, clients = EndlessDevice(endless), Clients(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_device, device, clients.classify, nobody)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
            for sender in clients.senders:
                sender.runs.clear()
        nursery.cancel_scope.cancel()


async def test_a_device_is_left_alone_while_the_only_stream_is_full(autojump_clock: trio.testing.MockClock) -> None:
    """What the kernel keeps it holds its own TCPs back with. What was left there comes when there is room."""
    device, sender = MemoryDevice("tun0"), Sender(Counters())
    ours, theirs = memory_pair(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.serve, BodyWriter(ours))
        nursery.start_soon(read_device, device, lambda view, at: sender, lambda: sender)
        await settle()
        for _ in range(10):
            device.send(packet(1, 0, 60_000))
        await settle()
        left = len(device.inbound)
        assert left == 5  # one burst was read
        await trio.sleep(0.9 * SOCKET_FULL_WAIT_S)
        assert len(device.inbound) == left
        assert not sender.tx_queue
        ours.limit(1 << 20)
        received = bytearray(1 << 20)
        while len(device.inbound):
            theirs.try_receive(memoryview(received))
            await settle()
        assert trio.current_time() < SOCKET_FULL_WAIT_S
        nursery.cancel_scope.cancel()


async def test_a_stream_that_stays_full_leaves_it_to_the_outbox(autojump_clock: trio.testing.MockClock) -> None:
    """It knows what to drop, and how old it may get; and a packet for another stream may be among them."""
    device, sender = MemoryDevice("tun0"), Sender(Counters())
    ours, _ = memory_pair(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.serve, BodyWriter(ours))
        nursery.start_soon(read_device, device, lambda view, at: sender, lambda: sender)
        await settle()
        for _ in range(100):
            device.send(packet(1, 0, 60_000))
        await trio.sleep(1.5 * SOCKET_FULL_WAIT_S)
        assert not device.inbound
        assert sender.tx_queue
        nursery.cancel_scope.cancel()


async def test_with_several_streams_nobody_waits_for_a_full_one(autojump_clock: trio.testing.MockClock) -> None:
    device, full, other = MemoryDevice("tun0"), Sender(Counters()), RecordingSender()
    ours, _ = memory_pair(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(full.serve, BodyWriter(ours))
        nursery.start_soon(
            read_device, device, lambda view, at: other if view[at + HEADER_BYTES + 19] == 2 else full, nobody
        )
        await settle()
        for client in (1, 1, 1, 1, 1, 2):
            device.send(packet(client, 0, 60_000))
        await settle()
        assert len(other.runs) == 1
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ into the device


def numbered(number: int, size: int = 60) -> bytes:
    return PLAIN_VNET + packet(1, number, size)


def write(writer: DeviceWriter, frame: bytes | bytearray) -> Counter[str]:
    """Write one frame, from its vnet header on. Returns what was dropped at once."""
    drops: Counter[str] = Counter()
    slab = bytearray(bytes(LENGTH_BYTES) + frame)
    writer.write_all(memoryview(slab), [(0, len(slab), 1)], drops)
    slab[:] = bytes(len(slab))  # as the next receive will
    return drops


async def test_straight_into_the_device() -> None:
    device = MemoryDevice("tun0")
    writer = DeviceWriter(device, Counter())
    assert not write(writer, numbered(1))
    assert list(device.outbound) == [numbered(1)]


async def test_what_the_kernel_refuses_is_told() -> None:
    device = MemoryDevice("tun0")
    with pytest.raises(PeerError):  # since no kernel takes that
        write(DeviceWriter(device, Counter()), b"\xff" + numbered(1)[1:])
    device.refuses = True
    assert write(DeviceWriter(device, Counter()), numbered(1)) == {DropReason.DEVICE_REFUSED: 1}
    assert not device.outbound


async def test_a_full_device_gets_all_of_it_later_and_in_order() -> None:
    device = MemoryDevice("tun0")
    drops: Counter[str] = Counter()
    writer = DeviceWriter(device, drops)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for number in range(30):
            if number % 10 == 3:
                device.set_writable(False)
            if number % 10 == 7:
                device.set_writable(True)  # what comes now must not overtake what waits
            assert not write(writer, numbered(number))
            if number % 10 == 8:
                await settle()
        device.set_writable(True)
        await settle()
        nursery.cancel_scope.cancel()
    assert list(device.outbound) == [numbered(number) for number in range(30)]
    assert not drops


class HesitantDevice(MemoryDevice):
    """Says that it is writable, takes one frame, and is full again."""

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        taken = super().write(frame)
        self.writable = False
        return taken

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        self.writable = True


async def test_a_device_that_takes_one_frame_at_a_time() -> None:
    device = HesitantDevice("tun0")
    writer = DeviceWriter(device, Counter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for number in range(20):
            write(writer, numbered(number))
        while len(device.outbound) < 20:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert list(device.outbound) == [numbered(number) for number in range(20)]


async def test_the_queue_is_bounded_and_what_it_cannot_hold_is_counted() -> None:
    device = MemoryDevice("tun0")
    drops: Counter[str] = Counter()
    writer = DeviceWriter(device, drops)
    device.set_writable(False)
    fitting = QUEUE_BYTES // len(numbered(0, 60_000))
    for number in range(fitting + 5):
        assert not write(writer, numbered(number, 60_000))
    assert drops == {DropReason.DEVICE_FULL: 5}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        device.set_writable(True)
        await settle()
        assert list(device.outbound) == [numbered(number, 60_000) for number in range(fitting)]
        # The room is free again.
        device.set_writable(False)
        for number in range(fitting):
            write(writer, numbered(number, 60_000))
        assert drops == {DropReason.DEVICE_FULL: 5}
        nursery.cancel_scope.cancel()


async def test_a_frame_that_is_refused_after_it_was_queued_is_counted() -> None:
    """It is dropped like any other refused frame; in `write_all` its session counts it."""
    device = MemoryDevice("tun0")
    drops: Counter[str] = Counter()
    writer = DeviceWriter(device, drops)
    device.set_writable(False)
    write(writer, b"\xff" + numbered(1)[1:])
    write(writer, numbered(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        device.set_writable(True)
        await settle()
        nursery.cancel_scope.cancel()
    assert list(device.outbound) == [numbered(2)]
    assert drops == {DropReason.DEVICE_REFUSED: 1}


async def test_the_device_goes_while_frames_wait() -> None:
    device = MemoryDevice("tun0")
    writer = DeviceWriter(device, Counter())
    device.set_writable(False)
    write(writer, numbered(1))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def take_away() -> None:
            await settle()
            device.closed = True
            device.set_writable(True)

        with pytest.raises(HostError):
            await writer.run()
