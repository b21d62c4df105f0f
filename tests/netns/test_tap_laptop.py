"""A laptop in the segment of an office, with no bridge: what its machine takes from routers there."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, ping, wait_until

from .topologies import UPLOADING, allowed, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
ROUTER: Final = "fd00:30::1"


def addresses(host: Host) -> list[str]:
    [link] = host.ip("address show seg0")
    return [str(each["local"]) for each in link["addr_info"]]


def test_ipv6_by_router_advertisements_is_for_who_asks_for_it(lab: Lab) -> None:
    """By the commands of docs/config.md."""
    server, client = cable(lab)
    client.sysctl("net.ipv6.conf.default.accept_ra", 1)  # as on any machine
    router = lab.host("router")
    lab.link(server, [], router, [f"{ROUTER}/64"])
    server.ip("link add br0 up type bridge")
    [port] = [link["ifname"] for link in server.ip("link show type veth") if link["ifname"] not in ("eth0", "br0")]
    server.ip(f"link set {port} master br0")
    hub = server_config({**allowed("laptop"), "ip": []}, name="seg0", device="tap", net=None, bridge="br0")
    del hub["net"], hub["clients"][0]["ip"]
    advertise = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--enable-ra"]
    advertise += ["--log-facility=-", f"--dhcp-leasefile={router.tmp}/leases", "--ra-param=*,3,1800"]
    advertise += ["--dhcp-range=fd00:30::,ra-only,64,1h"]
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    commands = [" ".join(it.split()) for it in re.findall(r"`((?:sysctl -w|ip link set)\s[^`]*seg0[^`]*)`", page)]
    assert len(commands) == 4
    with running(server, hub), running(client, client_config(name="seg0"), until=UPLOADING) as laptop:
        with router.start(advertise):
            # The server's bridge is another program's, and here takes what it hears.
            server.sysctl("net.ipv6.conf.br0.accept_ra", 1)
            wait_until(lambda: server.ip("-6 route show default dev br0"), PATIENCE_S, "an advertisement")
            assert addresses(client) == []
            assert client.ip("-6 route show default") == []
            client.run(["sh", "-e", "-c", "\n".join(commands)])
            wait_until(lambda: client.ip("-6 route show default dev seg0"), PATIENCE_S, "a default route", laptop.tail)
            wait_until(lambda: any(it.startswith("fd00:30::") for it in addresses(client)), PATIENCE_S, "an address")
            wait_until(lambda: ping(client, ROUTER).ok, PATIENCE_S, "the router")
