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
)
from tapotun_trio.wire.vnet import validate_vnet_header

from .feeding import arrivals

_FRAME: Final = b"\x14\0" + bytes(12) + b"\x45" + bytes(19)
_ALL: Final = BASE_PING + _FRAME + encode_echo(1) + control.ping(2) + control.bye("x") + control.encode(99, b"?")

_CHUNKS: Final = [chunk_head(len(part)) + part + b"\r\n" for part in (_ALL[:50], _ALL[50:])]

SEEDS: Final = [
    b"\0" + _ALL,
    b"\1" + _ALL,
    b"\2" + b"".join([*_CHUNKS, LAST_CHUNK]),
    b"\3" + b"".join([*_CHUNKS, LAST_CHUNK, b"more"]),
    b"\5" + _FRAME * 7,
    b"\1" + control.CONTROL.pack(1, 1, control.MAX_PAYLOAD_BYTES) + bytes(100),
]


def check(data: bytes) -> None:
    if not data:
        return
    readings = [_read(data[0], pieces) for pieces in arrivals(data[1:])]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"


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
                for start, stop in each(reader.feed(received)):
                    frame = bytes(reader.view[start:stop])
                    assert len(frame) - HEADER_BYTES == int.from_bytes(frame[:2], "little") >= MIN_PACKET_BYTES
                    validate_vnet_header(memoryview(frame))
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
