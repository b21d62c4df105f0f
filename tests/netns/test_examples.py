"""The files of conf/examples, as they are shipped: each behaves as docs/config.md says."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.harness import (
    EXAMPLES,
    Host,
    Lab,
    capture,
    command,
    download,
    nginx_proxy,
    no_leaks,
    ping,
    udp_echo,
    udp_exchange,
    upload,
    wait_for_ping,
)

from .dual import addresses_6, forwards, routes_6, rules_6
from .segments import make_bridge, ports
from .topologies import (
    PROTOCOL,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Corp,
    addresses,
    cable,
    corp,
    has_interface,
    mark_rules,
    mtu,
    routes,
    running,
)

pytestmark = pytest.mark.netns

MARK = 100
ELSEWHERE = "198.51.100.7"  # no config knows it
FAR = (ELSEWHERE, "2001:db8:9::7")
PINNED = "192.168.100.10"


@pytest.mark.parametrize("file", sorted(path.name for path in EXAMPLES.iterdir()))
def test_it_is_valid(lab: Lab, file: str) -> None:
    done = lab.host("machine").run([*command(), "validate-config", EXAMPLES / file])
    assert "error" not in done.stdout


# 1 and 2: minimal


def test_minimal_server_and_client(lab: Lab) -> None:
    server, client = cable(lab)
    with no_leaks(server, client):
        with (
            running(server, EXAMPLES / "server-minimal.json") as daemon,
            nginx_proxy(server) as nginx,
            running(client, EXAMPLES / "client-minimal.json", until=UPLOADING),
            capture(client, "eth0", "ip and not tcp port 80") as beside_the_tunnel,
        ):
            assert {it for it in server.listening() if "8080" in it} == {"tcp 127.0.0.1:8080", "tcp [::1]:8080"}
            assert addresses(server, "tun0") == [f"{TUNNEL_SERVER}/24"]
            assert addresses(client, "tun0") == [f"{TUNNEL_CLIENT}/24"]
            assert mtu(server, "tun0") == mtu(client, "tun0") == 1500
            assert ping(client, TUNNEL_SERVER).ok
            assert ping(server, TUNNEL_CLIENT).ok
            upload(client, server, TUNNEL_SERVER, 10_000_000)
            download(client, server, TUNNEL_SERVER, 10_000_000)
            daemon.check_running()
            nginx.check_running()
        assert beside_the_tunnel.count() == 0


def test_either_end_may_start_first(lab: Lab) -> None:
    """A client without its server tries again, and has no interface as long as nobody has told its address."""
    server, client = cable(lab)
    with nginx_proxy(server), running(client, EXAMPLES / "client-minimal.json", until="502 Bad Gateway") as early:
        assert not has_interface(client, "tun0")
        with running(server, EXAMPLES / "server-minimal.json"):
            early.wait_for_log(UPLOADING, 15)
            assert ping(client, TUNNEL_SERVER).ok


# 3: the hub


@pytest.fixture
def hub(lab: Lab) -> Iterator[Corp]:
    """The corp world, with a plain client as client A."""
    with corp(lab) as world:
        yield world


def test_corp_addresses_mtu_and_routes(hub: Corp) -> None:
    assert addresses(hub.hub, "corp0") == ["10.50.0.1/24", "10.50.0.254/24"]
    assert addresses(hub.a, "corp0") == ["10.50.0.2/24"]
    assert addresses(hub.b, "corp0") == ["10.50.0.3/24"]
    assert {mtu(host, "corp0") for host in (hub.hub, hub.a, hub.b)} == {1400}
    for address in ("10.50.0.1", "10.50.0.254"):
        for client in (hub.a, hub.b):
            assert ping(client, address, size=1372, dont_fragment=True).ok
    through_corp0 = {(net, protocol) for net, device, protocol in routes(hub.hub) if device == "corp0"}
    assert through_corp0 == {
        ("10.50.0.0/24", "2"),  # the kernel's own, with the address
        ("10.60.0.0/24", PROTOCOL),
        ("10.61.0.0/24", PROTOCOL),
        ("10.70.0.0/24", PROTOCOL),
    }
    for address in ("10.60.0.10", "10.61.0.10", "10.70.0.10"):
        assert ping(hub.hub, address).ok


def test_corp_clients_reach_each_other_beside_the_hubs_interface(hub: Corp) -> None:
    with (
        capture(hub.hub, "corp0", snap_bytes=200) as on_the_hub,
        capture(hub.b, "corp0", "icmp", snap_bytes=200) as at_b,
    ):
        assert ping(hub.behind_a, "10.70.0.10").ok
        assert ping(hub.a, "10.50.0.3").ok
        download(hub.behind_a, hub.behind_b, "10.70.0.10", 5_000_000)
        # What is for the hub shows there, so the capture has not missed the rest.
        assert ping(hub.behind_a, "172.20.0.10", size=99).ok
        on_the_hub.wait_for(2, lambda packet: packet.length == 127)
        forwarded = at_b.wait_for(3, lambda packet: str(packet.source) == "10.60.0.10" and packet.protocol == 1)
    peers = ("10.50.0.3", "10.70.0.10")
    assert on_the_hub.count(lambda packet: str(packet.source) in peers or str(packet.destination) in peers) == 0
    # One hop less than it left with: the router in front of the tunnel. The hub is none.
    assert {packet.data[8] for packet in forwarded} == {63}


def test_corp_pinned_source_goes_to_client_a(hub: Corp) -> None:
    """A camera behind client B sends to everywhere, and all but what is the hub's own comes out at client A."""
    hub.behind_b.ip(f"address add {PINNED}/32 dev eth0")
    hub.b.ip(f"route add {PINNED}/32 dev eth1")
    hub.b.ip("rule add iif eth1 table 7")  # whatever comes from behind b goes into the tunnel
    hub.b.ip("route add default dev corp0 table 7")
    destinations = {
        ELSEWHERE: "a",
        "10.60.0.10": "a",  # by its route anyway
        "10.50.0.1": "hub",
        "10.50.0.254": "hub",
        "172.20.0.10": "hub",
    }
    with capture(hub.hub, "corp0", f"src {PINNED}") as on_the_hub, capture(hub.a, "corp0", f"src {PINNED}") as at_a:
        with hub.behind_b.socket(kind=socket.SOCK_DGRAM) as camera:
            camera.bind((PINNED, 0))
            for destination in destinations:
                camera.sendto(b"frame", (destination, 9))
        at_a.wait_for(2)
        on_the_hub.wait_for(3)
    for place, packets in (("a", at_a.packets), ("hub", on_the_hub.packets)):
        assert {str(it.destination) for it in packets} == {to for to, where in destinations.items() if where == place}


