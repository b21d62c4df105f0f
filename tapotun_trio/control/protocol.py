"""The control socket's protocol: one line of JSON as a request, one line of JSON as the answer, then the end.

::

    {"command":"status","arguments":{"interfaces":["tun0"]}}\\n      arguments are optional if each has a default
    {"result":{...}}\\n    or    {"error":"one line for a person"}\\n    or    {"error":"...","busy":true}\\n

Sans-IO. Untrusted input, from either end; raises PeerError only. docs/status.md documents the protocol.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from ..errors import EndReason, PeerError
from ..status.macs import MacTableStatus
from ..status.model import SCHEMA, ProcessStatus
from ..text import one_line, shorten

MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # enough for the status of a full /16 of clients
MAX_MACS: Final = 20_000  # of each interface, in one answer
LONGEST_WAIT_S: Final = 30.0  # of one request; to wait longer, repeat it
ERROR_CHARS: Final = 1000

_NO_ARGUMENTS: Final = Raw(b"{}")

T = TypeVar("T")


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """``arguments`` is decoded by the handler of the command."""

    command: str
    arguments: Raw = _NO_ARGUMENTS


class StatusArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """``interfaces``: empty means all."""

    interfaces: list[str] = []


class MacsArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """``interfaces``: empty means all. ``limit``: how many addresses of each at most."""

    interfaces: list[str] = []
    limit: Annotated[int, Meta(ge=1, le=MAX_MACS)] = MAX_MACS


class MacsResult(Struct, frozen=True, kw_only=True):
    """The MAC addresses behind each server that has a TAP interface. ``name``: of the process."""

    name: str
    interfaces: list[MacTableStatus] = []


class WaitArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """Wait until these interfaces are up (empty: all), for at most ``timeout_s``."""

    interfaces: list[str] = []
    timeout_s: Annotated[float, Meta(ge=0, le=LONGEST_WAIT_S)] = LONGEST_WAIT_S


class WaitResult(Struct, frozen=True):
    """``waiting``: the interfaces that are not up, with their states; ``problems``: the reasons that are known."""

    up: list[str]
    waiting: dict[str, str]
    problems: dict[str, str] = {}


class DisconnectArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """``client``: its name in the config. ``interface``: None means every server with such a client."""

    client: str
    interface: str | None = None


class DisconnectResult(Struct, frozen=True):
    """``sessions``: the number of the client's sessions that had streams, which were ended."""

    sessions: int


class ReloadArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """``dry_run``: report what would change, and change nothing."""

    dry_run: bool = False


class ReloadResult(Struct, frozen=True):
    """One line for each change; empty if the config has not changed."""

    changes: list[str]


class StatusReport(Struct, frozen=True, kw_only=True):
    """The output of ``tapotun status --json``: every process that answered."""

    schema: int = SCHEMA
    processes: list[ProcessStatus] = []


class MacsReport(Struct, frozen=True, kw_only=True):
    """The output of ``tapotun status --macs --json``."""

    schema: int = SCHEMA
    processes: list[MacsResult] = []


class _Answer(Struct, frozen=True):
    result: Raw = Raw(b"")  # empty instead of None: msgspec has no optional Raw
    error: str | None = None
    busy: bool = False  # too many connections; the request may be repeated


class LineReader:
    """Bytes in, one line of at most ``limit_bytes`` out. Anything after the line is ignored.

    ``size``: how many bytes of the line have arrived.
    """

    __slots__ = ("_limit_bytes", "_parts", "size")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self.size = 0

    def feed(self, data: bytes) -> bytes | None:
        """The line, without its end, or None if it is not complete. No data means that the other end closed."""
        if not data:
            raise PeerError("closed within a line", reason=EndReason.CLOSED)
        line, end, _ = data.partition(b"\n")
        self.size += len(line)
        if self.size > self._limit_bytes:
            raise PeerError(f"a line of more than {self._limit_bytes} bytes", reason=EndReason.TOO_LONG)
        self._parts.append(line)
        return b"".join(self._parts) if end else None


def encode_request(command: str, arguments: Struct | None = None) -> bytes:
    """The line of a request."""
    raw = _NO_ARGUMENTS if arguments is None else Raw(msgspec.json.encode(arguments))
    return msgspec.json.encode(Request(command, raw)) + b"\n"


def decode_request(line: bytes) -> Request:
    """The request, with its arguments not decoded yet."""
    return _decode(line, Request, "request")


def decode_arguments(raw: Raw, kind: type[T]) -> T:
    """The arguments of one command."""
    return _decode(bytes(raw), kind, "arguments")


def encode_result(result: Any) -> bytes:
    """The line of an answer. ``result``: anything that msgspec can encode."""
    return b'{"result":' + msgspec.json.encode(result) + b"}\n"


def encode_error(text: str) -> bytes:
    """The line of an error."""
    return msgspec.json.encode({"error": one_line(shorten(text, ERROR_CHARS))}) + b"\n"


BUSY: Final = encode_error("too many requests at the same time; try again")[:-2] + b',"busy":true}\n'


def decode_answer(line: bytes, kind: type[T]) -> T:
    """The result of a command.

    Raises PeerError. An error that the process reports has its text, and the reason "refused" or "busy". Anything that
    is not this protocol, such as HTTP, has the reason "foreign".
    """
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
