"""What the service manager that started this process is told: sd_notify(3), and s6's notification descriptor.

Sending never waits. A manager that does not listen is told to the operator once, and the tunnel goes on. One that is
busy gets what it waits for (that we are ready, or reload, or stop) as soon as it takes it.
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
UNSENT: Final = 8  # of the last of these messages; systemd's queue has room for hundreds


def encode(**assignments: str | int) -> bytes:
    """One datagram of sd_notify: a line for each, whatever the values have in them."""
    lines = [f"{name}={one_line(value) if isinstance(value, str) else value}" for name, value in assignments.items()]
    return "\n".join(lines).encode()


def watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """How often at least the manager wants to hear that this process lives (sd_watchdog_enabled(3)); None: it does
    not. What is malformed counts as nothing: it is not for us, or nobody waits."""
    usec, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdecimal()) or int(usec) == 0 or (whose and whose != str(pid)):
        return None
    return int(usec) / 1e6


class ServiceManager:
    """Who is told, if anybody. A context manager, which closes what it has.

    Attributes:
        listens: somebody is told anything.
        watchdog_s: see above.
    """

    def __init__(self, environ: Mapping[str, str], notify_fd: int | None, log: Log) -> None:
        """``notify_fd``: to be written a line to once (s6). Raises HostError if it is not open."""
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
        """Everything is up."""
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
        """A line for ``systemctl status``; sent if it is not what was said last. Before it goes what could not be sent
        yet, so this is to be called now and then."""
        self._send()
        text = shorten(text, STATUS_CHARS)
        if text != self._status:
            self._status = text
            self._send(encode(STATUS=text))

    def reloading(self) -> None:
        """A reload begins; `reloaded` ends it. Before `ready` neither says anything: else one that is still starting
        would be taken for ready."""
        if self._ready:
            self._send(encode(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000), keep=True)

    def reloaded(self) -> None:
        """It is over, whatever came of it."""
        if self._ready:
            self._send(encode(READY=1), keep=True)

    def stopping(self) -> None:
        """The end begins."""
        self._send(encode(STOPPING=1), keep=True)

    def watchdog(self) -> None:
        """We are alive."""
        self._send(encode(WATCHDOG=1))

    def _send(self, message: bytes = b"", *, keep: bool = False) -> None:
        """And first what could not be sent before. ``keep``: the same happens to this."""
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
            self._log.warning("the service manager cannot be told how we are: %s: %s", where, exc.strerror or exc)

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
    """An absolute path, or ``@`` for an abstract name; of other kinds (vsock) there are none where we run."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None
