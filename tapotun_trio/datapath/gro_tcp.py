"""GRO for TCP: a block of segments, coalesced into super-packets for one write each into a TUN.

A super-packet has gso_type TCPV4. A router forwards such blocks if its network card does no GRO itself.

Only segments that are known to be intact are coalesced, because a damaged one must never be made to look intact. The IP
checksum must be right. The TCP checksum must be partial and right as such, or verified by the far kernel (DATA_VALID).
DF must be set, which means that the IDs are not needed. The headers must be the same, except that each sequence number
continues the one before. PSH ends a super-packet. `_gro.c` does the same for the plane.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from ..wire.frames import HEADER_BYTES, FrameRange, Parts
from ..wire.uniform import are_uniform
from ..wire.vnet import DATA_VALID, GSO_NONE, GSO_TCPV4, MIN_GSO_BYTES, NEEDS_CSUM
from .checksums import fold, ip_headers_are_valid

PROTOCOL_TCP: Final = 6
# Shorter runs are written segment by segment (measured for UDP: `gro_udp.MIN_BLOCK_RUN_FRAMES`).
_MIN_RUN_FRAMES: Final = 5
# 45 segments of 1,448 bytes fill a super-packet. Without this limit tiny segments could be more parts than writev(2)
# takes (IOV_MAX: 1,024).
_MAX_SEGMENTS: Final = 64
_MAX_PACKET_BYTES: Final = 65535
_IP_BYTES: Final = 20
_TCP_AT: Final = HEADER_BYTES + _IP_BYTES
_CSUM_OFFSET: Final = 16
_ACK, _PSH = 0x10, 0x08

# Columns (even offsets in a frame) that must be uniform, in addition to those that are uniform in every block: IP
# length and fragment field, and the TCP checksum if it is partial.
_COLUMNS: Final = (16, 20)
_CHECKSUM_COLUMN: Final = _TCP_AT + _CSUM_OFFSET

_VNET: Final = Struct("<HBB4xHH2x")
# version/IHL, length, fragment field, protocol; data offset and checksum of TCP.
_IP_TCP: Final = Struct(">BxH2xHxB22xB3xH")
_WORDS: Final = Struct(">10H")
# struct virtio_net_hdr_v1, whole: see `wire.vnet`.
_VNET_HEADER: Final = Struct("<BBHHHHH")


class _SegmentLayout(NamedTuple):
    """Where the segments of a block begin, and the size of each frame, of its IP and TCP headers and of its payload."""

    start: int
    size: int
    header_bytes: int
    payload_bytes: int


def coalesce_tcp_block(view: memoryview, block: FrameRange) -> Iterator[tuple[list[FrameRange], Parts | None]]:
    """Split a block of TCP segments into runs, in the order to write them, and coalesce each.

    A flow's segments keep their order. Untrusted input; never raises.

    Yields:
        A run, and the super-packet to write for it; None: write each frame by itself.
    """
    start, stop, count = block
    size = (stop - start) // count
    layout = _check_first(view, start, size)
    frames = view[start:stop]
    columns = (*_COLUMNS, _CHECKSUM_COLUMN) if view[start + 2] == NEEDS_CSUM else _COLUMNS
    if layout is None or not are_uniform(frames, size, columns) or not ip_headers_are_valid(frames, size):
        yield [block], None
        return
    for numbers in _find_runs(view, layout, count):
        run = [(start + number * size, start + (number + 1) * size, 1) for number in numbers]
        yield run, _coalesce(view, layout, run) if len(run) >= _MIN_RUN_FRAMES else None


def _check_first(view: memoryview, start: int, size: int) -> _SegmentLayout | None:
    """The layout of a block's first frame; None: its headers do not allow the block to be coalesced."""
    length, flags, gso_type, csum_start, csum_offset = _VNET.unpack_from(view, start)
    if size & 1 or size < _TCP_AT + 20:
        return None
    first, ip_length, fragment, protocol, offset, check = _IP_TCP.unpack_from(view, start + HEADER_BYTES)
    header_bytes = _IP_BYTES + (offset >> 4) * 4
    payload_bytes = size - HEADER_BYTES - header_bytes
    if not (first == 0x45 and protocol == PROTOCOL_TCP and fragment == 0x4000 and gso_type == GSO_NONE):
        return None
    if not (length == ip_length == size - HEADER_BYTES and header_bytes >= 40 and payload_bytes >= MIN_GSO_BYTES):
        return None
    if flags == NEEDS_CSUM:
        addresses = _WORDS.unpack_from(view, start + HEADER_BYTES)[6:10]
        if (csum_start, csum_offset) != (_IP_BYTES, _CSUM_OFFSET):
            return None
        if check != fold(sum(addresses) + PROTOCOL_TCP + length - _IP_BYTES):
            return None
    elif flags != DATA_VALID:
        return None
    return _SegmentLayout(start, size, header_bytes, payload_bytes)


def _find_runs(view: memoryview, layout: _SegmentLayout, count: int) -> list[list[int]]:
    """The runs, as numbers of frames, that may become one super-packet each."""
    max_segments = min(_MAX_SEGMENTS, (_MAX_PACKET_BYTES - layout.header_bytes) // layout.payload_bytes)
    payload_bytes, offset = layout.payload_bytes, (layout.header_bytes - _IP_BYTES) << 10
    unpack = _segment_struct(layout.size, layout.header_bytes).iter_unpack
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
def _segment_struct(size: int, header_bytes: int) -> Struct:
    """The TCP fields of a frame: ports as one number, sequence number, acknowledgment, data offset and flags, window,
    urgent pointer, options."""
    options = header_bytes - 40
    return Struct(f">{_TCP_AT}xIIIHH2xH{options}s{size - _TCP_AT - 20 - options}x")


def _coalesce(view: memoryview, layout: _SegmentLayout, run: list[FrameRange]) -> Parts:
    """The super-packet for a run, from the vnet header on."""
    first, last = run[0][0], run[-1][0]
    payload_at = HEADER_BYTES + layout.header_bytes
    length = layout.header_bytes + len(run) * layout.payload_bytes
    head = bytearray(view[first + 2 : first + payload_at])
    _VNET_HEADER.pack_into(
        head, 0, NEEDS_CSUM, GSO_TCPV4, layout.header_bytes, layout.payload_bytes, _IP_BYTES, _CSUM_OFFSET, 0
    )
    head[14:16] = length.to_bytes(2, "big")
    head[22:24] = b"\0\0"
    words = _WORDS.unpack_from(head, 12)
    head[22:24] = (fold(sum(words)) ^ 0xFFFF).to_bytes(2, "big")
    head[45] = view[last + _TCP_AT + 13]  # flags: the kernel sets PSH on the last segment if it is set here
    head[48:50] = fold(sum(words[6:10]) + PROTOCOL_TCP + length - _IP_BYTES).to_bytes(2, "big")
    return [bytes(head), *[view[at + payload_at : end] for at, end, _ in run]]