def test_corp_mark_on_the_hub(hub: Corp) -> None:
    """Only what carries fwmark 100 takes the default route of table 100."""
    assert mark_rules(hub.hub) == [(MARK, "100", PROTOCOL)]
    assert routes(hub.hub, "100") == {("default", "corp0", PROTOCOL)}
    hub.hub.ip(f"address add {PINNED}/32 dev lo")
    hub.hub.ip("route add default via 172.20.0.10")
    with (
        capture(hub.hub, "eth2", "icmp") as to_the_office,
        capture(hub.hub, "corp0", "icmp") as into_the_tunnel,
        capture(hub.a, "corp0", "icmp") as at_a,
    ):
        for mark, size in ((None, 10), (MARK + 1, 11), (MARK, 12)):
            ping(hub.hub, ELSEWHERE, count=1, size=size, wait=0.05, mark=mark, source=PINNED)
        to_the_office.wait_for(2)
        (marked,) = at_a.wait_for(1)
    assert (str(marked.source), str(marked.destination), marked.length) == (PINNED, ELSEWHERE, 20 + 8 + 12)
    sent = [packet.length for packet in into_the_tunnel.packets if str(packet.destination) == ELSEWHERE]
    assert sent == [marked.length]
    sent = [packet.length for packet in to_the_office.packets if str(packet.source) == PINNED]
    assert sorted(set(sent)) == [20 + 8 + 10, 20 + 8 + 11]


# 4: only what is marked


def test_client_takes_only_what_is_marked(lab: Lab) -> None:
    with corp(lab, a_config=EXAMPLES / "client-marked.json") as world:
        a, hub = world.a, world.hub
        for network in ("10.70.0.0/24", "172.20.0.0/16"):
            a.ip(f"route del {network} dev corp0")  # what the world adds for the other tests
        assert [it for it in routes(a) if it[1] == "corp0"] == [("10.50.0.0/24", "corp0", "2")]
        assert routes(a, "100") == {("default", "corp0", PROTOCOL)}
        assert mark_rules(a) == [(MARK, "100", PROTOCOL)]

        hub.ip(f"address add {ELSEWHERE}/32 dev lo")
        a.ip(f"route add default via {SERVER}")
        for mark, interface, source in ((MARK, "corp0", "10.50.0.2"), (None, "eth0", "192.0.2.2")):
            assert _way_of_a_ping(a, mark) == {(interface, source)}
            with udp_echo(hub, ELSEWHERE) as port, capture(a, interface, f"udp port {port}") as packets:
                assert udp_exchange(a, ELSEWHERE, port, b"marked by SO_MARK", mark=mark) == b"marked by SO_MARK"
            assert {str(it.source) for it in packets.packets} == {source, ELSEWHERE}
            upload(a, hub, ELSEWHERE, 1_000_000, mark=mark)
    assert mark_rules(a) == []


def _way_of_a_ping(host: Host, mark: int | None) -> set[tuple[str, str]]:
    """Through which interfaces, and from which address, a ping to ELSEWHERE leaves, having been answered."""

    with capture(host, "corp0", "icmp") as corp0, capture(host, "eth0", "icmp") as eth0:
        assert wait_for_ping(host, ELSEWHERE, mark=mark).ok
    return {
        (interface, str(packet.source))
        for interface, packets in (("corp0", corp0), ("eth0", eth0))
        for packet in packets.packets
        if str(packet.source) != ELSEWHERE
    }


