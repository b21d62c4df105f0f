"""TunDevice on real TUN interfaces, the namespace's own stack at the other end."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError
from tapotun_trio.host.tun import MAX_FRAME_BYTES, VNET_HEADER_BYTES, TunDevice, open_tun
from tapotun_trio.wire.frames import LENGTH_BYTES

from .fresh_namespace import in_fresh_namespace, ip

pytestmark = pytest.mark.netns

# linux/if_tun.h
TUNGETIFF: Final = 0x800454D2
TUNGETVNETHDRSZ: Final = 0x800454D7
TUNGETVNETLE: Final = 0x800454DD
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_PERSIST: Final = 0x0800

# linux/virtio_net.h
NEEDS_CSUM: Final = 1
GSO_TCPV4: Final = 1
GSO_UDP_L4: Final = 5
VNET: Final = struct.Struct("<BBHHHHH")

HERE: Final = "10.1.0.1"
THERE: Final = "10.1.0.2"


@contextmanager
def configured_tun(mtu: int = 1500) -> Iterator[TunDevice]:
    """tun0 with HERE on it, up; the rest of its network is whoever holds the device. Says nothing of its own."""
    with open_tun("tun0") as device:
        ip("link", "set", "tun0", "addrgenmode", "none")  # first, or the kernel sends before it hears
        ip("link", "set", "tun0", "mtu", str(mtu), "up")
        ip("addr", "add", f"{HERE}/24", "dev", "tun0")
        yield device


def checksum(data: bytes) -> int:
    """RFC 1071, not inverted."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(protocol: int, payload: bytes) -> bytes:
    """A packet from THERE to HERE."""
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, protocol, 0)
    head += socket.inet_aton(THERE) + socket.inet_aton(HERE)
    return head[:10] + struct.pack("!H", checksum(head) ^ 0xFFFF) + head[12:] + payload


def pseudo_checksum(protocol: int, length: int) -> int:
    """What a partial checksum (NEEDS_CSUM) starts with."""
    addresses = socket.inet_aton(THERE) + socket.inet_aton(HERE)
    return checksum(addresses + struct.pack("!HH", protocol, length))


def udp_frame(sport: int, dport: int, data: bytes) -> bytes:
    """Without checksum: legal for UDP over IPv4."""
    packet = ipv4(17, struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data)
    return bytes(VNET_HEADER_BYTES) + packet


def read_one(device: TunDevice, into: memoryview) -> int | None:
    """The length of a frame, or None."""
    slab = memoryview(bytearray(LENGTH_BYTES + MAX_FRAME_BYTES))
    lengths, _ = device.read_burst(slab, 1, 1)
    if not lengths:
        return None
    assert len(lengths) == 1
    assert bytes(slab[:LENGTH_BYTES]) == b"\0\0"
    into[: lengths[0]] = slab[LENGTH_BYTES : LENGTH_BYTES + lengths[0]]
    return lengths[0]


async def read_frame(device: TunDevice, into: memoryview) -> memoryview:
    with trio.fail_after(5):
        while (length := read_one(device, into)) is None:
            await device.wait_readable()
    return into[:length]


def buffer() -> memoryview:
    return memoryview(bytearray(MAX_FRAME_BYTES))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@in_fresh_namespace
