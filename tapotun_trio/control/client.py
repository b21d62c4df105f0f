"""Sends a command to running processes. Blocking, on plain sockets: a short subcommand needs no event loop.

All processes are asked at the same time, so that a process that hangs does not delay the answers of the others. Any
program may listen at a socket, so time and memory are bounded for each answer and for all of them together.
"""

from __future__ import annotations

import errno
import math
import selectors
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final, Generic, TypeVar

from msgspec import Struct

from ..errors import EndReason, HostError, PeerError
from .protocol import MAX_ANSWER_BYTES, LineReader, decode_answer, encode_request

ANSWER_S: Final = 10.0
# Once one process has answered a command that needs no time, the others have this long. The time starts again with each
# piece of a long answer.
PATIENCE_S: Final = 2.0
# Until one has answered. A process with thousands of clients answers within a second, but a machine may be busy.
FIRST_ANSWER_S: Final = 3.0
_PATIENCE_BYTES: Final = 256 * 1024
_CONNECT_RETRY_S: Final = 0.05
_ANSWER_READ_BYTES: Final = 256 * 1024

T = TypeVar("T")


class NobodyThereError(HostError):
    """The socket is stale or gone: the process has ended."""


class _Question(Generic[T]):
    """One command to one process.

    Attributes:
        outcome: the answer or the error; None until it is known.
        limit_s: the deadline of this process alone, by time.monotonic().
        allowed_s: how long it was given, for people.
    """

    def __init__(self, path: str, request: bytes, kind: type[T], patience_s: float | None) -> None:
        self.path = path
        self.outcome: T | HostError | PeerError | None = None
        self.reader = LineReader(MAX_ANSWER_BYTES)
        self._unsent = memoryview(request)
        self._kind = kind
        self._patience_s = patience_s
        self.limit_s = self.allowed_s = math.inf
        self._counted_bytes = 0
        self._connected = False
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def connect(self) -> bool:
        """Try to connect. False: the process has no room for another connection yet."""
        try:
            self.sock.connect(self.path)
        except BlockingIOError:
            return False
        except OSError as exc:
            self.outcome = self._failed(exc)
            return True
        self._connected = True
        return True

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def events(self) -> int:
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)

    def hurry(self, now: float, within_s: float | None) -> None:
        """Shorten the deadline. None: do not."""
        if within_s is not None and now + within_s < self.limit_s:
            self.limit_s, self.allowed_s = now + within_s, within_s

    def proceed(self, events: int, now: float) -> None:
        """Send and receive as much as possible without blocking."""
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            if events & selectors.EVENT_READ:
                self._receive(now)
        except BlockingIOError:
            pass
        except OSError as exc:
            self.outcome = self._failed(exc)
        except PeerError as exc:
            gone = exc.reason == EndReason.CLOSED
            text = f"{self.path}: the process ended before it answered"
            self.outcome = NobodyThereError(text) if gone else exc

    def forget(self) -> None:
        """Free the memory of the received data."""
        self.reader = LineReader(0)

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except (BrokenPipeError, ConnectionResetError):  # the process may have answered without reading the request
            self._unsent = memoryview(b"")

    def _receive(self, now: float) -> None:
        data = self.sock.recv(_ANSWER_READ_BYTES)
        if data and not self.reader.size and not data.startswith(b"{"):
            data = data[:1] + b"\n"  # not an answer of this program: `decode_answer` reports that at once
        line = self.reader.feed(data)
        if line is not None:
            self.forget()
            self.outcome = decode_answer(line, self._kind)
        elif self._patience_s is not None and self.reader.size >= self._counted_bytes + _PATIENCE_BYTES:
            self._counted_bytes = self.reader.size
            self.limit_s = max(self.limit_s, now + self._patience_s)

    def _failed(self, exc: OSError) -> HostError:
        if isinstance(exc, ConnectionRefusedError | FileNotFoundError | ConnectionResetError):
            return NobodyThereError(f"{self.path}: no process listens there any more")
        if isinstance(exc, PermissionError):
            return HostError(f"{self.path}: permission denied; ask as root, or as the user whose process it is")
        if exc.errno == errno.EPROTOTYPE:  # a socket of another kind
            return NobodyThereError(f"{self.path}: no process listens there")
        return HostError(f"{self.path}: {exc.strerror or exc}")


