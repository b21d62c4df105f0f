"""A WebSocket in place of GET and PUT, through nginx: chosen where uploads are held back, given up where they are not
any more, and as good as the two while it lasts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.harness import Host, Lab, Process, download, nginx_proxy, no_leaks, ping, upload, wait_for_ping, wait_until
from tests.integrity import CheckedTcp, CheckedUdp

from .drop_counter import DROP_COUNTER, PORT, dropped
from .injection import injected
from .test_life_rotation import EXTENT_S, ROTATE_S, rotations
from .topologies import SERVER, TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

URL = "http://vpn.example.com/ip"
WEBSOCKET = "WebSocket from "
"""What a client logs when it has one, in place of `UPLOADING`."""

# Promised are 3 s without an UPLOAD_SEEN, and a handshake. The rest is for a slow machine.
SWITCH_S = 4.0 + 3.0


@contextmanager
def server_behind(lab: Lab, **fields: Any) -> Iterator[tuple[Host, Host, Process]]:
    """A server that waits for its proxy, and the client's machine."""
    server, client = cable(lab)
    with running(server, server_config(listen="127.0.0.1", **fields), "--log-level", "debug") as daemon:
        yield server, client, daemon


def warnings(daemon: Process) -> list[str]:
    return [line for line in daemon.log.splitlines() if " WARNING " in line]


def test_a_proxy_that_holds_uploads_back_until_it_is_repaired(lab: Lab) -> None:
    config = client_config(server=URL, rotate_s=[4, 5])
    with server_behind(lab, keepalive=2) as (server, client, server_daemon), ExitStack() as stack:
        with nginx_proxy(server, websocket=True, request_buffering=True):
            daemon = stack.enter_context(running(client, config, "--log-level", "debug", until=UPLOADING))
            begun = time.monotonic()
            daemon.wait_for_log(WEBSOCKET, SWITCH_S)
            print(f"\nWebSocket after {time.monotonic() - begun:.1f} s")
            server_daemon.wait_for_log("over a WebSocket")
            wait_for_ping(client, TUNNEL_SERVER)
            assert upload(client, server, TUNNEL_SERVER, 20_000_000).gbit_s > 0
            assert download(client, server, TUNNEL_SERVER, 20_000_000).gbit_s > 0
            # HTTP is tried when it is time for another WebSocket, at no packet's cost.
            with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=200) as udp:
                for _ in range(2):
                    daemon.wait_for_log("uploads are still held back", 15, after=daemon.log_end)
                ways = udp.finish()
            for way in ways:
                assert way.faultless, way
            (warning,) = warnings(daemon)
            for words in ("holds the upload back", "proxy_request_buffering off", "WebSocket"):
                assert words in warning
            at = daemon.log_end
        with nginx_proxy(server, websocket=True):  # as it should be
            daemon.wait_for_log(WEBSOCKET, 20, after=at)  # what is known to pass comes first
            wait_for_ping(client, TUNNEL_SERVER)
            with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=200) as udp:
                daemon.wait_for_log(UPLOADING, 20, after=at)
                at = daemon.log_end
                daemon.wait_for_log(UPLOADING, 20, after=at)  # and so it stays
                ways = udp.finish()
            for way in ways:
                assert way.faultless, way
            assert WEBSOCKET not in daemon.log[at:]
            assert sum("holds the upload back" in it for it in warnings(daemon)) == 1
            daemon.stop()


def test_stays_with_http_where_no_websocket_passes_either(lab: Lab) -> None:
    """It says so once, and asks for no more WebSockets for some time."""
    with (
        server_behind(lab, keepalive=2) as (server, client, server_daemon),
        nginx_proxy(server, request_buffering=True),
        running(client, client_config(server=URL, rotate_s=[4, 5]), "--log-level", "debug", until=UPLOADING) as daemon,
    ):
        found = daemon.wait_for_log("WebSocket does not pass either .*", SWITCH_S)
        assert "proxy_set_header Upgrade" in found[0]
        at = daemon.log_end
        for _ in range(3):
            daemon.wait_for_log("upload to ", 10, after=daemon.log_end)
        assert "WebSocket" not in daemon.log[at:]
        assert len(warnings(daemon)) == 1, daemon.log
        assert server_daemon.log.count("WebSocket from") == 2  # it begins, and ends


