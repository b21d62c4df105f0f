"""doctor: each thing that can be wrong with a machine is found, with its remedy, and nothing else is."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_struct

from tapotun_trio import exit_codes
from tapotun_trio.config.model import AdminConfig, Bridge, InterfaceConfig, Mark, ServerConfig, TcpAddress, Url
from tapotun_trio.doctor.checks import EARLIEST, Finding, judge, kernel_version
from tapotun_trio.doctor.machine import (
    Machine,
    Route,
    inspect_machine,
    parse_addresses,
    parse_advertised,
    parse_autoconfigured,
    parse_ipv6_routes,
    parse_routes,
    parse_sources,
)
from tapotun_trio.doctor.run import doctor
from tapotun_trio.host.firewall import ForwardChain, ReversePathFilter
from tapotun_trio.host.network_managers import Kind, Manager
from tapotun_trio.host.ownership import Holder
from tapotun_trio.host.process.privileges import CAP_NET_ADMIN
from tapotun_trio.status.model import LeftOutStatus, TransportConflictStatus

from ..twins import FAMILIES, twin
from .support import allowed, client_config, server_config

HEALTHY = Machine(
    capabilities=(1 << 41) - 1,
    sysctls={
        "net.ipv4.ip_forward": 1,
        "net.ipv4.conf.all.rp_filter": 2,
        "net.ipv4.conf.default.rp_filter": 2,
        "net.ipv6.conf.all.disable_ipv6": 0,
        "net.ipv6.conf.all.forwarding": 1,
    },
    now=EARLIEST + 1,
    clock_is_set=True,
    routes=(Route(IPv4Network("0.0.0.0/0"), "eth0"), Route(IPv4Network("192.0.2.0/24"), "eth0")),
    interfaces={"lo": 65536, "eth0": 1500},
    addresses=frozenset({"192.0.2.1", "127.0.0.1"}),
)
SERVER = server_config(8080, allowed("a", "10.10.0.2"))
ROUTER = server_config(8080, allowed("a", "10.10.0.2", ("10.60.0.0/24",)))
DUAL = replace(SERVER, nets=(*SERVER.nets, IPv6Interface("fd00:10::1/64")))
IPV6_ONLY = replace(DUAL, nets=DUAL.nets[1:], clients=())
ROUTER6 = replace(DUAL, routes=(IPv6Network("fd00:20::/64"),))
PINNED = server_config(8080, allowed("a", "10.10.0.2", (), ("172.20.0.1",)))
MARKED6 = replace(DUAL, mark=Mark(1, 1))
PINNED6 = replace(DUAL, clients=(replace(DUAL.clients[0], sources=(IPv6Address("2001:db8::5"),)),))
CLIENT = client_config("tun0", 443)
SECURE = replace(CLIENT, server=Url("https", "vpn.example.com", 443, "/"))


def sysctl(**values: int | None) -> Machine:
    names = {
        "free": "ipv4.ip_unprivileged_port_start",
        "forward": "ipv4.ip_forward",
        "ipv6": "ipv6.conf.all.disable_ipv6",
        "new": "ipv6.conf.default.disable_ipv6",
        "forward6": "ipv6.conf.all.forwarding",
    }
    names |= {"rp_all": "ipv4.conf.all.rp_filter", "rp_default": "ipv4.conf.default.rp_filter"}
    changed = {**HEALTHY.sysctls, **{f"net.{names[name]}": value for name, value in values.items()}}
    return replace(HEALTHY, sysctls={name: value for name, value in changed.items() if value is not None})


def routed(*networks: str, interface: str = "eth1") -> Machine:
    return replace(HEALTHY, routes=tuple(Route(ip_network(it), interface) for it in networks))


def filtered(table: str, *named: str) -> Machine:
    return replace(HEALTHY, ipv6_filters=(ReversePathFilter(table, "PRE", frozenset(named)),))


CHAIN = "chain FORWARD of the nftables table ip filter"
IPV6_CHAIN = ForwardChain("chain FORWARD of ip6tables-legacy", versions=frozenset({6}))


def managed(manager: Manager, *kinds: Kind) -> Machine:
    return replace(HEALTHY, managers={manager: {"hub": frozenset(kinds), "tun0": frozenset(kinds)}})


@pytest.mark.parametrize(
    ("machine", "config", "severity", "check", "words"),
    [
        (managed("systemd-networkd", "rule", "route"), replace(SERVER, mark=Mark(1, 1)), "warning", "managers",
         "set ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in [Network]"),
        (managed("systemd-networkd", "route"), ROUTER, "warning", "managers", "set ManageForeignRoutes=no in"),
        (managed("systemd-networkd", "rule", "route"), SERVER, "ok", "managers", "takes nothing"),
        (managed("systemd-networkd", "rule"), CLIENT, "ok", "managers", "takes nothing"),
        (managed("systemd-networkd", "address"), SERVER, "warning", "managers", "Unmanaged=yes"),
        (managed("NetworkManager", "route"), CLIENT, "note", "managers", "unmanaged-devices=interface-name:tun0"),
        (managed("dhcpcd", "address"), CLIENT, "note", "managers", "denyinterfaces tun0"),
        (managed("dhcpcd"), CLIENT, "ok", "managers", "dhcpcd takes nothing"),
        (replace(HEALTHY, forward_chains=(ForwardChain(CHAIN),)), ROUTER, "warning", "firewall",
         "iptables -I FORWARD -i hub -j ACCEPT"),
        (replace(HEALTHY, forward_chains=(ForwardChain(CHAIN, frozenset({"hub"})),)), ROUTER, "note", "firewall",
         CHAIN),
        (replace(HEALTHY, forward_chains=(ForwardChain(CHAIN),)), CLIENT, "note", "firewall", CHAIN),
        (replace(HEALTHY, forward_chains=(IPV6_CHAIN,)), ROUTER6, "warning", "firewall",
         "ip6tables -I FORWARD -i hub -j ACCEPT"),
        (replace(HEALTHY, forward_chains=(IPV6_CHAIN,)), ROUTER, "ok", "firewall", "no firewall drops"),
        (replace(HEALTHY, forward_chains=(ForwardChain(CHAIN),)), ROUTER6, "note", "firewall", CHAIN),
    ],
)  # fmt: skip
def test_programs_that_stand_in_the_way(
    machine: Machine, config: InterfaceConfig, severity: str, check: str, words: str
) -> None:
    [found] = [it for it in judge(machine, [config]) if it.check == check]
    assert found.severity == severity
    assert words in f"{found.text}; {found.remedy}"


@pytest.mark.parametrize(
    ("machine", "config"),
    [
        (filtered("inet firewalld", "hub"), MARKED6),
        (filtered("inet firewalld"), DUAL),
        (filtered("inet firewalld"), replace(SERVER, mark=Mark(1, 1))),
        (filtered("inet firewalld"), PINNED),
        (filtered("inet firewalld"), CLIENT),
    ],
)
def test_a_reverse_path_filter_that_harms_nothing(machine: Machine, config: InterfaceConfig) -> None:
    assert [it.severity for it in judge(machine, [config]) if it.check == "rp_filter"] == ["ok"]


def test_ipv6_that_is_switched_off_on_a_port_or_on_its_bridge() -> None:
    """The addresses are the bridge's, so its setting counts."""
    port = replace(DUAL, device="tap", bridge=Bridge("br0"))
    for off, severities in (("hub", ["ok"]), ("br0", ["failure"])):
        found = [it for it in judge(replace(HEALTHY, ipv6_off=(off,)), [port]) if it.check == "ipv6"]
        assert [it.severity for it in found] == severities


