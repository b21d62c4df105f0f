"""What this process must be allowed to do, checked before anything is changed."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from ..errors import HostError

TUN_PATH: Final = "/dev/net/tun"

CAP_NET_ADMIN: Final = 12  # linux/capability.h

NET_ADMIN_REMEDY: Final = (
    "run as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN, "
    "or in a container with --cap-add=NET_ADMIN (setcap would have to go on the Python interpreter "
    "and so give the capability to every script: do not)"
)

_TUN_REMEDIES: Final = {
    errno.ENOENT: "load the driver (modprobe tun); a container needs --device=/dev/net/tun",
    # The node is there, but no driver answers behind it.
    errno.ENODEV: "load the driver (modprobe tun), on the container's host if this is a container",
    errno.ENXIO: "load the driver (modprobe tun), on the container's host if this is a container",
    errno.EACCES: "make it readable and writable for this user (it is 0666 by default), or run as root",
    # A device cgroup says EPERM where the file's mode would say EACCES.
    errno.EPERM: "let the container use it (--device=/dev/net/tun), or systemd (DeviceAllow=/dev/net/tun rw)",
}


def open_tun_node() -> int:
    """Open /dev/net/tun, non-blocking. Returns the descriptor; the caller closes it. Raises HostError."""
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        remedy = _TUN_REMEDIES.get(exc.errno or 0, "a tunnel cannot be made without it")
        raise HostError(f"{TUN_PATH}: {exc.strerror}; {remedy}") from exc


def effective_capabilities(status: str) -> int:
    """The effective capability set, as a bit mask, in the text of a /proc/PID/status (proc_pid_status(5)).

    Raises ValueError if the text has none.
    """
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            return int(value, 16)
    raise ValueError("no CapEff line")


def require_tun_rights() -> None:
    """Check what every interface will need: /dev/net/tun opens, and CAP_NET_ADMIN is effective.

    Reads files only; call it before the first interface starts. Raises HostError that says what is missing
    and how to get it. Inside a user namespace the capability counts for the network namespaces that the user
    namespace owns, which only the attempt itself can tell.
    """
    os.close(open_tun_node())
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            capabilities = effective_capabilities(file.read())
    except (OSError, ValueError):
        return  # No /proc to ask: the first interface will say EPERM if it must.
    if not capabilities >> CAP_NET_ADMIN & 1:
        raise HostError(f"this process (uid {os.geteuid()}) lacks CAP_NET_ADMIN; {NET_ADMIN_REMEDY}")


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard one, as every client costs two sockets. Returns the
    limit that holds; a refusal leaves the old one and is not an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
