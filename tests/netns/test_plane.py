"""The plane, with real devices and streams: nothing is lost or doubled, whatever happens while it works."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Process, command, no_leaks, wait_until
from tests.integrity import CheckedTcp, CheckedUdp

from .drop_counter import DROP_COUNTER, PORT, dropped
from .dual import BEHIND, BRANCH, HUB, LAPTOP, dual_client, dual_config
from .injection import injected
from .topologies import (
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    client_config,
    running,
    server_config,
    tunnel,
)

pytestmark = pytest.mark.netns

ROUNDS: Final = 6
PHONE: Final = dual_client("phone", BRANCH)


def status(host: Host) -> dict[str, Any]:
    """What `tapotun status --json` says of the one process of this host."""
    report = json.loads(host.run([*command(), "status", "--json"]).stdout)
    (process,) = report["processes"]
    return dict(process)


def share(process: dict[str, Any]) -> float:
    """Which part of the packets the plane has moved."""
    peers = [peer for interface in process["interfaces"] for peer in interface["peers"]]
    total = sum(peer["rx_packets"] + peer["tx_packets"] for peer in peers)
    return sum(peer["plane_packets"] for peer in peers) / total if total else 0.0


def config_file(host: Host) -> Callable[[dict[str, Any]], None]:
    """Replaces the config of the daemon that `injected` has started on this host."""
    (file,) = host.tmp.glob("tapotun-*/config.json")

    def write(config: dict[str, Any]) -> None:
        newer = file.with_suffix(".new")
        newer.touch(mode=0o600)
        newer.write_text(json.dumps([config]), encoding="utf-8")
        newer.replace(file)

    return write


def reload(daemon: Process) -> None:
    """By SIGHUP, until it is done."""
    before = daemon.log.count("reload: done")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: daemon.log.count("reload: done") > before, 60, "the reload", daemon.tail)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_kills_cancellations_reloads_and_rotations_beside_full_load(lab: Lab, family: int) -> None:
    """Beside TCP as fast as it goes both ways, and a checked stream: streams are replaced several times a second, the
    config is reloaded, another client is ended by the operator, is killed, and comes back.

    Of the checked stream nothing is lost but what a queue dropped on purpose, and nothing comes twice.

    No rate is asserted, since machines differ. With `-s` it prints the rate, and the plane's share of the packets.
    """
    server, client, other = lab.host("server"), lab.host("client"), lab.host("other")
    lab.link(server, f"{SERVER}/24", client, "192.0.2.2/24")
    lab.link(server, "198.51.100.1/24", other, "198.51.100.3/24")
    both = dual_config(dual_client(), PHONE, listen="0.0.0.0")
    configs = cycle(
        [
            {**both, "push_routes": ["10.77.0.0/16", "fd00:77::/48"]},
            {**both, "clients": [dual_client(routes=BEHIND), PHONE]},
            {**both, "source_check": "strict"},
            both,
        ]
    )
    with ExitStack() as stack:
        stack.enter_context(no_leaks(server, client, other))
        server_daemon = stack.enter_context(injected(server, [both], DROP_COUNTER, name="tapotun"))
        server_daemon.wait_for_log("started: ")
        write = config_file(server)
        config = client_config(rotate_s=[0.3, 0.6])
        client_daemon = stack.enter_context(injected(client, [config], DROP_COUNTER, name="tapotun"))
        client_daemon.wait_for_log(UPLOADING)
        phone = client_config("phone", server="http://198.51.100.1:8080/ip")
        with (
            CheckedUdp(client, LAPTOP[family], server, HUB[family], rate=500, port=PORT) as udp,
            CheckedTcp(client, server, HUB[family]) as tcp,
        ):
            greedy = (tcp.a.process, tcp.b.process)
            for process in (it for it in lab.processes if it not in greedy):
                os.setpriority(os.PRIO_PROCESS, process.pid, -10)
            udp.wait_for_flow(timeout=30)
            begun, bytes_before = time.monotonic(), sum(tcp.bytes_received())
            rotations = server_daemon.log.count("ended cleanly")
            for _ in range(ROUNDS):
                with running(other, phone, until=UPLOADING, name="tapotun-phone") as victim:
                    write(next(configs))
                    reload(server_daemon)
                    server.run([*command(), "disconnect", "tun0", "phone"], timeout=60)
                    victim.signal(signal.SIGKILL)
                    victim.wait(30)
            wait_until(lambda: server_daemon.log.count("ended cleanly") - rotations >= 10, 120, "rotations", udp.tail)
            moved = [status(host) for host in (server, client)]
            bytes_moved = sum(tcp.bytes_received()) - bytes_before
            gbit_s = bytes_moved * 8 / (time.monotonic() - begun) / 1e9
            tcp.finish()
            ways = udp.finish()
        for daemon in (client_daemon, server_daemon):
            daemon.stop()
    on_purpose = (dropped(client_daemon), dropped(server_daemon))
    shares = [round(share(it), 3) for it in moved]
    print(f"\n{bytes_moved / 1e9:.1f} GB beside it, {gbit_s:.2f} Gbit/s; dropped: {on_purpose}; by the plane: {shares}")
    for way, drops in zip(ways, on_purpose, strict=True):
        assert way.lost == drops, f"{way}\n{server_daemon.tail(40)}"
        assert not way.duplicated, way
        assert not way.corrupted, way
    for found in moved:
        assert found["plane"] == {"kind": "native", "why": None}
        assert share(found) > 0.5


def test_a_client_that_is_disconnected_or_killed_under_load_comes_back(lab: Lab) -> None:
    """The operator ends the session whose packets the plane moves as fast as it goes. Then the client is killed, and
    the kernel clears away. Packets in flight are lost, none comes twice, and the TCP connection lacks no byte."""
    with (
        tunnel(lab) as it,
        CheckedUdp(it.client, TUNNEL_CLIENT, it.server, TUNNEL_SERVER, rate=500) as udp,
        CheckedTcp(it.client, it.server, TUNNEL_SERVER) as tcp,
    ):
        udp.wait_for_flow(timeout=30)
        tcp.wait_for_flow(timeout=30)
        it.server.run([*command(), "disconnect", "tun0", "laptop"], timeout=60)
        it.client_daemon.wait_for_log("disconnected by the operator")
        udp.wait_for_flow(timeout=60)
        tcp.wait_for_flow(timeout=60)
        it.client_daemon.signal(signal.SIGKILL)
        it.client_daemon.wait(30)
        with running(it.client, client_config(), until=UPLOADING, name="tapotun-again"):
            udp.wait_for_flow(timeout=60)
            tcp.wait_for_flow(timeout=60)
            ways = udp.finish()
            tcp.finish(timeout=60)
    for way in ways:
        assert not way.duplicated, way
        assert not way.corrupted, way


@pytest.mark.parametrize("off", ["by the config", "by the environment", "python"])
def test_without_the_native_plane(lab: Lab, off: str) -> None:
    """Then Python moves all packets, and says so."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, f"{SERVER}/24", client, "192.0.2.2/24")
    value = "python" if off == "python" else "off"
    env = {} if off == "by the config" else {"TAPOTUN_PLANE": value}
    root = {"plane": "off"} if off == "by the config" else {}
    with ExitStack() as stack:
        for host, config, until in ((server, server_config(), "started: "), (client, client_config(), UPLOADING)):
            file = host.tmp / "root.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps({"interfaces": [config], **root}), encoding="utf-8")
            daemon = stack.enter_context(host.start([*command(), str(file)], name="tapotun", env=env))
            daemon.wait_for_log(until)
        with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=200) as udp:
            udp.wait_for_flow(timeout=30)
            ways = udp.finish()
        found = status(client)
        text = client.run([*command(), "status"]).stdout
    assert all(way.faultless for way in ways)
    assert share(found) == 0
    why = 'the config says "plane": "off"' if root else f"TAPOTUN_PLANE={value} is set"
    assert found["plane"] == {"kind": value, "why": why}
    assert f"{value}: {why}" in " ".join(text.split())


def test_a_setting_that_is_none(lab: Lab) -> None:
    """The program does not start: the plane might be one that was to be off."""
    server = lab.host("server")
    lab.link(server, f"{SERVER}/24", lab.host("client"), "192.0.2.2/24")
    file = server.tmp / "root.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([server_config()]), encoding="utf-8")
    with server.start([*command(), str(file)], name="tapotun", env={"TAPOTUN_PLANE": "of"}) as daemon:
        assert daemon.wait(timeout=60) == 1
        text = daemon.tail(100)
    assert 'the environment variable TAPOTUN_PLANE is "of": set it to auto, off or python, or unset it' in text
    assert "Traceback" not in text
