"""Two interfaces of one process in the same bridge, which one of them makes."""

from __future__ import annotations

import hashlib
import json
import signal
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


def test_a_reload_takes_no_bridge_away_from_another_interface(lab: Lab) -> None:
    """Whether that one starts again or stays; it is refused before anything is stopped. The making may move."""
    host = lab.host("server")
    own = {"name": "br0", "create": True}
    file = host.tmp / "shared.json"

    def write(*configs: Config) -> None:
        file.touch(mode=0o600)
        file.write_text(json.dumps(configs), encoding="utf-8")

    def ports() -> dict[str, str | None]:
        links = {link["ifname"]: link.get("master") for link in host.ip("link show")}
        return {name: master for name, master in links.items() if name.startswith("seg")}

    write(server("seg0", 8080, own), server("seg1", 8081, "br0"))
    with no_leaks(host), running(host, str(file)) as daemon:

        def reload(*configs: Config, told: str) -> None:
            before = daemon.log.count(told)
            write(*configs)
            daemon.signal(signal.SIGHUP)
            wait_until(lambda: daemon.log.count(told) > before, PATIENCE_S, told, daemon.tail)

        both = {"seg0": "br0", "seg1": "br0"}
        wait_until(lambda: ports() == both, PATIENCE_S, "both to be ports", daemon.tail)
        index = host.ip("link show br0")[0]["ifindex"]
        for port in (8081, 8082):
            reload(server("seg1", port, "br0"), told="reload: nothing was changed")
            assert (
                daemon.log.count("seg1: interface seg0 made bridge br0, which goes when that one stops") == port - 8080
            )
        assert ports() == both
        assert host.ip("link show br0")[0]["ifindex"] == index
        reload(server("seg0", 8080, "br0"), server("seg1", 8081, own), told="reload: done")
        wait_until(lambda: ports() == both, PATIENCE_S, "both to be ports again", daemon.tail)
        reload(server("seg1", 8081, own), told="reload: done")
        assert ports() == {"seg1": "br0"}


def test_a_bridge_takes_the_name_that_the_same_reload_frees(lab: Lab) -> None:
    host = lab.host("server")
    file = host.tmp / "freed.json"
    file.touch(mode=0o600)

    def write(*configs: Config) -> None:
        file.write_text(json.dumps(configs), encoding="utf-8")

    former = server("br0", 8080, "br1")
    del former["bridge"]
    write(former)
    with no_leaks(host), running(host, str(file)) as daemon:
        write(server("seg0", 8081, {"name": "br0", "create": True}))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("reload: done", PATIENCE_S)
        links = {link["ifname"]: link.get("master") for link in host.ip("link show")}
        assert links["seg0"] == "br0"
