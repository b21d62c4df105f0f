"""Listening sockets: TCP over IPv4 and IPv6, and Unix."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from ...config.model import ListenAddress, TcpAddress, UnixAddress
from ...errors import HostError, passing_shortages, shortage_of
from ..process.user import user_name
from .socketfile import SocketDirectory, SocketFile
from .sockets import Connection, avoid_bbr, peer_name

BACKLOG: Final = 512
# linux/in.h and linux/in6.h; Python's socket module has no names for them. Neither needs a privilege. The second exists
# since Linux 4.15; before that, the first was for both families.
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78


UNIT_REMEDY: Final = (
    "for the systemd unit, copy its unix-socket.conf (/usr/share/tapotun/systemd) to "
    "/etc/systemd/system/tapotun@.service.d, and listen in /run/tapotun-proxy"
)


class AbsentError(HostError):
    """This machine does not have the address or address family of an endpoint, but may have it later."""


class Listener:
    """One listening socket. `close` also removes a Unix socket's file.

    Attributes:
        relieve: called when a connection cannot be accepted because no descriptor is left. Returns whether it has
            closed one.
    """

    __slots__ = ("_file", "_sock", "_waits", "is_unix", "name", "relieve")

    def __init__(self, sock: socket.socket, name: str, file: SocketFile | None = None, *, waits: bool = False) -> None:
        self._sock = sock
        self._file = file
        self.is_unix = file is not None
        self._waits = waits
        self.name = name
        self.relieve: Callable[[], bool] = lambda: False

    @property
    def waits(self) -> bool:
        """Whether this machine did not have the address when the socket was bound, and still does not have it."""
        if self._waits and self._sock.fileno() >= 0:
            self._waits = not _is_local(self._sock)
        return self._waits

    async def accept(self) -> Connection:
        """The next connection. Cancel-safe; always a checkpoint.

        Raises trio.ClosedResourceError if it is closed. Raises ShortageError if the process or the machine has no
        descriptors or memory for it: wait a little and try again.
        """
        while True:
            if self._sock.fileno() < 0:
                await trio.lowlevel.checkpoint()  # the task that has closed it has most likely cancelled this one
                raise trio.ClosedResourceError(f"the listener on {self.name} is closed")
            try:
                await trio.lowlevel.wait_readable(self._sock)
                sock = self._accept()
                try:
                    return Connection(sock, peer_name(sock))
                except BaseException:
                    sock.close()
                    raise
            except (OSError, MemoryError) as exc:
                if (shortage := shortage_of(exc, f"cannot accept on {self.name}")) is not None:
                    raise shortage from exc
                if isinstance(exc, MemoryError):
                    raise
                # accept(2) passes on a pending network error of the new socket, which does not concern this one.
                if exc.errno in (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK):
                    raise

    def _accept(self) -> socket.socket:
        while True:
            try:
                return self._sock.accept()[0]
            except OSError as exc:
                # Retry without a task switch, so that no other task takes the freed descriptor.
                if exc.errno not in (errno.EMFILE, errno.ENFILE) or not self.relieve():
                    raise

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            if self._file is not None:
                self._file.remove()  # first, because another process may replace the file of a closed socket
            self._sock.close()


def endpoint_name(endpoint: ListenAddress) -> str:
    """The name in logs and in the status: ``192.0.2.7:8080``, ``[2001:db8::7]:8080``, ``unix:/path``."""
    if isinstance(endpoint, UnixAddress):
        return f"unix:{endpoint.path}"
    address = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{address}:{endpoint.port}"


def listen(endpoint: ListenAddress, socket_mode: int = 0o660) -> Listener | None:
    """Bind and listen. None: the endpoint is optional and this machine has no such address family. ``socket_mode``: the
    permissions of a Unix socket, independent of the umask.

    If this machine does not have the address, the socket is bound nevertheless, and can be reached as soon as the
    machine gets it (`Listener.waits`). The same is true of a tentative IPv6 address, which duplicate address detection
    still checks.

    Raises:
        AbsentError: this machine does not have the address family.
        HostError: the port is taken, or needs a privilege.
    """
    if isinstance(endpoint, UnixAddress):
        return _listen_unix(endpoint.path, socket_mode)
    family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
    name = endpoint_name(endpoint)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as exc:
        doing = f"cannot listen on {name}"
        if exc.errno != errno.EAFNOSUPPORT:
            raise shortage_of(exc, doing) or HostError(f"{doing}: {exc.strerror}") from exc
        if endpoint.optional:
            return None
        version = "IPv6" if family == socket.AF_INET6 else "IPv4"
        text = f"{doing}: this machine has no {version}; switch it on, or choose another address"
        raise AbsentError(text) from exc
    try:
        with suppress(OSError):  # needed only for a port that was in use a moment ago
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with suppress(OSError):  # without it, an IPv4 endpoint on this port may be refused
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        avoid_bbr(sock)
        waits = _bind(sock, endpoint)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        absent = exc.errno == errno.EADDRNOTAVAIL
        if absent and endpoint.optional:
            return None
        doing = f"cannot listen on {name}"
        kind = AbsentError if absent else HostError
        raise shortage_of(exc, doing) or kind(f"{doing}: {_listen_remedy(exc, endpoint.port)}") from exc
    return Listener(sock, name, waits=waits)


def _bind(sock: socket.socket, endpoint: TcpAddress) -> bool:
    """Bind. Returns whether this machine does not have the address yet. Raises OSError."""
    try:
        sock.bind((endpoint.address, endpoint.port))
        return False
    except OSError as exc:
        if exc.errno != errno.EADDRNOTAVAIL or endpoint.optional or not _try_freebind(sock):
            raise
    sock.bind((endpoint.address, endpoint.port))
    return True


def _try_freebind(sock: socket.socket) -> bool:
    """Allow binding to an address that this machine does not have. Returns whether the kernel supports that."""
    levels = [(socket.IPPROTO_IP, _IP_FREEBIND)]
    if sock.family == socket.AF_INET6:
        levels.insert(0, (socket.IPPROTO_IPV6, _IPV6_FREEBIND))
    for level, option in levels:
        with suppress(OSError):
            sock.setsockopt(level, option, 1)
            return True
    return False


def _is_local(sock: socket.socket) -> bool:
    """Whether this machine has the address that a socket is bound to."""
    try:
        with socket.socket(sock.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((sock.getsockname()[0], 0))
    except OSError as exc:
        return exc.errno != errno.EADDRNOTAVAIL
    return True


def _listen_unix(path: str, mode: int) -> Listener:
    doing = f"cannot listen on unix:{path}"
    with passing_shortages(doing):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with SocketDirectory(os.path.dirname(path) or ".") as directory:
            file = directory.listen(sock, os.path.basename(path), mode, BACKLOG)
    except OSError as exc:
        sock.close()
        raise shortage_of(exc, doing) or HostError(f"{doing}: {_unix_remedy(exc, path)}") from exc
    return Listener(sock, f"unix:{path}", file)


def _unix_remedy(exc: OSError, path: str) -> str:
    if exc.errno == errno.ENOENT:
        text = f"there is no directory {os.path.dirname(path)}; make it, or choose another path"
        return text if os.geteuid() == 0 else f"{text}; {UNIT_REMEDY}"
    if exc.errno == errno.EROFS:
        return f"{exc.strerror}; {UNIT_REMEDY}"
    if exc.errno == errno.EACCES and os.geteuid() != 0:
        text = f"user {user_name(os.geteuid())} may not write to {os.path.dirname(path)}"
        return f"{text}; give it that directory; {UNIT_REMEDY}"
    return exc.strerror or str(exc)


def _listen_remedy(exc: OSError, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"the port is in use; stop the other program (ss -ltnp 'sport = :{port}') or choose another port"
    if exc.errno == errno.EACCES:
        return "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if exc.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address; choose one that it has"
    return exc.strerror or str(exc)
