"""Small networks with the daemon in them, and what the tests of the daemon share.

Addresses: the cable is 192.0.2.0/24 the tunnel 10.10.0.0/24; the server is .1 in both. A raw token that a
test makes up is ``raw-token-of-NAME``, so that `SECRETS` finds it wherever it should not be.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any, Final, TypeAlias

from tests.harness import EXAMPLES, Host, Lab, Process, nginx_proxy, tapotun

SERVER: Final = "192.0.2.1"
CLIENT: Final = "192.0.2.2"
OTHER: Final = "192.0.2.3"
SERVER_6: Final = "2001:db8::1"
CLIENT_6: Final = "2001:db8::2"

TUNNEL_SERVER: Final = "10.10.0.1"
TUNNEL_CLIENT: Final = "10.10.0.2"

PROTOCOL: Final = "116"  # what `ip route` and `ip rule` show for routes and rules of ours

# An error waits 3 to 10 s for its next try; the rest is for a slow machine.
RETRY_S: Final = 20.0
# Promised is "under a second". Here the machine may be busy with something else.
STOP_S: Final = 3.0

Config: TypeAlias = dict[str, Any]

# The tokens of conf/examples (not as part of a path or a longer word) and of every config made here.
SECRETS: Final = re.compile(r"(?<![\w/.-])test(-[ab])?(?![\w/.-])|raw-token-of")


def token(name: str) -> str:
    """The raw token of a made-up client."""
    return f"raw-token-of-{name}"


def allowed(name: str, ip: str = TUNNEL_CLIENT, **fields: Any) -> Config:
    """An entry of a server's `clients`."""
    digest = hashlib.sha1(token(name).encode()).hexdigest()
    return {"name": name, "token": digest, "ip": ip, **fields}


def server_config(*clients: Config, **fields: Any) -> Config:
    """A server that listens on the cable itself, with no proxy in front; by default with one client, laptop."""
    return {
        "name": "tun0",
        "listen": SERVER,
        "port": 8080,
        "net": f"{TUNNEL_SERVER}/24",
        "clients": list(clients) or [allowed("laptop")],
        **fields,
    }


def client_config(who: str = "laptop", **fields: Any) -> Config:
    """Its client."""
    return {"name": "tun0", "server": f"http://{SERVER}:8080/ip", "token": token(who), **fields}


def cable(lab: Lab) -> tuple[Host, Host]:
    """A server and a client, as yet with nothing but a cable between them."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, f"{SERVER}/24", client, f"{CLIENT}/24")
    client.hosts({"vpn.example.com": SERVER})
    return server, client


def cable_6(lab: Lab) -> tuple[Host, Host]:
    """As `cable`, with IPv6 only."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, f"{SERVER_6}/64", client, f"{CLIENT_6}/64")
    client.hosts({"vpn.example.com": SERVER_6})
    return server, client


@contextmanager
def running(
    host: Host,
    config: str | PathLike[str] | Config | Sequence[Mapping[str, Any]],
    *options: str,
    until: str | None = "started: ",
    **named: Any,
) -> Iterator[Process]:
    """The daemon, from the moment that its log matches `until` on, stopped by SIGTERM at the end.

    Where it still runs at the end it must end by that, cleanly.
    """
    with tapotun(host, [config] if isinstance(config, dict) else config, *options, **named) as daemon:
        if until is not None:
            daemon.wait_for_log(until)
        yield daemon
        if daemon.running:
            assert daemon.stop(STOP_S) == 0, daemon.tail()


UPLOADING: Final = "upload to "
"""A client logs this last: its interface is up, and both streams are there."""


@dataclass(frozen=True)
class Tunnel:
    """A server and a client that are connected."""

    server: Host
    client: Host
    server_daemon: Process
    client_daemon: Process


@contextmanager
def tunnel(lab: Lab, **server_fields: Any) -> Iterator[Tunnel]:
    """Server and client of `server_config` and `client_config`, connected."""
    server, client = cable(lab)
    with (
        running(server, server_config(**server_fields)) as server_daemon,
        running(client, client_config(), until=UPLOADING) as client_daemon,
    ):
        yield Tunnel(server, client, server_daemon, client_daemon)


@dataclass(frozen=True)
class Corp:
    """The world of server-corp.json.

    ::

        behind_a  10.60.0.10, 10.61.0.10 --- a (10.50.0.2) ===.
                                                              hub (10.50.0.1, 10.50.0.254) --- office 172.20.0.10
        behind_b  10.70.0.10 --------------- b (10.50.0.3) ===.

    a and b reach the hub, 192.0.2.1 and 203.0.113.1 over one cable each, through nginx. What lies behind
    another client they have a route to, as their operators would set it: the base protocol pushes none.
    """

    hub: Host
    a: Host
    b: Host
    behind_a: Host
    behind_b: Host
    office: Host
    hub_daemon: Process


