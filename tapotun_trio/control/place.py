"""Where control sockets are: one for each process, ``NAME.sock``, which only its user and root may open.

A process takes the first of these that it may write to; whoever asks looks into all of them:

/run/tapotun              root's, and what systemd makes with RuntimeDirectory=tapotun
$RUNTIME_DIRECTORY        what systemd made for this unit, RuntimeDirectory=tapotun/office say
$XDG_RUNTIME_DIR/tapotun  an ordinary user's
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

RUN: Final = "/run/tapotun"
SUFFIX: Final = ".sock"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,31}")
NAME_RULE: Final = "1 to 32 of A-Z a-z 0-9 . _ @ -, the first a letter, a digit or _"
PATH_BYTES: Final = 107  # sun_path less the NUL, linux/un.h
BACKLOG: Final = 256  # connect(2) does not wait for room in it; forty services may ask in one moment
REMEDY: Final = (
    "give it a --name of its own, and a directory: RuntimeDirectory=tapotun in a systemd unit, or XDG_RUNTIME_DIR"
)

# What makes one place useless, so that the next is tried.
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class Place(NamedTuple):
    """A directory for sockets. ``mode``: with which it is made where it is missing; None: it is not ours to make."""

    directory: str
    mode: int | None


def places(environ: Mapping[str, str]) -> list[Place]:
    """In the order in which they are tried."""
    # Everybody may see who is there; the sockets themselves are 0600.
    found = [Place(RUN, 0o755)]
    if given := environ.get("RUNTIME_DIRECTORY", ""):  # systemd.exec(5): several are separated by colons
        found.append(Place(given.partition(":")[0], None))
    if given := environ.get("XDG_RUNTIME_DIR", ""):
        found.append(Place(os.path.join(given, "tapotun"), 0o700))
    return [place for place in dict.fromkeys(found) if os.path.isabs(place.directory)]


@contextmanager
def listening(name: str, where: Iterable[Place]) -> Iterator[socket.socket]:
    """A listening control socket of that name, non-blocking, in the first place that will have it; gone at the end.

    Sockets there that nobody listens on, as killed processes leave them, are removed. Raises OSError: a process of
    this name runs, or no place is open to us.
    """
    refusal = OSError(errno.EACCES, "no directory for it")
    for place in where:
        made = False
        try:
            made = place.mode is not None and _make(place.directory, place.mode)
            sock, path = _listen(place.directory, name)
        except OSError as exc:
            if made:
                _unmake(place.directory)
            if exc.errno not in _CLOSED:
                raise
            refusal = exc
            continue
        inode = os.lstat(path).st_ino
        try:
            yield sock
        finally:
            with suppress(OSError):  # another process may have taken the name over, or somebody tidied up
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)
            sock.close()
            if made:
                _unmake(place.directory)
        return
    raise refusal


def find(where: Iterable[Place]) -> list[str]:
    """The paths of the sockets that are there, stale ones included, in the order of their names."""
    found: dict[str, None] = {}
    for place in where:
        for directory in (place.directory, *_directories(place.directory)):
            for entry in _entries(directory):
                if entry.name.endswith(SUFFIX) and NAME.fullmatch(entry.name.removesuffix(SUFFIX)):
                    found[os.path.realpath(entry.path)] = None
    return sorted(found, key=name_of)


def name_of(path: str) -> str:
    """The process's name in a socket's path."""
    return os.path.basename(path).removesuffix(SUFFIX)


def _make(directory: str, mode: int) -> bool:
    """Returns whether it was missing."""
    try:
        os.mkdir(directory, mode)
    except FileExistsError:
        return False
    return True


def _unmake(directory: str) -> None:
    with suppress(OSError):  # others are still in it
        os.rmdir(directory)


def _listen(directory: str, name: str) -> tuple[socket.socket, str]:
    path = os.path.join(directory, name + SUFFIX)
    # Whoever finds a socket by its name finds it listening; so it gets the name last.
    fresh = os.path.join(directory, f".{name}.{os.getpid()}")
    if len(os.fsencode(fresh)) > PATH_BYTES or len(os.fsencode(path)) > PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket", path)
    for entry in _entries(directory):
        if entry.name.endswith(SUFFIX):
            _remove_if_stale(entry.path)
    if _answers(path):
        raise OSError(errno.EADDRINUSE, "another process of this name runs", path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(sock.fileno(), 0o600)  # bind(2) makes the file with the mode of the descriptor, less the umask
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        sock.bind(fresh)
        try:
            sock.listen(BACKLOG)
            os.link(fresh, path)  # unlike rename(2) it takes nothing away from who has just come first
        except FileExistsError as exc:
            raise OSError(errno.EADDRINUSE, "another process of this name runs", path) from exc
        finally:
            os.unlink(fresh)
    except BaseException:
        sock.close()
        raise
    return sock, path


def _remove_if_stale(path: str) -> None:
    with suppress(OSError):  # not ours to touch, or gone
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _answers(path):
            os.unlink(path)


def _answers(path: str) -> bool:
    """Somebody listens there. Raises OSError if that cannot be known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # its backlog is full
            return True
        return True


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _directories(directory: str) -> list[str]:
    return [entry.path for entry in _entries(directory) if entry.is_dir(follow_symlinks=False)]
