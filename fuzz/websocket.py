"""The frames of a WebSocket, against wsproto's reading of the same bytes."""

from __future__ import annotations

from typing import Final

from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.websocket import BINARY, CLOSE, NO_STATUS, PING, WebSocketBody, close_payload, frame

from .feeding import arrivals, assert_printable

_KEY: Final = b"\x37\xfa\x21\x3d"

# The first byte says which end reads.
SEEDS: Final = [
    b"\1" + frame(BINARY, b"hello", _KEY) + frame(CLOSE, close_payload(1001, "bye"), _KEY),
    b"\0" + frame(BINARY, b"hello") + frame(PING, b"?") + frame(CLOSE, b""),
    b"\1\x02\x83" + _KEY + b"abc\x89\x80" + _KEY + b"\x80\x81" + _KEY + b"d",
    b"\0\x82\x7e\x00\x7e" + bytes(126),
    b"\1\x82\xff\0\0\0\0\0\1\0\0" + _KEY,
]


def check(data: bytes) -> None:
    masked, data = bool(data[:1] > b"\x7f" or data[:1] == b"\1"), data[1:]
    readings = [_ours(pieces, masked=masked) for pieces in arrivals(data)]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"
    ours, theirs = readings[0], _wsprotos(data, masked=masked)
    if ours is None:
        # wsproto wants the whole of a head before it looks at it.
        assert theirs is None or _wsprotos(data + bytes(14), masked=masked) is None, "we refuse what wsproto accepts"
    elif theirs is None and ours[1] is None:
        # And we look at a length when the key behind it is there too.
        assert _ours([data + bytes(4)], masked=masked) is None, "we accept what wsproto refuses"
    elif ours[1] != 1014:  # in the registry, and not in wsproto
        assert ours == theirs, "we and wsproto read different things"


def _ours(pieces: list[bytes], *, masked: bool) -> tuple[bytes, int | None] | None:
    """The payload, and the code of the close if there was one; None: malformed."""
    body, payload = WebSocketBody(masked=masked), bytearray()
    try:
        for piece in pieces:
            buffer, pos = bytearray(b"<<" + piece + b"\x82\xfe\0"), 2  # stale bytes on both sides
            end = pos + len(piece)
            while True:
                start, stop = body.span(buffer, pos, end)
                assert pos <= start <= stop <= end
                payload += buffer[start:stop]
                pos = stop
                if start == stop and (pos == end or body.ended):
                    break
            assert body.ended or pos == end
            assert buffer.startswith(b"<<")
            assert buffer.endswith(b"\x82\xfe\0")
    except PeerError as exc:
        assert_printable(exc)
        return None
    assert body.ended or (body.code, body.reason) == (NO_STATUS, "")
    return bytes(payload), body.code if body.ended else None


def _wsprotos(data: bytes, *, masked: bool) -> tuple[bytes, int | None] | None:
    protocol, payload = FrameProtocol(not masked, []), bytearray()
    protocol.receive_bytes(data)
    try:
        for received in protocol.received_frames():
            if received.opcode is Opcode.CLOSE:
                assert isinstance(received.payload, tuple)
                return bytes(payload), int(received.payload[0])
            if received.opcode is Opcode.TEXT:
                return None
            if received.opcode is Opcode.BINARY:
                assert not isinstance(received.payload, str | tuple)
                payload += received.payload
    except ParseFailed:
        return None
    return bytes(payload), None
