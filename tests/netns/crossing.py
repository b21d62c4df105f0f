"""What `test_packets` and `test_packets_6` do alike, with sockets of either family: an address says of which."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

import pytest

from tests.harness import Host, Packet, capture, download, ping, tcp_echo, udp_echo, upload, wait_until

TCP, UDP = 6, 17
MTU: Final = 1500
# The heads of packets are enough where there are many: the kernel's room for a capture is cut into slots of a
# whole snapshot each.
HEADS: Final = 100
PATIENCE_S: Final = 10.0


def socket_to(host: Host, address: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """A socket of ``host``, of the family of ``address``, not connected. Close it yourself."""
    sock = host.socket(socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6, kind)
    sock.settimeout(PATIENCE_S)
    return sock


def send_segmented(source: Host, sink: Host, address: str) -> None:
    """UDP_SEGMENT: many datagrams by one call. A peer that cannot cut them gets them cut."""
    udp_segment, size, count = 103, 1000, 40  # linux/udp.h
    with socket_to(source, address) as sender, socket_to(sink, address) as receiver:
        receiver.bind((address, 0))
        sender.connect(receiver.getsockname())
        sender.setsockopt(socket.SOL_UDP, udp_segment, size)
        data = random.Random(2).randbytes(size * count)
        sender.send(data)
        assert b"".join(receiver.recv(65535) for _ in range(count)) == data


def converse(client: Host, server: Host, address: str) -> None:
    """Small words over TCP, each of which is answered before the next one."""
    with tcp_echo(server, address) as port, socket_to(client, address, socket.SOCK_STREAM) as sock:
        sock.connect((address, port))
        for number in range(400):
            word = b"%d " % number
            sock.sendall(word)
            assert sock.recv(len(word), socket.MSG_WAITALL) == word


def send_every_size(
    client: Host, server: Host, address: str, headers_bytes: int, length: Callable[[Packet], int], smallest: int
) -> None:
    """UDP payloads from ``smallest`` bytes to what fills the MTU, several under way at a time.

    ``headers_bytes``: of IP and UDP. ``length``: of a packet, by its own header.
    """
    noise, largest = random.Random(1).randbytes(MTU), MTU - headers_bytes
    with (
        udp_echo(server, address) as port,
        socket_to(client, address) as sock,
        capture(server, "tun0", f"udp and host {address}", snap_bytes=HEADS) as packets,
    ):
        sock.connect((address, port))
        for first in range(smallest, largest + 1, 16):
            sizes = range(first, min(first + 16, largest + 1))
            for size in sizes:
                sock.send(noise[:size])
            assert sorted(sock.recv(65535) for _ in sizes) == sorted(noise[:size] for size in sizes)
        packets.wait_for(2 * (largest + 1 - smallest))
    assert {length(packet) for packet in packets.packets} == set(range(headers_bytes + smallest, MTU + 1))


def send_in_fragments(client: Host, server: Host, address: str, sizes: Sequence[int]) -> None:
    """UDP datagrams larger than the MTU."""
    with udp_echo(server, address) as port, socket_to(client, address) as sock:
        sock.connect((address, port))
        for size in sizes:
            data = random.Random(size).randbytes(size)
            sock.send(data)
            assert sock.recv(65535) == data


def assert_port_unreachable(host: Host, address: str) -> None:
    """The error about a port where nobody listens comes back."""
    with socket_to(host, address) as sock:
        sock.connect((address, 9))
        sock.send(b"nobody listens")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


def transfer_both_ways(client: Host, server: Host, address: str) -> None:
    for move in (upload, download):
        move(client, server, address, 5_000_000)


def captured_behind(
    server: Host, source: str, third: Host, address: str, kinds: set[int], largest: int
) -> list[Packet]:
    """What arrives at ``third`` of a transfer, datagrams of up to ``largest`` bytes and a ping in fragments, as soon as
    all ``kinds`` of protocols are among it."""
    with capture(third, "eth0", f"src {source}", snap_bytes=2000) as packets:
        upload(server, third, address, 3_000_000)
        with udp_echo(third, address) as port, socket_to(server, address) as sock:
            for size in (0, 1, 2, 511, largest - 1, largest):
                sock.sendto(bytes(size), (address, port))
                assert len(sock.recv(65535)) == size
        assert ping(server, address, size=3000).ok
        wait_until(
            lambda: kinds <= {packet.protocol for packet in packets.packets}, PATIENCE_S, f"all protocols of {kinds}"
        )
        seen = packets.packets
    assert all(packet.length <= MTU for packet in seen)
    assert sum(packet.protocol == TCP for packet in seen) > 3_000_000 / MTU
    return seen


def compute_everything(host: Host, interface: str) -> None:
    """As ``ethtool -K IF tx off tso off gso off gro off``: what leaves is finished before it leaves.

    linux/ethtool.h: struct ethtool_value {u32 cmd, data}; linux/sockios.h: SIOCETHTOOL; struct ifreq has the
    interface's name and a pointer to it.
    """
    set_tx_checksum, set_tso, set_gso, set_gro = 0x17, 0x1F, 0x24, 0x2C
    with host.socket(kind=socket.SOCK_DGRAM) as sock:
        for command in (set_tx_checksum, set_tso, set_gso, set_gro):
            value = array("I", [command, 0])
            request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
            fcntl.ioctl(sock, 0x8946, request)


def internet_sum(data: bytes) -> int:
    """The one's complement sum of the data (RFC 1071); 0xFFFF if a checksum is in it, and right."""
    total = sum(memoryview(data + bytes(len(data) % 2)).cast("H"))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
