"""A large PING after a silence, to find out whether the path drops the server's packets because they are too large.

If every full segment of a download is lost, the server looks dead. The PONG for a PING of a few kilobytes ends with a
small segment, which arrives. The gap before it in the TCP sequence shows the loss (`host.net.segments`).

Pure: the clock is the caller's.
"""

from __future__ import annotations

from typing import Final

from ..wire import control

# Fills two full segments and a small one. The small one passes where full ones do not.
_BYTES: Final = 3000


class LargePing:
    """Decides when to send a large PING, and recognises its PONG."""

    __slots__ = ("_due", "_sent_on")

    def __init__(self) -> None:
        self._due = False
        self._sent_on: object = None

    def fell_silent(self) -> None:
        """A stream was ended because nothing arrived on it."""
        self._due = True

    def take(self, stream: object, clock_ns: int) -> bytes | None:
        """The PING to send on the upload; None: send none now.

        It is sent once for each download (``stream``) until one is answered.
        """
        if not self._due or stream is self._sent_on:
            return None
        self._sent_on = stream
        return control.encode(control.PING, clock_ns.to_bytes(8, "little") + bytes(_BYTES - 8))

    def answered(self, payload: bytes) -> bool:
        """A PONG arrived. Returns whether it answers a large PING."""
        if len(payload) != _BYTES:
            return False
        self._due, self._sent_on = False, None
        return True
