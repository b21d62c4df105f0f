"""A client whose machine moves: into the network that is pushed, out of it, and through changes of other links.

::

    server  192.0.2.1 ---- 192.0.2.2  client  eth1 ---- lan
    office 10.60.0.1 (on the server)              the same networks as behind the server, or the tunnel's own

The tests are written with IPv4 addresses. `Roamer` translates them for the world in which all that is inside the tunnel
is IPv6, and so are the networks of the LAN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Process, command, no_leaks, ping, wait_for_ping, wait_until

from ..tables import table
from ..twins import as_ipv6, twin
from .dual import forwards
from .topologies import (
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    client_config,
    device_to,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

OFFICE: Final = "10.60.0.0/16"
IN_OFFICE: Final = "10.60.0.1"
PATIENCE_S: Final = 30.0
RENEWED: Final = ": renewing the streams"
IGNORED: Final = ": that concerns no stream"


@dataclass(frozen=True)
class Roamer:
    server: Host
    client: Host
    lan: Host
    version: int

    def __call__(self, text: str) -> str:
        """The text with the addresses of this world."""
        return twin(text, self.version)

    def ip(self, host: Host, command: str) -> None:
        """As `Host.ip`, for the family of this world."""
        host.ip(f"-{self.version} {self(command)}")

    def hub(self, *clients: Config, **fields: Any) -> Config:
        """A server with the addresses of this world, on the cable, which is IPv4."""
        config = server_config(*clients, **fields)
        return config if self.version == 4 else {**as_ipv6(config), "listen": config["listen"]}


only_ipv4 = pytest.mark.parametrize("world", [4], ids=["IPv4"], indirect=True)


@pytest.fixture(name="world", params=[4, 6], ids=["IPv4", "IPv6"])
def _world(lab: Lab, request: pytest.FixtureRequest) -> Roamer:
    """The client's second cable has no address yet."""
    version: int = request.param
    server, client = cable(lab)
    lan = lab.host("lan")
    lab.link(client, [], lan, [])
    server.ip("link add office0 type bridge")
    server.ip("link set office0 up")
    world = Roamer(server, client, lan, version)
    world.ip(server, f"address add {IN_OFFICE}/32 dev office0")
    return world


def status(host: Host) -> Config:
    answer = json.loads(host.run([*command(), "status", "--json"]).stdout)
    interface: Config = answer["processes"][0]["interfaces"][0]
    return interface


def left_out(host: Host) -> list[tuple[str, str, str | None, str | None]]:
    return [(it["route"], it["reason"], it["network"], it["device"]) for it in status(host)["left_out"]]


def wait_until_left_out(
    host: Host, expected: Sequence[tuple[str, str, str | None, str | None]], daemon: Process
) -> None:
    """Wait until the daemon has noticed. The kernel itself may have changed its mind before: of two IPv6 routes to one
    network it takes the LAN's at once, if the LAN's metric is the smaller one."""
    last: list[tuple[str, str, str | None, str | None]] = []

    def probe() -> bool:
        last[:] = left_out(host)
        return last == list(expected)

    wait_until(probe, PATIENCE_S, f"what is left out to be {expected}", lambda: f"it is {last}\n{daemon.tail()}")


def follows(host: Host, address: str, device: str) -> Callable[[], bool]:
    return lambda: device_to(host, address) == device


DHCP: Final = [
    "address add 10.60.1.7/24 dev eth1 noprefixroute",
    "route add 10.60.1.0/24 dev eth1 proto dhcp scope link src 10.60.1.7 metric 600",
]


