"""Small UDP packets of one flow, merged into one super-packet for one write into a TUN (gso_type UDP_L4, Linux 6.2).

Only packets whose UDP checksum is still partial (NEEDS_CSUM) and right as such are merged, and whose IP checksum is
right: a damaged packet is never made to look whole. The kernel numbers the packets it cuts from the first one's id
on, so either ids count up already, or DF says that nobody needs them (RFC 6864).

A flow's packets keep their order. Flows may overtake each other, but no packet of any other kind, nor that them.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, TypeAlias

from .frames import HEADER_BYTES
from .vnet import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM

# UDP_MAX_SEGMENTS of linux/udp.h before 6.9.
MAX_SEGMENTS: Final = 64
_MAX_PACKET_BYTES: Final = 65535
_HEADERS_BYTES: Final = 28  # IPv4 without options, UDP
_PAYLOAD_AT: Final = HEADER_BYTES + _HEADERS_BYTES
_PROTOCOL_UDP: Final = 17
_DF: Final = 0x4000
_CSUM_START: Final = 20
_CSUM_OFFSET: Final = 6

# A frame's beginning: all up to the IP length; id; flags, TTL and protocol; IP checksum; addresses and ports; the rest.
_PARTS: Final = Struct(">18sH4sH12s4s")
# Length (little-endian, as the vnet header is), flags, gso_type, csum_start, csum_offset.
_VNET: Final = Struct("<HBB4xHH2x")
# version/IHL, length, fragment field, protocol, UDP length and checksum.
_IP_UDP: Final = Struct(">BxH2xHxB14xHH")
_WORDS: Final = Struct(">10H")
_MERGED: Final = Struct("<BBHHHHH")
_LENGTH_AT, _CHECK_AT, _UDP_LENGTH_AT = 12 + 2, 12 + 10, 12 + 24

Frame: TypeAlias = tuple[int, int]
Run: TypeAlias = list[Frame]


def find_runs(view: memoryview, frames: Sequence[Frame]) -> list[Run]:
    """Frames of one receive, ``(start, stop)`` in ``view``, in the order to write them: runs that `merge` may take,
    and single ones. Measured: 0.9 us a UDP packet, 0.2 another. Untrusted input; never raises."""
    runs: list[Run] = []
    # Flow -> its newest run, and what its next frame must look like; cleared by whatever must not be overtaken.
    opened: dict[bytes, tuple[Run, bytes, bytes, bytes, int, int, int]] = {}
    unpack = _PARTS.unpack_from
    for frame in frames:
        start, stop = frame
        if stop - start <= _PAYLOAD_AT or view[start + 23] != _PROTOCOL_UDP or view[start + 3] != GSO_NONE:
            runs.append([frame])
            opened.clear()
            continue
        head, ident, middle, check, flow, rest = unpack(view, start)
        newest = opened.get(flow)
        if newest is not None:
            run, run_head, run_middle, run_rest, run_ident, run_sum, room = newest
            # The words of the IP header but for id and checksum are the first one's, so if that is right, this is.
            if (
                head == run_head
                and rest == run_rest
                and middle == run_middle
                and (ident + check) % 0xFFFF == run_sum
                and (middle[0] & 0x40 or ident == (run_ident + len(run)) & 0xFFFF)
                and check != 0xFFFF
                and len(run) < room
            ):
                run.append(frame)
                continue
            if (
                stop - start < run[0][1] - run[0][0]
                and head[2:16] == run_head[2:16]
                and middle == run_middle
                and (middle[0] & 0x40 or ident == (run_ident + len(run)) & 0xFFFF)
                and len(run) < MAX_SEGMENTS
                and len(run) * (run[0][1] - run[0][0] - _PAYLOAD_AT) + stop - start - _PAYLOAD_AT
                <= _MAX_PACKET_BYTES - _HEADERS_BYTES
                and _is_whole(view, start, stop)
            ):
                run.append(frame)  # a shorter one ends it
                del opened[flow]
                continue
        elif middle[:2] not in (b"\x40\0", b"\0\0"):
            runs.append([frame])  # a fragment
            opened.clear()
            continue
        run = [frame]
        runs.append(run)
        room = min(MAX_SEGMENTS, (_MAX_PACKET_BYTES - _HEADERS_BYTES) // (stop - start - _PAYLOAD_AT))
        opened[flow] = run, head, middle, rest, ident, (ident + check) % 0xFFFF, room
    return runs


def merge(view: memoryview, run: Run) -> list[bytes | memoryview] | None:
    """What to write as one for a run of at least two of `find_runs`, from the vnet header on; None: each alone.

    Untrusted input; never raises.
    """
    start, stop = run[0]
    if not _is_whole(view, start, stop):
        return None
    size = stop - start - _PAYLOAD_AT
    last_at, last_stop = run[-1]
    length = _HEADERS_BYTES + size * (len(run) - 1) + last_stop - last_at - _PAYLOAD_AT
    head = bytearray(view[start + 2 : start + _PAYLOAD_AT])
    _MERGED.pack_into(head, 0, NEEDS_CSUM, GSO_UDP_L4, _HEADERS_BYTES, size, _CSUM_START, _CSUM_OFFSET, 0)
    head[_LENGTH_AT : _LENGTH_AT + 2] = length.to_bytes(2, "big")
    head[_CHECK_AT : _CHECK_AT + 2] = b"\0\0"
    words = _WORDS.unpack_from(head, 12)
    head[_CHECK_AT : _CHECK_AT + 2] = (_fold(sum(words)) ^ 0xFFFF).to_bytes(2, "big")
    udp_length = length - 20
    head[_UDP_LENGTH_AT : _UDP_LENGTH_AT + 2] = udp_length.to_bytes(2, "big")
    pseudo = _fold(sum(words[6:10]) + _PROTOCOL_UDP + udp_length)
    head[_UDP_LENGTH_AT + 2 : _UDP_LENGTH_AT + 4] = pseudo.to_bytes(2, "big")
    parts: list[bytes | memoryview] = [bytes(head)]
    parts += [view[at + _PAYLOAD_AT : end] for at, end in run]
    return parts


def _is_whole(view: memoryview, start: int, stop: int) -> bool:
    """Whether this is a UDP packet as its sender's kernel made it, its checksum partial and every length its own."""
    length, flags, gso_type, csum_start, csum_offset = _VNET.unpack_from(view, start)
    first, ip_length, fragment, protocol, udp_length, udp_check = _IP_UDP.unpack_from(view, start + HEADER_BYTES)
    if (flags, gso_type, csum_start, csum_offset) != (NEEDS_CSUM, GSO_NONE, _CSUM_START, _CSUM_OFFSET):
        return False
    if not (first == 0x45 and protocol == _PROTOCOL_UDP and fragment & ~_DF == 0):
        return False
    if not (length == ip_length == udp_length + 20 == stop - start - HEADER_BYTES and length > _HEADERS_BYTES):
        return False
    words = _WORDS.unpack_from(view, start + HEADER_BYTES)
    if _fold(sum(words)) != 0xFFFF or words[5] == 0xFFFF:
        return False
    return bool(udp_check == _fold(sum(words[6:10]) + _PROTOCOL_UDP + udp_length))


def _fold(total: int) -> int:
    """RFC 1071's sum of 16-bit words, not inverted."""
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)
