"""Who gets a packet, and what the daemon writes into the kernel's tables, beyond what the examples show."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness import Host, Lab, capture, no_leaks, ping, udp_echo, udp_exchange, wait_until
from tests.packets import ipv4

from ..twins import FAMILIES, as_ipv6, twin
from .dual import SERVER_6, dual_cable
from .topologies import (
    CLIENT,
    OTHER,
    PROTOCOL,
    SERVER,
    STOP_S,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    client_config,
    has_interface,
    mark_rules,
    routes,
    running,
    server_config,
    tunnel,
)

pytestmark = pytest.mark.netns

LAPTOP = allowed("laptop", "10.10.0.2", routes=["10.60.0.0/16"])
BRANCH = allowed("branch", "10.10.0.3", routes=["10.60.5.0/24", "10.70.0.0/24"])
MARK = {"value": 100, "table": 100}


def _three(lab: Lab) -> tuple[Host, Host, Host]:
    """A server and two clients on cables of their own; both clients reach it at `SERVER`."""
    server, laptop, branch = (lab.host(name) for name in ("server", "laptop", "branch"))
    lab.link(server, f"{SERVER}/32", laptop, f"{CLIENT}/32")
    lab.link(server, f"{SERVER}/32", branch, f"{OTHER}/32")
    for host, device, peer in (
        (server, "eth0", CLIENT),
        (server, "eth1", OTHER),
        (laptop, "eth0", SERVER),
        (branch, "eth0", SERVER),
    ):
        host.ip(f"route add {peer}/32 dev {device}")
    return server, laptop, branch


def _send_raw(host: Host, *packets: bytes) -> None:
    """Have a host send packets as they are, whatever their source, through its tun0."""
    with host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tun0")
        for packet in packets:
            raw.sendto(packet, (str(socket.inet_ntoa(packet[16:20])), 0))


@contextmanager
def _udp(host: Host, address: str, port: int) -> Iterator[socket.socket]:
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        sock.settimeout(10)
        yield sock


# Between the clients


@pytest.mark.usefixtures("each_plane")
def test_two_clients_talk_to_each_other_and_to_the_server(lab: Lab) -> None:
    server, laptop, branch = _three(lab)
    with (
        running(server, server_config(LAPTOP, BRANCH)),
        running(laptop, client_config("laptop"), until=UPLOADING),
        running(branch, client_config("branch"), until=UPLOADING),
    ):
        for host in (laptop, branch):
            assert ping(host, TUNNEL_SERVER).ok
        # The server's firewall does not see what goes from one client to another: SECURITY.md, "The model".
        server.run(
            ["nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }"]
        )
        assert ping(laptop, "10.10.0.3").ok
        with udp_echo(laptop, "10.10.0.2") as port:
            assert udp_exchange(branch, "10.10.0.2", port, b"over the server") == b"over the server"


def test_longest_prefix_wins(lab: Lab) -> None:
    """10.60.0.0/16 is the laptop's, 10.60.5.0/24 in the midst of it the branch's; from wherever it comes."""
    server, laptop, branch = _three(lab)
    with (
        running(server, server_config(LAPTOP, BRANCH)),
        running(laptop, client_config("laptop"), until=UPLOADING),
        running(branch, client_config("branch"), until=UPLOADING),
    ):
        laptop.ip("address add 10.60.6.1/32 dev lo")
        branch.ip("address add 10.60.5.1/32 dev lo")
        branch.ip("route add 10.60.0.0/16 dev tun0")
        laptop.ip("route add 10.60.5.0/24 dev tun0")
        for host, address in (
            (server, "10.60.6.1"),
            (server, "10.60.5.1"),
            (laptop, "10.60.5.1"),
            (branch, "10.60.6.1"),
        ):
            assert ping(host, address).ok, f"{address} from {host.name}"


SOURCES = ("10.10.0.2", "10.60.6.9", "198.51.100.9", "10.10.0.3", "10.60.5.9", TUNNEL_SERVER)
"""In this order: the client's own address, its network, nobody's, another client's address, that one's network
inside of its own, the server's."""


