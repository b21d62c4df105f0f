"""Nothing that the server says, and no route of this machine, leads a client's own connections into its tunnel.

::

    client  192.0.2.7 -------- 192.0.2.1  gate 203.0.113.1 -----.
            198.51.100.7 ---- 198.51.100.1 other 203.0.113.2 --- office: server 203.0.113.10, printer 203.0.113.20

The printer answers only what comes through the tunnel: it has a way back to the tunnel's network, and none to the
client's cables.

The tests are written with IPv4 addresses. `World` translates them for the world in which everything is IPv6.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tapotun_trio.host.netlink.route_lookup import METRIC
from tests.harness import Host, Lab, Process, command, no_leaks, ping, tapotun, wait_for_ping, wait_until

from ..twins import as_ipv6, twin
from .topologies import (
    PROTOCOL,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    addresses,
    allowed,
    client_config,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

SERVER: Final = "203.0.113.10"
PRINTER: Final = "203.0.113.20"
GATE: Final = "192.0.2.1"
OTHER_GATE: Final = "198.51.100.1"
OFFICE: Final = "203.0.113.0/24"
PATIENCE_S: Final = 20.0
KEEPALIVE_S: Final = 2


@dataclass(frozen=True)
class World:
    client: Host
    server: Host
    gate: Host
    other: Host
    printer: Host
    version: int

    def __call__(self, text: str) -> str:
        """The text with the addresses of this world."""
        return twin(text, self.version)

    def ip(self, host: Host, command: str) -> list[dict[str, Any]]:
        """As `Host.ip`, for the family of this world."""
        return host.ip(f"-{self.version} {self(command)}")

    def config(self, config: Config) -> Config:
        """A config with the addresses of this world. Pushes are translated before: everything is a case of its own."""
        return config if self.version == 4 else as_ipv6(config)

    def url(self, host: str) -> str:
        return f"http://{self(host)}:8080/ip" if self.version == 4 else f"http://[{self(host)}]:8080/ip"


only_ipv4 = pytest.mark.parametrize("world", [4], ids=["IPv4"], indirect=True)


@pytest.fixture(name="world", params=[4, 6], ids=["IPv4", "IPv6"])
def _world(lab: Lab, request: pytest.FixtureRequest) -> World:
    version: int = request.param
    client, gate, other = lab.host("client"), lab.host("gate"), lab.host("other")
    server, printer, switch = lab.host("server"), lab.host("printer"), lab.host("switch")
    world = World(client, server, gate, other, printer, version)
    lab.link(client, world("192.0.2.7/24"), gate, world(f"{GATE}/24"))
    lab.link(client, world("198.51.100.7/24"), other, world(f"{OTHER_GATE}/24"))
    switch.ip("link add br0 type bridge")
    switch.ip("link set br0 up")
    for number, (host, address) in enumerate(
        ((gate, "203.0.113.1"), (other, "203.0.113.2"), (server, SERVER), (printer, PRINTER))
    ):
        lab.link(host, world(f"{address}/24"), switch, [])
        switch.ip(f"link set eth{number} master br0")
    for host in (gate, other, server):
        host.sysctl("net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding", 1)
    for host in (gate, other):  # these lose no address with their cables; the client does
        host.sysctl("net.ipv6.conf.all.keep_addr_on_down", 1)
    world.ip(client, f"route add default via {GATE} metric 100")
    world.ip(server, "route add 192.0.2.0/24 via 203.0.113.1")
    world.ip(server, "route add 198.51.100.0/24 via 203.0.113.2")
    world.ip(printer, f"route add 10.10.0.0/24 via {SERVER}")
    wait_for_ping(client, world(SERVER))
    return world


def hub(world: World, *pushes: str, **fields: Any) -> Config:
    translated = [world(push) for push in pushes]
    config = server_config(push_routes=translated, keepalive=KEEPALIVE_S, **fields)
    return world.config({**config, "listen": SERVER, **fields})


def laptop(world: World, **fields: Any) -> Config:
    return client_config(server=world.url(SERVER), **fields)


def exceptions(world: World) -> list[tuple[str, str, str]]:
    """The client's host routes of ours, of all tables: address, gateway, device."""
    found = world.client.ip(f"-{world.version} -N route show table all")
    return [
        (it["dst"], it.get("gateway", ""), it["dev"])
        for it in found
        if it.get("protocol") == PROTOCOL and "/" not in it["dst"] and it.get("metric", 0) >= METRIC
    ]