@table(
    "pushes joins leaves wins stays",
    (
        "the same network with a metric",
        ["10.60.1.0/24", "10.61.0.0/24"],
        DHCP,
        ["address del 10.60.1.7/24 dev eth1"],
        ["10.60.1.9"],
        ["10.61.0.9"],
    ),
    (
        "a part of it",
        ["10.60.1.128/25", "10.60.0.0/16"],
        ["address add 10.60.1.7/24 dev eth1"],
        ["link set eth1 down"],
        ["10.60.1.9", "10.60.1.200"],
        ["10.60.2.9"],
    ),
    (
        "in another table",
        ["10.60.1.0/24"],
        [
            "address add 10.60.1.7/24 dev eth1 noprefixroute",
            "route add 10.60.1.0/24 dev eth1 table 100",
            "rule add lookup 100 priority 40000",
        ],
        ["route del 10.60.1.0/24 dev eth1 table 100"],
        ["10.60.1.9"],
        [],
    ),
)
def test_the_client_plugs_into_the_pushed_network(
    world: Roamer, pushes: list[str], joins: list[str], leaves: list[str], wins: list[str], stays: list[str]
) -> None:
    client = world.client
    pushes, wins, stays = (list(map(world, each)) for each in (pushes, wins, stays))
    with (
        running(world.server, world.hub(push_routes=pushes), name="hub"),
        no_leaks(client),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        for address in wins + stays:
            wait_until(follows(client, address, "tun0"), PATIENCE_S, f"{address} in the tunnel", daemon.tail)
        assert left_out(client) == []
        for line in joins:
            world.ip(client, line)
        for address in wins:
            wait_until(follows(client, address, "eth1"), PATIENCE_S, f"{address} on the LAN", daemon.tail)
        for address in stays:
            assert device_to(client, address) == "tun0"
        wait_until_left_out(client, [(pushes[0], "attached", world("10.60.1.0/24"), "eth1")], daemon)
        assert pushes[0] not in status(client)["peers"][0]["routes"]
        [line] = [line for line in daemon.log.splitlines() if "left out" in line]
        assert f"pushed route {pushes[0]}" in line
        assert "eth1" in line
        text = client.run([*command(), "status"]).stdout
        assert f"left out:   pushed route {pushes[0]}: eth1 attaches this machine to" in text
        [finding] = findings(client, "left-out")
        assert (finding["severity"], pushes[0] in finding["text"]) == ("note", True)
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        for line in leaves:
            world.ip(client, line)
        if joins is DHCP and world.version == 6:  # of IPv4 it goes with its source
            world.ip(client, "route del 10.60.1.0/24 dev eth1")
        for address in wins:
            wait_until(follows(client, address, "tun0"), PATIENCE_S, f"{address} in the tunnel again", daemon.tail)
        wait_until_left_out(client, [], daemon)
        assert f"pushed route {pushes[0]} is used again" in daemon.log
        if "rule" in joins[-1]:
            world.ip(client, joins[-1].replace("rule add", "rule del"))
        client.ip("link set eth1 up")
        client.ip(f"-{world.version} address flush dev eth1 scope global")
        wait_until(lambda: "fe80" in client.run(["ip", "address", "show", "eth1"]).stdout, PATIENCE_S, "eth1 as before")


def findings(host: Host, check: str) -> list[dict[str, str]]:
    report = json.loads(host.run([*command(), "doctor", "--json"], check=False).stdout)
    return [it for it in report["findings"] if it["check"] == check]


def test_a_client_that_starts_in_the_pushed_network(world: Roamer) -> None:
    """With a metric and without one, where the kernel would refuse our route."""
    client = world.client
    world.ip(client, "address add 10.61.0.7/24 dev eth1 metric 100")
    world.ip(client, "address add 10.62.0.7/24 dev eth1")
    pushes = [world(it) for it in ("10.61.0.0/24", "10.62.0.0/24", OFFICE)]
    with (
        running(world.server, world.hub(push_routes=pushes), name="hub"),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, world(IN_OFFICE), PATIENCE_S)
        assert [device_to(client, world(it)) for it in ("10.61.0.9", "10.62.0.9")] == ["eth1", "eth1"]
        assert [it[:2] for it in left_out(client)] == [(it, "attached") for it in pushes[:2]]
        assert "stands in the way" not in daemon.log


def test_the_client_s_own_network_is_the_tunnel_s(world: Roamer) -> None:
    """It wins; what is behind the server can still be reached."""
    client = world.client
    with (
        running(world.server, world.hub(push_routes=[OFFICE]), name="hub"),
        no_leaks(client),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        world.ip(client, "address add 10.10.0.77/24 dev eth1 metric 100")
        wait_until(follows(client, world("10.10.0.9"), "eth1"), PATIENCE_S, "the LAN to win", daemon.tail)
        lan = (world("10.10.0.0/24"), "eth1")
        expected = [(world("10.10.0.0/24"), "tunnel-network", *lan), (world("10.10.0.2/32"), "tunnel-address", *lan)]
        wait_until_left_out(client, expected, daemon)
        wait_for_ping(client, world(IN_OFFICE), PATIENCE_S, source=world("10.10.0.2"))
        lines = [line for line in daemon.log.splitlines() if "WARNING" in line and world("10.10.0.2/24") in line]
        for line, words in zip(lines, (world("10.10.0.0/24 cannot be reached"), "that has the address"), strict=True):
            assert words in line
            assert "give the tunnel another network in the server's config" in line
        for finding in findings(client, "left-out"):
            assert finding["severity"] == "warning"
            assert "the server's net" in finding["remedy"]
        assert world("the tunnel's network 10.10.0.0/24") in client.run([*command(), "status"]).stdout.replace(
            "\n", " "
        )
        world.ip(client, "address del 10.10.0.77/24 dev eth1")
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        wait_until_left_out(client, [], daemon)
        assert world("network 10.10.0.0/24 is used again") in daemon.log


@pytest.mark.parametrize("world", [6], ids=["IPv6"], indirect=True)
def test_an_address_of_which_the_kernel_looks_for_a_duplicate(world: Roamer) -> None:
    """Its route is there at once, but the kernel reports no usable address yet. The LAN wins all the same."""
    client = world.client
    client.sysctl("net.ipv6.conf.eth1.accept_dad", 1)
    client.sysctl("net.ipv6.conf.eth1.dad_transmits", 120)  # a second each
    with (
        running(world.server, world.hub(push_routes=[OFFICE]), name="hub"),
        no_leaks(client),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        world.ip(client, "address add 10.10.0.77/24 dev eth1")  # with the metric of the tunnel's own network
        lan = (world("10.10.0.0/24"), "eth1")
        expected = [(world("10.10.0.0/24"), "tunnel-network", *lan), (world("10.10.0.2/32"), "tunnel-address", *lan)]
        wait_until_left_out(client, expected, daemon)
        wait_until(follows(client, world("10.10.0.9"), "eth1"), PATIENCE_S, "the LAN to win", daemon.tail)
        assert "tentative" in client.run(["ip", "-6", "address", "show", "dev", "eth1", "scope", "global"]).stdout
        world.ip(client, "address del 10.10.0.77/24 dev eth1")
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        wait_until_left_out(client, [], daemon)


def test_the_client_s_own_network_is_a_part_of_the_tunnel_s(world: Roamer) -> None:
    """And the tunnel's address may be that of a machine there. Both are told until the client has left."""
    client = world.client
    with (
        running(world.server, world.hub(allowed("laptop", "10.10.9.2"), net="10.10.0.1/16"), name="hub"),
        no_leaks(client),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        assert left_out(client) == []
        world.ip(client, "address add 10.10.9.77/24 dev eth1 metric 100")
        lan = (world("10.10.9.0/24"), "eth1")
        expected = [(world("10.10.9.0/24"), "tunnel-network", *lan), (world("10.10.9.2/32"), "tunnel-address", *lan)]
        wait_until_left_out(client, expected, daemon)
        assert re.search(
            world("WARNING .*eth1 attaches this machine to 10.10.9.0/24, which is a part of the"), daemon.log
        )
        assert re.search(
            world("WARNING .*10.10.9.2/16.*another machine there that has the address cannot be"), daemon.log
        )
        assert {it["severity"] for it in findings(client, "left-out")} == {"warning"}
        assert "where a machine with that address" in client.run([*command(), "status"]).stdout
        assert device_to(client, world("10.10.9.9")) == "eth1"
        wait_for_ping(client, world(TUNNEL_SERVER), PATIENCE_S)
        world.ip(client, "address del 10.10.9.77/24 dev eth1")
        wait_until_left_out(client, [], daemon)
        wait_until(follows(client, world("10.10.9.9"), "tun0"), PATIENCE_S, "the tunnel", daemon.tail)


@only_ipv4  # their addresses are compared in tests/unit/test_left_out.py
def test_two_clients_of_one_server_on_one_machine(world: Roamer) -> None:
    """Their tunnels are in one network, and neither takes it from the other."""
    server = server_config(allowed("laptop"), allowed("second", "10.10.0.3"), push_routes=[OFFICE])
    second = client_config("second", name="tun1")
    with (
        running(world.server, server, name="hub"),
        running(world.client, [client_config(), second], until=UPLOADING) as daemon,
    ):
        wait_until(lambda: daemon.log.count(UPLOADING) == 2, PATIENCE_S, "both", daemon.tail)
        wait_for_ping(world.client, TUNNEL_SERVER, PATIENCE_S)
        answer = json.loads(world.client.run([*command(), "status", "--json"]).stdout)
        assert all(it["left_out"] == [] for it in answer["processes"][0]["interfaces"])


# -- which changes renew the streams


@pytest.fixture(name="connected")
def _connected(world: Roamer) -> Iterator[tuple[Roamer, Process]]:
    """The client reaches the server through a gateway on its cable; it has another gateway on the LAN."""
    client = world.client
    client.ip("address add 198.51.100.7/24 dev eth1")
    world.lan.ip("address add 198.51.100.1/24 dev eth0")
    world.server.ip("address add 203.0.113.10/32 dev office0")
    client.ip("route add default via 192.0.2.1 metric 100")
    far = client_config(server="http://203.0.113.10:8080/ip")
    with (
        running(world.server, server_config(listen="203.0.113.10"), name="hub"),
        running(client, far, "--log-level", "debug", until=UPLOADING) as daemon,
    ):
        wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)
        touch(client, daemon)
        assert RENEWED not in daemon.log  # not even right after the start
        yield world, daemon
        assert daemon.running


def touch(client: Host, daemon: Process) -> None:
    """A change that concerns nothing, until it has been ignored."""
    for verb in ("add", "del") * 5:
        begun = daemon.log_end
        client.ip(f"address {verb} 198.51.100.250/24 dev eth1")
        pattern = f"198.51.100.250 (?:added|removed)({IGNORED}|{RENEWED})"
        ignored = daemon.wait_for_log(pattern, PATIENCE_S, after=begun)[1] == IGNORED
        if ignored and verb == "del":
            return
    pytest.fail("the streams are renewed each time")


@only_ipv4  # the transport is; tests/netns/test_outside_ipv6.py has the other
def test_changes_of_other_links_renew_nothing(connected: tuple[Roamer, Process]) -> None:
    world, daemon = connected
    client = world.client
    renewed, uploads = daemon.log.count(RENEWED), daemon.log.count(UPLOADING)

    def step(pattern: str, *lines: str) -> None:
        begun = daemon.log_end
        for line in lines:
            client.ip(line)
        daemon.wait_for_log(f"{pattern}.*{IGNORED}", PATIENCE_S, after=begun)

    client.ip("link add docker0 type bridge")
    step("docker0: address 172.17.0.1 added", "link set docker0 up", "address add 172.17.0.1/16 dev docker0")
    for number in range(4):  # a container that comes and goes
        client.ip(f"link add veth{number} type veth peer name in{number}")
        client.ip(f"link set in{number} up")
        client.ip(f"link set veth{number} master docker0")
        begun = daemon.log_end
        client.ip(f"link set veth{number} up")
        if number:  # the bridge is up without a port until the first one goes
            daemon.wait_for_log(f"docker0 is up.*{IGNORED}", PATIENCE_S, after=begun)
        step("docker0 is down", f"link del veth{number}")
    step("docker0: address 172.17.0.1 removed", "link del docker0")
    step("eth1: address 198.51.100.8 added", "address add 198.51.100.8/24 dev eth1")
    step("eth0: address 192.0.2.99 added", "address add 192.0.2.99/24 dev eth0")
    step("eth1: address 2001:db8:1::7 added", "address add 2001:db8:1::7/64 dev eth1 nodad")
    step("default route changed", "route add default via 198.51.100.1 metric 200")
    step("default route changed", "route add default via 198.51.100.1 metric 300")
    step("default route changed", "route del default metric 300")
    step("eth1 is down", "link set eth1 down")
    step("eth1 is up", "link set eth1 up")
    for lifetime in ("100", "50", "forever"):
        client.ip(f"address change 2001:db8:1::7/64 dev eth1 valid_lft {lifetime} preferred_lft {lifetime}")
    step("eth1: address 198.51.100.8 removed", "address del 198.51.100.8/24 dev eth1")
    wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)
    assert (daemon.log.count(RENEWED), daemon.log.count(UPLOADING)) == (renewed, uploads), daemon.tail()


@only_ipv4  # the transport is; tests/netns/test_outside_ipv6.py has the other
def test_changes_of_the_path_renew(connected: tuple[Roamer, Process]) -> None:
    world, daemon = connected
    client = world.client

    def step(pattern: str, *lines: str) -> None:
        begun = daemon.log_end
        for line in lines:
            client.ip(line)
        # The look every two seconds may come first.
        daemon.wait_for_log(f"({pattern}|the route to 203.0.113.10 changed).*{RENEWED}", PATIENCE_S, after=begun)
        wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)

    step(
        "eth0 (was down for a moment|is down)",
        "link set eth0 down",
        "link set eth0 up",
        "route add default via 192.0.2.1 metric 100",
    )
    touch(client, daemon)
    # A longer route to the server, of which the kernel does not tell us.
    begun = daemon.log_end
    client.ip("address add 192.0.2.3/24 dev eth0")
    daemon.wait_for_log(f"192.0.2.3 added{IGNORED}", PATIENCE_S, after=begun)
    step("the route to 203.0.113.10 changed", "route add 203.0.113.0/24 via 192.0.2.1 src 192.0.2.3")
    step("the route to 203.0.113.10 changed", "route del 203.0.113.0/24")
    touch(client, daemon)
    step("default route changed", "route add default via 192.0.2.1 src 192.0.2.3 metric 50")


@only_ipv4  # the transport is; tests/netns/test_outside_ipv6.py has the other
def test_a_hundred_flaps_of_docker0(connected: tuple[Roamer, Process]) -> None:
    """As fast as they come: a container that is restarted all the time."""
    world, daemon = connected
    client = world.client
    renewed = daemon.log.count(RENEWED)
    client.ip("link add docker0 type bridge")
    client.ip("address add 172.17.0.1/16 dev docker0")
    batch = client.tmp / "flaps"
    batch.write_text("link set docker0 up\nlink set docker0 down\n" * 100)
    begun = daemon.log_end
    client.run(["ip", "-batch", batch])
    client.ip("link set docker0 up")
    daemon.wait_for_log(f"docker0 is up.*{IGNORED}", PATIENCE_S, after=begun)
    assert daemon.log.count(RENEWED) == renewed, daemon.tail()
    wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)