async def test_what_is_created_is_a_down_vnet_tun_and_it_is_gone_at_exit() -> None:
    before = open_fds()
    with open_tun("tun0") as device:
        assert device.name == "tun0"
        (link,) = ip("link", "show", "tun0")
        assert "UP" not in link["flags"]
        assert link["linkinfo"]["info_data"]["type"] == "tun"
        assert link["txqlen"] == 2000
        assert not ip("addr", "show", "dev", "tun0")[0]["addr_info"]

        answer = fcntl.ioctl(device.fileno(), TUNGETIFF, bytes(40))
        name, flags = struct.unpack("16sH22x", answer)
        assert name.rstrip(b"\0") == b"tun0"
        assert flags & (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR) == IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        assert not flags & IFF_PERSIST
        assert fcntl.ioctl(device.fileno(), TUNGETVNETHDRSZ, bytes(4)) == struct.pack("=i", 12)
        assert fcntl.ioctl(device.fileno(), TUNGETVNETLE, bytes(4)) == struct.pack("=i", 1)
        assert fcntl.fcntl(device.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert [link["ifname"] for link in ip("link", "show")] == ["lo"]
    assert open_fds() == before
    device.close()  # again: nothing happens


@in_fresh_namespace
async def test_a_taken_name_is_refused_and_what_has_it_is_left_alone() -> None:
    before = open_fds()
    ip("tuntap", "add", "dev", "tun0", "mode", "tun")  # persistent, nobody holds it
    ip("link", "add", "dummy0", "type", "veth", "peer", "name", "peer0")
    with open_tun("tun1"):
        for name, words in (("tun0", "persistent"), ("tun1", "another process"), ("dummy0", "kind veth")):
            with pytest.raises(HostError, match=words) as info, open_tun(name):
                pass
            assert name in str(info.value)
            assert "\n" not in str(info.value)
    with pytest.raises(HostError, match="taken"), open_tun("lo"):
        pass
    assert {link["ifname"] for link in ip("link", "show")} == {"lo", "tun0", "dummy0", "peer0"}
    assert open_fds() == before


@pytest.mark.parametrize("name", ["", "a" * 16, "ä" * 8, "a/b", "a b", "a:b", "tun%d", ".", "..", "x\0", "x\n"])
@in_fresh_namespace
async def test_an_invalid_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(HostError, match="interface name") as info, open_tun(name):
        pass
    assert repr(name) in str(info.value)


@in_fresh_namespace
async def test_a_name_of_fifteen_bytes_is_fine() -> None:
    with open_tun("a-name-15-bytes") as device:
        assert ip("link", "show", device.name)


@in_fresh_namespace
async def test_udp_crosses_in_both_directions() -> None:
    with configured_tun() as device, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HERE, 7000))
        sock.settimeout(2)
        into = buffer()
        assert read_one(device, into) is None

        sock.sendto(b"x" * 1000, (THERE, 7001))
        frame = bytes(await read_frame(device, into))
        flags, gso_type, _, _, csum_start, csum_offset, _ = VNET.unpack_from(frame)
        assert (flags, gso_type, csum_start, csum_offset) == (NEEDS_CSUM, 0, 20, 6)
        assert len(frame) == VNET_HEADER_BYTES + 20 + 8 + 1000
        assert frame[VNET_HEADER_BYTES + 28 :] == b"x" * 1000
        assert read_one(device, into) is None

        assert device.write(udp_frame(7001, 7000, b"y")) is True
        assert sock.recv(10) == b"y"
        assert device.write(memoryview(udp_frame(7001, 7000, b"z"))) is True
        assert sock.recv(10) == b"z"


@in_fresh_namespace
async def test_a_refused_frame_is_false_and_the_next_one_passes() -> None:
    with configured_tun() as device, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HERE, 7000))
        sock.settimeout(2)
        good = udp_frame(7001, 7000, b"y")
        assert device.write(b"") is False
        assert device.write(good[:11]) is False  # half a header
        assert device.write(bytes(VNET_HEADER_BYTES)) is False  # no packet
        assert device.write(bytes(VNET_HEADER_BYTES) + b"\x10" * 48) is False  # IP version 1
        assert device.write(VNET.pack(0, 77, 0, 0, 0, 0, 0) + good[12:]) is False  # unknown gso_type
        assert device.write(VNET.pack(NEEDS_CSUM, 0, 0, 0, 9000, 6, 0) + good[12:]) is False
        assert device.write(good) is True
        assert sock.recv(10) == b"y"


@in_fresh_namespace
async def test_a_write_to_a_down_interface_is_a_drop() -> None:
    with configured_tun() as device:
        ip("link", "set", "tun0", "down")
        assert device.write(udp_frame(1, 2, b"")) is False
        assert read_one(device, buffer()) is None
        ip("link", "set", "tun0", "up")
        assert device.write(udp_frame(1, 2, b"")) is True


@in_fresh_namespace
async def test_an_interface_that_somebody_deletes_is_a_host_error() -> None:
    with configured_tun() as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            ip("link", "delete", "tun0")
            nursery.cancel_scope.deadline = trio.current_time() + 2
        assert not nursery.cancel_scope.cancelled_caught, "whoever waits for a frame should have been woken"
        with pytest.raises(HostError, match="tun0 is gone"):
            read_one(device, buffer())
        with pytest.raises(HostError, match="tun0 is gone"):
            device.write(udp_frame(1, 2, b""))
        with pytest.raises(HostError, match="tun0 is gone"):
            device.set_offloads(uso=True)


@in_fresh_namespace
async def test_closing_wakes_the_tasks_that_wait() -> None:
    async def expect_closed(device: TunDevice) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await device.wait_readable()

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            with configured_tun() as device:
                nursery.start_soon(expect_closed, device)
                await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.ClosedResourceError):
        await device.wait_readable()
    with pytest.raises(trio.ClosedResourceError):
        await device.wait_writable()
    with pytest.raises(trio.ClosedResourceError):
        read_one(device, buffer())
    with pytest.raises(trio.ClosedResourceError):
        device.write(b"")
    with pytest.raises(trio.ClosedResourceError):
        device.set_offloads(uso=False)


