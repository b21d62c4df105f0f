"""Both families: who reaches whom, what is refused, and what stands in the kernel's tables before, meanwhile and
afterwards."""

from __future__ import annotations

import json
import signal
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, capture, command, no_leaks, ping, tapotun, wait_for_ping, wait_until
from tests.integrity import CheckedUdp
from tests.packets import ipv6

from .dual import (
    BEHIND,
    BRANCH,
    HUB,
    LAPTOP,
    NETS,
    PLANES,
    SERVER_6,
    THIRD,
    addresses_6,
    drops,
    dual,
    dual_cable,
    dual_client,
    dual_config,
    routes_6,
    rules_6,
    send_raw,
)
from .topologies import (
    PROTOCOL,
    STOP_S,
    UPLOADING,
    Config,
    addresses,
    client_config,
    has_interface,
    mark_rules,
    routes,
    running,
)

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
MARK: Final = {"value": 100, "table": 100}
LAST: Final = b"the last"


# Who reaches whom


@pytest.mark.parametrize("plane", PLANES)
def test_everyone_reaches_everyone(lab: Lab, plane: str) -> None:
    with dual(lab, env=PLANES[plane]) as it:
        for source, targets in (
            (it.server, (LAPTOP, BRANCH, THIRD)),
            (it.laptop, (HUB, BRANCH)),
            (it.branch, (HUB, LAPTOP, THIRD)),
            (it.third, (HUB, LAPTOP, BRANCH)),
        ):
            for address in (each for target in targets for each in target):
                assert ping(source, address).ok, f"{address} from {source.name}"
        assert addresses(it.laptop, "tun0") == [f"{LAPTOP[0]}/24"]
        assert addresses_6(it.laptop) == [f"{LAPTOP[1]}/64"]  # and nothing link-local
        assert addresses_6(it.server) == [NETS[1]]
        assert (BEHIND[1], PROTOCOL) in routes_6(it.branch)
        assert (BEHIND[1], PROTOCOL) in routes_6(it.server)


def test_longest_prefix_wins(lab: Lab) -> None:
    """fd00:60::/32 is the laptop's, fd00:60:5::/48 in the midst of it the branch's; from wherever it comes."""
    clients = [dual_client(routes=["fd00:60::/32"]), dual_client("branch", BRANCH, routes=["fd00:60:5::/48"])]
    with dual(lab, clients=clients, push_routes=[]) as it:
        it.laptop.ip("address add fd00:60:6::1/128 dev lo")
        it.branch.ip("address add fd00:60:5::1/128 dev lo")
        it.branch.ip("-6 route add fd00:60::/32 dev tun0")
        it.laptop.ip("-6 route add fd00:60:5::/48 dev tun0")
        for host, address in (
            (it.server, "fd00:60:6::1"),
            (it.server, "fd00:60:5::1"),
            (it.laptop, "fd00:60:5::1"),
            (it.branch, "fd00:60:6::1"),
        ):
            assert ping(host, address).ok, f"{address} from {host.name}"


def test_a_pinned_source_and_further_addresses_of_the_server(lab: Lab) -> None:
    """What comes from the device with that source goes to the client, wherever it is for; what has another one, to
    nobody. `ips` are the server's own, too."""
    server, client = dual_cable(lab)
    pinned, other, anywhere = "2001:db8:cc::5", "2001:db8:cc::6", "2001:db8:ee::1"
    config = dual_config(dual_client(sources=[pinned]), ips=["10.10.0.254", "fd00:10::fe"])
    with (
        no_leaks(server, client),
        running(server, config),
        running(client, client_config(), until=UPLOADING),
        capture(client, "tun0", f"dst {anywhere}") as packets,
    ):
        server.ip("-6 route add 2001:db8:ee::/48 dev tun0")
        send_raw(server, *(ipv6(source, anywhere, LAST) for source in (other, pinned)))
        packets.wait_for()
        assert [str(packet.source) for packet in packets.packets] == [pinned]
        assert drops(server)["no-route"] == 1
        for address in ("10.10.0.254", "fd00:10::fe"):
            assert ping(client, address).ok
        server.ip("-6 route del 2001:db8:ee::/48 dev tun0")