# -- what a server does not take from its clients


def peers(host: Host) -> dict[str, Any]:
    return {it["name"]: it for it in status(host)["peers"]}


def test_a_packet_to_a_client_s_own_network_does_not_go_round(world: Roamer) -> None:
    """The client has lost the route to a network of its own, and sends everything into the tunnel."""
    client, server = world.client, world.server
    own = world("10.60.5.0/24")
    forwards(client, server)
    for name in ("all", "default"):  # else, of IPv4, the kernel sends the client a message about each of these packets
        server.sysctl(f"net.ipv4.conf.{name}.send_redirects", 0)
    config = world.hub(allowed("laptop", routes=[own]), push_routes=[OFFICE])
    with running(server, config, name="hub") as hub, running(client, client_config(), until=UPLOADING):
        wait_for_ping(client, world(IN_OFFICE), PATIENCE_S)
        before = received(client)
        assert not ping(client, world("10.60.5.9"), count=5).received
        wait_until(lambda: drops(server).get("loop") == 5, PATIENCE_S, "the drops to be counted", hub.tail)
        assert received(client) == before
        [line] = [line for line in hub.log.splitlines() if "go round in circles" in line]
        assert world("client laptop sends packets for 10.60.5.9") in line
        # An address of that network which is on this side after all.
        world.ip(server, "address add 10.60.5.1/32 dev office0")
        wait_for_ping(client, world("10.60.5.1"), PATIENCE_S)