def ask(path: str, command: str, arguments: Struct | None, kind: type[T], *, timeout_s: float = ANSWER_S) -> T:
    """Send a command to the process at this socket and return its answer, within ``timeout_s`` in all.

    Raises:
        NobodyThereError: the process has ended.
        HostError: permission denied, or no answer.
        PeerError: the answer is an error (reason "refused" or "busy"), or malformed.
    """
    [(_, outcome)] = ask_all([path], command, arguments, kind, timeout_s=timeout_s)
    if isinstance(outcome, HostError | PeerError):
        raise outcome
    return outcome


def ask_all(
    paths: Iterable[str],
    command: str,
    arguments: Struct | None,
    kind: type[T],
    *,
    timeout_s: float = ANSWER_S,
    first_s: float | None = None,
    patience_s: float | None = None,
) -> list[tuple[str, T | HostError | PeerError]]:
    """Send a command to the processes at these sockets, all at the same time.

    Returns each path with the answer, or with the error that `ask` would raise, in the order of ``paths``.

    Args:
        timeout_s: how long to wait for all answers together.
        first_s: how long to wait for the first answer. None: ``timeout_s``.
        patience_s: how long to wait for the others once one process has answered. Each piece of a long answer starts
            it again. None: ``timeout_s``.
    """
    request = encode_request(command, arguments)
    with ExitStack() as undo:
        selector = undo.enter_context(selectors.DefaultSelector())
        questions: list[_Question[T]] = []
        for path in paths:
            question = _Question(path, request, kind, patience_s)
            undo.callback(question.sock.close)
            questions.append(question)
        _run(questions, selector, timeout_s, first_s, patience_s)
        found: list[tuple[str, T | HostError | PeerError]] = []
        for question in questions:
            outcome = _no_answer(question.path, timeout_s) if question.outcome is None else question.outcome
            found.append((question.path, outcome))
        return found


def _run(
    questions: list[_Question[T]],
    selector: selectors.BaseSelector,
    timeout_s: float,
    first_s: float | None,
    patience_s: float | None,
) -> None:
    """Send and receive until every question has its outcome or its time is over. Arguments as for `ask_all`."""
    begun = time.monotonic()
    deadline = begun + timeout_s
    for question in questions:
        question.hurry(begun, first_s)
    while open_questions := [question for question in questions if question.outcome is None]:
        for question in open_questions:
            if not question.connected and question.connect() and question.outcome is None:
                selector.register(question.sock, question.events, question)
        now = time.monotonic()
        if now >= deadline:
            return
        pause_s = min([deadline, *(question.limit_s for question in open_questions)]) - now
        if any(not question.connected for question in open_questions) or any(q.outcome is not None for q in questions):
            pause_s = min(pause_s, _CONNECT_RETRY_S)
        ready = [(key.data, events) for key, events in selector.select(max(pause_s, 0.0))]
        now = time.monotonic()
        for question, events in ready:
            question.proceed(events, now)
        _forget_the_longest(open_questions)
        if any(not isinstance(question.outcome, HostError | PeerError | None) for question in questions):
            for question in open_questions:
                question.hurry(now, patience_s)
        for question in open_questions:
            if question.outcome is None and now >= question.limit_s:
                question.outcome = _no_answer(question.path, question.allowed_s)
            if question.outcome is None and question.connected:
                selector.modify(question.sock, question.events, question)
            elif question.connected:
                selector.unregister(question.sock)


def _forget_the_longest(questions: list[_Question[T]]) -> None:
    """Give up the longest unfinished answers, so that all unfinished ones together stay within MAX_ANSWER_BYTES."""
    unfinished = [question for question in questions if question.outcome is None]
    if sum(question.reader.size for question in unfinished) > MAX_ANSWER_BYTES:
        longest = max(unfinished, key=lambda question: question.reader.size)
        text = f"{longest.path}: the answers are too long"
        longest.outcome = PeerError(text, reason=EndReason.TOO_LONG)
        longest.forget()


def _no_answer(path: str, waited_s: float) -> HostError:
    return HostError(f"{path}: no answer within {waited_s:.0f} s; is the process stopped?")
