"""An outgoing proxy's answer to CONNECT, alike under every split; nothing of the login in what is said of it."""

from __future__ import annotations

from typing import Final

from tapotun_trio.config.model import Proxy, Secret, Url
from tapotun_trio.errors import PeerError
from tapotun_trio.http.connect import ConnectParser

from .feeding import arrivals, assert_hidden, assert_printable

_URL: Final = Url("https", "h", 443, "/ip")
_PROXY: Final = Proxy("p", 3128, Secret("who:the-secret"))

SEEDS: Final = [
    b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03\x03",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n",
    b"HTTP/1.1 502 \x1b[31mBad\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"\x15\x03\x01\0\x02\x02\x46",
]


def check(data: bytes) -> None:
    readings = [_read(pieces) for pieces in arrivals(data)]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"


def _read(pieces: list[bytes]) -> object:
    parser = ConnectParser(_URL, _PROXY)
    try:
        for n, piece in enumerate(pieces):
            rest = parser.feed(piece) if piece else None
            if rest is not None:
                return rest + b"".join(pieces[n + 1 :])
        parser.feed(b"")
    except PeerError as exc:
        assert_printable(exc)
        assert_hidden("the-secret", exc)
        return exc.reason
    raise AssertionError("the end of the connection is no answer")
