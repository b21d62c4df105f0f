"""Ethernet frames of a TAP interface: their reader, and what becomes of them on the way into the device. The first byte
says how they come."""

from __future__ import annotations

import struct
from typing import Final

from tapotun_trio.datapath.gro_udp import FrameRun, coalesce, coalesce_block, find_runs
from tapotun_trio.datapath.tun_io import _finish_frames
from tapotun_trio.errors import PeerError
from tapotun_trio.wire import control
from tapotun_trio.wire.body import LAST_CHUNK, Body, ChunkedBody, CloseBody, LengthBody, chunk_head
from tapotun_trio.wire.ethernet import ip_header_at
from tapotun_trio.wire.frames import (
    BASE_PING,
    HEADER_BYTES,
    LENGTH_BYTES,
    MACS,
    MAX_PACKET_BYTES,
    MIN_ETHERNET_BYTES,
    FrameRange,
    FrameReader,
    Parts,
    each,
)
from tapotun_trio.wire.vnet import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, VNET_BYTES, validate_ethernet_vnet

from .feeding import arrivals

_MACS: Final = bytes(range(2, 14))


def _sum(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF or 0xFFFF


def _frame(packet: bytes, kind: int, tags: bytes = b"", vnet: bytes = bytes(VNET_BYTES)) -> bytes:
    whole = _MACS + tags + struct.pack("!H", kind) + packet
    return struct.pack("<H", len(whole)) + vnet + whole


def _udp(size: int, *, ipv6: bool, tags: bytes) -> bytes:
    """A packet that may be merged with others like it."""
    addresses = bytes(range(32)) if ipv6 else bytes((10, 0, 0, 1, 10, 0, 0, 2))
    below = 8 + size
    if ipv6:
        ip = struct.pack("!IHBB", 6 << 28, below, 17, 64) + addresses
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + below, 0, 0x4000, 64, 17, 0) + addresses
        ip = ip[:10] + struct.pack("!H", _sum(ip) ^ 0xFFFF) + ip[12:]
    pseudo = _sum(addresses + struct.pack("!HH", 17, below))
    packet = ip + struct.pack("!HHHH", 1, 9, below, pseudo) + bytes(size)
    vnet = struct.pack("<BBHHHHH", 1, 0, 0, 0, 14 + len(tags) + len(ip), 6, 0)
    return _frame(packet, 0x86DD if ipv6 else 0x0800, tags, vnet)


_TAG: Final = b"\x81\0\0\7"
_ARP: Final = _frame(bytes(28), 0x0806)
_TSO: Final = _frame(
    b"\x45" + bytes(8) + b"\6" + bytes(10) + bytes(12) + b"\x50" + bytes(60),
    0x0800,
    _TAG,
    struct.pack("<BBHHHHH", 1, 1, 58, 40, 38, 16, 0),
)
_TSO6: Final = _frame(
    b"\x60" + bytes(5) + b"\0" + bytes(33) + b"\6" + bytes(19) + b"\x50" + bytes(60),
    0x86DD,
    b"\x88\xa8\0\1" + _TAG,
    struct.pack("<BBHHHHH", 1, 4, 0, 40, 70, 16, 0),
)
_ALL: Final = _ARP + BASE_PING + _TSO + _TSO6 + _frame(b"", 0) + control.ping(2) + _frame(b"\x45", 0x8100)
_CHUNKS: Final = [chunk_head(len(part)) + part + b"\r\n" for part in (_ALL[:50], _ALL[50:])]

SEEDS: Final = [
    b"\0" + _ALL,
    b"\1" + _ALL,
    b"\3" + b"".join([*_CHUNKS, LAST_CHUNK, b"more"]),
    *(b"\1" + _udp(8, ipv6=ipv6, tags=tags) * 12 for ipv6 in (False, True) for tags in (b"", _TAG)),
    b"\0" + (_udp(9, ipv6=False, tags=b"") + _udp(9, ipv6=True, tags=_TAG)) * 14 + _ARP,
    b"\0\x0d\0" + bytes(80),
]


def check(data: bytes) -> None:
    if not data:
        return
    readings = [_read(data[0], pieces) for pieces in arrivals(data[1:])]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"
    _check_burst(data)