SPOOFED: Final = {"fd00:60::9", "2001:db8:9::9", BRANCH[1], HUB[1]}
"""Of the laptop's network, nobody's, another client's, and the server's."""


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("source_check", "passed"),
    [("strict", {"fd00:60::9"}), ("loose", {"fd00:60::9", "2001:db8:9::9"}), ("off", SPOOFED)],
)
def test_a_source_that_is_not_the_client_s(lab: Lab, plane: str, source_check: str, passed: set[str]) -> None:
    """What does not pass is counted, each packet. Twice, since the second time the answer is remembered."""
    server, client = dual_cable(lab)
    config = dual_config(dual_client(routes=BEHIND), dual_client("branch", BRANCH), source_check=source_check)
    with (
        running(server, config, env=PLANES[plane]),
        running(client, client_config(), until=UPLOADING, env=PLANES[plane]),
        capture(server, "tun0", f"dst {HUB[1]}") as packets,
    ):
        for _ in range(2):
            send_raw(client, *(ipv6(source, HUB[1]) for source in sorted(SPOOFED)))
        send_raw(client, ipv6(LAPTOP[1], HUB[1], LAST))
        packets.wait_for(1, lambda packet: packet.data.endswith(LAST))
        assert {str(packet.source) for packet in packets.packets} == passed | {LAPTOP[1]}
        assert drops(server)["bad-source"] == 2 * len(SPOOFED - passed)


# What stays on its link


@pytest.mark.parametrize("plane", PLANES)
def test_what_stays_on_its_link(lab: Lab, plane: str) -> None:
    """Link-local and multicast packets do not leave either end, are counted, and nothing is logged of them."""
    server, client = dual_cable(lab)
    with (
        running(server, dual_config(), env=PLANES[plane]) as server_daemon,
        running(client, client_config(), until=UPLOADING, env=PLANES[plane]) as client_daemon,
    ):
        for host, own, sink, to in ((client, LAPTOP[1], server, HUB[1]), (server, HUB[1], client, LAPTOP[1])):
            host.ip("-6 route add fe80::/64 dev tun0")
            for daemon in (server_daemon, client_daemon):
                daemon.wait_for_log("ready: ")
            near = [(own, "ff02::1"), (own, "ff05::2"), (own, "fe80::1"), ("fe80::2", to)]
            lengths = [daemon.log_end for daemon in (server_daemon, client_daemon)]
            before = drops(host)["link-local"]
            with capture(sink, "tun0", "ip6") as packets:
                for _ in range(2):  # the second time the answer is remembered
                    send_raw(host, *(ipv6(source, destination) for source, destination in near))
                send_raw(host, ipv6(own, to, LAST))
                packets.wait_for(1, lambda packet: packet.data.endswith(LAST))
                arrived = [packet for packet in packets.packets if str(packet.destination) != own]
                assert [packet.data[40:] for packet in arrived] == [LAST]
            assert drops(host)["link-local"] - before >= 2 * len(near)
            assert [daemon.log_end for daemon in (server_daemon, client_daemon)] == lengths


# The mark


def test_the_mark_in_both_families(lab: Lab) -> None:
    """Marked packets go into the tunnel, others do not; rules and routes of each family come and go with it."""
    server, client = dual_cable(lab)
    far = ("198.51.100.7", "2001:db8:7::7")
    server.ip(f"address add {far[0]}/32 dev lo")
    server.ip(f"address add {far[1]}/128 dev lo")
    client.ip("route add default via 192.0.2.1")
    client.ip(f"-6 route add default via {SERVER_6}")
    with (
        no_leaks(server, client),
        running(server, dual_config()),
        running(client, client_config(mark=MARK), until=UPLOADING) as daemon,
        capture(server, "tun0", "icmp6 or icmp") as packets,
    ):
        # Not one family first, and a warning that the other one goes outside.
        assert "WARNING" not in daemon.log, daemon.tail()
        assert "changed" not in daemon.log, daemon.tail()
        assert f"address {LAPTOP[0]}/24, {LAPTOP[1]}/64" in daemon.log
        assert mark_rules(client) == rules_6(client) == [(100, "100", PROTOCOL)]
        assert routes(client, "100") == {("default", "tun0", PROTOCOL)}
        assert routes_6(client, table="100") == {("default", PROTOCOL)}
        for address in far:
            assert ping(client, address, count=2, mark=100).ok
            packets.wait_for(4, lambda packet: address in (str(packet.source), str(packet.destination)))  # noqa: B023
        before = len(packets.packets)
        for address in far:
            assert ping(client, address, count=2).ok
        assert len(packets.packets) == before


