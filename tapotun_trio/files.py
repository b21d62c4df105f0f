"""Reads the whole content of files that people name, within limits of size, memory and time. Also finds out what keeps
this process's user from reading a file."""

from __future__ import annotations

import grp
import os
import select
import shlex
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from .errors import shortage_of

PIPE_WAIT_MS: Final = 10_000  # wait for each piece from a pipe: a password manager may be slow
_PIECE_BYTES: Final = 64 * 1024  # the capacity of a pipe


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file's content. ``public_mode``: the permission bits if every user of the machine may read the file, else
    None."""

    data: bytes
    public_mode: int | None


class UnreadableFile(Exception):
    """A file cannot be read.

    The text gives the reason in a few words, without a full stop. ``remedy`` is set if another file name would not
    help: when memory or permission is missing.
    """

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


def read_file(path: str | os.PathLike[str], limit_bytes: int, *, regular: bool = False) -> FileContent:
    """Read the whole content of a file or a pipe. Takes no more memory than the content.

    Waits for the disk, and up to PIPE_WAIT_MS for each piece from a pipe. It never waits for anything else, because a
    thread that waits in a system call cannot be cancelled.

    ``regular``: accept only a regular file, because other code will open it again, and a pipe can be read only once.

    Raises UnreadableFile, also if the content is longer than the limit, as that of ``/dev/zero`` is.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if regular and not stat.S_ISREG(status.st_mode) and not stat.S_ISCHR(status.st_mode):
                raise UnreadableFile("Is a directory" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
            data = _read(fd, status, limit_bytes)
        finally:
            os.close(fd)
    except BlockingIOError as exc:  # such as a terminal, or /proc/kmsg
        raise UnreadableFile("it has nothing to read now, and would have to be waited for") from exc
    except PermissionError as exc:
        raise UnreadableFile(exc.strerror or "permission denied", permission_remedy(path)) from exc
    except (OSError, MemoryError) as exc:
        if (shortage := shortage_of(exc, "")) is not None:
            raise UnreadableFile(shortage.lack, shortage.remedy) from exc
        raise UnreadableFile(getattr(exc, "strerror", None) or type(exc).__name__) from exc
    except ValueError as exc:  # os.open() raises it for a NUL or a lone surrogate in the path
        raise UnreadableFile("not a valid path") from exc
    mode = stat.S_IMODE(status.st_mode)
    public = stat.S_ISREG(status.st_mode) and mode & stat.S_IROTH
    return FileContent(data, mode if public else None)


def _read(fd: int, status: os.stat_result, limit_bytes: int) -> bytes:
    """Read to the end of the file. Raises OSError, MemoryError, UnreadableFile."""
    too_long = UnreadableFile(f"longer than {limit_bytes} bytes")
    if stat.S_ISREG(status.st_mode) and status.st_size > limit_bytes:
        raise too_long
    waits = select.poll() if stat.S_ISFIFO(status.st_mode) else None
    if waits is not None:
        waits.register(fd, select.POLLIN)
    # A regular file is read in one piece. Files in /proc report the size 0.
    piece_bytes = max(_PIECE_BYTES, min(status.st_size, limit_bytes) + 1)
    pieces: list[bytes] = []
    total = 0
    while True:
        if waits is not None and not waits.poll(PIPE_WAIT_MS):
            raise UnreadableFile(f"nobody wrote to this pipe within {PIPE_WAIT_MS / 1000:g} s")
        piece = os.read(fd, piece_bytes)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        total += len(piece)
        if total > limit_bytes:
            raise too_long
        piece_bytes = _PIECE_BYTES


# ------------------------------------------------------------------ permission


def blocked_at(path: str | os.PathLike[str]) -> str | None:
    """Return what keeps the real user, without any capability, from reading a file: the first directory on its path
    that this user may not enter, or the file itself. None: the file can be read, or does not exist.

    Links are followed. The path may lead into an archive, as the path of a module may.
    """
    return _blocked_at(os.path.abspath(path)) or _blocked_at(os.path.realpath(path))


def _blocked_at(path: str) -> str | None:
    for directory in reversed(PurePath(path).parents):
        if os.path.isfile(directory):
            return _blocked_at(str(directory))
        if not os.access(directory, os.X_OK):
            return str(directory) if os.path.lexists(directory) else None
    return path if os.path.exists(path) and not os.access(path, os.R_OK) else None


def permission_remedy(path: str | os.PathLike[str]) -> str:
    """Return the remedy for a file that this process may not read."""
    if os.geteuid() == 0:
        return f"root may not read it without CAP_DAC_OVERRIDE: run chown root {shlex.quote(os.fspath(path))}"
    return f"run it as root, or {grant(blocked_at(path) or os.fspath(path))}"


def grant(path: str) -> str:
    """Return the command with which root lets this process's group read a file, or enter a directory."""
    group = str(os.getgid())
    with suppress(KeyError):
        group = shlex.quote(grp.getgrgid(os.getgid()).gr_name)
    name = shlex.quote(path)
    if os.path.isdir(path):
        return f"keep it elsewhere, such as in /etc/tapotun: group {group} may not enter {name}"
    return f"let group {group} read it: chgrp {group} {name}; chmod g+r {name}"
