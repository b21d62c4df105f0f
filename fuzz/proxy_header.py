"""The PROXY protocol's header of either version, alike under every split, and not a byte behind it is taken."""

from __future__ import annotations

from typing import Final

from tapotun_trio.errors import PeerError
from tapotun_trio.wire.proxyprotocol import (
    HEADER_BYTES,
    MAX_LINE_BYTES,
    MAX_REST_BYTES,
    SIGNATURE,
    ProxyHeaderParser,
)

from .feeding import arrivals, assert_printable

SEEDS: Final = [
    SIGNATURE + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1, 0x12, 0x67, 0x1F, 0x90]) + b"GET /",
    SIGNATURE + b"\x21\x21\0\x24" + bytes(36),
    SIGNATURE + b"\x20\0\0\0",
    SIGNATURE + b"\x21\x31\0\xd8" + bytes(216),
    SIGNATURE + b"\x21\x11\xff\xff",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 65535 0\r\nGET /",
    b"PROXY UNKNOWN\r\nGET /",
    b"PROXY UNKNOWN ffff::ffff 1 2 3\r\n",
]


def check(data: bytes) -> None:
    readings = [_read(pieces) for pieces in arrivals(data)]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"


def _read(pieces: list[bytes]) -> object:
    parser, taken = ProxyHeaderParser(), 0
    try:
        for piece in pieces:
            rest = piece
            while rest and parser.needed:
                now, rest = rest[: parser.needed], rest[parser.needed :]
                parser.feed(now)
                taken += len(now)
    except PeerError as exc:
        assert_printable(exc)
        return exc.reason
    assert taken <= (MAX_LINE_BYTES if pieces and pieces[0][:1] == b"P" else HEADER_BYTES + MAX_REST_BYTES)
    return taken, parser.needed, parser.source
