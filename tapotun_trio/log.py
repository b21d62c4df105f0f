"""Logging: one line per event on stderr, with the interface and the client that the event is about."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import select
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TextIO, TypeAlias

from .errors import EndReason, shortage_in
from .text import one_line, one_line_json, shorten, shorten_escaped

Log: TypeAlias = "logging.LoggerAdapter[logging.Logger]"

_ROOT: Final = logging.getLogger("tapotun")
LEVELS: Final = ("debug", "info", "warning", "error")
FLAPPING_S: Final = 600.0
FLAPPING_BURST: Final = 20  # lines of one kind in FLAPPING_S
READER_WAIT_MS: Final = 100  # how long a line may wait for a slow reader of the log
_PIECE_CHARS: Final = 1024  # at most PIPE_BUF bytes in UTF-8: a pipe that has room takes them at once (pipe(7))
_TRACEBACK_LINES: Final = 200
_TRACEBACK_CHARS: Final = 500  # the longest line of a traceback
LINE_CHARS: Final = 4000  # limit for one event, including escapes
# A token bucket for each interface and each client. It is a second limit, behind those of each kind of line. Debug
# lines have a bucket of their own, since most of them have no other limit.
SOURCE_BURST: Final = 300
SOURCE_PER_S: Final = 1.0
DEBUG_BURST: Final = 2000
DEBUG_PER_S: Final = 20.0
MAX_SOURCES: Final = 4096
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}  # syslog(3)


class _Adapter(logging.LoggerAdapter[logging.Logger]):
    """Adds interface and client to each record, for the formatters."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def process_logger() -> Log:
    """A logger for events of the process as a whole."""
    return _Adapter(_ROOT, {})


def interface_logger(interface: str) -> Log:
    """A logger for events of one interface."""
    return _Adapter(_ROOT, {"interface": interface})


def client_logger(interface: str, client: str) -> Log:
    """A logger for events of one client of a server."""
    return _Adapter(_ROOT, {"interface": interface, "client": client})


def add_handler(handler: logging.Handler) -> None:
    """Pass the log to another handler, too, next to stderr."""
    _ROOT.addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Undo `add_handler`. Idempotent."""
    _ROOT.removeHandler(handler)


class RateLimitedLog:
    """Logs an event that may happen any number of times: at once, but at most ``burst`` times in ``interval_s``.

    ``debug``: log the other events at level debug.
    """

    __slots__ = ("_burst", "_debug", "_interval_s", "_left", "_refill_at", "_suppressed")

    def __init__(self, interval_s: float = 10.0, *, burst: int = 1, debug: bool = False) -> None:
        self._interval_s = interval_s
        self._burst = burst
        self._debug = debug
        self._left = 0  # lines until _refill_at
        self._refill_at = -math.inf
        self._suppressed = 0

    def log(self, log: Log, level: int, now: float, text: str, *, traceback: bool = False) -> bool:
        """Log ``text``, or only count the event. Returns whether it was logged.

        The line has the number of events that were only counted since the last line, if there were any.

        ``traceback``: add the traceback of the exception that is being handled.
        """
        if now >= self._refill_at:
            self._refill_at = now + self._interval_s
            self._left = self._burst
        if not self._left:
            self._suppressed += 1
            if self._debug:
                log.debug("%s", text)
            return False
        more = f" ({self._suppressed} more since the last such line)" if self._suppressed else ""
        log.log(level, "%s%s", text, more, exc_info=traceback)
        self._left -= 1
        self._suppressed = 0
        return True


def flap_damped() -> RateLimitedLog:
    """A limit for events that may repeat for days, such as the connects of a client on an unstable path."""
    return RateLimitedLog(FLAPPING_S, burst=FLAPPING_BURST, debug=True)


class Faults:
    """Logs failures of one request or session that are not the peer's fault.

    A bug is logged with its traceback, a shortage of this machine in one line. Both are rate-limited, because a peer
    may be able to cause them again and again.
    """

    __slots__ = ("_bugs", "_shortages")

    def __init__(self) -> None:
        self._bugs = flap_damped()
        self._shortages = RateLimitedLog()

    def log(self, log: Log, now: float, text: str, exc: BaseException) -> EndReason:
        """Log ``exc``, while it is being handled. ``text``: what ended. Returns the reason to count it by."""
        shortage = shortage_in(exc, text)
        if shortage is not None:
            self._shortages.log(log, logging.WARNING, now, str(shortage))
            return shortage.reason
        self._bugs.log(log, logging.ERROR, now, f"internal error, {text}", traceback=True)
        return EndReason.INTERNAL_ERROR


class SourceLimit(logging.Filter):
    """Limits how fast one source can log. A source is an interface, or a client of one; for debug lines, also the
    process.

    Most lines that a peer can cause have a limit of their own (`RateLimitedLog`); this filter bounds the rest. The next
    line of a source tells how many were left out. Lines of the process as a whole pass from level info up, because a
    reload may log thousands.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._buckets: OrderedDict[tuple[object, ...], tuple[float, float, int]] = OrderedDict()  # oldest first

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record. Called by the logging module."""
        interface, is_debug = getattr(record, "interface", None), record.levelno < logging.INFO
        if interface is None and not is_debug:
            return True
        key = interface, getattr(record, "client", None), is_debug
        burst, per_s = (DEBUG_BURST, DEBUG_PER_S) if is_debug else (SOURCE_BURST, SOURCE_PER_S)
        now = self._clock()
        left, at, missed = self._buckets.pop(key, (float(burst), now, 0))
        left = min(left + (now - at) * per_s, float(burst))
        passes = left >= 1
        if passes and missed:
            record.msg, record.args = f"{record.getMessage()} ({missed} lines before this were left out)", None
        self._buckets[key] = (left - 1, now, 0) if passes else (left, now, missed + 1)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return passes


class LossyHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream that may fail: a full disk, a pipe whose reader is gone or hangs, a stopped terminal (Ctrl-S).

    A failure raises nothing and stores nothing, and delays the program by READER_WAIT_MS at most, once. After the first
    line that can be written again, another line says how many were missed. Only a terminal that hangs without having
    been stopped can still delay a line, because it does not report how much it can take.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._missed = 0
        self._cause = ""  # why lines were missed
        self._line_is_open = False  # the last line was written in part only
        self._room: Final = _poll_for_room(stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
            if self._missed:
                text = f"{self._missed} lines before this came late, or not at all: {self._cause}"
                self._write(self.format(logging.LogRecord(record.name, logging.WARNING, "", 0, text, None, None)))
                self._missed = 0
        except OSError as exc:
            self._missed += 1
            self._cause = exc.strerror or type(exc).__name__
        except Exception:  # noqa: BLE001 - a bug in the arguments of a log call; `logging` has its own way to report it
            self.handleError(record)

    def _write(self, line: str) -> None:
        text = f"{self.terminator if self._line_is_open else ''}{line}{self.terminator}"
        for at in range(0, len(text), _PIECE_CHARS):
            # Wait for the first of several missed lines only, so that a reader that hangs delays the tunnels once.
            if self._room is not None and not self._room.poll(0 if self._missed else READER_WAIT_MS):
                raise BlockingIOError(errno.EAGAIN, "the reader of the log took nothing")
            self.stream.write(text[at : at + _PIECE_CHARS])
            self._line_is_open = at + _PIECE_CHARS < len(text)
            self.stream.flush()


def _poll_for_room(stream: TextIO) -> select.poll | None:
    """A poll object that reports whether a write would block; None: the stream is not a file.

    The descriptor itself stays in blocking mode, because that mode is shared with other processes, such as the shell of
    a terminal.
    """
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return None
    room = select.poll()
    room.register(number, select.POLLOUT)
    return room


class TextFormatter(logging.Formatter):
    """``2026-11-22T15:04:05.123Z INFO  corp0 branch-a: connected from 192.0.2.7:51234``"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record)} {record.levelname:<7} {_placed(record)}"
        # One event is one line, except that a bug's traceback follows its line.
        line = one_line(line)
        if record.exc_info:
            line += "\n" + _traceback(self.formatException(record.exc_info))
        return line


