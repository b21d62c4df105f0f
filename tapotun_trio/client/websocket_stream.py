"""One WebSocket of a client, in place of a GET and a PUT, from its 101 on."""

from __future__ import annotations

from collections import Counter
from mmap import mmap
from typing import Final

import trio

from ..datapath.duplex import DuplexStream
from ..datapath.receiver import Deliver, OnControl, Receiver
from ..datapath.sender import Sender
from ..errors import InternalError, PeerError, failure_of
from ..host.net.sockets import Connection
from ..http.websocket import WebSocketWriter
from ..wire import control
from ..wire.frames import FrameReader
from ..wire.websocket import WebSocketBody
from .rotation import Stream
from .streams import HANDOVER_S

_SHUTDOWN: Final = "the client is shutting down"


class WebSocketStream:
    """Download and upload at once. A `rotation.Stream`."""

    def __init__(
        self,
        connection: Connection,
        rest: bytes,
        sender: Sender,
        deliver: Deliver,
        on_control: OnControl,
        ends: Counter[str],
        memory: mmap | None = None,
    ) -> None:
        """``rest``: what came behind the 101. ``deliver`` and ``on_control``: see `Receiver`. A failure is counted in
        ``ends``. ``memory``: see `FrameReader`. Closes ``connection`` at its end."""
        self._ends = ends
        self.ended = trio.Event()
        self.failure: PeerError | None = None
        self.connection = connection
        self._rest = rest
        body = WebSocketBody(masked=False)
        self._reader = FrameReader(body, control=True, memory=memory)
        self._duplex = DuplexStream(connection, WebSocketWriter(connection, masks=True), body, sender)
        self.receiver = Receiver(connection, self._reader, deliver, on_control, sender.send_control)

    async def run(self, older: Stream | None) -> None:
        try:
            with self.receiver.running():
                shutdown = _SHUTDOWN, lambda: b"" if self.over else control.bye(_SHUTDOWN)
                await self._duplex.run(lambda: self._receive(older), shutdown=shutdown)
        except* Exception as group:  # a HostError goes on to whoever runs the stream
            self.failure = failure_of(group, "cannot send or receive")
            if isinstance(self.failure, InternalError):
                raise
        finally:
            if self.failure is not None:
                self._ends[self.failure.reason] += 1
            self.connection.close()
            self.ended.set()

    @property
    def over(self) -> bool:
        """It has ended, or was told to."""
        return self.ended.is_set() or self.receiver.was_ended

    def end(self, because: PeerError) -> None:
        """End it now; `failure` will be ``because``."""
        self.receiver.end(because)

    async def _receive(self, older: Stream | None) -> None:
        if older is not None:
            with trio.move_on_after(HANDOVER_S):
                await older.ended.wait()
        await self._duplex.receive(self.receiver, self._reader.prime(self._rest))
