"""tapotun doctor on machines on which something is wrong, one thing after the other."""

from __future__ import annotations

import json
from typing import Final

import pytest

from tests.harness import Host, Lab, command

from .topologies import allowed, cable, server_config

pytestmark = pytest.mark.netns

BEHIND: Final = "10.60.0.0/24"


def findings(host: Host, *prefix: str, file: str | None = None) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """The exit code, and of each check what is not well: severity, and text with remedy."""
    answer = host.run([*prefix, *command(), "doctor", "--json", *([] if file is None else [file])], check=False)
    found: dict[str, list[tuple[str, str]]] = {}
    for it in json.loads(answer.stdout)["findings"]:
        if it["severity"] != "ok":
            found.setdefault(it["check"], []).append((it["severity"], f"{it['text']}; {it['remedy']}"))
    return answer.returncode, found


def test_each_is_found_and_its_remedy_helps(lab: Lab) -> None:
    server, _ = cable(lab)
    file = server.tmp / "hub.json"
    file.touch(mode=0o600)
    config = server_config(allowed("a", routes=[BEHIND], sources=["172.20.0.1"]))
    file.write_text(json.dumps([config]), encoding="utf-8")
    for name, value in (("ip_forward", 0), ("conf.all.rp_filter", 1), ("conf.default.rp_filter", 1)):
        server.sysctl(f"net.ipv4.{name}", value)
    server.ip("route add 10.10.0.0/24 dev eth0")
    code, found = findings(server, file=str(file))
    assert code == 1
    assert {check for check, it in found.items() if it[0][0] == "failure"} == {"forwarding", "rp_filter", "routes"}
    assert "10.10.0.0/24 on eth0" in found["routes"][0][1]
    # What it says to do.
    for check in ("forwarding", "rp_filter"):
        for order in found[check][0][1].split("; "):
            words = order.partition(",")[0].split()
            if words[:2] == ["sysctl", "-w"]:
                name, _, number = words[2].partition("=")
                server.sysctl(name, int(number))
    server.ip("route del 10.10.0.0/24 dev eth0")
    code, found = findings(server, file=str(file))
    assert (code, [check for check, it in found.items() if it[0][0] == "failure"]) == (0, [])


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
    "firewall",
    [
        [
            "nft add table ip filter",
            "nft add chain ip filter FORWARD {type filter hook forward priority 0;policy drop;}",
        ],
        ["iptables-nft -P FORWARD DROP"],
        ["iptables-legacy -P FORWARD DROP"],
    ],
)
def test_a_firewall_that_drops_what_is_forwarded(lab: Lab, firewall: list[str]) -> None:
    """As Docker sets it. The remedy is tried as it is printed."""
    server, _ = cable(lab)
    file = server.tmp / "hub.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([server_config(allowed("a", routes=[BEHIND]))]), encoding="utf-8")
    server.sysctl("net.ipv4.ip_forward", 1)
    assert "firewall" not in findings(server, file=str(file))[1]
    for order in firewall:
        server.run(["sh", "-c", order.replace("{", "'{").replace("}", "}'")])
    [(severity, text)] = findings(server, file=str(file))[1]["firewall"]
    assert severity == "warning"
    assert "FORWARD" in text
    kind = "iptables-legacy" if "legacy" in firewall[0] else "iptables-nft"
    orders = text.split("`")[1::2]
    assert len(orders) == 2
    for order in orders:
        server.run(order.replace("iptables", kind).split())
    assert findings(server, file=str(file))[1]["firewall"][0][0] == "note"
