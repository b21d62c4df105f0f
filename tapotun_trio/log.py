"""Logging: one line per event on stderr, with the interface and the client it is about."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import select
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Final, TextIO, TypeAlias

from .errors import EndReason, shortage_in
from .text import one_line, shorten

Log: TypeAlias = "logging.LoggerAdapter[logging.Logger]"

_ROOT: Final = logging.getLogger("tapotun")
LEVELS: Final = ("debug", "info", "warning", "error")
FLAPPING_S: Final = 600.0
FLAPPING_BURST: Final = 20  # lines of a kind within that
PATIENCE_MS: Final = 100  # with a reader that is only slow
_PIECE_CHARS: Final = 1024  # at most PIPE_BUF bytes of UTF-8, which a pipe with room takes without waiting (pipe(7))
_TRACEBACK_LINES: Final = 200
_TRACEBACK_CHARS: Final = 500  # of one line
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}  # syslog(3)


class _Adapter(logging.LoggerAdapter[logging.Logger]):
    """Puts interface and client into each record, for either format to place."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def process_logger() -> Log:
    """For events of the process as a whole."""
    return _Adapter(_ROOT, {})


def interface_logger(interface: str) -> Log:
    return _Adapter(_ROOT, {"interface": interface})


def client_logger(interface: str, client: str) -> Log:
    return _Adapter(_ROOT, {"interface": interface, "client": client})


