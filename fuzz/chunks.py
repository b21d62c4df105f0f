"""A chunked body, against h11's reading of the same bytes."""

from __future__ import annotations

import re
from typing import Final

import h11

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.body import LAST_CHUNK, MAX_LINE_BYTES, ChunkedBody, chunk_head

from .feeding import arrivals

SEEDS: Final = [
    chunk_head(5) + b"hello\r\n" + LAST_CHUNK,
    b"5;name=value\r\nhello\r\n0\r\ntrailer: x\r\n\r\nGET / HTTP/1.1\r\n",
    b"00a \t\r\n0123456789\r\n000\r\n\r\n",
    b"1\r\n\n\r\n0\r\nA: b\r\n c\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"1" + b";" * MAX_LINE_BYTES,
]
_HEAD: Final = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
# RFC 9112 section 7.1.1 lets white space stand before an extension; h11 does not.
_SPACE_BEFORE_EXTENSION: Final = re.compile(rb"(?:^|\n)[0-9A-Fa-f]+[ \t]+;")


def check(data: bytes) -> None:
    readings = [_ours(pieces) for pieces in arrivals(data)]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"
    ours = readings[0]
    if not data or ours is None or _SPACE_BEFORE_EXTENSION.search(data):
        return  # that we are stricter is our right
    theirs = _h11s(data)
    if theirs is None:
        assert not ours[1], "we accept what h11 refuses"  # unfinished: h11 may see it sooner than we do
    else:
        assert theirs == ours, "we and h11 read different things"


def _ours(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    """The payload, whether it ended, and what is behind it; None: malformed."""
    body, payload, rest = ChunkedBody(), bytearray(), b""
    try:
        for piece in pieces:
            buffer, pos = bytearray(b"<<" + piece + b"\r\n0\r\n"), 2  # stale bytes on both sides
            end = pos + len(piece)
            while True:
                start, stop = body.span(buffer, pos, end)
                assert pos <= start <= stop <= end
                payload += buffer[start:stop]
                pos = stop
                if start == stop:
                    break
            if body.ended:
                rest += buffer[pos:end]
    except PeerError:
        return None
    return bytes(payload), body.ended, rest


def _h11s(data: bytes) -> tuple[bytes, bool, bytes] | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    connection.receive_data(_HEAD)
    assert isinstance(connection.next_event(), h11.Request)
    payload = bytearray()
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                payload += event.data
            elif isinstance(event, h11.EndOfMessage):
                return bytes(payload), True, connection.trailing_data[0]
            else:
                return bytes(payload), False, b""
    except h11.RemoteProtocolError:
        return None
