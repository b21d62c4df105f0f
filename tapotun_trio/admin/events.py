"""The newest lines of the log, for the panel."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal

import trio
from msgspec import Struct

from ..log import message_of
from ..text import one_line, shorten

KEPT: Final = 200
TEXT_CHARS: Final = 1000


class Event(Struct, frozen=True):
    """One line of the log. ``number`` increases by one; ``at`` is UTC, RFC 3339, to the second."""

    number: int
    at: str
    level: Literal["info", "warning", "error"]
    interface: str | None
    text: str


class Events(logging.Handler):
    """A logging handler that keeps the newest lines, from level info up. Any thread may log."""

    def __init__(self) -> None:
        """Call it within trio."""
        super().__init__(logging.INFO)
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._number = 0
        self._changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, under this handler's lock."""
        try:
            self._keep(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers do: reported on stderr, not raised
            self.handleError(record)

    def _keep(self, record: logging.LogRecord) -> None:
        client = getattr(record, "client", None)
        message = message_of(record)
        text = f"{client}: {message}" if client else message
        level: Literal["info", "warning", "error"] = "info"
        if record.levelno >= logging.WARNING:
            level = "error" if record.levelno >= logging.ERROR else "warning"
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._number += 1
        interface = getattr(record, "interface", None)
        self._kept.append(Event(self._number, at, level, interface, one_line(shorten(text, TEXT_CHARS))))
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._notify, idempotent=True)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def since(self, number: int) -> list[Event]:
        """The kept events after that number, oldest first; 0: all."""
        with self.lock:  # type: ignore[union-attr]  # None only if a subclass makes no lock
            return [event for event in self._kept if event.number > number]

    async def wait(self, number: int) -> None:
        """Wait for an event after that number. Cancel-safe; a checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._number <= number:
            await self._changed.wait()