def status(host: Host) -> Config:
    answer = json.loads(host.run([*command(), "status", "--json"]).stdout)
    interface: Config = answer["processes"][0]["interfaces"][0]
    return interface


def in_vain(world: World) -> Callable[[], bool]:
    return lambda: not exceptions(world)


def past(world: World, gate: str = GATE, device: str = "eth0", server: str = SERVER) -> list[tuple[str, str, str]]:
    """The one host route that leads past the tunnel."""
    return [(world(server), world(gate), device)]


@contextmanager
def holding(world: World, *pushes: str, client: Config | None = None, **fields: Any) -> Iterator[Process]:
    """Server and client run, the transport goes by the gate, and nothing is left at the end."""
    with (
        running(world.server, hub(world, *pushes, **fields), name="hub"),
        no_leaks(world.client),
        running(world.client, client or laptop(world), until=UPLOADING) as daemon,
    ):
        yield daemon


def assert_stays_up(world: World, daemon: Process) -> None:
    """For longer than a dead path would be noticed in: traffic passes, and no stream breaks."""
    for _ in range(3 * KEEPALIVE_S + 2):
        wait_for_ping(world.client, world(TUNNEL_SERVER), PATIENCE_S)
    assert ping(world.client, world(TUNNEL_SERVER), count=30, interval=0.25).ok
    assert not re.search("silent|PINGs were not answered|broke", daemon.log), daemon.tail()


@pytest.mark.parametrize(
    "pushes",
    [
        (OFFICE,),
        ("203.0.112.0/23",),
        ("0.0.0.0/1", "128.0.0.0/1"),
        ("0.0.0.0/0",),
        ("203.0.113.0/29", "203.0.113.8/29", "203.0.113.16/28"),
    ],
)
@only_ipv4
def test_a_push_that_covers_the_server(world: World, pushes: tuple[str, ...]) -> None:
    with holding(world, *pushes) as daemon:
        wait_until(lambda: pushed(world) >= set(pushes), PATIENCE_S, "the routes", daemon.tail)
        wait_for_ping(world.client, world(PRINTER), PATIENCE_S)
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "its own")
        assert_stays_up(world, daemon)
        assert ping(world.client, world(PRINTER)).ok
        [line] = [line for line in daemon.log.splitlines() if "the tunnel's own connections go" in line]
        assert f"covers {SERVER}" in line
        assert f"host route {SERVER} via {GATE} dev eth0" in line
        assert any(f"pushed route {it}" in line for it in pushes)


def pushed(world: World) -> set[str]:
    """The networks that are routed into the tunnel, but for the one of its address."""
    found = {
        route["dst"]
        for route in world.client.ip(f"-{world.version} -N route show dev tun0")
        if route.get("protocol") == PROTOCOL
    }
    return {world("0.0.0.0/0") if network == "default" else network for network in found}


def test_the_network_of_the_address_covers_the_server(world: World) -> None:
    """The base protocol says the prefix, and generation 1 can say nothing else."""
    net: Config = {"net": "203.0.113.129/24", "clients": [allowed("laptop", "203.0.113.130")]}
    with holding(world, **net) as daemon:
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        world.ip(world.server, "route add 203.0.113.130 dev tun0")  # it has the same network on its cable
        for _ in range(3 * KEEPALIVE_S + 2):
            wait_for_ping(world.client, world("203.0.113.129"), PATIENCE_S)
        assert ping(world.client, world("203.0.113.129"), count=30, interval=0.25).ok
        assert world("203.0.113.130/24") in daemon.log
        assert "silent" not in daemon.log


@pytest.mark.parametrize(("net", "ip"), [("203.0.113.1/24", SERVER), ("203.0.113.9/30", SERVER)])
def test_an_address_that_is_the_server_s_own_is_refused(world: World, net: str, ip: str) -> None:
    config = hub(world, net=net, clients=[allowed("laptop", ip)])
    with (
        running(world.server, config, name="hub"),
        no_leaks(world.client),
        running(
            world.client, laptop(world), until=f"WARNING .*address {world(ip)}/.*make {world(SERVER)} unreachable"
        ) as daemon,
    ):
        wait_until(lambda: not exceptions(world), PATIENCE_S, "nothing", daemon.tail)
        assert daemon.running
        assert ping(world.client, world(SERVER)).ok


