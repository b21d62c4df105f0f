"""Unix sockets in directories to which other users may write.

A privileged process must not trust a path there. Between two system calls the owner of the directory can replace a file
by a link to any other file, and a part of the path by a link to another directory. The rules here:

- The directory is opened once. Every other call names an entry of that descriptor, so it touches no other directory.
- A socket is bound in a private subdirectory, mode 0700, where no other user can touch it. It has its mode and listens
  before link(2) gives it its name, and link(2) replaces nothing of another process.
- A stale socket is held by a descriptor while it is checked. Then it is moved into the private subdirectory, and
  removed only if the moved file is the checked one.

bind(2) and connect(2) take a path instead of a descriptor, so they get a path below /proc/self/fd. That is also the
name that ``ss -xl`` shows. Without /proc they get the real path. The file that they find is checked in either case.
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
_STALE: Final = "stale"  # the name of a stale socket in the private subdirectory


class SocketDirectory:
    """An open directory. A context manager."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        """Raises OSError if it does not exist."""
        self._path = path
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def listen(self, sock: socket.socket, name: str, mode: int, backlog: int) -> SocketFile:
        """Make ``sock`` listen in this directory under ``name``. Removes a stale socket of that name first.

        ``mode``: the permissions of the file, independent of the umask. Raises OSError. Then the name is unchanged,
        except that a stale socket may be gone, and the caller has to close ``sock``.
        """
        with self._private_directory() as (own, own_path):
            sock.bind(_reach(own, own_path, name))
            try:
                os.chmod(name, mode, dir_fd=own)  # bind(2) applies the umask
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
        """Remove a socket on which no process listens. Leaves other files, and ignores failures."""
        with suppress(OSError):
            found = self._hold(name)
            if found is None:
                return
            try:
                stale = stat.S_ISSOCK(os.fstat(found).st_mode) and not self._answers(found, name)
            finally:
                os.close(found)
            if stale:
                with self._private_directory() as (own, _):
                    self._remove_stale(name, own)

    def names(self) -> list[str]:
        """The entries, sorted. Raises OSError."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def is_at(self, path: str) -> bool:
        """Whether the path leads to this directory. Raises OSError."""
        return os.path.samestat(os.stat(path), os.fstat(self._fd))

    def _remove_stale(self, name: str, own: int) -> None:
        """Raises OSError if the name is taken by anything but a stale socket."""
        found = self._hold(name)
        if found is None:
            return
        try:
            status = os.fstat(found)  # its inode number is not reused while it is open
            if not stat.S_ISSOCK(status.st_mode):
                raise OSError(errno.EEXIST, "there is a file that is not a socket; choose another path")
            if self._answers(found, name):
                raise OSError(errno.EADDRINUSE, "another process listens there")
            with suppress(FileNotFoundError):  # another process has removed it
                os.rename(name, _STALE, src_dir_fd=self._fd, dst_dir_fd=own)
                if not os.path.samestat(os.stat(_STALE, dir_fd=own, follow_symlinks=False), status):
                    self._give_back(own, name)
                    raise OSError(errno.EADDRINUSE, "another process has just taken that name")
                os.unlink(_STALE, dir_fd=own)
        finally:
            os.close(found)

    def _give_back(self, own: int, name: str) -> None:
        """Move back a file of another process that appeared after the check."""
        if stat.S_ISDIR(os.stat(_STALE, dir_fd=own, follow_symlinks=False).st_mode):
            os.rename(_STALE, name, src_dir_fd=own, dst_dir_fd=self._fd)
        else:
            _link(_STALE, own, name, self._fd)
            os.unlink(_STALE, dir_fd=own)

    def _hold(self, name: str) -> int | None:
        """A descriptor of the entry itself, even if it is a link. None if there is no entry. The caller closes it."""
        try:
            return os.open(name, _HOLD, dir_fd=self._fd)
        except FileNotFoundError:
            return None

    def _answers(self, found: int, name: str) -> bool:
        """Whether a process listens on this socket. Raises OSError if that cannot be found out."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect(path_by_descriptor(found) or os.path.join(self._path, name))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except BlockingIOError:  # its backlog is full
                return True
            return True

    @contextmanager
    def _private_directory(self) -> Iterator[tuple[int, str]]:
        """Creates the private subdirectory, and removes it at the end. Yields its descriptor and its path.
        Raises OSError."""
        name = f".tapotun-{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=self._fd)
        try:
            own = os.open(name, _HOLD | os.O_DIRECTORY, dir_fd=self._fd)
            try:
                # Another user may have replaced it, but cannot have one with this owner and mode.
                status = os.fstat(own)
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise OSError(errno.EPERM, "another process replaces what this process creates there")
                link = path_by_descriptor(own)
                if status.st_mode & 0o700 != 0o700 and link is not None:  # because of the umask
                    os.chmod(link, 0o700)
                yield own, os.path.join(self._path, name)
            finally:
                os.close(own)
        finally:
            with suppress(OSError):  # another process has moved it, or something into it
                os.rmdir(name, dir_fd=self._fd)


class SocketFile:
    """The file of a listening socket."""

    __slots__ = ("_directory", "_file", "_name")

    def __init__(self, directory: int, name: str, file: int) -> None:
        """Takes over both descriptors: of the directory, and of the file itself."""
        self._directory = directory
        self._name = name
        self._file = file

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it, and close this. Idempotent."""
        if self._file < 0:
            return
        with suppress(OSError):  # the file or its directory is gone: there is nothing to undo
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if os.path.samestat(found, os.fstat(self._file)):
                os.unlink(self._name, dir_fd=self._directory)
        self.close()

    def close(self) -> None:
        """Close the descriptors and leave the file. Idempotent."""
        for fd in (self._file, self._directory):
            if fd >= 0:
                os.close(fd)
        self._file = self._directory = -1


def _link(name: str, directory: int, new_name: str, new_directory: int) -> None:
    try:
        os.link(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=False)
    except FileExistsError as exc:
        raise OSError(errno.EADDRINUSE, "another process has just taken that name") from exc


def _reach(directory: int, path: str, name: str) -> str:
    """A path to an entry of the directory, which was opened at ``path``."""
    return os.path.join(path_by_descriptor(directory) or path, name)


def path_by_descriptor(fd: int) -> str | None:
    """A path to the file of a descriptor that stays valid when the file is renamed. None without /proc."""
    path = f"/proc/self/fd/{fd}"
    try:
        return path if os.path.samestat(os.stat(path), os.fstat(fd)) else None
    except OSError:
        return None
