"""The virtio header of a frame, judged as the kernel of a deployed peer judges it at its TUN.

Follows `tun_get_user` (drivers/net/tun.c) and `virtio_net_hdr_to_skb` (include/linux/virtio_net.h),
for IPv4 only and for the offloads that a base peer has: CSUM, TSO4, TSO6, TSO_ECN. Compared with the
TUN of a 6.18 kernel over random headers: everything that it refuses is refused here. This is stricter where
the kernel's leniency depends on its version: `hdr_len` up to two bytes too long, UFO, TCP super-packets
that are not TCP.
"""

import struct
from typing import Final

# flags:u8 gso_type:u8 hdr_len:u16 gso_size:u16 csum_start:u16 csum_offset:u16 num_buffers:u16
LAYOUT: Final = struct.Struct("<BBHHHHH")
SIZE: Final = LAYOUT.size
NONE: Final = bytes(SIZE)

NEEDS_CSUM: Final = 0x01
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80
GSO_BY_FRAGS: Final = 0xFFFF

_IPV4_BYTES: Final = 20
_TCP_BYTES: Final = 20
_TCP_CHECK_AT: Final = 16
_PROTO_TCP: Final = 6


def refusal(header: bytes, packet: bytes) -> str | None:
    """Why a deployed peer's kernel refuses this header for this IPv4 packet; None where it takes it.

    "nor a deployed server a frame with L 1-19 or a vnet header that its kernel refuses (it exits)";
    "Not USO: send a base peer no UDP-GSO frame".
    """
    flags, gso, hdr_len, gso_size, csum_start, csum_offset, _ = LAYOUT.unpack(header)
    kind = gso & ~GSO_ECN
    length = len(packet)
    if kind == GSO_UDP_L4:
        return "UDP-GSO frame (gso_type 5) for a base peer"
    if kind not in (0, GSO_TCPV4, GSO_TCPV6):
        return f"gso_type {gso:#04x} is not one of a base peer's offloads"
    if gso == GSO_ECN:
        return "ECN bit without a gso_type"
    if kind == GSO_TCPV6:
        return "gso_type TCPV6 on an IPv4 packet"
    if hdr_len > length:
        return f"hdr_len {hdr_len} is beyond the packet's {length} bytes"
    if kind and gso_size in (0, GSO_BY_FRAGS):
        return f"gso_type {gso:#04x} with gso_size {gso_size}"
    if flags & NEEDS_CSUM:
        return _partial_refusal(kind, csum_start, csum_offset, length)
    if kind:
        return _probed_refusal(packet)
    return None


def _partial_refusal(kind: int, start: int, offset: int, length: int) -> str | None:
    """The partial checksum's two bytes must lie in the packet, behind its IP header."""
    if start + offset + 2 > length:
        return f"csum_start {start} + csum_offset {offset} + 2 is beyond the packet's {length} bytes"
    if kind and start + _TCP_BYTES > length:
        return f"csum_start {start} leaves no room for a TCP header in {length} bytes"
    if start < _IPV4_BYTES:
        return f"csum_start {start} lies inside the IP header"
    if kind and offset != _TCP_CHECK_AT:
        return f"csum_offset {offset} is not a TCP checksum's in a TCP super-packet"
    return None


def _probed_refusal(packet: bytes) -> str | None:
    """Without a partial checksum the kernel looks for the TCP header itself."""
    head_bytes = (packet[0] & 0x0F) * 4
    if head_bytes < _IPV4_BYTES or packet[9] != _PROTO_TCP:
        return "TCP gso_type on a packet that is not TCP"
    if int.from_bytes(packet[6:8], "big") & 0x1FFF:
        return "TCP gso_type on a later fragment"
    if head_bytes + _TCP_BYTES > len(packet):
        return "TCP gso_type on a packet without a whole TCP header"
    return None
