"""One WebSocket of a client, in place of a GET and a PUT, from its 101 on."""

from __future__ import annotations

from collections import Counter
from typing import Final

import trio

from ..errors import HostError, PeerError, leaves
from ..host.sockets import Connection
from ..http.websocket import WebSocketWriter
from ..wire import control
from ..wire.frames import FrameReader
from ..wire.websocket import WebSocketBody
from .client_streams import HANDOVER_S
from .incoming import Incoming, Take
from .rotation import Stream, failure_of
from .sender import Sender
from .websocket import Conversation

_SHUTDOWN: Final = "the client is shutting down"


class WebSocketStream:
    """Download and upload at once. A `rotation.Stream`."""

    def __init__(self, connection: Connection, rest: bytes, sender: Sender, take: Take, ends: Counter[str]) -> None:
        """``rest``: what came behind the 101. ``take`` gets the frames of every receive; it may raise PeerError.
        A failure is counted in ``ends``. Closes ``connection`` at its end."""
        self._ends = ends
        self.ended = trio.Event()
        self.failure: PeerError | None = None
        self.connection = connection
        self._rest = rest
        self._take = take
        body = WebSocketBody(masked=False)
        self._reader = FrameReader(body, control=True)
        self._conversation = Conversation(connection, WebSocketWriter(connection, masks=True), body, sender)
        self._scope = trio.CancelScope()
        self.incoming = Incoming(self._scope)

    async def run(self, older: Stream | None) -> None:
        try:
            with self._scope:
                shutdown = _SHUTDOWN, lambda: b"" if self.over else control.bye(_SHUTDOWN)
                await self._conversation.run(lambda: self._receive(older), shutdown=shutdown)
            self.incoming.check()
        except* PeerError as group:
            self.failure = next(leaves(group))
        except* HostError:
            raise
        except* Exception as group:
            self.failure = failure_of(group)
            raise
        finally:
            if self.failure is not None:
                self._ends[self.failure.reason] += 1
            self.connection.close()
            self.ended.set()

    @property
    def over(self) -> bool:
        """It has ended, or was told to."""
        return self.ended.is_set() or self.incoming.told_to_end

    def end(self, because: PeerError) -> None:
        """End it now; `failure` will be ``because``."""
        self.incoming.end(because)

    async def _receive(self, older: Stream | None) -> None:
        if older is not None:
            with trio.move_on_after(HANDOVER_S):
                await older.ended.wait()
        await self._conversation.frames(self._reader, self._reader.prime(self._rest), self.incoming, self._take)
