"""What a client logs of streams that failed: each news once."""

from __future__ import annotations

import logging

from ..errors import PeerError
from ..log import Log


class Complaints:
    """The last failure of each stream; one that only repeats itself is logged quietly."""

    __slots__ = ("_last", "_log")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._last: dict[str, str] = {}

    def log(self, stream: str, failure: PeerError | None, wait_s: float) -> None:
        """The stream failed (None: it was ended cleanly by the server), and is tried again in so many seconds."""
        text = "ended by the server" if failure is None else str(failure)
        repeated = self._last.get(stream) == text
        level = logging.DEBUG if repeated else logging.INFO if failure is None else logging.WARNING
        self._log.log(level, "%s: %s; trying again in %.1f s", stream, text, wait_s)
        self._last.pop(stream, None)  # it goes to the end
        self._last[stream] = text

    @property
    def latest(self) -> str | None:
        """What failed last, and has not come right since."""
        return next((f"{stream}: {text}" for stream, text in reversed(self._last.items())), None)

    def clear(self) -> None:
        """All is well again: whatever fails next is news."""
        self._last.clear()