@contextmanager
def corp(lab: Lab, *, a_config: str | PathLike[str] | Config | None = None) -> Iterator[Corp]:
    """The hub with its example config, and both clients connected; `a_config` instead of a plain client."""
    names = ("hub", "a", "b", "behind_a", "behind_b", "office")
    hub, a, b, behind_a, behind_b, office = hosts = [lab.host(name) for name in names]
    lab.link(hub, f"{SERVER}/24", a, f"{CLIENT}/24")
    lab.link(hub, "203.0.113.1/24", b, "203.0.113.2/24")
    lab.link(hub, "172.20.0.1/16", office, "172.20.0.10/16")
    lab.link(a, ["10.60.0.1/24", "10.61.0.1/24"], behind_a, ["10.60.0.10/24", "10.61.0.10/24"])
    lab.link(b, "10.70.0.1/24", behind_b, "10.70.0.10/24")
    a.hosts({"corp.example.com": SERVER})
    b.hosts({"corp.example.com": "203.0.113.1"})
    for host in hosts:
        host.sysctl("net.ipv4.ip_forward", 1)
    for host, gateway in ((behind_a, "10.60.0.1"), (behind_b, "10.70.0.1"), (office, "172.20.0.1")):
        host.ip(f"route add default via {gateway}")
    with ExitStack() as stack:
        hub_daemon = stack.enter_context(running(hub, EXAMPLES / "server-corp.json", name="tapotun-hub"))
        stack.enter_context(nginx_proxy(hub, "127.0.0.1:8081"))
        for host, config in ((a, a_config or corp_client("test-a")), (b, corp_client("test-b"))):
            stack.enter_context(running(host, config, until=UPLOADING, name=f"tapotun-{host.name}"))
        for host, networks in ((a, ["10.70.0.0/24", "172.20.0.0/16"]), (b, ["10.60.0.0/24", "10.61.0.0/24"])):
            for network in networks:
                host.ip(f"route add {network} dev corp0")
        yield Corp(hub, a, b, behind_a, behind_b, office, hub_daemon)


def corp_client(token: str) -> Config:
    """A client of server-corp.json."""
    return {"name": "corp0", "server": "http://corp.example.com/ip", "token": token}


@contextmanager
def flood(host: Host, address: str) -> Iterator[None]:
    """Large UDP datagrams from a host to an address, as fast as they go, while the body runs."""
    ended = threading.Event()

    def send() -> None:
        with host.socket(kind=socket.SOCK_DGRAM) as sock:
            number = 0
            while not ended.is_set():
                with suppress(OSError):  # the interface may go before we do
                    sock.sendto(number.to_bytes(4, "big") + bytes(1300), (address, 9))
                    number += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def numbers(packets: Iterable[bytes]) -> list[int]:
    """The numbers of the datagrams of `flood` among IPv4 packets."""
    return [int.from_bytes(packet[28:32], "big") for packet in packets if packet[9:10] == b"\x11"]


def addresses(host: Host, interface: str, version: int = 4) -> list[str]:
    """The addresses of an interface with their prefixes, in the kernel's order; none if it is not there. Of IPv6,
    link-local ones are among them."""
    links = [link for link in host.ip(f"-{version} address show") if link["ifname"] == interface]
    return [f"{address['local']}/{address['prefixlen']}" for link in links for address in link["addr_info"]]


def mtu(host: Host, interface: str) -> int:
    """An interface's MTU."""
    return int(host.ip(f"link show {interface}")[0]["mtu"])


def index(host: Host, interface: str) -> int:
    """An interface's number: another one means another interface, even if the name is the same."""
    return int(host.ip(f"link show {interface}")[0]["ifindex"])


def has_interface(host: Host, name: str) -> bool:
    """Whether it exists."""
    return any(link["ifname"] == name for link in host.ip("link show"))


def device_to(host: Host, address: str) -> str:
    """The interface by which the kernel sends packets to an address; "" if there is no route."""
    answer = host.run(["ip", "-j", "route", "get", address], check=False).stdout
    return str(json.loads(answer)[0]["dev"]) if answer.strip() else ""


def mark_rules(host: Host, version: int = 4) -> list[tuple[int, str, str]]:
    """The rules that have a fwmark: mark, table, protocol."""
    rules = host.ip(f"-{version} -N rule show")
    return [(int(rule["fwmark"], 16), rule["table"], rule.get("protocol", "")) for rule in rules if "fwmark" in rule]


def routes(host: Host, table: str = "main", version: int = 4) -> set[tuple[str, str, str]]:
    """The routes of a table: destination, interface, protocol as a number."""
    found = host.ip(f"-{version} -N route show table all")  # `table 100` alone is an error as long as it is empty
    return {
        (route["dst"], route.get("dev", ""), route.get("protocol", ""))
        for route in found
        if route.get("table", "main") == table
    }
