"""A path that passes small packets and drops large ones in silence: the tunnel finds a size that passes."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack

import pytest
import trustme

from tests.harness import Host, Lab, command, download, ping, upload, wait_until
from tests.harness.recipes import NAME, Nginx

from .black_hole import SERVER_6, black_hole
from .test_probe import faults, probe, report
from .topologies import SERVER, TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, client_config, running, server_config

pytestmark = pytest.mark.netns

FOUND_S = 60.0  # for a slow machine; it takes about four seconds
BYTES = 300_000
MTU = "large ones do not (MTU)"


def pings(host: Host, address: str) -> None:
    """Until a large packet has come back."""
    wait_until(lambda: ping(host, address, count=1, size=1400).ok, FOUND_S, "a large packet to come back")


def both_ways(server: Host, client: Host) -> None:
    """Checked bytes pass in both directions."""
    upload(client, server, TUNNEL_SERVER, BYTES, timeout=FOUND_S)
    download(client, server, TUNNEL_SERVER, BYTES, timeout=FOUND_S)


def status(client: Host) -> str:
    return client.run([*command(), "status"]).stdout


class LargeCertificate(Nginx):
    """Its certificate does not fit into one segment, as most do not."""

    def _issue_certificate(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        leaf = authority.issue_cert(NAME, *(f"alternative-{number}.{NAME}" for number in range(60)))
        leaf.private_key_pem.write_to_path(self.directory / "privkey.pem")
        for chain in leaf.cert_chain_pems:
            chain.write_to_path(self.directory / "fullchain.pem", append=True)


@pytest.mark.parametrize(
    ("mtu", "size", "transport"), [(1300, 1220, "auto"), (700, 536, "auto"), (1300, 1220, "websocket")]
)
def test_over_http(lab: Lab, mtu: int, size: int, transport: str) -> None:
    server, client = black_hole(lab, mtu)
    config = client_config(transport=transport)
    with running(server, server_config(keepalive=3)), running(client, config, until="download|WebSocket") as daemon:
        pings(client, TUNNEL_SERVER)
        assert f"small packets pass to and from {SERVER}, {MTU}" in daemon.log, daemon.tail()
        assert "ICMP type 3 code 4" in daemon.log
        assert f"segments of at most {size} bytes" in status(client)
        found = len(daemon.log)
        both_ways(server, client)
        assert MTU not in daemon.log[found:], daemon.tail()


def test_over_ipv6(lab: Lab) -> None:
    """Its headers are larger, and the least MTU of its links is 1280."""
    server, client = black_hole(lab, 1280)
    config = client_config(server=f"http://[{SERVER_6}]:8080/ip")
    with running(server, server_config(listen=SERVER_6)), running(client, config, until=UPLOADING) as daemon:
        pings(client, TUNNEL_SERVER)
        assert f"small packets pass to and from {SERVER_6}, {MTU}" in daemon.log, daemon.tail()
        both_ways(server, client)
        assert "segments of at most 1220 bytes" in status(client)


def test_what_the_server_sends_is_lost(lab: Lab) -> None:
    """The client sees a gap in its download that is not filled."""
    server, client = black_hole(lab, ways="down")
    with running(server, server_config()), running(client, client_config(), until=UPLOADING) as daemon:
        with server.socket(kind=socket.SOCK_DGRAM) as sock:

            def answered() -> bool:
                # A large packet and a small one next to it, as of any transfer.
                for size in (1400, 100):
                    sock.sendto(bytes(size), (TUNNEL_CLIENT, 9))
                return MTU in daemon.log

            wait_until(answered, FOUND_S, "the client to notice", daemon.tail)
        pings(server, TUNNEL_CLIENT)
        both_ways(server, client)


def test_everything_that_the_server_sends_is_lost(lab: Lab) -> None:
    """Each packet fills less than a segment, so not even a gap is seen; only silence."""
    server, client = black_hole(lab, ways="down")
    with (
        running(server, server_config(keepalive=1)),
        running(client, client_config(), until=UPLOADING) as daemon,
    ):
        pings(server, TUNNEL_CLIENT)
        assert MTU in daemon.log, daemon.tail()
        both_ways(server, client)


def test_the_first_frame_is_large(lab: Lab) -> None:
    """So many routes that the parameters do not fit into a segment: the download stalls right after its head."""
    server, client = black_hole(lab, ways="down")
    push = [f"10.{100 + number // 250}.{number % 250}.0/24" for number in range(250)]
    with (
        running(server, server_config(push_routes=push)),
        running(client, client_config(), until=None) as daemon,
    ):
        daemon.wait_for_log(re.escape(MTU), FOUND_S)
        pings(client, TUNNEL_SERVER)
        wait_until(lambda: len(client.ip("route show dev tun0")) > 250, FOUND_S, "the pushed routes")


def test_over_https(lab: Lab) -> None:
    """The server's certificate is lost already."""
    server, client = black_hole(lab)
    client.hosts({NAME: SERVER})
    config = server_config()
    del config["listen"]
    with running(server, config), LargeCertificate(server) as proxy:
        tls = {"ca_file": str(proxy.ca_file)}
        options = client_config(server=f"https://{NAME}/ip", tls=tls)
        with running(client, options, until=None) as daemon:
            daemon.wait_for_log(UPLOADING, FOUND_S)
            assert f"small packets pass to and from {SERVER}, {MTU}" in daemon.log, daemon.tail()
            pings(client, TUNNEL_SERVER)
            both_ways(server, client)
            assert daemon.log.count(MTU) == 1, daemon.tail()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_probe_names_it(lab: Lab, scheme: str) -> None:
    """And a client could use the path all the same."""
    server, client = black_hole(lab)
    client.hosts({NAME: SERVER})
    with ExitStack() as stack:
        config = server_config(listen=[SERVER, "127.0.0.1"])
        stack.enter_context(running(server, config))
        if scheme == "https":
            proxy = stack.enter_context(LargeCertificate(server))
            found = report(probe(client, f"https://{NAME}/ip", "--ca-file", str(proxy.ca_file), "--idle-limit", "0"))
        else:
            found = report(probe(client, f"http://{NAME}:8080/ip", "--idle-limit", "0"))
    assert faults(found) == {"path-mtu"}, found
    assert (found["usable"], found["carrier"], found["exit"]) == (True, "http", 0)
    assert "segments of at most 1220 bytes" in found["verdict"]
    assert (found["path_mtu"]["ok"], found["path_mtu"]["passing_bytes"]) == (False, 1220)
    assert any("ICMP type 3 code 4" in line for finding in found["findings"] for line in finding["change"])
    assert (found["upload"]["state"], found["download"]["state"], found["websocket"]["ok"]) == (
        "streams",
        "streams",
        True,
    )
    assert found["throughput"]["up_mbit_s"] > 0.1
