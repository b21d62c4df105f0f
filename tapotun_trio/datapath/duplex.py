"""A WebSocket of a session, as far as both ends see it alike: two halves that end together.

A close ends one direction, on a frame boundary; the other end answers it with its own as soon as it has sent what it
had begun (RFC 6455 section 5.5.1). Until that has come we go on receiving, so an end loses nothing either way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from ..errors import EndReason, PeerError
from ..host.net.sockets import Connection
from ..http.websocket import WebSocketWriter
from ..http.writer import FINISH_S
from ..wire.frames import FrameRange
from ..wire.websocket import GOING_AWAY, NO_STATUS, NORMAL, PROTOCOL_ERROR, WebSocketBody
from .receiver import Receiver
from .sender import GRACE_S, Sender, ending_cleanly

_DISCARD_BYTES: Final = 64 * 1024


class DuplexStream:
    """Both halves of one WebSocket, from its handshake on."""

    def __init__(self, connection: Connection, writer: WebSocketWriter, body: WebSocketBody, sender: Sender) -> None:
        """Leaves closing ``connection`` to the caller."""
        self._connection = connection
        self._writer = writer
        self._body = body
        self._sender = sender
        self._sending = trio.CancelScope()
        self._received = trio.Event()
        self._failure: PeerError | None = None

    async def run(
        self,
        receive: Callable[[], Awaitable[None]],
        *,
        shutdown: tuple[str, Callable[[], bytes]],
        parting: Callable[[], bytes] = bytes,
    ) -> None:
        """Send and receive until either end goes, or a newer stream takes the sender over. Raises PeerError, maybe
        in a group.

        Args:
            receive: the receiving half, most of which is `DuplexStream.receive`.
            shutdown: why this end goes if it is cancelled, and the control frame that says so before the close.
            parting: a control frame to send before the close otherwise, or nothing.
        """
        writer = self._writer
        writer.closing = GOING_AWAY, shutdown[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, receive)
            try:
                async with ending_cleanly(writer, shutdown[1]):
                    await self._send(parting)
            except trio.Cancelled:
                with trio.move_on_after(GRACE_S, shield=True):
                    await self._hear_out()
                raise
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure.without_traceback()

    async def receive(self, receiver: Receiver, first: list[FrameRange]) -> None:
        """Have ``receiver`` run until the other end's close, and answer the WebSocket's own pings. Raises PeerError.

        ``first``: the frames that came together with the handshake.
        """
        await receiver.run(first, self._answer_ping)
        if self._body.code not in (NORMAL, GOING_AWAY, NO_STATUS):
            text = f"the other end closed the WebSocket: {self._body.code} {self._body.reason}".rstrip()
            raise PeerError(text, reason=EndReason.WS_CLOSED)

    def _answer_ping(self) -> None:
        if self._body.ping is not None:
            self._writer.pong(self._body.ping)
            self._body.ping = None

    async def _send(self, parting: Callable[[], bytes]) -> None:
        writer = self._writer
        with self._sending:
            await self._sender.serve(writer)
        if not writer.broken:
            writer.closing = self._verdict()
            with trio.move_on_after(FINISH_S) as deadline:
                await writer.finish(parting())
                await self._received.wait()
            if deadline.cancelled_caught and self._failure is None:
                raise PeerError("the other end did not end its WebSocket", reason=EndReason.STALLED)

    async def _hear_out(self) -> None:
        """Let the other end read our close: a TCP connection that is closed with unread bytes is reset, which may
        destroy what is on its way (RFC 6455 section 7.1.1)."""
        if self._writer.finished and not self._writer.broken:
            self._connection.shutdown_sending()
            buffer = memoryview(bytearray(_DISCARD_BYTES))
            with suppress(PeerError):
                while await self._connection.receive(buffer):
                    pass

    async def _receive(self, receive: Callable[[], Awaitable[None]]) -> None:
        """The sending half says goodbye, and the failure is raised after that."""
        try:
            await receive()
        except PeerError as exc:
            self._failure = exc.without_traceback()
            if exc.reason.is_one_way:
                self._writer.mark_broken(exc.reason)
        self._received.set()
        self._sending.cancel()

    def _verdict(self) -> tuple[int, str]:
        """The code and the reason of our close."""
        failure = self._failure
        if failure is None or failure.reason == EndReason.REPLACED:
            return NORMAL, ""
        return PROTOCOL_ERROR if failure.reason.is_protocol_error else GOING_AWAY, str(failure)