def test_a_proxy_that_lets_uploads_pass_sees_no_websocket(lab: Lab) -> None:
    with (
        server_behind(lab, keepalive=1) as (server, client, server_daemon),
        nginx_proxy(server, websocket=True),
        running(client, client_config(server=URL, rotate_s=[1, 2]), "--log-level", "debug", until=UPLOADING) as daemon,
    ):
        for _ in range(4):
            daemon.wait_for_log("upload to ", 10, after=daemon.log_end)
        assert warnings(daemon) == []
        assert "WebSocket" not in daemon.log + server_daemon.log


@pytest.mark.parametrize("way", ["direct", "nginx"])
def test_rotations_of_a_websocket_under_full_load(lab: Lab, way: str) -> None:
    """As with HTTP (test_life_rotation): TCP as fast as it goes, and beside it not one packet lost, twice, or late."""
    server, client = cable(lab)
    with ExitStack() as stack:
        if way == "nginx":
            stack.enter_context(nginx_proxy(server, f"{SERVER}:8080", websocket=True))
        server_daemon = stack.enter_context(injected(server, [server_config()], DROP_COUNTER, name="tapotun"))
        server_daemon.wait_for_log("started: ")
        url = URL if way == "nginx" else f"http://{SERVER}:8080/ip"
        config = client_config(server=url, rotate_s=ROTATE_S, transport="websocket")
        daemon = stack.enter_context(injected(client, [config], DROP_COUNTER, name="tapotun"))
        daemon.wait_for_log(WEBSOCKET)
        wait_for_ping(client, TUNNEL_SERVER)
        with (
            CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=500, port=PORT) as udp,
            CheckedTcp(client, server, TUNNEL_SERVER) as tcp,
        ):
            for process in (it for it in lab.processes if it not in (tcp.a.process, tcp.b.process)):
                os.setpriority(os.PRIO_PROCESS, process.pid, -10)
            before = rotations(server_daemon)
            wait_until(lambda: rotations(server_daemon) - before >= 30, 120, "30 rotations", udp.tail)
            bytes_moved = sum(tcp.finish())
            ways = udp.finish()
        for process in (daemon, server_daemon):
            process.stop()
    for it, sender in zip(ways, (daemon, server_daemon), strict=True):
        assert it.lost == dropped(sender), it
        assert (it.duplicated, it.corrupted) == (0, 0), it
        assert it.late_s < EXTENT_S, it
    assert bytes_moved > 0
    for process in (server_daemon, daemon):
        assert warnings(process) == []


def test_a_websocket_that_is_kept_alive_and_ended(lab: Lab) -> None:
    """Either end says why it goes, nothing of theirs stays, and the other one comes back."""
    server, client = cable(lab)
    config = client_config(transport="websocket")
    with running(server, server_config(keepalive=1), name="tapotun") as first:
        with running(client, config, until=WEBSOCKET) as daemon:
            wait_for_ping(client, TUNNEL_SERVER)
            with no_leaks(fds_of=[first, daemon], settle_s=5):
                time.sleep(5)  # longer than a stream without answers lives
            assert ping(client, TUNNEL_SERVER).ok
            assert first.log.count("connected from") == 1
        first.wait_for_log("the client ends the session: the client is shutting down")
        with running(client, config, until=WEBSOCKET) as daemon:
            at = daemon.log_end
            assert first.stop() == 0
            daemon.wait_for_log("the server ends the session: the server is shutting down", after=at)
            with running(server, server_config()):
                daemon.wait_for_log(WEBSOCKET, 15, after=at)
                wait_for_ping(client, TUNNEL_SERVER)
