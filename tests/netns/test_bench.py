"""The tools of the bench do what its numbers rest on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import load, offload, plane
from bench.compare.measure import compare, tree
from bench.compare.tools import TOOLS, Tool
from bench.congestion import look, machine_default, of_the_tunnel
from bench.errors import BenchError
from bench.native import UDPFLOOD, compiled
from bench.plan import PLANE_OFF
from bench.scaling.crowd import Point, world
from bench.scaling.fakeclients import PER_CHUNK
from bench.variants import PLANE, TUNNEL_SERVER_6, WITHOUT_PLANE, Relay, Tapotun, TapotunTap, TapotunTls, Variant
from tests.harness import Lab, wait_until

pytestmark = pytest.mark.netns

CRELAY = Path(__file__).with_name("crelay.c")


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(UDPFLOOD, tmp_path_factory.mktemp("flood"))


@pytest.mark.parametrize("flows", [1, 8])
@pytest.mark.parametrize("address", [None, "2001:db8::1"])
def test_every_datagram_is_counted_once(lab: Lab, flood: Path, flows: int, address: str | None) -> None:
    variant = Variant(lab)
    for host, number in ((variant.server, 1), (variant.client, 2)):
        host.ip(f"address add 2001:db8::{number}/64 dev eth0 nodad")
    variant.prepare()
    variant.start()
    run = load.udp(flood, variant, 64, 2000, 0.5, flows, address)
    assert (run.loss, run.duplicates, run.reordered) == (0, 0, 0)
    assert 0 < run.offered <= 2000 * 1.1
    assert run.steady > 0


def test_what_is_lost_on_the_way_is_counted_as_lost(lab: Lab, flood: Path) -> None:
    """A cable that carries 1 Mbit/s is offered 20: what its queue does not hold is gone."""
    variant = Variant(lab)
    variant.prepare()
    shaper = "tbf rate 1mbit burst 4kb limit 8kb"
    variant.client.run(["tc", "qdisc", "add", "dev", "eth0", "root", *shaper.split()])
    variant.start()
    run = load.udp(flood, variant, 1400, 1800, 0.5)
    assert run.loss > 0.5
    assert run.duplicates == 0
    # What goes through is the cable's megabit, whatever was offered: 1442 bytes a frame, and the queue.
    assert 0 < run.steady < 150


def test_offloads_are_switched_and_put_back(lab: Lab) -> None:
    variant = Variant(lab)
    before = offload.get(variant.behind, "eth0", "tso")
    with offload.switched(variant.behind, "eth0", tso=False, gso=False):
        assert not offload.get(variant.behind, "eth0", "tso")
        assert not offload.get(variant.behind, "eth0", "gso")
    assert offload.get(variant.behind, "eth0", "tso") == before


@pytest.mark.parametrize("kind", ["veth", "relay", "http", "https", "tap"])
def test_each_way_comes_up_again_and_carries_everything(lab: Lab, tmp_path: Path, flood: Path, kind: str) -> None:
    makers = {"veth": Variant, "http": Tapotun, "https": TapotunTls, "tap": TapotunTap}
    variant = Relay(lab, compiled(CRELAY, tmp_path)) if kind == "relay" else makers[kind](lab)
    assert variant.name == kind
    try:
        variant.prepare()
        variant.start()
        variant.stop()
        assert variant.start() > 0
        variant.check()
        with load.iperf_server(variant):
            run = load.tcp(variant, seconds=1)
            assert run.gb > 0
            assert len(run.cpu_s) == {"veth": 0, "https": 3}.get(kind, 2)
            if kind != "tap":  # a server with a TAP interface routes nothing
                assert load.tcp(variant, seconds=1, source=variant.behind).gb > 0, "forwarded"
            if isinstance(variant, Tapotun):
                assert load.tcp(variant, seconds=1, address=TUNNEL_SERVER_6).gb > 0
            assert load.pings_under_load_us(variant, "-R", seconds=1, every_s=0.01)
        assert load.udp(flood, variant, 64, 1000, 0.2).loss < 1
        assert len(load.pings_us(variant, 20, 0.002)) == 20
        if isinstance(variant, TapotunTls):
            assert load.curl_gbit_s(variant, 1) > 0
            assert "gcm" in load.negotiated_cipher(variant) or "chacha" in load.negotiated_cipher(variant)
    finally:
        variant.close()


def test_a_relay_uses_the_congestion_control_that_it_is_given(lab: Lab, tmp_path: Path) -> None:
    """On a machine whose default is another one; and it is what ss shows, of either end."""
    relay = Relay(lab, compiled(CRELAY, tmp_path), name="relay-told")
    assert relay.name == "relay-told"
    for host in (relay.client, relay.server):
        host.sysctl("net.ipv4.tcp_congestion_control", "reno")  # every kernel allows that one
        assert machine_default(host) == "reno"
    relay.congestion = "cubic"
    try:
        relay.prepare()
        relay.start()
        with load.iperf_server(relay):
            assert load.tcp(relay, seconds=1).congestion == "reno", "what goes through has the default"
            assert load.tcp(relay, *load.congestion_options("cubic"), seconds=1).congestion == "cubic"
            load.tcp(relay, "-R", seconds=1)
        found = look(relay)
        assert {who: set(names) for who, names in found.items()} == {"client": {"cubic"}, "server": {"cubic"}}
        relay.stop()
        relay.congestion = None
        relay.start()
        with load.iperf_server(relay):
            load.tcp(relay, seconds=1)
        assert set(of_the_tunnel(look(relay))) == {"reno"}
    finally:
        relay.close()


def test_a_tunnel_tells_what_it_uses_and_is_started_without_its_plane(lab: Lab) -> None:
    tunnel = TapotunTls(lab, name=PLANE_OFF["https"], env=WITHOUT_PLANE)
    try:
        tunnel.prepare()
        tunnel.start()
        with load.iperf_server(tunnel):
            load.tcp(tunnel, seconds=1)
            load.tcp(tunnel, "-R", seconds=1)
        found = look(tunnel)
        assert set(found) == {"client", "server", "nginx"}
        assert all(names.total() > 0 for names in found.values())
        for end in (tunnel.client_end, tunnel.server_end):
            assert end is not None
            environment = Path(f"/proc/{end.pid}/environ").read_bytes().split(b"\0")
            assert f"{PLANE}=off".encode() in environment
        assert set(plane.ask(tunnel)) == {"client", "server"}
    finally:
        tunnel.close()


def test_a_comparison_goes_on_without_what_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere(Tool):
        def start_ends(self) -> None:
            raise BenchError("nowhere is not installed: look elsewhere")

    monkeypatch.setitem(TOOLS, "openvpn", (Nowhere, TOOLS["openvpn"][1]))
    said: list[str] = []
    found = compare(1, 1, ["veth", "openvpn", "http"], said.append)
    assert found.measured == ["veth", "http"]
    assert found.absent == {"openvpn": "nowhere is not installed: look elsewhere"}
    assert found.failures == []
    assert found.missing(["veth", "openvpn", "http"]) == []
    assert found.congestion["http"], "what its connections use was seen"


def test_the_processes_of_a_tool_are_a_tree(lab: Lab) -> None:
    host = lab.host("tree")
    with host.start(["sh", "-c", "sh -c 'sleep 60 & sleep 60 & wait' & wait"]) as shell:
        wait_until(lambda: len(tree(shell.pid)) == 4, 5, "four processes")
        shell.kill()
    assert tree(shell.pid) == [shell.pid]


@pytest.mark.parametrize("keepalive_s", [None, 1.0])
def test_a_crowd_is_taken_for_clients(lab: Lab, flood: Path, keepalive_s: float | None) -> None:
    """Packets go both ways; and, with a keepalive, nobody is thought dead after three of them."""
    with world(lab, Point("a few", 4, 4), keepalive_s=keepalive_s) as it:
        (before,) = it.server.ip("-s link show tun0")
        assert it.up_us(rate=PER_CHUNK * 50, seconds=0.5) > 0
        (after,) = it.server.ip("-s link show tun0")
        assert after["stats64"]["rx"]["packets"] > before["stats64"]["rx"]["packets"]
        assert it.down_us(flood, rate=500, seconds=0.5) > 0
        if keepalive_s is not None:
            it.crowd.check_running()
            it.server.run(["sleep", str(4 * keepalive_s)])
        it.crowd.check_running()
        assert " WARNING " not in it.daemon.log, it.daemon.tail()
