"""What a frame of IPv6 costs, beside one of IPv4: counted as in test_budget, of the same workload in the same run.

IPv4 has its limits there. IPv6 has to read its addresses where they are, and to look at what must not leave a link;
that may cost 0.15 of the calls that a frame of IPv4 costs. System calls and memory are those of IPv4.

In a block a frame of IPv4 costs hardly a call, since columns are compared without one. There IPv6 keeps to the limit of
IPv4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Interface
from mmap import mmap
from typing import Any, Final

import pytest
import trio
import trio.testing

from tapotun_trio.client.client import TunnelClient
from tapotun_trio.datapath.receiver import deliver_to_device
from tapotun_trio.datapath.sender import Sender
from tapotun_trio.datapath.tun_io import BURST_BYTES, Classify, DeviceWriter, _read_burst
from tapotun_trio.http.writer import BodyWriter
from tapotun_trio.log import interface_logger
from tapotun_trio.server.server import TunnelServer
from tapotun_trio.wire.body import ChunkedBody
from tapotun_trio.wire.frames import BUFFER_BYTES, FrameRange, FrameReader

from ..packets import frame, ip
from ..streams import memory_pair
from .support import allowed, client_config, free_port, server_config
from .test_budget import Cost, CountingConnection, CountingDevice, counted

# Server, client, another client; as many bytes of payload to a packet as IPv4's header is shorter.
ADDRESSES: Final = {4: ("10.10.0.1", "10.10.0.2", "10.10.0.3"), 6: ("2001:db8::1", "2001:db8::2", "2001:db8::3")}
HEADER: Final = {4: 20, 6: 40}
FACTOR: Final = 1.15
BLOCK_CALLS: Final = 0.2  # test_budget.BUDGET

Deliver = Callable[[FrameReader, list[FrameRange]], None]


def tunnel_server() -> TunnelServer:
    clients = [
        replace(
            allowed(name, ADDRESSES[4][n]),
            addresses=(*allowed(name, ADDRESSES[4][n]).addresses, IPv6Address(ADDRESSES[6][n])),
        )
        for name, n in (("a", 1), ("b", 2))
    ]
    config = server_config(free_port(), *clients)
    config = replace(config, nets=(config.nets[0], IPv6Interface("2001:db8::1/64")))
    tunnel = TunnelServer(config, interface_logger(config.name))
    for session in tunnel.sessions:
        session._set_ipv6(True)
    return tunnel


def packet(version: int, source: int, destination: int, size: int) -> bytes:
    ends = ADDRESSES[version]
    return ip(ends[source], ends[destination], bytes(size - HEADER[version]))


async def into_stream(sender: Sender, classify: Classify, one: bytes, frames: int) -> Cost:
    """From the device into a stream."""
    ours, _ = memory_pair()
    connection = CountingConnection(ours.name, ours._incoming, ours._outgoing)
    device = CountingDevice(one)
    view = memoryview(mmap(-1, BURST_BYTES + 2 * 65536))

    def work() -> None:
        device.left = frames
        device.syscalls = connection.syscalls = 0
        while _read_burst(device, classify, view):
            pass

    async def serve() -> None:
        await sender.serve(BodyWriter(connection), ipv6=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        calls, peak = counted(work)
        nursery.cancel_scope.cancel()
    return Cost(frames, device.syscalls + connection.syscalls, calls, peak)


async def from_stream(one: bytes, frames: int, deliver: Callable[[DeviceWriter], Deliver]) -> Cost:
    """From a stream: one receive, all in one chunk."""
    body = frame(one) * frames
    data = b"%x\r\n%b\r\n" % (len(body), body)
    assert len(data) <= BUFFER_BYTES
    device = CountingDevice()
    reader = FrameReader(ChunkedBody())
    take = deliver(DeviceWriter(device, TunnelServer(server_config(1), interface_logger("hub")).device_drops))

    def work() -> None:
        device.syscalls = 1  # the receive
        reader.space()[: len(data)] = data
        found = reader.feed(len(data))
        while True:
            take(reader, found)
            if not reader.pending:
                break
            found = reader.feed(0)

    calls, peak = counted(work)
    await trio.lowlevel.checkpoint()
    return Cost(frames, device.syscalls, calls, peak)


async def server_down(version: int, size: int, frames: int) -> Cost:
    tunnel = tunnel_server()
    return await into_stream(tunnel.sessions[0].sender, tunnel.classify, packet(version, 0, 1, size), frames)


async def client_up(version: int, size: int, frames: int) -> Cost:
    client = TunnelClient(client_config("a", 1), interface_logger("a"))
    return await into_stream(client.sender, client.flows.classify, packet(version, 1, 0, size), frames)


async def server_up(version: int, size: int, frames: int) -> Cost:
    tunnel = tunnel_server()

    def deliver(writer: DeviceWriter) -> Deliver:
        return lambda reader, found: tunnel.sessions[0].forward(reader.view, found, writer, tunnel.sessions)

    return await from_stream(packet(version, 1, 0, size), frames, deliver)


async def client_to_client(version: int, size: int, frames: int) -> Cost:
    tunnel = tunnel_server()
    session, other = tunnel.sessions
    other.sender.set_ipv6(True)

    def deliver(writer: DeviceWriter) -> Deliver:
        def take(reader: FrameReader, found: list[FrameRange]) -> None:
            session.forward(reader.view, found, writer, tunnel.sessions)
            other.sender.tx_queue.take(0.0, 1 << 30)

        return take

    return await from_stream(packet(version, 1, 2, size), frames, deliver)


async def client_down(version: int, size: int, frames: int) -> Cost:
    client = TunnelClient(client_config("a", 1), interface_logger("a"))
    client.flows.set_ipv6(True)

    def deliver(writer: DeviceWriter) -> Deliver:
        return lambda reader, found: deliver_to_device(
            reader.view, found, writer, client.counters, client.sender.send_control, ipv6=client.flows.ipv6
        )

    return await from_stream(packet(version, 0, 1, size), frames, deliver)


@pytest.mark.parametrize(("size", "frames"), [(65_000, 4), (64, 512)])
@pytest.mark.parametrize("way", [server_down, server_up, client_up, client_down, client_to_client])
async def test_a_frame_of_ipv6_costs_nearly_what_one_of_ipv4_costs(
    way: Callable[[int, int, int], Any], size: int, frames: int
) -> None:
    four, six = await way(4, size, frames), await way(6, size, frames)
    assert four.calls, "nothing was counted"
    print(f"{way.__name__} {size}: IPv4 {four}; IPv6 {six}: {six.calls / four.calls:.2f} of the calls")
    assert six.syscalls == four.syscalls
    assert six.calls <= max(FACTOR * four.calls, BLOCK_CALLS * frames), (four, six)
    assert six.peak_bytes <= four.peak_bytes + 8_000, (four, six)  # the heads of 64 frames are compared at a time
