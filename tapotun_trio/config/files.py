"""Reading the few files that a configuration names. Blocking; a start does it once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ..errors import shortage_of


@dataclass(frozen=True, slots=True)
class FileContent:
    """``public_mode`` is the permission bits if every user of the machine may read the file."""

    data: bytes
    public_mode: int | None


class Unreadable(Exception):
    """The file cannot be read. The text says why in a few words and ends no sentence. ``remedy``: where only that is
    known which has nothing to do with the file."""

    def __init__(self, why: str, remedy: str | None = None) -> None:
        super().__init__(why)
        self.remedy = remedy


def read(path: str | os.PathLike[str], limit_bytes: int) -> FileContent:
    """The whole file, which may be a pipe. Raises Unreadable, also if it is longer than the limit
    (``/dev/zero`` has no end)."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(limit_bytes + 1)
    except OSError as exc:
        if (shortage := shortage_of(exc, "")) is not None:
            raise Unreadable(shortage.lack, shortage.remedy) from exc
        raise Unreadable(exc.strerror or type(exc).__name__) from exc
    except ValueError as exc:  # what open() raises for a NUL or a lone surrogate in the path
        raise Unreadable("no valid path") from exc
    if len(data) > limit_bytes:
        raise Unreadable(f"longer than {limit_bytes} bytes")
    mode = stat.S_IMODE(status.st_mode)
    public = stat.S_ISREG(status.st_mode) and mode & stat.S_IROTH
    return FileContent(data, mode if public else None)