def test_an_address_that_is_the_gateway_s_is_left_out(world: World) -> None:
    """With that address this machine would no longer answer its gateway."""
    config = hub(world, net="192.0.2.2/30", clients=[allowed("laptop", GATE)])
    with (
        running(world.server, config, name="hub"),
        no_leaks(world.client),
        running(world.client, laptop(world), until=UPLOADING) as daemon,
    ):
        gate = world(GATE)
        daemon.wait_for_log(f" WARNING .*address {gate}/.*would replace the gateway {gate} of the tunnel's", PATIENCE_S)
        assert addresses(world.client, "tun0", world.version) == []
        for host in (world.client, world.gate):
            world.ip(host, "neigh flush all")
        assert ping(world.gate, world("192.0.2.7")).ok
        [conflict] = status(world.client)["transport_conflicts"]
        assert (conflict["address"], conflict["action"]) == (gate, "left-out")


def test_a_push_that_comes_and_goes_by_a_reload(world: World) -> None:
    file = world.server.tmp / "hub.json"

    def write(*pushes: str) -> None:
        file.write_text(json.dumps([hub(world, *pushes)]), encoding="utf-8")

    file.touch(mode=0o600)
    write()
    with (
        running(world.server, file, name="hub") as server,
        no_leaks(world.client),
        running(world.client, laptop(world), until=UPLOADING) as daemon,
    ):
        wait_for_ping(world.client, world(TUNNEL_SERVER), PATIENCE_S)
        assert exceptions(world) == []
        for _ in range(2):
            write(OFFICE)
            server.signal(signal.SIGHUP)
            wait_until(lambda: pushed(world) == {world(OFFICE)}, PATIENCE_S, "the route", daemon.tail)
            wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "its own")
            assert_stays_up(world, daemon)
            assert ping(world.client, world(PRINTER)).ok
            write()
            server.signal(signal.SIGHUP)
            wait_until(lambda: not pushed(world), PATIENCE_S, "it to be gone", daemon.tail)
            wait_until(lambda: not exceptions(world), PATIENCE_S, "the host route to be gone", daemon.tail)
        assert daemon.log.count(UPLOADING) == 1


_PROXY: Final = f"""
Port 3128
Listen {SERVER}
Timeout 600
MaxClients 20
ConnectPort 8080
"""


@only_ipv4  # which family a proxy's address has makes no difference to the guard: tests/unit/test_transport_guard.py
def test_the_outgoing_proxy_s_address_is_what_counts(world: World) -> None:
    """The proxy is covered, and the server behind it, which only the proxy reaches, may be."""
    config = world.server.tmp / "tinyproxy.conf"
    config.write_text(_PROXY, encoding="ascii")
    inner = server_config(listen="127.0.0.1", push_routes=[OFFICE], keepalive=KEEPALIVE_S)
    client = client_config(server="http://127.0.0.1:8080/ip", proxy=f"http://{SERVER}:3128")
    with world.server.start(["tinyproxy", "-d", "-c", config], name="tinyproxy") as proxy:
        world.server.wait_for_listener(3128, by=proxy)
        with (
            running(world.server, inner, name="hub"),
            no_leaks(world.client),
            running(world.client, client, until=UPLOADING) as daemon,
        ):
            wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
            assert_stays_up(world, daemon)
            assert ping(world.client, world(PRINTER)).ok


def test_the_host_route_follows_to_another_gateway(world: World) -> None:
    with holding(world, OFFICE) as daemon:
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        world.ip(world.client, f"route replace default via {OTHER_GATE} metric 100")
        wait_until(lambda: exceptions(world) == past(world, OTHER_GATE, "eth1"), PATIENCE_S, "it", daemon.tail)
        world.gate.ip("link set eth0 down")
        wait_for_ping(world.client, world(PRINTER), PATIENCE_S)
        assert_stays_up(world, daemon)
        world.gate.ip("link set eth0 up")
        # Without a default route there is no way to the server, and nothing stays behind.
        world.ip(world.client, "route del default")
        wait_until(in_vain(world), PATIENCE_S, "no host route", daemon.tail)
        world.ip(world.client, f"route add default via {GATE} metric 100")
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        wait_for_ping(world.client, world(PRINTER), PATIENCE_S)


