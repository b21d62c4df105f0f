"""What processes and the machine have used: /proc, proc(5)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads together (utime and stime of /proc/PID/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def fine_cpu_s(pid: int) -> float:
    """As `cpu_s`, of the threads that live, to the nanosecond: /proc/PID/task/TID/schedstat (sched-stats.rst)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks) / 1e9


def machine_cpu_s() -> float:
    """What all cores together have been busy: everything in /proc/stat but idle, iowait, and what was stolen.

    Guest time is part of user and nice already.
    """
    first = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(ticks) for ticks in first[:7])
    return (user + nice + system + irq + softirq) * _TICK_S


def memory_mb(pid: int, what: str = "VmHWM") -> float:
    """A line of /proc/PID/status in units of 10^6 bytes: `VmHWM` is the peak of the resident set, `VmRSS` it now."""
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"no {what} of process {pid}")
    return int(found[1]) * 1024 / 1e6


@dataclass(frozen=True)
class Used:
    """CPU seconds between two looks: of each process, and of the whole machine."""

    processes: tuple[float, ...]
    machine: float


class Account:
    """CPU used from now on by these processes and by the machine."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        """Begins to count."""
        self._pids = pids
        self._begin = self._look()

    def _look(self) -> Used:
        return Used(tuple(cpu_s(pid) for pid in self._pids), machine_cpu_s())

    def used(self) -> Used:
        """Until now."""
        now = self._look()
        shares = tuple(new - old for new, old in zip(now.processes, self._begin.processes, strict=True))
        return Used(shares, now.machine - self._begin.machine)
