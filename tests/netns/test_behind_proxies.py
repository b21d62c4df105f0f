"""Who a request is from: by headers of trusted proxies, and by the PROXY protocol. What the recipes do is in
test_proxies."""

from __future__ import annotations

import re
import socket
from typing import Final

import pytest

from tapotun_trio.wire.proxyprotocol import SIGNATURE
from tests.harness import Host, Lab, ping
from tests.harness.recipes import NAME, RECIPES

from .topologies import (
    CLIENT,
    CLIENT_6,
    SERVER,
    SERVER_6,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    cable_6,
    client_config,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

SOCKET: Final = "/run/tapotun.sock"
# Version 2, command PROXY, TCP over IPv4, 12 bytes: 203.0.113.9:4711 to 192.0.2.1:8080.
FROM_AFAR: Final = (
    SIGNATURE
    + b"\x21\x11\0\x0c"
    + socket.inet_aton("203.0.113.9")
    + socket.inet_aton(SERVER)
    + (4711).to_bytes(2, "big")
    + (8080).to_bytes(2, "big")
)
GET: Final = b"GET /ip HTTP/1.1\r\nHost: h\r\nX-Api-Key: wrong\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
SEND_PROXY: Final = {"server tapotun 127.0.0.1:8080": "server tapotun 127.0.0.1:8080 send-proxy-v2"}
ENDED_S: Final = 30.0  # the deadline of a PROXY header is 10 s


def asked(host: Host, address: str, *pieces: bytes) -> bytes:
    """What comes back for these bytes until the far end closes. Raises TimeoutError if it does not."""
    with host.socket() as sock:
        sock.settimeout(ENDED_S)
        sock.connect((address, 8080))
        answer = b""
        try:
            for piece in pieces:
                sock.sendall(piece)
            while received := sock.recv(65536):
                answer += received
                if b"\r\n\r\n" in answer:  # a refusal leaves a connection open
                    break
        except ConnectionError:
            pass  # a close with bytes unread is a reset
        return answer


def test_a_visitors_own_words_are_not_believed(lab: Lab) -> None:
    """Neither from somebody who is no proxy of ours, nor, of a trusted one's list, what stands left of the visitor."""
    server, client = cable(lab)
    with running(server, server_config(listen=[SERVER, "127.0.0.1"], trusted_proxies=["127.0.0.1"])) as daemon:
        assert asked(client, SERVER, GET).startswith(b"HTTP/1.1 403 ")
        daemon.wait_for_log(rf"tun0: {CLIENT}:\d+ refused: unknown or missing token")
        assert "6.6.6.6" not in daemon.log
        told = GET.replace(b"6.6.6.6", b"6.6.6.6, 203.0.113.7")
        assert asked(server, "127.0.0.1", told).startswith(b"HTTP/1.1 403 ")
        daemon.wait_for_log(r"tun0: 203\.0\.113\.7 \(through 127\.0\.0\.1:\d+\) refused")
        assert "6.6.6.6" not in daemon.log


def test_nginx_over_a_unix_socket(lab: Lab) -> None:
    """The worker is www-data: `listen_mode` lets it in, and "unix" has it believed."""
    server, client = cable(lab)
    config: Config = server_config(listen=f"unix:{SOCKET}", listen_mode="0666", trusted_proxies=["unix"])
    del config["port"]
    to_socket = {"http://127.0.0.1:8080": f"http://unix:{SOCKET}"}
    with RECIPES["nginx"](server, replace=to_socket) as proxy, running(server, config) as daemon:
        entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)})
        with running(client, entry, until=UPLOADING):
            daemon.wait_for_log(rf"laptop: connected from {CLIENT} \(through unix socket\)")
            assert ping(client, TUNNEL_SERVER).ok
    assert server.run(["ls", SOCKET], check=False).returncode != 0


