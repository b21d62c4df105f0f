"""Request and response heads, parsed by h11. This adds what h11 leaves to its caller: limits, and strict framing.

Sans-IO. Untrusted input; raises PeerError only, `BadRequest` with the status to answer with.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import h11

from ..config.model import Secret
from ..errors import EndReason, PeerError
from ..wire.body import Body, ChunkedBody, CloseBody, LengthBody
from ..wire.proxyprotocol import version_of

MAX_HEAD_BYTES: Final = 16 * 1024
READ_BYTES: Final = 4096  # one receive, where heads and short bodies are read
# The first bytes of an alert and of a handshake (RFC 8446 section 5.1), which a TLS server answers to plain HTTP.
_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
REASONS: Final = {
    100: "Continue",
    101: "Switching Protocols",
    200: "OK",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


_UNEXPECTED: Final = (
    "a PROXY protocol header of version {} came first, which is not expected here; set proxy_protocol to true and name "
    "the proxy in trusted_proxies, or have the proxy send none"
)


class BadRequest(PeerError):
    """A malformed request. Attribute ``status``: the HTTP status to answer with."""

    def __init__(self, status: int, text: str, *, reason: EndReason = EndReason.BAD_REQUEST) -> None:
        super().__init__(text, reason=EndReason.SLOW_REQUEST if status == 408 else reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """``headers``: lowercase name to value; the values of a repeated name are joined by ``, ``."""

    method: str
    target: str
    version: str  # "1.0" or "1.1"
    headers: dict[str, str] = field(repr=False)  # one of the values is a token

    @property
    def expects_continue(self) -> bool:
        return self.version == "1.1" and self.headers.get("expect", "").lower() == "100-continue"

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send another request on this connection (RFC 9112 section 9.3)."""
        options = {option.strip() for option in self.headers.get("connection", "").lower().split(",")}
        return self.version == "1.1" and "close" not in options

    @property
    def asks_for_websocket(self) -> bool:
        """Whether this is a WebSocket handshake, even if a proxy removed its hop-by-hop half (``Upgrade``,
        ``Connection``)."""
        return self.method == "GET" and "sec-websocket-key" in self.headers

    @property
    def tokens(self) -> list[str]:
        """Possible tokens of the client: x-api-key, then ``Authorization: Bearer`` (RFC 6750 section 2.1)."""
        key, authorization = self.headers.get("x-api-key"), self.headers.get("authorization", "")
        scheme, _, bearer = authorization.partition(" ")
        found = [] if key is None else [key]
        return [*found, bearer.strip(" ")] if scheme.lower() == "bearer" and bearer.strip(" ") else found

    @property
    def has_body(self) -> bool:
        """Whether a body that is not empty follows the head."""
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0").strip("0") != ""

    def body(self) -> Body:
        """A decoder for the framing of the body (RFC 9112 section 6.3)."""
        if "transfer-encoding" in self.headers:
            return ChunkedBody()
        return LengthBody(int(self.headers.get("content-length", "0")))


@dataclass(frozen=True, slots=True)
class ResponseHead:
    status: int
    reason: str
    headers: dict[str, str]

    def body(self) -> Body:
        """A decoder for the framing of the body of this response to a GET."""
        if "transfer-encoding" in self.headers:
            return ChunkedBody()
        if "content-length" in self.headers:
            return LengthBody(int(self.headers["content-length"]))
        return CloseBody()


class RequestParser:
    """Parses one request head. Make a new one for each request."""

    __slots__ = ("_h11", "_held", "_raw")

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._raw = bytearray()
        self._held = False  # whether all bytes so far may be the beginning of a PROXY protocol header

    @property
    def started(self) -> bool:
        """Whether at least one byte was fed."""
        return bool(self._raw)

    def feed(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """The head and the bytes behind it; None: it is incomplete. Raises BadRequest."""
        named = bool(self._raw) and not self._held
        self._raw += data
        if not named:
            version = version_of(self._raw)
            if version:
                raise BadRequest(400, _UNEXPECTED.format(version), reason=EndReason.BAD_PROXY_HEADER)
            # h11 gets these bytes later, so that the error does not depend on how the bytes were split.
            self._held = version == 0
            if self._held:
                return None
            data = bytes(self._raw)
        try:
            self._h11.receive_data(data)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            # h11's text quotes the offending line, which may hold a token.
            raise BadRequest(exc.error_status_hint, "malformed request") from None
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request):
            raise BadRequest(400, "malformed request: no request line")
        rest = self._h11.trailing_data[0]
        raw = bytes(self._raw[: len(self._raw) - len(rest)])
        # h11 checks the limit only while a head is incomplete.
        if len(raw) > MAX_HEAD_BYTES:
            raise BadRequest(431, f"request head longer than {MAX_HEAD_BYTES} bytes")
        _refuse_smuggling(raw)
        head = RequestHead(
            method=event.method.decode("ascii"),
            target=event.target.decode("ascii"),
            version=_version(event.http_version),
            headers=_fold(event.headers),
        )
        _check_framing(head)
        if head.version not in ("1.0", "1.1"):
            raise BadRequest(505, "not HTTP/1.x")
        return head, rest


