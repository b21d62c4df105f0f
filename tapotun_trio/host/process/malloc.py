"""What the C library does with memory that is free again."""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_LARGE_BYTES: Final = 128 * 1024  # glibc's own threshold, before it begins to raise it


def set_mmap_threshold() -> None:
    """Have glibc give every block of 128 KiB and more back to the kernel as soon as it is free.

    By default it learns from the first such block that these come and go, and puts the next ones on the heap, where a
    small block that lives on keeps what lies below it: a client that queued copies of bursts under a blast of UDP had a
    peak of 48.6 MB, with this 37.5, at no CPU that could be seen. musl has no such memory and no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
