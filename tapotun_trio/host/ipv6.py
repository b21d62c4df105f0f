"""Whether this machine has IPv6, by the settings in /proc/sys (networking/ip-sysctl of the kernel's documentation)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

_SETTINGS: Final = Path("/proc/sys/net")


def has_ipv6(name: str) -> bool:
    """As `Host.has_ipv6`, in the network namespace of the calling thread. Blocking, for less than a millisecond."""
    settings = _SETTINGS / "ipv6/conf"
    if not settings.is_dir():
        # A kernel with ipv6.disable=1 has no such directory. Without its neighbour for IPv4, /proc is hidden.
        return not (_SETTINGS / "ipv4").is_dir() and _makes_sockets()
    # A new interface gets the setting of "default". "all" passes its value on to all others when it is set.
    own = name if (settings / name).is_dir() else "default"
    return not (_is_off(settings / "all") or _is_off(settings / own))


def _is_off(conf: Path) -> bool:
    try:
        return (conf / "disable_ipv6").read_text(encoding="ascii").strip() != "0"
    except OSError:  # the interface has just gone, or it has no IPv6
        return False


def _makes_sockets() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).close()
    except OSError:
        return False
    return True