def test_a_healthy_machine() -> None:
    found = judge(HEALTHY, [SERVER, ROUTER, PINNED, CLIENT, SECURE])
    assert [it.severity for it in found] == ["ok"] * len(found)
    checks = [
        "tun",
        "capabilities",
        "offloads",
        "ipv6",
        "forwarding",
        "forwarding",
        "firewall",
        "rp_filter",
        "managers",
        "clock",
    ]
    checks += ["listen", "routes", "covering", "left-out", "left-over", "mtu", "files"]
    assert [it.check for it in found] == checks


@pytest.mark.parametrize(
    ("machine", "config", "severity", "check", "words"),
    [
        (replace(HEALTHY, tun_error="/dev/net/tun: No such file; load it"), None, "failure", "tun", "No such file"),
        (replace(HEALTHY, capabilities=0), None, "failure", "capabilities", "AmbientCapabilities=CAP_NET_ADMIN"),
        (replace(HEALTHY, capabilities=None), None, "note", "capabilities", "no /proc"),
        (replace(HEALTHY, kernel="6.1.0-18-amd64"), None, "note", "offloads", "6.2"),
        (replace(HEALTHY, kernel="4.4.0"), None, "warning", "offloads", "4.19"),
        (replace(HEALTHY, kernel="strange"), None, "note", "offloads", "strange"),
        (sysctl(ipv6=1), None, "note", "ipv6", "IPv6 is switched off"),
        (sysctl(ipv6=None), None, "note", "ipv6", "no IPv6"),
        (
            sysctl(ipv6=1),
            replace(SERVER, listen=(TcpAddress("::", 8080),)),
            "failure",
            "ipv6",
            "disable_ipv6=0",
        ),
        (sysctl(ipv6=1), replace(SERVER, listen=(TcpAddress("::1", 8080, optional=True),)), "note", "ipv6", ""),
        (
            sysctl(ipv6=1),
            replace(SERVER, listen=(TcpAddress("::", 8080), TcpAddress("127.0.0.1", 8080))),
            "warning",
            "ipv6",
            "hub has to listen on ::",
        ),
        (
            replace(HEALTHY, addresses=frozenset({"192.0.2.1"})),
            replace(SERVER, listen=(TcpAddress("192.0.2.1", 8080), TcpAddress("192.0.2.77", 8080))),
            "warning",
            "listen",
            "hub has to listen on 192.0.2.77, which this machine does not have: nothing can connect there",
        ),
        (sysctl(ipv6=None), replace(CLIENT, server=Url("http", "::1", 80, "/")), "failure", "ipv6", "an IPv4 address"),
        (sysctl(forward=0), ROUTER, "failure", "forwarding", "sysctl -w net.ipv4.ip_forward=1"),
        (sysctl(forward=0), SERVER, "note", "forwarding", "only this machine itself"),
        (sysctl(forward6=0), ROUTER6, "failure", "forwarding", "sysctl -w net.ipv6.conf.all.forwarding=1"),
        (
            replace(sysctl(forward6=0), advertised={"eth0": 1}),
            ROUTER6,
            "failure",
            "forwarding",
            "with net.ipv6.conf.eth0.accept_ra=2, or this machine's default route goes",
        ),
        (sysctl(forward6=0), DUAL, "note", "forwarding", "does not forward IPv6: only this machine itself"),
        (sysctl(forward6=0), CLIENT, "note", "forwarding", "does not forward IPv6: only this machine itself"),
        (sysctl(forward6=0), None, "note", "forwarding", "does not forward IPv6: only this machine itself"),
        (sysctl(forward=0), ROUTER6, "note", "forwarding", "does not forward IPv4: only this machine itself"),
        (
            replace(HEALTHY, advertised={"eth0": 1, "eth1": 2}),
            None,
            "warning",
            "forwarding",
            "so eth0 ignores the router that its address or default route comes from, and IPv6 fails there sooner or "
            "later; sysctl -w net.ipv6.conf.eth0.accept_ra=2",
        ),
        # The kernel removed the default route when forwarding was switched on.
        (
            replace(HEALTHY, autoconfigured={"eth0": 1}),
            None,
            "warning",
            "forwarding",
            "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
        ),
        # A dot of the name is a slash for `sysctl`.
        (
            replace(HEALTHY, advertised={"eth0.10": 1}),
            None,
            "warning",
            "forwarding",
            "sysctl -w net.ipv6.conf.eth0/10.accept_ra=2",
        ),
        (
            replace(sysctl(rp_all=0, rp_default=0), rp_filters={"hub.1": 1}),
            replace(PINNED, name="hub.1"),
            "failure",
            "rp_filter",
            "sysctl -w net.ipv4.conf.hub/1.rp_filter=2",
        ),
        (sysctl(ipv6=1), DUAL, "failure", "ipv6", "IPv6 is switched off, and hub has the network fd00:10::/64"),
        (sysctl(ipv6=None), DUAL, "failure", "ipv6", "leave IPv6 out of its net"),
        (sysctl(new=1), DUAL, "failure", "ipv6", "sysctl -w net.ipv6.conf.default.disable_ipv6=0"),
        (
            replace(HEALTHY, ipv6_off=("hub",)),
            DUAL,
            "failure",
            "ipv6",
            "IPv6 is switched off on hub, and hub has the netw",
        ),
        (replace(HEALTHY, ipv6_off=("a.b",)), replace(DUAL, name="a.b"), "failure", "ipv6", "conf.a/b.disable_ipv6=0"),
        (replace(HEALTHY, ipv6_off=("tun0",)), CLIENT, "note", "ipv6", "switched off on tun0: it carries IPv4 only"),
        (
            replace(HEALTHY, strangers=(("tun0", IPv6Interface("fd00:10::99/64")),)),
            CLIENT,
            "warning",
            "addresses",
            "ip address change fd00:10::99/64 dev tun0 preferred_lft 0",
        ),
        (sysctl(new=1), SERVER, "note", "ipv6", "switched off for new interfaces: a tunnel carries IPv4 only"),
        (routed("fd00:10::/64"), DUAL, "failure", "routes", "routed elsewhere already: fd00:10::/64 on eth1"),
        (routed("fd00::/16"), DUAL, "warning", "routes", "the more specific of the two wins"),
        (routed("fd00:10::/80"), DUAL, "warning", "routes", "fd00:10::/80 on eth1"),
        (
            filtered("inet firewalld"),
            MARKED6,
            "warning",
            "rp_filter",
            "set IPv6_rpfilter=no in /etc/firewalld/firewalld.co",
        ),
        (
            filtered("inet firewalld"),
            replace(CLIENT, mark=Mark(1, 1)),
            "warning",
            "rp_filter",
            "IPv6 packets from tun0",
        ),
        (filtered("ip6 raw"), PINNED6, "warning", "rp_filter", "nft insert rule ip6 raw PRE iifname hub accept"),
        (sysctl(rp_all=1, rp_default=0), PINNED, "failure", "rp_filter", "all.rp_filter=2"),
        (sysctl(rp_all=0, rp_default=1), PINNED, "failure", "rp_filter", "hub"),
        (sysctl(rp_all=1, rp_default=1), replace(PINNED, mark=Mark(1, 1)), "note", "rp_filter", "strict"),
        # The interface's own filter, where it exists.
        (
            replace(sysctl(rp_all=0, rp_default=0), rp_filters={"hub": 1}),
            PINNED,
            "failure",
            "rp_filter",
            "hub.rp_filter",
        ),
        (replace(sysctl(rp_all=1, rp_default=1), rp_filters={"hub": 2}), PINNED, "note", "rp_filter", "strict"),
        (
            replace(sysctl(rp_all=1, rp_default=0), rp_filters={"hub": 0}),
            replace(SERVER, mark=Mark(1, 1)),
            "failure",
            "rp_filter",
            "drops packets from replies to marked packets of hub",
        ),
        (
            replace(HEALTHY, capabilities=1 << CAP_NET_ADMIN),
            server_config(80, allowed("a", "10.10.0.2")),
            "failure",
            "capabilities",
            "CAP_NET_BIND_SERVICE is missing, and hub has to listen on port 80",
        ),
        (sysctl(rp_all=1, rp_default=1), SERVER, "note", "rp_filter", "strict"),
        (replace(HEALTHY, now=0.0), SECURE, "failure", "clock", "chrony"),
        (replace(HEALTHY, now=0.0), CLIENT, "warning", "clock", "chrony"),
        (replace(HEALTHY, clock_is_set=False), SECURE, "warning", "clock", "certificates"),
        (replace(HEALTHY, clock_is_set=False), None, "note", "clock", "chrony"),
        (routed("10.10.0.0/24"), SERVER, "failure", "routes", "routed elsewhere already: 10.10.0.0/24 on eth1"),
        (routed("10.10.0.0/16"), SERVER, "warning", "routes", "the more specific of the two wins"),
        (routed("10.60.0.0/25"), ROUTER, "warning", "routes", "the route of a to 10.60.0.0/24"),
        (replace(HEALTHY, interfaces={"hub": 1500}), SERVER, "note", "routes", "ip link delete hub"),
        (
            replace(HEALTHY, interfaces={"hub": 1500}, holders={"hub": Holder(7, 0, True, "tapotun", "/etc/hub.json")}),
            SERVER,
            "note",
            "routes",
            "process 7 (tapotun; config /etc/hub.json) runs an interface hub already",
        ),
        (
            replace(HEALTHY, holders={"hub": Holder(7, 1001, False, "sh")}),
            SERVER,
            "warning",
            "routes",
            "process 7 of user 1001 (sh), which is not a tapotun process, has reserved the name hub",
        ),
        (HEALTHY, replace(ROUTER, mtu=1400), "warning", "mtu", "clamp the MSS"),
        (
            replace(HEALTHY, max_files=120),  # streams alone would fit: each client has a queue too
            server_config(8080, *(allowed(str(n), f"10.10.0.{n}") for n in range(2, 9))),
            "failure",
            "files",
            "LimitNOFILE=127",
        ),
    ],
)
def test_what_is_wrong(machine: Machine, config: InterfaceConfig | None, severity: str, check: str, words: str) -> None:
    found = judge(machine, [] if config is None else [config])
    [bad] = [it for it in found if it.severity != "ok"]
    assert (bad.severity, bad.check) == (severity, check)
    assert words in f"{bad.text}; {bad.remedy}"


