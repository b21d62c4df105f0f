"""tapotun doctor on machines on which something is wrong, one thing after the other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, command, ping, wait_for_ping, wait_until

from ..twins import FAMILIES, twin
from .dual import HUB, advertising, dual_cable, dual_config, forwards
from .topologies import (
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    allowed,
    cable,
    client_config,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

BEHIND: Final = "10.60.0.0/24"
FORWARDING: Final = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
PATIENCE_S: Final = 30.0


def findings(host: Host, *prefix: str, file: str | None = None) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """The exit code, and of each check what is not well: severity, and text with remedy."""
    answer = host.run([*prefix, *command(), "doctor", "--json", *([] if file is None else [file])], check=False)
    found: dict[str, list[tuple[str, str]]] = {}
    for it in json.loads(answer.stdout)["findings"]:
        if it["severity"] != "ok":
            found.setdefault(it["check"], []).append((it["severity"], f"{it['text']}; {it['remedy']}"))
    return answer.returncode, found


@pytest.mark.parametrize("version", FAMILIES)
def test_each_is_found_and_its_remedy_helps(lab: Lab, version: int) -> None:
    """The reverse path filter is of IPv4 only."""
    server, _ = cable(lab)
    file = hub(server, version, sources=[twin("172.20.0.1", version)])
    broken = {4: {"forwarding", "rp_filter", "routes"}, 6: {"forwarding", "routes"}}[version]
    for name, value in (
        (FORWARDING[version], 0),
        ("net.ipv4.conf.all.rp_filter", 1),
        ("net.ipv4.conf.default.rp_filter", 1),
    ):
        server.sysctl(name, value)
    in_the_way = twin("10.10.0.0/24", version)
    server.ip(f"route add {in_the_way} dev eth0")
    code, found = findings(server, file=str(file))
    assert code == 1
    assert {check for check, it in found.items() if it[0][0] == "failure"} == broken
    assert f"{in_the_way} on eth0" in found["routes"][0][1]
    # What it says to do.
    for check in broken - {"routes"}:
        for order in found[check][0][1].split("; "):
            words = order.partition(",")[0].split()
            if words[:2] == ["sysctl", "-w"]:
                name, _, number = words[2].partition("=")
                server.sysctl(name, int(number))
    server.ip(f"route del {in_the_way} dev eth0")
    code, found = findings(server, file=str(file))
    assert (code, [check for check, it in found.items() if it[0][0] == "failure"]) == (0, [])


def hub(server: Host, version: int, **fields: Any) -> Path:
    """The config of a server with a network behind its client, all of this family."""
    file = server.tmp / "hub.json"
    file.touch(mode=0o600)
    client = allowed("a", twin(TUNNEL_CLIENT, version), routes=[twin(BEHIND, version)], **fields)
    config = server_config(client, net=twin(f"{TUNNEL_SERVER}/24", version))
    file.write_text(json.dumps([config]), encoding="utf-8")
    return file


def test_a_router_that_ignores_its_own_router(lab: Lab) -> None:
    """As most machines get it wrong: forwarding was switched on, the default route went at once, the address stays."""
    router, server = lab.host("router"), lab.host("server")
    lab.link(router, "fd00:60::1/64", server, [])
    forwards(router)
    server.sysctl("net.ipv6.conf.eth0.accept_ra", 1)

    def has_default_route() -> bool:
        return bool(server.ip("-6 route show default"))

    def about_accept_ra() -> list[tuple[str, str]]:
        return [it for it in findings(server)[1].get("forwarding", []) if "accept_ra" in it[1]]

    with advertising(router, "eth0", "fd00:60::/64") as radvd:
        wait_until(lambda: has_default_route() and has_slaac(server), PATIENCE_S, "an address", radvd.tail)
        server.sysctl("net.ipv6.conf.all.forwarding", 1)
        wait_until(lambda: not has_default_route(), PATIENCE_S, "the default route to go")
        [(severity, text)] = about_accept_ra()
        assert severity == "warning"
        name, _, number = text.partition("sysctl -w ")[2].partition("=")
        server.sysctl(name, int(number))
        wait_until(has_default_route, PATIENCE_S, "the default route", radvd.tail)
        assert about_accept_ra() == []


def test_the_bridge_of_a_tap_interface(lab: Lab) -> None:
    """From no bridge to one that all is well with, by the printed remedies."""
    server, _ = cable(lab)
    file = server.tmp / "tap.json"
    file.touch(mode=0o600)
    entry = {
        "name": "tap0",
        "port": 8080,
        "device": "tap",
        "bridge": "br0",
        "clients": [{"token": "0" * 40, "macs": ["02:00:5e:10:00:01"]}],
    }

    def about_bridges(bridge: object = "br0") -> list[tuple[str, str]]:
        file.write_text(json.dumps([{**entry, "bridge": bridge}]), encoding="utf-8")
        found = findings(server, file=str(file))[1].get("bridge", [])
        return [it for it in found if "br_netfilter" not in it[1]]

    [(severity, text)] = about_bridges()
    assert (severity, "does not exist" in text) == ("failure", True)
    assert about_bridges({"name": "br0", "create": True}) == []
    server.ip(text.partition("; ip ")[2].partition(",")[0])  # the command that it says
    assert about_bridges() == []
    [(severity, text)] = about_bridges({"name": "br0", "create": True})
    assert (severity, "another program made" in text) == ("failure", True)
    for group, alias, count in (("0", "tapotun tap0", 1), ("116", "tapotun", 1), ("116", "tapotun tap0", 0)):
        server.run(["ip", "link", "set", "br0", "group", group, "alias", alias])
        assert len(about_bridges({"name": "br0", "create": True})) == count
    [(severity, text)] = about_bridges("eth0")
    assert (severity, "bridge eth0 of tap0 is no bridge" in text) == ("failure", True)
    server.ip("link add port0 mtu 9000 type veth peer name other0")
    server.ip("link set port0 master br0")
    [(severity, text)] = about_bridges()
    assert (severity, "tap0 has 1500, port0 has 9000" in text) == ("warning", True)
    server.ip("link set port0 mtu 1500")
    assert about_bridges() == []
    server.ip("link set br0 down")
    [(severity, text)] = about_bridges()
    assert (severity, "bridge br0 is down" in text) == ("warning", True)
    server.ip(text.partition("; ip ")[2])
    assert about_bridges() == []


@pytest.mark.skipif(not os.path.exists("/proc/sys/net/bridge"), reason="br_netfilter is not loaded")
@pytest.mark.parametrize("version", FAMILIES)
def test_a_firewall_that_drops_what_a_bridge_forwards(lab: Lab, version: int) -> None:
    """As Docker sets it on a machine with br_netfilter."""
    program = {4: "iptables", 6: "ip6tables"}[version]
    server, _ = cable(lab)
    server.ip("link add br0 up type bridge")
    for each in ("iptables", "ip6tables"):
        server.sysctl(f"net.bridge.bridge-nf-call-{each}", int(each == program))
    file = server.tmp / "tap.json"
    file.touch(mode=0o600)
    tap = {"name": "tap0", "port": 8080, "device": "tap", "bridge": "br0", "clients": [{"token": "0" * 40}]}
    file.write_text(json.dumps([tap]), encoding="utf-8")

    def about_bridges() -> list[tuple[str, str]]:
        return findings(server, file=str(file))[1].get("bridge", [])

    assert [severity for severity, _ in about_bridges()] == ["note"]
    server.run([f"{program}-nft", "-P", "FORWARD", "DROP"])
    [(severity, text)] = about_bridges()
    assert severity == "warning"
    server.run(text.split("`")[1].replace(program, f"{program}-nft").split())
    assert [severity for severity, _ in about_bridges()] == ["note"]
    server.sysctl(f"net.bridge.bridge-nf-call-{program}", 0)
    assert about_bridges() == []


def has_slaac(host: Host) -> bool:
    """Whether eth0 has an address that it made from an advertised prefix."""
    return any(each.get("dynamic") for each in host.ip("-6 address show dev eth0")[0]["addr_info"])


def test_rights_and_the_driver(lab: Lab) -> None:
    server, _ = cable(lab)
    code, found = findings(server, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    assert code == 1
    assert "run as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN" in found["capabilities"][0][1]
    code, found = findings(server, "prlimit", "--nofile=70")
    assert (code, "files" in found) == (0, False)  # no clients
    server.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"])
    code, found = findings(server)
    assert code == 1
    assert "modprobe tun" in found["tun"][0][1]


@pytest.mark.parametrize(
    ("version", "firewall"),
    [
        (
            4,
            [
                "nft add table ip filter",
                "nft add chain ip filter FORWARD {type filter hook forward priority 0;policy drop;}",
            ],
        ),
        (4, ["iptables-nft -P FORWARD DROP"]),
        (4, ["iptables-legacy -P FORWARD DROP"]),
        (6, ["ip6tables-nft -P FORWARD DROP"]),
        (6, ["ip6tables-legacy -P FORWARD DROP"]),
    ],
)
def test_a_firewall_that_drops_what_is_forwarded(lab: Lab, version: int, firewall: list[str]) -> None:
    """As Docker sets it. The remedy is tried as it is printed."""
    server, _ = cable(lab)
    file = hub(server, version)
    server.sysctl(FORWARDING[version], 1)
    assert "firewall" not in findings(server, file=str(file))[1]
    for order in firewall:
        server.run(["sh", "-c", order.replace("{", "'{").replace("}", "}'")])
    [(severity, text)] = findings(server, file=str(file))[1]["firewall"]
    assert severity == "warning"
    assert "FORWARD" in text
    program = {4: "iptables", 6: "ip6tables"}[version]
    kind = "legacy" if "legacy" in firewall[0] else "nft"
    orders = text.split("`")[1::2]
    assert [order.split()[0] for order in orders] == [program] * 2
    for order in orders:
        server.run(order.replace(program, f"{program}-{kind}").split())
    assert findings(server, file=str(file))[1]["firewall"][0][0] == "note"


def test_a_running_client_with_a_foreign_address_or_without_ipv6(lab: Lab) -> None:
    """What it says to do helps. An IPv6 address that came later would be the source; of IPv4 ones the first is."""
    server, client = dual_cable(lab)
    with (
        running(server, dual_config(ips=["10.10.0.254", "fd00:10::fe"])),
        running(client, client_config(), until=UPLOADING),
    ):
        wait_for_ping(client, HUB[1])
        client.ip("address add 10.10.0.99/24 dev tun0")
        assert ping(client, HUB[0]).ok
        for host in (server, client):
            assert "addresses" not in findings(host)[1]
        client.ip("address add fd00:10::99/64 dev tun0 nodad")
        assert not ping(client, HUB[1]).ok
        [(severity, text)] = findings(client)[1]["addresses"]
        assert severity == "warning"
        client.run(["ip", *text.partition(": ip ")[2].split()])
        assert "addresses" not in findings(client)[1]
        assert ping(client, HUB[1]).ok
        client.sysctl("net.ipv6.conf.tun0.disable_ipv6", 1)
        [(severity, text)] = findings(client)[1]["ipv6"]
        assert (severity, "tun0" in text) == ("note", True)
        client.run(text.partition("; ")[2].split())
        assert "ipv6" not in findings(client)[1]
        wait_for_ping(client, HUB[1], PATIENCE_S)


@pytest.mark.parametrize("version", FAMILIES)
def test_a_firewall_of_both_families_that_drops_what_is_forwarded(lab: Lab, version: int) -> None:
    """What another table accepts does not help. The remedy is tried as it is printed."""
    server, _ = cable(lab)
    file = hub(server, version)
    server.sysctl(FORWARDING[version], 1)
    server.run(["nft", "add table inet filter"])
    server.run(["nft", "add chain inet filter forward {type filter hook forward priority 0; policy drop;}"])
    [(severity, text)] = findings(server, file=str(file))[1]["firewall"]
    assert severity == "warning"
    for order in text.split("`")[1::2]:
        server.run(order.split())
    assert findings(server, file=str(file))[1]["firewall"][0][0] == "note"
    rules = server.run(["nft", "list", "chain", "inet", "filter", "forward"]).stdout
    assert 'iifname "tun0" accept' in rules
    assert 'oifname "tun0" accept' in rules


def test_a_reverse_path_filter_for_ipv6(lab: Lab) -> None:
    """As firewalld has it. The kernel's own, for IPv4, is loosened where a mark needs that; this one is not ours."""
    server, client = dual_cable(lab)
    file = client.tmp / "marked.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([client_config(mark={"value": 100, "table": 100})]), encoding="utf-8")
    far = ("198.51.100.7", "2001:db8:7::7")
    for address in far:
        server.ip(f"address add {address} dev lo")
    client.sysctl("net.ipv4.conf.all.rp_filter", 1)
    rule = "meta nfproto ipv6 fib saddr . mark . iif oif missing drop"
    for order in ("add table inet fw", "add chain inet fw pre {type filter hook prerouting priority 10;}"):
        client.run(["nft", order])
    client.run(["nft", f"add rule inet fw pre icmpv6 type nd-neighbor-advert accept; add rule inet fw pre {rule}"])
    client.ip("route add default via 192.0.2.1")
    client.ip("-6 route add default via 2001:db8:2::1")
    with running(server, dual_config()), running(client, file, until=UPLOADING):
        wait_for_ping(client, far[0], mark=100)
        assert not ping(client, far[1], mark=100).ok
        [(severity, text)] = findings(client, file=str(file))[1]["rp_filter"]
        assert (severity, "IPv6 packets from tun0" in text) == ("warning", True)
        client.run(text.partition("; ")[2].split())
        assert ping(client, far[1], mark=100).ok
        assert all("IPv6" not in text for _, text in findings(client, file=str(file))[1].get("rp_filter", []))
