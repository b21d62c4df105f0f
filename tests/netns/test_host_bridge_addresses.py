"""Addresses on a bridge, and their routes, next to those of other programs, against the real kernel."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from tapotun_trio.host.items import BridgeAddress, BridgePort, Item, ItemsRefused
from tapotun_trio.host.netlink.socket import Rtnetlink
from tapotun_trio.host.tun import open_tun
from tapotun_trio.macs import mac_text

from .bridges import (
    addresses,
    leave,
    make_bridge,
    names,
    on_bridge,
    plug,
    tap,
)
from .families import BOTH, Family
from .fresh_namespace import in_fresh_namespace, ip, sysctl

pytestmark = pytest.mark.netns


@BOTH
@in_fresh_namespace
async def test_addresses_on_another_programs_bridge_come_and_go_without_its_own(family: Family) -> None:
    make_bridge()
    theirs, ours, second = (ip_interface(family(each)) for each in ("10.40.0.1/24", "10.50.0.1/24", "10.50.0.2/24"))
    ip("addr", "add", str(theirs), "dev", "br0", *(["nodad"] if family.version == 6 else []))
    items: list[Item] = [BridgePort("br0"), BridgeAddress("br0", ours), BridgeAddress("br0", second)]
    async with tap() as (device, network):
        device.set_carrier(up=True)
        for _ in range(2):
            await network.add("tap0", items)
            assert addresses("br0") == {theirs, ours, second}
            assert addresses("tap0") == set()
            for name in ("br0", "br1"):  # another program may have renamed it
                found = await network.addressed_link("tap0", name)
                assert found is not None
                assert mac_text(found.mac) == ip("link", "show", "br0")[0]["address"]
                assert {each for each in found.addresses if not each.is_link_local} == {
                    each.ip for each in (theirs, ours, second)
                }
            assert await network.missing("tap0", items) == []
        ip("addr", "del", str(second), "dev", "br0")
        assert await network.missing("tap0", items) == [items[2]]
        ip(f"-{family.version}", "route", "del", str(ours.network), "dev", "br0")
        assert await network.missing("tap0", items) == items[1:]
        await network.add("tap0", items[1:])
        assert await network.missing("tap0", items) == []
        with socket.socket(socket.AF_INET6 if family.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((family("10.50.0.77"), 9))
            assert sock.getsockname()[0] == str(ours.ip)  # the first one
        await network.remove("tap0", items[::-1])
        assert addresses("br0") == {theirs}
        found = await network.addressed_link("tap0", "br0")
        assert found is not None
        assert theirs.ip in found.addresses
        assert await network.addressed_link("tap0", "br1") is None
        with pytest.raises(ItemsRefused, match=f"address {theirs} dev br0: another program gave the bridge this addr"):
            await network.add("tap0", [BridgeAddress("br0", theirs)])
        await network.remove("tap0", [BridgeAddress("br0", theirs)])
        assert addresses("br0") == {theirs}


@BOTH
@in_fresh_namespace
async def test_what_a_renamed_interface_without_a_bridge_has_is_still_known(family: Family) -> None:
    """And what another link has that took its name is not taken for it."""
    async with tap() as (_, network):
        before = await network.addressed_link("tap0", "tap0")
        assert before is not None
        ip("link", "set", "tap0", "name", "other0")
        given = family("10.40.0.1/24")
        ip("addr", "add", given, "dev", "other0")
        for foreign in (False, True):
            if foreign:
                ip("link", "add", "tap0", "type", "bridge")
            found = await network.addressed_link("tap0", "tap0")
            assert found is not None
            assert found.mac == before.mac
            assert ip_interface(given).ip in found.addresses
        ip("link", "del", "other0")
        assert await network.addressed_link("tap0", "tap0") is None


def count_sends(patch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is sent to the kernel from now on."""
    sizes: list[int] = []
    send = Rtnetlink._send

    async def counted(self: Rtnetlink, data: bytes | bytearray) -> None:
        sizes.append(len(data))
        await send(self, data)

    patch.setattr(Rtnetlink, "_send", counted)
    return sizes


