"""IPv6 at one end or outside only: servers and clients with one family, and a transport over IPv6."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final

import pytest

from tests.basepeer import sha1
from tests.harness import ROOT, Host, Lab, capture, no_leaks, ping, upload, wait_for_ping, wait_until
from tests.packets import ipv6

from .dual import (
    HUB,
    LAPTOP,
    NETS,
    PLANES,
    addresses_6,
    advertising,
    drops,
    dual_cable,
    dual_client,
    dual_config,
    forwards,
    rules_6,
    send_raw,
    status,
)
from .topologies import (
    PROTOCOL,
    SERVER,
    UPLOADING,
    addresses,
    client_config,
    device_to,
    has_interface,
    routes,
    running,
    token,
)

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
MARK: Final = {"value": 100, "table": 100}
ONLY_6: Final = dual_config(dual_client(ip=LAPTOP[1:])) | {"net": NETS[1]}


# A server without IPv4


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_server_with_ipv6_only(lab: Lab, plane: str, transport: str) -> None:
    server, client = dual_cable(lab)
    until = UPLOADING if transport == "http" else "WebSocket from"
    config = client_config(transport=transport, mark=MARK)
    with (
        no_leaks(server, client),
        running(server, ONLY_6, env=PLANES[plane]),
        running(client, config, until=until, env=PLANES[plane]) as daemon,
    ):
        assert ping(client, HUB[1]).ok
        assert ping(server, LAPTOP[1]).ok
        assert (addresses(client, "tun0"), addresses_6(client)) == ([], [f"{LAPTOP[1]}/64"])
        assert rules_6(client) == [(100, "100", PROTOCOL)]
        assert routes(client, "100") == set()
        assert "WARNING" not in daemon.log


@pytest.mark.parametrize("net", [NETS, NETS[1]])
def test_a_base_client_without_an_ipv4_address(lab: Lab, net: str | list[str]) -> None:
    """It is refused, by 406 and one line, however often it comes: by a server with IPv6 only, and by one with both
    whose entry for the client has IPv6 only."""
    server, client = dual_cable(lab)
    argv = [sys.executable, "-m", "tests.basepeer", "client", f"http://{SERVER}:8080/ip", token("laptop")]
    config = dual_config(dual_client(ip=LAPTOP[1:])) | {"net": net}
    with running(server, config) as daemon:
        with client.start([*argv, "--tun", "tun0", "--generation", "2"], name="base-client", cwd=ROOT) as peer:
            peer.wait_for_log("406", PATIENCE_S)
            peer.kill()
        for _ in range(3):
            answer = client.run(
                ["curl", "-sS", "-i", "-m", "10", "-H", f"x-api-key: {token('laptop')}", f"http://{SERVER}:8080/ip"]
            ).stdout
            assert answer.startswith("HTTP/1.1 406 "), answer
            assert "x-tun-conf" not in answer.lower()
        (line,) = [line for line in daemon.log.splitlines() if "refused" in line]
        assert "IPv6 only" in line
        assert status(server)["peers"][0]["state"] != "connected"


@pytest.mark.parametrize("generation", [1, 2])
def test_a_base_client_at_a_server_of_both_families(lab: Lab, generation: int) -> None:
    """It has IPv4, and not a byte of IPv6 reaches it."""
    server, client = dual_cable(lab)
    arguments = [f"http://{SERVER}:8080/ip", token("laptop"), "--tun", "tun0", "--generation", str(generation)]
    with (
        running(server, dual_config(peers=generation)),
        client.start([sys.executable, "-m", "tests.basepeer", "client", *arguments], name="base", cwd=ROOT) as peer,
        capture(client, "eth0", "tcp port 8080") as packets,
    ):
        peer.wait_for_log("READY", PATIENCE_S)
        assert ping(client, HUB[0]).ok
        send_raw(server, ipv6(HUB[1], LAPTOP[1], b"not for a base peer"))
        wait_until(lambda: drops(server)["not-ipv4"] == 1, PATIENCE_S, "the packet to be dropped")
        assert ping(server, LAPTOP[0]).ok
        assert not any(b"not for a base peer" in packet.data for packet in packets.packets)
        peer.stop(10)
        assert "VIOLATION" not in peer.log, peer.tail()


def test_a_base_server(lab: Lab) -> None:
    """Our client offers IPv6, gets none, and sends none, but for its ping to an address that its tun0 is told by hand;
    that is dropped and counted."""
    server, client = dual_cable(lab)
    entry = f"{sha1(token('laptop'))}:{LAPTOP[0]}"
    arguments = ["--net", NETS[0], "--tun", "tun0", "--client", entry, "--generation", "2"]
    with (
        server.start([sys.executable, "-m", "tests.basepeer", "server", *arguments], name="base", cwd=ROOT) as peer,
        capture(client, "eth0", "tcp port 8080") as packets,
    ):
        peer.wait_for_log("READY", PATIENCE_S)
        with running(client, client_config(), until=UPLOADING) as daemon:
            assert ping(client, HUB[0]).ok
            assert addresses_6(client) == []
            client.ip("-6 route add fd00:10::/64 dev tun0")
            send_raw(client, ipv6(LAPTOP[1], HUB[1], b"not for a base peer"))
            wait_until(lambda: drops(client)["not-ipv4"] >= 1, PATIENCE_S, "the packet to be dropped")
            assert ping(client, HUB[0]).ok
            assert not any(b"not for a base peer" in packet.data for packet in packets.packets)
            assert "IPv6" not in daemon.log
        peer.stop(10)
        assert "VIOLATION" not in peer.log, peer.tail()


def test_a_client_whose_tunnel_takes_all_of_ipv4_says_so_once(lab: Lab) -> None:
    """Not all of IPv6 goes into the tunnel then. With IPv6 switched off, there is nothing to say of that."""
    server, client = dual_cable(lab)
    outside = "other IPv6 packets with that mark go outside of it"
    with running(server, dual_config(dual_client(ip=LAPTOP[:1])) | {"net": NETS[0]}, "--log-level", "debug") as hub:
        with running(client, client_config(mark=MARK, rotate_s=[0.5, 1]), until=UPLOADING) as daemon:
            wait_until(lambda: hub.log.count("ended cleanly") >= 3, PATIENCE_S, "rotations", hub.tail)
            (line,) = [line for line in daemon.log.splitlines() if outside in line]
            assert " WARNING " in line
            assert "of packets with mark 100 all of IPv4 goes into the tunnel" in line
        client.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        with running(client, client_config(mark=MARK), until=UPLOADING) as daemon:
            assert outside not in daemon.log


@pytest.mark.parametrize("has_default_route", [True, False])
def test_a_client_whose_tunnel_takes_all_of_ipv6_says_so_once(lab: Lab, has_default_route: bool) -> None:
    """Not all of IPv4 goes into the tunnel then. Without a default route of IPv4, there is nothing to say of that."""
    server, client = dual_cable(lab)
    if has_default_route:
        client.ip(f"route add default via {SERVER}")
    with (
        running(server, ONLY_6, "--log-level", "debug") as hub,
        running(client, client_config(mark=MARK, rotate_s=[0.5, 1]), until=UPLOADING) as daemon,
    ):
        wait_until(lambda: hub.log.count("ended cleanly") >= 3, PATIENCE_S, "rotations", hub.tail)
        lines = [line for line in daemon.log.splitlines() if "other IPv4 packets with that mark go outside" in line]
        assert [" WARNING " in line for line in lines] == [True] * has_default_route, daemon.tail()


def test_a_mark_of_both_families_and_a_push_of_all_of_ipv4(lab: Lab) -> None:
    """Packets with the mark do not leak. Those without it do: their IPv6 goes outside."""
    server, client = dual_cable(lab)
    with (
        running(server, dual_config(push_routes=["0.0.0.0/1", "128.0.0.0/1"])),
        running(client, client_config(mark=MARK), until=UPLOADING) as daemon,
    ):
        assert daemon.log.count("IPv6 traffic of this machine goes outside") == 1, daemon.tail()


@pytest.mark.parametrize("has_default_route", [True, False])
def test_a_push_of_all_of_ipv6_and_half_of_ipv4(lab: Lab, has_default_route: bool) -> None:
    """The tunnel's own route is none by which IPv4 packets go outside, also when it is there already."""
    server, client = dual_cable(lab)
    if has_default_route:
        client.ip(f"route add default via {SERVER}")
    push = ["::/1", "8000::/1", "128.0.0.0/1"]
    with (
        running(server, dual_config(push_routes=push), "--log-level", "debug") as hub,
        running(client, client_config(rotate_s=[0.5, 1]), until=UPLOADING) as daemon,
    ):
        wait_until(lambda: hub.log.count("ended cleanly") >= 3, PATIENCE_S, "rotations", hub.tail)
        lines = [line for line in daemon.log.splitlines() if "IPv4 traffic of this machine goes outside" in line]
        assert [" WARNING " in line for line in lines] == [True] * has_default_route, daemon.tail()


