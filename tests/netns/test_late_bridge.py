"""A bridge that another program makes later than the interface that is to be its port, as happens while a machine
boots."""

from __future__ import annotations

import pytest

from tests.harness import Lab, no_leaks, wait_for_ping, wait_until

from .segments import BRIDGE, INTERFACE, LAN, PATIENCE_S, Segment, make_bridge, process_status, write_config
from .topologies import UPLOADING, running

pytestmark = pytest.mark.netns


def test_both_ends_wait_for_their_bridges(lab: Lab) -> None:
    """A server that ended at once would stay down: no service manager starts it again after exit code 1."""
    segment = Segment(lab, "branch")
    hub, branch = segment.sites
    for site in segment.sites:
        site.gateway.ip(f"link del {BRIDGE}")
    with no_leaks(hub.gateway, branch.gateway):
        file = write_config(hub.gateway, segment.server())
        with (
            running(hub.gateway, file, name="tapotun-hub") as server,
            running(branch.gateway, segment.client("branch"), until="started: ", name="tapotun-branch") as client,
        ):
            server.wait_for_log(f"there is no bridge {BRIDGE}; make it", PATIENCE_S)
            (interface,) = process_status(hub.gateway)["interfaces"]
            assert (interface["state"], interface["bridge"]) == ("failed", BRIDGE)
            assert f"ready: {INTERFACE}" not in server.log
            for site in segment.sites:
                make_bridge(site.gateway, LAN)
            server.wait_for_log(f"ready: {INTERFACE}", PATIENCE_S)
            client.wait_for_log(UPLOADING, PATIENCE_S)
            for address in branch.addresses:
                assert wait_for_ping(hub.machine, address, PATIENCE_S).ok
            for site in segment.sites:
                wait_until(lambda: INTERFACE in site.ports(), PATIENCE_S, f"the port at {site.name}")  # noqa: B023
        for site in segment.sites:
            site.gateway.ip(f"link del {BRIDGE}")