@pytest.mark.parametrize(
    ("source_check", "passed"),
    [
        ("strict", {"10.10.0.2", "10.60.6.9"}),
        ("loose", {"10.10.0.2", "10.60.6.9", "198.51.100.9"}),
        ("off", set(SOURCES)),
    ],
)
def test_source_check(lab: Lab, source_check: str, passed: set[str]) -> None:
    with (
        tunnel(lab, clients=[LAPTOP, BRANCH], source_check=source_check) as it,
        capture(it.server, "tun0", f"dst {TUNNEL_SERVER}") as packets,
    ):
        _send_raw(it.client, *(ipv4(source, TUNNEL_SERVER) for source in SOURCES))
        # Order is kept, so when the last one is there, so is everything that will come.
        _send_raw(it.client, ipv4("10.10.0.2", TUNNEL_SERVER, b"the last"))
        packets.wait_for(1, lambda packet: packet.data.endswith(b"the last"))
        assert {str(packet.source) for packet in packets.packets} == passed


# In the kernel's tables


def _inside(version: int, config: Config) -> Config:
    """A server's config with this family in its tunnel; it listens as before."""
    return config if version == 4 else {**as_ipv6(config), "listen": config["listen"]}


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("install_routes", [True, False])
def test_kernel_routes_of_clients_networks(lab: Lab, install_routes: bool, version: int) -> None:
    server, _ = cable(lab)
    inside = allowed("inside", "10.10.0.4", routes=["10.10.0.128/25"])
    config = _inside(version, server_config(LAPTOP, BRANCH, inside, install_routes=install_routes))
    with no_leaks(server), running(server, config):
        found = routes(server, version=version)
        ours = {net for net, device, protocol in found if (device, protocol) == ("tun0", PROTOCOL)}
        outside_of_net = {twin(net, version) for net in ("10.60.0.0/16", "10.60.5.0/24", "10.70.0.0/24")}
        assert ours == (outside_of_net if install_routes else set())


def test_a_route_that_is_not_ours_is_not_replaced(lab: Lab) -> None:
    server, _ = cable(lab)
    server.ip("route add 10.60.0.0/16 dev eth0")
    with no_leaks(server), running(server, server_config(LAPTOP), until=None) as daemon:
        assert daemon.wait(10) == 1
        (line,) = daemon.log.splitlines()
        assert "10.60.0.0/16" in line
        assert "eth0" in line


def test_rules_and_routes_of_others_stay(lab: Lab) -> None:
    """Same mark, same table: what an administrator or another program has put there is never touched."""
    server, _ = cable(lab)
    server.ip("rule add fwmark 100 table 100 priority 500")
    server.ip("rule add fwmark 100 table 100 priority 11600 protocol 42")
    server.ip("route add 198.51.100.0/24 dev eth0 table 100 protocol static")
    server.ip("route add default dev eth0 table 100 metric 5000")
    with no_leaks(server):
        for end in (signal.SIGKILL, signal.SIGTERM):
            with running(server, server_config(mark=MARK)) as daemon:
                assert len(mark_rules(server)) == 3
                assert ("198.51.100.0/24", "eth0", "4") in routes(server, "100")
                assert ("default", "tun0", PROTOCOL) in routes(server, "100")
                daemon.stop(STOP_S, with_signal=end)
            wait_until(lambda: not has_interface(server, "tun0"), STOP_S, "tun0 to go")


def test_two_interfaces_with_one_mark(lab: Lab) -> None:
    """Each has its own rule and its own default route in the table; each takes along only these."""
    server, _ = cable(lab)
    first = server_config(mark=MARK)
    second = server_config(name="tun1", port=8081, net="10.11.0.1/24", mark=MARK, clients=[allowed("x", "10.11.0.2")])
    with no_leaks(server), running(server, first):
        with running(server, second):
            assert mark_rules(server) == [(100, "100", PROTOCOL)] * 2
            both = {("default", device, PROTOCOL) for device in ("tun0", "tun1")}
            assert routes(server, "100") == both
        assert mark_rules(server) == [(100, "100", PROTOCOL)]
        assert routes(server, "100") == {("default", "tun0", PROTOCOL)}


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_answers_to_marked_packets_pass_the_reverse_path_filter(lab: Lab, rp_filter: int) -> None:
    """Also strict mode, a distribution's default: the answers come in unmarked, and by the main table would have
    come from elsewhere."""
    server, client = cable(lab)
    server.ip("address add 198.51.100.7/32 dev lo")
    for scope in ("all", "default"):
        client.sysctl(f"net.ipv4.conf.{scope}.rp_filter", rp_filter)
    client.ip(f"route add default via {SERVER}")
    with (
        running(server, server_config()),
        running(client, client_config(mark=MARK), until=UPLOADING),
        capture(server, "tun0", "icmp") as packets,
    ):
        assert ping(client, "198.51.100.7", mark=100).ok
        packets.wait_for(6)