@pytest.mark.parametrize(
    "config",
    [
        replace(IPV6_ONLY, mark=Mark(1, 1)),
        replace(
            IPV6_ONLY,
            clients=(
                replace(
                    PINNED.clients[0], addresses=(IPv6Address("fd00:10::2"),), sources=(IPv6Address("fd00:20::2"),)
                ),
            ),
        ),
    ],
)
def test_the_filter_of_ipv4_does_not_matter_where_there_is_no_ipv4(config: ServerConfig) -> None:
    machine = replace(sysctl(rp_all=1, rp_default=1), rp_filters={"hub": 1})
    assert [it.severity for it in judge(machine, [config]) if it.check == "rp_filter"] == ["note"]


def test_addresses_that_are_there_or_come_with_a_tunnel() -> None:
    machine = replace(HEALTHY, addresses=frozenset({"192.0.2.1"}))
    there = ("192.0.2.1", "0.0.0.0", "::", "127.0.0.5", "::1", "10.10.0.1")
    server = replace(SERVER, listen=tuple(TcpAddress(it, 8080) for it in there))
    admin = AdminConfig(TcpAddress("10.9.9.9", 9433, early=True), None)
    assert [it.severity for it in judge(machine, [server], admin) if it.check == "listen"] == ["ok"]
    found = judge(machine, [server], replace(admin, listen=TcpAddress("192.0.2.9", 9433)))
    [bad] = [it for it in found if it.severity != "ok"]
    assert bad.text.startswith("admin has to listen on 192.0.2.9, which this machine does not have")


