"""The paths of control sockets: one socket for each process, ``NAME.sock``, which only its user and root may open.

A process takes the first of these directories that it may write to. Clients look into all of them.

/run/tapotun              for root, and for RuntimeDirectory=tapotun in a systemd unit
/run/tapotun/USER         for a process that became that user; made by root before
$RUNTIME_DIRECTORY        made by systemd for this unit, for example RuntimeDirectory=tapotun/office
$XDG_RUNTIME_DIR/tapotun  for an ordinary user
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from ..host.net.socketfile import SocketDirectory, SocketFile

RUN: Final = "/run/tapotun"
SUFFIX: Final = ".sock"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,31}")
NAME_RULE: Final = "1 to 32 of A-Z a-z 0-9 . _ @ -, the first a letter, a digit or _"
PATH_BYTES: Final = 107  # sun_path less the NUL, linux/un.h
BACKLOG: Final = 256  # a non-blocking connect(2) fails when it is full; forty services may connect at once
REMEDY: Final = (
    "give it a --name of its own, and a directory: RuntimeDirectory=tapotun in a systemd unit, or XDG_RUNTIME_DIR"
)

# With these errors the next directory is tried.
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class ControlDirectory(NamedTuple):
    """A directory for sockets. ``mode``: it is made with this mode if it is missing; None: it is not made."""

    directory: str
    mode: int | None


def control_directories(environ: Mapping[str, str], user: str | None = None) -> list[ControlDirectory]:
    """Return the directories in the order in which they are tried. ``user``: the user that the process has become."""
    # Everybody may list the directory; the sockets in it have mode 0600.
    found = [ControlDirectory(RUN, 0o755)]
    if user is not None:
        found.append(ControlDirectory(os.path.join(RUN, user), None))
    if given := environ.get("RUNTIME_DIRECTORY", ""):  # systemd.exec(5): several are separated by colons
        found.append(ControlDirectory(given.partition(":")[0], None))
    if given := environ.get("XDG_RUNTIME_DIR", ""):
        found.append(ControlDirectory(os.path.join(given, "tapotun"), 0o700))
    return [place for place in dict.fromkeys(found) if os.path.isabs(place.directory)]


@contextmanager
def listening(name: str, where: Iterable[ControlDirectory]) -> Iterator[socket.socket]:
    """A non-blocking, listening control socket of that name in the first usable directory; removed at the end.

    Stale sockets that killed processes left there are removed. Raises OSError: a process of this name runs, or no
    directory is usable.
    """
    refusal = OSError(errno.EACCES, "no directory for it")
    for place in where:
        made = False
        try:
            made = place.mode is not None and _make(place.directory, place.mode)
            directory = SocketDirectory(place.directory)
        except OSError as exc:
            if made:
                with suppress(OSError):  # it is not empty: other processes use it
                    os.rmdir(place.directory)
            if exc.errno not in _CLOSED:
                raise
            refusal = exc
            continue
        with directory:
            try:
                try:
                    sock, file = _listen(directory, place.directory, name)
                except OSError as exc:
                    if exc.errno not in _CLOSED:
                        raise
                    refusal = exc
                    continue
                try:
                    yield sock
                finally:
                    file.remove()
                    sock.close()
            finally:
                if made:
                    _unmake(directory, place.directory)
        return
    raise refusal


def find(where: Iterable[ControlDirectory]) -> list[str]:
    """The paths of all sockets, stale ones included, sorted by name."""
    found: dict[str, None] = {}
    for place in where:
        for directory in (place.directory, *_directories(place.directory)):
            for entry in _entries(directory):
                if entry.name.endswith(SUFFIX) and NAME.fullmatch(entry.name.removesuffix(SUFFIX)):
                    found[os.path.realpath(entry.path)] = None
    return sorted(found, key=name_of)


def name_of(path: str) -> str:
    """The name of the process whose socket has this path."""
    return os.path.basename(path).removesuffix(SUFFIX)


def _make(directory: str, mode: int) -> bool:
    """Make the directory. Returns whether it was missing."""
    try:
        os.mkdir(directory, mode)
    except FileExistsError:
        return False
    return True


def _unmake(directory: SocketDirectory, path: str) -> None:
    with suppress(OSError):  # it is not empty: other processes use it
        if directory.is_at(path):
            os.rmdir(path)


def _listen(directory: SocketDirectory, where: str, name: str) -> tuple[socket.socket, SocketFile]:
    path = os.path.join(where, name + SUFFIX)
    if len(os.fsencode(path)) > PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket", path)
    with suppress(OSError):  # the directory may not be readable
        for entry in directory.names():
            if entry.endswith(SUFFIX) and entry != name + SUFFIX:
                directory.remove_if_stale(entry)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        return sock, directory.listen(sock, name + SUFFIX, 0o600, BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise OSError(errno.EADDRINUSE, "another process of this name runs", path) from exc
        raise OSError(exc.errno, exc.strerror, path) from exc
    except BaseException:
        sock.close()
        raise


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _directories(directory: str) -> list[str]:
    """Subdirectories that may hold sockets. One whose name begins with a dot belongs to a process that is starting."""
    return [
        entry.path
        for entry in _entries(directory)
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
    ]
