"""Evaluates the facts about a machine, in general and for the interfaces of a config. Pure."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias

from ..config.model import (
    AdminConfig,
    ClientConfig,
    InterfaceConfig,
    ServerConfig,
    TcpAddress,
    addressed,
    is_pushed_to_base_clients,
)
from ..families import IPNetwork
from ..host.firewall import ReversePathFilter
from ..host.network_managers import KINDS, Kind, remedy
from ..host.process.privileges import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, FIRST_FREE_PORT, NET_ADMIN_REMEDY
from ..status.render import conflict_text, left_out_text
from ..text import interface_setting, listed
from .machine import LinuxBridge, Machine, Route

Severity: TypeAlias = Literal["ok", "note", "warning", "failure"]
"""``failure``: a tunnel does not work, or differs from its config; ``warning``: it may not work; ``note``:
information."""

USO_KERNEL: Final = (6, 2)
OLDEST_KERNEL: Final = (4, 19)
EARLIEST: Final = 1_767_225_600.0  # 2026-01-01, when this program did not exist yet: an earlier clock is wrong
FILES_PER_CLIENT: Final = 9  # 2 streams, 4 during a rotation, some that a proxy keeps open, a TUN queue
FILES: Final = 64
STRICT: Final = 1  # rp_filter, ip-sysctl.rst
# accept_ra, ip-sysctl.rst. 0 is also what systemd-networkd and NetworkManager set: they read advertisements themselves.
_ACCEPT_RA_AS_HOST: Final = 1
_ACCEPT_RA_AS_ROUTER: Final = 2
ETHERNET_MTU: Final = 1500
# As in `host.netlink.bridge_codec`: the first word of the ifalias of a bridge of ours, and its group.
OWN_BRIDGE: Final = "tapotun"
OWN_GROUP: Final = 116
# What has rules for the frames of bridges too, by the version of IP.
_BRIDGE_FILTERS: Final = {
    4: ("iptables", "net.bridge.bridge-nf-call-iptables"),
    6: ("ip6tables", "net.bridge.bridge-nf-call-ip6tables"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``check``: a fixed word, for programs. ``remedy``: what to do; empty if there is nothing to do."""

    severity: Severity
    check: str
    text: str
    remedy: str = ""


def judge(machine: Machine, configs: Sequence[InterfaceConfig], admin: AdminConfig | None = None) -> list[Finding]:
    """All findings, good and bad, in a fixed order."""
    found = [_tun(machine), _capabilities(machine, configs), _offloads(machine), *_ipv6(machine, configs)]
    found += [*_forwarding(machine, configs), *_forward_chains(machine, configs), *_rp_filter(machine, configs)]
    found += [*_managers(machine, configs), *_bridges(machine, configs), _clock(machine, configs)]
    found += [
        *_listen(machine, configs, admin),
        *_strangers(machine, configs),
        *_routes(machine, configs),
        *_covering(machine, configs),
    ]
    found += [*_left_out(machine, configs), *_left_over(machine), *_mtu(machine, configs), _files(machine, configs)]
    return found


def _tun(machine: Machine) -> Finding:
    if machine.tun_error is None:
        return Finding("ok", "tun", "/dev/net/tun opens")
    problem, _, remedy = machine.tun_error.partition("; ")
    return Finding("failure", "tun", problem, remedy)


def _capabilities(machine: Machine, configs: Iterable[InterfaceConfig]) -> Finding:
    if machine.capabilities is None:
        return Finding("note", "capabilities", "there is no /proc that shows the capabilities of this process")
    if not machine.capabilities >> CAP_NET_ADMIN & 1:
        return Finding("failure", "capabilities", "CAP_NET_ADMIN is missing", NET_ADMIN_REMEDY)
    first = machine.sysctls.get("net.ipv4.ip_unprivileged_port_start", FIRST_FREE_PORT)
    low = [f"{config.name} has to listen on port {port}" for config, port in _ports(configs) if port < first]
    if low and not machine.capabilities >> CAP_NET_BIND_SERVICE & 1:
        text = f"CAP_NET_BIND_SERVICE is missing, and {low[0]}"
        remedy = "run as root, or add it to AmbientCapabilities under systemd, or choose a port from 1024 on"
        return Finding("failure", "capabilities", text, remedy)
    return Finding("ok", "capabilities", "CAP_NET_ADMIN is available")


