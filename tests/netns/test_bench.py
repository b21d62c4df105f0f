"""The tools of the bench do what its numbers rest on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import load, offload
from bench.native import UDPFLOOD, compiled
from bench.scaling.crowd import Point, world
from bench.scaling.fakeclients import PER_CHUNK
from bench.variants import Relay, Tapotun, TapotunTls, Variant
from tests.harness import Lab

pytestmark = pytest.mark.netns

CRELAY = Path(__file__).with_name("crelay.c")


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(UDPFLOOD, tmp_path_factory.mktemp("flood"))


@pytest.mark.parametrize("flows", [1, 8])
def test_every_datagram_is_counted_once(lab: Lab, flood: Path, flows: int) -> None:
    variant = Variant(lab)
    variant.prepare()
    variant.start()
    run = load.udp(flood, variant, 64, 2000, 0.5, flows)
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


@pytest.mark.parametrize("kind", ["veth", "relay", "http", "https"])
def test_each_way_comes_up_again_and_carries_everything(lab: Lab, tmp_path: Path, flood: Path, kind: str) -> None:
    makers = {"veth": Variant, "http": Tapotun, "https": TapotunTls}
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
            assert load.tcp(variant, seconds=1, source=variant.behind).gb > 0, "forwarded"
            assert load.pings_under_load_us(variant, "-R", seconds=1, every_s=0.01)
        assert load.udp(flood, variant, 64, 1000, 0.2).loss < 1
        assert len(load.pings_us(variant, 20, 0.002)) == 20
        if isinstance(variant, TapotunTls):
            assert load.curl_gbit_s(variant, 1) > 0
            assert "gcm" in load.negotiated_cipher(variant) or "chacha" in load.negotiated_cipher(variant)
    finally:
        variant.close()


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