def test_the_addresses_of_a_machine() -> None:
    fib_trie = """Main:
           |-- 192.0.2.0
              /24 link UNICAST
           |-- 192.0.2.2
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
"""
    if_inet6 = """20010db8000000000000000000000001 02 40 00 80     eth0
20010db8000000000000000000000002 02 40 00 c0     eth0
20010db8000000000000000000000003 02 40 00 88     eth0
malformed
xyz 02 40 00 80 eth0
"""
    assert parse_addresses(fib_trie, if_inet6) == {"192.0.2.2", "2001:db8::1"}


def test_ipv6_addresses_that_may_be_a_source() -> None:
    if_inet6 = """20010db8000000000000000000000001 02 40 00 80     eth0
20010db8000000000000000000000002 02 40 00 c0     eth0
20010db8000000000000000000000003 02 40 00 a0     eth0
fe800000000000000000000000000001 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
fd000010000000000000000000000099 03 80 00 00     tun0
malformed
"""
    assert parse_sources(if_inet6) == [
        ("eth0", IPv6Interface("2001:db8::1/64")),
        ("tun0", IPv6Interface("fd00:10::99/128")),
    ]


def test_interfaces_with_addresses_that_have_a_lifetime() -> None:
    if_inet6 = """20010db8000000000000000000000001 02 40 00 80     eth0
20010db8000100000000000000000001 03 40 00 00     eth1
20010db8000100000000000000000002 03 40 00 01     eth1
20010db8000200000000000000000001 04 40 00 40     eth2
fe800000000000000000000000000001 05 40 20 00     eth3
malformed
20010db8000000000000000000000003 06 40 xx 00     eth4
"""
    assert parse_autoconfigured(if_inet6) == ["eth1", "eth2"]


