"""Servers with a low limit of open files: strangers that want them all, and an interface with many queues."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, command, ping, wait_until

from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, allowed, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

LIMIT: Final = 64
STRANGERS: Final = 200
PATIENCE_S: Final = 60.0


@contextmanager
def strangers(host: Host, ports: tuple[int, ...]) -> Iterator[list[int]]:
    """STRANGERS silent connections to each port, each made again as soon as it is closed. Yields a count of them."""
    over = threading.Event()
    made = [0]

    def hold() -> None:
        held: dict[int, socket.socket] = {}
        while not over.wait(0.01):
            for number in range(STRANGERS):
                if number in held and not _is_closed(held[number]):
                    continue
                with suppress(KeyError):
                    held.pop(number).close()
                with suppress(OSError):  # the backlog is full
                    held[number] = host.socket()
                    held[number].settimeout(0.1)
                    held[number].connect((SERVER, ports[number % len(ports)]))
                    made[0] += 1
        for sock in held.values():
            sock.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_client_a_status_and_the_panel_get_through(lab: Lab) -> None:
    server, client = cable(lab)
    config = {
        "interfaces": [server_config(allowed("laptop"))],
        "admin": {"listen": f"{SERVER}:9433", "token": "sha256:" + "0" * 64},
    }
    file = server.tmp / "server.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(config), encoding="utf-8")
    argv = ["prlimit", f"--nofile={LIMIT}:{LIMIT}", *command(), str(file)]
    with server.start(argv, name="tapotun", cwd=ROOT) as daemon:
        daemon.wait_for_log("started: ")
        with strangers(client, (8080, 9433)) as made:
            wait_until(lambda: made[0] >= 2 * STRANGERS, PATIENCE_S, "the strangers", daemon.tail)
            for _ in range(3):
                assert "interface: tun0" in server.run([*command(), "status"], timeout=PATIENCE_S).stdout
            with running(client, client_config(), until=None) as client_daemon:
                client_daemon.wait_for_log(UPLOADING, PATIENCE_S)
                assert ping(client, TUNNEL_SERVER).ok
                assert "state:      connected" in server.run([*command(), "status"], timeout=PATIENCE_S).stdout
                health = server.run(["curl", "-sS", f"http://{SERVER}:9433/healthz"], timeout=PATIENCE_S).stdout
                assert health == "ok\n"
            assert sum(daemon.fds().values()) <= LIMIT
        assert daemon.stop() == 0


@pytest.mark.parametrize("limit", [32, 64])
def test_a_server_with_many_clients_starts(lab: Lab, limit: int) -> None:
    """Its queues leave descriptors for a client, and for a reload."""
    server, client = cable(lab)
    clients = [allowed("laptop"), *(allowed(f"c{number}", f"10.10.0.{number}") for number in range(10, 50))]
    file = server.tmp / "server.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([server_config(*clients)]), encoding="utf-8")
    argv = ["prlimit", f"--nofile={limit}:{limit}", *command(), str(file)]
    with server.start(argv, name="tapotun", cwd=ROOT) as daemon:
        daemon.wait_for_log("ready: tun0")
        assert Counter(daemon.fds())["/dev/net/tun"] == max(limit // 8, 1)
        with running(client, client_config(), until=UPLOADING):
            assert ping(client, TUNNEL_SERVER).ok
            assert server.run([*command(), "reload"]).stdout == "the config has not changed\n"
        assert daemon.stop() == 0
