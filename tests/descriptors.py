"""Shortages of file descriptors, as the kernel makes them."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process gets ``count`` more descriptors within the block, and then EMFILE. What is open stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # In the order in which the kernel gives them out: the lowest free one first.
    free = (fd for fd in itertools.count() if not os.path.lexists(f"/proc/self/fd/{fd}"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, count, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def limit_of_files(count: int) -> Iterator[None]:
    """This process may have ``count`` open files within the block. What is open stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