def test_a_program_that_reads_advertisements_itself_is_no_problem() -> None:
    """systemd-networkd and NetworkManager set accept_ra to 0, and go on as routers."""
    found = judge(replace(HEALTHY, autoconfigured={"eth0": 0, "eth1": 2}), [])
    assert {it.severity for it in found if it.check == "forwarding"} == {"ok"}


def test_a_family_that_no_tunnel_has_need_not_be_forwarded() -> None:
    assert [it.text for it in judge(sysctl(forward6=0), [ROUTER]) if it.check == "forwarding"] == [
        "this machine forwards IPv4"
    ]


def covering(machine: Machine, *configs: InterfaceConfig) -> list[tuple[str, str]]:
    return [(it.severity, it.text) for it in judge(machine, configs) if it.check == "covering"]


@pytest.mark.parametrize("version", FAMILIES)
def test_a_push_that_covers_an_address_of_this_machine(version: int) -> None:
    server = server_config(8080, allowed("a", twin("10.10.0.2", version)))
    own = {twin("203.0.113.10", version): "eth0", twin("10.10.0.1", version): "hub"}
    machine = replace(HEALTHY, reachable=tuple((ip_address(it), name) for it, name in own.items()))
    inner, office, everything = (twin(it, version) for it in ("10.0.0.0/8", "203.0.113.0/24", "0.0.0.0/0"))
    pushing = replace(server, push_routes=tuple(map(ip_network, (inner, office, everything))))
    address = f"covers this machine's address {twin('203.0.113.10', version)} on eth0"
    nothing = [("ok", "no tunnel is routed into itself")]
    pushed = [
        ("warning", f"hub: its push_routes {office} {address}"),
        ("warning", f"hub: its push_routes {everything} {address}"),
    ]
    assert covering(machine, replace(pushing, peers=2)) == (pushed if version == 4 else nothing)  # base clients: IPv4
    assert covering(machine, pushing) == nothing
    inside = replace(server, nets=(ip_interface(twin("203.0.113.1/24", version)),))
    assert covering(machine, inside) == [("warning", f"hub: its net {office} {address}")]
    assert covering(machine, server) == nothing


