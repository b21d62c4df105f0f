"""Networks behind a client and inside the tunnel, as people have them: hosts that configure themselves, and VXLAN."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from typing import Final

import pytest

from tests.harness import Host, Lab, download, no_leaks, ping, upload, wait_for_ping, wait_until

from .dual import BEHIND, HUB, LAPTOP, PLANES, advertising, dual_cable, dual_client, dual_config, forwards, status
from .topologies import UPLOADING, client_config, device_to, running

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
MTU: Final = 1380  # of the tunnel


def test_a_host_with_slaac_behind_a_client(lab: Lab) -> None:
    """It learns its address and its router from the client's machine, and knows nothing of the tunnel, whose MTU is
    smaller than that of its cable."""
    server, laptop = dual_cable(lab)
    third = lab.host("third")
    lab.link(laptop, "fd00:60::1/64", third, [])
    forwards(laptop)
    third.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    with (
        running(server, dual_config(dual_client(routes=[BEHIND[1]]), mtu=MTU)),
        running(laptop, client_config(), until=UPLOADING),
        advertising(laptop, "eth1", BEHIND[1]) as radvd,
    ):
        address = str(wait_until(lambda: _global_address(third), PATIENCE_S, "an address", radvd.tail))
        assert IPv6Address(address) in IPv6Network(BEHIND[1])
        assert ping(third, HUB[1]).ok
        assert ping(server, address).ok
        # Packet Too Big, from the client's machine and from the kernel of the server itself.
        upload(third, server, HUB[1], 3_000_000)
        download(third, server, HUB[1], 3_000_000)
        upload(server, third, address, 3_000_000)


BRIEFLY: Final = "AdvAutonomous off; AdvValidLifetime 5; AdvPreferredLifetime 5;"
"""A prefix that is on the link, of which nobody makes addresses, and which is forgotten soon."""


def test_a_laptop_in_the_pushed_network_with_an_address_by_dhcpv6(lab: Lab) -> None:
    """Its address says no network, and the router says which one is on the link. That wins over the push."""
    server, laptop = dual_cable(lab)
    office = lab.host("office")
    forwards(office)
    lab.link(office, "fd00:61::1/64", laptop, [])
    laptop.sysctl("net.ipv6.conf.eth1.accept_ra", 1)
    laptop.ip("address add fd00:61::7/128 dev eth1 nodad")  # as a DHCPv6 client does it
    with (
        running(server, dual_config(push_routes=["fd00:61::/64", "fd00:62::/64"])),
        running(laptop, client_config(), until=UPLOADING) as daemon,
    ):
        daemon.wait_for_log("ready: ")
        assert device_to(laptop, "fd00:61::1") == "tun0"
        with advertising(office, "eth0", "fd00:61::/64", BRIEFLY):
            wait_until(lambda: device_to(laptop, "fd00:61::1") == "eth1", PATIENCE_S, "the LAN", daemon.tail)
            assert ping(laptop, "fd00:61::1").ok
            assert device_to(laptop, "fd00:62::1") == "tun0"
            (found,) = status(laptop)["left_out"]
            assert (found["route"], found["reason"], found["device"]) == ("fd00:61::/64", "attached", "eth1")
        wait_until(lambda: device_to(laptop, "fd00:61::1") == "tun0", PATIENCE_S, "the tunnel again", daemon.tail)
        assert "pushed route fd00:61::/64 is used again" in daemon.log


def _global_address(host: Host) -> str | None:
    (link,) = (link for link in host.ip("-6 address show") if link["ifname"] == "eth0")
    found = [each["local"] for each in link["addr_info"] if each["scope"] == "global" and not each.get("tentative")]
    return found[0] if found else None


@pytest.mark.parametrize("plane", PLANES)
def test_vxlan_inside(lab: Lab, plane: str) -> None:
    """Ethernet over UDP over IPv6 in the tunnel. The kernel hands over what it has segmented: a TUN device does not
    take segments inside of a tunnel."""
    server, client = dual_cable(lab)
    with (
        no_leaks(server, client),
        running(server, dual_config(), env=PLANES[plane]),
        running(client, client_config(), until=UPLOADING, env=PLANES[plane]),
    ):
        for host, local, remote, number in ((server, HUB[1], LAPTOP[1], 1), (client, LAPTOP[1], HUB[1], 2)):
            host.ip(f"link add vx0 type vxlan id 5 local {local} remote {remote} dstport 4789 dev tun0")
            host.ip(f"address add 10.99.0.{number}/24 dev vx0")
            host.ip(f"address add fd00:99::{number}/64 dev vx0 nodad")
            host.ip("link set vx0 up")
        for address in ("10.99.0.1", "fd00:99::1"):
            wait_for_ping(client, address, PATIENCE_S)
            assert ping(client, address, size=1000).ok
            upload(client, server, address, 5_000_000)
            download(client, server, address, 5_000_000)
        for host in (server, client):
            host.ip("link delete vx0")
