"""A server and two clients with both families, and a machine behind one of them.

::

    third 10.60.0.10, fd00:60::10 --- laptop 10.10.0.2, fd00:10::2 ===.
                                                                       server 10.10.0.1, fd00:10::1
                                      branch 10.10.0.3, fd00:10::3 ===.

Each client has a cable of its own to the server, of both families: the laptop 192.0.2.0/24 and 2001:db8:2::/64, the
branch 203.0.113.0/24 and 2001:db8:3::/64. The server pushes the routes to what is behind the laptop.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.harness import Host, Lab, Process, command

from .topologies import (
    CLIENT,
    SERVER,
    UPLOADING,
    Config,
    addresses,
    allowed,
    client_config,
    mark_rules,
    running,
    server_config,
)

SERVER_6: Final = "2001:db8:2::1"
CLIENT_6: Final = "2001:db8:2::2"
NETS: Final = ["10.10.0.1/24", "fd00:10::1/64"]
BEHIND: Final = ["10.60.0.0/24", "fd00:60::/64"]

# An address of each family.
HUB: Final = ("10.10.0.1", "fd00:10::1")
LAPTOP: Final = ("10.10.0.2", "fd00:10::2")
BRANCH: Final = ("10.10.0.3", "fd00:10::3")
THIRD: Final = ("10.60.0.10", "fd00:60::10")

PLANES: Final = {"plane": {"TAPOTUN_PLANE": "auto"}, "python": {"TAPOTUN_PLANE": "off"}}
"""The environments of daemons whose packets the plane moves, and of those where Python does."""


@dataclass(frozen=True)
class Dual:
    """All of it, connected."""

    server: Host
    laptop: Host
    branch: Host
    third: Host


def dual_config(*clients: Config, **fields: Any) -> Config:
    """A server of both families; by default with the laptop alone."""
    return server_config(*(clients or [dual_client()]), net=NETS, **fields)


def dual_client(name: str = "laptop", ip: tuple[str, ...] = LAPTOP, **fields: Any) -> Config:
    """An entry of its `clients`."""
    return {**allowed(name), "ip": list(ip), **fields}


def dual_cable(lab: Lab) -> tuple[Host, Host]:
    """As `topologies.cable`, of both families."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, [f"{SERVER}/24", f"{SERVER_6}/64"], client, [f"{CLIENT}/24", f"{CLIENT_6}/64"])
    return server, client


@contextmanager
def dual(lab: Lab, *, env: Mapping[str, str] | None = None, **server_fields: Any) -> Iterator[Dual]:
    """``env``: of all three daemons."""
    server, laptop, branch, third = (lab.host(name) for name in ("server", "laptop", "branch", "third"))
    lab.link(server, [f"{SERVER}/24", f"{SERVER_6}/64"], laptop, [f"{CLIENT}/24", f"{CLIENT_6}/64"])
    lab.link(server, ["203.0.113.1/24", "2001:db8:3::1/64"], branch, ["203.0.113.2/24", "2001:db8:3::2/64"])
    lab.link(laptop, ["10.60.0.1/24", "fd00:60::1/64"], third, [f"{THIRD[0]}/24", f"{THIRD[1]}/64"])
    forwards(laptop)
    third.ip("route add default via 10.60.0.1")
    third.ip("-6 route add default via fd00:60::1")
    clients = [dual_client(routes=BEHIND), dual_client("branch", BRANCH)]
    config = dual_config(*clients, **{"listen": [SERVER, "203.0.113.1"], "push_routes": BEHIND, **server_fields})
    with ExitStack() as stack:
        stack.enter_context(running(server, config, env=env))
        stack.enter_context(running(laptop, client_config(), until=UPLOADING, env=env))
        of_branch = client_config("branch", server="http://203.0.113.1:8080/ip")
        stack.enter_context(running(branch, of_branch, until=UPLOADING, env=env))
        yield Dual(server, laptop, branch, third)


def forwards(*hosts: Host) -> None:
    """These are routers of both families."""
    for host in hosts:
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv6.conf.all.forwarding", 1)


@contextmanager
def advertising(router: Host, interface: str, prefix: str, options: str = "") -> Iterator[Process]:
    """A router that announces itself and this prefix every few seconds: radvd. ``options``: of the prefix."""
    file = router.tmp / "radvd.conf"
    text = f"AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; prefix {prefix} {{ {options} }};"
    file.write_text(f"interface {interface} {{ {text} }};\n", encoding="ascii")
    with router.start(["radvd", "-n", "-m", "stderr", "-C", file, "-p", router.tmp / "radvd.pid"]) as radvd:
        yield radvd


def status(host: Host) -> dict[str, Any]:
    """What `tapotun status --json` says of the one interface of this host."""
    report = json.loads(host.run([*command(), "status", "--json"], timeout=30).stdout)
    interface: dict[str, Any] = report["processes"][0]["interfaces"][0]
    return interface


def drops(host: Host) -> Counter[str]:
    """The packets that the one interface of this host has dropped, by reason."""
    interface = status(host)
    found = Counter(interface["device_drops"])
    for peer in interface["peers"]:
        found += Counter(peer["drops"])
    return found


def send_raw(host: Host, *packets: bytes) -> None:
    """Have a host send packets of either family as they are, whatever their source, through its tun0."""
    for packet in packets:
        family = socket.AF_INET if packet[0] >> 4 == 4 else socket.AF_INET6
        with host.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tun0")
            if family is socket.AF_INET:
                raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
            else:
                # A link-local destination needs to know the interface.
                raw.sendto(packet, (socket.inet_ntop(family, packet[24:40]), 0, 0, _index(host)))


def _index(host: Host) -> int:
    return int(host.ip("link show tun0")[0]["ifindex"])


def addresses_6(host: Host, interface: str = "tun0") -> list[str]:
    """As `topologies.addresses`, of IPv6."""
    return addresses(host, interface, 6)


def routes_6(host: Host, interface: str = "tun0", table: str = "main") -> set[tuple[str, str]]:
    """The IPv6 routes of a table that lead into an interface: destination, protocol as a number."""
    return {
        (route["dst"], route["protocol"])
        for route in host.ip("-6 -N route show table all")
        if route.get("dev") == interface and route.get("table", "main") == table and route["dst"] != "ff00::/8"
    }


def rules_6(host: Host) -> list[tuple[int, str, str]]:
    """As `topologies.mark_rules`, of IPv6."""
    return mark_rules(host, 6)