def test_two_interfaces_with_one_mark(lab: Lab) -> None:
    """Each has its own rule and its own default route in the table, of each family; each takes along only these."""
    server, _ = dual_cable(lab)
    second = dual_config(
        dual_client("x", ("10.11.0.2", "fd00:11::2")),
        name="tun1",
        port=8081,
        mark={**MARK, "mask": "0xff"},
    ) | {"net": ["10.11.0.1/24", "fd00:11::1/64"]}

    def defaults() -> set[str]:
        return {name for name in ("tun0", "tun1") if ("default", PROTOCOL) in routes_6(server, name, "100")}

    with no_leaks(server), running(server, dual_config(mark=MARK)):
        with running(server, second):
            assert rules_6(server) == mark_rules(server) == [(100, "100", PROTOCOL)] * 2
            assert defaults() == {"tun0", "tun1"}
        assert rules_6(server) == mark_rules(server) == [(100, "100", PROTOCOL)]
        assert defaults() == {"tun0"}


# A changed config


class Hub:
    """A server whose file can be written anew."""

    def __init__(self, server: Host) -> None:
        self.server = server
        self.file = server.tmp / "hub.json"
        self.file.touch(mode=0o600)

    def write(self, config: Config) -> None:
        self.file.write_text(json.dumps([config]), encoding="utf-8")

    def reload(self, config: Config) -> None:
        self.write(config)
        self.server.run([*command(), "reload"], timeout=PATIENCE_S)


def test_a_reload_adds_and_removes_a_family(lab: Lab) -> None:
    """IPv6 comes and goes while IPv4 is used. The client follows by itself."""
    server, client = dual_cable(lab)
    hub = Hub(server)
    only_4 = dual_config(dual_client(ip=LAPTOP[:1])) | {"net": NETS[0]}
    both = dual_config(mark=MARK)
    hub.write(only_4)
    with (
        no_leaks(server, client),
        running(server, hub.file),
        running(client, client_config(mark=MARK), until=UPLOADING) as daemon,
    ):
        for _ in range(2):
            assert addresses_6(client) == []
            assert rules_6(client) == rules_6(server) == []
            hub.reload(both)
            wait_for_ping(client, HUB[1], PATIENCE_S)
            wait_for_ping(client, HUB[0], PATIENCE_S)
            assert ping(server, LAPTOP[1]).ok
            assert rules_6(client) == rules_6(server) == [(100, "100", PROTOCOL)]
            hub.reload(only_4)
            wait_until(lambda: addresses_6(client) == [], PATIENCE_S, "the address to go", daemon.tail)
            wait_until(lambda: rules_6(client) == [], PATIENCE_S, "the rule to go", daemon.tail)
            wait_for_ping(client, HUB[0], PATIENCE_S)
            assert ping(server, LAPTOP[0]).ok