# A client without IPv6


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("scope", ["all", "default"])
def test_a_client_whose_kernel_has_ipv6_switched_off(lab: Lab, plane: str, scope: str) -> None:
    """It takes IPv4, says so once, and no IPv6 is sent to it. Once it is switched on again, and the client connects
    again, it has both."""
    server, client = dual_cable(lab)
    client.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
    with running(server, dual_config(), "--log-level", "debug", env=PLANES[plane]) as server_daemon:
        with (
            no_leaks(client),
            running(client, client_config(rotate_s=[0.5, 1]), until=UPLOADING, env=PLANES[plane]) as daemon,
            capture(client, "tun0", "ip6") as packets,
        ):
            assert ping(client, HUB[0]).ok
            send_raw(server, ipv6(HUB[1], LAPTOP[1]))
            assert drops(server)["not-ipv4"] == 1
            wait_until(lambda: server_daemon.log.count("ended cleanly") >= 3, PATIENCE_S, "rotations")
            assert ping(client, HUB[0], count=1).ok
            assert (addresses(client, "tun0"), addresses_6(client)) == ([f"{LAPTOP[0]}/24"], [])
            (line,) = [line for line in daemon.log.splitlines() if "IPv6" in line]
            assert "this machine has no IPv6" in line
            assert not packets.packets
        client.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 0)
        with running(client, client_config(), until=UPLOADING, env=PLANES[plane]):
            assert ping(client, HUB[1]).ok


