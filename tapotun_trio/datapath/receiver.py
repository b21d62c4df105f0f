"""The receiving half of a stream, as far as both ends see it alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from ..errors import EndReason, PeerError
from ..host.net.sockets import Connection
from ..wire.frames import FrameRange, FrameReader

# Takes the frames that one step completed. May raise PeerError.
Take: TypeAlias = Callable[[FrameReader, list[FrameRange]], Awaitable[None]]


class InboundStream:
    """A stream that we receive: whether it still brings something, and how to end it when it does not.

    ::

        with trio.CancelScope() as scope:
            incoming = Incoming(scope)
            ...                         # receive, counting incoming.arrivals
        incoming.check()
    """

    __slots__ = ("_because", "_quiet_since", "_scope", "_seen", "_silence_s", "arrivals", "ended")

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._because: PeerError | None = None
        self._quiet_since = trio.current_time()
        self._silence_s = 0.0  # by which it was measured last
        self.arrivals = 0  # receives that brought something
        self._seen = -1  # of these, at the last tick
        self.ended = trio.Event()  # set by the stream's own task when it has taken the last frame

    def tick(self, now: float, silence_s: float) -> bool:
        """Once a second or so: end the stream if nothing came for so long. Returns whether something came since the
        last time."""
        if silence_s < self._silence_s:  # from now on: until now more was allowed
            self._quiet_since = now
        self._silence_s = silence_s
        if self.arrivals != self._seen:
            self._seen = self.arrivals
            self._quiet_since = now
            return True
        if now - self._quiet_since >= silence_s:
            self.end(PeerError(f"nothing came for {silence_s:.0f} s", reason=EndReason.SILENT))
        return False

    def end(self, because: PeerError) -> None:
        """Cancel the stream; its own task will raise ``because``."""
        self._because = because
        self._scope.cancel()

    @property
    def heard_at(self) -> float:
        """When something came last, by the ticks: up to one tick late. Its beginning, if nothing has come."""
        return self._quiet_since

    @property
    def told_to_end(self) -> bool:
        return self._because is not None

    def check(self) -> None:
        """Raise what `end` was given, if it was called."""
        if self._because is not None:
            raise self._because.without_traceback()


async def receive_frames(
    connection: Connection, reader: FrameReader, first: list[FrameRange], incoming: InboundStream, take: Take
) -> None:
    """Hand everything that comes to ``take``, step by step, until the body's end; others run between steps.

    ``first``: the frames that came together with the head; they are taken even if there are none. Raises PeerError.
    Cancel-safe between steps only: what was received and not taken is lost with the stream.
    """
    frames = first
    while True:
        await take(reader, frames)
        if reader.ended:
            return
        if reader.pending:
            await trio.lowlevel.checkpoint()
            frames = reader.feed(0)
            continue
        received = await connection.receive(reader.space())
        incoming.arrivals += 1
        if received == 0:
            reader.eof()
        frames = reader.feed(received)
