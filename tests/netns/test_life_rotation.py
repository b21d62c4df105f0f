"""Each stream is replaced now and then, the new one before the old one ends. Nobody inside the tunnel may notice."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

import pytest

from tests.harness import ROOT, Lab, Process, nginx_proxy, no_leaks, wait_until
from tests.integrity import CheckedTcp, CheckedUdp, Direction

from .drop_counter import DROP_COUNTER, PORT, dropped
from .injection import injected
from .topologies import SERVER, TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

ROTATIONS = 100
# Both streams together about six a second.
ROTATE_S = [0.2, 0.4]
# TCP each way that even a busy machine carries.
SOME_BYTES_S = 2e6
# In how far packets may change places across a switch: the newer stream waits for the older one's end, for at
# most a second; beyond that, order is worth less than time.
EXTENT_S = 1.0


def rotations(server_daemon: Process) -> int:
    """How many streams have ended and been followed by another, by the server's own account."""
    return server_daemon.log.count("ended cleanly")


@pytest.mark.parametrize("load", ["full", "some"])
@pytest.mark.parametrize("way", ["direct", "nginx"])
def test_rotations_under_load(lab: Lab, way: str, load: str) -> None:
    """A checked UDP stream both ways, across rotations. Not one packet is lost, none comes twice.

    Beside TCP as fast as it goes both ways (full), a sender drops on purpose, rotation or not (CoDel, and what
    waited for 100 ms), and that can hit the checked stream: then just those may be missing that its sender says
    it dropped. Beside a load that they carry with ease (some) nothing may be missing. What the streams depend on goes
    before the load, and before whatever else this machine is doing.
    """
    server, client = cable(lab)
    proxied = way == "nginx"
    url = "http://vpn.example.com/ip" if proxied else f"http://{SERVER}:8080/ip"
    with ExitStack() as stack:
        if proxied:
            stack.enter_context(nginx_proxy(server, f"{SERVER}:8080"))
        server_daemon = stack.enter_context(injected(server, [server_config()], DROP_COUNTER, name="tapotun"))
        server_daemon.wait_for_log("started: ")
        config = client_config(server=url, rotate_s=ROTATE_S)
        client_daemon = stack.enter_context(injected(client, [config], DROP_COUNTER, name="tapotun"))
        client_daemon.wait_for_log(UPLOADING)
        with (
            CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=500, port=PORT) as udp,
            CheckedTcp(client, server, TUNNEL_SERVER, rate=0 if load == "full" else SOME_BYTES_S) as tcp,
        ):
            greedy = (tcp.a.process, tcp.b.process)
            for process in (it for it in lab.processes if it not in greedy):
                os.setpriority(os.PRIO_PROCESS, process.pid, -10)
            begun, before = time.monotonic(), rotations(server_daemon)
            wait_until(lambda: rotations(server_daemon) - before >= ROTATIONS, 120, "the rotations", udp.tail)
            seconds, count = time.monotonic() - begun, rotations(server_daemon) - before
            bytes_moved = sum(tcp.finish())
            ways = udp.finish()
        for daemon in (client_daemon, server_daemon):
            daemon.stop()
    on_purpose = (dropped(client_daemon), dropped(server_daemon))
    gbit_s = bytes_moved * 8e-9 / seconds
    print(f"\n{way}: {count} rotations in {seconds:.0f} s beside TCP with {gbit_s:.1f} Gbit/s; dropped: {on_purpose}")
    for it in ways:
        print(f"  {it}")
    for it, drops in zip(ways, on_purpose, strict=True):
        told = f"{it}\n{_when(it, client_daemon)}"
        assert it.lost == (drops if load == "full" else 0), told
        assert not it.duplicated, told
        assert not it.corrupted, told
        assert not it.reordered or it.late_s < EXTENT_S, told
    assert bytes_moved > 0
    for daemon in (server_daemon, client_daemon):
        assert " WARNING " not in daemon.log


def test_a_new_upload_waits_for_its_server(lab: Lab) -> None:
    """Behind a proxy whose upstream takes its time for each new request, the old upload carries the packets until the
    server has seen the new one."""
    server, client = cable(lab)
    relay = [sys.executable, "-m", "tests.netns.cutting_relay", "80", "8080", "1000", "1.5"]
    with (
        running(server, server_config(listen="127.0.0.1"), "--log-level", "debug") as server_daemon,
        server.start(relay, name="relay", cwd=ROOT) as slow,
    ):
        slow.wait_for_log("ready")
        config = client_config(server=f"http://{SERVER}/ip", rotate_s=[0.5, 1.0], transport="http")
        with (
            running(client, config, until=UPLOADING),
            CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=100) as udp,
        ):
            udp.wait_for_flow(timeout=20)
            before, since_ns = rotations(server_daemon), time.monotonic_ns()
            wait_until(lambda: rotations(server_daemon) - before >= 6, 60, "the rotations", udp.tail)
            until_ns = time.monotonic_ns()
            up, _ = udp.finish()
    lost, sent = up.lost_between(since_ns, until_ns), sum(since_ns < at < until_ns for at in up.sent_ns)
    assert lost <= 0.02 * sent, f"{lost} of {sent} lost: {up}"


def _when(way: Direction, daemon: Process) -> str:
    """Losses beside what the daemon logged, in seconds of the monotonic clock."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    lines = []
    for sent_ns, count in way.losses()[:20]:
        at = (sent_ns + offset_ns) // 1_000_000
        stamp = time.strftime("%H:%M:%S", time.gmtime(at / 1000)) + f".{at % 1000:03}"
        lines.append(f"{stamp} {count} lost")
    return "\n".join([*lines, daemon.tail(40)])


def test_an_idle_rotation_leaves_nothing(lab: Lab) -> None:
    """No load, many rotations: as many descriptors as before, and not a word at the level that people read."""
    server, client = cable(lab)
    with (
        running(server, server_config(), "--log-level", "debug") as server_daemon,
        running(client, client_config(rotate_s=[0.1, 0.2]), until=UPLOADING) as client_daemon,
    ):
        wait_until(lambda: rotations(server_daemon) >= 10, 20, "the first rotations")
        said = client_daemon.log
        with no_leaks(fds_of=[server_daemon, client_daemon], settle_s=5):
            wait_until(lambda: rotations(server_daemon) >= 50, 30, "50 rotations")
        assert client_daemon.log == said
        assert server_daemon.log.count(" INFO ") < 10
