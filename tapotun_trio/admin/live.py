"""The panel's WebSocket: the status every second, and log lines as they are written.

trio-websocket runs the protocol on our connection, handshake included. Its input is limited: a client sends nothing but
a close. A client that does not read is disconnected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from ..errors import EndReason, PeerError, leaves
from ..http.heads import RequestHead, encode_request
from ..http.server import Exchange
from ..http.stream import ConnectionStream
from ..http.websocket import KEY_HEADER, accept_head
from ..log import Faults, process_logger
from .access import Refused
from .events import Event, Events

STATUS_S: Final = 1.0
HANDSHAKE_S: Final = 5.0
SLOW_S: Final = 5.0  # for sending one message
CLOSE_S: Final = 0.2  # for the client's answer to our close
TOGETHER_S: Final = 0.05  # log lines within this time are sent as one message
MAX_RECEIVED_BYTES: Final = 64 * 1024  # from the client in all; they are ignored
MAX_MESSAGE_BYTES: Final = 4096
GOING_AWAY: Final = 1001
POLICY_VIOLATION: Final = 1008

_FAULTS: Final = Faults()
_UPGRADE: Final = (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"))


def handshake_of(head: RequestHead) -> bytes:
    """The handshake part of the request, without token and cookie, which trio-websocket does not need.

    Raises Refused; BadRequest if it is malformed.
    """
    if not head.asks_for_websocket or accept_head(head, []) is None:
        raise Refused(426, "this path needs a WebSocket; a proxy must forward Upgrade and Connection", *_UPGRADE[::2])
    fields = [("Host", "-"), *_UPGRADE, ("Sec-WebSocket-Key", head.headers[KEY_HEADER])]
    return encode_request("GET", "/", fields)


async def serve_live(
    exchange: Exchange, status: Callable[[], Awaitable[str]], events: Events, is_over: Callable[[], bool]
) -> None:
    """Send status and events until the client disconnects or does not read, or until ``is_over``.

    ``status`` makes the status message. Raises PeerError. Raises Refused, BadRequest or an internal error only before
    anything was sent.
    """
    first = handshake_of(exchange.head) + exchange.leftover
    stream = ConnectionStream(exchange.connection, first, limit_bytes=MAX_RECEIVED_BYTES)
    end: PeerError | None = None
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(HANDSHAKE_S):
                # From here on trio-websocket reads the connection, until the nursery ends.
                request = await wrap_server_stream(
                    nursery, stream, message_queue_size=1, max_message_size=MAX_MESSAGE_BYTES
                )
                exchange.answered = True
                socket = await request.accept()
            nursery.start_soon(_ignore_messages, socket)
            try:
                await _send_updates(socket, exchange, status, events, is_over)
            finally:
                with trio.move_on_after(CLOSE_S, shield=True):
                    await socket.aclose(POLICY_VIOLATION if is_over() else GOING_AWAY)
            nursery.cancel_scope.cancel()
    except* PeerError as group:
        end = next(leaves(group))
    except* (ConnectionClosed, LocalProtocolError) as group:
        # The client closed, or sent something after a close, which trio-websocket may not answer.
        end = PeerError(f"the WebSocket ended: {next(leaves(group))!r}", reason=EndReason.CLOSED)
    except* trio.TooSlowError:
        end = PeerError("did not take the WebSocket's handshake", reason=EndReason.SLOW_READER)
    except* Exception as group:
        if not exchange.answered:
            raise
        # It is too late for a 500, so the error is only logged, with its traceback.
        _FAULTS.log(process_logger(), trio.current_time(), "admin: WebSocket ended", group)
    if end is not None:
        raise end


async def _send_updates(
    socket: WebSocketConnection,
    exchange: Exchange,
    status: Callable[[], Awaitable[str]],
    events: Events,
    is_over: Callable[[], bool],
) -> None:
    number, due = -1, trio.current_time()
    while not is_over():
        now = trio.current_time()
        if now >= due:
            await _send(socket, exchange, await status())
            due = max(due + STATUS_S, now)
        fresh = events.since(number)
        if fresh or number < 0:
            await _send(socket, exchange, encode_events(fresh))
            number = fresh[-1].number if fresh else 0
        with trio.move_on_at(due) as deadline:
            await events.wait(number)
        if not deadline.cancelled_caught:
            await trio.sleep(TOGETHER_S)


def encode_events(events: list[Event]) -> str:
    """The message with these events."""
    return msgspec.json.encode({"type": "events", "events": events}).decode()


async def _send(socket: WebSocketConnection, exchange: Exchange, message: str) -> None:
    with trio.move_on_after(SLOW_S) as deadline:
        await socket.send_message(message)
    if deadline.cancelled_caught:
        exchange.connection.abort()
        raise PeerError(f"did not read from its WebSocket for {SLOW_S:.0f} s", reason=EndReason.SLOW_READER)


async def _ignore_messages(socket: WebSocketConnection) -> None:
    """Read and drop messages: a message that is not read would hide the close after it."""
    with suppress(ConnectionClosed):
        while True:
            await socket.get_message()
