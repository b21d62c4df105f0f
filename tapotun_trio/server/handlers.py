"""One GET and one PUT of a client, or one WebSocket in place of both, as its server serves them."""

from __future__ import annotations

import logging
from typing import Final

import trio

from .. import AGENT
from ..datapath.duplex import DuplexStream
from ..datapath.receiver import Receiver
from ..datapath.sender import break_off, breaking_off, ending_cleanly
from ..errors import EndReason, PeerError
from ..host.net.sockets import BASE_DEAD_S, DEAD_S, Connection
from ..http.heads import MAX_HEAD_BYTES
from ..http.server import Exchange
from ..http.writer import FINISH_S, BodyWriter
from ..wire import control
from ..wire.frames import FrameRange, FrameReader
from .session import ClientHello, Session

# For how long a newer upload lets the older one of the same session end first, so that packets keep their order.
HANDOVER_S: Final = 0.5

# A deployed client that leaves so soon after its download's answer has most likely exited, because of that.
HASTY_S: Final = 1.0

# What a client may send behind a body before it is answered. Nobody we know sends anything; each further request
# among it costs a pass over what is left of it.
MAX_PIPELINED_BYTES: Final = MAX_HEAD_BYTES

_DOWNLOAD_HEADERS: Final = (
    ("Content-Type", "application/octet-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx: pass the body on as it comes
)
_SHUTDOWN: Final = "the server is shutting down"


def is_of_another_session(session: Session, exchange: Exchange) -> bool:
    """The request belongs to a session that is over, or leaves the token to another machine that is there."""
    hello = ClientHello.of(exchange.head.headers)
    if exchange.head.method == "GET":
        return hello.yields and session.taken_by_another(hello)
    return hello.session_id is not None and not session.is_from_present(hello)  # its download tells the client more


async def serve_download(session: Session, exchange: Exchange) -> None:
    """Frames to the client until it goes, or a newer GET takes over. Raises PeerError, in a group.

    A deployed client's download ends cleanly only when its newer one takes over (`breaking_off` says why).
    """
    hello = ClientHello.of(exchange.head.headers)
    exchange.connection.presume_dead_after(DEAD_S if hello.extended else BASE_DEAD_S)
    headers = [*_DOWNLOAD_HEADERS, ("x-tun-conf", session.tun_conf)]
    if hello.features:
        headers += _extended_headers(hello)
    writer = await exchange.start_download(headers)
    began = trio.current_time()
    ending = ending_cleanly(writer, lambda: control.bye(_SHUTDOWN)) if hello.extended else breaking_off(writer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.watch, writer)
            async with ending:
                if hello.extended:
                    writer.send(control.encode(control.PARAMS, session.params))
                session.arrive(hello, exchange.client, "http")
                with session.downloading(exchange.connection):
                    await _download(session, hello, writer)
            nursery.cancel_scope.cancel()
    except* PeerError:
        if not hello.extended and trio.current_time() - began < HASTY_S:
            session.left_in_haste()
        raise
    exchange.reusable = exchange.head.keeps_alive and writer.finished


def _extended_headers(hello: ClientHello) -> list[tuple[str, str]]:
    """What only a client of ours is answered."""
    return [(control.FEATURES_HEADER, control.offer(hello.features)), (control.AGENT_HEADER, AGENT)]


async def _download(session: Session, hello: ClientHello, writer: BodyWriter) -> None:
    """Until the end of the body was sent, or all that is sent of it."""
    await session.sender.serve(writer)
    if session.let_go and not hello.extended:
        await break_off(writer, FINISH_S)
        return
    with trio.move_on_after(FINISH_S) as deadline:
        await writer.finish(_parting(session, hello))
    if deadline.cancelled_caught:
        raise PeerError("the client did not take the end of its older download", reason=EndReason.STALLED)


def _parting(session: Session, hello: ClientHello) -> bytes:
    """What a download says last that a newer one replaces, or that the operator ended."""
    if session.let_go:
        return control.bye(session.dismissed or "") if hello.extended else b""
    if not session.taken_by_another(hello):
        return b""
    text = "another machine uses this client's token; its newer session wins"
    session.takeovers.log(session.log, logging.WARNING, trio.current_time(), text)
    return control.bye(f"{control.REPLACED}another machine uses this token") if hello.extended else b""


async def serve_upload(session: Session, exchange: Exchange) -> None:
    """Frames from the client until its body ends. Raises PeerError, then without an answer: deployed clients take
    an answer that comes before the end for the end."""
    hello = ClientHello.of(exchange.head.headers)
    extended = session.is_from_present(hello)
    exchange.connection.presume_dead_after(BASE_DEAD_S if hello.session_id is None else DEAD_S)
    number = control.upload_number(exchange.head.headers.get(control.UPLOAD_HEADER))
    seen = control.upload_seen(number) if extended else None
    reader = FrameReader(await exchange.accept_upload(), control=extended)
    upload = _Upload(session, seen)
    receiver = upload.receiver(exchange.connection, reader)
    with session.uploading(receiver) as older, receiver.running():
        upload.older = older if extended else None
        await receiver.run(reader.prime(exchange.leftover))
    greedy = len(reader.leftover) > MAX_PIPELINED_BYTES
    await exchange.finish_upload(close=greedy)
    if greedy:
        raise PeerError(
            f"more than {MAX_PIPELINED_BYTES} bytes came behind an upload's end", reason=EndReason.PIPELINING
        )
    exchange.leftover = reader.leftover


async def serve_websocket(session: Session, exchange: Exchange) -> None:
    """Both at once, on a WebSocket, until the client goes, or a newer stream takes over. Raises PeerError, maybe in
    a group."""
    hello = ClientHello.of(exchange.head.headers)
    exchange.connection.presume_dead_after(DEAD_S)
    accepted = await exchange.accept_websocket([("x-tun-conf", session.tun_conf), *_extended_headers(hello)])
    if accepted is None:
        raise PeerError("something before us takes the Upgrade out of its requests", reason=EndReason.NO_WEBSOCKET)
    writer, body = accepted
    reader = FrameReader(body, control=True)
    writer.send(control.encode(control.PARAMS, session.params))
    session.arrive(hello, exchange.client, "websocket")
    duplex = DuplexStream(exchange.connection, writer, body, session.sender)

    async def receive() -> None:
        upload = _Upload(session)
        receiver = upload.receiver(exchange.connection, reader)
        with session.uploading(receiver) as upload.older, receiver.running():
            await duplex.receive(receiver, reader.prime(exchange.leftover))

    shutdown = _SHUTDOWN, lambda: control.bye(_SHUTDOWN)
    with session.downloading(exchange.connection):
        await duplex.run(receive, shutdown=shutdown, parting=lambda: _parting(session, hello))


class _Upload:
    """What an upload, or the receiving half of a WebSocket, brings to its session.

    Attributes:
        older: the upload before this one; its end is awaited before the first frame, so that packets keep their order.
    """

    def __init__(self, session: Session, seen: bytes | None = None) -> None:
        """``seen``: a control frame that tells the client that the first bytes came."""
        self._session = session
        self._seen = seen
        self.older: Receiver | None = None

    def receiver(self, connection: Connection, reader: FrameReader) -> Receiver:
        """A receiver that brings everything here."""
        return Receiver(connection, reader, self._deliver, self._on_control, self._session.sender.send_control)

    async def _deliver(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        if frames and self._seen is not None:
            self._acknowledge(self._seen)
        if frames and self.older is not None:
            with trio.move_on_after(HANDOVER_S):
                await self.older.ended.wait()
            self.older = None
        self._session.deliver(reader, frames)

    async def _on_control(self, kind: int, payload: bytes) -> None:
        if self._seen is not None:
            self._acknowledge(self._seen)
        self._session.on_control(kind, payload)

    def _acknowledge(self, seen: bytes) -> None:
        self._session.sender.send_control(seen)
        self._seen = None
