"""A client with a good token sends WebSocket handshakes that no parser likes, directly and through proxies: each is
refused, and a bystander loses no packet."""

from __future__ import annotations

import re
import signal
import ssl
import sys
from contextlib import ExitStack, suppress
from typing import Final

import pytest

from tapotun_trio.http.server import HEAD_S
from tests.harness import Host, Lab, no_leaks, ping, wait_until
from tests.harness.recipes import NAME, RECIPES

from .topologies import (
    SERVER,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    client_config,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

ROUNDS: Final = 6
PATIENCE_S: Final = 10.0
# A connection may wait HEAD_S for its head, and then some seconds for the client to read the answer.
SETTLE_S: Final = 2 * HEAD_S
PINGS: Final = 2000  # over 20 s; they are stopped when the handshakes are done
HEAD: Final = f"GET /ip HTTP/1.1\r\nHost: {NAME}\r\nx-api-key: {token('mallory')}\r\n"
KEY: Final = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
EXTENDED: Final = f"x-tun-features: ctl, ws\r\nx-tun-session: {'0a' * 16}\r\n"
HOSTILE: Final = (
    "Connection: \xff\r\nUpgrade: websocket\r\n",
    "Connection: Upgrade, \xff\r\nUpgrade: websocket\r\n",
    "Connection: Upgrade\r\nConnection:\r\nUpgrade: websocket\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade:\r\n",
    "Connection: Upgrade\r\nUpgrade: \xffwebsocket\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version:\r\n",
)


def answer_to(client: Host, fields: str, tls: ssl.SSLContext | None) -> int:
    """The status that this handshake is answered with; 0: none, by whatever stands in between."""
    with client.socket() as plain:
        plain.settimeout(PATIENCE_S)
        plain.connect((SERVER, 8080 if tls is None else 443))
        with plain if tls is None else tls.wrap_socket(plain, server_hostname=NAME) as sock:
            sock.sendall((HEAD + KEY + fields + EXTENDED + "\r\n").encode("latin-1"))
            with suppress(ConnectionError):
                found = re.match(rb"HTTP/1\.1 (\d+) ", sock.recv(65536))
                return int(found[1]) if found else 0
        return 0


@pytest.mark.parametrize("way", ["directly", "nginx", "haproxy", "caddy"])
def test_hostile_handshakes(lab: Lab, way: str) -> None:
    server, client = cable(lab)
    config: Config = server_config(allowed("laptop"), allowed("mallory", "10.10.0.66"))
    entry, tls = client_config(), None
    with ExitStack() as stack:
        if way != "directly":
            del config["listen"]  # the default, loopback, which the recipes have
        daemon = stack.enter_context(running(server, config))
        if way != "directly":
            proxy = stack.enter_context(RECIPES[way](server))
            entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)})
            tls = ssl.create_default_context(cafile=str(proxy.ca_file))
        stack.enter_context(running(client, entry, until=UPLOADING))
        assert ping(client, TUNNEL_SERVER).ok
        stack.enter_context(no_leaks(fds_of=[daemon], settle_s=SETTLE_S))
        argv = ["ping", "-n", "-c", str(PINGS), "-i", "0.01", "-W", "1", TUNNEL_SERVER]
        bystander = stack.enter_context(client.start(argv, name="bystander", env={"LC_ALL": "C"}))
        wait_until(lambda: "time=" in bystander.log, PATIENCE_S, "the bystander's first reply", bystander.tail)
        answers = [answer_to(client, fields, tls) for _ in range(ROUNDS) for fields in HOSTILE]
        seen = int(re.findall(r"icmp_seq=(\d+)", bystander.log)[-1])
        # An interface that fails is back after a second at the earliest.
        wait_until(lambda: f"icmp_seq={seen + 250} " in bystander.log, PATIENCE_S, "2.5 s more", bystander.tail)
        bystander.stop(PATIENCE_S, with_signal=signal.SIGINT)
        sys.stdout.write(f"\n[measured] {way}: answers {sorted(set(answers))}; {bystander.tail(3)}\n")
        if way == "directly":  # a proxy mends some, and refuses others itself
            assert set(answers) == {400}
        # Up to where we waited. The pings behind that may still have been in flight at the SIGINT.
        answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ", bystander.log)}
        assert not set(range(1, seen + 250)) - answered, bystander.tail()
        assert "restarting in" not in daemon.log
        assert " ERROR " not in daemon.log
        assert "Traceback" not in daemon.log