def add_handler(handler: logging.Handler) -> None:
    """Have somebody take the log beside stderr."""
    _ROOT.addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Undo `add_handler`. May be called again."""
    _ROOT.removeHandler(handler)


class RateLimitedLog:
    """For an event that anybody on the network can cause: logged at once, at most ``burst`` times in ``interval_s``.

    ``debug``: the others are shown to who debugs.
    """

    __slots__ = ("_burst", "_debug", "_interval_s", "_left", "_next", "_quiet")

    def __init__(self, interval_s: float = 10.0, *, burst: int = 1, debug: bool = False) -> None:
        self._interval_s = interval_s
        self._burst = burst
        self._debug = debug
        self._left = 0  # lines until _next
        self._next = -math.inf
        self._quiet = 0

    def log(self, log: Log, level: int, now: float, text: str, *, traceback: bool = False) -> bool:
        """Log ``text``, with the number of events since the last line if there were others; or just count it. Returns
        whether it was logged. ``traceback``: with that of the exception that is being handled."""
        if now >= self._next:
            self._next = now + self._interval_s
            self._left = self._burst
        if not self._left:
            self._quiet += 1
            if self._debug:
                log.debug("%s", text)
            return False
        more = f" ({self._quiet} more since the last such line)" if self._quiet else ""
        log.log(level, "%s%s", text, more, exc_info=traceback)
        self._left -= 1
        self._quiet = 0
        return True


def flap_damped() -> RateLimitedLog:
    """For what may come again for days, such as a client that comes and goes."""
    return RateLimitedLog(FLAPPING_S, burst=FLAPPING_BURST, debug=True)


class Faults:
    """Tells of what went wrong in one request or session by no fault of the peer: a bug, with its traceback, or a
    shortage of this machine, in one line. A peer may be able to cause it again and again, so it is limited."""

    __slots__ = ("_bugs", "_shortages")

    def __init__(self) -> None:
        self._bugs = flap_damped()
        self._shortages = RateLimitedLog()

    def log(self, log: Log, now: float, text: str, exc: BaseException) -> EndReason:
        """Call this where ``exc`` is handled. ``text``: what ended. Returns the word to count it under."""
        shortage = shortage_in(exc, text)
        if shortage is not None:
            self._shortages.log(log, logging.WARNING, now, str(shortage))
            return shortage.reason
        self._bugs.log(log, logging.ERROR, now, f"internal error, {text}", traceback=True)
        return EndReason.INTERNAL_ERROR


class LossyHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream that may fail: a full disk, a pipe without a reader, or with one that hangs, a terminal that
    was stopped (Ctrl-S). That ends nothing, fills nothing and holds nobody up for longer than `PATIENCE_MS` once, and
    after the first line that can be written again another one says what was missed. Only a terminal that hangs without
    having been stopped may still make a line wait: it does not tell how much it takes."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._missed = 0
        self._why = ""
        self._is_torn = False
        self._room: Final = _poll_for_room(stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
            if self._missed:
                told = f"{self._missed} lines before this came late, or not at all: {self._why}"
                self._write(self.format(logging.LogRecord(record.name, logging.WARNING, "", 0, told, None, None)))
                self._missed = 0
        except OSError as exc:
            self._missed += 1
            self._why = exc.strerror or type(exc).__name__
        except Exception:  # noqa: BLE001 - a bug in what was to be logged: logging's own way to tell
            self.handleError(record)

    def _write(self, line: str) -> None:
        text = f"{self.terminator if self._is_torn else ''}{line}{self.terminator}"
        for at in range(0, len(text), _PIECE_CHARS):
            # It is patient once: lines that come while nobody reads do not each hold the tunnels up.
            if self._room is not None and not self._room.poll(0 if self._missed else PATIENCE_MS):
                raise BlockingIOError(errno.EAGAIN, "whoever reads the log took nothing")
            self.stream.write(text[at : at + _PIECE_CHARS])
            self._is_torn = at + _PIECE_CHARS < len(text)
            self.stream.flush()


def _poll_for_room(stream: TextIO) -> select.poll | None:
    """Tells whether a write would have to wait. None if the stream is no file. The descriptor itself stays blocking:
    what it names is shared with others, such as the shell of a terminal."""
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
        # One event is one line; a bug's traceback is the exception to that, and follows it.
        line = one_line(line)
        if record.exc_info:
            line += "\n" + _traceback(self.formatException(record.exc_info))
        return line


class JournalFormatter(logging.Formatter):
    """For journald: each line with its priority before it (sd-daemon(3)), which is taken off there, and what the
    journal has itself left out."""

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
    """One JSON object a line: time, level, event, and where known interface, client, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, str] = {"time": _timestamp(record), "level": record.levelname.lower()}
        for name in ("interface", "client"):
            if value := getattr(record, name, None):
                fields[name] = value
        fields["event"] = record.getMessage()
        if record.exc_info:
            fields["traceback"] = _traceback(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def _traceback(text: str) -> str:
    """What an exception says may be a peer's words: each line is made fit for a terminal and shortened, and there is a
    limit to the lines. The last ones say most."""
    lines = text.split("\n")
    if len(lines) > _TRACEBACK_LINES:
        left_out = len(lines) - _TRACEBACK_LINES
        half = _TRACEBACK_LINES // 2
        lines = [*lines[:half], f"... {left_out} lines ...", *lines[-half:]]
    return "\n".join(one_line(shorten(line, _TRACEBACK_CHARS)) for line in lines)


def _placed(record: logging.LogRecord) -> str:
    """The message, and before it what it is about."""
    where = " ".join(filter(None, (getattr(record, "interface", None), getattr(record, "client", None))))
    return f"{where}: {record.getMessage()}" if where else record.getMessage()


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"


def is_journal(stream: str) -> bool:
    """Whether our stderr is the stream to the journal that JOURNAL_STREAM names (systemd.exec(5)); it may have been
    turned elsewhere since."""
    if sys.stderr is None:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # there is none, or it is no file
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def set_up_logging(level: str, fmt: str) -> None:
    """Send the program's log to stderr, as journald wants it if that is there; or change how. ``level``: one of LEVELS;
    ``fmt``: ``text`` or ``json``. Whoever else takes the log goes on."""
    handler = logging.NullHandler() if sys.stderr is None else LossyHandler(sys.stderr)
    if is_journal(os.environ.get("JOURNAL_STREAM", "")):
        handler.setFormatter(JournalFormatter(fmt))
    else:
        handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    others = [it for it in _ROOT.handlers if not isinstance(it, LossyHandler | logging.NullHandler)]
    _ROOT.handlers[:] = [handler, *others]
    _ROOT.setLevel(level.upper())
    _ROOT.propagate = False
