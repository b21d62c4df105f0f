"""Tries what the unit's sandbox forbids, and prints what came of each attempt, as JSON: "ok", or the name of the error.

It is run by the booted Debian's own Python, as the service's process and outside of the sandbox
(`test_systemd.test_the_sandbox_holds`), and imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER: Final = 0x1000_0000  # linux/sched.h
_PER_LINUX32: Final = 0x0008  # linux/personality.h
_PTRACE_PEEKDATA: Final = 2  # linux/ptrace.h
OWN: Final = Path(os.environ["RUNTIME_DIRECTORY"], "own")


def call(name: str, *arguments: int) -> None:
    """A function of libc that returns -1 on failure. Raises OSError."""
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def run_setuid_root() -> None:
    """Raises OSError where it does not become root."""
    if subprocess.run(["/usr/local/bin/setuid-id", "-u"], check=True, capture_output=True).stdout != b"0\n":
        raise PermissionError(errno.EPERM, "not root")


def write_and_execute() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        pass


ATTEMPTS: Final[dict[str, Callable[[], object]]] = {
    # Files. Each directory "open" is everybody's: no permission is in the way, only the sandbox.
    "write in /etc": lambda: Path("/etc/open/x").touch(),
    "write in /usr": lambda: Path("/usr/open/x").touch(),
    "write in /var": lambda: Path("/var/open/x").touch(),
    "write in /home": lambda: Path("/home/open/x").touch(),
    "read another's /tmp": lambda: Path("/tmp/open/x").read_bytes(),
    "list the kernel's modules": lambda: os.listdir("/usr/lib/modules"),
    "change a sysctl": lambda: Path("/proc/sys/net/ipv4/ip_default_ttl").write_text("63\n", encoding="ascii"),
    "see other processes": lambda: Path("/proc/1/status").read_bytes(),
    "open a device": lambda: os.close(os.open("/dev/loop-control", os.O_RDONLY)),
    "make a file setuid": lambda: OWN.chmod(0o4755),
    # Privileges.
    "become root by a setuid file": run_setuid_root,
    "set the user": lambda: os.setuid(os.getuid()),
    "set a file's owner": lambda: os.chown(OWN, os.getuid(), -1),
    "make a user namespace": lambda: call("unshare", _CLONE_NEWUSER),
    "trace a process": lambda: call("ptrace", _PTRACE_PEEKDATA, os.getppid(), 0, 0),  # ESRCH: it is not stopped
    "change the nice value": lambda: os.nice(1),
    "change the personality": lambda: call("personality", _PER_LINUX32),
    "write and execute memory": write_and_execute,
    # Without CAP_NET_RAW it may not anyway; the sandbox refuses before that.
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    # What the program needs.
    "open /dev/net/tun": lambda: os.close(os.open("/dev/net/tun", os.O_RDWR)),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
}


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "ok"


def main() -> None:
    OWN.touch()
    json.dump({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}, sys.stdout)


if __name__ == "__main__":
    main()
