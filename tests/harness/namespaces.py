"""Linux namespaces, entered by a thread that lives for one call.

setns(2) and unshare(2) change the calling *thread*. So code that has something to do inside a namespace
does it in a thread made for it, which takes the change to its grave: the thread that asked never leaves its
own namespaces, and nothing has to be changed back (which an unprivileged user could not do for a PID
namespace). A process forked by such a thread is born inside, as a plain child of ours with a known PID and a
real exit status; nsenter(1) would stand in between, and would have to be signalled in its place. A socket
made by such a thread stays inside for life, also when another thread uses it.

`os.setns` and `os.unshare` are Python 3.12's; this is for 3.11.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

# linux/sched.h
_CLONE_FS: Final = 0x0000_0200
MOUNT: Final = 0x0002_0000  # CLONE_NEWNS
PID: Final = 0x2000_0000  # CLONE_NEWPID
NET: Final = 0x4000_0000  # CLONE_NEWNET

_libc: Final = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def call_inside(pidfd: int, kinds: int, function: Callable[[], T]) -> T:
    """Call `function` inside those namespaces (`MOUNT | PID | NET`) of the process behind `pidfd`.

    With `MOUNT` the function's working directory is ``/``. With `PID` it is the function's *children* that
    are inside. Raises OSError, or what the function raises.
    """

    def enter_and_call() -> T:
        # Root and working directory belong to the whole process until a thread has its own; a new mount
        # namespace would otherwise pull every thread along.
        _check(_libc.unshare(_CLONE_FS), "unshare")
        _check(_libc.setns(pidfd, kinds), "setns")
        return function()

    return _in_own_thread(enter_and_call)


def call_in_new(kinds: int, function: Callable[[], T]) -> T:
    """Call `function` inside new namespaces of those kinds. They live as long as something is in them.

    The first child that the function forks with `PID` is PID 1 of the new namespace; when it ends, the
    kernel kills everything else in there. Raises OSError, or what the function raises.
    """

    def unshare_and_call() -> T:
        _check(_libc.unshare(_CLONE_FS | kinds), "unshare")
        return function()

    return _in_own_thread(unshare_and_call)


def _in_own_thread(function: Callable[[], T]) -> T:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="namespace") as pool:
        return pool.submit(function).result()


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
