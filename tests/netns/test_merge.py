"""Merged UDP packets in a real kernel: taken as one, and what comes out of it is what went in."""

from __future__ import annotations

import ctypes
import fcntl
import random
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, cast

import pytest
import trio

from tapotun_trio.datapath import plane
from tapotun_trio.datapath.tun_io import DeviceWriter
from tapotun_trio.host.interfaces import Queue
from tapotun_trio.host.tun import TunDevice
from tapotun_trio.wire.body import chunk_head
from tapotun_trio.wire.frames import receive_buffer
from tests.planes import needs_pump
from tests.unit.test_wire_merge import laid, received, udp

from .fresh_namespace import in_fresh_namespace, ip
from .test_host_tun import configured_tun

if plane.BUILT:
    from tapotun_trio.datapath import _pump

pytestmark = pytest.mark.netns

# `udp` sends from 10.0.0.1 to port 9 of 10.0.0.2.
FLOWS: Final = 8
SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h
SO_RCVBUFFORCE: Final = 33
SIOCETHTOOL: Final = 0x8946  # linux/sockios.h
ETHTOOL_STXCSUM: Final = 0x17  # linux/ethtool.h
ETHTOOL_SGSO: Final = 0x24


def bursts(seed: int) -> list[list[bytes]]:
    """Of all flows interleaved, each packet with its flow and number, of 2 to 1472 bytes and often of the same."""
    rng = random.Random(seed)
    numbers = [0] * FLOWS
    out = []
    for _ in range(60):
        burst, sizes = [], [rng.choice([2, 64, 65, 1000, 1472, rng.randint(2, 1472)]) for _ in range(FLOWS)]
        for _ in range(rng.randint(1, 160)):
            flow = rng.randrange(FLOWS)
            size = sizes[flow] if rng.random() < 0.97 else rng.randint(2, 1472)
            body = bytes([flow, numbers[flow] & 0xFF]) + rng.randbytes(size - 2)
            numbers[flow] += 1
            burst.append(udp(body, port=5000 + flow))
        out.append(burst)
    return out


class Unrefused:
    """What is written to a device, which must take every super-packet as it is."""

    def __init__(self, device: TunDevice) -> None:
        self._device = device
        self.write = device.write
        self.write_burst = device.write_burst

    def write_parts(self, parts: Sequence[memoryview | bytes], /) -> bool | None:
        taken = self._device.write_parts(parts)
        assert taken is not False, "this kernel refused a super-packet"
        return taken


class ByPlane:
    """Writes to a device as the plane does."""

    def __init__(self, device: TunDevice) -> None:
        self._pump = _pump.Pump(-1)
        self._table, outlet = self._pump.table(plane.ALL_ALIKE), self._pump.outlet(device.fileno())
        self._pump.learn(self._table, udp(b"any"), _pump.DEVICE, 0)
        ours, self._far = socket.socketpair()
        self._sockets = ours, self._far
        self._far.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)
        self._buffer = receive_buffer()
        self._inlet = self._pump.inlet(ours.fileno(), outlet, self._table, self._buffer, 0, 0, 0, False)

    def write(self, burst: list[bytes]) -> None:
        """All of it, and nothing may be left to Python."""
        body = b"".join(burst)
        self._far.sendall(chunk_head(len(body)) + body + b"\r\n")
        written = 0
        while written < len(burst):
            assert self._pump.wait(time.monotonic_ns())[0] == []
            written += sum(packets for _, packets, *_ in self._pump.counts())

    def close(self) -> None:
        self._pump.free(self._inlet)
        for end in self._sockets:
            end.close()


@contextmanager
def writing(device: TunDevice, way: str) -> Iterator[Callable[[list[bytes]], None]]:
    """A function that writes a burst: by the plane, or by Python as single frames or as blocks."""
    if way == "plane":
        with closing(ByPlane(device)) as by_plane:
            yield by_plane.write
        return
    drops: Counter[str] = Counter()
    writer = DeviceWriter(cast(Queue, Unrefused(device)), drops)
    yield lambda burst: writer.write_all(*(received(burst) if way == "blocks" else laid(burst)), drops)
    assert not drops


def packets_written() -> int:
    """What the device has taken, a super-packet as one."""
    packets: int = ip("-s", "link", "show", "tun0")[0]["stats64"]["rx"]["packets"]
    return packets


WAYS = [pytest.param("plane", marks=needs_pump), "single", "blocks"]


@pytest.mark.parametrize("way", WAYS)
@in_fresh_namespace
async def test_a_plain_receiver_gets_every_datagram_whole_and_in_order(way: str) -> None:
    with configured_tun() as device, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ip("addr", "add", "10.0.0.2/24", "dev", "tun0")
        sock.bind(("10.0.0.2", 9))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        wanted, got = defaultdict(list), defaultdict(list)
        packets = 0
        with writing(device, way) as write:
            for burst in bursts(1):
                write(burst)
                packets += len(burst)
                for frame in burst:
                    wanted[int.from_bytes(frame[34:36], "big")].append(frame[42:])
                with trio.fail_after(5):
                    for _ in burst:
                        await trio.lowlevel.wait_readable(sock)
                        data, (_, port) = sock.recvfrom(2048)
                        got[port].append(data)
        assert got == wanted
        if way == "plane":  # Python merges only what pays
            assert packets_written() < packets / 2


@pytest.mark.parametrize("way", WAYS)
@in_fresh_namespace
async def test_forwarded_through_a_veth_without_udp_segmentation(way: str) -> None:
    """The kernel cuts them itself: an AF_PACKET socket at the veth's far end sees whole packets, checksums done."""
    with configured_tun() as device:
        ip("addr", "add", "10.0.0.254/32", "dev", "tun0")
        ip("route", "add", "10.0.0.1/32", "dev", "tun0")
        ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        for name in ("v0", "v1"):
            ip("link", "set", name, "addrgenmode", "none", "up")
        ip("route", "add", "10.0.0.2/32", "dev", "v0")
        ip("neigh", "add", "10.0.0.2", "lladdr", "02:00:00:00:00:02", "dev", "v0")
        forward_without_offloads("v0")
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
            sock.bind(("v1", 0x0800))
            sock.setblocking(False)
            with writing(device, way) as write:
                for burst in bursts(2):
                    write(burst)
                    wanted, got = defaultdict(list), defaultdict(list)
                    for frame in burst:
                        wanted[int.from_bytes(frame[34:36], "big")].append(frame[42:])
                    with trio.fail_after(5):
                        for _ in burst:
                            await trio.lowlevel.wait_readable(sock)
                            packet = sock.recv(2048)
                            assert_checksums(packet)
                            got[int.from_bytes(packet[20:22], "big")].append(packet[28:])
                    assert got == wanted


def assert_checksums(packet: bytes) -> None:
    def fold(data: bytes) -> int:
        data += b"\0" * (len(data) % 2)
        total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total

    assert fold(packet[:20]) == 0xFFFF
    assert int.from_bytes(packet[2:4], "big") == len(packet) == int.from_bytes(packet[24:26], "big") + 20
    assert fold(packet[12:20] + bytes([0, 17]) + packet[24:26] + packet[20:]) == 0xFFFF


def forward_without_offloads(name: str) -> None:
    """Forwarding on; this interface can neither cut a super-packet nor finish a checksum."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for command in (ETHTOOL_STXCSUM, ETHTOOL_SGSO):
        value = ctypes.create_string_buffer(struct.pack("=II", command, 0))  # struct ethtool_value
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(value)))
