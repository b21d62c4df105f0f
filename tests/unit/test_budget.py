"""What one frame costs, counted and not timed: a change that makes the data path dearer fails here on any machine.

A fixed workload goes through the real reader, sender, decoder and forwarder, between a device and a socket that do
nothing but count. Counted are system calls (calls of the device and the socket), calls of functions, Python's and C's,
the fakes' own left out, and the peak of what is allocated. The limits are what was counted when they were written;
docs/performance-notes.md#cost-of-a-frame has them as the budget. Lower them with whatever lowers the cost.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from mmap import mmap
from types import FrameType
from typing import Any, Final

import pytest
import trio
import trio.testing

from tapotun_trio.datapath.tun_io import BURST_BYTES, DeviceWriter, _read_burst
from tapotun_trio.host.interfaces import Queue
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.log import interface_logger
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.frames import BUFFER_BYTES, HEADER_BYTES, LENGTH_BYTES, FrameRange, FrameReader

from ..packets import frame, ipv4
from ..streams import MemoryConnection, memory_pair
from .support import allowed, free_port, server_config
from .test_wire_merge import udp

SERVER: Final = "10.10.0.1"
CLIENT: Final = "10.10.0.2"


@dataclass
class Cost:
    """Of a whole workload."""

    frames: int
    syscalls: int
    calls: int
    peak_bytes: int

    def __str__(self) -> str:
        per = f"{self.syscalls / self.frames:.2f} system calls, {self.calls / self.frames:.1f} calls"
        return f"{self.frames} frames, each {per}; {self.peak_bytes} bytes allocated at most"


class CountingDevice:
    """Has so many equal frames, one read each, and takes everything."""

    name = "tun0"

    def __init__(self, packet: bytes = b"") -> None:
        self.frame = bytes(12) + packet
        self.left = 0
        self.syscalls = 0

    @property
    def queues(self) -> Sequence[Queue]:
        return (self,)

    def read_burst(self, into: memoryview, limit_bytes: int, most: int, /) -> tuple[list[int], bool]:
        size = len(self.frame)
        number = min(self.left, most, -(-limit_bytes // (size + LENGTH_BYTES)))
        for at in range(LENGTH_BYTES, LENGTH_BYTES + number * (size + LENGTH_BYTES), size + LENGTH_BYTES):
            into[at : at + size] = self.frame
        self.left -= number
        self.syscalls += number + (self.left == 0)
        return [size] * number, self.left > 0

    def write(self, frame: memoryview | bytes, /) -> bool | None:
        self.syscalls += 1
        return True

    def write_burst(self, view: memoryview, spans: Sequence[FrameRange], refused: list[FrameRange], /) -> int:
        self.syscalls += len(spans)
        return len(spans)

    def write_parts(self, parts: Sequence[bytes | memoryview], /) -> bool | None:
        self.syscalls += 1
        return True

    async def wait_readable(self) -> None:
        await trio.sleep_forever()

    async def wait_writable(self) -> None:
        await trio.sleep_forever()


class CountingConnection(MemoryConnection):
    """Takes everything."""

    syscalls = 0

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        self.syscalls += 1
        return sum(map(len, parts))


def counted(work: Callable[[], None]) -> tuple[int, int]:
    """Function calls but those of this file, and the peak of what was allocated, in bytes."""
    calls = 0

    def count(at: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call") and at.f_code.co_filename != __file__

    work()  # fills the caches
    before = sys.getprofile()
    gc.disable()
    try:
        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(before)
        tracemalloc.start()
        try:
            work()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    finally:
        gc.enable()
    return calls, peak


def tunnel_server() -> TunnelServer:
    config = server_config(free_port(), allowed("a", CLIENT))
    return TunnelServer(config, interface_logger(config.name))


def packet(source: str, destination: str, size: int) -> bytes:
    return ipv4(source, destination, bytes(size - 20))


async def down(size: int, frames: int) -> Cost:
    """From the device into a client's stream, as a server does it."""
    ours, _ = memory_pair()
    connection = CountingConnection(ours.name, ours._incoming, ours._outgoing)
    device, tunnel = CountingDevice(packet(SERVER, CLIENT, size)), tunnel_server()
    view = memoryview(mmap(-1, BURST_BYTES + 2 * 65536))

    def work() -> None:
        device.left = frames
        device.syscalls = connection.syscalls = 0
        while _read_burst(device, tunnel.classify, view):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tunnel.sessions[0].sender.serve, BodyWriter(connection))
        await trio.testing.wait_all_tasks_blocked()
        calls, peak = counted(work)
        nursery.cancel_scope.cancel()
    return Cost(frames, device.syscalls + connection.syscalls, calls, peak)


async def up_udp(size: int, frames: int) -> Cost:
    """The same with UDP packets of one flow, which are merged."""
    return await up(
        size, frames, udp(bytes(size - 28), addresses=ip_address(CLIENT).packed + ip_address(SERVER).packed)
    )


async def up(size: int, frames: int, one: bytes = b"") -> Cost:
    """From a client's stream into the device: one receive, all in one chunk."""
    body = (one or frame(packet(CLIENT, SERVER, size))) * frames
    data = b"%x\r\n%b\r\n" % (len(body), body)
    assert len(data) <= BUFFER_BYTES
    device, tunnel = CountingDevice(), tunnel_server()
    session = tunnel.sessions[0]
    writer = DeviceWriter(device, tunnel.device_drops)
    reader = FrameReader(ChunkedBody())

    def work() -> None:
        device.syscalls = 1  # the receive
        reader.space()[: len(data)] = data
        found = reader.feed(len(data))
        while True:
            session.forward(reader.view, found, writer, tunnel.sessions)
            if not reader.pending:
                break
            found = reader.feed(0)

    calls, peak = counted(work)
    await trio.lowlevel.checkpoint()
    return Cost(frames, device.syscalls, calls, peak)


# What goes which way, of what size, how many; and what that may cost: system calls and calls a frame, bytes at most. Of
# these, 1,400 are what coverage needs while it watches.
BUDGET = [
    (down, 65_000, 4, 1.5, 9.3, 3_000),
    (down, 64, 512, 1.01, 0.2, 7_000),  # how long each frame is
    (up, 65_000, 4, 1.25, 7.3, 3_000),
    (up, 64, 512, 1.01, 0.2, 42_000),  # where the frames of one receive are
    (up_udp, 64, 512, 0.02, 0.5, 64_000),  # and their payloads
]


@pytest.mark.parametrize(("way", "size", "frames", "syscalls", "calls", "peak_bytes"), BUDGET)
async def test_the_cost_of_a_frame_does_not_rise(
    way: Callable[[int, int], Any], size: int, frames: int, syscalls: float, calls: float, peak_bytes: int
) -> None:
    cost: Cost = await way(size, frames)
    print(f"{way.__name__} {size}: {cost}")
    assert cost.syscalls <= syscalls * frames, cost
    assert cost.calls <= calls * frames, cost
    assert cost.peak_bytes <= peak_bytes, cost


async def test_nothing_is_copied() -> None:
    """Ten times the bytes in as many frames allocate the same."""
    for way in (down, up):
        small, large = await way(6_500, 4), await way(65_000, 4)
        assert large.peak_bytes <= small.peak_bytes + 4 * HEADER_BYTES, (small, large)
