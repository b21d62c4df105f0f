"""Judges what was seen of a machine, by itself and for the interfaces that are to run on it. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from typing import Final, Literal, TypeAlias

from ..config.model import AdminConfig, ClientConfig, InterfaceConfig, ServerConfig, TcpAddress
from ..host.process.privileges import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, FIRST_FREE_PORT, NET_ADMIN_REMEDY
from ..status.render import conflict_text
from .machine import Machine, Route

Severity: TypeAlias = Literal["ok", "note", "warning", "failure"]
"""``failure``: a tunnel does not run, or not as its config wants; ``warning``: it may not; ``note``: to know."""

USO_KERNEL: Final = (6, 2)
OLDEST_KERNEL: Final = (4, 19)
EARLIEST: Final = 1_767_225_600.0  # 2026-01-01: no clock that is right is before this program
FILES_PER_CLIENT: Final = 9  # two streams, twice while they are replaced; a proxy's dead ones; a queue of the TUN
FILES: Final = 64
STRICT: Final = 1  # rp_filter, ip-sysctl.rst
ETHERNET_MTU: Final = 1500


@dataclass(frozen=True, slots=True)
class Finding:
    """``check``: a fixed word, for programs. ``remedy``: what to do; empty if there is nothing to."""

    severity: Severity
    check: str
    text: str
    remedy: str = ""


def judge(machine: Machine, configs: Sequence[InterfaceConfig], admin: AdminConfig | None = None) -> list[Finding]:
    """Everything that was looked at, well or not, in a fixed order."""
    found = [_tun(machine), _capabilities(machine, configs), _offloads(machine), *_ipv6(machine, configs)]
    found += [*_forwarding(machine, configs), *_rp_filter(machine, configs), _clock(machine, configs)]
    found += [*_listen(machine, configs, admin), *_routes(machine, configs), *_covering(machine, configs)]
    found += [*_left_over(machine), *_mtu(machine, configs), _files(machine, configs)]
    return found


def _tun(machine: Machine) -> Finding:
    if machine.tun_error is None:
        return Finding("ok", "tun", "/dev/net/tun opens")
    problem, _, remedy = machine.tun_error.partition("; ")
    return Finding("failure", "tun", problem, remedy)


def _capabilities(machine: Machine, configs: Iterable[InterfaceConfig]) -> Finding:
    if machine.capabilities is None:
        return Finding("note", "capabilities", "there is no /proc to ask for our capabilities")
    if not machine.capabilities >> CAP_NET_ADMIN & 1:
        return Finding("failure", "capabilities", "CAP_NET_ADMIN is not there", NET_ADMIN_REMEDY)
    first = machine.sysctls.get("net.ipv4.ip_unprivileged_port_start", FIRST_FREE_PORT)
    low = [f"{config.name} is to listen on port {port}" for config, port in _ports(configs) if port < first]
    if low and not machine.capabilities >> CAP_NET_BIND_SERVICE & 1:
        text = f"CAP_NET_BIND_SERVICE is not there, and {low[0]}"
        remedy = "run as root, or under systemd with it in AmbientCapabilities too, or choose a port from 1024 on"
        return Finding("failure", "capabilities", text, remedy)
    return Finding("ok", "capabilities", "CAP_NET_ADMIN is there")


def _ports(configs: Iterable[InterfaceConfig]) -> Iterator[tuple[ServerConfig, int]]:
    for config in configs:
        if isinstance(config, ServerConfig):
            yield from ((config, it.port) for it in config.listen if isinstance(it, TcpAddress))


def _offloads(machine: Machine) -> Finding:
    kernel = kernel_version(machine.kernel)
    if kernel is None:
        return Finding("note", "offloads", f"kernel {machine.kernel}: its version is not known")
    if kernel < OLDEST_KERNEL:
        text = f"kernel {machine.kernel} is older than what this program was tested with"
        return Finding("warning", "offloads", text, "use 4.19 or newer")
    if kernel < USO_KERNEL:
        text = f"kernel {machine.kernel} has TCP offloads and none for UDP: small UDP packets are written one by one"
        return Finding("note", "offloads", text, "use Linux 6.2 or newer if that matters")
    return Finding("ok", "offloads", f"kernel {machine.kernel} has TCP and UDP offloads")


def kernel_version(release: str) -> tuple[int, int] | None:
    """Major and minor of a release; None: it has none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return None if found is None else (int(found[1]), int(found[2]))


