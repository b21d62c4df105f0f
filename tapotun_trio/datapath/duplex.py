"""A stream over a WebSocket, for both ends: two halves that end together.

A close ends one direction, on a frame boundary. The other end answers with its own close as soon as it has sent the
frame that it had begun (RFC 6455 section 5.5.1). This end receives until then, so nothing is lost in either direction.
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

    def __init__(
        self,
        connection: Connection,
        writer: WebSocketWriter,
        body: WebSocketBody,
        sender: Sender,
        *,
        ipv6: bool = False,
    ) -> None:
        """``body``: decodes what is received on ``connection``, which the caller closes. ``ipv6``: as for
        `Sender.serve`."""
        self._connection = connection
        self._writer = writer
        self._body = body
        self._sender = sender
        self._ipv6 = ipv6
        self._sending = trio.CancelScope()
        self._received = trio.Event()
        self._failure: PeerError | None = None

    async def run(
        self,
        receive: Callable[[], Awaitable[None]],
        *,
        shutdown: tuple[str, Callable[[], bytes]],
        farewell: Callable[[], bytes] = bytes,
    ) -> None:
        """Send and receive until either end closes, or a newer stream takes over the sender. Raises PeerError, maybe in
        a group.

        Args:
            receive: the receiving half, which calls `DuplexStream.receive`.
            shutdown: for a cancellation: the reason of the close, and the control frame to send before it.
            farewell: for any other end: makes the control frame to send before the close, or nothing.
        """
        writer = self._writer
        writer.closing = GOING_AWAY, shutdown[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, receive)
            try:
                async with ending_cleanly(writer, shutdown[1]):
                    await self._send(farewell)
            except trio.Cancelled:
                with trio.move_on_after(GRACE_S, shield=True):
                    await self._drain_after_close()
                raise
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure.without_traceback()

    async def receive(self, receiver: Receiver, first: list[FrameRange]) -> None:
        """Run ``receiver`` until the other end closes, and answer the pings of the WebSocket itself. Raises PeerError.

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

    async def _send(self, farewell: Callable[[], bytes]) -> None:
        writer = self._writer
        with self._sending:
            await self._sender.serve(writer, ipv6=self._ipv6)
        if not writer.broken:
            writer.closing = self._close_reason()
            with trio.move_on_after(FINISH_S) as deadline:
                await writer.finish(farewell())
                await self._received.wait()
            if deadline.cancelled_caught and self._failure is None:
                raise PeerError("the other end did not close its WebSocket", reason=EndReason.STALLED)

    async def _drain_after_close(self) -> None:
        """Read and discard until the other end closes. A TCP connection that is closed with unread bytes is reset,
        which may destroy our close on its way (RFC 6455 section 7.1.1)."""
        if self._writer.finished and not self._writer.broken:
            self._connection.shutdown_sending()
            buffer = memoryview(bytearray(_DISCARD_BYTES))
            with suppress(PeerError):
                while await self._connection.receive(buffer):
                    pass

    async def _receive(self, receive: Callable[[], Awaitable[None]]) -> None:
        """The receiving half. If it fails, the sending half still sends its close; then `run` raises the failure."""
        try:
            await receive()
        except PeerError as exc:
            self._failure = exc.without_traceback()
            if exc.reason.is_one_way:
                self._writer.mark_broken(exc.reason)
        self._received.set()
        self._sending.cancel()

    def _close_reason(self) -> tuple[int, str]:
        """The code and the reason of this end's close."""
        failure = self._failure
        if failure is None or failure.reason == EndReason.REPLACED:
            return NORMAL, ""
        return PROTOCOL_ERROR if failure.reason.is_protocol_error else GOING_AWAY, str(failure)
