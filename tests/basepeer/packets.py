"""Small, valid IPv4 packets for tests; checksums are right, so that a kernel takes them too."""

import ipaddress
import struct

from . import vnet
from .wire import Frame


def _ones_sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(src: str, dst: str, proto: int = 253, payload: bytes = b"") -> bytes:
    """A plain IPv4 packet. Protocol 253 is for experiments; no payload makes the 20-byte packet."""
    addresses = ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, proto, 0) + addresses
    check = ~_ones_sum(head) & 0xFFFF
    return head[:10] + struct.pack("!H", check) + head[12:] + payload


def udp(src: str, dst: str, payload: bytes, *, sport: int = 4000, dport: int = 4001) -> bytes:
    """A UDP datagram in one packet, with its checksum."""
    length = 8 + len(payload)
    datagram = struct.pack("!HHHH", sport, dport, length, 0) + payload
    addresses = ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed
    pseudo = addresses + struct.pack("!BBH", 0, 17, length)
    check = ~_ones_sum(pseudo + datagram) & 0xFFFF or 0xFFFF
    return ipv4(src, dst, 17, datagram[:6] + struct.pack("!H", check) + payload)


def tcp_super(src: str, dst: str, payload: bytes, *, gso_size: int = 1448) -> Frame:
    """A TCP super-packet with its partial checksum, as a TUN with TSO4 gives it."""
    segment = struct.pack("!HHIIBBHHH", 5000, 5001, 1, 1, 5 << 4, 0x18, 512, 0, 0)
    length = len(segment) + len(payload)
    addresses = ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed
    partial = _ones_sum(addresses + struct.pack("!BBH", 0, 6, length))
    segment = segment[:16] + struct.pack("!H", partial) + segment[18:]
    header = vnet.LAYOUT.pack(vnet.NEEDS_CSUM, vnet.GSO_TCPV4, 40, gso_size, 20, 16, 0)
    return Frame(ipv4(src, dst, 6, segment + payload), header)
