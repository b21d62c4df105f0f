"""GRO for TCP: a block of segments, coalesced into super-packets for one write each into a TUN.

A super-packet has gso_type TCPV4 or TCPV6. A router forwards such blocks if its network card does no GRO itself.

Only segments that are known to be intact are coalesced, because a damaged one must never be made to look intact. The
IPv4 checksum must be right. The TCP checksum must be partial and right as such, or verified by the far kernel
(DATA_VALID). With IPv4, DF must be set, which means that the IDs are not needed. The headers must be the same, except
that each sequence number continues the one before. PSH ends a super-packet. `_gro.c` does the same for the plane.

Where the IP header begins in a frame is up to the caller: there may be an Ethernet header before it, the same in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from ..wire.frames import HEADER_BYTES, LENGTH_BYTES, FrameRange, Parts
from ..wire.uniform import are_uniform
from ..wire.vnet import DATA_VALID, GSO_NONE, GSO_TCPV4, GSO_TCPV6, MIN_GSO_BYTES, NEEDS_CSUM
from .checksums import fold, ip_headers_are_valid

PROTOCOL_TCP: Final = 6
# Shorter runs are written segment by segment (measured for UDP: `gro_udp.MIN_BLOCK_RUN_FRAMES`).
_MIN_RUN_FRAMES: Final = 5
# 45 segments of 1,448 bytes fill a super-packet. Without this limit tiny segments could be more parts than writev(2)
# takes (IOV_MAX: 1,024).
_MAX_SEGMENTS: Final = 64
_MAX_PACKET_BYTES: Final = 65535
_TCP_BYTES: Final = 20  # without options
_IPV4_BYTES: Final = 20
_IPV6_BYTES: Final = 40
_CSUM_OFFSET: Final = 16
_ACK, _PSH = 0x10, 0x08

# Columns of the IPv4 header that must be uniform, in addition to those that are uniform in every block. Of IPv6 the
# whole header is uniform. If the TCP checksum is partial, its column is another.
_LENGTH_AT, _FRAGMENT_AT = 2, 6

_VNET: Final = Struct("<HBB4xHH2x")
# version/IHL, length, fragment field, protocol.
_IP: Final = Struct(">BxH2xHxB")
_WORDS: Final = Struct(">10H")
# Payload length, next header.
_IPV6: Final = Struct(">4xHB")
_IPV6_WORDS: Final = Struct(">20H")
# Data offset and checksum of TCP.
_TCP: Final = Struct(">12xB3xH")
# struct virtio_net_hdr_v1, whole: see `wire.vnet`.
_VNET_HEADER: Final = Struct("<BBHHHHH")


class _SegmentLayout(NamedTuple):
    """Where the segments of a block begin, the size of each frame, where in a frame IP, TCP and the payload begin, and
    the sizes of the IP header and the payload."""

    start: int
    size: int
    ip_at: int
    tcp_at: int
    payload_at: int
    ip_bytes: int
    payload_bytes: int


def coalesce_tcp_block(
    view: memoryview, block: FrameRange, ip_at: int = HEADER_BYTES
) -> Iterator[tuple[list[FrameRange], Parts | None]]:
    """Split a block of TCP segments into runs, in the order to write them, and coalesce each.

    A flow's segments keep their order. ``ip_at``: where the IP header begins in each frame. Untrusted input; never
    raises.

    Yields:
        A run, and the super-packet to write for it; None: write each frame by itself.
    """
    start, stop, count = block
    size = (stop - start) // count
    layout = _check_first(view, start, size, ip_at)
    if layout is None or not _are_alike(view[start:stop], layout, partial=view[start + 2] == NEEDS_CSUM):
        yield [block], None
        return
    for numbers in _find_runs(view, layout, count):
        run = [(start + number * size, start + (number + 1) * size, 1) for number in numbers]
        yield run, _coalesce(view, layout, run) if len(run) >= _MIN_RUN_FRAMES else None


def _check_first(view: memoryview, start: int, size: int, ip_at: int) -> _SegmentLayout | None:
    """The layout of a block's first frame; None: its headers do not allow the block to be coalesced."""
    length, flags, gso_type, csum_start, csum_offset = _VNET.unpack_from(view, start)
    packet, packet_bytes = start + ip_at, size - ip_at
    is_ipv6 = view[packet] >> 4 == 6
    ip_bytes = _IPV6_BYTES if is_ipv6 else _IPV4_BYTES
    if size & 1 or packet_bytes < ip_bytes + _TCP_BYTES:
        return None
    if is_ipv6:
        ip_length, protocol = _IPV6.unpack_from(view, packet)
        is_plain = protocol == PROTOCOL_TCP and ip_length + _IPV6_BYTES == packet_bytes
    else:
        first, ip_length, fragment, protocol = _IP.unpack_from(view, packet)
        is_plain = first == 0x45 and protocol == PROTOCOL_TCP and fragment == 0x4000 and ip_length == packet_bytes
    offset, check = _TCP.unpack_from(view, packet + ip_bytes)
    tcp_at, tcp_bytes = ip_at + ip_bytes, (offset >> 4) * 4
    payload_at = tcp_at + tcp_bytes
    if not (is_plain and gso_type == GSO_NONE and length == size - HEADER_BYTES):
        return None
    if not (tcp_bytes >= _TCP_BYTES and size - payload_at >= MIN_GSO_BYTES):
        return None
    if flags == NEEDS_CSUM:
        if (csum_start, csum_offset) != (tcp_at - HEADER_BYTES, _CSUM_OFFSET):
            return None
        if check != _pseudo_checksum(view, packet, packet_bytes - ip_bytes):
            return None
    elif flags != DATA_VALID:
        return None
    return _SegmentLayout(start, size, ip_at, tcp_at, payload_at, ip_bytes, size - payload_at)


