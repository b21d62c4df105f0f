"""IP packets for tests, made by hand."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address


def ipv4(source: str, destination: str, payload: bytes = b"", protocol: int = 253) -> bytes:
    """An IPv4 packet without options; protocol 253 is for experiments (RFC 3692). Checksum included."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        0,
        0,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(destination).packed,
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:] + payload


def ipv6(source: str, destination: str, payload: bytes = b"", next_header: int = 253, flow_label: int = 0) -> bytes:
    """An IPv6 packet; ``payload`` begins with the extension headers, if there are any."""
    head = struct.pack("!IHBB", 0x6000_0000 | flow_label, len(payload), next_header, 64)
    return head + IPv6Address(source).packed + IPv6Address(destination).packed + payload


def ip(source: str, destination: str, payload: bytes = b"", protocol: int = 253) -> bytes:
    """A packet of the family of its addresses."""
    return (ipv6 if ":" in source else ipv4)(source, destination, payload, protocol)


def frame(packet: bytes, vnet: bytes = bytes(12)) -> bytes:
    """A packet as it stands on the wire."""
    return struct.pack("<H", len(packet)) + vnet + packet
