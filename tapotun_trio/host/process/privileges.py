"""The privileges that this process needs: checks them before anything is changed, and drops all others."""

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
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_HEADER: Final = Struct("=Ii")
_CAP_DATA: Final = Struct("=6I")  # effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63
_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
FIRST_FREE_PORT: Final = 1024  # net.ipv4.ip_unprivileged_port_start, by default

NET_ADMIN_REMEDY: Final = (
    "run as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN, "
    "or in a container with --cap-add=NET_ADMIN (setcap would have to go on the Python interpreter "
    "and so give the capability to every script: do not)"
)

_TUN_REMEDIES: Final = {
    errno.ENOENT: "load the driver (modprobe tun); a container needs --device=/dev/net/tun",
    # The node exists, but no driver serves it.
    errno.ENODEV: "load the driver (modprobe tun), on the container's host if this is a container",
    errno.ENXIO: "load the driver (modprobe tun), on the container's host if this is a container",
    errno.EACCES: "make it readable and writable for this user (it is 0666 by default), or run as root",
    # EPERM comes from a device cgroup, EACCES from the mode of the file.
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
    """The effective capabilities of this process; None without /proc."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return effective_capabilities(file.read())
    except (OSError, ValueError):
        return None


def missing_net_admin() -> str:
    """Why the kernel answers EPERM although the operation needs only CAP_NET_ADMIN, and what to do."""
    capabilities = _own_capabilities()
    if capabilities is not None and capabilities >> CAP_NET_ADMIN & 1:
        return (
            "CAP_NET_ADMIN is there but has no effect: this network namespace belongs to another user namespace, "
            "or a security module forbids it; create the two together (unshare -Urn)"
        )
    return f"CAP_NET_ADMIN is missing; {NET_ADMIN_REMEDY}"


def require_tun_privileges() -> None:
    """Check what every interface needs: /dev/net/tun can be opened, and CAP_NET_ADMIN is effective.

    Reads files only; to be called before the first interface starts. Raises HostError that says what is missing and how
    to get it. In a user namespace the capability is effective only for network namespaces that belong to it, which only
    the attempt itself can show.
    """
    os.close(open_tun_node())
    capabilities = _own_capabilities()
    # If they are not known, the first interface reports EPERM.
    if capabilities is not None and not capabilities >> CAP_NET_ADMIN & 1:
        raise HostError(f"this process (uid {os.geteuid()}) lacks CAP_NET_ADMIN; {NET_ADMIN_REMEDY}")


def needed_capabilities(config: Config) -> int:
    """The capabilities that a process with this config may need after its start, as a bit mask.

    A process that stays root later reads files of other users: config and certificates at a reload, and modules of this
    program at their first use. It also makes Unix sockets in directories of other users. Two capabilities allow this. A
    process that becomes another user (``config.user``) does not keep them, because they would give it access to every
    file.

    A process that stays root also has others look for updates, which become an unprivileged user, and it ends them. For
    that it keeps three capabilities. They give it nothing: root's files, all programs among them, are its own anyway.
    """
    needed = 1 << CAP_NET_ADMIN
    if config.user is None:
        needed |= 1 << CAP_DAC_READ_SEARCH
        if config.update is not None:
            needed |= 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_KILL
    endpoints = [
        endpoint for entry in config.interfaces if isinstance(entry, ServerConfig) for endpoint in entry.listen
    ]
    if config.admin is not None:
        endpoints.append(config.admin.listen)
    for endpoint in endpoints:
        if isinstance(endpoint, UnixAddress):
            if config.user is None:
                needed |= 1 << CAP_DAC_OVERRIDE  # the socket's directory may belong to a proxy's user
        elif endpoint.port < FIRST_FREE_PORT:
            needed |= 1 << CAP_NET_BIND_SERVICE
    return needed


def drop_privileges(keep: int) -> str | None:
    """Irrevocably drop every capability that is not in ``keep`` (a bit mask), and set no_new_privs.

    The capabilities in ``keep`` are made effective again, since a change of the user clears the effective set. Returns
    None, or the text of a warning that says what the kernel refused. Only a system call filter can forbid dropping;
    then the process keeps the capabilities that its operator gave it.
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
        _, low, _, _, high, _ = _CAP_DATA.unpack(data.raw)
        low, high = low & keep, high & keep >> 32
        kept = _CAP_DATA.pack(low, low, 0, high, high, 0)
        call("capset", libc.capset(header, ctypes.create_string_buffer(kept, _CAP_DATA.size)))
    if not refused:
        return None
    return f"cannot drop privileges that this process does not need ({', '.join(refused)}); allow it these calls"


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard one: every client needs two sockets, and each of the first 16 a
    queue. Returns the new limit, or 0 if the kernel does not report it. A refusal leaves the old limit and is no error.
    """
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a system call filter
        return 0
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
