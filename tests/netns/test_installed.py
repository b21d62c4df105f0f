"""What an interface wants, changed and put back, against the real kernel."""

from __future__ import annotations

import logging
import socket

import pytest

from tapotun_trio.host.items import DesiredState, Item
from tapotun_trio.host.netlink.codec import FAMILIES
from tapotun_trio.host.netlink.network import open_netlink
from tapotun_trio.host.tun import open_tun
from tapotun_trio.netconf.installed import InstalledItems

from .families import BOTH, Family
from .fresh_namespace import in_fresh_namespace, ip

pytestmark = pytest.mark.netns

LOG = logging.LoggerAdapter(logging.getLogger(__name__))


def wanted(family: Family, *addresses: str) -> list[Item]:
    return [*map(family.address, addresses), family.route("10.60.0.0/24"), *family.marked()]


@pytest.mark.parametrize("changed", [4, 6])
@in_fresh_namespace
async def test_a_family_whose_last_address_changes_keeps_its_routes_and_leaves_the_other_alone(changed: int) -> None:
    one, other = Family(changed), Family(10 - changed)
    kept = wanted(other, "10.50.0.1/24")
    with open_tun("tun0"):
        async with open_netlink() as network:
            installed = InstalledItems(network, "tun0", LOG)
            await installed.change(DesiredState(1400, (*wanted(one, "10.50.0.1/24"), *kept)))
            if other.version == 6:
                other.ip(
                    "addr", "change", "10.50.0.1/24", "dev", "tun0", "preferred_lft", "0"
                )  # added anew, it has more
            await installed.change(DesiredState(1400, (*wanted(one, "10.50.0.2/24"), *kept)))
            assert one.addresses() == one.all("10.50.0.2/24")
            assert await network.missing("tun0", installed.items) == []
            if other.version == 6:
                [link] = other.ip("addr", "show", "dev", "tun0")
                assert link["addr_info"][0]["preferred_life_time"] == 0


@BOTH
@in_fresh_namespace
async def test_an_address_that_is_put_back_has_its_place_again(family: Family) -> None:
    """The first of a network is the source of packets to it."""
    addresses = ["10.50.0.7/24", "10.50.0.1/24", "10.50.0.9/24"]
    with open_tun("tun0"):
        async with open_netlink() as network:
            installed = InstalledItems(network, "tun0", LOG)
            await installed.change(DesiredState(1400, tuple(wanted(family, *addresses))))
            for taken in addresses:
                ip(*f"addr del {family(taken)} dev tun0".split())
                await installed.put_back(await installed.absent())
                assert await installed.absent() == []
                with socket.socket(FAMILIES[family.version], socket.SOCK_DGRAM) as sock:
                    sock.connect((family("10.50.0.2"), 9))
                    assert sock.getsockname()[0] == family("10.50.0.7"), taken
