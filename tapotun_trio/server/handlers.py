"""How a server serves one GET, one PUT, or one WebSocket, which replaces both."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from .. import AGENT
from ..datapath.duplex import DuplexStream
from ..datapath.plane import DeliverNow, Lane
from ..datapath.receiver import Receiver
from ..datapath.sender import break_off, breaking_off, ending_cleanly, shutdown_frame
from ..errors import EndReason, PeerError
from ..host.net.sockets import BASE_DEAD_S, DEAD_S, Connection
from ..http.heads import MAX_HEAD_BYTES
from ..http.server import Exchange
from ..http.writer import FINISH_S, BodyWriter
from ..wire import control
from ..wire.frames import FrameRange, FrameReader
from .session import ClientHello, ClientParameters, PreviousParameters, Session

# How long a newer upload waits for the end of the older one of the same session, so that packets keep their order.
HANDOVER_S: Final = 0.5

# A deployed client that leaves this soon after the answer to its download has most likely exited because of it.
EARLY_EXIT_S: Final = 1.0

# How much a client may send after a body, before the answer. No known client sends anything. Each further request in
# these bytes costs a pass over the rest of them.
MAX_PIPELINED_BYTES: Final = MAX_HEAD_BYTES

_DOWNLOAD_HEADERS: Final = (
    ("Content-Type", "application/octet-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx: do not buffer the body
)
_SHUTDOWN: Final = "the server is shutting down"


def is_of_another_session(session: Session, exchange: Exchange) -> bool:
    """Whether the request belongs to a session that is over, or it yields (x-tun-yield) and another machine uses the
    token. An upload whose frames carry something else than this interface's belongs to one that is over, too: a proxy
    has held it while the kind of the interface changed."""
    hello = ClientHello.of(exchange.head.headers)
    if exchange.head.method == "GET":
        return hello.yields and session.replaced_by_another(hello)
    if hello.session_id is None:
        return False
    if (control.TAP in hello.features) != (session.parameters.device == "tap"):
        return True
    return not session.belongs_to_download(hello)  # the download tells the client why


async def serve_download(session: Session, exchange: Exchange) -> None:
    """Send frames to the client until it disconnects, or a newer GET takes over. Raises PeerError, in a group.

    A deployed client's download ends cleanly only when its newer one takes over; `breaking_off` says why.
    """
    hello = ClientHello.of(exchange.head.headers)
    exchange.connection.presume_dead_after(DEAD_S if hello.extended else BASE_DEAD_S)
    told = session.parameters
    agreed = told.agreed(hello.features)
    writer = await exchange.start_download([*_DOWNLOAD_HEADERS, *_answer_headers(told, agreed)])
    began = trio.current_time()
    ending = ending_cleanly(writer, lambda: shutdown_frame(_SHUTDOWN)) if hello.extended else breaking_off(writer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.watch, writer)
            async with ending:
                if hello.extended:
                    # As the head has it. What a reload has changed meanwhile may not fit to what the head agreed on.
                    writer.send(control.encode(control.PARAMS, told.params(agreed)) + session.repeated_seen(hello))
                session.download_began(hello, agreed, exchange.client, "http", encrypted=exchange.encrypted)
                nursery.start_soon(_follow_reload, session, PreviousParameters(told, hello))
                with session.downloading(exchange.connection):
                    await _download(session, hello, writer, carries_ipv6=told.carries_ipv6(agreed))
            nursery.cancel_scope.cancel()
    except* PeerError:
        if not hello.extended and trio.current_time() - began < EARLY_EXIT_S:
            session.left_early()
        raise
    exchange.reusable = exchange.head.keeps_alive and writer.finished


def _answer_headers(parameters: ClientParameters, agreed: frozenset[str]) -> list[tuple[str, str]]:
    """The headers with the parameters, and those that only an extended client gets."""
    headers: list[tuple[str, str]] = []
    if (conf := parameters.tun_conf) is not None:
        headers.append(("x-tun-conf", conf))
    if agreed:
        headers += (control.FEATURES_HEADER, control.offer(agreed)), (control.AGENT_HEADER, AGENT)
    return headers


async def _follow_reload(session: Session, told: PreviousParameters) -> None:
    """If the config has changed while the head of the answer was sent, the client has to learn of it."""
    if session.parameters is not told.parameters:
        session.send_update(told)


async def _download(session: Session, hello: ClientHello, writer: BodyWriter, *, carries_ipv6: bool) -> None:
    """Send frames, then the end of the body. A base client that is disconnected gets no end."""
    await session.sender.serve(writer, ipv6=carries_ipv6)
    if session.released and not hello.extended:
        await break_off(writer, FINISH_S)
        return
    with trio.move_on_after(FINISH_S) as deadline:
        await writer.finish(_farewell(session, hello))
    if deadline.cancelled_caught:
        raise PeerError("the client did not read the end of its older download", reason=EndReason.STALLED)


def _farewell(session: Session, hello: ClientHello) -> bytes:
    """The last control frame of a download that was replaced, or ended by the operator; empty if there is none."""
    if session.released:
        return control.bye(session.disconnect_reason or "") if hello.extended else b""
    if not session.replaced_by_another(hello):
        return b""
    text = "another machine uses this client's token; its newer session wins"
    session.client_log.taken_over(text)
    return control.bye(f"{control.REPLACED}another machine uses this token") if hello.extended else b""


async def serve_upload(session: Session, exchange: Exchange) -> None:
    """Take frames from the client until its body ends, then answer. Raises PeerError.

    If the server ends an extended client's upload on purpose, it answers that upload, too. Otherwise a proxy would
    answer with a 502, as if the server were down. A deployed client gets no such answer, because it would believe that
    its body has ended.
    """
    hello = ClientHello.of(exchange.head.headers)
    extended = session.belongs_to_download(hello)
    exchange.connection.presume_dead_after(BASE_DEAD_S if hello.session_id is None else DEAD_S)
    number = control.upload_number(exchange.head.headers.get(control.UPLOAD_HEADER))
    seen = control.upload_seen(number) if extended else None
    ethernet = session.parameters.device == "tap"
    reader = FrameReader(await exchange.accept_upload(), control=extended, ethernet=ethernet)
    upload = Upload(session, seen)
    receiver = upload.receiver(exchange.connection, reader)
    try:
        with session.uploading(receiver) as older, receiver.running():
            upload.older = older if extended else None
            await receiver.run(reader.prime(exchange.leftover))
    except PeerError as exc:
        if extended:
            await _answer_ended_upload(session, hello, exchange, exc.reason)
        raise
    greedy = len(reader.leftover) > MAX_PIPELINED_BYTES
    await exchange.finish_upload(close=greedy)
    if greedy:
        raise PeerError(
            f"more than {MAX_PIPELINED_BYTES} bytes came behind an upload's end", reason=EndReason.PIPELINING
        )
    exchange.leftover = reader.leftover


async def _answer_ended_upload(session: Session, hello: ClientHello, exchange: Exchange, reason: EndReason) -> None:
    """Answer an extended client's upload whose body has not ended, if the server ended it on purpose."""
    with suppress(PeerError):  # the client may have left meanwhile
        if reason == EndReason.DISCONNECTED:
            await exchange.respond(200, [("Content-Type", "text/plain")], b"ok\n", close=True)
        elif reason == EndReason.REPLACED and session.replaced_by_another(hello):
            await exchange.refuse(409)  # the same answer as to any further request of this session


