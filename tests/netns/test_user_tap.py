"""TAP interfaces of an ordinary user, who has CAP_NET_ADMIN and nothing else of root's."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness import Lab, wait_for_ping

from .test_user import PATIENCE_S, UID, identity, prepared, start, write
from .topologies import UPLOADING, allowed, cable, client_config, server_config

pytestmark = pytest.mark.netns

NET_ADMIN: Final = 1 << 12


def test_bridges_and_the_options_of_their_ports(lab: Lab) -> None:
    """Root starts them. The hub makes a bridge of its own; the client's port is in one that was there. Afterwards that
    one is all that is left."""
    server, client = map(prepared, cable(lab))
    client.ip("link add br1 up type bridge")
    addresses = ["10.30.0.1", "fd00:30::1"]
    hub = server_config(
        {**allowed("laptop"), "ip": ["10.30.0.2", "fd00:30::2"]},
        name="seg0",
        device="tap",
        net=["10.30.0.1/24", "fd00:30::1/64"],
        bridge={"name": "br0", "create": True},
    )
    options = {"isolated": True, "learning": False, "bpdu_guard": True}
    laptop = client_config(name="seg0", device="tap", bridge={"name": "br1", **options})
    with ExitStack() as stack:
        daemon = stack.enter_context(start(server, "--user", "tapotun", write(server, "hub.json", [hub])))
        daemon.wait_for_log("seg0: listening on ")
        far = stack.enter_context(start(client, "--user", "tapotun", write(client, "laptop.json", [laptop])))
        far.wait_for_log(UPLOADING, timeout=PATIENCE_S)
        for process in (daemon, far):
            assert identity(process.pid)["Uid"] == " ".join([str(UID)] * 4)
            assert int(identity(process.pid)["CapEff"], 16) == NET_ADMIN
        for address in addresses:
            assert wait_for_ping(client, address, PATIENCE_S).ok
        [own] = server.ip("-d link show seg0")
        assert own["master"] == "br0"
        [port] = client.ip("-d link show seg0")
        data = port["linkinfo"]["info_slave_data"]
        assert (port["master"], data["isolated"], data["learning"], data["guard"]) == ("br1", True, False, True)
        for host, name in ((server, "seg0"), (server, "br0"), (client, "seg0")):
            assert host.run(["cat", f"/proc/sys/net/ipv6/conf/{name}/accept_ra"]).stdout == "0\n"

        # Put back by this user, too.
        client.ip("link set seg0 nomaster")
        far.wait_for_log("another program took away the interface's place in bridge br1: put back")
        for address in addresses:
            assert wait_for_ping(client, address, PATIENCE_S).ok

        for process, told in ((far, 1), (daemon, 0)):
            assert process.stop(PATIENCE_S) == 0
            assert process.log.count("WARNING") == told
            assert "ERROR" not in process.log
    assert {link["ifname"] for link in server.ip("link show")} & {"seg0", "br0"} == set()
    assert {link["ifname"] for link in client.ip("link show")} & {"seg0", "br1"} == {"br1"}
