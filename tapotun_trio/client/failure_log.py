"""What a client logs of its streams: each news at once, and of what comes again and again a bounded number of lines."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Final

import trio

from ..errors import EndReason, PeerError, ShortageError
from ..host.net.sockets import GONE
from ..log import Log, RateLimitedLog, flap_damped

_REMEMBERED: Final = 16  # causes; what fails in more ways at a time is told again
SHORTAGE_S: Final = 60.0  # a shortage may come and go by the second


class FailureLog:
    """The failures of each stream since all was well; one that is known is logged quietly.

    A failure is known by its cause (`PeerError.key`) and not by its text, which may depend on timing. A shortage of
    this machine is one failure, however many streams it hits.
    """

    __slots__ = ("_known", "_log", "_rate_limited", "_shortages")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: dict[tuple[str, str], str] = {}  # stream and cause -> the text, oldest first
        self._shortages: defaultdict[str, RateLimitedLog] = defaultdict(lambda: RateLimitedLog(SHORTAGE_S, debug=True))
        self._rate_limited: defaultdict[str, RateLimitedLog] = defaultdict(flap_damped)

    def log(self, stream: str, failure: PeerError | None, wait_s: float) -> None:
        """The stream failed (None: it was ended cleanly by the server), and is tried again in so many seconds."""
        text = "ended by the server" if failure is None else str(failure)
        level = logging.INFO if failure is None else logging.WARNING
        shortage = isinstance(failure, ShortageError)
        cause = "" if shortage else stream, _key(failure)
        if cause in self._known:
            level = logging.DEBUG
            del self._known[cause]  # it goes to the end
        elif len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[cause] = f"{stream}: {text}"
        line = f"{stream}: {text}; trying again in {wait_s:.1f} s"
        if shortage and level != logging.DEBUG:
            self._shortages[_key(failure)].log(self._log, level, trio.current_time(), line)
        else:
            self.note(f"{stream} fails", level, line)

    def note(self, kind: str, level: int, text: str) -> None:
        """Something else that may come again and again. ``kind``: a fixed word, of what is counted together."""
        if level == logging.DEBUG:
            self._log.debug("%s", text)
        else:
            self._rate_limited[kind].log(self._log, level, trio.current_time(), text)

    @property
    def latest(self) -> str | None:
        """What failed last, and has not come right since."""
        return next(reversed(self._known.values()), None)

    def clear(self) -> None:
        """All is well again: whatever fails next is news."""
        self._known.clear()


def _key(failure: PeerError | None) -> str:
    """By what a failure is known. A stream whose server goes may see a reset, or an end at any place of its framing."""
    if failure is None:
        return "ended"
    return GONE if failure.reason == EndReason.CLOSED and failure.key == str(failure) else failure.key
