"""Small UDP packets of one flow, merged into one super-packet for one write into a TUN (gso_type UDP_L4, Linux 6.2).

Only packets whose UDP checksum is still partial (NEEDS_CSUM) and right as such are merged, and whose IP checksum is
right: a damaged packet is never made to look whole. The kernel numbers the packets it cuts from the first one's id
on, so either ids count up already, or DF says that nobody needs them (RFC 6864).

A flow's packets keep their order. Flows may overtake each other, but no packet of any other kind, nor that them.
Blocks of TCP go to `merge_tcp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct
from typing import Final, TypeAlias

from ..wire.frames import HEADER_BYTES, FrameRange, Parts
from ..wire.uniform import are_uniform
from ..wire.vnet import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM
from .checksums import fold, have_right_checksums
from .gro_tcp import PROTOCOL_TCP, tcp_block_runs

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

# A run of fewer packets is written one by one: to build a super-packet costs as much as several writes save (measured,
# us a packet, merged against not: 10.3 and 4.9 for 2, 4.4 and 3.7 for 8, 2.0 and 3.2 for 64).
MERGED_FROM: Final = 12

# Of a block the payloads are had at once, so it pays earlier (measured for eight flows: 12 2.84, 6 2.49 us a packet).
BLOCK_MERGED_FROM: Final = 5

# Of a frame of a block, at which even offsets beside those that blocks have alike anyway the packets that are to be
# merged are so: IP length, fragment field, UDP length and checksum; and the ports, if it is a single flow.
_UDP_SAME: Final = (16, 20, 38, 40)
_PORTS: Final = (34, 36)
_FRAGMENT_AT: Final = 20
_PROTOCOL_AT: Final = 23
# Payloads longer than this are not copied: a view of each costs as much.
_COPIED_BYTES: Final = 256

FrameRun: TypeAlias = list[FrameRange]  # of single frames


def block_runs(view: memoryview, block: FrameRange) -> Iterator[tuple[list[FrameRange], Parts | None]]:
    """A block's frames in the order to write them, and what to write for them as one; None: each alone.

    Does for them what `find_runs` and `coalesce` do, for all at once. Measured, us a packet: 0.1 for one flow, 0.4 for
    eight. Untrusted input; never raises.
    """
    start, stop, count = block
    frames, size = view[start:stop], (stop - start) // count
    if view[start + _PROTOCOL_AT] == PROTOCOL_TCP:
        yield from tcp_block_runs(view, block)
        return
    if not _is_whole(view, start, start + size) or not are_uniform(frames, size, _UDP_SAME):
        yield [block], None
        return
    is_simple = not size & 1 and view[start + _FRAGMENT_AT] & 0x40
    flows = _flows(frames, size) if is_simple else []
    if len(flows) * BLOCK_MERGED_FROM > count:  # before the dearest look
        yield [block], None
        return
    if not is_simple or not have_right_checksums(frames, size):
        for run in find_runs(view, [(at, at + size, 1) for at in range(start, stop, size)]):
            yield run, coalesce(view, run) if len(run) >= MERGED_FROM else None
        return
    payload_bytes = size - _PAYLOAD_AT
    room = min(MAX_SEGMENTS, (_MAX_PACKET_BYTES - _HEADERS_BYTES) // payload_bytes)
    if not flows:
        for at in range(start, stop, room * size):
            end = min(at + room * size, stop)
            some = (end - at) // size
            parts = None
            if some >= BLOCK_MERGED_FROM:
                parts = [_head(view, at, payload_bytes, some * payload_bytes), *_payloads(view, at, size, some)]
            yield [(at, end, some)], parts
        return
    payloads = _payloads(view, start, size, count)
    for numbers in flows:
        for at in range(0, len(numbers), room):
            some_numbers = numbers[at : at + room]
            first = start + some_numbers[0] * size
            parts = None
            if len(some_numbers) >= BLOCK_MERGED_FROM:
                parts = [_head(view, first, payload_bytes, len(some_numbers) * payload_bytes)]
                parts += [payloads[number] for number in some_numbers]
            yield [(start + number * size, start + (number + 1) * size, 1) for number in some_numbers], parts


def _flows(frames: memoryview, size: int) -> list[list[int]]:
    """Which frames are of which flow, by their numbers; none: all are of one."""
    if are_uniform(frames, size, _PORTS):
        return []
    words, step = frames.cast("H"), size >> 1
    sources, destinations = (words[at >> 1 :: step].tolist() for at in _PORTS)
    flows: dict[tuple[int, int], list[int]] = {}
    for number, flow in enumerate(zip(sources, destinations, strict=True)):
        flows.setdefault(flow, []).append(number)
    return list(flows.values())


def _payloads(view: memoryview, start: int, size: int, count: int) -> Sequence[bytes | memoryview]:
    """Of so many UDP packets side by side."""
    if size - _PAYLOAD_AT > _COPIED_BYTES:
        return [view[at + _PAYLOAD_AT : at + size] for at in range(start, start + size * count, size)]
    payloads: tuple[bytes, ...] = _payload_struct(size, count).unpack_from(view, start)
    return payloads


@lru_cache(maxsize=64)
def _payload_struct(size: int, count: int) -> Struct:
    return Struct(f"{_PAYLOAD_AT}x{size - _PAYLOAD_AT}s" * count)


def find_runs(view: memoryview, frames: Sequence[FrameRange]) -> list[FrameRun]:
    """Single frames of one receive, in ``view``, in the order to write them: runs that `coalesce` may take,
    and single ones. Measured: 0.9 us a UDP packet, 0.2 another. Untrusted input; never raises."""
    runs: list[FrameRun] = []
    # Flow -> its newest run, and what its next frame must look like; cleared by whatever must not be overtaken.
    opened: dict[bytes, tuple[FrameRun, bytes, bytes, bytes, int, int, int]] = {}
    unpack = _PARTS.unpack_from
    for frame in frames:
        start, stop, _ = frame
        if stop - start <= _PAYLOAD_AT or view[start + _PROTOCOL_AT] != _PROTOCOL_UDP or view[start + 3] != GSO_NONE:
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


def coalesce(view: memoryview, run: FrameRun) -> Parts | None:
    """What to write as one for a run of at least two of `find_runs`, from the vnet header on; None: each alone.

    Untrusted input; never raises.
    """
    start, stop, _ = run[0]
    if not _is_whole(view, start, stop):
        return None
    size = stop - start - _PAYLOAD_AT
    last_at, last_stop, _ = run[-1]
    total = size * (len(run) - 1) + last_stop - last_at - _PAYLOAD_AT
    return [_head(view, start, size, total), *[view[at + _PAYLOAD_AT : end] for at, end, _ in run]]


def _head(view: memoryview, start: int, size: int, total: int) -> bytes:
    """vnet, IP and UDP header of a super-packet with a payload of ``total`` bytes, in packets of ``size`` of it, made
    from the headers of its first packet."""
    length = _HEADERS_BYTES + total
    head = bytearray(view[start + 2 : start + _PAYLOAD_AT])
    _MERGED.pack_into(head, 0, NEEDS_CSUM, GSO_UDP_L4, _HEADERS_BYTES, size, _CSUM_START, _CSUM_OFFSET, 0)
    head[_LENGTH_AT : _LENGTH_AT + 2] = length.to_bytes(2, "big")
    head[_CHECK_AT : _CHECK_AT + 2] = b"\0\0"
    words = _WORDS.unpack_from(head, 12)
    head[_CHECK_AT : _CHECK_AT + 2] = (fold(sum(words)) ^ 0xFFFF).to_bytes(2, "big")
    udp_length = length - 20
    head[_UDP_LENGTH_AT : _UDP_LENGTH_AT + 2] = udp_length.to_bytes(2, "big")
    pseudo = fold(sum(words[6:10]) + _PROTOCOL_UDP + udp_length)
    head[_UDP_LENGTH_AT + 2 : _UDP_LENGTH_AT + 4] = pseudo.to_bytes(2, "big")
    return bytes(head)


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
    if fold(sum(words)) != 0xFFFF or words[5] == 0xFFFF:
        return False
    return bool(udp_check == fold(sum(words[6:10]) + _PROTOCOL_UDP + udp_length))