def drops(host: Host) -> dict[str, int]:
    found: dict[str, int] = status(host)["device_drops"]
    return found


def received(host: Host) -> int:
    return int(host.ip("-s link show tun0")[0]["stats64"]["rx"]["packets"])


@pytest.mark.parametrize("when", ["before", "later"])
def test_no_client_sends_from_an_address_of_the_server(world: Roamer, when: str) -> None:
    """Any address that the machine has, on any interface, now or later; a packet to another client never meets the
    kernel, which would refuse it."""
    client, server, spoofed = world.client, world.server, world("198.51.100.99")
    theirs, alone, within = world("10.10.0.3"), world("198.51.100.99/32"), world("198.51.100.99/24")
    config = world.hub(allowed("laptop"), allowed("second", "10.10.0.3"))
    second = client_config("second", name="tun1")
    client.ip(f"address add {alone} dev lo")
    if when == "before":
        server.ip(f"address add {within} dev office0")
    other = world.lan  # the second client is elsewhere
    client.ip("address add 192.0.3.1/24 dev eth1")
    other.ip("address add 192.0.3.2/24 dev eth0")
    other.ip("route add default via 192.0.3.1")
    client.sysctl("net.ipv4.ip_forward", 1)
    server.ip("route add 192.0.3.0/24 via 192.0.2.2")
    with (
        running(server, config, name="hub") as hub,
        running(client, client_config(), until=UPLOADING),
        running(other, {**second, "name": "tun0"}, until=UPLOADING, name="second"),
    ):
        wait_for_ping(client, theirs, PATIENCE_S)

        def passes() -> bool:
            before = received(other)
            ping(client, theirs, source=spoofed, wait=0.2)
            return received(other) > before

        if when == "later":
            wait_until(passes, PATIENCE_S, "the packets from nobody's address", hub.tail)
            server.ip(f"address add {within} dev office0")

        def is_dropped() -> bool:
            before = received(other)
            count = peers(server)["laptop"]["drops"].get("bad-source", 0)
            ping(client, theirs, source=spoofed, wait=0.2)
            return peers(server)["laptop"]["drops"].get("bad-source", 0) == count + 3 and received(other) == before

        wait_until(is_dropped, PATIENCE_S, "them to be dropped", hub.tail)
        wait_for_ping(client, theirs, PATIENCE_S)
        server.ip(f"address del {within} dev office0")
        wait_until(passes, PATIENCE_S, "them to pass again", hub.tail)