def test_what_running_clients_say_of_their_transport() -> None:
    conflict = TransportConflictStatus(
        route="203.0.113.0/24", address="203.0.113.10", action="excepted", host_route="203.0.113.10 dev eth0"
    )
    machine = replace(HEALTHY, conflicts=(("tun0", conflict), ("tun1", replace_struct(conflict, action="withdrawn"))))
    told = covering(machine)
    assert [severity for severity, _ in told] == ["note", "warning"]
    assert told[0][1] == "tun0: route 203.0.113.0/24 covers 203.0.113.10: its own connections use host route " + (
        "203.0.113.10 dev eth0"
    )
    assert covering(machine, CLIENT)[0] == told[0]
    assert len(covering(machine, CLIENT)) == 1


def test_what_running_clients_leave_out() -> None:
    lan = LeftOutStatus(route="10.60.1.0/24", reason="attached", network="10.60.0.0/16", device="eth0")
    own = replace_struct(lan, route="10.10.0.0/24", reason="tunnel-network")
    martian = LeftOutStatus(route="127.0.0.0/8", reason="martian")
    machine = replace(HEALTHY, left_out=(("tun0", lan), ("tun0", own), ("tun1", martian)))

    def told(*configs: InterfaceConfig) -> list[tuple[str, str, str]]:
        found = [it for it in judge(machine, configs) if it.check == "left-out"]
        return [(it.severity, it.text, it.remedy) for it in found]

    (first, text, _), (second, tunnel, remedy), (third, nowhere, _) = told()
    assert (first, second, third) == ("note", "warning", "note")
    assert text == ("tun0: left out: pushed route 10.60.1.0/24: eth0 attaches this machine to 10.60.0.0/16, which wins")
    assert "the tunnel's network 10.10.0.0/24" in tunnel
    assert "the server's net" in remedy
    assert "127.0.0.0/8: no packet is ever routed there" in nowhere
    assert told(CLIENT) == told()[:2]
    assert told(SERVER) == [("ok", "no client leaves out what its server pushed", "")]


