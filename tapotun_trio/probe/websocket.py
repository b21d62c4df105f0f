"""Tests whether a WebSocket passes: the handshake, then a PING, which must be answered."""

from __future__ import annotations

from typing import Final

import trio

from ..errors import PeerError
from ..http.websocket import WebSocketWriter, check_upgrade, open_websocket
from ..wire import control
from ..wire.frames import FrameReader
from ..wire.websocket import NORMAL, WebSocketBody
from .measured import WebSocket
from .streams import Opener, Receiver, Uploader

PONG_S: Final = 3.0
CLOSE_S: Final = 1.0


async def try_websocket(
    result: WebSocket, opener: Opener, fields: list[tuple[str, str]], head_s: float
) -> frozenset[str]:
    """Fill ``result`` in. Only for a server that knows control frames, or that may say so in its handshake.

    Returns the features that were agreed on; none: no WebSocket was opened."""
    try:
        connection = await opener.connect()
        with trio.move_on_after(head_s) as deadline:
            head, rest = await open_websocket(connection, opener.config.server, fields)
        if deadline.cancelled_caught:
            result.ok, result.error = False, f"no response to its handshake within {head_s:.0f} s"
            return frozenset()
        result.status = head.status
        check_upgrade(head, opener.config.server, rest)
        agreed = control.agree(head.headers.get(control.FEATURES_HEADER))
        if not agreed >= {control.CTL, control.WS}:
            result.ok, result.error = False, "the response accepts a WebSocket, but not the tunnel's protocol on it"
            return frozenset()
    except PeerError as exc:
        result.ok, result.error = False, str(exc)
        return frozenset()
    writer = WebSocketWriter(connection, masks=True)
    writer.closing = NORMAL, ""
    up = Uploader(connection, writer, opener.progress)
    reader = FrameReader(WebSocketBody(masked=False), control=True, ethernet=control.TAP in agreed)
    down = Receiver(connection, reader, opener.progress)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(down.run, rest)
        number, ping = up.ping()
        await up.send(ping)
        await opener.progress.until(lambda: down.pong >= number or down.ended or up.ended, PONG_S)
        result.ok = down.pong >= number
        if not result.ok:
            result.error = str(down.failure or up.failure or f"nothing arrives through it within {PONG_S:.0f} s")
        if not up.ended and not down.ended:
            with trio.move_on_after(CLOSE_S):
                await writer.try_finish()
                await opener.progress.until(lambda: down.ended, CLOSE_S)
        nursery.cancel_scope.cancel()
    connection.close()
    return agreed
