"""Response heads, alike under every split, to a GET and to a PUT. The first byte says to which."""

from __future__ import annotations

from typing import Final

from tapotun_trio.config.model import Url
from tapotun_trio.errors import PeerError
from tapotun_trio.http.client import check_status
from tapotun_trio.http.heads import ResponseHead, ResponseParser
from tapotun_trio.probe.identify import identify

from .feeding import arrivals, assert_printable

_URL: Final = Url("http", "h", 80, "/ip")

SEEDS: Final = [
    b"\0HTTP/1.1 200 OK\r\nx-tun-conf: 3AUYCgoAAg==\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\0\0\r\n",
    b"\1HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
    b"\0HTTP/1.0 200 OK\r\nx-tun-conf: 3AUYCgoAAg==\r\n\r\n",
    b"\0HTTP/1.1 301 Moved\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n",
    b"\0HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"\0\x15\x03\x01\0\x02\x02\x46",
    b"\1HTTP/1.1 204 \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
]


def check(data: bytes) -> None:
    if not data:
        return
    method = "PUT" if data[0] & 1 else "GET"
    readings = [_read(method, pieces) for pieces in arrivals(data[1:])]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"


def _read(method: str, pieces: list[bytes]) -> object:
    parser = ResponseParser(method)
    try:
        for n, piece in enumerate(pieces):
            done = parser.feed(piece) if piece else None
            if done is not None:
                head, rest = done
                head.body().span(bytearray(rest), 0, 0)
                _tell(head, rest, method)
                return head, rest + b"".join(pieces[n + 1 :])
        parser.feed(b"")
    except PeerError as exc:
        assert_printable(exc)
        return exc.reason
    raise AssertionError("the end of the connection is no answer")


def _tell(head: ResponseHead, body: bytes, method: str) -> None:
    assert identify(head.headers, list(head.headers), https=bool(body))
    try:
        check_status(head, _URL, body, method=method, served=True)
    except PeerError as exc:
        assert_printable(exc)