class JournalFormatter(logging.Formatter):
    """For journald: each line begins with its priority, which journald removes (sd-daemon(3)).

    The timestamp is left out, because journald adds its own.
    """

    def __init__(self, fmt: str) -> None:
        super().__init__()
        self._json = JsonFormatter() if fmt == "json" else None

    def format(self, record: logging.LogRecord) -> str:
        if self._json is not None:
            text = self._json.format(record)
        else:
            text = one_line(_placed(record))
            if record.exc_info:
                text += "\n" + _traceback(self.formatException(record.exc_info))
        priority = _PRIORITIES.get(record.levelno, _PRIORITIES[logging.INFO])
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event and, where known, interface, client and traceback. Terminal control
    characters are escaped, because parts of a line come from peers."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, str] = {"time": _timestamp(record), "level": record.levelname.lower()}
        for name in ("interface", "client"):
            if value := getattr(record, name, None):
                fields[name] = value
        fields["event"] = message_of(record)
        if record.exc_info:
            fields["traceback"] = _traceback(self.formatException(record.exc_info))
        return one_line_json(json.dumps(fields, ensure_ascii=False))


def _traceback(text: str) -> str:
    """A traceback, made safe for a terminal, because an exception's text may come from a peer.

    Long lines are shortened, and lines in the middle are left out if there are too many.
    """
    lines = text.split("\n")
    if len(lines) > _TRACEBACK_LINES:
        left_out = len(lines) - _TRACEBACK_LINES
        half = _TRACEBACK_LINES // 2
        lines = [*lines[:half], f"... {left_out} lines ...", *lines[-half:]]
    return "\n".join(one_line(shorten(line, _TRACEBACK_CHARS)) for line in lines)


def _placed(record: logging.LogRecord) -> str:
    """The message, preceded by the interface and the client that it is about."""
    where = " ".join(filter(None, (getattr(record, "interface", None), getattr(record, "client", None))))
    return f"{where}: {message_of(record)}" if where else message_of(record)


def message_of(record: logging.LogRecord) -> str:
    """Return the message, shortened, because part of it may come from a peer."""
    return shorten_escaped(record.getMessage(), LINE_CHARS)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"


def is_journal(stream: str) -> bool:
    """Whether our stderr is the stream to the journal that JOURNAL_STREAM names (systemd.exec(5)).

    It is not if stderr was redirected after systemd had set it up.
    """
    if sys.stderr is None:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # stderr is closed, or not a file
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def set_up_logging(level: str, fmt: str) -> None:
    """Send the program's log to stderr, in journald's format if stderr is a stream to the journal.

    May be called again to change the level or the format. Handlers that were added by `add_handler` stay.

    ``level``: one of LEVELS. ``fmt``: ``text`` or ``json``.
    """
    handler = logging.NullHandler() if sys.stderr is None else LossyHandler(sys.stderr)
    if is_journal(os.environ.get("JOURNAL_STREAM", "")):
        handler.setFormatter(JournalFormatter(fmt))
    else:
        handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    others = [other for other in _ROOT.handlers if not isinstance(other, LossyHandler | logging.NullHandler)]
    _ROOT.handlers[:] = [handler, *others]
    if not any(isinstance(known, SourceLimit) for known in _ROOT.filters):
        _ROOT.addFilter(SourceLimit())
    _ROOT.setLevel(level.upper())
    _ROOT.propagate = False
