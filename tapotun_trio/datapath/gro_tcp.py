"""TCP segments of one flow, a block of them, merged into super-packets for one write each into a TUN (gso_type TCPV4):
what a router hands on whose network card does not do so itself.

Only segments whose checksum is partial and right as such, or of which the far kernel says that it was right
(DATA_VALID), whose IP checksum is right, and whose DF says that nobody needs their IDs: a damaged segment is never made
to look whole. Headers are the same but for the sequence number, which counts on; PSH ends a super-packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from ..wire.frames import HEADER_BYTES, FrameRange, Parts
from ..wire.uniform import are_uniform
from ..wire.vnet import DATA_VALID, GSO_NONE, GSO_TCPV4, MIN_GSO_BYTES, NEEDS_CSUM
from .checksums import fold, have_right_checksums

PROTOCOL_TCP: Final = 6
# Fewer are written one by one (measured as for UDP: `coalesce.BLOCK_MERGED_FROM`).
_MERGED_FROM: Final = 5
# Of 1,448 bytes 45 fill a super-packet. Of tiny ones there could be more than writev(2) takes parts (IOV_MAX: 1,024).
_MAX_SEGMENTS: Final = 64
_MAX_PACKET_BYTES: Final = 65535
_IP_BYTES: Final = 20
_TCP_AT: Final = HEADER_BYTES + _IP_BYTES
_CSUM_OFFSET: Final = 16
_ACK, _PSH = 0x10, 0x08

# Of a frame of a block, at which even offsets beside those that blocks have alike anyway segments are so that are to be
# merged: IP length, fragment field; and, where it is partial, the checksum.
_SAME: Final = (16, 20)
_CHECK_AT: Final = _TCP_AT + _CSUM_OFFSET

_VNET: Final = Struct("<HBB4xHH2x")
# version/IHL, length, fragment field, protocol; data offset and checksum of TCP.
_IP_TCP: Final = Struct(">BxH2xHxB22xB3xH")
_WORDS: Final = Struct(">10H")
_MERGED: Final = Struct("<BBHHHHH")


class _Segments(NamedTuple):
    """All segments of a block: where they begin, and how long the headers and the payload of each are."""

    start: int
    size: int
    header_bytes: int
    payload_bytes: int


def tcp_block_runs(view: memoryview, block: FrameRange) -> Iterator[tuple[list[FrameRange], Parts | None]]:
    """A block's frames in the order to write them, and what to write for them as one; None: each alone. A flow's
    segments keep their order. Untrusted input; never raises."""
    start, stop, count = block
    size = (stop - start) // count
    segments = _judge(view, start, size)
    frames = view[start:stop]
    same = (*_SAME, _CHECK_AT) if view[start + 2] == NEEDS_CSUM else _SAME
    if segments is None or not are_uniform(frames, size, same) or not have_right_checksums(frames, size):
        yield [block], None
        return
    for numbers in _runs(view, segments, count):
        spans = [(start + number * size, start + (number + 1) * size, 1) for number in numbers]
        yield spans, _coalesce(view, segments, spans) if len(spans) >= _MERGED_FROM else None


def _judge(view: memoryview, start: int, size: int) -> _Segments | None:
    """What the first frame is, if all of its block may be merged as far as its headers say."""
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
    return _Segments(start, size, header_bytes, payload_bytes)


def _runs(view: memoryview, segments: _Segments, count: int) -> Iterator[list[int]]:
    """The numbers of the frames that may become one super-packet each."""
    room = min(_MAX_SEGMENTS, (_MAX_PACKET_BYTES - segments.header_bytes) // segments.payload_bytes)
    payload_bytes, offset = segments.payload_bytes, (segments.header_bytes - _IP_BYTES) << 10
    unpack = _segment_struct(segments.size, segments.header_bytes).iter_unpack
    runs: list[list[int]] = []
    # Flow -> its newest run, and what its next segment must look like.
    opened: dict[int, tuple[list[int], int, tuple[int, int, int, bytes]]] = {}
    frames = view[segments.start : segments.start + count * segments.size]
    for number, (flow, sequence, ack, bits, window, urgent, options) in enumerate(unpack(frames)):
        like = ack, window, urgent, options
        found = opened.get(flow)
        if found is None or found[1] != sequence or found[2] != like or len(found[0]) >= room:
            run = [number]
            runs.append(run)
        else:
            run = found[0]
            run.append(number)
        if bits == offset | _ACK:
            opened[flow] = run, (sequence + payload_bytes) & 0xFFFFFFFF, like
        else:
            opened.pop(flow, None)
            if bits != offset | _ACK | _PSH and len(run) > 1:  # SYN, FIN, RST and the like stand for themselves
                run.pop()
                runs.append([number])
    yield from runs


@lru_cache(maxsize=64)
def _segment_struct(size: int, header_bytes: int) -> Struct:
    """Ports as one, sequence number, acknowledgment, data offset and flags, window, urgent pointer, options."""
    options = header_bytes - 40
    return Struct(f">{_TCP_AT}xIIIHH2xH{options}s{size - _TCP_AT - 20 - options}x")


def _coalesce(view: memoryview, segments: _Segments, spans: list[FrameRange]) -> Parts:
    first, last = spans[0][0], spans[-1][0]
    payload_at = HEADER_BYTES + segments.header_bytes
    length = segments.header_bytes + len(spans) * segments.payload_bytes
    head = bytearray(view[first + 2 : first + payload_at])
    _MERGED.pack_into(
        head, 0, NEEDS_CSUM, GSO_TCPV4, segments.header_bytes, segments.payload_bytes, _IP_BYTES, _CSUM_OFFSET, 0
    )
    head[14:16] = length.to_bytes(2, "big")
    head[22:24] = b"\0\0"
    words = _WORDS.unpack_from(head, 12)
    head[22:24] = (fold(sum(words)) ^ 0xFFFF).to_bytes(2, "big")
    head[45] = view[last + _TCP_AT + 13]  # flags: PSH of the last one is what the kernel gives the last one
    head[48:50] = fold(sum(words[6:10]) + PROTOCOL_TCP + length - _IP_BYTES).to_bytes(2, "big")
    return [bytes(head), *[view[at + payload_at : end] for at, end, _ in spans]]
