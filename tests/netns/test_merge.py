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
from dataclasses import dataclass
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
from tests.unit.test_wire_merge import laid, received, udp, udp6

from .fresh_namespace import in_fresh_namespace, ip
from .test_host_tun import configured_tun

if plane.BUILT:
    from tapotun_trio.datapath import _pump

pytestmark = pytest.mark.netns

FLOWS: Final = 8
VNET: Final = 14  # bytes of a frame before its packet
SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h
SO_RCVBUFFORCE: Final = 33
SIOCETHTOOL: Final = 0x8946  # linux/sockios.h
ETHTOOL_STXCSUM: Final = 0x17  # linux/ethtool.h
ETHTOOL_SGSO: Final = 0x24


@dataclass(frozen=True)
class Family:
    """What `udp` and `udp6` send: from whom, to port 9 of whom, and where UDP begins in a packet."""

    make: Callable[..., bytes]
    socket_family: socket.AddressFamily
    source: str
    destination: str
    host: str
    ethertype: int
    udp_at: int
    forwarding: str

    def port(self, packet: bytes, at: int = 0) -> int:
        """The source port. ``at``: where the packet begins."""
        return int.from_bytes(packet[at + self.udp_at : at + self.udp_at + 2], "big")

    def payload(self, packet: bytes, at: int = 0) -> bytes:
        """What is behind the header of UDP."""
        return packet[at + self.udp_at + 8 :]


FAMILIES: Final = {
    4: Family(udp, socket.AF_INET, "10.0.0.1", "10.0.0.2", "/32", 0x0800, 20, "ipv4/ip_forward"),
    6: Family(udp6, socket.AF_INET6, "fd00::1", "fd01::2", "/128", 0x86DD, 40, "ipv6/conf/all/forwarding"),
}


def bursts(seed: int, family: Family) -> list[list[bytes]]:
    """Of all flows interleaved, each packet with its flow and number, of 2 bytes to the MTU and often of the same."""
    most = 1500 - family.udp_at - 8
    rng = random.Random(seed)
    numbers = [0] * FLOWS
    out = []
    for _ in range(60):
        burst, sizes = [], [rng.choice([2, 64, 65, 1000, most, rng.randint(2, most)]) for _ in range(FLOWS)]
        for _ in range(rng.randint(1, 160)):
            flow = rng.randrange(FLOWS)
            size = sizes[flow] if rng.random() < 0.97 else rng.randint(2, most)
            body = bytes([flow, numbers[flow] & 0xFF]) + rng.randbytes(size - 2)
            numbers[flow] += 1
            burst.append(family.make(body, port=5000 + flow))
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

    def __init__(self, device: TunDevice, family: Family) -> None:
        self._pump = _pump.Pump(-1)
        self._table, outlet = self._pump.table(plane.ALL_ALIKE), self._pump.outlet(device.fileno())
        self._pump.learn(self._table, family.make(b"any"), _pump.DEVICE, 0)
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
def writing(device: TunDevice, way: str, family: Family) -> Iterator[Callable[[list[bytes]], None]]:
    """A function that writes a burst: by the plane, or by Python as single frames or as blocks."""
    if way == "plane":
        with closing(ByPlane(device, family)) as by_plane:
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


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@in_fresh_namespace
async def test_a_plain_receiver_gets_every_datagram_whole_and_in_order(way: str, version: int) -> None:
    family = FAMILIES[version]
    with configured_tun() as device, socket.socket(family.socket_family, socket.SOCK_DGRAM) as sock:
        ip("addr", "add", f"{family.destination}{family.host}", "dev", "tun0", *(["nodad"] if version == 6 else []))
        ip("route", "add", f"{family.source}{family.host}", "dev", "tun0")
        sock.bind((family.destination, 9))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        wanted, got = defaultdict(list), defaultdict(list)
        packets = 0
        with writing(device, way, family) as write:
            for burst in bursts(1, family):
                write(burst)
                packets += len(burst)
                for frame in burst:
                    wanted[family.port(frame, VNET)].append(family.payload(frame, VNET))
                with trio.fail_after(5):
                    for _ in burst:
                        await trio.lowlevel.wait_readable(sock)
                        data, address = sock.recvfrom(2048)
                        got[address[1]].append(data)
        assert got == wanted
        if way == "plane":  # Python merges only what pays
            assert packets_written() < packets / 2


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@in_fresh_namespace
async def test_forwarded_through_a_veth_without_udp_segmentation(way: str, version: int) -> None:
    """The kernel cuts them itself: an AF_PACKET socket at the veth's far end sees whole packets, checksums done."""
    family = FAMILIES[version]
    with configured_tun() as device:
        ip("route", "add", f"{family.source}{family.host}", "dev", "tun0")
        ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        for name in ("v0", "v1"):
            ip("link", "set", name, "addrgenmode", "none", "up")
        ip("route", "add", f"{family.destination}{family.host}", "dev", "v0")
        ip("neigh", "add", family.destination, "lladdr", "02:00:00:00:00:02", "dev", "v0")
        forward_without_offloads("v0", family)
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(family.ethertype)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
            sock.bind(("v1", family.ethertype))
            sock.setblocking(False)
            with writing(device, way, family) as write:
                for burst in bursts(2, family):
                    write(burst)
                    wanted, got = defaultdict(list), defaultdict(list)
                    for frame in burst:
                        wanted[family.port(frame, VNET)].append(family.payload(frame, VNET))
                    with trio.fail_after(5):
                        for _ in burst:
                            packet = await next_datagram(sock)
                            assert_checksums(packet, family)
                            got[family.port(packet)].append(family.payload(packet))
                    assert got == wanted


async def next_datagram(sock: socket.socket) -> bytes:
    """The next UDP packet. The kernel sends packets of IPv6 by itself, too."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        packet = sock.recv(2048)
        if packet[6 if packet[0] >> 4 == 6 else 9] == 17:
            return packet


def assert_checksums(packet: bytes, family: Family) -> None:
    def fold(data: bytes) -> int:
        data += b"\0" * (len(data) % 2)
        total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total

    datagram = packet[family.udp_at :]
    length = int.from_bytes(datagram[4:6], "big")
    if family.udp_at == 20:
        assert fold(packet[:20]) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        addresses = packet[12:20]
    else:
        assert int.from_bytes(packet[4:6], "big") == length
        addresses = packet[8:40]
    assert len(datagram) == length
    assert fold(addresses + bytes([0, 17]) + datagram[4:6] + datagram) == 0xFFFF


def forward_without_offloads(name: str, family: Family) -> None:
    """Forwarding on; this interface can neither cut a super-packet nor finish a checksum."""
    Path("/proc/sys/net", family.forwarding).write_text("1")
    for command in (ETHTOOL_STXCSUM, ETHTOOL_SGSO):
        value = ctypes.create_string_buffer(struct.pack("=II", command, 0))  # struct ethtool_value
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(value)))