@pytest.mark.parametrize("is_old", [False, True])
@BOTH
@in_fresh_namespace
async def test_an_operators_address_is_not_ours_where_no_address_of_the_kernel_is(family: Family, is_old: bool) -> None:
    """Without the loopback interface and IPv6, no address says who made it. Only a kernel before Linux 5.18 cannot say
    that of ours: there what the config has is ours."""
    if family.version == 4:
        sysctl("ipv6/conf/all/disable_ipv6", 1)
    ip("link", "set", "lo", "down")
    make_bridge()
    if family.version == 6:
        ip("link", "set", "br0", "addrgenmode", "none")
        for each in ip("-6", "addr", "show", "dev", "br0")[0].get("addr_info", []):
            ip("addr", "del", f"{each['local']}/{each['prefixlen']}", "dev", "br0")
    theirs = ip_interface(family("10.50.0.1/24"))
    ip("addr", "add", str(theirs), "dev", "br0", *(["nodad"] if family.version == 6 else []))
    item = BridgeAddress("br0", theirs)
    with pytest.MonkeyPatch.context() as patch:
        if is_old:
            older = os.uname_result(("Linux", "host", "5.10.0-30-amd64", "", "x86_64"))
            patch.setattr(os, "uname", lambda: older)
        async with tap() as (_, network):
            if is_old:
                await network.add("tap0", [item])
            else:
                with pytest.raises(ItemsRefused, match="another program gave the bridge this address"):
                    await network.add("tap0", [item])
            await network.remove("tap0", [item])
            assert addresses("br0") == (set() if is_old else {theirs})


@pytest.mark.parametrize("promote", [0, 1])
@BOTH
@in_fresh_namespace
async def test_an_operators_address_in_the_same_network_stays_when_ours_goes(family: Family, promote: int) -> None:
    """By default the kernel removes the other IPv4 addresses of a network with the first one."""
    make_bridge()
    sysctl("ipv4/conf/br0/promote_secondaries", promote)
    nodad = ["nodad"] if family.version == 6 else []
    first, second, theirs = (ip_interface(family(f"10.50.0.{number}/24")) for number in (1, 2, 3))
    items: list[Item] = [BridgePort("br0"), BridgeAddress("br0", first), BridgeAddress("br0", second)]

    def settings() -> tuple[int, int]:
        names = "br0", "all"
        found = tuple(sysctl(f"ipv4/conf/{name}/promote_secondaries") for name in names)
        return found[0], found[1]

    async with tap() as (device, network):
        device.set_carrier(up=True)
        for operators in ([theirs], [theirs, ip_interface(family("10.50.0.4/24"))]):
            await network.add("tap0", items)
            for each in operators:
                ip("addr", "replace", str(each), "dev", "br0", *nodad)
            # Ours is added anew, behind the one that is lacking.
            ip("addr", "del", str(second), "dev", "br0")
            await network.add("tap0", [items[0], items[2], items[1]])
            assert addresses("br0") == {first, second, *operators}
            await network.remove("tap0", items[:0:-1])
            assert addresses("br0") == set(operators)
            assert settings() == (promote, 0)
            routes = ip(f"-{family.version}", "route", "show", str(theirs.network))
            assert [route["dev"] for route in routes].count("br0") >= 1
        await network.remove("tap0", items[:1])


@BOTH
@in_fresh_namespace
async def test_many_addresses_are_removed_together_and_without_the_operators(family: Family) -> None:
    """The time for an undo is short, and other programs keep the kernel's netlink busy."""
    make_bridge()
    ours = [on_bridge(family(f"10.50.0.{number}/24")) for number in range(1, 151)]
    theirs = family("10.50.0.200/24")
    async with tap() as (_, network):
        await network.add("tap0", ours)
        ip("addr", "add", theirs, "dev", "br0", *(["nodad"] if family.version == 6 else []))
        with pytest.MonkeyPatch.context() as patch:
            sends = count_sends(patch)
            await network.remove("tap0", ours[::-1])
        assert 3 <= len(sends) <= 10
        assert addresses("br0") == {ip_interface(theirs)}
        assert sysctl("ipv4/conf/br0/promote_secondaries") == 0
        assert await network.missing("tap0", ours) == ours


@BOTH
@in_fresh_namespace
async def test_what_a_killed_run_left_goes_without_an_operators_address_in_its_network(family: Family) -> None:
    make_bridge()
    leave("tap9", family("10.50.0.9/24"), own=False)
    theirs = family("10.50.0.3/24")
    ip("addr", "add", theirs, "dev", "br0", *(["nodad"] if family.version == 6 else []))
    async with tap() as (_, network):
        await network.add("tap0", [BridgePort("br0")])
        assert addresses("br0") == {ip_interface(theirs)}
        assert sysctl("ipv4/conf/br0/promote_secondaries") == 0


