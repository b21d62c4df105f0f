"""Notifies the service manager that started this process: sd_notify(3), and s6's notification descriptor.

Sending never waits. If the manager does not receive, a warning is logged once, and the tunnel continues. If it is busy,
the messages that it waits for (ready, reloading, stopping) are sent as soon as it takes them.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from ...errors import HostError
from ...log import Log
from ...text import one_line, shorten

STATUS_CHARS: Final = 200
UNSENT: Final = 8  # messages kept until they can be sent; systemd's queue has room for hundreds


def encode(**assignments: str | int) -> bytes:
    """One datagram of sd_notify: one line for each assignment, even if a value contains line breaks."""
    lines = [f"{name}={one_line(value) if isinstance(value, str) else value}" for name, value in assignments.items()]
    return "\n".join(lines).encode()


def watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """The longest interval between watchdog messages that the manager expects (sd_watchdog_enabled(3)).

    None if it expects none. Malformed values count as absent.
    """
    usec, watched_pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdecimal()) or int(usec) == 0 or (watched_pid and watched_pid != str(pid)):
        return None
    return int(usec) / 1e6


class ServiceManager:
    """The connection to the service manager, if there is one. A context manager, which closes it.

    Attributes:
        listens: whether there is a manager to notify.
        watchdog_s: as the function `watchdog_s`.
    """

    def __init__(self, environ: Mapping[str, str], notify_fd: int | None, log: Log) -> None:
        """``notify_fd``: where to write one line when ready (s6). Raises HostError if it is not open."""
        self._log = log
        self._fd = notify_fd
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._failed = False
        self._ready = False
        self._status = ""
        self._unsent: deque[bytes] = deque(maxlen=UNSENT)
        self.watchdog_s = watchdog_s(environ, os.getpid()) if self._address is not None else None
        if notify_fd is not None:
            try:
                os.fstat(notify_fd)
            except OSError as exc:
                text = f"--notify-fd {notify_fd}: no such descriptor is open; under s6 the file notification-fd"
                raise HostError(f"{text} of the service has to say {notify_fd}") from exc
            os.set_inheritable(notify_fd, False)
        self._sock: socket.socket | None = None

    @property
    def listens(self) -> bool:
        return self._address is not None or self._fd is not None

    def ready(self) -> None:
        """Call when everything is up."""
        self._ready = True
        self._send(encode(READY=1), keep=True)
        fd, self._fd = self._fd, None
        if fd is not None:
            try:
                os.write(fd, b"\n")
            except OSError as exc:
                self._fail(f"descriptor {fd}", exc)
            finally:
                os.close(fd)

    def status(self, text: str) -> None:
        """Set the line for ``systemctl status``; sent if it has changed. Sends kept messages first, so call this
        periodically."""
        self._send()
        text = shorten(text, STATUS_CHARS)
        if text != self._status:
            self._status = text
            self._send(encode(STATUS=text))

    def reloading(self) -> None:
        """A reload begins; `reloaded` ends it. Before `ready` both methods send nothing, since the manager would regard
        a process that is still starting as ready."""
        if self._ready:
            self._send(encode(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000), keep=True)

    def reloaded(self) -> None:
        """The reload is over, successful or not."""
        if self._ready:
            self._send(encode(READY=1), keep=True)

    def stopping(self) -> None:
        """This process begins to stop."""
        self._send(encode(STOPPING=1), keep=True)

    def watchdog(self) -> None:
        """This process is alive."""
        self._send(encode(WATCHDOG=1))

    def _send(self, message: bytes = b"", *, keep: bool = False) -> None:
        """Send the kept messages, then this one. ``keep``: if it cannot be sent now, keep it."""
        if self._address is None:
            return
        try:
            if self._sock is None:
                self._sock = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                )
            while self._unsent:
                self._sock.sendto(self._unsent[0], self._address)
                self._unsent.popleft()
            if message:
                self._sock.sendto(message, self._address)
        except OSError as exc:
            if keep and isinstance(exc, BlockingIOError):
                self._unsent.append(message)
            self._fail(f"NOTIFY_SOCKET {self._address!r}", exc)

    def _fail(self, where: str, exc: OSError) -> None:
        if not self._failed:
            self._failed = True
            self._log.warning("cannot notify the service manager: %s: %s", where, exc.strerror or exc)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sock is not None:
            self._sock.close()
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _address(text: str) -> str | None:
    """The address for sendto(2) of an absolute path, or of an abstract name (``@``); None for other kinds (vsock)."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None
