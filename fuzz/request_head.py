"""Request heads, alike under every split; one that is accepted has only one reading (the tests' own, strict one)."""

from __future__ import annotations

from typing import Final

from tapotun_trio.http.heads import REASONS, BadRequest, RequestHead, RequestParser
from tapotun_trio.server.session import ClientHello
from tapotun_trio.wire import control
from tests.basepeer.http1 import HttpError, parse_head

from .feeding import arrivals, assert_printable

SEEDS: Final = [
    b"GET /ip HTTP/1.1\r\nHost: h\r\nAccept: */*\r\nx-api-key:test\r\n\r\n",
    b"PUT /ip HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n2\r\n\0\0\r\n",
    b"PUT /ip HTTP/1.0\r\nContent-Length: 4\r\nConnection: close, x\r\n\r\n\0\0\0\0",
    b"GET / HTTP/1.1\r\nHost: h\r\nx-tun-features: ctl, uso\r\nx-tun-session: "
    + b"0a" * 16
    + b"\r\nx-tun-yield: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\nContent-Length: 0, 0\r\n\r\n",
    b"POST / HTTP/2.0\r\n\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
]


def check(data: bytes) -> None:
    readings = [_read(pieces) for pieces in arrivals(data)]
    assert all(reading == readings[0] for reading in readings), "the split makes a difference"
    reading = readings[0]
    if isinstance(reading, int):
        assert reading in REASONS, "no words for this status"
    elif reading is not None:
        head, rest = reading
        hello = ClientHello.of(head.headers)
        assert hello.features <= control.SUPPORTED
        head.body().span(bytearray(rest), 0, 0)
        _compare(head, data[: len(data) - len(rest)])


def _read(pieces: list[bytes]) -> tuple[RequestHead, bytes] | int | None:
    """The head and what is behind it; a status to refuse it with; None: it is not complete."""
    parser = RequestParser()
    try:
        for n, piece in enumerate(pieces):
            done = parser.feed(piece) if piece else None
            if done is not None:
                head, rest = done
                return head, rest + b"".join(pieces[n + 1 :])
    except BadRequest as exc:
        assert_printable(exc)
        return exc.status
    return None


def _compare(head: RequestHead, raw: bytes) -> None:
    try:
        strict = parse_head(raw.removesuffix(b"\r\n\r\n"))
        method, target, version = strict.request()
    except HttpError:
        return  # it wants ASCII and upper case, which HTTP does not ask for
    assert (method, target, version) == (head.method, head.target, head.version)
    for name in head.headers:
        assert ", ".join(strict.every(name)) == head.headers[name]
    assert {name for name, _ in strict.headers} == set(head.headers)
