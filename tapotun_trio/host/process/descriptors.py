"""The limit of open files of this process: shares of it, a reserve, and whether it is reached."""

from __future__ import annotations

import os
import resource
from typing import Final

from ...errors import ShortageError, shortage_of

LEAST_SHARE: Final = 4


def share_of_limit(most: int, part: int) -> int:
    """How many connections strangers may hold: the ``part``-th part of the limit of open files, at most ``most``. So
    they cannot hold everything where the limit is low."""
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a system call filter
        return most
    if limit == resource.RLIM_INFINITY:
        return most
    return max(min(most, limit // part), LEAST_SHARE)


class ReserveDescriptor:
    """An open descriptor that is closed when a connection cannot be accepted for want of one, and opened again when
    that connection is closed. So one connection can always be served."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = -1
        self.refill()

    def release(self) -> bool:
        """Close it. Returns whether there was one to close: then the next descriptor is free, until the next await."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return False
        os.close(fd)
        return True

    def refill(self) -> None:
        """Open it again, if it is not open. To be called right after a connection was closed; a refusal is no error."""
        if self._fd < 0:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # something else was faster, and the next close brings another chance
                self._fd = -1


def no_descriptor_left(doing: str) -> ShortageError | None:
    """The shortage if no file can be opened now, else None. To be called right after the library has failed.
    ``doing``: what failed, for the error's text."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        return shortage_of(exc, doing)
    return None
