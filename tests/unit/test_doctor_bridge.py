"""doctor: what prevents a TAP interface from being a port of its bridge, and what a TAP interface does not need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network

import pytest

from tapotun_trio.config.model import Bridge, InterfaceConfig, ServerConfig
from tapotun_trio.doctor.checks import Finding, judge
from tapotun_trio.doctor.machine import LinuxBridge, Machine, Route
from tapotun_trio.host.firewall import ForwardChain
from tapotun_trio.host.network_managers import Kind

from ..twins import FAMILIES, twin
from .support import allowed, client_config, server_config
from .test_doctor import HEALTHY, sysctl

TAP = replace(server_config(8080), name="tap0", device="tap", nets=(), bridge=Bridge("br0"))
MAKER = replace(TAP, name="tap1", bridge=Bridge("br0", create=True))
CLIENT = replace(client_config("tap2", 443), device="tap", bridge=Bridge("br0"))
BRIDGED = replace(
    HEALTHY,
    interfaces={**HEALTHY.interfaces, "eth1": 1500, "br0": 1500},
    bridges={"br0": LinuxBridge(("eth1",))},
)

DOWN = replace(BRIDGED, bridges={"br0": LinuxBridge(("eth1",), is_up=False)})


def with_ports(alias: str = "", group: int = 0, **mtus: int) -> Machine:
    """A machine with the bridge br0, which has these ports."""
    interfaces = {**HEALTHY.interfaces, "br0": 1500, **mtus}
    return replace(HEALTHY, interfaces=interfaces, bridges={"br0": LinuxBridge(tuple(mtus), alias, group=group)})


def filtering(machine: Machine = BRIDGED, version: int = 4, chains: tuple[ForwardChain, ...] = ()) -> Machine:
    """With br_netfilter loaded."""
    name = f"net.bridge.bridge-nf-call-{'iptables' if version == 4 else 'ip6tables'}"
    return replace(machine, sysctls={**machine.sysctls, name: 1}, forward_chains=chains)


def chain(version: int, *named: str) -> ForwardChain:
    return ForwardChain("chain FORWARD", frozenset(named), versions=frozenset({version}))


def about_bridges(machine: Machine, *configs: InterfaceConfig) -> list[Finding]:
    return [it for it in judge(machine, configs) if it.check == "bridge"]


@pytest.mark.parametrize(
    ("machine", "config", "severity", "words"),
    [
        (HEALTHY, TAP, "failure",
         'bridge br0 of tap0 does not exist; ip link add br0 up type bridge, or "create"'),
        (HEALTHY, CLIENT, "failure", "bridge br0 of tap2 does not exist"),
        (BRIDGED, TAP, "ok", "nothing prevents"),
        (BRIDGED, CLIENT, "ok", "nothing prevents"),
        (DOWN, TAP, "warning", "so nothing passes between tap0 and its other ports; ip link set br0 up"),
        (DOWN, CLIENT, "warning", "bridge br0 is down, so nothing passes between tap2"),
        (replace(HEALTHY, interfaces={"br0": 1500}), TAP, "failure",
         "bridge br0 of tap0 is no bridge, but another interface"),
        (replace(HEALTHY, interfaces={"br0": 0}), TAP, "ok", "nothing prevents"),  # not known
        (replace(HEALTHY, interfaces={}), TAP, "ok", "nothing prevents"),  # not known
        (HEALTHY, MAKER, "ok", "nothing prevents"),
        (BRIDGED, MAKER, "failure", 'one already that another program made; set "create" to false to use it'),
        (with_ports("tapotunnel", 116), MAKER, "failure", "another program made"),
        (with_ports("tapotun", 116), MAKER, "failure", "another program made"),
        (with_ports("tapotun tap1"), MAKER, "failure", "another program made"),
        (with_ports("tapotun tap1", 116), MAKER, "ok", "nothing prevents"),
        (with_ports("", 116), MAKER, "ok", "nothing prevents"),
        (replace(HEALTHY, interfaces={"br0": 1500}), MAKER, "failure", "there is an interface br0 that is no bridge"),
        (with_ports(eth1=1500, eth2=9000, eth3=1400, tap0=1280, eth4=0), TAP, "warning",
         "dropped: tap0 has 1500, eth2 has 9000, eth3 has 1400; give all of them the same MTU"),
        (with_ports(eth1=9000), replace(TAP, mtu=9000), "ok", "nothing prevents"),
        (with_ports(eth1=9000), CLIENT, "ok", "nothing prevents"),  # the server decides
        (with_ports(eth1=9000, tap2=1400), CLIENT, "warning", "tap2 has 1400, eth1 has 9000"),
    ],
)  # fmt: skip
def test_bridges(machine: Machine, config: InterfaceConfig, severity: str, words: str) -> None:
    [found] = about_bridges(machine, config)
    assert found.severity == severity
    assert words in f"{found.text}; {found.remedy}"


@pytest.mark.parametrize(
    ("machine", "severity", "text"),
    [
        (HEALTHY, "failure", "bridge br0 of tap0, tap2 does not exist"),
        (DOWN, "warning", "bridge br0 is down, so nothing passes between tap0, tap2 and its other ports"),
        (replace(HEALTHY, interfaces={"br0": 1500}), "failure",
         "bridge br0 of tap0, tap2 is no bridge, but another interface"),
        (with_ports(eth1=9000, tap2=1500), "warning", "tap0 has 1500, tap2 has 1500, eth1 has 9000"),
        (with_ports(eth1=1500, tap2=1400), "warning", "tap0 has 1500, tap2 has 1400"),
        (with_ports(eth1=1400, tap2=1500, tap0=1280), "warning", "tap0 has 1500, tap2 has 1500, eth1 has 1400"),
        (with_ports(eth1=1500, tap2=1500), "ok", "nothing prevents"),
    ],
)  # fmt: skip
def test_two_interfaces_in_one_bridge_are_one_line(machine: Machine, severity: str, text: str) -> None:
    [found] = about_bridges(machine, TAP, CLIENT)
    assert found.severity == severity
    assert text in found.text


def test_one_interface_makes_the_bridge_of_another() -> None:
    assert [it.severity for it in about_bridges(HEALTHY, TAP, MAKER)] == ["ok"]


def test_without_bridges_nothing_is_said_of_them() -> None:
    assert about_bridges(filtering(), server_config(8080), replace(TAP, bridge=None)) == []


@pytest.mark.parametrize("version", FAMILIES)
def test_rules_of_a_router_that_apply_to_a_bridge(version: int) -> None:
    program, other = ("iptables", 6) if version == 4 else ("ip6tables", 4)
    for chains in ((), (chain(version, "br0"),), (chain(other),)):
        [found] = about_bridges(filtering(BRIDGED, version, chains), TAP, CLIENT)
        assert (found.severity, found.remedy) == (
            "note",
            f"sysctl -w net.bridge.bridge-nf-call-{program}=0, unless that is wanted",
        )
        assert found.text == f"br_netfilter applies the rules of {program} to frames that br0 forwards, too"
    [found] = about_bridges(filtering(BRIDGED, version, (chain(version),)), TAP)
    assert found.severity == "warning"
    assert f"`{program} -I FORWARD -i br0 -o br0 -j ACCEPT`" in found.remedy
    assert "no rule names br0" in found.text
    off = filtering(BRIDGED, version)
    assert about_bridges(replace(off, sysctls=dict.fromkeys(off.sysctls, 0)), TAP)[0].severity == "ok"


@pytest.mark.parametrize("version", FAMILIES)
def test_a_bridge_may_have_the_network_already(version: int) -> None:
    """Its address in the segment may come from the config of the machine."""
    net, client = twin("10.10.0.0/24", version), allowed("a", twin("10.10.0.2", version))
    server = replace(server_config(8080, client), name="tap0", device="tap", bridge=Bridge("br0"))
    elsewhere = replace(BRIDGED, routes=(Route(ip_network(net), "eth0"),))
    on_bridge = replace(BRIDGED, routes=(Route(ip_network(net), "br0"),))
    assert [it.severity for it in judge(on_bridge, [server]) if it.check == "routes"] == ["ok"]
    assert [it.severity for it in judge(elsewhere, [server]) if it.check == "routes"] == ["failure"]
    assert [it.severity for it in judge(on_bridge, [replace(server, bridge=None)]) if it.check == "routes"] == [
        "failure"
    ]


def test_a_segment_needs_no_forwarding() -> None:
    machine = replace(sysctl(forward=0, forward6=0), interfaces=BRIDGED.interfaces, bridges=BRIDGED.bridges)
    assert [it for it in judge(machine, [TAP, CLIENT]) if it.severity != "ok"] == []


def managed(device: str) -> Machine:
    taken: Mapping[str, frozenset[Kind]] = {device: frozenset({"address", "route"})}
    return replace(BRIDGED, managers={"systemd-networkd": taken})


@pytest.mark.parametrize("version", FAMILIES)
def test_managers_take_addresses_from_where_they_are(version: int) -> None:
    client = allowed("a", twin("10.10.0.2", version))
    plain: ServerConfig = replace(server_config(8080, client), name="tap0", device="tap")
    bridged = replace(plain, bridge=Bridge("br0"))

    def warned(machine: Machine, config: InterfaceConfig) -> list[str]:
        return [it.text for it in judge(machine, [config]) if it.check == "managers" and it.severity == "warning"]

    [text] = warned(managed("br0"), bridged)
    assert "takes away addresses of tap0" in text
    assert warned(managed("tap0"), bridged) == []
    assert len(warned(managed("tap0"), plain)) == 1
    assert warned(managed("br0"), TAP) == []  # it has no address
    assert len(warned(managed("br0"), CLIENT)) == 1
