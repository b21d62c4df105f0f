"""TCP of a router whose network card merges nothing: segments of 1,500 bytes reach the far kernel as super-packets."""

from __future__ import annotations

import pytest

from bench.offload import switched
from tests.harness import Lab, Payload, capture, no_leaks, upload

from .topologies import TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, allowed, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

BEHIND = "10.60.0.2"


def test_segments_of_a_router_without_gro_are_merged() -> None:
    with no_leaks(), Lab() as lab, Payload(32 << 20) as payload:
        server, client = cable(lab)
        behind = lab.host("behind")
        lab.link(client, "10.60.0.1/24", behind, f"{BEHIND}/24")
        client.sysctl("net.ipv4.ip_forward", 1)
        behind.ip("route add default via 10.60.0.1")
        laptop = allowed("laptop", TUNNEL_CLIENT, routes=["10.60.0.0/24"])
        with (
            running(server, server_config(laptop)),
            running(client, client_config(), until=UPLOADING),
            switched(behind, "eth0", tso=False, gso=False),
            switched(client, "eth1", gro=False),
            capture(server, "tun0", f"src host {BEHIND} and greater 3000", snap_bytes=96) as merged,
            capture(client, "eth1", f"src host {BEHIND} and greater 3000", snap_bytes=96) as before,
        ):
            there = upload(behind, server, TUNNEL_SERVER, payload)
        assert there.sha256 == payload.sha256
        assert not before.packets
        assert len(merged.packets) > 20
