"""Runs a test of a `host` adapter in a network namespace of its own, in this process.

A namespace belongs to a thread, so the test runs in a thread that has just unshared its own; what it opens, and
the programs that it starts, are inside. With the thread and the last file descriptor, the namespace is gone.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeAlias

import trio

CLONE_NEWNET: Final = 0x4000_0000  # linux/sched.h

Json: TypeAlias = Any
P = ParamSpec("P")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def in_fresh_namespace(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Decorates an async test: it becomes a plain one that runs as the main task of a trio run, inside."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        def inside() -> None:
            if _libc.unshare(CLONE_NEWNET):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), "unshare")
            ip("link", "set", "lo", "up")
            trio.run(functools.partial(test, *args, **kwargs))

        with ThreadPoolExecutor(1) as pool:
            pool.submit(inside).result()

    return run


def ip(*words: str) -> Json:
    """Run ``ip -j``; its answer, decoded."""
    done = subprocess.run(["ip", "-j", "-d", *words], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return json.loads(done.stdout or "[]")


def sysctl(name: str, value: int | None = None) -> int:
    """Read, or set and read back, a net sysctl of the namespace: ``sysctl("ipv4/conf/all/rp_filter", 1)``."""
    path = Path("/proc/sys/net", name)
    if value is not None:
        path.write_text(str(value))
    return int(path.read_text())


def python(script: str, *arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python program inside; ``without`` is a capability to take from it (``net_admin``)."""
    command = [sys.executable, "-c", script, *arguments]
    if without:
        command = ["setpriv", f"--bounding-set=-{without}", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
