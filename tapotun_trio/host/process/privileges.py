"""What this process must be allowed to do, checked before anything is changed."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from struct import Struct
from typing import Final

from ...config.model import Config, ServerConfig, UnixAddress
from ...errors import HostError, shortage_of

TUN_PATH: Final = "/dev/net/tun"

# linux/capability.h
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_HEADER: Final = Struct("=Ii")
_CAP_DATA: Final = Struct("=6I")  # effective, permitted, inheritable, of capabilities 0 to 31; and again, 32 to 63
_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
FIRST_FREE_PORT: Final = 1024  # net.ipv4.ip_unprivileged_port_start, by default

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
        if (shortage := shortage_of(exc, TUN_PATH)) is not None:
            raise shortage from exc
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


def _own_capabilities() -> int | None:
    """This process's effective ones. None: there is no /proc to ask."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return effective_capabilities(file.read())
    except (OSError, ValueError):
        return None


def missing_net_admin() -> str:
    """Why the kernel says EPERM where CAP_NET_ADMIN is needed, and what to do."""
    capabilities = _own_capabilities()
    if capabilities is not None and capabilities >> CAP_NET_ADMIN & 1:
        return (
            "CAP_NET_ADMIN is there and does not count, as this network namespace belongs to another user namespace, "
            "or a security module forbids it; make the two together (unshare -Urn)"
        )
    return f"CAP_NET_ADMIN is missing; {NET_ADMIN_REMEDY}"


def require_tun_privileges() -> None:
    """Check what every interface will need: /dev/net/tun opens, and CAP_NET_ADMIN is effective.

    Reads files only; call it before the first interface starts. Raises HostError that says what is missing
    and how to get it. Inside a user namespace the capability counts for the network namespaces that the user
    namespace owns, which only the attempt itself can tell.
    """
    os.close(open_tun_node())
    capabilities = _own_capabilities()
    # Without an answer, the first interface will say EPERM if it must.
    if capabilities is not None and not capabilities >> CAP_NET_ADMIN & 1:
        raise HostError(f"this process (uid {os.geteuid()}) lacks CAP_NET_ADMIN; {NET_ADMIN_REMEDY}")


def needed_capabilities(config: Config) -> int:
    """What a process with this config may still need once the process has begun, as a bit mask.

    To read what is another user's is needed for good: the config and certificates are read again, and modules of this
    program when they are first used, wherever it is installed.
    """
    needed = 1 << CAP_NET_ADMIN | 1 << CAP_DAC_READ_SEARCH
    endpoints = [it for entry in config.interfaces if isinstance(entry, ServerConfig) for it in entry.listen]
    if config.admin is not None:
        endpoints.append(config.admin.listen)
    for endpoint in endpoints:
        if isinstance(endpoint, UnixAddress):
            needed |= 1 << CAP_DAC_OVERRIDE  # its directory may be a proxy's
        elif endpoint.port < FIRST_FREE_PORT:
            needed |= 1 << CAP_NET_BIND_SERVICE
    return needed


def drop_privileges(keep: int) -> str | None:
    """Give up every capability but these (a bit mask), and what a set-user-ID program would bring; for good.

    No capability that is not there is gained. Returns None, or what the kernel refused, for a warning: a process may
    always give up, but for a filter of system calls, and then it has what its operator gave it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(_CAP_HEADER.pack(_CAPABILITY_VERSION_3, 0), _CAP_HEADER.size)
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    refused: list[str] = []

    def call(name: str, result: int) -> bool:
        if result:
            refused.append(f"{name}: {os.strerror(ctypes.get_errno())}")
        return not result

    call("prctl", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if call("capget", libc.capget(header, data)):
        low, high = keep & 0xFFFFFFFF, keep >> 32
        masks = (low, low, 0, high, high, 0)
        kept = [has & mask for has, mask in zip(_CAP_DATA.unpack(data.raw), masks, strict=True)]
        call("capset", libc.capset(header, ctypes.create_string_buffer(_CAP_DATA.pack(*kept), _CAP_DATA.size)))
    if not refused:
        return None
    return f"cannot give up what this process does not need ({', '.join(refused)}); allow these calls to it"


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard one, as every client costs two sockets, and each of the first 16 a
    queue. Returns the limit that holds, 0 if the kernel does not tell; a refusal leaves the old one and is not an
    error."""
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a filter of system calls
        return 0
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