def test_a_reload_replaces_ipv4_by_ipv6(lab: Lab) -> None:
    server, client = dual_cable(lab)
    hub = Hub(server)
    only_4 = dual_config(dual_client(ip=LAPTOP[:1])) | {"net": NETS[0]}
    only_6 = dual_config(dual_client(ip=LAPTOP[1:])) | {"net": NETS[1]}
    hub.write(only_4)
    with (
        no_leaks(server, client),
        running(server, hub.file),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        for config, address, none in ((only_6, HUB[1], addresses), (only_4, HUB[0], lambda host, _: addresses_6(host))):
            hub.reload(config)
            wait_for_ping(client, address, PATIENCE_S)
            wait_until(lambda: none(client, "tun0") == [], PATIENCE_S, "the other family to go", daemon.tail)  # noqa: B023


# After a kill


def _settings(host: Host) -> dict[str, Any]:
    return {
        "addresses": (addresses(host, "tun0"), addresses_6(host)),
        "rules": (mark_rules(host), rules_6(host)),
        "routes": (routes(host), routes_6(host), routes(host, "100"), routes_6(host, table="100")),
    }


def test_killed_and_started_again(lab: Lab) -> None:
    """kill -9 leaves rules of both families behind, which outlive the interface. The next start with the same mark has
    what the one before had, and its end leaves nothing."""
    server, client = dual_cable(lab)
    with no_leaks(server, client), running(server, dual_config(push_routes=["2001:db8:77::/48"])):
        with running(client, client_config(mark=MARK), until=UPLOADING) as daemon:
            usual = _settings(client)
            daemon.kill()
        wait_until(lambda: not has_interface(client, "tun0"), STOP_S, "tun0 to go")
        assert rules_6(client) == mark_rules(client) == [(100, "100", PROTOCOL)]
        with running(client, client_config(mark=MARK), until=UPLOADING):
            assert _settings(client) == usual
        assert rules_6(client) == mark_rules(client) == []


@pytest.mark.parametrize("family", [0, 1])
def test_killed_and_started_again_with_one_family(lab: Lab, family: int) -> None:
    """The rule of the family that the interface no longer has goes, too."""
    server, client = dual_cable(lab)
    hub = Hub(server)
    hub.write(dual_config())
    with no_leaks(server, client), running(server, hub.file):
        with running(client, client_config(mark=MARK), until=UPLOADING) as daemon:
            daemon.kill()
        hub.reload(dual_config(dual_client(ip=(LAPTOP[family],))) | {"net": NETS[family]})
        with running(client, client_config(mark=MARK), until=UPLOADING):
            assert len(mark_rules(client) + rules_6(client)) == 1
        assert rules_6(client) == mark_rules(client) == []


@pytest.mark.parametrize("plane", PLANES)
def test_killed_while_packets_flow(lab: Lab, plane: str) -> None:
    """Either end is killed and started again while checked packets of both families go both ways: none comes twice or
    changed, and each family flows again."""
    server, client = dual_cable(lab)
    env = PLANES[plane]
    with no_leaks(server, client):
        server_daemon = tapotun(server, [dual_config()], env=env)
        client_daemon = tapotun(client, [client_config()], env=env)
        with (
            CheckedUdp(client, LAPTOP[0], server, HUB[0], rate=300, port=7000) as of_ipv4,
            CheckedUdp(client, LAPTOP[1], server, HUB[1], rate=300, port=7001) as of_ipv6,
        ):
            for udp in (of_ipv4, of_ipv6):
                udp.wait_for_flow(timeout=PATIENCE_S)
            for number in range(6):
                if number % 2:
                    server_daemon.kill()
                    server_daemon = tapotun(server, [dual_config()], env=env)
                else:
                    client_daemon.kill()
                    client_daemon = tapotun(client, [client_config()], env=env)
                for udp in (of_ipv4, of_ipv6):
                    udp.wait_for_flow(timeout=PATIENCE_S)
            ways = [*of_ipv4.finish(), *of_ipv6.finish()]
        for daemon in (client_daemon, server_daemon):
            assert daemon.stop(STOP_S) == 0, daemon.tail()
    for way in ways:
        assert (way.duplicated, way.corrupted) == (0, 0), way


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_kernel_s_tables_are_as_before(lab: Lab, end: signal.Signals) -> None:
    """Also at the server, with routes to the networks behind its clients."""
    server, client = dual_cable(lab)
    config = dual_config(dual_client(routes=[*BEHIND, "2001:db8:60::/48"]), mark=MARK)
    with no_leaks(server, client):
        if end == signal.SIGKILL:
            with running(server, config) as daemon:
                daemon.kill()
            wait_until(lambda: not has_interface(server, "tun0"), STOP_S, "tun0 to go")
        with running(server, config), running(client, client_config(), until=UPLOADING):
            assert {(BEHIND[1], PROTOCOL), ("2001:db8:60::/48", PROTOCOL)} <= routes_6(server)
            assert rules_6(server) == [(100, "100", PROTOCOL)]


def test_rules_and_routes_of_others_stay(lab: Lab) -> None:
    """Same mark, same table: what an administrator or another program has put there is never touched."""
    server, _ = dual_cable(lab)
    server.ip("-6 rule add fwmark 100 table 100 priority 500")
    server.ip("-6 rule add fwmark 100 table 100 priority 11600 protocol 42")
    server.ip("-6 route add 2001:db8:99::/48 dev eth0 table 100 protocol static")
    server.ip("-6 route add default dev eth0 table 100 metric 5000")
    with no_leaks(server):
        for end in (signal.SIGKILL, signal.SIGTERM):
            with running(server, dual_config(mark=MARK)) as daemon:
                assert len(rules_6(server)) == 3
                assert routes_6(server, table="100") == {("default", PROTOCOL)}
                daemon.stop(STOP_S, with_signal=end)
            wait_until(lambda: not has_interface(server, "tun0"), STOP_S, "tun0 to go")


def test_a_route_that_is_not_ours_is_not_replaced(lab: Lab) -> None:
    server, _ = dual_cable(lab)
    server.ip(f"-6 route add {BEHIND[1]} dev eth0 metric 1")
    with no_leaks(server), running(server, dual_config(dual_client(routes=BEHIND)), until=None) as daemon:
        assert daemon.wait(10) == 1
        (line,) = daemon.log.splitlines()
        assert BEHIND[1] in line
        assert "eth0" in line
