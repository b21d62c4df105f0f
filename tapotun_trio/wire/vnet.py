"""``struct virtio_net_hdr_v1`` (linux/virtio_net.h), which precedes each packet of a TUN device with IFF_VNET_HDR.

::

    0       1          2           4           6            8             10             12
    +-------+----------+-----------+-----------+------------+-------------+--------------+
    | flags | gso_type | hdr_len16 | gso_size16| csum_start | csum_offset | num_buffers  |
    +-------+----------+-----------+-----------+------------+-------------+--------------+

Integers are little-endian. A *super-packet* has a gso_type: the kernel cuts it into packets of gso_size payload bytes.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from .ethernet import ETHERNET_BYTES, MAX_TAGS, TAG_BYTES, TAGS, TYPE_IPV4, TYPE_IPV6

VNET_BYTES: Final = 12

NEEDS_CSUM: Final = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM: the transport checksum is partial (of the pseudo-header)
DATA_VALID: Final = 2  # VIRTIO_NET_HDR_F_DATA_VALID: the transport checksum was verified

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

# TCP_MIN_GSO_SIZE of include/net/tcp.h: the smallest MSS that Linux sends with (TCP_MIN_SND_MSS, 48) less the longest
# TCP options (40).
MIN_GSO_BYTES: Final = 8
# The most packets that the receiving kernel may cut one frame into. A sender on the path with the smallest MTU for
# which Linux makes super-packets (MTU 88, so MSS 48, less 12 of timestamps) fills 64 KiB with 1,820. Without a limit it
# would be 65,495.
MAX_SEGMENTS: Final = 2048

_GSO_BY_FRAGS: Final = 0xFFFF  # linux/skbuff.h: the kernel's own use of gso_size
_MAX_CSUM_START: Final = 0x7FFF  # skb_partial_csum_set adds the headroom, and the sum must fit into 16 bits
_IPPROTO_TCP: Final = 6
_TCP_HEADER_BYTES: Final = 20
_PACKET_AT: Final = 2 + VNET_BYTES

# The length field, the header, and the first bytes of an IPv4 packet: version/IHL and protocol.
_FRAME: Final = Struct("<HBBHHHH2xB8xB")

_IPV4_BYTES: Final = 20
_IPV6_BYTES: Final = 40
# The extension headers that may precede TCP in a super-packet: hop-by-hop options, routing, destination options. Linux
# cuts packets behind these only (INET6_PROTO_GSO_EXTHDR). Each begins with next header and length (RFC 8200 section 4).
_EXTENSIONS: Final = frozenset({0, 43, 60})


def is_bounded(packet_bytes: int, gso_size: int) -> bool:
    """Whether the number of packets that a super-packet is cut into is one that an honest kernel may have intended."""
    return gso_size >= MIN_GSO_BYTES and packet_bytes <= gso_size * MAX_SEGMENTS


def validate_vnet_header(frame: memoryview) -> bool:
    """Whether a deployed peer's kernel accepts this frame.

    ``frame``: a frame from its length field on, at least 34 bytes, with a packet of IPv4 or IPv6.

    Untrusted input; never raises.

    A deployed peer exits if its kernel refuses a header, so a frame from one client is checked before it is
    forwarded to another. Follows virtio_net_hdr_to_skb (linux/virtio_net.h) and tun_get_user
    (drivers/net/tun.c), and is stricter where they only guess: a super-packet must be TCP over the packet's version of
    IP, with a partial checksum at the offset of TCP's.
    """
    length, flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, first, protocol = _FRAME.unpack_from(frame)
    if flags & ~(NEEDS_CSUM | DATA_VALID) or hdr_len > length:
        return False
    if first >> 4 == 6:
        return _validate_ipv6(frame, length, flags, gso_type, gso_size, csum_start, csum_offset)
    ip_header = (first & 0xF) * 4
    # In a tunnelled packet the checksum is that of the inner packet, so csum_start may be far behind the IP header.
    starts_well = 20 <= ip_header <= csum_start <= _MAX_CSUM_START
    if flags & NEEDS_CSUM and not (starts_well and csum_start + csum_offset + 2 <= length):
        return False
    if gso_type == GSO_NONE:
        return True
    return bool(
        gso_type & ~GSO_ECN == GSO_TCPV4
        and gso_size < _GSO_BY_FRAGS
        and is_bounded(length, gso_size)
        and flags & NEEDS_CSUM
        and protocol == _IPPROTO_TCP
        and csum_start == ip_header
        and csum_offset == 16
        and length >= ip_header + _TCP_HEADER_BYTES
    )


def _validate_ipv6(
    frame: memoryview, length: int, flags: int, gso_type: int, gso_size: int, csum_start: int, csum_offset: int
) -> bool:
    """The rest of `validate_vnet_header` for an IPv6 frame."""
    starts_well = _IPV6_BYTES <= csum_start <= _MAX_CSUM_START
    if flags & NEEDS_CSUM and not (starts_well and csum_start + csum_offset + 2 <= length):
        return False
    if gso_type == GSO_NONE:
        return True
    return bool(
        gso_type & ~GSO_ECN == GSO_TCPV6
        and gso_size < _GSO_BY_FRAGS
        and is_bounded(length, gso_size)
        and flags & NEEDS_CSUM
        and csum_offset == 16
        and csum_start + _TCP_HEADER_BYTES <= min(length, len(frame) - _PACKET_AT)
        and _is_tcp_at(frame, csum_start)
    )


def validate_ethernet_vnet(frame: memoryview) -> bool:
    """The same as `validate_vnet_header` for an Ethernet frame, whose offsets count from the Ethernet header.

    ``frame``: a frame from its length field on, at least 28 bytes. It may be a block.

    Untrusted input; never raises.

    A partial checksum must be behind the headers that the frame has up to there: the Ethernet header, up to two tags,
    and the IP header, or as much as IPv4's in a frame of something else. For TAP the kernel itself demands less of
    csum_start, and one thing more: no header ends within the Ethernet header (hdr_len, drivers/net/tun.c).
    """
    length, flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _, _ = _FRAME.unpack_from(frame)
    if flags & ~(NEEDS_CSUM | DATA_VALID) or not ETHERNET_BYTES <= length <= len(frame) - _PACKET_AT:
        return False
    if hdr_len and not ETHERNET_BYTES <= hdr_len <= length:
        return False
    if not flags & NEEDS_CSUM:
        return bool(gso_type == GSO_NONE)  # a super-packet has no complete checksum
    if csum_start > _MAX_CSUM_START or csum_start + csum_offset + 2 > length:
        return False
    at, kind = ETHERNET_BYTES, frame[_PACKET_AT + 12] << 8 | frame[_PACKET_AT + 13]
    while kind in TAGS and at < ETHERNET_BYTES + MAX_TAGS * TAG_BYTES and at + TAG_BYTES <= csum_start:
        at += TAG_BYTES
        kind = frame[_PACKET_AT + at - 2] << 8 | frame[_PACKET_AT + at - 1]
    if csum_start < at + _IPV4_BYTES:
        return False
    ip_at, ip_header = _PACKET_AT + at, _IPV4_BYTES
    if kind == TYPE_IPV4:
        ip_header = (frame[ip_at] & 0xF) * 4
    elif kind == TYPE_IPV6:
        ip_header = _IPV6_BYTES
    if not _IPV4_BYTES <= ip_header <= csum_start - at:
        return False
    if gso_type == GSO_NONE:
        return True
    if not (
        gso_size < _GSO_BY_FRAGS
        and is_bounded(length, gso_size)
        and csum_offset == 16
        and csum_start + _TCP_HEADER_BYTES <= length
    ):
        return False
    version = frame[ip_at] >> 4
    if gso_type & ~GSO_ECN == GSO_TCPV4:
        is_tcp = frame[ip_at + 9] == _IPPROTO_TCP and csum_start == at + ip_header
        return bool(kind == TYPE_IPV4 and version == 4 and is_tcp)
    is_ipv6 = gso_type & ~GSO_ECN == GSO_TCPV6 and kind == TYPE_IPV6 and version == 6
    return bool(is_ipv6 and _is_tcp_at(frame, csum_start - at, ip_at))


def _is_tcp_at(frame: memoryview, tcp_at: int, packet_at: int = _PACKET_AT) -> bool:
    """Whether the headers of an IPv6 packet lead to TCP at this offset of the packet, within which they lie.
    ``packet_at``: where in the frame the packet begins."""
    at, header = _IPV6_BYTES, frame[packet_at + 6]
    while at < tcp_at and header in _EXTENSIONS:
        start = packet_at + at
        header, units = frame[start], frame[start + 1]
        at += 8 * (units + 1)
    return at == tcp_at and header == _IPPROTO_TCP