def test_a_client_without_ipv6_at_a_server_without_ipv4(lab: Lab) -> None:
    """It has nothing to offer that the server could use. Both say so."""
    server, client = dual_cable(lab)
    client.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    with (
        no_leaks(client),
        running(server, ONLY_6) as server_daemon,
        running(client, client_config(), until="406") as daemon,
    ):
        server_daemon.wait_for_log("IPv6 only", PATIENCE_S)
        assert not has_interface(client, "tun0")
        print(daemon.log)


# A transport over IPv6

GATE: Final = "2001:db8:1::1"
FAR_SERVER: Final = "2001:db8:5::10"
PRINTER: Final = "2001:db8:5::20"


@dataclass(frozen=True)
class World:
    """A client whose server is behind a router, and a machine next to the server that answers the tunnel only.

    ::

        client 2001:db8:1::7 --- 2001:db8:1::1 gate 2001:db8:5::1 --- server 2001:db8:5::10
                                               server 2001:db8:6::1 --- printer 2001:db8:6::20
    """

    client: Host
    gate: Host
    server: Host
    printer: Host


@pytest.fixture(name="world")
def _world(lab: Lab) -> World:
    client, gate, server, printer = (lab.host(name) for name in ("client", "gate", "server", "printer"))
    lab.link(client, "2001:db8:1::7/64", gate, f"{GATE}/64")
    lab.link(gate, "2001:db8:5::1/64", server, f"{FAR_SERVER}/64")
    lab.link(server, "2001:db8:6::1/64", printer, "2001:db8:6::20/64")
    forwards(gate, server)
    client.ip(f"-6 route add default via {GATE} metric 1024")
    server.ip("-6 route add 2001:db8:1::/64 via 2001:db8:5::1")
    printer.ip("-6 route add fd00:10::/64 via 2001:db8:6::1")
    client.hosts({"vpn.example.com": FAR_SERVER})
    wait_for_ping(client, FAR_SERVER)
    return World(client, gate, server, printer)