@pytest.mark.parametrize("version", FAMILIES)
def test_a_mask_lets_other_bits_of_the_mark_be_anothers(lab: Lab, version: int) -> None:
    """As kube-proxy's 0x4000. What is not the tunnel's goes its own way."""
    server, client = dual_cable(lab)
    far = twin("198.51.100.7", version)
    server.ip(f"address add {far} dev lo")
    client.ip(f"route add default via {SERVER if version == 4 else SERVER_6}")
    with (
        running(server, _inside(version, server_config())),
        running(client, client_config(mark={**MARK, "mask": "0xff"}), until=UPLOADING),
        capture(server, "tun0", f"host {far}") as packets,
    ):
        for mark in (0x4064, 0x64, 0xFFFF_FF64):
            assert ping(client, far, count=1, mark=mark).ok
        packets.wait_for(6)
        for mark in (0, 0x4000, 0x65, 0x164 ^ 0x64):
            assert ping(client, far, count=1, mark=mark).ok
        assert len(packets.packets) == 6


@pytest.mark.parametrize("version", FAMILIES)
def test_a_killed_runs_rule_goes_also_if_its_mask_was_another(lab: Lab, version: int) -> None:
    server, _ = cable(lab)
    masks: list[Config] = [{"mask": "0xff"}, {}, {"mask": 0xFFFF}, {"mask": "0xff"}]
    for number, mask in enumerate(masks):
        with running(server, _inside(version, server_config(mark={**MARK, **mask}))) as daemon:
            [rule] = [rule for rule in server.ip(f"-{version} rule show") if "fwmark" in rule]
            assert int(rule["fwmark"], 16) == 100
            assert int(rule.get("fwmask", "0xffffffff"), 16) == [0xFF, 0xFFFF_FFFF, 0xFFFF, 0xFF][number]
            daemon.stop(STOP_S, with_signal=signal.SIGKILL if number < len(masks) - 1 else signal.SIGTERM)
        wait_until(lambda: not has_interface(server, "tun0"), STOP_S, "tun0 to go")
    assert mark_rules(server) == mark_rules(server, 6) == []


# One client's flood and another one's packets


@pytest.mark.usefixtures("each_plane")
def test_a_flood_for_one_client_takes_nothing_from_another(lab: Lab) -> None:
    """While the server does not read, more comes for one client than an interface keeps: what comes for the other one
    then has a queue of its own."""
    server, laptop, branch = _three(lab)
    with (
        running(server, server_config(LAPTOP, BRANCH)) as daemon,
        running(laptop, client_config("laptop"), until=UPLOADING),
        running(branch, client_config("branch"), until=UPLOADING),
        _udp(server, TUNNEL_SERVER, 7000) as flooding,
        _udp(server, TUNNEL_SERVER, 7001) as quiet,
        _udp(laptop, "10.10.0.2", 7000) as flooded,
        _udp(branch, "10.10.0.3", 7001) as other,
    ):
        for sock, back, address, port in ((flooded, flooding, "10.10.0.2", 7000), (other, quiet, "10.10.0.3", 7001)):
            sock.sendto(b"hello", (TUNNEL_SERVER, port))  # the kernel now knows whose queue this flow's is
            assert back.recv(10) == b"hello"
            back.connect((address, port))
        daemon.pause()
        for _ in range(5000):
            flooding.send(b"flood")
        for number in range(10):
            quiet.send(bytes([number]))
        daemon.resume()
        assert [other.recv(10) for _ in range(10)] == [bytes([number]) for number in range(10)]
        assert flooded.recv(10) == b"flood"