@in_fresh_namespace
async def test_one_task_at_a_time_may_wait_and_waiting_can_be_cancelled() -> None:
    with configured_tun() as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await device.wait_readable()
            nursery.cancel_scope.cancel()
        with trio.fail_after(2):
            await device.wait_writable()  # a device that is up is writable


@in_fresh_namespace
async def test_tcp_super_packets_of_64_kib_cross_in_one_read_and_one_write() -> None:
    """A TCP peer made of frames: it acknowledges until the kernel sends full super-packets, then sends one."""
    with configured_tun() as device, socket.socket() as sock:
        into = buffer()
        sock.setblocking(False)
        assert sock.connect_ex((THERE, 80)) == errno.EINPROGRESS
        port = sock.getsockname()[1]
        syn = await read_frame(device, into)
        (sequence,) = struct.unpack_from("!I", syn, VNET_HEADER_BYTES + 24)

        def segment(seq: int, ack: int, flags: int, data: bytes = b"", options: bytes = b"") -> bytes:
            length = 20 + len(options) + len(data)
            words = (20 + len(options)) // 4
            partial = pseudo_checksum(6, length)
            head = struct.pack("!HHIIBBHHH", 80, port, seq, ack, words << 4, flags, 65535, partial, 0)
            size = 1460 if len(data) > 1460 else 0
            vnet = VNET.pack(NEEDS_CSUM, GSO_TCPV4 if size else 0, 40 if size else 0, size, 20, 16, 0)
            return vnet + ipv4(6, head + options + data)

        ack = sequence + 1
        mss_and_window_scale_10 = b"\x02\x04\x05\xb4\x01\x03\x03\x0a"
        assert device.write(segment(1000, ack, 0x12, options=mss_and_window_scale_10)) is True  # SYN ACK
        with trio.fail_after(5):
            await trio.lowlevel.wait_writable(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

        data = os.urandom(1 << 20)
        sent = 0
        received = bytearray()
        largest = 0
        with trio.fail_after(10):
            while len(received) < len(data):
                if sent < len(data):
                    with suppress(BlockingIOError):
                        sent += sock.send(memoryview(data)[sent:])
                frame = await read_frame(device, into)
                _, gso_type, _, gso_size, csum_start, csum_offset, _ = VNET.unpack_from(frame)
                assert (csum_start, csum_offset) == (20, 16)
                start = VNET_HEADER_BYTES + 20 + (frame[VNET_HEADER_BYTES + 32] >> 4) * 4
                payload = frame[start:]
                if not len(payload):
                    continue
                if len(payload) > 1460:
                    assert (gso_type & 0x7F, gso_size) == (GSO_TCPV4, 1460)
                    largest = max(largest, len(frame))
                (seq,) = struct.unpack_from("!I", frame, VNET_HEADER_BYTES + 24)
                assert seq == ack, "the namespace lost a segment"
                received += payload
                ack = (seq + len(payload)) & 0xFFFF_FFFF
                assert device.write(segment(1001, ack, 0x10)) is True
        assert received == data
        assert largest > 60_000

        big = os.urandom(65_535 - 40)
        assert device.write(segment(1001, ack, 0x18, big)) is True
        answer = bytearray()
        with trio.fail_after(5):
            while len(answer) < len(big):
                await trio.lowlevel.wait_readable(sock)
                answer += sock.recv(1 << 17)
        assert answer == big


@in_fresh_namespace
async def test_udp_super_packets_come_whole_only_when_asked_for() -> None:
    udp_segment = 103  # linux/udp.h
    with configured_tun() as device, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_UDP, udp_segment, 1000)
        into = buffer()

        async def types(uso: bool) -> list[tuple[int, int]]:
            assert device.set_offloads(uso=uso) is uso
            sock.sendto(b"x" * 4000, (THERE, 7001))
            await device.wait_readable()
            seen: list[tuple[int, int]] = []
            while (length := read_one(device, into)) is not None:
                seen.append((into[1], length - VNET_HEADER_BYTES - 28))
            return seen

        assert await types(False) == [(0, 1000)] * 4
        try:
            supported = device.set_offloads(uso=True)
        finally:
            device.set_offloads(uso=False)
        if not supported:
            pytest.skip("this kernel has no USO on TUN (before 6.2)")
        assert await types(True) == [(GSO_UDP_L4, 4000)]
        assert await types(False) == [(0, 1000)] * 4
