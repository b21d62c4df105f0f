"""One GET and one PUT of a client, as its server serves them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from ..errors import PeerError
from ..http.heads import MAX_HEAD_BYTES
from ..http.server import Exchange
from ..http.writer import BodyWriter
from ..wire import control
from ..wire.frames import FrameReader
from .incoming import Incoming
from .sender import ending_cleanly
from .session import Session, Visit

# What the older of two downloads may take to send what it has begun, and its end.
FINISH_S: Final = 5.0
# For how long a newer upload lets the older one of the same session end first, so that packets keep their order.
HANDOVER_S: Final = 0.5

# What a client may send behind a body before it is answered. Nobody we know sends anything; each further request
# among it costs a pass over what is left of it.
MAX_PIPELINED_BYTES: Final = MAX_HEAD_BYTES

_DOWNLOAD_HEADERS: Final = (
    ("Content-Type", "application/octet-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx: pass the body on as it comes
)
_SHUTDOWN: Final = "the server is shutting down"

# Takes the frames that a receive completed: the buffer, and where they are in it.
Forward: TypeAlias = Callable[[Session, FrameReader, list[tuple[int, int]]], None]


def is_of_another_session(session: Session, exchange: Exchange) -> bool:
    """The request belongs to a session that is over, or leaves the token to another machine that is there."""
    visit = Visit.of(exchange.head.headers)
    if exchange.head.method == "GET":
        return visit.yields and session.taken_by_another(visit)
    return visit.session_id is not None and not session.is_from_present(visit)  # its download tells the client more


async def serve_download(session: Session, exchange: Exchange) -> None:
    """Frames to the client until it goes, or a newer GET takes over. Raises PeerError, in a group."""
    visit = Visit.of(exchange.head.headers)
    headers = [*_DOWNLOAD_HEADERS, ("x-tun-conf", session.tun_conf)]
    if visit.features:
        headers.append((control.FEATURES_HEADER, control.offer(visit.features)))
    writer = await exchange.start_download(headers)
    if visit.extended:
        writer.send(control.encode(control.PARAMS, session.params))
    session.arrive(visit, exchange.connection.name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.watch, writer)
        async with ending_cleanly(writer, lambda: control.bye(_SHUTDOWN) if visit.extended else b""):
            with session.downloading(exchange.connection):
                await _download(session, exchange, visit, writer)
        nursery.cancel_scope.cancel()
    exchange.reusable = exchange.head.keeps_alive


async def _download(session: Session, exchange: Exchange, visit: Visit, writer: BodyWriter) -> None:
    """Until the end of the body was sent."""
    await session.sender.serve(writer)
    last_words = b""
    if session.taken_by_another(visit):
        text = "another machine uses this client's token; its newer session wins"
        session.takeovers.log(session.log, logging.WARNING, trio.current_time(), text)
        if visit.extended:
            last_words = control.bye(f"{control.REPLACED}another machine uses this token")
    with trio.move_on_after(FINISH_S) as deadline:
        await writer.finish(last_words)
    if deadline.cancelled_caught:
        raise PeerError("the client did not take the end of its older download", reason="stalled")


async def serve_upload(session: Session, exchange: Exchange, forward: Forward) -> None:
    """Frames from the client until its body ends. Raises PeerError, then without an answer: deployed clients take
    an answer that comes before the end for the end."""
    extended = session.is_from_present(Visit.of(exchange.head.headers))
    connection = exchange.connection
    reader = FrameReader(await exchange.accept_upload(), control=extended)
    with trio.CancelScope() as scope:
        upload = Incoming(scope)
        older = session.add_upload(upload)
        try:
            if extended and older is not None:
                with trio.move_on_after(HANDOVER_S):
                    await older.ended.wait()
            frames = reader.prime(exchange.leftover)
            unseen = extended
            while True:
                if unseen and (frames or reader.controls):
                    unseen = False
                    session.sender.send_control(control.encode(control.UPLOAD_SEEN))
                forward(session, reader, frames)
                if reader.controls:
                    _take_controls(session, reader.controls)
                    reader.controls.clear()
                if reader.ended:
                    break
                if reader.pending:
                    await trio.lowlevel.checkpoint()
                    frames = reader.feed(0)
                    continue
                received = await connection.receive(reader.space())
                upload.arrivals += 1
                if received == 0:
                    reader.eof()
                frames = reader.feed(received)
        finally:
            session.uploads.remove(upload)
            upload.ended.set()
    upload.check()
    greedy = len(reader.leftover) > MAX_PIPELINED_BYTES
    await exchange.finish_upload(close=greedy)
    if greedy:
        raise PeerError(f"more than {MAX_PIPELINED_BYTES} bytes came behind an upload's end", reason="pipelining")
    exchange.leftover = reader.leftover


def _take_controls(session: Session, controls: list[tuple[int, bytes]]) -> None:
    """Of several PINGs at a time the last one is answered (as RFC 6455 section 5.5.3 has it): an answer costs more
    than a PING."""
    ping: bytes | None = None
    for kind, payload in controls:
        if kind == control.PING:
            ping = payload
        elif kind == control.PONG:
            session.rtt.sample(control.echoed_clock(payload), time.monotonic_ns())
            session.sender.answered()
        elif kind == control.BYE:
            text = f"the client says goodbye: {control.bye_reason(payload)}"
            session.goodbyes.log(session.log, logging.INFO, trio.current_time(), text)
    if ping is not None:
        session.sender.send_control(control.encode(control.PONG, ping))
