"""A WebSocket, which replaces a GET and a PUT: the opening handshake of both sides, and the sending half of the stream.

wsproto, on which trio-websocket is built, makes and reads a client's handshake only, as h11 reads and writes heads.
`wire.websocket` does the rest. wsproto is imported where it is used, since most clients never need it, and its use
loads OpenSSL.
"""

from __future__ import annotations

import base64
import os
import re
from typing import Final

import h11

from ..config.model import Url
from ..digests import digest
from ..errors import EndReason, PeerError
from ..host.net.sockets import Connection
from ..text import one_line, shorten
from ..wire.websocket import BINARY, CLOSE, GOING_AWAY, KEY_BYTES, PONG, close_payload, frame, frame_head, mask
from .client import check_status
from .heads import MAX_HEAD_BYTES, READ_BYTES, REASONS, BadRequest, RequestHead, ResponseHead, encode_response
from .refusal import explain_400, is_own
from .writer import BodyWriter

KEY_HEADER: Final = "sec-websocket-key"
# Random bytes are fetched in batches: one system call a frame would cost as much as masking a small frame.
_POOL_BYTES: Final = 1024
_HEAD_END: Final = b"\r\n\r\n"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY: Final = re.compile(r"[0-9A-Za-z+/]{21}[AQgw]==")  # base64 of 16 bytes

# Statuses that are about the server or the token, and not about WebSockets; `check_status` explains them.
_PLAIN: Final = frozenset({401, 403, 409, 502, 503, 504})
REMEDY: Final = "nginx: proxy_set_header Upgrade $http_upgrade and proxy_set_header Connection upgrade"


class WebSocketWriter(BodyWriter):
    """Writes a body as binary messages, one for each piece, and ends it with a close.

    A client masks every byte with an unpredictable key for each frame (RFC 6455 section 10.3). Others choose what a
    tunnel carries, for example a script of a web page. Masked, it cannot look like HTTP to a proxy that does not
    understand WebSockets. Masking costs a copy and a pass over the bytes.

    Attributes:
        closing: the code and the reason of the close that `finish` sends.
    """

    __slots__ = ("_masks", "_pong", "_pool", "closing")

    @property
    def can_lend(self) -> bool:
        return False

    def __init__(self, connection: Connection, *, masks: bool) -> None:
        """``masks``: this end is the client."""
        super().__init__(connection)
        self.closing = GOING_AWAY, ""
        self._masks = masks
        self._pool = b""
        self._pong: bytes | None = None  # the payload of a pong that waits for pending bytes

    def pong(self, payload: bytes) -> None:
        """Answer a ping, as soon as nothing else is pending; this replaces an older answer that still waits. Raises
        PeerError if the connection is broken."""
        if not self.finished:
            self._pong = payload
            if not self.pending:
                self.flush()

    def flush(self) -> None:
        if self.pending:
            super().flush()
        if not self.pending and self._pong is not None and not self.finished:
            self.pending = memoryview(frame(PONG, self._pong, self._key()))
            self._pong = None
            super().flush()

    def _framed(self, piece: bytes | memoryview) -> list[bytes | memoryview]:
        key = self._key()
        head = frame_head(BINARY, len(piece), key)
        return [head, memoryview(mask(piece, key))] if key else [head, piece]

    def _end(self) -> list[bytes]:
        return [frame(CLOSE, close_payload(*self.closing), self._key())]

    def _key(self) -> bytes:
        if not self._masks:
            return b""
        if not self._pool:
            self._pool = os.urandom(_POOL_BYTES)
        key, self._pool = self._pool[:KEY_BYTES], self._pool[KEY_BYTES:]
        return key


