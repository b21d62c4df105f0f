"""IPv6 at one end or outside only: servers and clients with one family, and a transport over IPv6."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from tests.basepeer import sha1
from tests.harness import Host, Lab, Process, no_leaks, ping, wait_for_ping, wait_until

from .dual import (
    HUB,
    LAPTOP,
    NETS,
    PLANES,
    SERVER_6,
    addresses_6,
    drops,
    dual_cable,
    dual_client,
    dual_config,
    routes_6,
    rules_6,
    status,
)
from .test_interop import _base_client
from .topologies import (
    PROTOCOL,
    SERVER,
    UPLOADING,
    Config,
    addresses,
    allowed,
    client_config,
    routes,
    running,
    token,
)

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
MARK: Final = {"value": 100, "table": 100}
ONLY_6: Final = dual_config(dual_client(ip=LAPTOP[1:])) | {"net": NETS[1]}


# A server without IPv4


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_server_with_ipv6_only(lab: Lab, plane: str, transport: str) -> None:
    server, client = dual_cable(lab)
    until = UPLOADING if transport == "http" else "WebSocket from"
    config = client_config(transport=transport, mark=MARK)
    with (
        no_leaks(server, client),
        running(server, ONLY_6, env=PLANES[plane]),
        running(client, config, until=until, env=PLANES[plane]) as daemon,
    ):
        assert ping(client, HUB[1]).ok
        assert ping(server, LAPTOP[1]).ok
        assert (addresses(client, "tun0"), addresses_6(client)) == ([], [f"{LAPTOP[1]}/64"])
        assert rules_6(client) == [(100, "100", PROTOCOL)]
        assert routes(client, "100") == set()
        assert "WARNING" not in daemon.log


@pytest.mark.parametrize("generation", [1, 2])
def test_a_base_client_at_a_server_with_ipv6_only(lab: Lab, generation: int) -> None:
    """It is refused, by 406 and one line, however often it comes; and so is one whose entry has no IPv4."""
    server, client = dual_cable(lab)
    for config in (ONLY_6, dual_config(dual_client(ip=LAPTOP[1:]))):
        with running(server, config) as daemon:
            for method in ("GET", "PUT"):
                done = client.run(
                    ["curl", "-sS", "-m", "5", "-X", method, "-H", f"Authorization: Bearer {token('laptop')}"]
                    + ["-o", "/dev/null", "-w", "%{http_code}", f"http://{SERVER}:8080/ip"]
                )
                print(done.stdout)
            argv = ["curl", "-sS", "-D", "-", "-m", "5", f"http://{SERVER}:8080/ip"]
            for _ in range(3):
                answer = client.run([*argv, *_base_headers(generation)], check=False).stdout
                assert answer.startswith("HTTP/1.1 406 "), answer
                assert "x-tun-conf" not in answer.lower()
            lines = [line for line in daemon.log.splitlines() if "refused" in line]
            assert len(lines) == 1, daemon.tail()
