"""One GET and one PUT of a client, from the answer on."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import trio

from ..datapath.receiver import Receiver
from ..datapath.sender import Sender, ending_cleanly
from ..errors import EndReason, InternalError, PeerError, failure_of
from ..host.net.sockets import Connection
from ..http.client import read_response
from ..http.heads import ResponseHead
from ..http.writer import FINISH_S, BodyWriter
from ..wire import control
from ..wire.frames import FrameRange
from .rotation import Stream
from .transport_choice import UPLOAD_SEEN_S

# For how long a newer download lets the older one end first, so that packets keep their order. What the server
# had begun to send on the older one is under way for a moment; more than this, and order is worth less than time.
HANDOVER_S: Final = 1.0


class Download:
    """A GET that was answered with 200."""

    def __init__(
        self,
        connection: Connection,
        receiver: Receiver,
        first_frames: list[FrameRange],
        ends: Counter[str],
    ) -> None:
        """``receiver``: of this connection. A failure is counted in ``ends``. Closes ``connection`` at its end."""
        self._ends = ends
        self.ended = trio.Event()
        self.failure: PeerError | None = None
        self.connection = connection
        self.receiver = receiver
        self._first_frames = first_frames
        self._began = trio.current_time()

    def heard_since(self, moment: float) -> bool:
        """The server has been heard on this stream after ``moment``, as far as one knows: to within a second."""
        return max(self._began, self.receiver.heard_at) >= moment

    async def run(self, older: Stream | None) -> None:
        try:
            with self.receiver.running():
                if older is not None:
                    with trio.move_on_after(HANDOVER_S):
                        await older.ended.wait()
                await self.receiver.run(self._first_frames)
        except* Exception as group:  # a HostError goes on to whoever runs the stream
            self.failure = failure_of(group, "cannot receive")
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


class Upload:
    """A PUT whose head was sent."""

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        check: Callable[[ResponseHead], None],
        unseen: Callable[[], None] | None,
        ends: Counter[str],
        number: int | None,
    ) -> None:
        """Closes ``connection`` at its end. A failure is counted in ``ends``.

        Args:
            number: under which the server says that it has seen this one.
            check: raises PeerError for an answer that is not 200.
            unseen: called if the server did not see the upload in time; None: a base server never says.
        """
        self.ended = trio.Event()
        self.failure: PeerError | None = None
        self.connection = connection
        self.began = trio.current_time()
        self.number = number
        self.seen = trio.Event()  # set when the server says that the first bytes have arrived
        self._ends = ends
        self._sender = sender
        self._check = check
        self._unseen = unseen
        self._writer = BodyWriter(connection)
        self._finished = False
        self._scope = trio.CancelScope()
        self._because: PeerError | None = None

    async def run(self, older: Stream | None) -> None:
        try:
            with self._scope:
                await self._send()
            if self._because is not None:
                self.failure = self._because
        except* Exception as group:  # a HostError goes on to whoever runs the stream
            self.failure = failure_of(group, "cannot send")
            if isinstance(self.failure, InternalError):
                raise
        finally:
            if self.failure is not None:
                self._ends[self.failure.reason] += 1
            self.connection.close()
            self.ended.set()

    async def _send(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_answer, nursery.cancel_scope)
            if self._unseen is not None:
                nursery.start_soon(self._watch_seen, self._unseen)
            async with ending_cleanly(self._writer, self._farewell_frame):
                await self._sender.serve(self._writer)
                with trio.move_on_after(FINISH_S):
                    await self._writer.finish()
                    self._finished = True
                    await trio.sleep_forever()  # until it is answered
            nursery.cancel_scope.cancel()

    @property
    def over(self) -> bool:
        """It has ended, or was told to."""
        return self.ended.is_set() or self._because is not None

    def end(self, because: PeerError) -> None:
        """End it now; `failure` will be ``because``."""
        self._because = because
        self._scope.cancel()

    def abandon(self, because: PeerError) -> None:
        """As `end`, and without its end: what something on the way still holds back shall not arrive any more."""
        self._writer.mark_broken(because.reason)
        self.end(because)

    async def prove(self) -> bool:
        """Before `run`: whether the server says in time that the upload arrives. Raises PeerError. Cancel-safe."""
        self._writer.send(control.ping(time.monotonic_ns()))
        with trio.move_on_after(UPLOAD_SEEN_S):
            await self.seen.wait()
        return self.seen.is_set()

    async def _watch_seen(self, unseen: Callable[[], None]) -> None:
        with trio.move_on_after(UPLOAD_SEEN_S):
            await self.seen.wait()
            return
        unseen()

    def _farewell_frame(self) -> bytes:
        return control.bye("the client is shutting down") if self._unseen is not None and not self.over else b""

    async def _read_answer(self, scope: trio.CancelScope) -> None:
        """An upload is answered when it has ended; an answer before that ends it."""
        head, _ = await read_response(self.connection, "PUT")
        self._check(head)
        if not self._finished:
            raise PeerError("the server ended the upload", reason=EndReason.ENDED)
        scope.cancel()


class _Ending(Protocol):
    @property
    def over(self) -> bool: ...


def is_over(stream: _Ending | None) -> bool:
    """There is none, or it has ended, or was told to."""
    return stream is None or stream.over


def count_attempt(ends: Counter[str], stream: Stream | None, failure: PeerError | None) -> None:
    """Count a failure, unless it ended this stream, which has counted it."""
    if failure is not None and (stream is None or stream.failure is not failure):
        ends[failure.reason] += 1


def level_of(present: _Ending | None) -> int:
    """The log level of a stream's beginning: it is news only if it does not replace one that still runs."""
    return logging.INFO if is_over(present) else logging.DEBUG


def moved() -> PeerError:
    """How an upload ends that is not wanted any more."""
    return PeerError("a WebSocket takes the upload's place", reason=EndReason.MOVED)


def shows_who_holds_back(download: object, upload: Upload | None) -> bool:
    """Whether it can only be something in between of which the server's silence about this upload tells, and not a
    path that is down: the download began with or after the upload, or brought something since; and whoever is at the
    other end of the upload's connection took all of it. Else the server's next PING tells."""
    if upload is None or not isinstance(download, Download):
        return False
    path = upload.connection.path()
    taken = path is None or not (path.flying_bytes or path.unsent_bytes)
    return taken and download.heard_since(upload.began - UPLOAD_SEEN_S)