async def serve_websocket(session: Session, exchange: Exchange) -> None:
    """Download and upload on one WebSocket, until the client disconnects, or a newer stream takes over. Raises
    PeerError, maybe in a group."""
    hello = ClientHello.of(exchange.head.headers)
    exchange.connection.presume_dead_after(DEAD_S)
    told = session.parameters
    agreed = told.agreed(hello.features)
    accepted = await exchange.accept_websocket(_answer_headers(told, agreed))
    if accepted is None:
        raise PeerError("a proxy in front of this server removes Upgrade from requests", reason=EndReason.NO_WEBSOCKET)
    writer, body = accepted
    reader = FrameReader(body, control=True, ethernet=told.device == "tap")
    writer.send(control.encode(control.PARAMS, told.params(agreed)))  # as the head has it
    session.download_began(hello, agreed, exchange.client, "websocket", encrypted=exchange.encrypted)
    duplex = DuplexStream(exchange.connection, writer, body, session.sender, ipv6=told.carries_ipv6(agreed))

    async def receive() -> None:
        await _follow_reload(session, PreviousParameters(told, hello))
        upload = Upload(session)
        receiver = upload.receiver(exchange.connection, reader)
        with session.uploading(receiver) as upload.older, receiver.running():
            await duplex.receive(receiver, reader.prime(exchange.leftover))

    shutdown = _SHUTDOWN, lambda: shutdown_frame(_SHUTDOWN)
    with session.downloading(exchange.connection):
        await duplex.run(receive, shutdown=shutdown, farewell=lambda: _farewell(session, hello))


class Upload:
    """Passes what an upload, or the receiving half of a WebSocket, receives on to its session.

    Attributes:
        older: the upload before this one. The first frames wait for its end, so that packets keep their order.
    """

    def __init__(self, session: Session, seen: bytes | None = None) -> None:
        """``seen``: a control frame that acknowledges the first bytes; None: the client does not expect one."""
        self._session = session
        self._seen = seen
        self.older: Receiver | None = None

    def receiver(self, connection: Connection, reader: FrameReader) -> Receiver:
        """A receiver for this upload. The receiver refers to this object, but not the reverse, so there is no reference
        cycle."""
        send_control = self._session.sender.send_control
        return Receiver(connection, reader, self._deliver, self._on_control, send_control, self._lane)

    def _lane(self) -> Lane | DeliverNow | None:
        """Not before the first frames were delivered, which is also when they are acknowledged."""
        return None if self._seen is not None or self.older is not None else self._session.lane()

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
        self._session.acknowledge(seen)
        self._seen = None
