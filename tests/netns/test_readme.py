"""What the README shows works as pasted: both configs, and the block for an nginx that is there already."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, download, ping, upload
from tests.harness.daemon import ROOT
from tests.harness.recipes import NAME, PROXIES, RECIPES

from .topologies import TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, cable, running

pytestmark = pytest.mark.netns

BYTES: Final = 3_000_000  # more than nginx's default limit of a body, 1 MB


def blocks(language: str) -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", readme)


def outer_block(text: str, begin: str) -> str:
    """The part of an nginx config that begins so, up to its closing brace."""
    start = text.index(begin)
    indent = re.search(r"[ \t]*$", text[:start])
    assert indent is not None
    return text[start : text.index(f"\n{indent[0]}}}\n", start) + len(indent[0]) + 2]


def pasted() -> dict[str, str]:
    """Words of the recipe to replace: nothing of ours is left at the level of http, and the README's block stands in
    the server."""
    (block,) = blocks("nginx")
    recipe = (PROXIES / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    return {outer_block(recipe, "map $http_upgrade"): "", outer_block(recipe, "location = /ip"): block}


def assert_traffic(client: Host, server: Host) -> None:
    assert ping(client, TUNNEL_SERVER).ok
    assert ping(server, TUNNEL_CLIENT).ok
    for move in (upload, download):
        move(client, server, TUNNEL_SERVER, BYTES)


@pytest.mark.parametrize("transport", ["auto", "http", "websocket"])
def test_it_works_as_pasted(lab: Lab, transport: str) -> None:
    """Also where a stream is replaced every two seconds. Of the client's config the README's text is changed in what a
    test has to know only: the authority of its own certificate, and which transport."""
    server, client = cable(lab)
    server_text, client_text = blocks("json")
    served = server.tmp / "server.json"
    served.write_text(server_text, encoding="utf-8")
    (entry,) = json.loads(client_text)
    assert entry["server"] == f"https://{NAME}/ip"
    with running(server, served), RECIPES["nginx"](server, replace=pasted()) as proxy:
        extra: dict[str, Any] = {"tls": {"ca_file": str(proxy.ca_file)}, "transport": transport, "rotate_s": [1.5, 2.0]}
        until = "WebSocket from " if transport == "websocket" else UPLOADING
        with running(client, entry | extra, "--log-level", "debug", until=until) as daemon:
            assert_traffic(client, server)
            rotated = daemon.log_end
            daemon.wait_for_log(until, 10, after=rotated)
            assert_traffic(client, server)
            assert "WARNING" not in daemon.log
            if transport != "websocket":
                assert "WebSocket from" not in daemon.log
