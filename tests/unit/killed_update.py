"""Kills an installation, or the launcher that takes one back, with SIGKILL before each of its system calls.

``python -m tests.unit.killed_update install|begin DIRECTORY``: for each moment a child process works in a directory of
its own below DIRECTORY, named by the number of the moment. The last one is of a child that nobody has killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from tapotun_trio.update.launcher import STARTS, Trial, begin, service, write
from tapotun_trio.update.take import install
from tests.pyz_files import found, program, running, sha256

ARGV: Final = ["run", "x.json"]
OLD: Final = program("1.0")
NEW: Final = program("2.0")
MODE: Final = 0o750


def _install(place: Path) -> Callable[[], object]:
    """A pyz that is replaced by the first update or a later one."""
    pyz = _pyz(place, OLD)
    (place / "tapotun.pyz.previous").write_bytes(b"an older one")

    def work() -> None:
        with running(pyz) as running_pyz, found("2.0", NEW) as new:
            assert new.memfd is not None
            install(new.memfd, new, running_pyz, "1.0")

    return work


def _begin(place: Path) -> Callable[[], object]:
    """A pyz whose update has had its starts."""
    pyz = _pyz(place, NEW)
    (place / "tapotun.pyz.previous").write_bytes(OLD)
    (place / "tapotun.pyz.previous").chmod(MODE)
    (place / "tapotun.pyz.refused").write_text("1.5\n", encoding="ascii")
    write(f"{pyz}.trial", Trial("2.0", sha256(NEW), "1.0", sha256(OLD), {service(ARGV): STARTS}).encode())
    return lambda: begin(str(pyz), ARGV)


def _pyz(place: Path, data: bytes) -> Path:
    pyz = place / "tapotun.pyz"
    pyz.write_bytes(data)
    pyz.chmod(MODE)
    return pyz


def _killed(place: Path, prepare: Callable[[Path], Callable[[], object]], moment: int) -> bool:
    """Work in this new directory, and die before that system call. Returns whether the work ended first."""
    place.mkdir()
    work = prepare(place)
    child = os.fork()
    if child == 0:
        try:
            sys.setprofile(_Killer(moment))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert status == 0
    return True


class _Killer:
    """Kills this process when it is about to call the kernel for the last of several times (sys.setprofile)."""

    def __init__(self, left: int) -> None:
        self._left = left

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        del frame
        if event == "c_call" and getattr(arg, "__module__", None) in ("posix", "fcntl"):
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1


if __name__ == "__main__":
    number = 0
    while not _killed(Path(sys.argv[2]) / str(number), {"install": _install, "begin": _begin}[sys.argv[1]], number):
        number += 1
