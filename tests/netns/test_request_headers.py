"""A proxy that wants more than the token: nginx with auth_basic and with a header of its own, as Cloudflare Access."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, command, nginx_proxy, ping

from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config, token

pytestmark = pytest.mark.netns

PASSWORD: Final = "hunter2 ü%"
KEY: Final = "key-that-nobody-may-see"
HEADER: Final = "CF-Access-Client-Secret"
URL: Final = f"http://{SERVER}/ip?x=query-that-nobody-may-see"


def _rules(server: Host) -> str:
    """Directives of nginx that let nobody pass without login and header."""
    users = server.tmp / "users"
    users.write_text(f"jürgen:{{PLAIN}}{PASSWORD}\n", encoding="utf-8")
    users.chmod(0o644)
    header = HEADER.lower().replace("-", "_")
    return f'auth_basic "members"; auth_basic_user_file {users}; if ($http_{header} != "{KEY}") {{ return 403; }}'


def _file(host: Host, name: str, content: str) -> str:
    file: Path = host.tmp / name
    file.touch(mode=0o600)
    file.write_text(content, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_client_and_a_probe_pass(lab: Lab, transport: str) -> None:
    server, client = cable(lab)
    password_file = _file(client, "password", f"{PASSWORD}\n")
    fields: dict[str, Any] = {"user": "jürgen", "password_file": password_file, "headers": {HEADER: KEY}}
    config = client_config(server=URL, transport=transport, **fields)
    with (
        running(server, server_config(listen="127.0.0.1"), "--log-level", "debug") as server_daemon,
        nginx_proxy(server, websocket=transport == "websocket", more=_rules(server)),
        running(client, config, "--log-level", "debug", until="WebSocket from|" + UPLOADING) as daemon,
    ):
        ping(client, TUNNEL_SERVER)
        status = client.run([*command(), "status", "--json"]).stdout
        cmdline = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().decode()
        options = ["--user", "jürgen", "--password-file", password_file, "--transport", transport, "--idle-limit", "0"]
        headers_file = _file(client, "headers", f"{HEADER}: {KEY}\n")
        token_file = _file(client, "token", token("laptop"))
        probe = client.run(
            [*command(), "probe", URL, "--token-file", token_file, "--headers-file", headers_file, *options],
        ).stdout
        assert "verdict: usable" in probe
        for secret in (PASSWORD, KEY, "query-that-nobody-may-see"):
            for text in (daemon.log, server_daemon.log, status, cmdline, probe):
                assert secret not in text


def _with_admin(client: Host, transport: str) -> str:
    """A config without the login, whose health page everybody on its machine may see."""
    interface = client_config(server=URL, transport=transport, headers={HEADER: KEY})
    return _file(client, "client.json", json.dumps({"interfaces": [interface], "admin": {"listen": "9433"}}))


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_401_names_basic_auth(lab: Lab, transport: str) -> None:
    server, client = cable(lab)
    with (
        running(server, server_config(listen="127.0.0.1")),
        nginx_proxy(server, websocket=transport == "websocket", more=_rules(server)),
        running(client, _with_admin(client, transport), until="trying again") as daemon,
    ):
        ready = client.run(["curl", "-s", "http://127.0.0.1:9433/readyz"]).stdout
        assert "401 Unauthorized" in ready
        assert "query-that-nobody-may-see" not in ready
        assert (
            'answered 401 Unauthorized: a proxy in front of the server wants Basic auth (realm="members")' in daemon.log
        )
        assert '"user" and "password_file"' in daemon.log
        assert "query-that-nobody-may-see" not in daemon.log
