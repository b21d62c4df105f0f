"""Collects the facts about this machine that the doctor evaluates. Reads only; blocking."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface
from typing import Final

from ..control.subcommands import running
from ..errors import HostError
from ..families import IPAddress, IPNetwork, is_within
from ..host.firewall import ForwardChain, ReversePathFilter, dropping_forward_chains, strict_ipv6_filters
from ..host.netlink.footprint import Footprint, read_footprint
from ..host.network_managers import Kind, Manager, managers_running, taken_by
from ..host.ownership import Holder, holder_of
from ..host.process.privileges import effective_capabilities, open_tun_node
from ..status.model import LeftOutStatus, TransportConflictStatus

_STATUS_S: Final = 3.0  # how long to wait for a process that may hang

_TIMEX_BYTES: Final = 512  # struct timex of linux/timex.h, and room to grow
_TIME_ERROR: Final = 5  # linux/timex.h: the clock is not synchronized
_RTF_UP: Final = 0x1  # linux/route.h
# RTF_LOCAL and RTF_ANYCAST of linux/ipv6_route.h: addresses of this machine
_RTF_OWN: Final = 0x80000000 | 0x00100000
_RTF_DEFAULT_BY_RA: Final = 0x00010000 | 0x00040000  # RTF_DEFAULT, RTF_ADDRCONF: a router advertised it
# Every link has routes to these, which say nothing about what a machine is connected to.
_ON_EVERY_LINK: Final = (IPv6Network("fe80::/10"), IPv6Network("ff00::/8"))
_LOCAL: Final = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")
_IFA_UNUSABLE: Final = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED of linux/if_addr.h
_IFA_PERMANENT: Final = 0x80  # IFA_F_PERMANENT: the address has no lifetime
_IFA_DEPRECATED: Final = 0x20  # IFA_F_DEPRECATED: no source where there is another address (RFC 6724 section 5)
_SCOPE_GLOBAL: Final = 0x00  # IPV6_ADDR_SCOPE_MASK of net/ipv6.h, as net/ipv6/addrconf.c prints it
_SYSCTLS: Final = (
    "net.ipv4.ip_forward",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.default.disable_ipv6",
    "net.ipv6.conf.all.forwarding",
    # There only while the module br_netfilter is loaded.
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
)
_SYS_NET: Final = "/sys/class/net"
_IFF_UP: Final = 0x1  # linux/if.h


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table."""

    network: IPNetwork
    interface: str


@dataclass(frozen=True, slots=True)
class LinuxBridge:
    """A bridge that exists.

    Attributes:
        alias: its ifalias, which says whose a bridge of ours is.
        group: its group (ip-link(8)), which says whether it is one of ours.
        is_up: it is set up, with or without a carrier.
    """

    ports: tuple[str, ...] = ()
    alias: str = ""
    is_up: bool = True
    group: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """Attributes:
    tun_error: why /dev/net/tun cannot be opened, with a remedy; None: it can.
    capabilities: the effective capabilities of this process, as a bit mask; None: not known.
    kernel: release, such as ``6.1.0-18-amd64``.
    sysctls: name to value; only those that exist.
    now: seconds since the epoch.
    clock_is_set: whether the clock is synchronized; None: not known.
    interfaces: name to MTU in bytes; 0: not known, and neither is whether it is a bridge.
    bridges: by their names.
    holders: interface name to the process that has reserved it; its interface may not exist yet.
    max_files: how many files a process may have open.
    addresses: IPv4 and IPv6 addresses of its interfaces; empty: not known.
    reachable: addresses at which other machines may reach it, each with its interface.
    left_over: destinations of host routes that killed processes left behind.
    conflicts: routes that would lead running clients into their own tunnels, each with the interface.
    rp_filters: the reverse path filter of each interface that has to run here and exists: 0 off, 1 strict, 2 loose.
    managers: the running network managers; for each interface that has to run here, the kinds of items that they may
        remove with their current settings.
    forward_chains: chains of the firewall whose policy drops the packets that this machine forwards.
    ipv6_filters: what filters IPv6 strictly by the reverse path.
    left_out: networks that servers pushed and that running clients leave out, each with the interface.
    advertised: the interfaces whose IPv6 default route comes from a router's advertisements, each with its accept_ra.
    autoconfigured: the interfaces with a global IPv6 address that has a lifetime, each with its accept_ra. The kernel
        (SLAAC) or a program gave it.
    ipv6_off: the TUN interfaces that have to run here, or run, and on which IPv6 is switched off.
    strangers: IPv6 addresses that another program gave to a running TUN interface, and that may become the source of
        packets, each with the interface.
    """

    tun_error: str | None = None
    capabilities: int | None = None
    kernel: str = "6.18"
    sysctls: Mapping[str, int] = field(default_factory=dict)
    now: float = 0.0
    clock_is_set: bool | None = None
    routes: tuple[Route, ...] = ()
    interfaces: Mapping[str, int] = field(default_factory=dict)
    bridges: Mapping[str, LinuxBridge] = field(default_factory=dict)
    holders: Mapping[str, Holder] = field(default_factory=dict)
    max_files: int = 1 << 20
    addresses: frozenset[str] = frozenset()
    reachable: tuple[tuple[IPAddress, str], ...] = ()
    left_over: tuple[str, ...] = ()
    conflicts: tuple[tuple[str, TransportConflictStatus], ...] = ()
    rp_filters: Mapping[str, int] = field(default_factory=dict)
    managers: Mapping[Manager, Mapping[str, frozenset[Kind]]] = field(default_factory=dict)
    forward_chains: tuple[ForwardChain, ...] = ()
    ipv6_filters: tuple[ReversePathFilter, ...] = ()
    left_out: tuple[tuple[str, LeftOutStatus], ...] = ()
    advertised: Mapping[str, int] = field(default_factory=dict)
    autoconfigured: Mapping[str, int] = field(default_factory=dict)
    ipv6_off: tuple[str, ...] = ()
    strangers: tuple[tuple[str, IPv6Interface], ...] = ()