def test_host_routes_that_a_killed_run_left() -> None:
    [found] = [it for it in judge(replace(HEALTHY, left_over=("203.0.113.10",)), []) if it.check == "left-over"]
    assert found.severity == "warning"
    assert "203.0.113.10" in found.text


def test_a_low_port_may_be_anybody_s() -> None:
    machine = replace(sysctl(free=80), capabilities=1 << CAP_NET_ADMIN)
    assert all(it.severity == "ok" for it in judge(machine, [server_config(80, allowed("a", "10.10.0.2"))]))


@pytest.mark.parametrize("version", FAMILIES)
def test_its_own_routes_and_the_default_route_are_no_conflict(version: int) -> None:
    server = server_config(8080, allowed("a", twin("10.10.0.2", version)))
    machine = routed(twin("10.10.0.0/24", version), interface="hub")
    assert all(it.severity == "ok" for it in judge(machine, [server]))
    assert all(it.severity == "ok" for it in judge(routed(twin("0.0.0.0/0", version)), [server]))
    found = judge(routed(twin("10.10.0.0/24", version)), [server])
    assert [it.severity for it in found if it.severity != "ok"] == ["failure"]


@pytest.mark.parametrize("version", FAMILIES)
def test_without_installed_routes_only_the_network_counts(version: int) -> None:
    behind = twin("10.60.0.0/24", version)
    router = server_config(8080, allowed("a", twin("10.10.0.2", version), (behind,)))
    machine = routed(behind)
    assert all(it.severity == "ok" for it in judge(machine, [replace(router, install_routes=False)]))
    assert any(it.severity != "ok" for it in judge(machine, [router]))


