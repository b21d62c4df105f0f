"""A client whose name server can be reached only through its own tunnel."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import Host, Lab, ping, wait_for_ping, wait_until

from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

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
            assert first.stop(BACK_S) == 0
            daemon.wait_for_log(f"{NAME} does not resolve: the name server does not answer", BACK_S)
            with running(server, server_config(), name="second"):
                wait_until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, BACK_S, "a ping to pass", daemon.tail)
                before = daemon.log_end
                file.write_text(json.dumps([{**entry, "rotate_s": [500, 600]}]), encoding="utf-8")
                daemon.signal(signal.SIGHUP)
                daemon.wait_for_log(UPLOADING, BACK_S, after=before)
                wait_for_ping(client, TUNNEL_SERVER, BACK_S)


# A name server that answers as the file says, which is its argument: a status of RFC 1035 section 4.1.1, or the address
# that every name has.
NAME_SERVER = """
import pathlib, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 53))
while True:
    query, client = sock.recvfrom(4096)
    end = query.index(0, 12) + 5
    kind, said = query[end - 4:end - 2], pathlib.Path(sys.argv[1]).read_text()
    status, records = (int(said), b"") if said.isdigit() else (0, b"")
    if "." in said and kind == b"\\0\\x01":
        records = b"\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\0\\0\\x04" + socket.inet_aton(said)
    if said != "silent":
        counts = b"\\0\\x01" + bytes([0, bool(records)]) + bytes(4)
        sock.sendto(query[:2] + bytes([0x81, 0x80 | status]) + counts + query[12:end] + records, client)
"""


@contextmanager
def named(server: Host, client: Host) -> Iterator[Path]:
    """The client asks a name server on the server's machine, which first tells the server's address. Yields the file
    with what it says."""
    client.hosts({})
    file, says = client.tmp / "resolv.conf", server.tmp / "says"
    file.write_text(f"nameserver {SERVER}\noptions timeout:1\n", encoding="ascii")
    client.run(["mount", "--bind", file, "/etc/resolv.conf"])
    says.write_text(SERVER, encoding="ascii")
    with server.start([sys.executable, "-c", NAME_SERVER, says], name="nameserver") as name_server:
        listens = "udp 0.0.0.0:53"
        wait_until(lambda: listens in server.listening(), BACK_S, "the name server", name_server.tail)
        yield says


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("2", "the name server does not answer, or answers with a failure"),  # SERVFAIL
        ("3", "does not resolve: Name or service not known"),  # NXDOMAIN, as a captive network says
        ("silent", "the name server does not answer"),
        ("192.0.2.77", "192.0.2.77: |cannot connect|no connection"),  # nobody is there
    ],
    ids=["SERVFAIL", "NXDOMAIN", "silent", "stale"],
)
def test_whatever_a_name_server_says_the_client_comes_back(lab: Lab, said: str, cause: str) -> None:
    server, client = cable(lab)
    with named(server, client) as says:
        with running(server, server_config(), name="first") as first:
            with running(client, client_config(server=f"http://{NAME}:8080/ip"), until=UPLOADING) as daemon:
                says.write_text(said, encoding="ascii")
                assert first.stop(BACK_S) == 0
                daemon.wait_for_log(f"WARNING .*({cause})", BACK_S)
                with running(server, server_config(), name="second"):
                    wait_until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, BACK_S, "a ping to pass", daemon.tail)


def test_a_name_that_leads_to_a_web_server(lab: Lab) -> None:
    """A parked name, or one that another machine has. The upload goes where the download is, too."""
    server, client = cable(lab)
    server.ip("addr add 192.0.2.9/24 dev eth0")
    web = [sys.executable, "-m", "http.server", "8080", "--bind", "192.0.2.9"]
    with named(server, client) as says, server.start(web, name="web"):
        server.wait_for_listener(8080, BACK_S)
        with running(server, server_config(), name="first") as first:
            with running(client, client_config(server=f"http://{NAME}:8080/ip"), until=UPLOADING) as daemon:
                says.write_text("192.0.2.9", encoding="ascii")
                assert first.stop(BACK_S) == 0
                daemon.wait_for_log("WARNING .*answered 404", BACK_S)
                with running(server, server_config(), name="second"):
                    wait_until(lambda: ping(client, TUNNEL_SERVER, count=1).ok, BACK_S, "a ping to pass", daemon.tail)
                    assert "answered 501" not in daemon.log, daemon.tail()
