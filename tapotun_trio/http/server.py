"""The server's side of one connection: request after request, each head within a deadline and a size limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from ..errors import EndReason, PeerError, is_peers_fault
from ..host.net.sockets import Connection
from ..wire.body import Body
from ..wire.websocket import WebSocketBody
from .heads import READ_BYTES, BadRequest, RequestHead, RequestParser, encode_response
from .writer import BodyWriter

if TYPE_CHECKING:
    from .websocket import WebSocketWriter

HEAD_S: Final = 10.0  # from a head's first byte to its last; for a new connection, from accept
IDLE_S: Final = 75.0  # between two requests: above the 60 s for which nginx keeps an upstream connection
BODY_S: Final = 10.0  # for a body that is read whole
ANSWER_S: Final = 30.0  # for an answer that is sent whole
LINGER_S: Final = 1.0  # how long a refused client may go on sending before its connection is closed
_LINGER_BYTES: Final = 256 * 1024
_FRAMING_BYTES: Final = 16 * 1024  # allowed in addition to a body: the size lines of its chunks


class Exchange:
    """One request and its answer.

    The handler calls exactly one of `refuse`, `start_download`, `accept_upload`, `accept_websocket` and `respond`; it
    may call `read_body` before `respond`. The connection serves a further request only if the handler returned with
    `reusable` set.

    Attributes:
        client: the client's address, for logs.
        encrypted: whether the client's connection uses TLS, for the status; None: not known.
        leftover: bytes that came behind the head and were not used yet.
        answered: at least a part of the final answer's head was sent, so no other answer is possible.
    """

    __slots__ = ("_body_read", "answered", "client", "connection", "encrypted", "head", "leftover", "reusable")

    def __init__(self, connection: Connection, head: RequestHead, leftover: bytes) -> None:
        self.connection = connection
        self.client = connection.name  # replaced by the X-Forwarded-For address once that is trusted
        self.encrypted: bool | None = None
        self.head = head
        self.leftover = leftover
        self.reusable = False
        self.answered = False
        self._body_read = not head.has_body

    async def refuse(self, status: int, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer with an error, instead of a 100 if the client expects one, and end the connection."""
        self.answered = True
        await refuse(self.connection, status, headers)

    async def fail(self, status: int = 500) -> None:
        """Answer with ``status`` if an answer is still possible, and end the connection. It is no error if the client
        does not wait for the answer."""
        self.reusable = False
        if not self.answered:
            with suppress(PeerError):
                await self.refuse(status)

    async def start_download(self, headers: list[tuple[str, str]]) -> BodyWriter:
        """Send a 200 with an endless body: chunked, or for HTTP/1.0 until the connection ends."""
        chunked = self.head.version == "1.1"
        framing = [("Transfer-Encoding", "chunked")] if chunked else []
        if not self.head.keeps_alive:
            framing.append(("Connection", "close"))
        data = encode_response(200, [*headers, *framing])
        self.answered = True
        try:
            await self.connection.send_all(data)
        except BaseException:
            if not chunked:  # a plain close would be the end of an empty body
                self.connection.abort()
            raise
        return BodyWriter(self.connection, chunked=chunked)

    async def accept_upload(self) -> Body:
        """Send a 100 if the client expects one, and return the decoder of the body, which was not read yet."""
        if self.head.expects_continue and not self.leftover:
            await self.connection.send_all(encode_response(100, []))
        return self.head.body()

    async def accept_websocket(self, headers: list[tuple[str, str]]) -> tuple[WebSocketWriter, WebSocketBody] | None:
        """Send a 101, and return the writer and the decoder of the WebSocket. Nothing behind the head was read yet.

        None: the handshake is incomplete, since a proxy removed half of it; a 426 was sent. Raises BadRequest, after
        answering it, if the handshake is malformed.
        """
        from .websocket import WebSocketWriter, accept_head  # the package `server` has loaded it

        try:
            answer = accept_head(self.head, headers)
        except BadRequest as exc:
            await self.refuse(exc.status)
            raise
        if answer is None:
            fields = ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")  # RFC 9110 section 15.5.22
            await self.refuse(426, headers=fields)
            return None
        self.answered = True
        await self.connection.send_all(answer)
        return WebSocketWriter(self.connection, masks=False), WebSocketBody(masked=True)

    async def read_body(self, limit_bytes: int) -> bytes:
        """The whole body, after a 100 if one is expected.

        Raises BadRequest: more than ``limit_bytes`` (known from a Content-Length before any of it is read), malformed,
        or incomplete after BODY_S; PeerError: the client closed the connection within the body.
        """
        too_long = BadRequest(413, f"a body of more than {limit_bytes} bytes")
        if int(self.head.headers.get("content-length", "0")) > limit_bytes:
            raise too_long
        body = await self.accept_upload()
        found, received_bytes = bytearray(), 0
        data, pos = bytearray(self.leftover), 0
        buffer = memoryview(bytearray(READ_BYTES))
        with trio.move_on_after(BODY_S):
            while True:
                while pos < len(data) and not body.ended:
                    try:
                        start, pos = body.span(data, pos, len(data))
                    except PeerError as exc:
                        raise BadRequest(400, f"malformed body: {exc}") from exc
                    found += data[start:pos]
                if len(found) > limit_bytes or received_bytes > limit_bytes + _FRAMING_BYTES:
                    raise too_long
                if body.ended:
                    self.leftover, self._body_read = bytes(data[pos:]), True
                    return bytes(found)
                received = await self.connection.receive(buffer)
                if received == 0:
                    raise PeerError("the client closed the connection within a body", reason=EndReason.CLOSED)
                received_bytes += received
                data, pos = bytearray(buffer[:received]), 0
        raise BadRequest(408, f"no complete body within {BODY_S:.0f} s")

    async def respond(
        self, status: int, headers: list[tuple[str, str]], body: bytes = b"", *, close: bool = False
    ) -> None:
        """Send a whole answer. Content-Length is added; the answer to a HEAD has no body.

        Sets `reusable`, unless ``close`` is set or a part of the request was not read. In these two cases the client
        gets a moment to finish sending, as with `refuse`. Raises PeerError if the client does not read the answer
        within ANSWER_S.
        """
        keep = self.head.keeps_alive and self._body_read and not close
        fields = [*headers] if status in (204, 304) else [*headers, ("Content-Length", str(len(body)))]
        if not keep:
            fields.append(("Connection", "close"))
        data = encode_response(status, fields)
        self.answered = True
        with trio.move_on_after(ANSWER_S) as deadline:
            await self.connection.send_all(data if self.head.method == "HEAD" else data + body)
        if deadline.cancelled_caught:
            self.connection.abort()
            raise PeerError(f"the client did not read the answer within {ANSWER_S:.0f} s", reason=EndReason.SLOW_READER)
        if not keep:
            with trio.move_on_after(LINGER_S):
                await _drain(self.connection)
        self.reusable = keep

    async def finish_upload(self, *, close: bool = False) -> None:
        """Answer 200 after the end of the body. Sets `reusable`, unless ``close`` is set."""
        self.reusable = self.head.keeps_alive and not close
        body = b"ok\n"
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        if not self.reusable:
            headers.append(("Connection", "close"))
        data = encode_response(200, headers) + body
        self.answered = True
        await self.connection.send_all(data)

    async def watch(self, writer: BodyWriter) -> None:
        """Read what a client sends while it downloads: nothing, or early requests, which are kept in `leftover`.

        Returns when READ_BYTES were kept, or when the client closes after the end of the download was sent. Raises
        PeerError when it closes before that. Cancel-safe.

        A client that ends only its sending half counts as gone, as it does for proxies (nginx:
        proxy_ignore_client_abort off). The FIN is the only sign of a client that was killed, and packets for it would
        be lost until a send fails. Deployed clients never end one half, and by RFC 9112 section 9.6 a client that wants
        no more closes the connection.
        """
        buffer = memoryview(bytearray(READ_BYTES))
        while len(self.leftover) < READ_BYTES:
            received = await self.connection.receive(buffer)
            if received == 0:
                if writer.finished:
                    return
                writer.mark_broken(EndReason.CLOSED)  # nobody would read what is written now
                raise PeerError("the client closed the connection", reason=EndReason.CLOSED)
            self.leftover += buffer[:received]


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]


