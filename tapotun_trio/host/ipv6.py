"""Whether this machine has IPv6, and from whom it takes its configuration, by the settings in /proc/sys
(networking/ip-sysctl of the kernel's documentation)."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import shortage_of
from ..log import interface_logger
from ..text import interface_setting

_SETTINGS: Final = Path("/proc/sys/net")
START_WITH_IPV6: Final = "start the kernel without ipv6.disable=1"
_EUI64: Final = "0"  # IN6_ADDR_GEN_MODE_EUI64, linux/if_link.h


def has_ipv6(name: str) -> bool | None:
    """As `Host.has_ipv6`, in the network namespace of the calling thread. None: this machine lacks the memory or the
    descriptors to find out. Blocking, for less than a millisecond."""
    settings = _SETTINGS / "ipv6/conf"
    if not settings.is_dir():
        # A kernel with ipv6.disable=1 has no such directory. Without its neighbour for IPv4, /proc is hidden.
        return False if (_SETTINGS / "ipv4").is_dir() else _makes_sockets()
    # A new interface gets the setting of "default". "all" passes its value on to all others when it is set.
    own = name if (settings / name).is_dir() else "default"
    switched_off = (_reads_switched_off("all"), _reads_switched_off(own))
    return False if True in switched_off else None if None in switched_off else True


def refuse_router_advertisements(name: str, *, is_port: bool = False) -> None:
    """Let the interface ``name`` take no addresses and no default route from machines of its segment that say that they
    are routers. The config alone decides what this machine routes into the tunnel. An operator may allow it with the
    sysctl accept_ra. Blocking, for less than a millisecond.

    ``is_port``: the interface is a port of a bridge, or is going to be. A port hears no routers, so it does no harm if
    the setting cannot be written, and nothing is told."""
    setting = _SETTINGS / "ipv6/conf" / name / "accept_ra"
    try:
        if setting.read_text(encoding="ascii").strip() != "0":  # a container may have it so, and forbid to write
            setting.write_text("0", encoding="ascii")
    except FileNotFoundError:
        return  # this machine has no IPv6, or the interface has none
    except OSError as exc:
        if is_port:
            return
        text = "cannot write %s (%s), so any machine of the segment may give this one an IPv6 default route: "
        remedy = "`sysctl -w %s=0`"
        option = interface_setting("ipv6", name, "accept_ra")
        interface_logger(name).warning(text + remedy, setting, exc.strerror, option)


def make_link_local(name: str) -> None:
    """Have the kernel give the interface ``name`` a link-local address now, even if it has a carrier already. If that
    cannot be written, the kernel does it at the next carrier, by `link_codec.set_ipv6_automatic`. Blocking, for less
    than a millisecond."""
    with suppress(OSError):
        (_SETTINGS / "ipv6/conf" / name / "addr_gen_mode").write_text(_EUI64, encoding="ascii")


def join_no_routers(name: str) -> None:
    """Keep the interface ``name``, a bridge's port, out of the groups of routers. A port takes no packets itself, but
    on a machine that forwards IPv6 the kernel would announce them to the segment (MLD), from the port's MAC address.
    If that cannot be written, it announces them, which harms nothing. Blocking, for less than a millisecond."""
    with suppress(OSError):
        (_SETTINGS / "ipv6/conf" / name / "forwarding").write_text("0", encoding="ascii")


def is_switched_off(name: str) -> bool:
    """Whether the setting of an interface, of "all" or of "default" (new interfaces) switches IPv6 off. False if it
    cannot be read. Blocking, for less than a millisecond."""
    return _reads_switched_off(name) is True


def _reads_switched_off(name: str) -> bool | None:
    """As `is_switched_off`; None: a shortage, as in `has_ipv6`."""
    try:
        return (_SETTINGS / "ipv6/conf" / name / "disable_ipv6").read_text(encoding="ascii").strip() != "0"
    except OSError as exc:  # the interface has just gone, or it has no IPv6
        return None if shortage_of(exc, "") else False


def where_switched_off(name: str) -> tuple[str, str]:
    """Where IPv6 is switched off, and the command that switches it on: for the interface ``name``, and also for the one
    that the next start makes, if this one goes because of the refusal. Blocking, for less than a millisecond."""
    own, new, every = (f"{interface_setting('ipv6', each, 'disable_ipv6')}=0" for each in (name, "default", "all"))
    if is_switched_off("all"):
        return "on this machine", f"sysctl -w {every}"  # the kernel passes it on to all others
    if is_switched_off("default"):
        return "for new interfaces", f"sysctl -e -w {new} {own}"  # -e: the interface may be gone by then
    return "on this interface", f"sysctl -w {own}"


def ipv6_remedy(name: str) -> str:
    """What to do if `has_ipv6` says no. Blocking, for less than a millisecond."""
    if not (_SETTINGS / "ipv6/conf").is_dir():
        return START_WITH_IPV6
    _, command = where_switched_off(name)
    return command


def _makes_sockets() -> bool | None:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).close()
    except OSError as exc:
        if exc.errno == errno.EAFNOSUPPORT:  # `shortage_of` knows it, too
            return False
        return None if shortage_of(exc, "") else True
    return True
