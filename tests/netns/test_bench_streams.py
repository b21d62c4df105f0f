"""What `make bench-streams` rests on: its road delays and loses IP packets, and flows are spread over pairs."""

from __future__ import annotations

import re
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from bench.native import compiled
from bench.streams.cell import ROAD, measure_cell
from bench.streams.measure import REQUEST_EVERY_S, REQUEST_FLOWS
from bench.streams.plan import PAIRS, Cell, Plan, loads_of
from bench.streams.world import SERVER, World, counts, ends, interfaces, wire
from tests.harness import Host, Lab, Process, ping, tcp_echo, udp_echo, upload

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(ROAD, tmp_path_factory.mktemp("road"))


def laid(lab: Lab, cell: Cell, program: Path) -> tuple[Host, Host, Process]:
    """A server and a client, and the process of the road between them."""
    server, between, client = (lab.host(name) for name in ("server", "road", "client"))
    return server, client, wire(lab, cell, program, 1, server, between, client)


def test_packets_are_late_and_lost_each_way(lab: Lab, program: Path) -> None:
    _, client, road = laid(lab, Cell(20, 10.0, "cubic", proxy=False), program)
    found = ping(client, SERVER, count=500, interval=0.002, wait=2)
    assert found.min_ms is not None
    assert found.min_ms >= 20
    seen = counts(road)
    assert 500 - found.received <= seen["up"]["lost"] + seen["down"]["lost"]
    for way in seen.values():
        # Six sigma of a binomial distribution.
        assert abs(way["lost"] - 0.1 * way["packets"]) < 6 * (way["packets"] * 0.1 * 0.9) ** 0.5, seen
        assert way["overflow"] == way["refused"] == 0, seen


def test_losses_can_come_together(lab: Lab, program: Path) -> None:
    _, client, road = laid(lab, Cell(2, 20.0, "cubic", proxy=False, burst=8.0), program)
    argv = ["ping", "-n", "-c", "1500", "-i", "0.002", "-W", "1", SERVER]
    done = client.run(argv, check=False, timeout=60)
    arrived = [int(number) for number in re.findall(r"icmp_seq=(\d+)", done.stdout)]
    gaps = [after - before - 1 for before, after in pairwise(arrived) if after - before > 1]
    seen = counts(road)
    for way in seen.values():  # the same share as without bursts, only more by chance
        assert 0.1 < way["lost"] / way["packets"] < 0.3, seen
    # With independent losses, of 36 % for both ways together, the mean gap would be 1.6.
    assert sum(gaps) / len(gaps) > 4, gaps


def test_a_queue_that_is_full_drops(lab: Lab, program: Path) -> None:
    """1 Mbit/s has a queue of 50 ms, which is four packets."""
    _, client, road = laid(lab, Cell(2, 0.0, "cubic", proxy=False, mbit_s=1), program)
    argv = ["ping", "-n", "-c", "50", "-l", "50", "-s", "1400", "-W", "1", SERVER]
    done = client.run(argv, check=False, timeout=30)
    seen = counts(road)
    assert seen["up"]["overflow"] > 0
    assert seen["up"]["lost"] == 0
    assert done.stdout.count("icmp_seq=") <= 50 - seen["up"]["overflow"]


def test_tcp_repairs_what_the_road_loses(lab: Lab, program: Path) -> None:
    """Packets are lost, not bytes of a stream: `upload` checks what arrives."""
    server, client, road = laid(lab, Cell(4, 2.0, "cubic", proxy=False), program)
    upload(client, server, SERVER, 3_000_000, timeout=120)
    assert counts(road)["up"]["lost"] > 0


def sent(host: Host) -> dict[str, int]:
    """Packets that the host has sent through each of its tunnel interfaces."""
    return {
        link["ifname"]: link["stats64"]["tx"]["packets"]
        for link in host.ip("-s link show")
        if link["ifname"].startswith("tun")
    }


def busiest(before: dict[str, int], after: dict[str, int]) -> str:
    return max(after, key=lambda name: after[name] - before[name])


def test_flows_are_spread_over_the_pairs_and_each_keeps_to_its_own(lab: Lab, program: Path) -> None:
    with World(lab, Cell(4, 0.0, "cubic", proxy=False), program, 1) as world:
        server, client = ends(PAIRS)
        used = set()
        with udp_echo(world.server, server) as port:
            for own in range(40000, 40032):
                pair = world.pair_of(world.client, "udp", (client, own), (server, port))
                used.add(pair)
                before = sent(world.client)
                with world.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    sock.bind((client, own))
                    sock.connect((server, port))
                    for _ in range(10):
                        sock.send(b"x")
                        sock.recv(1)
                assert busiest(before, sent(world.client)) == pair
        assert used == set(interfaces(PAIRS))
        with tcp_echo(world.server, server) as port:
            for own in range(41000, 41008):
                pair = world.pair_of(world.client, "tcp", (client, own), (server, port))
                before = sent(world.client)
                with world.client.socket() as sock:
                    sock.settimeout(5)
                    sock.bind((client, own))
                    sock.connect((server, port))
                    for _ in range(10):
                        sock.sendall(b"x")
                        sock.recv(1)
                assert busiest(before, sent(world.client)) == pair
        one_server, one_client = ends(1)
        for own in range(40000, 40008):
            assert world.pair_of(world.client, "tcp", (one_client, own), (one_server, 5201)) == "tun0"


@pytest.mark.parametrize("proxy", [False, True])
def test_every_load_of_a_cell_is_measured(program: Path, proxy: bool) -> None:
    """With a little loss, so that a request now and then may be lost, but nothing is slow."""
    cell = Cell(10, 0.1, "cubic", proxy)
    plan = Plan((cell,), rounds=1, warm_up_s=1, measured_s=1)
    found = measure_cell(cell, plan, program, 1)
    assert not found.failures
    assert set(found.runs) == set(loads_of(cell, 0))
    for load, runs in found.runs.items():
        (run,) = runs
        assert run is not None
        assert run.mbit_s > 0
        assert run.every.count == REQUEST_FLOWS / REQUEST_EVERY_S
        assert run.every.median >= 10
        assert run.cores > 0
        assert 1 <= run.used <= min(PAIRS, load.flows)
        if load.pairs < PAIRS:
            assert run.used == 1
            assert run.beside is None
        else:
            # The kernel's hash says which requests share the load's pair: none of them at times, or all.
            assert run.beside is None or 0 < run.beside.count <= run.every.count
    assert found.road["up"]["lost"] > 0
    assert found.gain(8, down=True) is not None
