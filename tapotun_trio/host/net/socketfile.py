"""Unix sockets in directories that other users may write to.

A privileged process may not trust a path there: between two system calls the owner of the directory can put a link to
any file in the place of a name, and a link to another directory in the place of a part of the path. The rules here:

- The directory is opened once. Everything else names an entry of that descriptor, so it touches no other directory.
- A socket is bound in a directory of our own in there, mode 0700, where nobody else can touch it. It is complete, with
  its mode, and listens before link(2) gives it its name, which takes nothing away from another process.
- A stale socket is held by a descriptor while it is judged. It is moved into that directory, and removed only if what
  was moved is what was judged.

bind(2) and connect(2) take a path and no descriptor, so they get one below /proc/self/fd. That is also the name that
``ss -xl`` shows. Without /proc they get the real path; what they find is checked in either case.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

_HOLD: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE: Final = "stale"  # the name of a stale socket in the directory of our own


class SocketDirectory:
    """A directory, held open. A context manager."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        """Raises OSError if it is not there."""
        self._path = path
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def listen(self, sock: socket.socket, name: str, mode: int, backlog: int) -> SocketFile:
        """Have ``sock`` listen here under that name. A stale socket of that name is removed first.

        ``mode``: the permissions of its file, whatever the umask. Raises OSError; then the name is as it was, but for a
        stale socket, and ``sock`` is the caller's to close.
        """
        with self._own_directory() as (own, own_path):
            sock.bind(_reach(own, own_path, name))
            try:
                os.chmod(name, mode, dir_fd=own)  # bind(2) takes the umask off
                sock.listen(backlog)
                file = self._file(name, own)
                try:
                    self._remove_stale(name, own)
                    _link(name, own, name, self._fd)
                except BaseException:
                    file.close()
                    raise
            finally:
                os.unlink(name, dir_fd=own)
        return file

    def _file(self, name: str, own: int) -> SocketFile:
        directory = os.dup(self._fd)
        try:
            return SocketFile(directory, name, os.open(name, _HOLD, dir_fd=own))
        except BaseException:
            os.close(directory)
            raise

    def remove_if_stale(self, name: str) -> None:
        """Remove a socket that nobody listens on. Anything else is left alone, as is what cannot be removed."""
        with suppress(OSError):
            found = self._hold(name)
            if found is None:
                return
            try:
                stale = stat.S_ISSOCK(os.fstat(found).st_mode) and not self._answers(found, name)
            finally:
                os.close(found)
            if stale:
                with self._own_directory() as (own, _):
                    self._remove_stale(name, own)

    def names(self) -> list[str]:
        """The entries, sorted. Raises OSError."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def is_at(self, path: str) -> bool:
        """Whether that path leads here. Raises OSError."""
        return os.path.samestat(os.stat(path), os.fstat(self._fd))

    def _remove_stale(self, name: str, own: int) -> None:
        """Raises OSError if the name is taken by anything but a stale socket."""
        found = self._hold(name)
        if found is None:
            return
        try:
            status = os.fstat(found)  # its inode number is not given to another file while we hold it
            if not stat.S_ISSOCK(status.st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket; choose another path")
            if self._answers(found, name):
                raise OSError(errno.EADDRINUSE, "another process listens there")
            with suppress(FileNotFoundError):  # somebody else has removed it
                os.rename(name, _STALE, src_dir_fd=self._fd, dst_dir_fd=own)
                if not os.path.samestat(os.stat(_STALE, dir_fd=own, follow_symlinks=False), status):
                    self._give_back(own, name)
                    raise OSError(errno.EADDRINUSE, "somebody else has just taken that name")
                os.unlink(_STALE, dir_fd=own)
        finally:
            os.close(found)

    def _give_back(self, own: int, name: str) -> None:
        """What we have moved away was put there after we looked, and is somebody's."""
        if stat.S_ISDIR(os.stat(_STALE, dir_fd=own, follow_symlinks=False).st_mode):
            os.rename(_STALE, name, src_dir_fd=own, dst_dir_fd=self._fd)
        else:
            _link(_STALE, own, name, self._fd)
            os.unlink(_STALE, dir_fd=own)

    def _hold(self, name: str) -> int | None:
        """The entry itself, also where it is a link. None if there is none. The caller closes it."""
        try:
            return os.open(name, _HOLD, dir_fd=self._fd)
        except FileNotFoundError:
            return None

    def _answers(self, found: int, name: str) -> bool:
        """Somebody listens on this socket. Raises OSError if that cannot be known."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect(_by_descriptor(found) or os.path.join(self._path, name))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except BlockingIOError:  # its backlog is full
                return True
            return True

    @contextmanager
    def _own_directory(self) -> Iterator[tuple[int, str]]:
        """A directory in this one that nobody else can look into, gone at the end. Its descriptor, and its path.
        Raises OSError."""
        name = f".tapotun-{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=self._fd)
        try:
            own = os.open(name, _HOLD | os.O_DIRECTORY, dir_fd=self._fd)
            try:
                # Somebody may have put another one in its place. Another user has none that looks like this.
                status = os.fstat(own)
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise OSError(errno.EPERM, "somebody else replaces what this process makes there")
                link = _by_descriptor(own)
                if status.st_mode & 0o700 != 0o700 and link is not None:  # the umask's doing
                    os.chmod(link, 0o700)
                yield own, os.path.join(self._path, name)
            finally:
                os.close(own)
        finally:
            with suppress(OSError):  # somebody else has moved it away, or something into it
                os.rmdir(name, dir_fd=self._fd)


class SocketFile:
    """The file of a listening socket."""

    __slots__ = ("_directory", "_file", "_name")

    def __init__(self, directory: int, name: str, file: int) -> None:
        """Takes both descriptors over: of the directory, and of the file itself."""
        self._directory = directory
        self._name = name
        self._file = file

    def remove(self) -> None:
        """Remove it, unless somebody has put another one in its place, and close this. Idempotent."""
        if self._file < 0:
            return
        with suppress(OSError):  # it is gone, or its directory is; nothing is left to undo
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if os.path.samestat(found, os.fstat(self._file)):
                os.unlink(self._name, dir_fd=self._directory)
        self.close()

    def close(self) -> None:
        """Leave it there. Idempotent."""
        for fd in (self._file, self._directory):
            if fd >= 0:
                os.close(fd)
        self._file = self._directory = -1


def _link(name: str, directory: int, new_name: str, new_directory: int) -> None:
    try:
        os.link(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=False)
    except FileExistsError as exc:
        raise OSError(errno.EADDRINUSE, "somebody else has just taken that name") from exc


def _reach(directory: int, path: str, name: str) -> str:
    """A path to an entry of the directory, which was opened at ``path``."""
    return os.path.join(_by_descriptor(directory) or path, name)


def _by_descriptor(fd: int) -> str | None:
    """A path that leads to what a descriptor holds, whatever becomes of its name. None: this machine has no /proc."""
    path = f"/proc/self/fd/{fd}"
    try:
        return path if os.path.samestat(os.stat(path), os.fstat(fd)) else None
    except OSError:
        return None
