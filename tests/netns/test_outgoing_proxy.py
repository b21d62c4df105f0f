"""A client that reaches its server through an HTTP proxy only: Debian's tinyproxy, with a login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, Payload, command, download, no_leaks, ping, upload

from .topologies import TUNNEL_SERVER, UPLOADING, client_config, running, server_config

pytestmark = pytest.mark.netns

NAME: Final = "vpn.example.com"
URL: Final = f"http://{NAME}:8080/ip"
PASSWORD: Final = "proxy-s3cret"
PROXY: Final = "198.51.100.1"

_CONFIG: Final = f"""
Port 3128
Listen {PROXY}
Timeout 600
MaxClients 20
LogLevel Info
BasicAuth laptop {PASSWORD}
ConnectPort 8080
"""


@contextmanager
def _world(lab: Lab) -> Iterator[tuple[Host, Host]]:
    """A server and a client with a proxy between them, which does not forward, and alone knows the server's name."""
    server, proxy, client = lab.host("server"), lab.host("proxy"), lab.host("client")
    lab.link(server, "192.0.2.1/24", proxy, "192.0.2.2/24")
    lab.link(proxy, f"{PROXY}/24", client, "198.51.100.2/24")
    proxy.hosts({NAME: "192.0.2.1"})
    config = proxy.tmp / "tinyproxy.conf"
    config.write_text(_CONFIG, encoding="ascii")
    with (
        running(server, server_config()),
        proxy.start(["tinyproxy", "-d", "-c", config], name="tinyproxy") as process,
    ):
        proxy.wait_for_listener(3128, by=process)
        yield server, client


def _client(**fields: Any) -> dict[str, Any]:
    return client_config(server=URL, **fields)


def test_a_tunnel_through_a_proxy(lab: Lab) -> None:
    proxy = f"http://laptop:{PASSWORD}@{PROXY}:3128"
    with (
        _world(lab) as (server, client),
        no_leaks(client),
        running(client, _client(proxy=proxy), "--log-level", "debug", until=UPLOADING) as daemon,
        Payload(10_000_000) as payload,
    ):
        assert ping(client, TUNNEL_SERVER).ok
        for move in (upload, download):
            move(client, server, TUNNEL_SERVER, payload)
        assert PASSWORD not in daemon.log
        assert f"{NAME}:8080 through {PROXY}:3128" in daemon.log


def test_the_environment_names_the_proxy(lab: Lab) -> None:
    with _world(lab) as (_, client):
        config = client.tmp / "client.json"
        config.write_text(f'[{{"name": "tun0", "server": "{URL}", "token": "raw-token-of-laptop"}}]', encoding="ascii")
        environment = {"http_proxy": f"http://laptop:{PASSWORD}@{PROXY}:3128"}
        with client.start([*command(), config], name="tapotun", env=environment) as daemon:
            daemon.wait_for_log(UPLOADING)
            assert ping(client, TUNNEL_SERVER).ok
            assert PASSWORD not in daemon.log


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"proxy": f"http://{PROXY}:3128"}, "answered 407 .*: it requires a login: set user:pass in proxy"),
        ({"proxy": f"http://laptop:{PASSWORD}x@{PROXY}:3128"}, "answered 40[17] .*: .*login"),
        (
            {"proxy": f"http://laptop:{PASSWORD}@{PROXY}:3128", "server": f"http://{NAME}:22/ip"},
            f"proxy {PROXY}:3128 to {NAME}:22 answered 403 .*: it does not allow this target",
        ),
        ({"proxy": f"http://{PROXY}:3129"}, f"proxy {PROXY}:3129 to {NAME}:8080: .*refused"),
        ({"proxy": "none"}, f"{NAME} does not resolve|cannot connect"),
    ],
)
def test_what_a_proxy_refuses(lab: Lab, fields: dict[str, Any], words: str) -> None:
    with (
        _world(lab) as (_, client),
        running(client, {**_client(), **fields}, until=f" WARNING .*download: .*({words})") as daemon,
    ):
        assert PASSWORD not in daemon.log