class ResponseParser:
    """Parses one final response head; interim (1xx) responses are skipped."""

    __slots__ = ("_begin", "_h11")

    def __init__(self, method: str) -> None:
        self._begin: bytes | None = b""  # the first bytes, while they may be TLS; None: they are not
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._h11.send(h11.Request(method=method, target="/", headers=[("host", "-")]))

    def feed(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """The head and the bytes behind it; None: it is incomplete. Empty ``data`` means that the server closed."""
        if not data:
            raise PeerError("the server closed the connection without an answer", reason=EndReason.CLOSED)
        if self._begin is not None:
            data = self._begin + data
            if data.startswith(_TLS_RECORDS):
                text = "the answer is TLS, not HTTP: this port speaks TLS; write https:// into the config"
                raise PeerError(text, reason=EndReason.TLS)
            # h11 rejects a single first byte of TLS, and the error must not depend on how the bytes were split.
            self._begin = data if any(record.startswith(data) for record in _TLS_RECORDS) else None
            if self._begin is not None:
                return None
        try:
            self._h11.receive_data(data)
            while True:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Response):
                    break
                if not isinstance(event, h11.InformationalResponse):
                    raise PeerError("the answer is not HTTP/1.1", reason=EndReason.BAD_RESPONSE)
        except h11.RemoteProtocolError as exc:
            raise PeerError(f"the answer is not HTTP/1.1: {exc}", reason=EndReason.BAD_RESPONSE) from exc
        head = ResponseHead(event.status_code, event.reason.decode("latin-1"), _fold(event.headers))
        if "transfer-encoding" in head.headers and "content-length" in head.headers:
            raise PeerError("the answer has both Transfer-Encoding and Content-Length", reason=EndReason.BAD_RESPONSE)
        return head, self._h11.trailing_data[0]


def _version(raw: bytes) -> str:
    """A later minor version counts as 1.1 (RFC 9110 section 2.5)."""
    return "1.1" if raw.startswith(b"1.") and raw != b"1.0" else raw.decode("ascii")


def _fold(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    folded: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        folded[key] = f"{folded[key]}, {text}" if key in folded else text
    return folded


def _refuse_smuggling(raw: bytes) -> None:
    """Refuse what h11 accepts and a proxy in front of us may parse differently (RFC 9112 sections 2.2 and 6.3)."""
    if raw.count(b"\n") != raw.count(b"\r\n"):
        raise BadRequest(400, "malformed request: a line ends in a bare LF")
    fields = [line.partition(b":") for line in raw.split(b"\r\n")[1:]]
    if any(name[:1] in (b" ", b"\t") for name, _, _ in fields):
        raise BadRequest(400, "malformed request: a folded header field")
    if any(b"," in value for name, _, value in fields if name.lower() == b"content-length"):
        raise BadRequest(400, "malformed request: a list as content-length")
    names = [name.lower() for name, _, _ in fields]
    for name in (b"content-length", b"transfer-encoding", b"host", b"x-api-key", b"authorization"):
        if names.count(name) > 1:
            raise BadRequest(400, f"malformed request: {name.decode()} is given twice")


def _check_framing(head: RequestHead) -> None:
    chunked = "transfer-encoding" in head.headers
    if chunked and "content-length" in head.headers:
        raise BadRequest(400, "malformed request: both Transfer-Encoding and Content-Length")
    if chunked and head.version != "1.1":
        raise BadRequest(400, "malformed request: Transfer-Encoding before HTTP/1.1")
    if head.method == "GET" and (chunked or head.headers.get("content-length", "0") != "0"):
        raise BadRequest(400, "malformed request: a GET with a body")


def encode_request(method: str, target: str, headers: list[tuple[str, str]]) -> bytes:
    """A request head. Raises ValueError (h11.LocalProtocolError) for values that no header can hold; the config was
    checked, so that is a bug of ours."""
    connection = h11.Connection(h11.CLIENT)
    # Encoded here, because h11 would encode text as ASCII.
    fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
    data = connection.send(h11.Request(method=method, target=target, headers=fields))
    assert data is not None
    return data


def basic(login: Secret) -> str:
    """The credentials of ``user:pass`` for Basic auth (RFC 7617). Each character of the login is one byte."""
    return f"Basic {base64.b64encode(login.reveal().encode('latin-1')).decode('ascii')}"


def encode_response(status: int, headers: list[tuple[str, str]]) -> bytes:
    """A response head, always HTTP/1.1, for a request of any version (RFC 9110 section 6.2)."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