# 5: both families


def test_dual_stack_hub_branch_and_sensor(lab: Lab) -> None:
    """The hub, the branch with its network, and a sensor that has IPv6 only. What is behind the hub reaches what is
    behind the branch, and each packet is of the family of its address."""
    names = ("hub", "branch", "sensor", "office", "behind")
    hub, branch, sensor, office, behind = (lab.host(name) for name in names)
    lab.link(hub, f"{SERVER}/24", branch, "192.0.2.2/24")
    lab.link(hub, "2001:db8:3::1/64", sensor, "2001:db8:3::2/64")
    lab.link(hub, ["10.21.0.1/16", "fd00:21::1/48"], office, ["10.21.0.10/16", "fd00:21::10/48"])
    lab.link(branch, ["10.22.0.1/24", "fd00:22::1/64"], behind, ["10.22.0.10/24", "fd00:22::10/64"])
    forwards(hub, branch)
    for host, *gateways in ((office, "10.21.0.1", "fd00:21::1"), (behind, "10.22.0.1", "fd00:22::1")):
        for gateway in gateways:
            host.ip(f"route add default via {gateway}")
    for far in FAR:
        hub.ip(f"address add {far} dev lo")
    branch.hosts({"dual.example.com": SERVER})
    of_sensor = {"name": "dual0", "server": "http://[2001:db8:3::1]/ip", "token": "test-b"}
    with (
        no_leaks(hub, branch, sensor),
        running(hub, EXAMPLES / "server-dual.json", name="tapotun-hub"),
        nginx_proxy(hub, "127.0.0.1:8082", ipv6=True),
        running(branch, EXAMPLES / "client-dual.json", until=UPLOADING, name="tapotun-branch"),
        running(sensor, of_sensor, until=UPLOADING, name="tapotun-sensor"),
    ):
        assert addresses(branch, "dual0") == ["10.20.0.2/24"]
        assert addresses_6(branch, "dual0") == ["fd00:20::2/64"]
        assert (addresses(sensor, "dual0"), addresses_6(sensor, "dual0")) == ([], ["fd00:20::3/64"])
        assert {mtu(host, "dual0") for host in (hub, branch, sensor)} == {1400}
        for host, targets in (
            (branch, ("10.20.0.1", "fd00:20::1", "fd00:20::3", "10.21.0.10", "fd00:21::10")),
            (sensor, ("fd00:20::1", "fd00:20::2", "fd00:21::10")),
            (office, ("10.22.0.10", "fd00:22::10", "fd00:20::3")),
            (behind, ("10.21.0.10", "fd00:21::10", "fd00:20::1")),
        ):
            for target in targets:
                assert ping(host, target).ok, f"{target} from {host.name}"
        for address in ("10.22.0.10", "fd00:22::10"):
            upload(office, behind, address, 3_000_000)
            download(office, behind, address, 3_000_000)
        # With the mark, anything takes the tunnel. Without it the branch has no route to there.
        for far in FAR:
            assert ping(branch, far, mark=MARK).ok
            assert not ping(branch, far, count=1).ok
        assert mark_rules(branch) == rules_6(branch) == [(MARK, "100", PROTOCOL)]
        assert routes(branch, "100") == {("default", "dual0", PROTOCOL)}
        assert routes_6(branch, "dual0", "100") == {("default", PROTOCOL)}


# 6: one Ethernet segment


def test_two_offices_as_one_segment(lab: Lab) -> None:
    """Neither end has an address. The machines behind both are neighbours, in both families; and nothing is left."""
    office, branch = lab.host("office"), lab.host("branch")
    machines = [lab.host(f"behind-{host.name}") for host in (office, branch)]
    lab.link(office, f"{SERVER}/24", branch, "192.0.2.2/24")
    branch.hosts({"segment.example.com": SERVER})
    for number, (host, machine) in enumerate(zip((office, branch), machines, strict=True), 1):
        lab.link(host, [], machine, [f"10.3.0.{number}/24", f"fd00:3::{number}/64"])
        make_bridge(host, "eth1")
    with (
        no_leaks(office, branch),
        running(office, EXAMPLES / "server-tap.json", name="tapotun-office"),
        nginx_proxy(office, "127.0.0.1:8083"),
        running(branch, EXAMPLES / "client-tap.json", until=UPLOADING, name="tapotun-branch"),
    ):
        for host in (office, branch):
            assert addresses(host, "seg0") == addresses_6(host, "seg0") == addresses(host, "br0") == []
            assert mtu(host, "seg0") == 1500
        for one, number in zip(machines, (2, 1), strict=True):
            for address in (f"10.3.0.{number}", f"fd00:3::{number}"):
                assert wait_for_ping(one, address).ok
        for address in ("10.3.0.1", "fd00:3::1"):
            upload(machines[1], machines[0], address, 3_000_000)
            download(machines[1], machines[0], address, 3_000_000)
        for host in (office, branch):
            assert ports(host) == {"eth1": "forwarding", "seg0": "forwarding"}