def _ipv6(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    value = machine.sysctls.get("net.ipv6.conf.all.disable_ipv6")
    if value == 0:
        yield Finding("ok", "ipv6", "IPv6 is there for the tunnel's own connections; inside it is IPv4 only")
        return
    why = "this kernel has no IPv6" if value is None else "IPv6 is switched off"
    remedy = "" if value is None else "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
    needing = list(_needs_ipv6(configs))
    for severity, text in needing:
        yield Finding(severity, "ipv6", f"{why}, and {text}", remedy or "choose an IPv4 address")
    if not needing:
        yield Finding("note", "ipv6", f"{why}: a server whose name has IPv6 addresses only cannot be reached")


def _needs_ipv6(configs: Iterable[InterfaceConfig]) -> Iterator[tuple[Severity, str]]:
    for config in configs:
        if isinstance(config, ServerConfig):
            needing = [it for it in config.listen if isinstance(it, TcpAddress) and ":" in it.address]
            for it in needing:
                if not it.optional:
                    severity: Severity = "failure" if len(needing) == len(config.listen) else "warning"
                    yield severity, f"{config.name} is to listen on {it.address}"
        elif ":" in config.server.host:
            yield "failure", f"the server of {config.name} is {config.server.host}"


def _listen(machine: Machine, configs: Sequence[InterfaceConfig], admin: AdminConfig | None) -> Iterator[Finding]:
    if not machine.addresses:
        return
    wanted = [(config.name, it) for config in configs if isinstance(config, ServerConfig) for it in config.listen]
    if admin is not None:
        wanted.append(("admin", admin.listen))
    own = {str(it) for server in configs if isinstance(server, ServerConfig) for it in (server.net.ip, *server.ips)}
    absent = 0
    for name, endpoint in wanted:
        if not isinstance(endpoint, TcpAddress) or endpoint.early or endpoint.address in machine.addresses | own:
            continue
        address = ip_address(endpoint.address)
        if address.is_unspecified or address.is_loopback:
            continue
        absent += 1
        text = f"{name} is to listen on {endpoint.address}, which this machine does not have: nobody can connect there"
        yield Finding("warning", "listen", text, "correct listen, or give this machine the address")
    if not absent:
        yield Finding("ok", "listen", "this machine has every address that is to be listened on")


def _forwarding(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    routers = [config.name for config in configs if isinstance(config, ServerConfig) and _routes_for_others(config)]
    if machine.sysctls.get("net.ipv4.ip_forward") == 1:
        yield Finding("ok", "forwarding", "this machine forwards IPv4")
    elif routers:
        text = f"this machine forwards nothing, and {', '.join(routers)} has networks behind it"
        yield Finding("failure", "forwarding", text, "sysctl -w net.ipv4.ip_forward=1, and in /etc/sysctl.d for good")
    else:
        text = "this machine forwards nothing: a tunnel is for itself alone"
        yield Finding("note", "forwarding", text, "sysctl -w net.ipv4.ip_forward=1 where others are to use it")


def _routes_for_others(config: ServerConfig) -> bool:
    return bool(config.routes or config.push_routes or any(client.routes for client in config.clients))


def _rp_filter(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """The kernel takes the stricter of ``all`` and the interface's own, which a new one has from ``default``."""
    names = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter")
    strictest = max(machine.sysctls.get(name, 0) for name in names)
    affected = [config.name for config in configs if _is_asymmetric(config)]
    if STRICT not in {machine.sysctls.get(name, 0) for name in names} or strictest > STRICT:
        yield Finding("ok", "rp_filter", "no strict reverse path filter")
    elif affected:
        text = f"a strict reverse path filter drops what clients of {', '.join(affected)} send from elsewhere"
        yield Finding("failure", "rp_filter", text, "; ".join(f"sysctl -w {name}=2" for name in names))
    else:
        text = "a strict reverse path filter: packets from addresses that are not routed into a tunnel are dropped"
        yield Finding("note", "rp_filter", text)


def _is_asymmetric(config: InterfaceConfig) -> bool:
    """Its device is to let in what is not routed there. With a mark the program loosens the filter there by itself."""
    return config.mark is None and isinstance(config, ServerConfig) and any(client.sources for client in config.clients)


def _clock(machine: Machine, configs: Sequence[InterfaceConfig]) -> Finding:
    tls = any(isinstance(config, ClientConfig) and config.server.scheme == "https" for config in configs)
    if machine.now < EARLIEST:
        text = "the clock is before 2026" + (", so every certificate is one of the future" if tls else "")
        return Finding("failure" if tls else "warning", "clock", text, "set it, and run chrony or systemd-timesyncd")
    if machine.clock_is_set is False:
        text = "nobody keeps the clock right; certificates are checked by it"
        return Finding("warning" if tls else "note", "clock", text, "run chrony or systemd-timesyncd")
    return Finding("ok", "clock", "the clock is set")


def _routes(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    clashes = 0
    for config in configs:
        holder = machine.holders.get(config.name)
        if holder is not None and holder.trusted:
            clashes += 1
            text = f"{holder} runs an interface {config.name} already, and a second one does not start"
            yield Finding("note", "routes", text, "that is well if it is this tunnel; else give one another name")
        elif holder is not None:
            clashes += 1
            text = f"{holder}, which is no tapotun process, has reserved the name {config.name}"
            remedy = "stop that process: while it has the name, a second start is noticed only once the tunnel is up"
            yield Finding("warning", "routes", text, remedy)
        if config.name in machine.interfaces and not (holder is not None and holder.trusted):
            clashes += 1
            text = f"there is an interface {config.name} already, which is well if it is this tunnel's own"
            yield Finding(
                "note", "routes", text, f"else give the tunnel another name, or: ip link delete {config.name}"
            )
        if not isinstance(config, ServerConfig):
            continue
        others = Routes(it for it in machine.routes if it.interface != config.name and it.network.prefixlen)
        for network, what in _networks(config):
            for route in others.overlapping(network):
                clashes += 1
                where = f"{route.network} on {route.interface}"
                if network == route.network:
                    text = f"{what} {network} of {config.name} is routed elsewhere already: {where}"
                    yield Finding("failure", "routes", text, "choose another network, or remove that route")
                else:
                    text = f"{what} {network} of {config.name} overlaps {where}: the narrower of the two wins"
                    yield Finding("warning", "routes", text, "choose another network, unless that is meant")
    if not clashes:
        text = "no route stands in the way" if configs else "not compared: there is no valid config to compare with"
        yield Finding("ok", "routes", text)


def _covering(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Whether a tunnel is led into itself: what clients that run here say, and what servers push to theirs."""
    names = {config.name for config in configs}
    told = [(name, it) for name, it in machine.conflicts if not configs or name in names]
    for name, conflict in told:
        helped = conflict.action == "excepted"
        remedy = "" if conflict.action == "captured" else "narrow the server's push_routes or net"
        yield Finding("note" if helped else "warning", "covering", f"{name}: {conflict_text(conflict)}", remedy)
    covered = 0
    for config in configs:
        if not isinstance(config, ServerConfig):
            continue
        inside = {config.net.ip, *config.ips}
        outside = [(it, device) for it, device in machine.reachable if it not in inside and device not in names]
        for network in (config.net.network, *config.push_routes):
            for address, device in outside:
                if address in network:
                    covered += 1
                    what = "its net" if network == config.net.network else "its push_routes"
                    text = f"{config.name}: {what} {network} covers this machine's address {address} on {device}"
                    remedy = "if clients reach the server there, write networks without it: deployed clients stay dead"
                    yield Finding("warning", "covering", text, remedy)
                    break
    if not told and not covered:
        yield Finding("ok", "covering", "no tunnel is led into itself")


def _left_over(machine: Machine) -> Iterator[Finding]:
    if machine.left_over:
        text = f"host routes of a run that was killed are left over: {', '.join(machine.left_over)}"
        remedy = "the next start of an interface removes them; by hand: ip route del ADDRESS proto 116"
        yield Finding("warning", "left-over", text, remedy)
    else:
        yield Finding("ok", "left-over", "nothing is left over from a run that was killed")


class Routes:
    """Finds those that overlap a network without looking at each: both may be tens of thousands."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = list(routes)
        self._by_prefix: dict[tuple[int, int], list[int]] = {}  # its length and its bits: positions in the list
        for number, route in enumerate(self._routes):
            self._by_prefix.setdefault(_prefix(route.network, route.network.prefixlen), []).append(number)
        self._lengths = sorted({length for length, _ in self._by_prefix})
        self._firsts = sorted((int(route.network.network_address), number) for number, route in enumerate(self._routes))

    def overlapping(self, network: IPv4Network) -> list[Route]:
        """In the order in which they were given."""
        found: set[int] = set()
        for length in self._lengths:  # those that hold it
            if length <= network.prefixlen:
                found.update(self._by_prefix.get(_prefix(network, length), ()))
        first, last = int(network.network_address), int(network.broadcast_address)
        begin, end = bisect_left(self._firsts, (first, 0)), bisect_left(self._firsts, (last + 1, 0))
        found.update(number for _, number in self._firsts[begin:end])  # those within it
        return [self._routes[number] for number in sorted(found)]


def _prefix(network: IPv4Network, length: int) -> tuple[int, int]:
    return length, int(network.network_address) >> 32 - length


def _networks(config: ServerConfig) -> Iterator[tuple[IPv4Network, str]]:
    yield config.net.network, "the network"
    if config.install_routes:
        for client in config.clients:
            for network in client.routes:
                yield network, f"the route of {client.name} to"


def _mtu(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    small = [it for it in configs if isinstance(it, ServerConfig) and it.mtu < ETHERNET_MTU and _routes_for_others(it)]
    for config in small:
        text = f"{config.name} has an MTU of {config.mtu}, and networks behind it most likely {ETHERNET_MTU}"
        remedy = f"mtu {ETHERNET_MTU}, as a tunnel over HTTP needs no less; else clamp the MSS to the path's MTU"
        yield Finding("warning", "mtu", text, remedy)
    if not small:
        yield Finding("ok", "mtu", "no tunnel is narrower than what lies behind it")


def _files(machine: Machine, configs: Sequence[InterfaceConfig]) -> Finding:
    clients = sum(len(config.clients) for config in configs if isinstance(config, ServerConfig))
    needed = FILES + FILES_PER_CLIENT * clients
    if machine.max_files >= needed:
        return Finding("ok", "files", f"{machine.max_files} files may be open")
    text = f"{machine.max_files} files may be open, and {clients} clients need up to {needed}"
    return Finding("failure", "files", text, f"LimitNOFILE={needed} in the unit, or ulimit -n {needed}")
