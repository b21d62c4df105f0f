"""What a real kernel makes of Ethernet frames: which vnet headers TAP takes, and how it cuts what was merged."""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from tapotun_trio.datapath.gro_udp import coalesce_block
from tapotun_trio.wire.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, validate_ethernet_vnet

from ..packets import ipv4, ipv6
from ..tap_frames import ARP, IPV4, IPV6, SERVICE_VLAN, behind_ethernet, ethernet, tag
from ..unit.test_wire_ethernet import received
from ..unit.test_wire_merge import fold, udp, udp6
from ..unit.test_wire_merge_tcp import stream
from ..unit.test_wire_vnet import extension
from .fresh_namespace import in_fresh_namespace, ip, sysctl

pytestmark = pytest.mark.netns

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
ALL_OFFLOADS: Final = 0x0F  # CSUM, TSO4, TSO6, TSO_ECN

FRAMES: Final = 20_000
VNET: Final = struct.Struct("<BBHHHHH")
PATIENCE_S: Final = 10.0
A4, B4, A6, B6 = "10.9.0.1", "10.9.0.2", "2001:db8::1", "2001:db8::2"
TCP, UDP = 6, 17


@contextmanager
def tap(name: str, offloads: int = ALL_OFFLOADS) -> Iterator[int]:
    """A TAP interface that is up; its descriptor. ``offloads``: what the kernel may leave to who reads it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VNET.size))
        fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
        ip("link", "set", name, "up")
        yield fd
    finally:
        os.close(fd)


def is_taken(fd: int, frame: bytes) -> bool:
    try:
        return os.write(fd, frame[2:]) == len(frame) - 2
    except OSError:
        return False


class Any:
    """Makes frames: right, nearly right, and anything."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def frame(self) -> bytes:
        choose, number = self._random.choice, self._random.randrange
        kind = choose([IPV4, IPV4, IPV6, IPV6, ARP, 0x8864, 60, number(1 << 16)])
        tags = choose([b"", b"", tag(1), tag(2, SERVICE_VLAN), tag(2, SERVICE_VLAN) + tag(3), tag(1) * 3])
        body = bytes(choose([0, 8, 20, 60, 1000, 9000, 65000]))
        protocol = choose([TCP, TCP, TCP, UDP, 58])
        before = 0
        if choose([4, 6] if kind not in (IPV4, IPV6) else [4 if kind == IPV4 else 6] * 5 + [4, 6]) == 4:
            packet, headers = ipv4(A4, B4, bytes([0] * 12) + b"\x50" + body, protocol), 20
        else:
            before = choose([0, 0, 0, 8])
            inner = bytes([0] * 12) + b"\x50" + body
            packet = ipv6(A6, B6, extension(protocol) + inner if before else inner, 0 if before else protocol)
            headers = 40 + before
        packet = packet[: choose([len(packet)] * 5 + [number(len(packet) + 1)])][: 65535 - 14 - len(tags)]
        start = 14 + len(tags) + headers
        gso = GSO_TCPV6 if packet[:1] >= b"\x60" else GSO_TCPV4
        right = VNET.pack(NEEDS_CSUM, choose([0, gso, gso | GSO_ECN]), choose([0, start + 20]), 1400, start, 16, 0)
        vnet = (
            right
            if choose([True, False])
            else VNET.pack(
                choose([0, 1, 1, 1, 1, 2, 3, number(256)]),
                choose([0, 0, GSO_TCPV4, GSO_TCPV6, choose([1, 4]) | GSO_ECN, 3, 5, number(256)]),
                choose([0, 0, start, start + 20, number(16), number(70)]),
                choose([1400, 1400, 8, 0, 0xFFFF, number(1 << 16)]),
                choose([start, start, start, start + choose([-4, 4, 8]), number(60), number(1 << 16)]),
                choose([16, 16, 16, 6, 0, number(1 << 16)]),
                0,
            )
        )
        return ethernet(packet, kind, tags=tags, vnet=vnet)


@in_fresh_namespace
async def test_what_is_accepted_the_kernel_takes() -> None:
    """So no client gets from another what its kernel refuses. Each also goes over a bridge into an interface without
    offloads, so that the kernel has to cut the super-packets, and to sum up what is partial."""
    sysctl("ipv6/conf/default/disable_ipv6", 1)
    with tap("tap0") as fd, tap("tap1", offloads=0) as other:
        ip("link", "add", "br0", "type", "bridge")
        for name in ("tap0", "tap1"):
            ip("link", "set", name, "master", "br0")
        ip("link", "set", "br0", "up")
        make, accepted, refused = Any(20), Counter[tuple[int, int, int]](), 0
        for _ in range(FRAMES):
            frame = make.frame()
            valid, taken = validate_ethernet_vnet(memoryview(frame)), is_taken(fd, frame)
            assert taken or not valid, f"the kernel refuses {frame[:80].hex(' ')} ({len(frame)} bytes)"
            if valid:
                kind = int.from_bytes(frame[26:28], "big")
                accepted[frame[2] & NEEDS_CSUM, frame[3] & ~GSO_ECN, kind if kind in (IPV4, IPV6) else 0] += 1
            refused += not taken
            drain(other)
    assert refused > FRAMES // 10
    for needs_csum, gso, kind in (
        *((csum, 0, kind) for csum in (0, 1) for kind in (IPV4, IPV6, 0)),
        (1, GSO_TCPV4, IPV4),
        (1, GSO_TCPV6, IPV6),
        (1, GSO_TCPV4, 0),  # tagged
    ):
        assert accepted[needs_csum, gso, kind] > 20, (needs_csum, gso, kind, accepted)