def _check_burst(data: bytes) -> None:
    """The same bytes, as if a device had brought them: each time as many as the next byte says."""
    lengths = [size if number % 16 else size * 300 for number, size in enumerate(data[:40])]
    view, at = memoryview(bytearray(sum(lengths) + LENGTH_BYTES * len(lengths))), 0
    for length in lengths:
        size = min(length, len(data))
        view[at + LENGTH_BYTES : at + LENGTH_BYTES + size] = data[:size]
        at += LENGTH_BYTES + length
    wanted = [one - VNET_BYTES for one in lengths if MIN_ETHERNET_BYTES <= one - VNET_BYTES <= MAX_PACKET_BYTES]
    spans = _finish_frames(view, lengths, ethernet=True)
    assert [stop - start - HEADER_BYTES for start, stop in each(spans)] == wanted
    assert [int.from_bytes(view[start : start + 2], "little") for start, _ in each(spans)] == wanted
    _check_writing(view, spans)


def _check_writing(view: memoryview, spans: list[FrameRange]) -> None:
    """Every frame is written once, and a flow keeps its order."""
    singles = [one for one in spans if one[2] == 1]
    runs: list[tuple[FrameRun, Parts | None]] = []
    for run in find_runs(view, singles, ethernet=True):
        assert run == sorted(run)
        runs.append((run, coalesce(view, run, ethernet=True) if len(run) > 1 else None))
    assert sorted(one for run, _ in runs for one in run) == singles
    for block in spans:
        if block[2] > 1:
            size = (block[1] - block[0]) // block[2]
            ip_at = ip_header_at(view, block[0], size)
            assert ip_at, "a block of what no switch may pass unseen"
            heads = {bytes(view[at : at + ip_at]) for at in range(block[0], block[1], size)}
            assert len(heads) == len({MACS.unpack_from(view, at) for at in range(block[0], block[1], size)}) == 1
            of_block = list(coalesce_block(view, block, ethernet=True))
            assert sorted(one for run, _ in of_block for one in each(run)) == list(each([block]))
            runs += of_block
    for run, parts in runs:
        if parts is not None:
            assert run == sorted(run)
            _check_super_packet(view, run, parts)


def _check_super_packet(view: memoryview, run: FrameRun, parts: Parts) -> None:
    whole = b"".join(parts)
    flags, gso_type, hdr_len, size, start, offset, _ = struct.unpack_from("<BBHHHHH", whole)
    first = run[0][0]
    assert flags == NEEDS_CSUM
    assert gso_type != GSO_NONE
    assert len(whole) - VNET_BYTES <= MAX_PACKET_BYTES
    ip_at = ip_header_at(view, first, (run[0][1] - first) // run[0][2])
    assert whole[VNET_BYTES : ip_at - LENGTH_BYTES] == view[first + HEADER_BYTES : first + ip_at]
    payloads = [bytes(view[at + HEADER_BYTES + hdr_len : end]) for at, end in each(run)]
    assert whole[VNET_BYTES + hdr_len :] == b"".join(payloads)
    assert {len(one) for one in payloads[:-1]} == {size}
    assert 0 < len(payloads[-1]) <= size
    if gso_type != GSO_UDP_L4:
        assert offset == 16
        assert validate_ethernet_vnet(memoryview(struct.pack("<H", len(whole) - VNET_BYTES) + whole))
    assert start + offset + 2 <= hdr_len


def _read(how: int, pieces: list[bytes]) -> object:
    bodies: list[Body] = [CloseBody(), ChunkedBody(), LengthBody(how * 3)]
    reader = FrameReader(bodies[(how >> 1) % len(bodies)], control=bool(how & 1), ethernet=True)
    frames: list[bytes] = []
    try:
        for piece in pieces:
            if reader.ended:
                break
            reader.space()[: len(piece)] = piece
            received: int | None = len(piece)
            while received is not None:
                spans = reader.feed(received)
                _check_writing(reader.view, spans)
                for start, stop in each(spans):
                    frame = bytes(reader.view[start:stop])
                    assert len(frame) - HEADER_BYTES == int.from_bytes(frame[:2], "little") >= MIN_ETHERNET_BYTES
                    validate_ethernet_vnet(memoryview(frame))
                    frames.append(frame)
                received = 0 if reader.pending else None
        if not reader.ended:
            reader.eof()
    except PeerError as exc:
        return exc.reason
    assert not reader.controls or how & 1
    return frames, reader.controls
