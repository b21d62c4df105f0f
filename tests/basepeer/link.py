"""Blocking TCP connections, a bell to ring a blocked thread, and the pool of kept-alive connections."""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from typing import Final

from .http1 import MAX_HEAD, Head, HttpError, parse_head
from .journal import Journal

_READ_BYTES: Final = 256 * 1024
_FOLLOW_UP_S: Final = 2.0  # "The follow-up comes at once, or within a second."


class Broken(Exception):
    """The connection is gone; what was in flight is lost."""


class Bell:
    """An eventfd: any thread rings, the owner polls it together with its socket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """For poll(); -1 once closed."""
        return self._fd

    def ring(self) -> None:
        """Wake the owner, now or at its next wait. Harmless after close()."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def hush(self) -> None:
        """Forget earlier rings; the owner calls it before it looks at what they were about."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def wait(self, timeout_s: float) -> bool:
        """Block until rung or time is up; True for the former."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        """Give the descriptor back."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Link:
    """One TCP connection. Owned by one thread; `abort` may come from any."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._buffer = b""
        self.last_role = ""
        self.idle_since = 0.0
        self.used = False
        sock.settimeout(timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = f"port {sock.getsockname()[1]}"

    def send(self, data: bytes) -> None:
        """Send all of it; raises Broken."""
        try:
            self._sock.sendall(data)
        except OSError as exc:
            raise Broken(f"{self.name}: send: {exc}") from exc

    def wait(self, bell: Bell | None, timeout_s: float) -> bool:
        """Block until there is something to read, the bell rings or time is up; True for the first."""
        if self._buffer or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if bell is not None:
            poll.register(bell.fileno(), select.POLLIN)
        ready = poll.poll(max(0.0, timeout_s) * 1000)
        return any(fd == self._sock.fileno() for fd, _ in ready)

    def read(self) -> bytes:
        """What has arrived, or b"" at the end; raises Broken on a reset or after the long timeout."""
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        try:
            return self._sock.recv(_READ_BYTES)
        except OSError as exc:
            raise Broken(f"{self.name}: read: {exc}") from exc

    def unread(self, data: bytes) -> None:
        """Put back what belongs to the next message."""
        self._buffer = data + self._buffer

    def read_head(self, timeout_s: float | None, bell: Bell | None = None) -> Head | None:
        """The next message's head.

        None where nothing came in time, or the bell rang; what came so far is kept for the next call.
        Raises Broken at the end of the connection, HttpError on a bad head.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        raw = b""
        while b"\r\n\r\n" not in raw:
            if len(raw) > MAX_HEAD:
                raise HttpError(f"head of more than {MAX_HEAD} bytes")
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            if not self.wait(bell, left):
                self.unread(raw)
                return None
            data = self.read()
            if not data:
                raise Broken(f"{self.name}: closed" + (f" in a head: {raw[:80]!r}" if raw else ""))
            raw += data
        head, _, rest = raw.partition(b"\r\n\r\n")
        self.unread(rest)
        return parse_head(head)

    def gone(self) -> str | None:
        """What an idle connection has to say, without blocking: None where it is as it should be."""
        if not self.wait(None, 0):
            return None
        try:
            data = self.read()
        except Broken as exc:
            return str(exc)
        return f"sent {data[:80]!r} unasked" if data else "closed"

    def finish(self) -> None:
        """Tell the other side that nothing more comes; reading goes on."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """End both directions from any thread; the owner's blocked call returns and it closes."""
        with self._lock, contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back; the owner only."""
        with self._lock:
            self._sock.close()


class Pool:
    """Idle connections of a client: "A deployed client keeps its connections alive".

    "after a stream's clean end it sends the next GET or PUT on the same connection, and the two
    connections may swap roles": with `swap`, a connection that last carried the other role comes first.
    """

    def __init__(self, journal: Journal, *, swap: bool, strict: bool) -> None:
        self._journal = journal
        self._swap = swap
        self._strict = strict
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._pending: list[str] = []
        self._closed = False

    def give(self, link: Link, role: str) -> None:
        """Keep a connection whose stream has ended cleanly."""
        link.last_role, link.idle_since, link.used = role, time.monotonic(), True
        with self._lock:
            if not self._closed:
                self._idle.append(link)
                return
        link.close()

    def take(self, role: str) -> Link | None:
        """An idle connection that still lives, or None."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                fit = [i for i in self._idle if (i.last_role != role) == self._swap]
                link = (fit or self._idle)[0]
                self._idle.remove(link)
            said = link.gone()
            if said is None:
                if link.last_role != role:
                    self._journal.event("swap", f"{link.name}: {link.last_role} then {role}")
                return link
            self.complain(link, said)
            link.close()

    def complain(self, link: Link, said: str) -> None:
        """ "So a server serves request after request on a connection."

        Whether it is the server's fault shows at the next connection: a server that stops may close.
        """
        idle_s = time.monotonic() - link.idle_since
        text = f"kept-alive connection after {idle_s:.1f} s idle: {said}"
        if not self._strict or idle_s >= _FOLLOW_UP_S:
            self._journal.remark(text)
            return
        with self._lock:
            self._pending.append(text)

    def settle(self, *, serving: bool) -> None:
        """A fresh connection was answered, or was not: judge the complaints that waited for it."""
        with self._lock:
            pending, self._pending = self._pending, []
        for text in pending:
            if serving:
                self._journal.violation(text)
            else:
                self._journal.remark(text)

    def close(self) -> None:
        """Close all, and any that is given later."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self.settle(serving=False)
        for link in idle:
            link.close()