@in_fresh_namespace
async def test_what_the_kernel_itself_demands() -> None:
    """Of TAP only: no header ends within the Ethernet header. And csum_start is at least 20, whatever is there."""
    with tap("tap0") as fd:
        whole = ethernet(ipv4(A4, B4, bytes(60), TCP))

        def takes(*fields: int) -> bool:
            return is_taken(fd, whole[:2] + VNET.pack(*fields, 0) + whole[14:])

        length = len(whole) - 14
        assert [hdr_len for hdr_len in range(length + 1) if not takes(0, 0, hdr_len, 0, 0, 0)] == list(range(1, 14))
        assert not takes(0, 0, length + VNET.size, 0, 0, 0)
        assert [start for start in range(80) if not takes(NEEDS_CSUM, 0, 0, 0, start, 6)] == list(range(20))
        assert not is_taken(fd, whole[: 14 + 13])


@in_fresh_namespace
async def test_the_kernel_passes_on_what_a_virtual_machine_has_made_up() -> None:
    """What a bridge port with a vnet header brings comes out of ours, super-packets of one byte a packet too. So a
    frame that no kernel makes is no proof that the peer is dishonest."""
    sysctl("ipv6/conf/default/disable_ipv6", 1)
    with tap("tap0") as guest, tap("tap1") as ours:
        ip("link", "add", "br0", "type", "bridge")
        for name in ("tap0", "tap1"):
            ip("link", "set", name, "master", "br0")
        ip("link", "set", "br0", "up")
        packet = ipv4(A4, B4, bytes(12) + b"\x50" + bytes(4000), TCP)
        absurd = ethernet(packet, vnet=VNET.pack(NEEDS_CSUM, GSO_TCPV4, 54, 1, 34, 16, 0))
        assert not validate_ethernet_vnet(memoryview(absurd))
        assert is_taken(guest, absurd)
        assert select.select([ours], [], [], PATIENCE_S)[0]
        assert absurd[2:] in drain(ours)


def drain(fd: int) -> list[bytes]:
    """All frames that can be read now."""
    frames = []
    while True:
        try:
            frames.append(os.read(fd, 70_000))
        except BlockingIOError:
            return frames


def meaning(frame: bytes, *, partial: bool) -> tuple[bytes, ...]:
    """What must be the same of a frame before and behind a kernel that has cut it out of a larger one: all but IPv4's
    ID and checksum, and the transport's checksum, which is partial before and right behind."""
    vnet, rest = frame[:12], frame[12:]
    ip_at = 18 if rest[12:14] in (b"\x81\0", b"\x88\xa8") else 14
    header, packet = rest[:ip_at], rest[ip_at:]
    if packet[0] >> 4 == 6:
        ip_header, body, protocol = packet[:40], packet[40:], packet[6]
        addresses = packet[8:40]
    else:
        assert fold(packet[:20]) == 0xFFFF
        ip_header, body, protocol = packet[:4] + packet[6:10] + packet[12:20], packet[20:], packet[9]
        addresses = packet[12:20]
    check_at = 16 if protocol == TCP else 6
    total = fold(addresses + struct.pack("!HH", protocol, len(body)))
    if partial:
        assert VNET.unpack(vnet)[:2] == (NEEDS_CSUM, 0)
        assert int.from_bytes(body[check_at : check_at + 2], "big") == total
    else:
        assert vnet[:2] == b"\0\0"
        assert fold(addresses + struct.pack("!HH", protocol, len(body)) + body + b"\0" * (len(body) & 1)) == 0xFFFF
    return header, ip_header, body[:check_at], body[check_at + 2 :]


@pytest.mark.parametrize("tags", [b"", tag(7), tag(7, SERVICE_VLAN)], ids=["plain", "tagged", "provider"])
@in_fresh_namespace
async def test_the_kernel_cuts_what_is_merged_into_what_it_was(tags: bytes) -> None:
    sysctl("ipv6/conf/default/disable_ipv6", 1)
    with ExitStack() as stack:
        fd, other = stack.enter_context(tap("tap0")), stack.enter_context(tap("tap1", offloads=0))
        ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        for name in ("tap0", "tap1"):
            ip("link", "set", name, "master", "br0")
        ip("link", "set", "br0", "up")
        for frames in (
            [udp(bytes([n]) * 1000) for n in range(65)],
            [udp6(bytes([n]) * 1000) for n in range(65)],
            stream(65),
            stream(65, ipv6=True, psh=9),
        ):
            inside = [behind_ethernet(one, tags=tags) for one in frames]
            view, spans = received(inside)
            super_packets = 0
            for span in spans:
                for run, parts in coalesce_block(view, span, ethernet=True) if span[2] > 1 else [([span], None)]:
                    if parts is None:
                        for start, stop, count in run:
                            assert count == 1
                            assert os.write(fd, view[start + 2 : stop]) == stop - start - 2
                    else:
                        super_packets += 1
                        assert os.writev(fd, parts) == sum(map(len, parts))
            assert super_packets
            arrived: list[bytes] = []
            while len(arrived) < len(inside):
                assert select.select([other], [], [], PATIENCE_S)[0], f"{len(arrived)} of {len(inside)} came"
                arrived += [one for one in drain(other) if one[12:24] == inside[0][14:26]]
            assert [meaning(one, partial=False) for one in arrived] == [
                meaning(one[2:], partial=True) for one in inside
            ]