class AnswerParser:
    """The client's side of a handshake, sans-IO: makes the request, and parses the answer up to the end of its head.

    Untrusted input; raises PeerError only.
    """

    __slots__ = ("_data", "_handshake", "_total", "request")

    def __init__(self, url: Url, headers: list[tuple[str, str]]) -> None:
        from wsproto.connection import ConnectionType
        from wsproto.events import Request
        from wsproto.handshake import H11Handshake

        self._handshake = H11Handshake(ConnectionType.CLIENT)
        extra = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        try:
            self.request = self._handshake.send(Request(host=url.host_header, target=url.target, extra_headers=extra))
        except UnicodeError as exc:
            # wsproto encodes host and port as one name, whose last label may be too long.
            raise PeerError(f"{url.authority} is too long for a WebSocket's handshake", reason=EndReason.DNS) from exc
        self._data, self._total = b"", 0

    def feed(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """The head of the final answer, of any status, and the bytes behind it; None: it is incomplete. Empty ``data``
        means that the server closed the connection."""
        if not data:
            raise PeerError("the server closed the connection without an answer", reason=EndReason.CLOSED)
        self._data += data
        # Head by head, since wsproto must not get the bytes behind the last one.
        while _HEAD_END in self._data:
            head, end, self._data = self._data.partition(_HEAD_END)
            self._total += len(head)
            self._require_short(self._total)
            answer = self._take(head + end)
            if answer is not None:
                return answer, self._data
        # Less what may be the beginning of its end: the limit must not depend on how the head is split.
        self._require_short(self._total + len(self._data) - (len(_HEAD_END) - 1))
        return None

    def _require_short(self, head_bytes: int) -> None:
        if head_bytes > MAX_HEAD_BYTES + READ_BYTES:
            raise PeerError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes", reason=EndReason.BAD_RESPONSE)

    def _take(self, head: bytes) -> ResponseHead | None:
        from wsproto.events import AcceptConnection, RejectConnection
        from wsproto.utilities import ProtocolError

        try:
            self._handshake.receive_data(head)
        except (ProtocolError, h11.ProtocolError, UnicodeError) as exc:  # found by fuzz/handshake.py
            text = one_line(shorten(str(exc), 100))
            raise PeerError(
                f"the answer to a WebSocket's handshake is wrong: {text}", reason=EndReason.BAD_RESPONSE
            ) from None
        for event in self._handshake.events():
            if isinstance(event, AcceptConnection):
                return ResponseHead(101, "Switching Protocols", _fold(event.extra_headers))
            if isinstance(event, RejectConnection) and event.status_code >= 200:
                status = event.status_code
                return ResponseHead(status, REASONS.get(status, ""), _fold(event.headers))
        return None


async def open_websocket(
    connection: Connection, url: Url, headers: list[tuple[str, str]]
) -> tuple[ResponseHead, bytes]:
    """Send the opening handshake, and return the head of the answer, of any status, and the bytes behind it.

    The caller sets the deadline. Raises PeerError: closed, not HTTP, or a 101 that does not answer this handshake.
    """
    parser = AnswerParser(url, headers)
    await connection.send_all(parser.request)
    buffer = memoryview(bytearray(READ_BYTES))
    while True:
        received = await connection.receive(buffer)
        answer = parser.feed(bytes(buffer[:received]))
        if answer is not None:
            return answer


def check_upgrade(head: ResponseHead, url: Url, body: bytes = b"") -> None:
    """Raise PeerError, with a remedy, unless the answer is a 101. ``body``: the beginning of its body."""
    if head.status == 101:
        return
    explained = head.status == 400 and explain_400(body) is not None
    if head.status in _PLAIN or explained or (is_own(head, body) and head.status != 426):
        check_status(head, url, body)
    text = f"{url.shown} answered {head.status} to a WebSocket: a proxy in front of the server blocks it, or the server"
    raise PeerError(
        f"{text} does not support it; have the proxy upgrade connections ({REMEDY})", reason=EndReason.NO_WEBSOCKET
    )


def accept_head(head: RequestHead, headers: list[tuple[str, str]]) -> bytes | None:
    """The head of the 101 that accepts this request; None: the handshake is incomplete (RFC 6455 section 4.2.1).

    Untrusted input; raises BadRequest only: a field of the handshake is malformed in a way that no proxy causes. It
    imports nothing: when the first WebSocket comes, no descriptor may be left to open a module with.
    """
    upgrade, connection, key, version = (
        head.headers.get(name, "") for name in ("upgrade", "connection", KEY_HEADER, "sec-websocket-version")
    )
    if head.version != "1.1" or not _KEY.fullmatch(key):  # RFC 9110 section 7.8
        return None
    if any(not value.isascii() or value != value.strip(" \t") for value in (upgrade, connection, version)):
        raise BadRequest(400, "malformed WebSocket handshake")  # or a list with an empty element at its end
    options = {option.strip() for option in connection.lower().split(",")}
    if upgrade.lower() != "websocket" or "upgrade" not in options or version != "13":
        return None
    answer = base64.b64encode(digest("sha1", key.encode("ascii") + _GUID)).decode("ascii")
    own = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", answer)]
    return encode_response(101, [*own, *headers])


def _fold(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("ascii").lower(): value.decode("latin-1") for name, value in headers}
