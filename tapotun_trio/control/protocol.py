"""What goes over the control socket: one line of JSON as a request, one line of JSON as its answer, then the end.

::

    {"command":"status","arguments":{"interfaces":["tun0"]}}\\n      arguments may be left out where all have a default
    {"result":{...}}\\n    or    {"error":"one line for a person"}\\n    or    {"error":"...","busy":true}\\n

Sans-IO. Untrusted input, from either end; raises PeerError only. docs/status.md documents it for other programs.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from ..errors import EndReason, PeerError
from ..status.model import SCHEMA, ProcessStatus
from ..text import one_line, shorten

MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024  # status of a hundred thousand clients
LONGEST_WAIT_S: Final = 30.0  # one request's; who wants to wait longer asks again
ERROR_CHARS: Final = 1000

_NO_ARGUMENTS: Final = Raw(b"{}")

T = TypeVar("T")


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """``arguments`` is decoded by whom the command belongs to."""

    command: str
    arguments: Raw = _NO_ARGUMENTS


class StatusArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """No interfaces: all."""

    interfaces: list[str] = []


class WaitArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """Until these are up (none: all), at most so long."""

    interfaces: list[str] = []
    timeout_s: Annotated[float, Meta(ge=0, le=LONGEST_WAIT_S)] = LONGEST_WAIT_S


class WaitResult(Struct, frozen=True):
    """``waiting``: those that are not up, and how they are."""

    up: list[str]
    waiting: dict[str, str]


class DisconnectArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """``client``: as the config calls it. No interface: every server's client of that name."""

    client: str
    interface: str | None = None


class DisconnectResult(Struct, frozen=True):
    """``sessions``: so many of that client had streams, which were ended."""

    sessions: int


class ReloadArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """``dry_run``: say what would change, and change nothing."""

    dry_run: bool = False


class ReloadResult(Struct, frozen=True):
    """What changed, a line each; none: the config is as it was."""

    changes: list[str]


class StatusReport(Struct, frozen=True, kw_only=True):
    """What ``tapotun status --json`` prints: every process that was asked and answered."""

    schema: int = SCHEMA
    processes: list[ProcessStatus] = []


class _Answer(Struct, frozen=True):
    result: Raw = Raw(b"")  # msgspec has no optional one
    error: str | None = None
    busy: bool = False  # too many ask: the same may be asked again


class LineReader:
    """Bytes in, one line out, of at most ``limit_bytes``. What comes behind the line is nobody's."""

    __slots__ = ("_limit_bytes", "_parts", "_size")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes | None:
        """The line, without its end, or None if it is not complete. No data means that the other end closed."""
        if not data:
            raise PeerError("closed within a line", reason=EndReason.CLOSED)
        line, end, _ = data.partition(b"\n")
        self._size += len(line)
        if self._size > self._limit_bytes:
            raise PeerError(f"a line of more than {self._limit_bytes} bytes", reason=EndReason.TOO_LONG)
        self._parts.append(line)
        return b"".join(self._parts) if end else None


def encode_request(command: str, arguments: Struct | None = None) -> bytes:
    """A request's line."""
    raw = _NO_ARGUMENTS if arguments is None else Raw(msgspec.json.encode(arguments))
    return msgspec.json.encode(Request(command, raw)) + b"\n"


def decode_request(line: bytes) -> Request:
    """A request, its arguments not looked at yet."""
    return _decode(line, Request, "request")


def decode_arguments(raw: Raw, kind: type[T]) -> T:
    """The arguments of one command."""
    return _decode(bytes(raw), kind, "arguments")


def encode_result(result: Any) -> bytes:
    """The line that answers with what msgspec can encode."""
    return b'{"result":' + msgspec.json.encode(result) + b"}\n"


def encode_error(text: str) -> bytes:
    """The line that answers with an error."""
    return msgspec.json.encode({"error": one_line(shorten(text, ERROR_CHARS))}) + b"\n"


BUSY: Final = encode_error("too many ask at the same time; try again")[:-2] + b',"busy":true}\n'


def decode_answer(line: bytes, kind: type[T]) -> T:
    """What a command answered. An error of the other end is a PeerError with its text, and reason "refused" or "busy";
    what no control socket says, such as HTTP, has the reason "foreign"."""
    if not line.startswith(b"{"):
        raise PeerError("this is not tapotun's control socket", reason=EndReason.FOREIGN)
    answer = _decode(line, _Answer, "answer")
    if answer.error is not None:
        reason = EndReason.BUSY if answer.busy else EndReason.REFUSED
        raise PeerError(one_line(shorten(answer.error, ERROR_CHARS)), reason=reason)
    if not bytes(answer.result):
        raise PeerError("neither a result nor an error", reason=EndReason.BAD_ANSWER)
    return _decode(bytes(answer.result), kind, "answer")


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        text = one_line(shorten(str(exc), 200))
        reason = EndReason.BAD_ANSWER if what == "answer" else EndReason.BAD_REQUEST
        raise PeerError(f"not understood: {what}: {text}", reason=reason) from None