async def serve_connection(connection: Connection, handler: Handler) -> None:
    """Serve requests until either side ends the connection; closes it on the way out.

    Raises PeerError for a request that is refused here, after answering it, and what the handler raises. If that is a
    bug, a 500 was sent unless an answer had begun.
    """
    try:
        leftover = b""
        idle_s = HEAD_S
        while True:
            try:
                read = await _read_head(connection, leftover, idle_s)
            except BadRequest as exc:
                await refuse(connection, exc.status)
                raise
            except PeerError:
                raise
            except Exception:
                with suppress(PeerError):
                    await refuse(connection, 500)
                raise
            if read is None:
                return
            exchange = Exchange(connection, *read)
            try:
                await handler(exchange)
            except Exception as exc:
                if not is_peers_fault(exc):
                    await exchange.fail()
                raise
            if not exchange.reusable:
                return
            leftover = exchange.leftover
            idle_s = IDLE_S
    finally:
        connection.close()


async def _read_head(connection: Connection, leftover: bytes, idle_s: float) -> tuple[RequestHead, bytes] | None:
    """The next head and the bytes behind it. None: the client closed or stayed idle between two requests."""
    parser = RequestParser()
    buffer = memoryview(bytearray(READ_BYTES))
    with trio.move_on_after(HEAD_S if leftover else idle_s) as deadline:
        data = leftover
        while True:
            done = parser.feed(data) if data else None
            if done is not None:
                return done
            received = await connection.receive(buffer)
            if received == 0:
                if parser.started:
                    raise PeerError("the client closed the connection within a request head", reason=EndReason.CLOSED)
                return None
            if not parser.started and idle_s > HEAD_S:
                deadline.deadline = trio.current_time() + HEAD_S
            data = bytes(buffer[:received])
    if parser.started:
        raise BadRequest(408, f"no complete request head within {HEAD_S:.0f} s")
    return None


async def refuse(connection: Connection, status: int, headers: tuple[tuple[str, str], ...] = ()) -> None:
    """Send a short answer, then give the client a moment to finish sending. A close with unread bytes in the receive
    buffer is a reset, which may destroy the answer on its way (RFC 9112 section 9.6)."""
    body = f"{status}\n".encode()
    fields = [
        *headers,
        ("Content-Type", "text/plain"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    with trio.move_on_after(LINGER_S):
        await connection.send_all(encode_response(status, fields) + body)
        await _drain(connection)


async def _drain(connection: Connection) -> None:
    """Read until the client closes, up to _LINGER_BYTES. The caller sets the deadline."""
    connection.shutdown_sending()
    buffer = memoryview(bytearray(READ_BYTES))
    drained = 0
    while drained < _LINGER_BYTES:
        received = await connection.receive(buffer)
        if received == 0:
            return
        drained += received
