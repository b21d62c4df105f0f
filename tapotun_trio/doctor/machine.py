"""What there is to know of this machine. Reads files and asks the kernel; changes nothing. Blocking."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

from ..control.subcommands import running
from ..errors import HostError
from ..host.netlink.footprint import Footprint, read_footprint
from ..host.ownership import Holder, holder_of
from ..host.process.privileges import effective_capabilities, open_tun_node
from ..status.model import TransportConflictStatus

_STATUS_S: Final = 3.0  # a process that hangs is not what the doctor waits for

_TIMEX_BYTES: Final = 512  # struct timex of linux/timex.h, and room to grow
_TIME_ERROR: Final = 5  # the clock is not synchronized, linux/timex.h
_RTF_UP: Final = 0x1  # linux/route.h
_LOCAL: Final = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")
_IFA_UNUSABLE: Final = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED of linux/if_addr.h
_SYSCTLS: Final = (
    "net.ipv4.ip_forward",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv6.conf.all.disable_ipv6",
)


@dataclass(frozen=True, slots=True)
class Route:
    """One of the main table."""

    network: IPv4Network
    interface: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Attributes:
    tun_error: why /dev/net/tun does not open, with its remedy; None: it does.
    capabilities: the effective ones, a bit mask; None: not known.
    kernel: release, such as ``6.1.0-18-amd64``.
    sysctls: name to value; what is not there is not in it.
    now: seconds since the epoch. clock_is_set: somebody keeps it right; None: not known.
    interfaces: name to MTU in bytes.
    holders: name to the process that has it, of those that were asked for; its interface need not be there yet.
    max_files: how many a process may have open at most.
    addresses: those of its interfaces, of either family; empty: not known.
    reachable: IPv4 addresses that others may reach it by, each with its interface.
    left_over: addresses that host routes of runs that were killed lead somewhere.
    conflicts: what clients that run here say would lead them into their own tunnels, each with its interface.
    """

    tun_error: str | None = None
    capabilities: int | None = None
    kernel: str = "6.18"
    sysctls: Mapping[str, int] = field(default_factory=dict)
    now: float = 0.0
    clock_is_set: bool | None = None
    routes: tuple[Route, ...] = ()
    interfaces: Mapping[str, int] = field(default_factory=dict)
    holders: Mapping[str, Holder] = field(default_factory=dict)
    max_files: int = 1 << 20
    addresses: frozenset[str] = frozenset()
    reachable: tuple[tuple[IPv4Address, str], ...] = ()
    left_over: tuple[str, ...] = ()
    conflicts: tuple[tuple[str, TransportConflictStatus], ...] = ()


def look(names: Iterable[str] = ()) -> Machine:
    """This one, now. ``names``: of the interfaces that are to run here. Never raises for what it does not find."""
    footprint = _footprint()
    return Machine(
        reachable=footprint.addresses,
        left_over=footprint.left_over,
        conflicts=tuple(
            (interface.name, conflict)
            for process in running(_STATUS_S)
            for interface in process.interfaces
            for conflict in interface.transport_conflicts
        ),
        tun_error=_tun_error(),
        capabilities=_capabilities(),
        kernel=platform.release(),
        sysctls={name: value for name in _SYSCTLS if (value := _sysctl(name)) is not None},
        now=time.time(),
        clock_is_set=_clock_is_set(),
        routes=parse_routes(_text("/proc/net/route")),
        interfaces=_interfaces(),
        holders={name: holder for name in names if (holder := holder_of(name)) is not None},
        max_files=_max_files(),
        addresses=parse_addresses(_text("/proc/net/fib_trie"), _text("/proc/net/if_inet6")),
    )


def parse_addresses(fib_trie: str, if_inet6: str) -> frozenset[str]:
    """The addresses of this machine: local routes in /proc/net/fib_trie, and the lines of /proc/net/if_inet6 whose
    address is usable (not tentative, nor a duplicate). What is malformed is passed over."""
    found = set(_LOCAL.findall(fib_trie))
    for line in if_inet6.splitlines():
        words = line.split()
        try:
            if not int(words[4], 16) & _IFA_UNUSABLE:
                found.add(str(IPv6Address(int(words[0], 16))))
        except (IndexError, ValueError):
            continue
    return frozenset(found)


def parse_routes(text: str) -> tuple[Route, ...]:
    """The routes in /proc/net/route, whose addresses are hexadecimal as the machine has them in memory. What is not a
    route is passed over."""
    found: list[Route] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            interface, destination, flags, mask = words[0], words[1], int(words[3], 16), words[7]
            network = IPv4Network((_number(destination), _number(mask).bit_count()))
        except (IndexError, ValueError):
            continue
        if flags & _RTF_UP:
            found.append(Route(network, interface))
    return tuple(found)


def _number(word: str) -> int:
    """Raises ValueError."""
    if len(word) != 8:
        raise ValueError(f"not an address: {word!r}")
    return int.from_bytes(int(word, 16).to_bytes(4, sys.byteorder), "big")


def _tun_error() -> str | None:
    try:
        os.close(open_tun_node())
    except HostError as exc:
        return str(exc)
    return None


def _capabilities() -> int | None:
    try:
        return effective_capabilities(_text("/proc/self/status"))
    except ValueError:
        return None


def _footprint() -> Footprint:
    try:
        return read_footprint()
    except HostError:
        return Footprint()


def _sysctl(name: str) -> int | None:
    try:
        return int(_text("/proc/sys/" + name.replace(".", "/")))
    except ValueError:
        return None


def _clock_is_set() -> bool | None:
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: only ask (adjtimex(2))
    state = ctypes.CDLL(None).adjtimex(timex)
    return None if state < 0 else state != _TIME_ERROR


def _max_files() -> int:
    """What the kernel has by default if it does not tell."""
    try:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    except OSError:
        return 4096  # INR_OPEN_MAX of linux/fs.h


def _interfaces() -> dict[str, int]:
    found: dict[str, int] = {}
    for line in _text("/proc/net/dev").splitlines()[2:]:
        name = line.partition(":")[0].strip()
        try:
            found[name] = int(_text(f"/sys/class/net/{name}/mtu"))
        except ValueError:
            found[name] = 0  # /sys is another namespace's: its name is all that is known
    return found


def _text(path: str) -> str:
    """Empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