def test_the_cable_goes_and_comes_back(world: World) -> None:
    """The kernel takes the host route away with the device, and does not bring it back."""
    with holding(world, OFFICE) as daemon:
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        world.client.ip("link set eth0 down")
        wait_until(in_vain(world), PATIENCE_S, "no host route", daemon.tail)
        world.client.ip("link set eth0 up")
        if world.version == 6:  # the kernel takes the address, too
            world.ip(world.client, "address add 192.0.2.7/24 dev eth0")
        world.ip(world.client, f"route add default via {GATE} metric 100")
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        wait_for_ping(world.client, world(PRINTER), PATIENCE_S)


def test_a_route_of_somebody_else_into_the_tunnel(world: World) -> None:
    """An operator sends everything into the tunnel by hand."""
    with holding(world) as daemon:
        wait_for_ping(world.client, world(TUNNEL_SERVER), PATIENCE_S)
        world.ip(world.client, "route add 203.0.0.0/8 dev tun0")
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        assert world("route 203.0.0.0/8, which is not ours") in daemon.log
        assert_stays_up(world, daemon)
        assert ping(world.client, world(PRINTER)).ok
        world.ip(world.client, "route del 203.0.0.0/8 dev tun0")
        world.ip(world.client, f"route replace default via {GATE} metric 100")
        daemon.signal(signal.SIGHUP)


def test_the_server_gets_another_address(world: World) -> None:
    """While the tunnel stands and covers both; the new one must not be reached through the tunnel."""
    world.ip(world.server, "address add 203.0.113.30/24 dev eth0")
    world.client.hosts({"vpn.example.com": world(SERVER)})
    client = client_config(server="http://vpn.example.com:8080/ip", rotate_s=[4, 5])
    anywhere = "0.0.0.0" if world.version == 4 else "::"
    with holding(world, OFFICE, client=client, listen=anywhere) as daemon:
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
        world.client.hosts({"vpn.example.com": world("203.0.113.30")})
        moved = past(world, server="203.0.113.30")
        wait_until(lambda: exceptions(world) == moved, 3 * PATIENCE_S, "the other", daemon.tail)
        world.server.sysctl("net.ipv4.conf.eth0.promote_secondaries", 1)
        world.ip(world.server, f"address del {SERVER}/24 dev eth0")
        assert_stays_up(world, daemon)


def test_the_mark_s_own_default_route(world: World) -> None:
    """Its table carries the transport only if that has the same mark, which a config may not have."""
    mark = {"value": 100, "table": 100}
    with holding(world, client=laptop(world, mark=mark, transport_mark=200)) as daemon:
        assert_stays_up(world, daemon)
        assert exceptions(world) == []


def test_a_push_with_a_transport_that_has_a_table_of_its_own(world: World) -> None:
    """What the operator has kept out of the main table needs no help."""
    world.ip(world.client, f"route add default via {GATE} table 200")
    world.ip(world.client, "rule add fwmark 200 lookup 200 priority 1000")
    with holding(world, OFFICE, client=laptop(world, transport_mark=200)) as daemon:
        wait_until(lambda: pushed(world) == {world(OFFICE)}, PATIENCE_S, "the route", daemon.tail)
        assert_stays_up(world, daemon)
        assert exceptions(world) == []
        assert ping(world.client, world(PRINTER)).ok


def test_a_push_of_the_server_alone_is_left_out(world: World) -> None:
    with holding(world, f"{SERVER}/32", f"{PRINTER}/32") as daemon:
        wait_for_ping(world.client, world(PRINTER), PATIENCE_S)
        assert_stays_up(world, daemon)
        assert pushed(world) == {world(PRINTER)}
        assert exceptions(world) == []
        assert re.search(world(f"pushed route {SERVER}/32 covers {SERVER}.*left out"), daemon.log)