@pytest.mark.parametrize("name", [f"[{FAR_SERVER}]", "vpn.example.com"])
@pytest.mark.parametrize("pushes", [["::/0"], ["::/1", "8000::/1"], ["2001:db8:5::/64", "2001:db8:6::/64"]])
def test_a_push_that_covers_the_server(world: World, name: str, pushes: list[str]) -> None:
    """The transport goes on by its gateway, over a host route; everything else goes into the tunnel. Nothing of it is
    left at the end."""
    config = dual_config(listen=FAR_SERVER, push_routes=pushes, keepalive=2)
    with (
        no_leaks(world.client),
        running(world.server, config),
        running(world.client, client_config(server=f"http://{name}:8080/ip"), until=UPLOADING) as daemon,
    ):
        wait_for_ping(world.client, "2001:db8:6::20", PATIENCE_S)
        wait_until(lambda: len(host_routes(world.client)) == 1, PATIENCE_S, "the host route", daemon.tail)
        assert host_routes(world.client) == [(FAR_SERVER, GATE, "eth0")]
        assert device_to(world.client, "2001:db8:6::20") == "tun0"
        assert device_to(world.client, FAR_SERVER) == "eth0"
        # For longer than a dead path would be noticed in.
        assert ping(world.client, "2001:db8:6::20", count=30, interval=0.25).ok
        upload(world.client, world.printer, "2001:db8:6::20", 2_000_000)
        assert not re.search("silent|PINGs were not answered|broke", daemon.log), daemon.tail()
        assert f"covers {FAR_SERVER}" in daemon.log


def test_a_client_that_has_its_address_by_slaac(world: World) -> None:
    """As most have it: the gateway is a link-local address, with a lifetime, and is announced again and again. All of
    IPv6 is pushed; the announcements change nothing, and nothing is logged of them."""
    client, gate = world.client, world.gate
    client.ip("-6 route del default")
    client.ip("address del 2001:db8:1::7/64 dev eth0")
    client.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    (near,) = [each["local"] for each in gate.ip("-6 address show dev eth0")[0]["addr_info"] if each["scope"] == "link"]
    config = dual_config(listen=FAR_SERVER, push_routes=["::/0"], keepalive=2)
    with advertising(gate, "eth0", "2001:db8:1::/64"), running(world.server, config):
        wait_for_ping(client, FAR_SERVER, PATIENCE_S)
        with running(client, client_config(server=f"http://[{FAR_SERVER}]:8080/ip"), until=UPLOADING) as daemon:
            daemon.wait_for_log("ready: ")
            wait_until(lambda: len(host_routes(client)) == 1, PATIENCE_S, "the host route", daemon.tail)
            assert host_routes(client) == [(FAR_SERVER, near, "eth0")]
            begun = daemon.log_end
            with capture(client, "eth0", "icmp6 and ip6[40] == 134") as announcements:
                announcements.wait_for(3, timeout=PATIENCE_S)
            assert ping(client, "2001:db8:6::20", count=10, interval=0.2).ok
            assert host_routes(client) == [(FAR_SERVER, near, "eth0")]
            assert daemon.log_end == begun, daemon.tail()
        assert host_routes(client) == []


def test_a_killed_client_s_host_route_goes(world: World) -> None:
    """kill -9 leaves the host route behind. The next start removes it, with a line, also if it needs none."""
    config = dual_config(listen=FAR_SERVER, push_routes=["::/0"])
    entry = client_config(server=f"http://[{FAR_SERVER}]:8080/ip")
    with no_leaks(world.client):
        with running(world.server, config):
            with running(world.client, entry, until=UPLOADING) as daemon:
                wait_until(lambda: len(host_routes(world.client)) == 1, PATIENCE_S, "the host route", daemon.tail)
                daemon.kill()
            wait_until(lambda: not has_interface(world.client, "tun0"), PATIENCE_S, "tun0 to go")
            assert len(host_routes(world.client)) == 1
        with (
            running(world.server, dual_config(listen=FAR_SERVER)),
            running(world.client, entry, until=UPLOADING) as daemon,
        ):
            assert host_routes(world.client) == []
            assert f"removed host route {FAR_SERVER}" in daemon.log


def test_a_default_route_of_ipv6_and_a_transport_over_ipv4(lab: Lab) -> None:
    """The other family needs no exception; and the transport over IPv4 carries all of IPv6."""
    server, client = dual_cable(lab)
    server.ip("address add 2001:db8:7::7/128 dev lo")
    with (
        no_leaks(client),
        running(server, dual_config(push_routes=["::/0"])),
        running(client, client_config(), until=UPLOADING),
    ):
        wait_for_ping(client, "2001:db8:7::7", PATIENCE_S)
        assert host_routes(client) == []


def host_routes(host: Host) -> list[tuple[str, str, str]]:
    """Host routes of ours past the interface, of all tables: address, gateway, device."""
    return [
        (route["dst"], route.get("gateway", ""), route["dev"])
        for route in host.ip("-6 -N route show table all")
        if route.get("protocol") == PROTOCOL and "/" not in route["dst"] and route["dev"] != "tun0"
    ]
