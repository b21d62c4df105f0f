"""Proxies that refuse a request, as real ones do: what a client says of it, and how its packets get through."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import pytest

from tests.harness import Host, Lab, Process, upload, wait_for_ping
from tests.harness.recipes import NAME, RECIPES

from .topologies import TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 60.0
WEBSOCKET: Final = "WebSocket from "
PASS: Final = "proxy_pass http://127.0.0.1:8080;"
UPSTREAM: Final = "upstream tapotun {{ {} server 127.0.0.1:8080; server 203.0.113.2:8080; }}\n    server {{\n"


def conditional(condition: str, status: int) -> Mapping[str, str]:
    """The recipe's location refuses what meets a condition."""
    return {PASS: f"if ({condition}) {{ return {status}; }}\n            {PASS}"}


@contextmanager
def behind(server: Host, client: Host, replace: Mapping[str, str]) -> Iterator[Process]:
    """A client that begins to connect to a server behind nginx' recipe, with these words replaced."""
    config = server_config()
    del config["listen"]  # the default, loopback
    with running(server, config), RECIPES["nginx"](server, replace=replace) as proxy:
        entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)})
        with running(client, entry, "--log-level", "debug", until=None) as daemon:
            yield daemon


PUTS: Final[dict[str, tuple[Mapping[str, str], str]]] = {
    "a limit on methods": ({PASS: f"limit_except GET {{ deny all; }}\n            {PASS}"}, "answered 403"),
    "405": (conditional("$request_method = PUT", 405), "answered 405"),
    "444": (conditional("$request_method = PUT", 444), "closed the connection without an answer|broke"),
}


@pytest.mark.parametrize("case", PUTS)
def test_a_refused_put(lab: Lab, case: str) -> None:
    """It is named as what it is, and a WebSocket, which is a GET, gets through."""
    server, client = cable(lab)
    replace, words = PUTS[case]
    with behind(server, client, replace) as daemon:
        daemon.wait_for_log(f"WARNING .*no upload to {NAME} passes: .*({words}).*; using a WebSocket", PATIENCE_S)
        wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)
        assert "holds the upload back" not in daemon.log
        assert "does not know this token" not in daemon.log


@pytest.mark.parametrize("status", [404, 426, 444])
def test_a_location_for_websockets_only(lab: Lab, status: int) -> None:
    """As guides for V2Ray have it."""
    server, client = cable(lab)
    with behind(server, client, conditional("$http_upgrade != websocket", status)) as daemon:
        daemon.wait_for_log(WEBSOCKET, PATIENCE_S)
        wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)
        daemon.wait_for_log("WARNING .*; using a WebSocket instead", PATIENCE_S)


@pytest.mark.parametrize("hashed", [False, True])
def test_two_servers_in_turn(lab: Lab, hashed: bool) -> None:
    """The one that gets the PUT knows nothing of the GET. With the line that the client names, all is well."""
    server, client = cable(lab)
    second = lab.host("second")
    lab.link(server, "203.0.113.1/24", second, "203.0.113.2/24")
    line = "hash $http_x_api_key consistent;"
    replace = {
        "worker_processes auto;": "worker_processes 1;",  # each worker takes turns by itself
        PASS: "proxy_pass http://tapotun;",
        "server {\n": UPSTREAM.format(line if hashed else ""),
    }
    with running(second, server_config(listen="203.0.113.2")), behind(server, client, replace) as daemon:
        daemon.wait_for_log(UPLOADING, PATIENCE_S)
        if hashed:
            wait_for_ping(client, TUNNEL_SERVER, PATIENCE_S)
            assert "409" not in daemon.log
        else:
            daemon.wait_for_log(f"WARNING .*answered 409 .*nginx: {re.escape(line)}", PATIENCE_S)


def test_a_limit_on_the_size_of_uploads(lab: Lab) -> None:
    """nginx' default, 1 MiB: each upload works until then. At 8 Mbit/s they last a second."""
    server, client = cable(lab)
    with behind(server, client, {"client_max_body_size 0;": ""}) as daemon:
        daemon.wait_for_log(UPLOADING, PATIENCE_S)
        upload(client, server, TUNNEL_SERVER, 8_000_000, timeout=PATIENCE_S)
        words = "are ended again and again: .*answered 413 .*client_max_body_size 0; using a WebSocket"
        daemon.wait_for_log(f"WARNING .*{words}", PATIENCE_S)
