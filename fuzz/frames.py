"""Frames and control frames, chunked or not, agreed or not. The first byte says which."""

from __future__ import annotations

from typing import Final

from tapotun_trio.errors import PeerError
from tapotun_trio.wire import control
from tapotun_trio.wire.body import LAST_CHUNK, Body, ChunkedBody, CloseBody, LengthBody, chunk_head
from tapotun_trio.wire.frames import (
    BASE_PING,
    HEADER_BYTES,
    MIN_PACKET_BYTES,
    FrameReader,
    each,
    echoed_clock,
    encode_echo,
    flow_of,
)
from tapotun_trio.wire.vnet import validate_vnet_header

from .feeding import arrivals

_FRAME: Final = b"\x14\0" + bytes(12) + b"\x45" + bytes(19)
_FRAME6: Final = (
    b"\x3c\0" + bytes((1, 4, 60, 0, 0x78, 5, 40, 0, 16, 0, 0, 0)) + b"\x60" + bytes(5) + b"\x06\x40" + bytes(52)
)
_EXTENSIONS: Final = (
    b"\x4c\0"
    + bytes((1, 4, 0, 0, 8, 0, 56, 0, 16, 0, 0, 0))
    + b"\x60"
    + bytes(39)
    + b"\x3c\0"
    + bytes(6)
    + b"\x06"
    + bytes(27)
)
_ALL: Final = BASE_PING + _FRAME + encode_echo(1) + control.ping(2) + control.bye("x") + control.encode(99, b"?")

_CHUNKS: Final = [chunk_head(len(part)) + part + b"\r\n" for part in (_ALL[:50], _ALL[50:])]

SEEDS: Final = [
    b"\0" + _ALL,
    b"\1" + _ALL,
    b"\2" + b"".join([*_CHUNKS, LAST_CHUNK]),
    b"\3" + b"".join([*_CHUNKS, LAST_CHUNK, b"more"]),
    b"\5" + _FRAME * 7,
    b"\0" + _FRAME6 + _EXTENSIONS + b"\x14\0" + bytes(12) + b"\x60" + bytes(19),
    b"\0" + _FRAME6.replace(b"\1\4", b"\0\0") * 9,
    b"\1" + control.CONTROL.pack(1, 1, control.MAX_PAYLOAD_BYTES) + bytes(100),
]


def check(data: bytes) -> None:
    if not data:
        return
    readings = [_read(data[0], pieces) for pieces in arrivals(data[1:])]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"


def _check_block(frames: memoryview, count: int) -> None:
    """All frames of a block go the same way."""
    size = len(frames) // count
    flows = {flow_of(frames, at) for at in range(0, len(frames), size)}
    assert len(flows) == 1, "a block of several flows"


def _read(how: int, pieces: list[bytes]) -> object:
    bodies: list[Body] = [CloseBody(), ChunkedBody(), LengthBody(how * 3)]
    body = bodies[(how >> 1) % len(bodies)]
    reader = FrameReader(body, control=bool(how & 1))
    frames: list[bytes] = []
    try:
        for piece in pieces:
            if reader.ended:
                break
            reader.space()[: len(piece)] = piece
            received: int | None = len(piece)
            while received is not None:
                spans = reader.feed(received)
                for start, stop, count in spans:
                    _check_block(reader.view[start:stop], count)
                for start, stop in each(spans):
                    frame = bytes(reader.view[start:stop])
                    assert len(frame) - HEADER_BYTES == int.from_bytes(frame[:2], "little") >= MIN_PACKET_BYTES
                    validate_vnet_header(memoryview(frame))
                    flow = flow_of(memoryview(frame), 0)
                    assert flow is None or len(flow[1]) == {4: 8, 6: 32}[flow[0]]
                    if len(frame) == HEADER_BYTES + 48:
                        echoed_clock(memoryview(frame))
                    frames.append(frame)
                received = 0 if reader.pending else None
        if not reader.ended:
            reader.eof()
    except PeerError as exc:
        return exc.reason
    assert not reader.controls or how & 1
    for kind, payload in reader.controls:
        assert len(payload) <= control.MAX_PAYLOAD_BYTES
        assert control.bye_reason(payload).isprintable()
        if kind == control.PONG and len(payload) == 8:
            control.echoed_clock(payload)
    return frames, reader.controls