def test_proc_net_route() -> None:
    text = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "eth1\t000A0A0A\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"  # not up
        "nonsense\n"
    )
    assert parse_routes(text) == (
        Route(IPv4Network("0.0.0.0/0"), "eth0"),
        Route(IPv4Network("192.0.2.0/24"), "eth0"),
    )


def test_the_same_bits_in_the_other_family_are_no_conflict() -> None:
    found = judge(routed("a0a::/24"), [SERVER])  # 10.10.0.0/24
    assert [it.severity for it in found if it.check == "routes"] == ["ok"]


def ipv6_line(network: str, flags: int, interface: str) -> str:
    """A line of /proc/net/ipv6_route."""
    it, zero = IPv6Network(network), f"{0:032x} {0:02x} {0:032x}"
    destination = f"{int(it.network_address):032x} {it.prefixlen:02x}"
    return f"{destination} {zero} 00000400 00000001 00000000 {flags:08x} {interface:>8}"


def test_ipv6_routes_of_proc() -> None:
    text = "\n".join(
        (
            ipv6_line("fd00:1::/64", 0x1, "eth0"),
            ipv6_line("fe80::/64", 0x1, "eth0"),
            ipv6_line("ff00::/8", 0x1, "eth0"),
            ipv6_line("fd00:1::5/128", 0x80200001, "eth0"),  # its own address
            ipv6_line("fd00:1::/128", 0x80300001, "eth0"),  # the anycast address
            ipv6_line("::/0", 0x00450003, "eth0"),  # from a router
            ipv6_line("::/0", 0x3, "eth1"),
            ipv6_line("::/0", 0x00200200, "lo"),
            ipv6_line("2001:db8::/32", 0x0, "eth2"),  # not up
            "no route",
        )
    )
    assert parse_ipv6_routes(text) == (
        Route(IPv6Network("fd00:1::/64"), "eth0"),
        Route(IPv6Network("::/0"), "eth0"),
        Route(IPv6Network("::/0"), "eth1"),
    )
    assert parse_advertised(text) == ["eth0"]


@given(st.text())
def test_any_text_is_some_routes(text: str) -> None:
    assert isinstance(parse_routes(f"head\n{text}"), tuple)
    assert isinstance(parse_ipv6_routes(text), tuple)
    assert isinstance(parse_advertised(text), list)
    assert isinstance(parse_autoconfigured(text), list)
    assert isinstance(parse_sources(text), list)
    assert kernel_version(text) is None or all(part >= 0 for part in kernel_version(text) or ())


def test_this_machine() -> None:
    machine = inspect_machine()
    assert machine.interfaces["lo"] > 0
    assert machine.now > EARLIEST
    assert kernel_version(machine.kernel) is not None
    assert all(isinstance(it, Finding) for it in judge(machine, [SERVER]))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    clients = f'[{{"token": "{"0" * 40}", "ip": "10.10.0.2"}}]'
    file.write_text(f'[{{"name": "hub", "port": 8080, "net": "10.10.0.1/24", "clients": {clients}}}]')
    asked = Namespace(file=str(file), json=False)
    assert doctor(asked, lambda _: None, lambda _: HEALTHY) == exit_codes.OK
    assert capsys.readouterr().out.splitlines()[0] == f"ok      config       {file} is valid"
    assert doctor(asked, lambda _: None, lambda _: replace(HEALTHY, capabilities=0)) == exit_codes.FAILED
    assert "FAILURE capabilities CAP_NET_ADMIN is missing; run as root" in capsys.readouterr().out
    file.write_text('[{"name": "hub", "port": 8080, "net": "10.10.0.1"}]')
    asked.json = True
    assert doctor(asked, lambda _: None, lambda _: HEALTHY) == exit_codes.FAILED
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == 1
    assert any(it["check"] == "config" and "[0].net" in it["text"] for it in told["findings"])
    assert doctor(Namespace(file=None, json=False), lambda _: None, lambda _: HEALTHY) == exit_codes.OK