def inspect_machine(names: Iterable[str] = ()) -> Machine:
    """Inspect this machine now. ``names``: the interfaces that have to run here, and their bridges. Facts that cannot
    be read are left out."""
    names = tuple(names)
    footprint = _footprint()
    interfaces = [interface for process in running(_STATUS_S) for interface in process.interfaces]
    tunnels = {interface.name: interface.addresses for interface in interfaces if interface.device == "tun"}
    return Machine(
        ipv6_off=tuple(name for name in dict.fromkeys((*names, *tunnels)) if _number_in(_disable_ipv6(name))),
        strangers=tuple(_strangers(tunnels, _text("/proc/net/if_inet6"))),
        managers={
            manager: {name: frozenset(taken_by(manager, name)) for name in names} for manager in managers_running()
        },
        forward_chains=dropping_forward_chains(names),
        ipv6_filters=strict_ipv6_filters(names),
        reachable=footprint.addresses,
        left_over=footprint.left_over,
        conflicts=tuple(
            (interface.name, conflict) for interface in interfaces for conflict in interface.transport_conflicts
        ),
        left_out=tuple((interface.name, left_out) for interface in interfaces for left_out in interface.left_out),
        tun_error=_tun_error(),
        capabilities=_capabilities(),
        kernel=platform.release(),
        sysctls={name: value for name in _SYSCTLS if (value := _sysctl(name)) is not None},
        now=time.time(),
        rp_filters={
            name: value
            for name in names
            if (value := _number_in(f"/proc/sys/net/ipv4/conf/{name}/rp_filter")) is not None
        },
        clock_is_set=_clock_is_set(),
        routes=parse_routes(_text("/proc/net/route")) + parse_ipv6_routes(_text("/proc/net/ipv6_route")),
        advertised=_accept_ra(parse_advertised(_text("/proc/net/ipv6_route"))),
        autoconfigured=_accept_ra(parse_autoconfigured(_text("/proc/net/if_inet6"))),
        interfaces=_interfaces(),
        bridges=_bridges(),
        holders={name: holder for name in names if (holder := holder_of(name)) is not None},
        max_files=_max_files(),
        addresses=parse_addresses(_text("/proc/net/fib_trie"), _text("/proc/net/if_inet6")),
    )


def parse_addresses(fib_trie: str, if_inet6: str) -> frozenset[str]:
    """The addresses of this machine: local routes in /proc/net/fib_trie, and the lines of /proc/net/if_inet6 whose
    address is usable (neither tentative nor a duplicate). Malformed lines are ignored."""
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
    """The routes in /proc/net/route, whose addresses are hexadecimal in the machine's byte order. Malformed lines are
    ignored."""
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


