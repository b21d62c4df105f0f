"""Tests whether this process can open one more file, since some libraries do not report this as their error."""

from __future__ import annotations

import os

from ...errors import ShortageError, shortage_of


def no_descriptor_left(doing: str) -> ShortageError | None:
    """The shortage if no file can be opened now, else None. To be called right after the library has failed.
    ``doing``: what failed, for the error's text."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        return shortage_of(exc, doing)
    return None
