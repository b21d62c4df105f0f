"""What a client logs about its streams: each new failure at once, and repetitions in a bounded number of lines."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Final

import trio

from ..errors import EndReason, PeerError, ShortageError
from ..host.net.sockets import GONE
from ..log import Faults, Log, RateLimitedLog, flap_damped

_REMEMBERED: Final = 16  # causes; if more than this many alternate, each is logged again
AT_ONCE_S: Final = 0.05  # a shorter wait would be shown as 0.0 s
SHORTAGE_S: Final = 60.0  # a shortage may come and go within seconds


class FailureLog:
    """The failures of each stream since the last success; a known one is logged at DEBUG.

    A failure is known by its cause (`PeerError.key`) and not by its text, which may depend on timing. A shortage of
    this machine is one failure, on any number of streams.
    """

    __slots__ = ("_bugs", "_farewells", "_known", "_log", "_rate_limited", "_shortages")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: dict[tuple[str, str], str] = {}  # stream and cause -> the text, oldest first
        self._shortages: defaultdict[str, RateLimitedLog] = defaultdict(lambda: RateLimitedLog(SHORTAGE_S, debug=True))
        self._rate_limited: defaultdict[str, RateLimitedLog] = defaultdict(flap_damped)
        self._farewells = RateLimitedLog()
        self._bugs = Faults()

    def log(self, stream: str, failure: PeerError | None, wait_s: float, *, known: bool = False) -> None:
        """The stream failed (None: the server ended it cleanly), and is tried again after ``wait_s`` seconds.

        ``known``: the log has another line of it, at a level that people see.
        """
        text = "ended by the server" if failure is None else str(failure)
        # A server or a proxy ends an upload in good order by answering it with 200 before its end.
        in_order = failure is None or failure.reason == EndReason.ENDED
        level = logging.INFO if in_order else logging.WARNING
        shortage = isinstance(failure, ShortageError)
        cause = "" if shortage else stream, _cause_of(failure)
        if known:
            level = logging.DEBUG
        if cause in self._known:
            level = logging.DEBUG
            del self._known[cause]  # to be added at the end
        elif len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[cause] = f"{stream}: {text}"
        when = "at once" if wait_s < AT_ONCE_S else f"in {wait_s:.1f} s"
        line = f"{stream}: {text}; trying again {when}"
        if shortage and level != logging.DEBUG:
            self._shortages[_cause_of(failure)].log(self._log, level, trio.current_time(), line)
        else:
            self.note(f"{stream} fails", level, line)

    def note(self, kind: str, level: int, text: str) -> None:
        """Log another event that may happen again and again. ``kind``: a fixed word; lines of one kind share a
        limit."""
        if level == logging.DEBUG:
            self._log.debug("%s", text)
        else:
            self._rate_limited[kind].log(self._log, level, trio.current_time(), text)

    def farewell(self, level: int, text: str) -> None:
        """Log the reason that the server gives for the end of the session."""
        self._farewells.log(self._log, level, trio.current_time(), text)

    def bug(self, exc: Exception) -> None:
        """Log a bug that ended a stream, with its traceback."""
        self._bugs.log(self._log, trio.current_time(), "stream ended", exc)

    @property
    def latest(self) -> str | None:
        """The newest failure, for people; None: nothing has failed since the last success."""
        return next(reversed(self._known.values()), None)

    def clear(self, stream: str | None = None, *, keep: str | None = None) -> None:
        """A stream works again: its next failure is new, also if it is a known one.

        ``stream``: only this one; None: all except ``keep``.
        """
        for known in list(self._known):
            if known[0] != keep if stream is None else known[0] == stream:
                del self._known[known]


def _cause_of(failure: PeerError | None) -> str:
    """The cause by which a failure is known. When a server goes away, its streams may be reset, or may end anywhere in
    their framing: all of that is one cause."""
    if failure is None:
        return "ended"
    return GONE if failure.reason == EndReason.CLOSED and failure.key == str(failure) else failure.key
