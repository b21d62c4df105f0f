"""A large PING after a silence, to find out whether what the server sends is lost for its size.

A download whose every segment is lost looks like a server that is gone. The answer to a PING of a few kilobytes ends
with a small segment, which arrives, and the gap before it shows the loss (`host.net.segments`).

Pure: the clock is the caller's.
"""

from __future__ import annotations

from typing import Final

from ..wire import control

# Two full segments, and one that passes where a full one does not.
_BYTES: Final = 3000


class LargePing:
    """Whether one is due, and on which stream it was sent last."""

    __slots__ = ("_due", "_sent_on")

    def __init__(self) -> None:
        self._due = False
        self._sent_on: object = None

    def fell_silent(self) -> None:
        """A stream ended since nothing came."""
        self._due = True

    def take(self, stream: object, clock_ns: int) -> bytes | None:
        """The PING to send on the upload; None: none. Once for each download, ``stream``, until one was answered."""
        if not self._due or stream is self._sent_on:
            return None
        self._sent_on = stream
        return control.encode(control.PING, clock_ns.to_bytes(8, "little") + bytes(_BYTES - 8))

    def answered(self, payload: bytes) -> bool:
        """A PONG arrived. Returns whether it answers one of these."""
        if len(payload) != _BYTES:
            return False
        self._due, self._sent_on = False, None
        return True
