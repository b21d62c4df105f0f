"""Something on the way ends every request at a fixed age. The client learns it, and then loses nothing by it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from tests.basepeer import sha1
from tests.harness import ROOT, Host, Lab, Process, wait_until
from tests.harness.recipes import NAME, RECIPES
from tests.integrity import CheckedUdp

from .topologies import (
    RETRY_S,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    cable,
    client_config,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

AGE_S: Final = 2
LEARNED_S: Final = 60.0  # it takes two streams of each kind, on a machine that may be busy
# A busy machine may open a stream too late now and then. Without what is tested here, more than this is lost.
SOME: Final = 0.03
TIMEOUTS: Final = f"{{\n\tservers {{\n\t\ttimeouts {{\n\t\t\tread_body {AGE_S}s\n\t\t\twrite {AGE_S}s\n\t\t}}\n\t}}"
CADDY: Final = {"{\n\tlog": f"{TIMEOUTS}\n\tlog"}


@contextmanager
def _serving(host: Host, kind: str) -> Iterator[None]:
    """A server at port 8080: ours, or a base server of this generation."""
    if kind == "extended":
        config = server_config()
        del config["listen"]  # the default, loopback, which the recipes have
        with running(host, config):
            yield
        return
    client = f"{sha1(token('laptop'))}:{TUNNEL_CLIENT}"
    arguments = ["--net", f"{TUNNEL_SERVER}/24", "--tun", "tun0", "--client", client, "--generation", kind[-1]]
    argv = [sys.executable, "-m", "tests.basepeer", "server", *arguments, "--proxied"]
    with host.start(argv, name="base-server", cwd=ROOT) as peer:
        peer.wait_for_log("READY", RETRY_S)
        yield
        peer.stop(10)
        assert "VIOLATION" not in peer.log, peer.tail()


def _replaced(daemon: Process, words: str, since: int) -> int:
    return len(re.findall(rf" DEBUG .*{words}", daemon.log[since:]))


def _loses_nothing(client: Host, server: Host, daemon: Process, *streams: str) -> None:
    """While streams are replaced several times, each within the age at which it would be ended."""
    since = daemon.log_end
    with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=200) as udp:
        for words in streams:
            wait_until(lambda words=words: _replaced(daemon, words, since) >= 4, 60, words, daemon.tail)  # type: ignore[misc]
        ways = udp.finish()
    for way in ways:
        assert way.sent > 200
        assert way.lost <= SOME * way.sent, f"{way}\n{daemon.tail(60)}"
        assert (way.duplicated, way.corrupted) == (0, 0)


@pytest.mark.parametrize("kind", ["extended", "base 1", "base 2"])
def test_requests_that_are_ended_at_a_fixed_age(lab: Lab, kind: str) -> None:
    """By Caddy, with `read_body` and `write`; two lines name the age, and the settings."""
    server, client = cable(lab)
    with _serving(server, kind), RECIPES["caddy"](server, replace=CADDY) as proxy:
        config = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(proxy.ca_file)})
        with running(client, config, "--log-level", "debug", until=UPLOADING) as daemon:
            # An idle download is found to be cut only when something is to be written.
            with CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=50) as udp:
                daemon.wait_for_log(r"WARNING .*ends uploads at an age of .*read_body", LEARNED_S)
                daemon.wait_for_log(r"WARNING .*ends downloads at an age of .*timeouts write", LEARNED_S)
                udp.finish()
            _loses_nothing(client, server, daemon, "download from ", "upload to ")


def test_websockets_that_are_ended_at_a_fixed_age(lab: Lab) -> None:
    server, client = cable(lab)
    relay = [sys.executable, "-m", "tests.netns.cutting_relay", "80", "8080", str(AGE_S), "0"]
    with ExitStack() as stack:
        stack.enter_context(_serving(server, "extended"))
        stack.enter_context(server.start(relay, name="relay", cwd=ROOT)).wait_for_log("ready")
        config: Config = client_config(server=f"http://{SERVER}/ip", transport="websocket")
        daemon = stack.enter_context(running(client, config, "--log-level", "debug", until="WebSocket from "))
        daemon.wait_for_log(r"WARNING .*ends WebSockets at an age of ", LEARNED_S)
        _loses_nothing(client, server, daemon, "WebSocket from ")