def _ports(configs: Iterable[InterfaceConfig]) -> Iterator[tuple[ServerConfig, int]]:
    for config in configs:
        if isinstance(config, ServerConfig):
            yield from ((config, endpoint.port) for endpoint in config.listen if isinstance(endpoint, TcpAddress))


def _offloads(machine: Machine) -> Finding:
    kernel = kernel_version(machine.kernel)
    if kernel is None:
        return Finding("note", "offloads", f"the version of kernel {machine.kernel} is not known")
    if kernel < OLDEST_KERNEL:
        text = f"kernel {machine.kernel} is older than the versions that this program was tested with"
        return Finding("warning", "offloads", text, "use 4.19 or newer")
    if kernel < USO_KERNEL:
        text = f"kernel {machine.kernel} has TCP offloads but no UDP offloads: small UDP packets are written one by one"
        return Finding("note", "offloads", text, "use Linux 6.2 or newer if that matters")
    return Finding("ok", "offloads", f"kernel {machine.kernel} has TCP and UDP offloads")


def kernel_version(release: str) -> tuple[int, int] | None:
    """Major and minor version of a release; None if it has none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return None if found is None else (int(found[1]), int(found[2]))


def _ipv6(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    value = machine.sysctls.get("net.ipv6.conf.all.disable_ipv6")
    inside = list(_has_ipv6_inside(configs))
    if value == 0:
        if machine.sysctls.get("net.ipv6.conf.default.disable_ipv6"):
            reason, remedy = "IPv6 is switched off for new interfaces", "sysctl -w net.ipv6.conf.default.disable_ipv6=0"
            for text in inside:
                yield Finding("failure", "ipv6", f"{reason}, and {text}", remedy)
            if not inside:
                yield Finding("note", "ipv6", f"{reason}: a tunnel carries IPv4 only", remedy)
        elif off := [name for name in machine.ipv6_off if not configs or name in map(addressed, configs)]:
            for name in off:
                concerned = [config for config in configs if addressed(config) == name]
                remedy = f"sysctl -w {interface_setting('ipv6', name, 'disable_ipv6')}=0"
                needing_it = list(_has_ipv6_inside(concerned))
                for text in needing_it:
                    yield Finding("failure", "ipv6", f"IPv6 is switched off on {name}, and {text}", remedy)
                if not needing_it and not any(config.device == "tap" for config in concerned):
                    yield Finding("note", "ipv6", f"IPv6 is switched off on {name}: it carries IPv4 only", remedy)
        else:
            yield Finding("ok", "ipv6", "IPv6 is available, for the tunnel's connections and inside")
        return
    reason = "this kernel has no IPv6" if value is None else "IPv6 is switched off"
    remedy = "" if value is None else "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
    needing = list(_needs_ipv6(configs))
    for severity, text in needing:
        yield Finding(severity, "ipv6", f"{reason}, and {text}", remedy or "choose an IPv4 address")
    for text in inside:
        yield Finding("failure", "ipv6", f"{reason}, and {text}", remedy or "leave IPv6 out of its net")
    if not needing and not inside:
        text = f"{reason}: tunnels carry IPv4 only, and a server whose name has IPv6 addresses only cannot be reached"
        yield Finding("note", "ipv6", text)


def _has_ipv6_inside(configs: Iterable[InterfaceConfig]) -> Iterator[str]:
    for config in configs:
        if isinstance(config, ServerConfig) and config.net6 is not None:
            yield f"{config.name} has the network {config.net6.network}"


def _needs_ipv6(configs: Iterable[InterfaceConfig]) -> Iterator[tuple[Severity, str]]:
    for config in configs:
        if isinstance(config, ServerConfig):
            addresses = [endpoint for endpoint in config.listen if isinstance(endpoint, TcpAddress)]
            needing = [endpoint for endpoint in addresses if ":" in endpoint.address]
            for endpoint in needing:
                if not endpoint.optional:
                    severity: Severity = "failure" if len(needing) == len(config.listen) else "warning"
                    yield severity, f"{config.name} has to listen on {endpoint.address}"
        elif ":" in config.server.host:
            yield "failure", f"the server of {config.name} is {config.server.host}"


def _listen(machine: Machine, configs: Sequence[InterfaceConfig], admin: AdminConfig | None) -> Iterator[Finding]:
    if not machine.addresses:
        return
    wanted = [
        (config.name, endpoint) for config in configs if isinstance(config, ServerConfig) for endpoint in config.listen
    ]
    if admin is not None:
        wanted.append(("admin", admin.listen))
    own = {str(ip) for server in configs if isinstance(server, ServerConfig) for ip in server.own_addresses}
    absent = 0
    for name, endpoint in wanted:
        if not isinstance(endpoint, TcpAddress) or endpoint.early or endpoint.address in machine.addresses | own:
            continue
        address = ip_address(endpoint.address)
        if address.is_unspecified or address.is_loopback:
            continue
        absent += 1
        text = (
            f"{name} has to listen on {endpoint.address}, which this machine does not have: nothing can connect there"
        )
        yield Finding("warning", "listen", text, "correct listen, or give this machine the address")
    if not absent:
        yield Finding("ok", "listen", "this machine has every address that a listen option names")


def _strangers(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Of several IPv4 addresses the first is the source, and that is ours. Of several IPv6 addresses it is the last."""
    names = {config.name for config in configs}
    for name, address in machine.strangers:
        if not configs or name in names:
            text = f"another program gave {name} the address {address}: it may be the source of this machine's packets "
            text += "into the tunnel, and the other end may not know it"
            remedy = f"remove it, or let it be no source: ip address change {address} dev {name} preferred_lft 0"
            yield Finding("warning", "addresses", text, remedy)


