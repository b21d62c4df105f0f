"""A tunnel over a slow link that TCP fills: others' packets still get through in time.

What is asserted is queueing, which the link causes: tens of milliseconds, whatever the machine has to do besides.
Run with ``-s`` for the table.
"""

from __future__ import annotations

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Lab, iperf3, wait_for_ping, wait_until

from .slow_link import PAYLOAD_SHARE, UnderLoad, plain_relay, slow_link, under_load
from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

LINK_MBIT_S = 20
DEFAULT = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text("ascii").strip()


def has(congestion: str) -> bool:
    """Whether this kernel has it, loaded or as a module: asked by root, it loads one."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        except FileNotFoundError:
            return False
    return True


def measure(lab: Lab, name: str, congestion: str, *, relay: bool = False) -> dict[str, UnderLoad]:
    """Both directions, each printed as a row of the table."""
    server, client = slow_link(lab, mbit_s=LINK_MBIT_S, congestion=congestion)
    rows: dict[str, UnderLoad] = {}
    with ExitStack() as stack:
        if relay:
            stack.enter_context(plain_relay(server, client, congestion))
        else:
            stack.enter_context(running(server, server_config()))
            stack.enter_context(running(client, client_config(), until=UPLOADING))
        for way in ("up", "down"):
            rows[way] = under_load(server, client, down=way == "down")
            print(f"{name:28} {way:4} {rows[way]}")
    return rows


def test_a_full_link_keeps_its_latency(lab: Lab) -> None:
    print(f"\n{LINK_MBIT_S} Mbit/s, 40 ms, 128 KiB queue: median, 95 %, max added to a ping; lost; one TCP stream")
    relay = measure(lab, "plain relay, cubic", "cubic", relay=True)
    for congestion in (it for it in ("cubic", "bbr") if has(it)):
        for way, row in measure(lab, f"tapotun, host has {congestion}", congestion).items():
            assert row.median_ms < 30, (congestion, way, row)
            assert row.p95_ms < 60, (congestion, way, row)
            # Without a tunnel TCP gets PAYLOAD_SHARE of the link; a tunnel has headers within headers.
            assert row.mbit_s > 0.6 * PAYLOAD_SHARE * LINK_MBIT_S, (congestion, way, row)
            assert row.median_ms < relay[way].median_ms / 4, (congestion, way, row, relay[way])
            assert row.mbit_s > 0.9 * relay[way].mbit_s, (congestion, way, row, relay[way])


def test_bbr_does_not_pause_a_flow_that_the_link_has_room_for(lab: Lab) -> None:
    """BBR shows its pause, 200 ms and its first one after 10 s, as a window of one time what the path holds."""
    if not has("bbr"):
        return  # and nobody's host prefers it
    server, client = slow_link(lab, mbit_s=LINK_MBIT_S, congestion="bbr")
    flow = ("-u", "-b", "6M", "-l", "1200")
    gains: dict[str, list[float]] = {"up": [], "down": []}
    with (
        running(server, server_config()),
        running(client, client_config(), until=UPLOADING),
        ThreadPoolExecutor(2) as pool,
    ):
        wait_for_ping(client, TUNNEL_SERVER)
        flows = [
            pool.submit(iperf3, client, server, TUNNEL_SERVER, *flow, seconds=14),
            pool.submit(iperf3, client, server, TUNNEL_SERVER, *flow, "-R", seconds=14, port=5202),
        ]
        while not all(it.done() for it in flows):
            for way, (sender, end) in {"up": (client, "dst"), "down": (server, "src")}.items():
                told = sender.run(["ss", "-tinH", end, SERVER]).stdout
                gains[way] += map(float, re.findall(r" bbr .*cwnd_gain:([\d.]+)", told))
            time.sleep(0.05)
    for way, it in zip(gains, flows, strict=True):
        lost = it.result().lost_percent
        print(f"{way:4} 6 Mbit/s for 14 s: {lost:.3f} % lost; BBR's window, of what the path holds: {set(gains[way])}")
        assert len(gains[way]) > 10, way
        assert 1.0 not in gains[way], way


@pytest.mark.parametrize("by_route", [True, False])
def test_on_a_short_path_bbr_is_left_for_cubic(lab: Lab, by_route: bool) -> None:
    """By route it has begun before anybody is asked; where it is the machine's default it never does. Where neither
    prefers it, what the machine prefers is kept."""
    server, client = cable(lab)
    if by_route and has("bbr"):
        for host in (server, client):
            host.ip("route replace 192.0.2.0/24 dev eth0 congctl bbr")
    preferred = "bbr" if by_route and has("bbr") else DEFAULT
    expected = "cubic" if preferred == "bbr" else preferred
    with running(server, server_config()), running(client, client_config(), until=UPLOADING):
        wait_for_ping(client, TUNNEL_SERVER)

        def chosen() -> dict[str, list[str]]:
            told = {
                it: it.run(["ss", "-tinH", "sport", "8080", "or", "dport", "8080"]).stdout for it in (server, client)
            }
            return {it.name: re.findall(r"^\s+(\w+) wscale:", text, re.MULTILINE) for it, text in told.items()}

        if not by_route and preferred == "bbr":
            assert "bbr" not in [name for names in chosen().values() for name in names]
        wait_until(lambda: all(expected in names for names in chosen().values()), 20, expected)
        print(chosen())
        assert all(len(names) == 2 for names in chosen().values())
