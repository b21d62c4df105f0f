"""A WebSocket's opening handshake, on both sides: the fields of a request as our server and the admin listener judge
them, and the answer as our client does. The first byte says which."""

from __future__ import annotations

from typing import Final
from unittest.mock import patch

from tapotun_trio.admin.access import Refused
from tapotun_trio.admin.live import handshake_of
from tapotun_trio.config.model import Url
from tapotun_trio.errors import PeerError
from tapotun_trio.http.heads import REASONS, BadRequest, RequestParser
from tapotun_trio.http.websocket import AnswerParser, accept_head, check_upgrade

from .feeding import arrivals, assert_printable

_URL: Final = Url("http", "h", 80, "/ip")
_NONCE: Final = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3, with its answer
_KEY: Final = b"Sec-WebSocket-Key: " + _NONCE
_ACCEPT: Final = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
_VERSION: Final = b"Sec-WebSocket-Version: 13"
_UPGRADE: Final = b"Upgrade: websocket"
_CONNECTION: Final = b"Connection: Upgrade"


def _request(*fields: bytes) -> bytes:
    return b"\r\n".join((b"\0GET /ip HTTP/1.1", b"Host: h", *fields, b"", b""))


def _answer(*fields: bytes, status: bytes = b"101 Switching Protocols") -> bytes:
    return b"\r\n".join((b"\1HTTP/1.1 " + status, *fields, b"", b""))


SEEDS: Final = [
    _request(_UPGRADE, _CONNECTION, _KEY, _VERSION),
    _request(_UPGRADE, b"Connection: \xff", _KEY, _VERSION),
    _request(b"Upgrade: \xffwebsocket", _CONNECTION, _KEY, _VERSION),
    _request(_UPGRADE, _CONNECTION, b"Connection:", _KEY, _VERSION),
    _request(_UPGRADE, b"Connection:", _CONNECTION, _KEY, _VERSION),
    _request(_UPGRADE, b"Upgrade:", _CONNECTION, _KEY, _VERSION),
    _request(_UPGRADE, _CONNECTION, _KEY, _VERSION, b"Sec-WebSocket-Version:"),
    _request(_UPGRADE, _CONNECTION, _KEY, b"Sec-WebSocket-Extensions: \xff", b"Sec-WebSocket-Protocol: \xff"),
    _answer(_UPGRADE, _CONNECTION, _ACCEPT, b"x-tun-conf: 3AUYCgoAAg==") + b"\x82\0",
    _answer(_UPGRADE, b"Connection: \xff", _ACCEPT),
    _answer(_UPGRADE, _CONNECTION, _ACCEPT, b"Sec-WebSocket-Protocol: \xff"),
    _answer(_UPGRADE, _CONNECTION, _ACCEPT, b"Sec-WebSocket-Extensions: \xff"),
    _answer(_UPGRADE, _CONNECTION, _ACCEPT, b"Sec-WebSocket-Extensions: permessage-deflate"),
    _answer(b"Content-Length: 4", status=b"403 Forbidden") + b"403\n",
    _answer(b"Transfer-Encoding: chunked", status=b"200 OK") + b"1\r\nx\r\n",
    _answer(status=b"100 Continue") + b"HTTP/1.1 426 Upgrade Required\r\n\r\n",
    _answer(status=b"999 \xff"),
]


def check(data: bytes) -> None:
    if data[:1] == b"\1":
        readings = [_read_answer(pieces) for pieces in arrivals(data[1:])]
        assert all(reading == readings[0] for reading in readings), "the split makes a difference"
    else:
        _judge_request(data[1:])


def _judge_request(data: bytes) -> None:
    try:
        done = RequestParser().feed(data)
    except BadRequest:
        return
    if done is None:
        return
    head, _ = done
    try:
        answer = accept_head(head, [("x-tun-conf", "AAAA")])
        assert answer is None or answer.startswith(b"HTTP/1.1 101 ")
    except BadRequest as exc:
        assert_printable(exc)
        check_status_has_words(exc.status)
    try:
        handshake_of(head)
    except (Refused, BadRequest) as exc:
        assert_printable(exc)


def check_status_has_words(status: int) -> None:
    assert status in REASONS, "no words for this status"


def _read_answer(pieces: list[bytes]) -> object:
    with patch("wsproto.handshake.generate_nonce", lambda: _NONCE):
        parser = AnswerParser(_URL, [("x-api-key", "t")])
    try:
        for n, piece in enumerate(pieces):
            done = parser.feed(piece) if piece else None
            if done is not None:
                head, rest = done
                check_upgrade(head, _URL, rest)
                return head, rest + b"".join(pieces[n + 1 :])
        parser.feed(b"")
    except PeerError as exc:
        assert_printable(exc)
        return exc.reason
    raise AssertionError("the end of the connection is no answer")