def _forwarding(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    for version, name in (4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding"):
        family, value = f"IPv{version}", machine.sysctls.get(name)
        routers = [
            config.name
            for config in configs
            if isinstance(config, ServerConfig) and _routes_for_others(config, version)
        ]
        if value == 1:
            yield Finding("ok", "forwarding", f"this machine forwards {family}")
        elif routers:
            text = f"this machine does not forward {family}, and {', '.join(routers)} has networks behind it"
            remedy = f"sysctl -w {name}=1, and in a file of /etc/sysctl.d"
            if version == 6 and machine.advertised:
                links = ", ".join(f"{_accept_ra(link)}=2" for link in machine.advertised)
                remedy += f"; with {links}, or this machine's default route goes"
            yield Finding("failure", "forwarding", text, remedy)
        elif value is not None and (not configs or any(_may_carry(config, version) for config in configs)):
            text = f"this machine does not forward {family}: only this machine itself can use a tunnel"
            yield Finding("note", "forwarding", text, f"sysctl -w {name}=1 if other machines have to use it")
        if version == 6 and value == 1:
            ignoring = [link for link, accepts in machine.advertised.items() if accepts < _ACCEPT_RA_AS_ROUTER]
            # When forwarding is switched on, the kernel removes the default route at once, but leaves the address.
            ignoring += [link for link, accepts in machine.autoconfigured.items() if accepts == _ACCEPT_RA_AS_HOST]
            for link in dict.fromkeys(ignoring):
                text = f"this machine forwards IPv6, so {link} ignores the router that its address or default route "
                text += "comes from, and IPv6 fails there sooner or later"
                yield Finding("warning", "forwarding", text, f"sysctl -w {_accept_ra(link)}=2")


def _accept_ra(link: str) -> str:
    return interface_setting("ipv6", link, "accept_ra")


def _forward_chains(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Check whether a firewall drops packets that are forwarded from or to the tunnels. Docker sets this policy when it
    starts."""
    has_ipv6 = any(True for _ in _has_ipv6_inside(configs))
    chains = [chain for chain in machine.forward_chains if has_ipv6 or 4 in chain.versions]
    for chain in chains:
        routers = [
            config.name
            for config in configs
            if isinstance(config, ServerConfig)
            and any(_routes_for_others(config, version) for version in chain.versions)
        ]
        unnamed = [name for name in routers if name not in chain.named]
        text = f"{chain.name} drops forwarded packets that no rule accepts{'' if chain.nft else ', as Docker sets it'}"
        if unnamed:
            rules = " and ".join(f"`{command}`" for command in chain.accepting(unnamed[0]))
            where = "and in the file that makes the chain, such as /etc/nftables.conf"
            if not chain.nft:
                where = "with Docker in the chain DOCKER-USER, which it leaves alone"
            remedy = f"accept them: {rules}; {where}"
            yield Finding("warning", "firewall", f"{text}, and no rule names {', '.join(unnamed)}", remedy)
        else:
            yield Finding("note", "firewall", text)
    if not chains:
        yield Finding("ok", "firewall", "no firewall drops forwarded packets by its policy")


def _managers(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Report running network managers that may remove this program's configuration, and the settings that prevent
    it."""
    found = 0
    for manager, taken in machine.managers.items():
        for config in configs:
            at_risk = [kind for kind in KINDS if kind in taken.get(addressed(config), ()) and kind in _used(config)]
            if not at_risk:
                continue
            found += 1
            what = ", ".join(f"{kind}s" if kind != "address" else "addresses" for kind in at_risk)
            if manager == "systemd-networkd":
                text = f"systemd-networkd runs here, and takes away {what} of {config.name} when a link appears"
                yield Finding("warning", "managers", text, remedy(manager, at_risk, config.name))
            else:  # it removes items of other programs only if it was told to manage the interface
                text = f"{manager} runs here, and would take away {what} of {config.name} if it managed that interface"
                yield Finding("note", "managers", text, remedy(manager, at_risk, config.name))
    if not found:
        running = ", ".join(machine.managers)
        spares = "take" if len(machine.managers) > 1 else "takes"
        text = f"{running} {spares} nothing of the interfaces away" if configs else f"{running} runs here"
        yield Finding("ok", "managers", text if running else "no program takes away what others configure")


def _used(config: InterfaceConfig) -> set[Kind]:
    """Return the kinds of items of an interface that another program might remove."""
    if config.device == "tap":
        return set() if isinstance(config, ServerConfig) and not config.nets else {"address"}
    used: set[Kind] = {"address"}
    if not isinstance(config, ServerConfig) or (config.install_routes and _routes_for_others(config)):
        used.add("route")
    if config.mark is not None:
        used |= {"rule", "route"}
    return used


def _routes_for_others(config: ServerConfig, version: int | None = None) -> bool:
    """Whether there are networks behind the server or its clients. ``version``: of this family only."""
    networks = itertools.chain(config.routes, config.push_routes, *(client.routes for client in config.clients))
    return any(version in (None, network.version) for network in networks)


def _may_carry(config: InterfaceConfig, version: int) -> bool:
    """Whether its tunnel may have packets of this family to forward. A client learns from its server whether it does.
    A bridge forwards frames, and the machine has nothing to do with it."""
    if config.device == "tap":
        return False
    return not isinstance(config, ServerConfig) or any(net.version == version for net in config.nets)


def _bridges(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Check the bridges that interfaces have to be ports of."""
    members: dict[str, list[InterfaceConfig]] = {}
    for config in configs:
        if config.bridge is not None:
            members.setdefault(config.bridge.name, []).append(config)
    found = [problem for name, ports in members.items() for problem in _bridge(machine, name, ports)]
    found += _bridge_filters(machine, list(members))
    yield from found
    if members and not found:
        yield Finding("ok", "bridge", "nothing prevents the interfaces from being ports of their bridges")


def _bridge(machine: Machine, name: str, members: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """``members``: those that have to be ports of the bridge ``name``."""
    there = machine.bridges.get(name)
    taken = there is None and bool(machine.interfaces.get(name))
    makers = [config for config in members if config.bridge is not None and config.bridge.create]
    users = listed([config.name for config in members if config not in makers])
    for maker in makers:
        if taken:
            text = f"{maker.name} has to make the bridge {name}, and there is an interface {name} that is no bridge"
            yield Finding("failure", "bridge", text, "choose another name for the bridge")
        elif there is not None and not _is_ours(there):
            text = f"{maker.name} has to make the bridge {name}, and there is one already that another program made"
            yield Finding("failure", "bridge", text, 'set "create" to false to use it, or choose another name')
    if users and taken:
        text = f"bridge {name} of {users} is no bridge, but another interface"
        yield Finding("failure", "bridge", text, 'write the name of a bridge into "bridge"')
    elif users and there is None and name not in machine.interfaces and not makers and machine.interfaces:
        text = f"bridge {name} of {users} does not exist"
        yield Finding("failure", "bridge", text, f'ip link add {name} up type bridge, or "create": true in "bridge"')
    if there is None:
        return
    if users and not makers and not there.is_up:
        text = f"bridge {name} is down, so nothing passes between {users} and its other ports"
        yield Finding("warning", "bridge", text, f"ip link set {name} up")
    yield from _port_mtus(machine, name, members, there)


def _port_mtus(
    machine: Machine, name: str, members: Sequence[InterfaceConfig], bridge: LinuxBridge
) -> Iterator[Finding]:
    own = {
        config.name: config.mtu if isinstance(config, ServerConfig) else machine.interfaces.get(config.name, 0)
        for config in members
    }
    known = {port: mtu for port, mtu in own.items() if mtu}
    others = {port: machine.interfaces.get(port, 0) for port in bridge.ports if port not in own}
    mtus = known | {port: mtu for port, mtu in others.items() if mtu and mtu not in known.values()}
    if known and len(set(mtus.values())) > 1:
        text = f"ports of bridge {name} differ in their MTU, and frames that are larger than that of the port by which "
        text += f"they leave are dropped: {listed([f'{port} has {mtu}' for port, mtu in mtus.items()])}"
        yield Finding("warning", "bridge", text, "give all of them the same MTU")


def _is_ours(bridge: LinuxBridge) -> bool:
    """Whether a run of this program made it. One that was killed at once has given it no ifalias yet."""
    first, _, owner = bridge.alias.partition(" ")
    return bridge.group == OWN_GROUP and (not bridge.alias or (first == OWN_BRIDGE and bool(owner)))


def _bridge_filters(machine: Machine, bridges: Sequence[str]) -> Iterator[Finding]:
    """Whether rules for what the machine forwards as a router apply to what the bridges forward, too."""
    for version, (program, sysctl) in _BRIDGE_FILTERS.items() if bridges else ():
        if machine.sysctls.get(sysctl) != 1:
            continue
        text = f"br_netfilter applies the rules of {program} to frames that {', '.join(bridges)} forwards, too"
        remedy = f"sysctl -w {sysctl}=0, unless that is wanted"
        dropping = [chain for chain in machine.forward_chains if version in chain.versions]
        unnamed = [name for name in bridges if any(name not in chain.named for chain in dropping)]
        if unnamed:
            text += f", and {dropping[0].name} drops what no rule accepts; no rule names {', '.join(unnamed)}"
            remedy = f"sysctl -w {sysctl}=0, or `{program} -I FORWARD -i {unnamed[0]} -o {unnamed[0]} -j ACCEPT`"
        yield Finding("warning" if unnamed else "note", "bridge", text, remedy)


def _rp_filter(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """The kernel uses the higher of ``all`` and the interface's own setting, which starts as ``default``. It filters
    packets of IPv4 only; for IPv6 some firewalls have such a filter."""
    names = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter")
    everywhere, default = (machine.sysctls.get(name, 0) for name in names)
    found = 0
    for what, needs_loose in (
        ("the sources of clients of", _is_asymmetric),
        ("replies to marked packets of", _is_marked),
    ):
        affected = [
            config.name
            for config in configs
            if needs_loose(config, machine) and max(everywhere, machine.rp_filters.get(config.name, default)) == STRICT
        ]
        if affected:
            found += 1
            text = f"a strict reverse path filter drops packets from {what} {', '.join(affected)}"
            own = [interface_setting("ipv4", name, "rp_filter") for name in affected if name in machine.rp_filters]
            yield Finding("failure", "rp_filter", text, "; ".join(f"sysctl -w {name}=2" for name in (*names, *own)))
    for path_filter in machine.ipv6_filters:
        affected = [it.name for it in configs if _has_other_ipv6_sources(it) and it.name not in path_filter.named]
        if affected:
            found += 1
            text = f"the reverse path filter in chain {path_filter.chain} of the nftables table {path_filter.table} "
            text += (
                f"may drop IPv6 packets from {', '.join(affected)} whose source is not routed there, as replies to "
                "marked ones"
            )
            yield Finding("warning", "rp_filter", text, _filter_remedy(path_filter, affected[0]))
    if found:
        return
    if STRICT not in {everywhere, default} or max(everywhere, default) > STRICT:
        yield Finding("ok", "rp_filter", "no strict reverse path filter")
    else:
        text = "a strict reverse path filter: packets from addresses that are not routed into a tunnel are dropped"
        yield Finding("note", "rp_filter", text)


def _filter_remedy(path_filter: ReversePathFilter, name: str) -> str:
    if path_filter.table == "inet firewalld":
        return "set IPv6_rpfilter=no in /etc/firewalld/firewalld.conf, and restart firewalld"
    return f"nft insert rule {path_filter.table} {path_filter.chain} iifname {name} accept"


def _has_other_ipv6_sources(config: InterfaceConfig) -> bool:
    """Whether IPv6 packets may come from the interface's device whose source the main table routes elsewhere. Of a
    client with a mark it is not known whether its tunnel carries IPv6."""
    if isinstance(config, ClientConfig):
        return config.mark is not None
    pinned = any(source.version == 6 for client in config.clients for source in client.sources)
    return config.net6 is not None and (config.mark is not None or pinned)


def _is_asymmetric(config: InterfaceConfig, _machine: Machine) -> bool:
    """Whether the interface's device has to accept packets from addresses that are not routed to it. With a mark the
    answer is no: see `_is_marked`."""
    return (
        config.mark is None
        and isinstance(config, ServerConfig)
        and any(source.version == 4 for client in config.clients for source in client.sources)
    )


def _is_marked(config: InterfaceConfig, machine: Machine) -> bool:
    """Whether the interface exists and has a mark, for IPv4 too as far as that is known. The program has then loosened
    the filter on the device, and does so again when another program makes it strict. So if it is strict now, it did not
    succeed."""
    if isinstance(config, ServerConfig) and config.net4 is None:
        return False
    return config.mark is not None and config.name in machine.rp_filters


def _clock(machine: Machine, configs: Sequence[InterfaceConfig]) -> Finding:
    tls = any(isinstance(config, ClientConfig) and config.server.scheme == "https" for config in configs)
    if machine.now < EARLIEST:
        text = "the clock is before 2026" + (", so no certificate is valid yet" if tls else "")
        return Finding("failure" if tls else "warning", "clock", text, "set it, and run chrony or systemd-timesyncd")
    if machine.clock_is_set is False:
        text = "the clock is not synchronized, and the validity of certificates depends on it"
        return Finding("warning" if tls else "note", "clock", text, "run chrony or systemd-timesyncd")
    return Finding("ok", "clock", "the clock is set")


def _routes(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    clashes = 0
    for config in configs:
        holder = machine.holders.get(config.name)
        if holder is not None and holder.trusted:
            clashes += 1
            text = f"{holder} runs an interface {config.name} already, and a second one does not start"
            yield Finding("note", "routes", text, "nothing if it is this tunnel; otherwise rename one of them")
        elif holder is not None:
            clashes += 1
            text = f"{holder}, which is not a tapotun process, has reserved the name {config.name}"
            remedy = "stop that process: while it holds the name, a second start is noticed only once the tunnel is up"
            yield Finding("warning", "routes", text, remedy)
        if config.name in machine.interfaces and not (holder is not None and holder.trusted):
            clashes += 1
            text = f"there is an interface {config.name} already, which is fine if it belongs to this tunnel"
            yield Finding("note", "routes", text, f"otherwise rename the tunnel, or: ip link delete {config.name}")
        if not isinstance(config, ServerConfig):
            continue
        own = {config.name, addressed(config)}
        others = Routes(it for it in machine.routes if it.interface not in own and it.network.prefixlen)
        for network, what in _networks(config):
            for route in others.overlapping(network):
                clashes += 1
                where = f"{route.network} on {route.interface}"
                if network == route.network:
                    text = f"{what} {network} of {config.name} is routed elsewhere already: {where}"
                    yield Finding("failure", "routes", text, "choose another network, or remove that route")
                else:
                    text = f"{what} {network} of {config.name} overlaps {where}: the more specific of the two wins"
                    yield Finding("warning", "routes", text, "choose another network, unless this is intended")
    if not clashes:
        text = "no route conflicts" if configs else "not compared: there is no valid config to compare with"
        yield Finding("ok", "routes", text)


def _covering(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Whether a tunnel is routed into itself. Running clients report it; a server's networks and pushed routes are
    compared with the addresses of this machine."""
    names = {config.name for config in configs}
    reported = [(name, conflict) for name, conflict in machine.conflicts if not configs or name in names]
    for name, conflict in reported:
        avoided = conflict.action == "excepted"
        remedy = "" if conflict.action == "captured" else "narrow the server's push_routes or net"
        yield Finding("note" if avoided else "warning", "covering", f"{name}: {conflict_text(conflict)}", remedy)
    covered = 0
    for config in configs:
        if not isinstance(config, ServerConfig):
            continue
        inside = set(config.own_addresses)
        outside = [(ip, device) for ip, device in machine.reachable if ip not in inside and device not in names]
        own = [net.network for net in config.nets]
        # Extended clients keep their own connections out of what is pushed to them.
        pushed = [it for it in config.push_routes if is_pushed_to_base_clients(it, config.peers)]
        for network in (*own, *pushed):
            for address, device in outside:
                if address in network:
                    covered += 1
                    what = "its net" if network in own else "its push_routes"
                    text = f"{config.name}: {what} {network} covers this machine's address {address} on {device}"
                    remedy = "if clients reach the server there, use networks without it: base clients cannot recover"
                    yield Finding("warning", "covering", text, remedy)
                    break
    if not reported and not covered:
        yield Finding("ok", "covering", "no tunnel is routed into itself")


def _left_out(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    """Report the pushed networks that running clients leave out."""
    names = {config.name for config in configs}
    reported = [(name, left_out) for name, left_out in machine.left_out if not configs or name in names]
    remedies = {
        "attached": "nothing, if this machine may stay there; else renumber one of the two networks",
        "tunnel-network": "give the tunnel another network (the server's net)",
        "tunnel-address": "give the tunnel another network (the server's net)",
        "martian": "",
    }
    for name, left_out in reported:
        severity: Severity = "warning" if left_out.reason.startswith("tunnel-") else "note"
        text = f"{name}: left out: {left_out_text(left_out)}"
        yield Finding(severity, "left-out", text, remedies[left_out.reason])
    if not reported:
        yield Finding("ok", "left-out", "no client leaves out what its server pushed")


def _left_over(machine: Machine) -> Iterator[Finding]:
    if machine.left_over:
        text = f"a killed run left host routes: {', '.join(machine.left_over)}"
        remedy = "the next start of an interface removes them; by hand: ip route del ADDRESS proto 116"
        yield Finding("warning", "left-over", text, remedy)
    else:
        yield Finding("ok", "left-over", "no killed run left anything")


class Routes:
    """Finds the routes that overlap a network without testing each route: there may be tens of thousands of routes and
    of networks."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = list(routes)
        # IP version, prefix length and prefix: positions in the list
        self._by_prefix: dict[tuple[int, int, int], list[int]] = {}
        for number, route in enumerate(self._routes):
            self._by_prefix.setdefault(_prefix(route.network, route.network.prefixlen), []).append(number)
        self._lengths = sorted({(version, length) for version, length, _ in self._by_prefix})
        self._firsts = sorted((*_first(route.network), number) for number, route in enumerate(self._routes))

    def overlapping(self, network: IPNetwork) -> list[Route]:
        """The overlapping routes, in the order in which they were given."""
        found: set[int] = set()
        for version, length in self._lengths:  # routes that contain the network
            if version == network.version and length <= network.prefixlen:
                found.update(self._by_prefix.get(_prefix(network, length), ()))
        last = int(network.broadcast_address)
        begin = bisect_left(self._firsts, (*_first(network), 0))
        end = bisect_left(self._firsts, (network.version, last + 1, 0))
        found.update(number for *_, number in self._firsts[begin:end])  # routes within the network
        return [self._routes[number] for number in sorted(found)]


def _first(network: IPNetwork) -> tuple[int, int]:
    return network.version, int(network.network_address)


def _prefix(network: IPNetwork, length: int) -> tuple[int, int, int]:
    return network.version, length, int(network.network_address) >> network.max_prefixlen - length


def _networks(config: ServerConfig) -> Iterator[tuple[IPNetwork, str]]:
    for net in config.nets:
        yield net.network, "the network"
    if config.install_routes:
        for client in config.clients:
            for network in client.routes:
                yield network, f"the route of {client.name} to"


def _mtu(machine: Machine, configs: Sequence[InterfaceConfig]) -> Iterator[Finding]:
    servers = [config for config in configs if isinstance(config, ServerConfig)]
    small = [config for config in servers if config.mtu < ETHERNET_MTU and _routes_for_others(config)]
    for config in small:
        text = f"{config.name} has an MTU of {config.mtu}, and the networks behind it probably {ETHERNET_MTU}"
        remedy = (
            f"set mtu to {ETHERNET_MTU}: a tunnel over HTTP needs no smaller one; or clamp the MSS to the path's MTU"
        )
        yield Finding("warning", "mtu", text, remedy)
    if not small:
        yield Finding("ok", "mtu", "no tunnel has a smaller MTU than the networks behind it")


def _files(machine: Machine, configs: Sequence[InterfaceConfig]) -> Finding:
    clients = sum(len(config.clients) for config in configs if isinstance(config, ServerConfig))
    needed = FILES + FILES_PER_CLIENT * clients
    if machine.max_files >= needed:
        return Finding("ok", "files", f"{machine.max_files} files may be open")
    text = f"{machine.max_files} files may be open, and {clients} clients need up to {needed}"
    return Finding("failure", "files", text, f"LimitNOFILE={needed} in the unit, or ulimit -n {needed}")