def _are_alike(frames: memoryview, layout: _SegmentLayout, *, partial: bool) -> bool:
    """Whether the IP headers of all frames are right, and do not differ in what a super-packet has only once.
    ``partial``: the TCP checksums are partial, so they must not differ either."""
    is_ipv6 = layout.ip_bytes == _IPV6_BYTES
    ip_at = layout.ip_at
    columns = () if is_ipv6 else (ip_at + _LENGTH_AT, ip_at + _FRAGMENT_AT)
    if partial:
        columns = (*columns, layout.tcp_at + _CSUM_OFFSET)
    return are_uniform(frames, layout.size, columns) and (is_ipv6 or ip_headers_are_valid(frames, layout.size, ip_at))


def _pseudo_checksum(packet: memoryview | bytearray, ip_at: int, tcp_bytes: int) -> int:
    """The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). ``ip_at``: where the packet begins."""
    if packet[ip_at] >> 4 == 6:
        addresses = _IPV6_WORDS.unpack_from(packet, ip_at)[4:]
    else:
        addresses = _WORDS.unpack_from(packet, ip_at)[6:]
    return fold(sum(addresses) + PROTOCOL_TCP + tcp_bytes)


def _find_runs(view: memoryview, layout: _SegmentLayout, count: int) -> list[list[int]]:
    """The runs, as numbers of frames, that may become one super-packet each."""
    payload_at, payload_bytes = layout.payload_at, layout.payload_bytes
    max_segments = min(_MAX_SEGMENTS, (_MAX_PACKET_BYTES - (payload_at - HEADER_BYTES)) // payload_bytes)
    offset = (payload_at - layout.tcp_at) << 10
    unpack = _segment_struct(layout.size, layout.tcp_at, payload_at).iter_unpack
    runs: list[list[int]] = []
    # Flow -> its newest run, the sequence number that comes next, and the header fields that must stay the same.
    open_runs: dict[int, tuple[list[int], int, tuple[int, int, int, bytes]]] = {}
    frames = view[layout.start : layout.start + count * layout.size]
    for number, (flow, sequence, ack, bits, window, urgent, options) in enumerate(unpack(frames)):
        same = ack, window, urgent, options
        newest = open_runs.get(flow)
        if newest is None or newest[1] != sequence or newest[2] != same or len(newest[0]) >= max_segments:
            run = [number]
            runs.append(run)
        else:
            run = newest[0]
            run.append(number)
        if bits == offset | _ACK:
            open_runs[flow] = run, (sequence + payload_bytes) & 0xFFFFFFFF, same
        else:
            open_runs.pop(flow, None)
            if bits != offset | _ACK | _PSH and len(run) > 1:  # SYN, FIN, RST and others are not coalesced
                run.pop()
                runs.append([number])
    return runs


@lru_cache(maxsize=64)
def _segment_struct(size: int, tcp_at: int, payload_at: int) -> Struct:
    """The TCP fields of a frame: ports as one number, sequence number, acknowledgment, data offset and flags, window,
    urgent pointer, options."""
    return Struct(f">{tcp_at}xIIIHH2xH{payload_at - tcp_at - _TCP_BYTES}s{size - payload_at}x")


def _coalesce(view: memoryview, layout: _SegmentLayout, run: list[FrameRange]) -> Parts:
    """The super-packet for a run, from the vnet header on."""
    first, last = run[0][0], run[-1][0]
    payload_at, ip_bytes = layout.payload_at, layout.ip_bytes
    packet_bytes = payload_at - layout.ip_at + len(run) * layout.payload_bytes
    head = bytearray(view[first + LENGTH_BYTES : first + payload_at])
    ip_at, tcp_at = layout.ip_at - LENGTH_BYTES, layout.tcp_at - LENGTH_BYTES
    is_ipv6 = ip_bytes == _IPV6_BYTES
    gso_type = GSO_TCPV6 if is_ipv6 else GSO_TCPV4
    hdr_len, csum_start = payload_at - HEADER_BYTES, layout.tcp_at - HEADER_BYTES
    _VNET_HEADER.pack_into(head, 0, NEEDS_CSUM, gso_type, hdr_len, layout.payload_bytes, csum_start, _CSUM_OFFSET, 0)
    if is_ipv6:
        head[ip_at + 4 : ip_at + 6] = (packet_bytes - ip_bytes).to_bytes(2, "big")
    else:
        head[ip_at + 2 : ip_at + 4] = packet_bytes.to_bytes(2, "big")
        head[ip_at + 10 : ip_at + 12] = b"\0\0"
        check = fold(sum(_WORDS.unpack_from(head, ip_at))) ^ 0xFFFF
        head[ip_at + 10 : ip_at + 12] = check.to_bytes(2, "big")
    # The flags: the kernel sets PSH on the last segment if it is set here.
    head[tcp_at + 13] = view[last + layout.tcp_at + 13]
    check_at = tcp_at + _CSUM_OFFSET
    head[check_at : check_at + 2] = _pseudo_checksum(head, ip_at, packet_bytes - ip_bytes).to_bytes(2, "big")
    return [bytes(head), *[view[at + payload_at : end] for at, end, _ in run]]
