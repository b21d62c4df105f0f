"""A tunnel over a path that loses packets, on hosts that prefer cubic: which congestion control its streams use.

The path is the bench's road (bench/streams/road.c), which loses and delays IP packets and needs no netem.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from bench.native import compiled
from bench.streams.cell import ROAD
from bench.streams.plan import Cell
from bench.streams.world import SERVER, wire
from tapotun_trio.datapath.congestion import LOSSES
from tests.harness import Host, Lab, Process, wait_until

from .test_backlog import has
from .topologies import TUNNEL_SERVER, UPLOADING, Tunnel, client_config, running, server_config

pytestmark = pytest.mark.netns

UNTIL_S: Final = 90.0  # four losses take 2 s; the rest is for a slow machine, whose queues hide some of them
LOSES: Final = r"the path to \S+ loses packets \("
REFUSED: Final = r"the path to \S+ loses packets, and BBR would carry more over it, but "


@contextmanager
def tunnel_over(lab: Lab, cell: Cell, directory: Path, *, locked: bool = False) -> Iterator[Tunnel]:
    """A tunnel over that path. `locked`: the routes allow no other congestion control than cubic."""
    server, road, client = (lab.host(name) for name in ("server", "road", "client"))
    wire(lab, cell, compiled(ROAD, directory), 17, server, road, client)
    if locked:
        client.ip("route replace default via 198.51.100.1 congctl lock cubic")
        server.ip("route replace default via 192.0.2.254 congctl lock cubic")
    with (
        running(server, server_config(), "--log-level", "debug") as server_daemon,
        running(client, client_config(), "--log-level", "debug", until=UPLOADING) as client_daemon,
    ):
        yield Tunnel(server, client, server_daemon, client_daemon)


@contextmanager
def flow(client: Host, server: Host, address: str, *, port: int = 5201, down: bool = False) -> Iterator[None]:
    """One TCP flow, for as long as the block runs."""
    with server.start(["iperf3", "-s", "-1", "-p", str(port), "-B", address], name="iperf3-s") as listening:
        server.wait_for_listener(port, by=listening)
        argv = ["iperf3", "-c", address, "-p", str(port), "-t", "600", "-i", "0", *(["-R"] if down else [])]
        with client.start(argv, name="iperf3") as sending:
            yield
            sending.check_running()


def sender(tunnel: Tunnel, *, down: bool) -> tuple[str, int]:
    """The congestion control of the stream that carries the load, and how many segments it has sent again."""
    host, end = (tunnel.server, "sport") if down else (tunnel.client, "dport")
    told = host.run(["ss", "-tinH", end, "=", ":8080"]).stdout
    streams = [
        (int(sent), name, int(again or 0))
        for name, sent, again in re.findall(
            r"^\s+(\w+) wscale:.* bytes_sent:(\d+).*?(?:retrans:\d+/(\d+)|$)", told, re.M
        )
    ]
    _, name, again = max(streams)
    return name, again


def test_both_streams_change_to_bbr(lab: Lab, tmp_path: Path) -> None:
    with tunnel_over(lab, Cell(40, 1.0, "cubic", proxy=False), tmp_path) as joined, ExitStack() as stack:
        for down, daemon in ((False, joined.client_daemon), (True, joined.server_daemon)):
            stack.enter_context(flow(joined.client, joined.server, TUNNEL_SERVER, port=5201 + down, down=down))
            if has("bbr"):
                wait_until(lambda: sender(joined, down=down)[0] == "bbr", UNTIL_S, "BBR")  # noqa: B023
                daemon.wait_for_log(LOSES)
                assert not re.search(REFUSED, daemon.log)
            else:
                daemon.wait_for_log(f"{REFUSED}this kernel has no BBR", UNTIL_S)
                assert sender(joined, down=down)[0] == "cubic"


def test_a_full_link_is_shared_with_cubic(lab: Lab, tmp_path: Path) -> None:
    """All losses are those of a full queue, which a flow of the host's own fills too."""
    cell = Cell(40, 0.0, "cubic", proxy=False, mbit_s=20, queue_ms=15)
    with (
        tunnel_over(lab, cell, tmp_path) as joined,
        flow(joined.client, joined.server, TUNNEL_SERVER),
        flow(joined.client, joined.server, SERVER, port=5301),
    ):
        losing_seconds, before, deadline = 0, 0, time.monotonic() + UNTIL_S
        while losing_seconds < 3 * LOSSES:
            assert time.monotonic() < deadline, losing_seconds
            time.sleep(1)
            name, again = sender(joined, down=False)
            assert name == "cubic"
            losing_seconds, before = losing_seconds + (again > before), again
        assert not re.search(LOSES, joined.client_daemon.log)


def test_a_route_may_forbid_it(lab: Lab, tmp_path: Path) -> None:
    """Each end says so, for the direction that it sends."""
    if not has("bbr"):
        return  # then `test_both_streams_change_to_bbr` has seen what is said
    with tunnel_over(lab, Cell(40, 1.0, "cubic", proxy=False), tmp_path, locked=True) as joined, ExitStack() as stack:
        ends: list[tuple[bool, Process]] = [(False, joined.client_daemon), (True, joined.server_daemon)]
        for down, daemon in ends:
            stack.enter_context(flow(joined.client, joined.server, TUNNEL_SERVER, port=5201 + down, down=down))
            daemon.wait_for_log(f"{REFUSED}it is not allowed: see net.ipv4.tcp_allowed", UNTIL_S)
            assert sender(joined, down=down)[0] == "cubic"
        for _, daemon in ends:
            assert len(re.findall(REFUSED, daemon.log)) == 1
