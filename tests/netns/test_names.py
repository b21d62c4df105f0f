"""A client whose name server can be reached only through its own tunnel."""

from __future__ import annotations

import json
import signal

import pytest

from tests.harness import Host, Lab, ping, wait_until

from .topologies import STOP_S, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

NAME = "vpn.example.com"
BACK_S = 60.0


def resolve_through_the_tunnel(client: Host) -> None:
    """From now on no name resolves unless the tunnel's other end says so."""
    client.hosts({})
    file = client.tmp / "resolv.conf"
    file.write_text(f"nameserver {TUNNEL_SERVER}\noptions timeout:1\n", encoding="ascii")
    client.run(["mount", "--bind", file, "/etc/resolv.conf"])


def test_a_client_comes_back_without_a_name_server(lab: Lab) -> None:
    """After its server has restarted, and after a reload that starts its interface again. The cause is named."""
    server, client = cable(lab)
    entry = client_config(server=f"http://{NAME}:8080/ip")
    file = client.tmp / "client.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps([entry]), encoding="utf-8")
    with running(server, server_config(), name="first") as first:
        with running(client, file, until=UPLOADING) as daemon:
            resolve_through_the_tunnel(client)
            assert first.stop(STOP_S) == 0
            daemon.wait_for_log(f"{NAME} does not resolve: the name server does not answer", BACK_S)
            with running(server, server_config(), name="second"):
                wait_until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, BACK_S, "a ping to pass", daemon.tail)
                before = daemon.log_end
                file.write_text(json.dumps([{**entry, "rotate_s": [500, 600]}]), encoding="utf-8")
                daemon.signal(signal.SIGHUP)
                daemon.wait_for_log(UPLOADING, BACK_S, after=before)
                assert ping(client, TUNNEL_SERVER).ok
