"""Two interfaces of one process in the same bridge, which one of them makes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.harness import Lab, no_leaks, wait_until

from .topologies import Config, has_interface, running, token

pytestmark = pytest.mark.netns

PATIENCE_S = 60.0  # no promise of a speed, the machine may be busy


def server(name: str, port: int, bridge: Any) -> Config:
    """A server's config, with one client."""
    client = {"name": name, "token": hashlib.sha1(token(name).encode()).hexdigest()}
    return {
        "name": name,
        "device": "tap",
        "listen": "127.0.0.1",
        "port": port,
        "bridge": bridge,
        "clients": [client],
    }


@pytest.mark.parametrize("maker_first", [True, False])
def test_both_are_ports_in_whatever_order_the_config_has_them(lab: Lab, maker_first: bool) -> None:
    host = lab.host("server")
    configs = [server("seg0", 8080, {"name": "br0", "create": True}), server("seg1", 8081, "br0")]

    def are_ports() -> bool:
        links = {link["ifname"]: link.get("master") for link in host.ip("link show")}
        return links.get("seg0") == links.get("seg1") == "br0"

    with no_leaks(host), running(host, configs if maker_first else configs[::-1]) as daemon:
        wait_until(are_ports, PATIENCE_S, "both to be ports of the bridge", daemon.tail)
        daemon.wait_for_log("ready: seg1", PATIENCE_S)
        assert "ERROR" not in daemon.log
    assert not has_interface(host, "br0")