@pytest.mark.parametrize("sent", ["send-proxy-v2", "send-proxy"])
@pytest.mark.parametrize("family", [4, 6])
def test_haproxy_with_the_proxy_protocol(lab: Lab, sent: str, family: int) -> None:
    """The recipe with a PROXY protocol header, of version 2 or 1, in place of a header of HTTP. Over IPv6 it comes from
    an address of the machine, which a network of trusted_proxies has."""
    server, client = cable(lab) if family == 4 else cable_6(lab)
    if family == 4:
        visitor, proxy_address = rf"{CLIENT}:\d+", r"127\.0\.0\.1:\d+"
        config = server_config(proxy_protocol=True, trusted_proxies=["127.0.0.1", "::1"])
        del config["listen"]
    else:
        visitor, proxy_address = rf"\[{CLIENT_6}\]:\d+", rf"\[{SERVER_6}\]:\d+"
        config = server_config(listen="::", proxy_protocol=True, trusted_proxies=["2001:db8::/127"])
    upstream = "127.0.0.1:8080" if family == 4 else f"[{SERVER_6}]:8080"
    line = "server tapotun 127.0.0.1:8080"
    spoken = {line: f"server tapotun {upstream} {sent}", "http-request set-header X-Forwarded-For %[src]": ""}
    with RECIPES["haproxy"](server, replace=spoken) as proxy, running(server, config) as daemon:
        entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)})
        with running(client, entry, until=UPLOADING):
            daemon.wait_for_log(rf"laptop: connected from {visitor} \(through {proxy_address}\)")
            assert ping(client, TUNNEL_SERVER).ok
            # Behind the same proxy, a visitor who writes headers: the PROXY header's source is no proxy of ours.
            forged = ["-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Api-Key: wrong"]
            client.run(["curl", "-sS", "--cacert", proxy.ca_file, *forged, f"https://{NAME}/ip"])
            daemon.wait_for_log(rf"{visitor} \(through {proxy_address}\) refused: unknown or missing token")
            assert "6.6.6.6" not in daemon.log


def test_who_may_not_speak_the_proxy_protocol_and_who_does_not(lab: Lab) -> None:
    """Each is shown the door, with one line that says what to change, and a session beside notices nothing."""
    server, client = cable(lab)
    config = server_config(
        allowed("laptop"), listen=[SERVER, "127.0.0.1"], proxy_protocol=True, trusted_proxies=["127.0.0.1"]
    )
    with running(server, config) as daemon, RECIPES["haproxy"](server, replace=SEND_PROXY) as proxy:
        entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)})
        with running(client, entry, until=UPLOADING) as client_daemon:
            before = client_daemon.log_end
            # A stranger who claims to be somebody else.
            assert asked(client, SERVER, FROM_AFAR + GET) == b""
            daemon.wait_for_log(rf"WARNING .*{CLIENT}:\d+ refused: not among trusted_proxies")
            # A proxy without the header, with garbage, and with one that never ends.
            assert asked(server, "127.0.0.1", GET) == b""
            daemon.wait_for_log("refused: no PROXY protocol header came first; have the proxy send it")
            assert asked(server, "127.0.0.1", SIGNATURE + b"\x29\x11\0\x0c") == b""
            assert asked(server, "127.0.0.1", FROM_AFAR[:20]) == b""
            # And one that is right, byte by byte.
            pieces = [FROM_AFAR[at : at + 1] for at in range(len(FROM_AFAR))]
            assert asked(server, "127.0.0.1", *pieces, GET).startswith(b"HTTP/1.1 403 ")
            daemon.wait_for_log(r"203\.0\.113\.9:4711 \(through 127\.0\.0\.1:\d+\) refused: unknown or missing token")
            assert "6.6.6.6" not in daemon.log
            assert ping(client, TUNNEL_SERVER).ok
            assert not re.search("trying again|broke", client_daemon.log[before:]), client_daemon.tail()


def test_a_proxy_header_that_nobody_expects(lab: Lab) -> None:
    """A malformed request like any other; the proxy's operator has to see it."""
    server, client = cable(lab)
    with running(server, server_config()), running(client, client_config(), until=UPLOADING):
        assert asked(client, SERVER, FROM_AFAR + GET).startswith(b"HTTP/1.1 400 ")
        assert ping(client, TUNNEL_SERVER).ok
