"""Listening sockets, TCP of either family and Unix."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import Final

import trio

from ..config.model import Endpoint, TcpEndpoint, UnixEndpoint
from ..errors import HostError
from .sockets import Connection, leave_undecided, peer_name

BACKLOG: Final = 512
_IP_FREEBIND: Final = 15  # linux/in.h; socket has no name for it. Needs no right


class Listener:
    """One listening socket. `close` also removes a Unix socket's file. ``waits``: this machine did not have its address
    yet."""

    __slots__ = ("_file", "_sock", "is_unix", "name", "waits")

    def __init__(self, sock: socket.socket, name: str, file: _SocketFile | None = None, *, waits: bool = False) -> None:
        self._sock = sock
        self._file = file
        self.is_unix = file is not None
        self.waits = waits
        self.name = name

    async def accept(self) -> Connection:
        """The next connection. Cancel-safe; always a checkpoint.

        Raises HostError if the process or the machine has no descriptors or memory left for it: wait a little
        and try again.
        """
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                sock, _ = self._sock.accept()
                try:
                    return Connection(sock, peer_name(sock))
                except BaseException:
                    sock.close()
                    raise
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise HostError(
                        f"cannot accept on {self.name}: {exc.strerror}; raise the open files limit"
                    ) from exc
                # accept(2): a pending network error of the new socket is passed on; that is its own affair.
                if exc.errno in (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK):
                    raise

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            if self._file is not None:
                self._file.remove()  # while it is ours: a closed socket's is stale, and another process may replace it
            self._sock.close()


class _SocketFile:
    """The file of a bound Unix socket."""

    __slots__ = ("_identity", "_path")

    def __init__(self, path: str) -> None:
        """Raises OSError if it is gone already."""
        self._path = path
        self._identity = self._look()

    def _look(self) -> tuple[int, int]:
        status = os.lstat(self._path)
        return status.st_dev, status.st_ino

    def remove(self) -> None:
        """Remove it, unless somebody has put another one in its place."""
        with suppress(OSError):  # it is gone, or its directory is; nothing is left to undo
            if self._look() == self._identity:
                os.unlink(self._path)


def listen(endpoint: Endpoint, socket_mode: int = 0o660) -> Listener | None:
    """Bind and listen. None: the endpoint is optional and this machine has no such address family. ``socket_mode``: the
    permissions of a Unix socket, whatever the umask.

    Raises HostError: the port is taken or needs a privilege, the address is not this machine's.
    """
    if isinstance(endpoint, UnixEndpoint):
        return _listen_unix(endpoint.path, socket_mode)
    family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
    name = f"[{endpoint.address}]:{endpoint.port}" if ":" in endpoint.address else f"{endpoint.address}:{endpoint.port}"
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as exc:
        if endpoint.optional and exc.errno == errno.EAFNOSUPPORT:
            return None
        raise HostError(f"cannot listen on {name}: {exc.strerror}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        leave_undecided(sock)
        waits = _bind(sock, endpoint)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if endpoint.optional and exc.errno == errno.EADDRNOTAVAIL:
            return None
        raise HostError(f"cannot listen on {name}: {_listen_remedy(exc, endpoint.port)}") from exc
    return Listener(sock, name, waits=waits)


def _bind(sock: socket.socket, endpoint: TcpEndpoint) -> bool:
    """Returns whether the machine does not have the address yet. Raises OSError."""
    try:
        sock.bind((endpoint.address, endpoint.port))
        return False
    except OSError as exc:
        if exc.errno != errno.EADDRNOTAVAIL or not endpoint.early:
            raise
    sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.bind((endpoint.address, endpoint.port))
    return True


def _listen_unix(path: str, mode: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    file: _SocketFile | None = None
    try:
        _remove_stale_socket(path)
        sock.bind(path)
        file = _SocketFile(path)
        os.chmod(path, mode)  # nobody can connect before it listens
        sock.listen(BACKLOG)
    except OSError as exc:
        if file is not None:
            file.remove()
        sock.close()
        raise HostError(f"cannot listen on unix:{path}: {_unix_remedy(exc, path)}") from exc
    return Listener(sock, f"unix:{path}", file)


def _remove_stale_socket(path: str) -> None:
    """Remove a socket file nobody listens on, as a killed run leaves it. Raises OSError if somebody does."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            # Linux says the same of every other kind of file, which is somebody's.
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket; choose another path") from None
            os.unlink(path)
        except FileNotFoundError:
            pass
        else:
            raise OSError(errno.EADDRINUSE, "another process listens there")


def _unix_remedy(exc: OSError, path: str) -> str:
    if exc.errno == errno.ENOENT:
        return f"there is no directory {os.path.dirname(path)}; make it, or choose another path"
    return exc.strerror or str(exc)


def _listen_remedy(exc: OSError, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"the port is in use; stop the other program (ss -ltnp 'sport = :{port}') or choose another port"
    if exc.errno == errno.EACCES:
        return "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if exc.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return exc.strerror or str(exc)