def test_without_a_session_the_routes_go_and_come_back(world: World) -> None:
    elsewhere = "10.77.0.0/24"
    with holding(world, OFFICE, elsewhere) as daemon:
        wait_until(lambda: pushed(world) == {world(OFFICE), world(elsewhere)}, PATIENCE_S, "the routes", daemon.tail)
        for host in (world.gate, world.other):
            host.ip("link set eth1 down")
        wait_until(lambda: pushed(world) == {world(elsewhere)}, PATIENCE_S, "it to be withdrawn", daemon.tail)
        wait_until(in_vain(world), PATIENCE_S, "the host route to be gone", daemon.tail)
        assert world(f"pushed route {OFFICE} covers {SERVER}") in daemon.log
        assert "withdrawn until there is a session again" in daemon.log
        [conflict] = status(world.client)["transport_conflicts"]
        assert (conflict["route"], conflict["address"], conflict["action"]) == (
            world(OFFICE),
            world(SERVER),
            "withdrawn",
        )
        for host in (world.gate, world.other):
            host.ip("link set eth1 up")
        wait_until(
            lambda: pushed(world) == {world(OFFICE), world(elsewhere)}, 2 * PATIENCE_S, "the routes", daemon.tail
        )
        wait_for_ping(world.client, world(PRINTER), PATIENCE_S)
        [conflict] = status(world.client)["transport_conflicts"]
        assert conflict["action"] == "excepted"
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "its own")


@only_ipv4  # the twin: test_a_killed_client_s_host_route_goes of test_dual_outside.py
def test_what_a_killed_run_leaves_is_removed_before_the_first_connection(world: World) -> None:
    """The host route leads to a gateway that is no more: with it, the next run could not connect."""
    with running(world.server, hub(world, OFFICE), name="hub"), no_leaks(world.client):
        with tapotun(world.client, [laptop(world)]) as daemon:
            wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "it", daemon.tail)
            daemon.kill()
        wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "its own")
        report = world.client.run([*command(), "doctor", "--json"], check=False).stdout
        [found] = [it for it in json.loads(report)["findings"] if it["check"] == "left-over"]
        assert found["severity"] == "warning"
        assert SERVER in found["text"]
        world.ip(world.client, f"route replace default via {OTHER_GATE} metric 100")
        world.gate.ip("link set eth0 down")
        with running(world.client, laptop(world), until=UPLOADING, name="again") as daemon:
            assert "left over" in daemon.log
            wait_until(lambda: exceptions(world) == past(world, OTHER_GATE, "eth1"), PATIENCE_S, "it", daemon.tail)
            wait_for_ping(world.client, world(PRINTER), PATIENCE_S)
        world.gate.ip("link set eth0 up")
        world.ip(world.client, f"route replace default via {GATE} metric 100")
        assert exceptions(world) == []


def test_two_clients_of_one_server_do_not_meet(world: World) -> None:
    """Each has a host route of its own; the one that ends leaves the other's alone, and none is left over."""
    clients = [allowed("laptop"), allowed("second", "10.10.0.3")]
    second = client_config("second", server=world.url(SERVER), name="tun1")
    config = hub(world, "203.0.113.0/25", "203.0.113.0/26", clients=clients)
    with running(world.server, config, name="hub"), no_leaks(world.client):
        with running(world.client, laptop(world), until=UPLOADING, name="first"):
            wait_until(lambda: len(exceptions(world)) == 1, PATIENCE_S, "one")
            with running(world.client, second, until=UPLOADING, name="second"):
                wait_until(lambda: len(exceptions(world)) == 2, PATIENCE_S, "two")
                world.ip(world.client, f"route replace default via {OTHER_GATE} metric 100")
                moved = past(world, OTHER_GATE, "eth1") * 2
                wait_until(lambda: exceptions(world) == moved, PATIENCE_S, "both by the other gateway")
                world.ip(world.client, f"route replace default via {GATE} metric 100")
                wait_until(lambda: exceptions(world) == past(world) * 2, PATIENCE_S, "both back")
            wait_until(lambda: exceptions(world) == past(world), PATIENCE_S, "its own")
            wait_for_ping(world.client, world(TUNNEL_SERVER), PATIENCE_S)
        assert exceptions(world) == []
