"""What a client logs of its streams: each news at once, and of what comes again and again a bounded number of lines."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Final

import trio

from ..errors import PeerError
from ..log import Log, Sparingly, flapping

_REMEMBERED: Final = 16  # texts; what fails in more ways at a time is told again


class Complaints:
    """The failures of each stream since all was well; one that is known is logged quietly."""

    __slots__ = ("_known", "_log", "_sparingly")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: dict[tuple[str, str], None] = {}  # a set that keeps its order
        self._sparingly: defaultdict[str, Sparingly] = defaultdict(flapping)

    def log(self, stream: str, failure: PeerError | None, wait_s: float) -> None:
        """The stream failed (None: it was ended cleanly by the server), and is tried again in so many seconds."""
        text = "ended by the server" if failure is None else str(failure)
        level = logging.INFO if failure is None else logging.WARNING
        if (stream, text) in self._known:
            level = logging.DEBUG
            del self._known[stream, text]  # it goes to the end
        elif len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[stream, text] = None
        self.news(f"{stream} fails", level, f"{stream}: {text}; trying again in {wait_s:.1f} s")

    def news(self, kind: str, level: int, text: str) -> None:
        """Something else that may come again and again. ``kind``: a fixed word, of what is counted together."""
        if level == logging.DEBUG:
            self._log.debug("%s", text)
        else:
            self._sparingly[kind].log(self._log, level, trio.current_time(), text)

    @property
    def latest(self) -> str | None:
        """What failed last, and has not come right since."""
        return next((f"{stream}: {text}" for stream, text in reversed(self._known)), None)

    def clear(self) -> None:
        """All is well again: whatever fails next is news."""
        self._known.clear()
