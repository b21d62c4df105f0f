"""Handles this process's limit of open files: divides it into shares, keeps one descriptor in reserve, and tells
whether the limit is reached."""

from __future__ import annotations

import os
import resource
from typing import Final

from ...errors import ShortageError, shortage_of

LEAST_SHARE: Final = 4


def share_of_limit(most: int, part: int, least: int = LEAST_SHARE) -> int:
    """Return how many descriptors may be used for one purpose, such as unauthenticated connections: the limit of open
    files divided by ``part``, but at most ``most`` and at least ``least``. So they cannot use up all descriptors where
    the limit is low."""
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a system call filter forbids it
        return most
    if limit == resource.RLIM_INFINITY:
        return most
    return max(min(most, limit // part), least)


class ReserveDescriptor:
    """A descriptor held open in reserve. It is closed when a connection cannot be accepted because no descriptor is
    left, and opened again when that connection is closed. So one connection can always be served."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = -1
        self.refill()

    def release(self) -> bool:
        """Close the reserve. Returns True if it was open; then one descriptor is free until the next await."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return False
        os.close(fd)
        return True

    def refill(self) -> None:
        """Open the reserve again, if it is not open. Call this right after a connection was closed. A refusal is not an
        error."""
        if self._fd < 0:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # other code took the descriptor first; the next close is another chance
                self._fd = -1


def no_descriptor_left(doing: str) -> ShortageError | None:
    """The shortage if no file can be opened now, else None. To be called right after the library has failed.
    ``doing``: what failed, for the error's text."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        return shortage_of(exc, doing)
    return None