def parse_ipv6_routes(text: str) -> tuple[Route, ...]:
    """The routes in /proc/net/ipv6_route but those to addresses of this machine, to link-local and multicast addresses.
    It has those of all tables. Malformed lines are ignored."""
    routes = [
        Route(network, interface)
        for network, flags, interface in _ipv6_lines(text)
        if flags & _RTF_UP and not flags & _RTF_OWN and interface != "lo"
    ]
    return tuple(it for it in routes if not any(is_within(it.network, usual) for usual in _ON_EVERY_LINK))


def parse_advertised(text: str) -> list[str]:
    """The interfaces with a default route in /proc/net/ipv6_route that a router advertised."""
    found = [
        interface
        for network, flags, interface in _ipv6_lines(text)
        if network.prefixlen == 0 and flags & _RTF_DEFAULT_BY_RA == _RTF_DEFAULT_BY_RA
    ]
    return list(dict.fromkeys(found))


def parse_autoconfigured(text: str) -> list[str]:
    """The interfaces in /proc/net/if_inet6 with an address of global scope that has a lifetime. Malformed lines are
    ignored."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        try:
            if int(words[3], 16) == _SCOPE_GLOBAL and not int(words[4], 16) & _IFA_PERMANENT:
                found.append(words[5])
        except (IndexError, ValueError):
            continue
    return list(dict.fromkeys(found))


def _disable_ipv6(name: str) -> str:
    return f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"


def _strangers(tunnels: Mapping[str, Iterable[str]], if_inet6: str) -> Iterator[tuple[str, IPv6Interface]]:
    """``tunnels``: the addresses that each TUN interface of ours has from us."""
    for name, found in parse_sources(if_inet6):
        if name in tunnels and found.ip not in {ip_interface(text).ip for text in tunnels[name]}:
            yield name, found


def parse_sources(if_inet6: str) -> list[tuple[str, IPv6Interface]]:
    """The addresses of global scope in /proc/net/if_inet6 that the kernel may choose as a source, each with its
    interface. Malformed lines are ignored."""
    found: list[tuple[str, IPv6Interface]] = []
    for line in if_inet6.splitlines():
        words = line.split()
        try:
            flags = int(words[4], 16)
            if int(words[3], 16) == _SCOPE_GLOBAL and not flags & (_IFA_UNUSABLE | _IFA_DEPRECATED):
                found.append((words[5], IPv6Interface((int(words[0], 16), int(words[2], 16)))))
        except (IndexError, ValueError):
            continue
    return found


def _accept_ra(interfaces: Iterable[str]) -> dict[str, int]:
    """The accept_ra of each of these interfaces, if it can be read."""
    paths = {name: f"/proc/sys/net/ipv6/conf/{name}/accept_ra" for name in interfaces}
    return {name: value for name, path in paths.items() if (value := _number_in(path)) is not None}


def _ipv6_lines(text: str) -> Iterator[tuple[IPv6Network, int, str]]:
    """Destination, flags and interface of each line that can be read (net/ipv6/route.c: rt6_info_route)."""
    for line in text.splitlines():
        words = line.split()
        try:
            yield IPv6Network((int(words[0], 16), int(words[1], 16))), int(words[8], 16), words[9]
        except (IndexError, ValueError):
            continue


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
    return _number_in("/proc/sys/" + name.replace(".", "/"))


def _number_in(path: str) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _clock_is_set() -> bool | None:
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: query only (adjtimex(2))
    state = ctypes.CDLL(None).adjtimex(timex)
    return None if state < 0 else state != _TIME_ERROR


def _max_files() -> int:
    """The hard limit, or the kernel's default if it is not known."""
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
            found[name] = 0  # /sys belongs to another namespace: only the name is known
    return found


def _bridges() -> dict[str, LinuxBridge]:
    return {
        name: LinuxBridge(
            tuple(_names(f"{_SYS_NET}/{name}/brif")),
            _text(f"{_SYS_NET}/{name}/ifalias").strip(),
            int(_text(f"{_SYS_NET}/{name}/flags").strip() or "0x1", 16) & _IFF_UP != 0,
            _number_in(f"{_SYS_NET}/{name}/netdev_group") or 0,
        )
        for name in _names(_SYS_NET)
        if os.path.isdir(f"{_SYS_NET}/{name}/bridge")
    }


def _names(directory: str) -> list[str]:
    """What is in a directory, in order; empty if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _text(path: str) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
