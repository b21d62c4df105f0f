"""A deployed generation 2 client behind each proxy of conf/proxies, when its server restarts or lets it go.

It takes a clean end of its download for a success and comes back at its next rotation, 7 to 15 minutes later. So the
server ends it uncleanly, and the proxy has to pass that on: docs/deploy.md says which do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, Process, ping, wait_for_ping
from tests.harness.daemon import command
from tests.harness.recipes import NAME, RECIPES, Proxy

from .topologies import STOP_S, TUNNEL_CLIENT, TUNNEL_SERVER, Config, cable, running, server_config, token

pytestmark = pytest.mark.netns

# The recipes, and nginx as it speaks to an upstream when nobody says otherwise: there a body ends with its connection.
PROXIES: Final[dict[str, tuple[str, dict[str, str]]]] = {
    **{kind: (kind, {}) for kind in RECIPES},
    "nginx, HTTP/1.0": ("nginx", {"proxy_http_version 1.1;": "proxy_http_version 1.0;"}),
}
PARTIAL: Final = {18, 56}  # curl: the body is not whole; the connection was reset
BACK_S: Final = 20.0  # an error's pause, here a second at most; its rotation takes minutes
CADDY_TELLS: Final = (2, 8)  # the first Caddy that passes an unclean end on


def passes_breaks_on(host: Host, kind: str) -> bool:
    """Whether this machine's version of it does."""
    if kind != "caddy":
        return True
    found = re.search(r"(\d+)\.(\d+)\.", host.run(["caddy", "version"]).stdout)
    assert found is not None
    return (int(found[1]), int(found[2])) >= CADDY_TELLS


@contextmanager
def behind(lab: Lab, proxy: str) -> Iterator[tuple[Host, Host, Proxy, Config]]:
    """Server and client host, a proxy that runs, and the config of the server behind it, which does not."""
    server, client = cable(lab)
    kind, replace = PROXIES[proxy]
    config = server_config(peers=2)
    del config["listen"]  # the default, loopback, which the recipes have
    with RECIPES[kind](server, replace=replace) as running_proxy:
        yield server, client, running_proxy, config


@contextmanager
def generation_2(host: Host, proxy: Proxy, *options: str) -> Iterator[Process]:
    """The strict peer, with a TUN; it has nothing to complain of at the end."""
    arguments = [f"https://{NAME}/ip", token("laptop"), "--tun", "tun0", "--generation", "2", "--proxied"]
    arguments += ["--ca-file", str(proxy.ca_file), "--retry", "0.5", "1", *options]
    with host.start([sys.executable, "-m", "tests.basepeer", "client", *arguments], name="base-client", cwd=ROOT) as it:
        it.wait_for_log("READY", BACK_S)
        yield it
        it.stop(10)
        assert "VIOLATION" not in it.log, it.tail()


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_restart_is_no_clean_end(lab: Lab, proxy: str) -> None:
    """As any HTTP client sees it."""
    with behind(lab, proxy) as (server, client, running_proxy, config):
        with running(server, config) as daemon:
            tls = ["--cacert", str(running_proxy.ca_file)]
            argv = ["curl", "-sSN", "--http1.1", *tls, "-H", f"x-api-key: {token('laptop')}", f"https://{NAME}/ip"]
            with client.start(argv, name="curl") as curl:
                daemon.wait_for_log("laptop: connected from")
                ping(server, TUNNEL_CLIENT, count=3, wait=0.1)  # has something under way
                assert daemon.stop(STOP_S) == 0
                code = curl.wait(BACK_S)
        assert (code in PARTIAL) == passes_breaks_on(server, PROXIES[proxy][0]), (code, curl.log[:300])


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_generation_2_client_is_back_soon(lab: Lab, proxy: str) -> None:
    """After a restart of its server, and after the operator's `disconnect`: its download. Where the proxy makes a clean
    end of it, at its next rotation only."""
    with behind(lab, proxy) as (server, client, running_proxy, config):
        tells = passes_breaks_on(server, PROXIES[proxy][0])
        # Over HTTP/1.0 nginx keeps an upload until its end. Apache and Caddy do not tell a client that the other side
        # of its upload is gone, so that comes back at its own rotation.
        uploads = proxy in ("nginx", "haproxy")
        rotation = [] if tells else ["--rotate", "6", "7"]
        with running(server, config) as daemon:
            with generation_2(client, running_proxy, *rotation) as peer:
                daemon.wait_for_log("laptop: connected from")
                if uploads:
                    wait_for_ping(client, TUNNEL_SERVER)
                assert daemon.stop(STOP_S) == 0
                with running(server, config) as again:
                    again.wait_for_log("laptop: connected from", BACK_S)
                    if tells:
                        before = again.log_end
                        server.run([*command(), "disconnect", "laptop"])
                        again.wait_for_log("laptop: connected from", BACK_S, after=before)
                    if uploads:
                        wait_for_ping(client, TUNNEL_SERVER, BACK_S)
                peer.check_running()