@BOTH
@in_fresh_namespace
async def test_what_a_killed_run_gave_another_programs_bridge_is_removed_unless_it_may_have_an_owner(
    family: Family,
) -> None:
    make_bridge()
    theirs, left, ours = (family(each) for each in ("10.40.0.1/24", "10.50.0.9/24", "10.50.0.1/24"))
    ip("addr", "add", theirs, "dev", "br0", *(["nodad"] if family.version == 6 else []))
    leave("tap9", left, own=False)
    assert names() == {"lo", "br0"}
    assert addresses("br0") == {ip_interface(theirs), ip_interface(left)}
    items: list[Item] = [BridgePort("br0"), BridgeAddress("br0", ip_interface(ours))]
    with open_tun("tap5", mac=bytes.fromhex("02005e100005")):
        ip("link", "set", "tap5", "master", "br0")
        async with tap() as (_, network):
            await network.add("tap0", items)
            assert addresses("br0") == {ip_interface(each) for each in (theirs, left, ours)}
            await network.remove("tap0", items[::-1])
    async with tap() as (_, network):
        await network.add("tap0", items)
        assert addresses("br0") == {ip_interface(each) for each in (theirs, ours)}
        await network.remove("tap0", items[::-1])
    assert addresses("br0") == {ip_interface(theirs)}


@pytest.mark.parametrize("words", [["metric", "425"], ["table", "100"]])
@BOTH
@in_fresh_namespace
async def test_a_route_that_another_program_keeps_in_place_of_the_kernels_is_enough(
    family: Family, words: list[str]
) -> None:
    """As NetworkManager does with its metrics."""
    make_bridge()
    ours, second = (ip_interface(family(each)) for each in ("10.50.0.1/24", "10.60.0.1/24"))
    items: list[Item] = [BridgePort("br0"), BridgeAddress("br0", ours), BridgeAddress("br0", second)]
    version = f"-{family.version}"

    def routes() -> list[tuple[str, str | None, int | None]]:
        found = ip(version, "route", "show", "dev", "br0", "table", "all", "proto", "kernel")
        to_ours = [each for each in found if each["dst"] == str(ours.network) and each.get("table") != "local"]
        return [(each["dst"], each.get("table"), each.get("metric")) for each in to_ours]

    async with tap() as (device, network):
        device.set_carrier(up=True)
        await network.add("tap0", items)
        assert len(routes()) == 1
        ip(version, "route", "del", str(ours.network), "dev", "br0")
        ip(version, "route", "add", str(ours.network), "dev", "br0", "proto", "kernel", *words)
        theirs = routes()
        assert len(theirs) == 1
        assert await network.missing("tap0", items) == []
        ip(version, "route", "del", str(second.network), "dev", "br0")
        assert await network.missing("tap0", items) == items[2:]
        await network.add("tap0", items)
        assert routes() == theirs
        assert await network.missing("tap0", items) == []
        await network.remove("tap0", items[::-1])


@BOTH
@in_fresh_namespace
async def test_an_address_on_the_bridge_is_not_one_of_another_interface(family: Family) -> None:
    """For the networks that are attached otherwise, and for the way past the tunnel, which may lead through the same
    bridge."""
    make_bridge()
    plug("eth0")
    uplink, gateway = family("192.0.2.7/24"), family("192.0.2.1")
    nodad = ["nodad"] if family.version == 6 else []
    ip("addr", "add", uplink, "dev", "br0", *nodad)
    ip(f"-{family.version}", "route", "add", "default", "via", gateway)
    server, ours = ip_address(family("10.50.0.99")), ip_interface(family("10.50.0.1/24"))
    items: list[Item] = [BridgePort("br0"), BridgeAddress("br0", ours)]
    async with tap() as (_, network):
        before = await network.next_hop("tap0", server, None)
        assert before is not None
        assert not await network.leads_into("tap0", server, None)
        await network.add("tap0", items)
        assert await network.leads_into("tap0", server, None)
        assert not await network.leads_into("tap0", ip_address(family("192.0.2.9")), None)
        next_hop = await network.next_hop("tap0", server, None)
        assert next_hop is not None
        assert (str(next_hop.gateway), next_hop.device) == (gateway, "br0")
        assert next_hop.captured_by == (ours.network, 254)
        assert (before.gateway, before.network, before.captured_by) == (next_hop.gateway, next_hop.network, None)
        wanted = [ip_network(each, strict=False) for each in (str(ours), uplink)]
        found = await network.attached("tap0", wanted, wanted)
        assert {each.network for each in found} == {ip_interface(uplink).network}
        await network.remove("tap0", items[::-1])
        assert not await network.leads_into("tap0", server, None)
