"""Bridges, our own and another program's, and their ports, against the real kernel; what the reconciler puts back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from typing import Any, Final

import pytest
import trio

from tapotun_trio.config.model import Bridge
from tapotun_trio.errors import HostError, MissingBridgeError
from tapotun_trio.host.items import BridgeAddress, BridgePort, DesiredState, Item, ItemsRefused
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.mac import derive_mac
from tapotun_trio.host.netlink.socket import Refusal, Rtnetlink
from tapotun_trio.host.tun import TunDevice, open_tun
from tapotun_trio.macs import mac_text
from tapotun_trio.netconf.desired import desired_for_client
from tapotun_trio.netconf.leftovers import remove_left_over_bridges
from tapotun_trio.netconf.reconciler import Reconciler
from tapotun_trio.netconf.repairer import Health
from tapotun_trio.netconf.transport_guard import TransportGuard
from tapotun_trio.wire.settings import InterfaceSettings

from ..unit.support import client_config
from .bridges import (
    MAC,
    OWN,
    addresses,
    bridge_link,
    leave,
    make_bridge,
    master,
    names,
    on_bridge,
    plug,
    port_options,
    set_option,
    tap,
    until,
)
from .families import BOTH, Family
from .fresh_namespace import in_fresh_namespace, ip, sysctl

pytestmark = pytest.mark.netns

LOG: Final = logging.LoggerAdapter(logging.getLogger(__name__))


# Ports


@pytest.mark.parametrize(
    "port",
    [
        BridgePort("br0"),
        BridgePort("br0", isolated=True),
        BridgePort("br0", learning=False),
        BridgePort("br0", bpdu_guard=True),
        BridgePort("br0", isolated=True, learning=False, bpdu_guard=True),
    ],
)
@in_fresh_namespace
async def test_a_port_has_its_options_and_only_they_are_what_is_missing(port: BridgePort) -> None:
    make_bridge()
    async with tap() as (device, network):
        assert await network.missing("tap0", [port]) == [port]
        for _ in range(2):  # it is idempotent
            await network.add("tap0", [port])
            assert master("tap0") == "br0"
            assert port_options("tap0") == (port.isolated, port.learning, port.bpdu_guard)
            assert await network.missing("tap0", [port]) == []
        device.set_carrier(up=True)
        await until("forwarding", lambda: bridge_link("tap0")["state"] == "forwarding")
        device.set_carrier(up=False)
        await until("disabled", lambda: bridge_link("tap0")["state"] == "disabled")
        for option, value in (("isolated", port.isolated), ("learning", port.learning), ("guard", port.bpdu_guard)):
            other = "off" if value else "on"
            set_option(option, other)
            assert await network.missing("tap0", [port]) == [port]
            await network.add("tap0", [port])
            assert port_options("tap0") == (port.isolated, port.learning, port.bpdu_guard)
        await network.remove("tap0", [port])
        assert master("tap0") is None
        assert names() == {"lo", "br0", "tap0"}
        await network.remove("tap0", [port])  # it is no error
    assert names() == {"lo", "br0"}


@in_fresh_namespace
async def test_a_bridge_keeps_its_mac_address_when_a_tap_with_a_derived_one_becomes_its_port() -> None:
    """A bridge without an address of its own has the lowest of its ports."""
    make_bridge()
    ip("link", "add", "eth1", "address", "52:54:00:12:34:56", "type", "veth", "peer", "name", "far0")
    ip("link", "set", "eth1", "master", "br0")
    lowest = min(derive_mac("tap0", "client", bytes([number]), b"a machine") for number in range(256))
    async with tap(mac=lowest) as (_, network):
        await network.add("tap0", [BridgePort("br0")])
        assert ip("link", "show", "br0")[0]["address"] == "52:54:00:12:34:56"


@in_fresh_namespace
async def test_a_port_that_another_program_moved_is_left_there_and_moved_back_when_it_is_added() -> None:
    make_bridge()
    make_bridge("br1")
    async with tap() as (_, network):
        await network.add("tap0", [BridgePort("br0")])
        ip("link", "set", "tap0", "master", "br1")
        assert await network.missing("tap0", [BridgePort("br0")]) == [BridgePort("br0")]
        await network.remove("tap0", [BridgePort("br0")])
        assert master("tap0") == "br1"
        await network.add("tap0", [BridgePort("br0")])
        assert master("tap0") == "br0"


@BOTH
@in_fresh_namespace
async def test_a_bridge_whose_index_another_interface_has_got_is_found_by_its_name(family: Family) -> None:
    make_bridge()
    index = ip("link", "show", "br0")[0]["ifindex"]
    items: list[Item] = [BridgePort("br0"), on_bridge(family("10.50.0.1/24"))]
    async with tap() as (_, network):
        await network.add("tap0", items)
        ip("link", "del", "br0")
        ip("link", "add", "eth1", "index", str(index), "type", "veth", "peer", "name", "far0")
        assert await network.missing("tap0", items) == items
        with pytest.raises(ItemsRefused, match="there is no bridge br0") as info:
            await network.add("tap0", items)
        assert str(info.value.missing_bridge) == info.value.refused[items[0]]
        make_bridge()
        await network.add("tap0", items)
        assert await network.missing("tap0", items) == []
        await network.remove("tap0", items[::-1])
        assert (master("tap0"), addresses("br0")) == (None, set())


@BOTH
@in_fresh_namespace
async def test_a_bridge_that_does_not_exist_or_is_none_is_refused_with_a_remedy(family: Family) -> None:
    ip("link", "add", "br1", "type", "veth", "peer", "name", "far0")
    items: list[Item] = [BridgePort("br0"), on_bridge(family("10.50.0.1/24")), BridgePort("br1")]
    async with tap() as (_, network):
        with pytest.raises(ItemsRefused) as info:
            await network.add("tap0", items)
        assert info.value.refused == {
            items[0]: (
                "interface tap0 as a port of bridge br0: there is no bridge br0; make it (`ip link add br0 up type "
                'bridge`), or say "create": true, which makes it and removes it at the end'
            ),
            items[1]: (
                f"address {family('10.50.0.1/24')} dev br0: there is no bridge br0; make it (`ip link add br0 up type "
                'bridge`), or say "create": true, which makes it and removes it at the end'
            ),
            items[2]: (
                "interface tap0 as a port of bridge br1: br1 is an interface of kind veth, and no bridge; name a bridge"
            ),
        }
        assert info.value.missing_bridge is None, "not all would be well with the bridge"
        assert await network.missing("tap0", items) == items
        await network.remove("tap0", items)
        assert names() == {"lo", "tap0", "br1", "far0"}


# Bridges of our own


@in_fresh_namespace
async def test_whether_a_bridge_could_be_used_is_known_before() -> None:
    """A bridge that an interface of ours made goes with that interface."""
    make_bridge("br1")
    async with tap() as (_, network):
        await network.add("tap0", OWN)

        async def refusal(bridge: str, *ending: str, create: bool = False) -> HostError | None:
            try:
                await network.require_bridge("tap1", bridge, create=create, ending=ending)
            except HostError as exc:
                return exc
            return None

        assert await refusal("br0") is None
        assert isinstance(await refusal("br0", "tap0"), MissingBridgeError)
        assert "interface tap0 of this program made it" in str(await refusal("br0", create=True))
        assert await refusal("br0", "tap0", create=True) is None
        assert await refusal("br1", "tap0") is None
        assert "another program made it" in str(await refusal("br1", "tap0", create=True))
        assert isinstance(await refusal("br2"), MissingBridgeError)
        assert await refusal("br2", create=True) is None
        assert "lo is an interface, and no bridge" in str(await refusal("lo"))
        assert "the name is taken, by an interface" in str(await refusal("lo", create=True))
        assert "tap0 is an interface of kind tun, and no bridge" in str(await refusal("tap0"))
        assert await refusal("tap0", "tap0", create=True) is None
        gone = await refusal("tap0", "tap0")
        assert isinstance(gone, MissingBridgeError)
        assert "there is no bridge tap0; make it" in str(gone)
        assert await refusal("br1", "br1") is None, "an interface of that name could not start"
        assert names() == {"lo", "tap0", "br0", "br1"}, "nothing was made"
        await network.remove("tap0", OWN[::-1])


@BOTH
@in_fresh_namespace
async def test_a_bridge_of_ours_is_made_with_the_mac_address_of_the_tap_and_keeps_it(family: Family) -> None:
    items: list[Item] = [*OWN, on_bridge(family("10.50.0.1/24"))]
    async with tap() as (_, network):
        await network.add("tap0", items)
        assert await network.missing("tap0", items) == []
        [link] = ip("link", "show", "br0")
        assert link["address"] == mac_text(MAC)
        assert link["ifalias"] == "tapotun tap0"
        assert link["mtu"] == 1400  # of its port
        assert link["inet6_addr_gen_mode"] == ("none" if family.version == 4 else "eui64")
        assert "UP" in link["flags"]
        assert sysctl("ipv6/conf/br0/accept_ra") == 0
        index = link["ifindex"]
        # A port with a lower MAC address would give the bridge another one.
        ip("link", "add", "eth1", "address", "00:00:5e:00:00:01", "type", "veth", "peer", "name", "far0")
        ip("link", "set", "eth1", "master", "br0")
        await network.link_up("tap0", 1350)
        await network.add("tap0", items)
        [link] = ip("link", "show", "br0")
        assert (link["ifindex"], link["address"], link["mtu"]) == (index, mac_text(MAC), 1350)
        await network.remove("tap0", items[::-1])
        assert names() == {"lo", "tap0", "eth1", "far0"}
        assert master("tap0") is None
        await network.remove("tap0", items[::-1])


@in_fresh_namespace
async def test_a_bridge_of_ours_is_silent_by_ipv6_unless_it_has_an_address_of_ours() -> None:
    for interface, mode in (("10.50.0.1/24", "none"), ("fd50::1/64", "eui64")):
        items: list[Item] = [*OWN, on_bridge(interface)]
        async with tap() as (device, network):
            await network.add("tap0", items)
            assert ip("link", "show", "br0")[0]["inet6_addr_gen_mode"] == mode
            assert ip("link", "show", "tap0")[0]["inet6_addr_gen_mode"] == "none"
            device.set_carrier(up=True)
            await until("carrier", lambda: ip("link", "show", "br0")[0]["operstate"] == "UP")
            automatic = {"fe80::5eff:fe10:1"} if mode == "eui64" else set()

            def link_local() -> set[str]:
                found = ip("-6", "addr", "show", "dev", "br0", "scope", "link")
                return {each["local"] for link in found for each in link.get("addr_info", []) if each}

            await until("link-local address", lambda wanted=automatic, get=link_local: get() == wanted)
            await network.remove("tap0", items[::-1])
    assert names() == {"lo"}


@pytest.mark.parametrize("is_ours", [True, False])
@in_fresh_namespace
async def test_a_bridge_of_ours_is_silent_after_the_mtu_of_its_port_was_too_small_for_ipv6(is_ours: bool) -> None:
    """The kernel discards the IPv6 settings of such a bridge. Another program's is left to that one."""
    if not is_ours:
        make_bridge()
    items: list[Item] = OWN if is_ours else [BridgePort("br0")]
    sysctl("ipv6/conf/default/forwarding", 1)
    async with tap() as (device, network):
        await network.add("tap0", items)
        device.set_carrier(up=True)
        await until("carrier", lambda: ip("link", "show", "br0")[0]["operstate"] == "UP")
        ip("link", "set", "tap0", "mtu", "1000")
        assert ip("link", "show", "br0")[0]["mtu"] == 1000
        await network.link_up("tap0", 1400)
        assert ip("link", "show", "br0")[0]["mtu"] == 1400
        assert sysctl("ipv6/conf/tap0/accept_ra") == sysctl("ipv6/conf/tap0/forwarding") == 0
        assert sysctl("ipv6/conf/br0/accept_ra") == (0 if is_ours else 1)
        [link] = ip("link", "show", "br0")
        assert link["inet6_addr_gen_mode"] == ("none" if is_ours else "eui64")
        found = ip("-6", "addr", "show", "dev", "br0")
        assert [each for link in found for each in link.get("addr_info", []) if is_ours] == []
        await network.remove("tap0", items[::-1])


@in_fresh_namespace
async def test_a_bridge_of_ours_with_an_ipv6_address_believes_no_router_after_its_mtu_was_too_small() -> None:
    items: list[Item] = [*OWN, on_bridge("fd50::1/64")]
    async with tap() as (_, network):
        await network.add("tap0", items)
        ip("link", "set", "tap0", "mtu", "1000")
        await network.link_up("tap0", 1400)
        assert await network.missing("tap0", items) == [items[2]]
        await network.add("tap0", items[2:])
        assert await network.missing("tap0", items) == []
        assert sysctl("ipv6/conf/br0/accept_ra") == 0
        assert ip("link", "show", "br0")[0]["inet6_addr_gen_mode"] == "eui64"
        # A port of another program's that was too small, and is not any more.
        ip("link", "add", "eth1", "mtu", "1000", "type", "veth", "peer", "name", "far0")
        ip("link", "set", "eth1", "master", "br0")
        ip("link", "set", "eth1", "mtu", "1500")
        assert sysctl("ipv6/conf/br0/accept_ra") == 1
        await network.add("tap0", items[2:])
        assert sysctl("ipv6/conf/br0/accept_ra") == 0
        await network.remove("tap0", items[::-1])


def groups(name: str) -> set[str]:
    """The multicast groups that the kernel has joined there, and announces by IGMP and MLD."""
    told = {"224.0.0.1", "ff01::1", "ff02::1"}  # nobody announces these
    [link] = ip("maddr", "show", "dev", name)
    return {it["address"] for it in link["maddr"] if it.get("family") in ("inet", "inet6")} - told


@in_fresh_namespace
async def test_neither_port_nor_bridge_announces_itself_by_igmp_and_mld() -> None:
    """On a machine that forwards IPv6, too. What is announced is a group that the kernel is in."""
    sysctl("ipv6/conf/default/forwarding", 1)
    make_bridge("br1")
    assert {"224.0.0.106", "ff02::6a"} <= groups("br1")  # as another program's does
    sysctl("ipv6/conf/default/forwarding", 0)
    async with tap() as (device, network):
        sysctl("ipv6/conf/tap0/forwarding", 1)
        assert groups("tap0") == {"ff01::2", "ff02::2", "ff05::2"}
        await network.add("tap0", OWN)
        device.set_carrier(up=True)
        await until("carrier", lambda: ip("link", "show", "br0")[0]["operstate"] == "UP")
        assert groups("tap0") == groups("br0") == set()
        await network.remove("tap0", OWN[::-1])


@BOTH
@in_fresh_namespace
async def test_another_programs_interface_of_that_name_is_refused_and_left_alone(family: Family) -> None:
    cases = (
        (("br0", "type", "bridge"), 'another program made it; leave out "create" to use it'),
        (("br0", "type", "veth", "peer", "name", "far0"), "the name is taken, by an interface of kind veth"),
    )
    for words, reason in cases:
        ip("link", "add", *words)
        before = ip("link", "show", "br0")
        items: list[Item] = [*OWN, on_bridge(family("10.50.0.1/24"))]
        async with tap() as (_, network):
            with pytest.raises(ItemsRefused, match=reason) as info:
                await network.add("tap0", items)
            assert set(info.value.refused) == set(items)  # what needs the bridge is not tried
            assert await network.missing("tap0", items) == items
            await network.remove("tap0", items[::-1])
            assert master("tap0") is None
        assert ip("link", "show", "br0") == before
        ip("link", "del", "br0")


@in_fresh_namespace
async def test_a_bridge_of_another_interface_of_ours_is_that_ones() -> None:
    async with tap() as (_, network), tap("tap1", bytes.fromhex("02005e100009")) as (_, other):
        await network.add("tap0", OWN)
        with pytest.raises(ItemsRefused, match="interface tap0 of this program made it and removes it at its end"):
            await other.add("tap1", OWN)
        await other.remove("tap1", OWN[::-1])
        assert names() == {"lo", "br0", "tap0", "tap1"}
        await other.add("tap1", [BridgePort("br0", isolated=True)])  # a port of it is allowed
        assert (master("tap0"), master("tap1")) == ("br0", "br0")
        await network.remove("tap0", OWN[::-1])
        assert master("tap1") is None


@pytest.mark.parametrize("killed", ["tap0", "tap9"])
@in_fresh_namespace
async def test_a_bridge_of_a_killed_run_has_no_port_and_is_taken_over(killed: str) -> None:
    """Also if the interface has another name now. What other programs put into the bridge stays there."""
    leave(killed, "10.50.0.9/24", "fd50::9/64", own=True)
    assert names() == {"lo", "br0"}  # the port is gone with the process
    [left] = ip("link", "show", "br0")
    assert left["ifalias"] == f"tapotun {killed}"
    ip("link", "add", "eth1", "type", "veth", "peer", "name", "far0")
    ip("link", "set", "eth1", "master", "br0")
    ip("link", "set", "br0", "down")
    items: list[Item] = [*OWN, BridgeAddress("br0", ip_interface("10.50.0.1/24"))]
    async with tap() as (_, network):
        await network.add("tap0", items)
        [link] = ip("link", "show", "br0")
        assert (link["ifindex"], link["ifalias"]) == (left["ifindex"], "tapotun tap0")
        assert link["address"] == mac_text(MAC)
        assert "UP" in link["flags"]
        assert (master("tap0"), master("eth1")) == ("br0", "br0")
        assert addresses("br0") == {ip_interface("10.50.0.1/24")}  # what the killed run gave it is gone
        assert await network.missing("tap0", items) == []
        await network.remove("tap0", items[::-1])
    assert names() == {"lo", "eth1", "far0"}


@in_fresh_namespace
async def test_a_bridge_whose_maker_was_killed_at_once_is_ours_too() -> None:
    ip("link", "add", "br0", "group", "116", "type", "bridge")
    async with tap() as (_, network):
        await network.add("tap0", OWN)
        assert ip("link", "show", "br0")[0]["ifalias"] == "tapotun tap0"
        await network.remove("tap0", OWN[::-1])
    assert names() == {"lo"}


@pytest.mark.parametrize(
    ("alias", "group"),
    [("tapotun tap0", "0"), ("tapotun tap9", "0"), ("tapotun", "116"), ("tapotun ", "116"), ("uplink", "116")],
)
@in_fresh_namespace
async def test_a_bridge_whose_alias_a_person_wrote_is_not_ours(alias: str, group: str) -> None:
    make_bridge()
    ip("link", "set", "br0", "alias", alias)
    ip("link", "set", "br0", "group", group)
    for config in (client_config("tap0", 80), client_config("tap9", 80)):
        await remove_left_over_bridges(RealHost(), config, LOG)
    async with tap() as (_, network):
        with pytest.raises(ItemsRefused, match="another program made it"):
            await network.add("tap0", OWN)
        await network.remove("tap0", OWN[::-1])
    assert ip("link", "show", "br0")[0]["ifalias"] == alias


@in_fresh_namespace
async def test_a_bridge_that_could_not_be_claimed_is_claimed_at_the_next_try() -> None:
    """Otherwise nobody would know whose it is."""
    transact = Rtnetlink.transact
    failures: list[str] = []

    async def fail_once(self: Rtnetlink, messages: Iterable[bytearray]) -> dict[int, Refusal]:
        batch = list(messages)
        if not failures and any(b"tapotun tap0" in message for message in batch):
            failures.append("the kernel's netlink gave no answer")
            raise HostError(failures[0])
        return await transact(self, batch)

    async with tap() as (_, network):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rtnetlink, "transact", fail_once)
            with pytest.raises(ItemsRefused, match="gave no answer"):
                await network.add("tap0", OWN)
        assert ip("link", "show", "br0")[0].get("ifalias") is None
        await network.add("tap0", OWN)
        [link] = ip("link", "show", "br0")
        assert (link["ifalias"], link["inet6_addr_gen_mode"]) == ("tapotun tap0", "none")
        assert sysctl("ipv4/conf/br0/promote_secondaries") == 1
        assert sysctl("ipv6/conf/br0/accept_ra") == 0
        # Somebody has removed the alias in between.
        await network.add("tap0", [on_bridge("fd50::1/64")])
        ip("link", "set", "br0", "alias", "")
        await network.add("tap0", OWN)
        [link] = ip("link", "show", "br0")
        assert (link["ifalias"], link["inet6_addr_gen_mode"]) == ("tapotun tap0", "eui64")
        await network.remove("tap0", OWN[::-1])
    assert names() == {"lo"}


@in_fresh_namespace
async def test_a_bridge_that_the_config_does_not_ask_for_any_more_is_removed_at_the_next_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    leave("tap0", own=True)
    ip("link", "set", "br0", "name", "br7")
    leave("tap9", own=True)
    ip("link", "set", "br0", "name", "br9")
    make_bridge()
    ip("link", "set", "br0", "alias", "tap0")
    client = client_config("tap0", 80)
    for config, left in (
        (replace(client, bridge=Bridge("br7", create=True)), {"br7", "br9", "br0"}),
        (replace(client, bridge=Bridge("br7")), {"br9", "br0"}),
        (client, {"br9", "br0"}),
        (replace(client, name="tap9"), {"br0"}),
    ):
        await remove_left_over_bridges(RealHost(), config, LOG)
        assert names() == {"lo", *left}
    assert caplog.messages == [
        f"removed bridge {name}, left over from a run that was killed" for name in ("br7", "br9")
    ]


# The reconciler


@dataclass
class Running:
    device: TunDevice
    reconciler: Reconciler
    health: Health


@asynccontextmanager
async def reconciled(desired: DesiredState, guard: TransportGuard | None = None) -> AsyncIterator[Running]:
    host = RealHost()
    health = Health()
    with open_tun("tap0", mac=MAC) as device:
        async with trio.open_nursery() as nursery:
            reconciler = Reconciler(host, "tap0", LOG, guard, health)
            await nursery.start(reconciler.run, desired)
            device.set_carrier(up=True)
            yield Running(device, reconciler, health)
            nursery.cancel_scope.cancel()


def is_degraded(it: Running, why: str) -> bool:
    return it.health.degraded is not None and why in it.health.degraded


def state(*interfaces: str, create: bool = False, isolated: bool = False) -> DesiredState:
    settings = InterfaceSettings(1400, tuple(map(ip_interface, interfaces)))
    return desired_for_client(settings, None, Bridge("br0", create=create, isolated=isolated))


@in_fresh_namespace
async def test_a_port_that_another_program_takes_out_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    make_bridge()
    async with reconciled(state(isolated=True)) as it:
        await until("the port", lambda: master("tap0") == "br0")
        ip("link", "set", "tap0", "nomaster")
        await until("its return", lambda: master("tap0") == "br0" and port_options("tap0")[0])
        await until("the report", lambda: it.health.repairs == 1)
        assert it.health.degraded is None
        line = "another program took away the interface's place in bridge br0: put back"
        await until("the line", lambda: line in caplog.text)
        set_option("isolated", "off")
        await until("the option", lambda: port_options("tap0")[0])
    assert names() == {"lo", "br0"}


@in_fresh_namespace
async def test_a_bridge_of_ours_that_is_deleted_comes_back_with_its_port_and_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = "10.50.0.1/24", "fd50::1/64"
    async with reconciled(state(*own, create=True)) as it:
        assert addresses("br0") == set(map(ip_interface, own))
        first = ip("link", "show", "br0")[0]["ifindex"]
        ip("link", "del", "br0")
        await until(
            "its return",
            lambda: "br0" in names() and master("tap0") == "br0" and addresses("br0") == set(map(ip_interface, own)),
        )
        assert ip("link", "show", "br0")[0]["ifindex"] != first
        await until("the report", lambda: it.health.repairs and it.health.degraded is None)
        ip("link", "set", "br0", "down")
        await until(
            "it is up again",
            lambda: "UP" in ip("link", "show", "br0")[0]["flags"] and addresses("br0") == set(map(ip_interface, own)),
        )
        line = "another program took away bridge br0"
        await until("the second line", lambda: caplog.text.count(line) >= 2)
        await until("the report", lambda: it.health.degraded is None)
        assert "br0 is down" not in caplog.text, "nobody else has to set it up"
    assert names() == {"lo"}


@BOTH
@in_fresh_namespace
async def test_an_address_that_is_taken_from_the_bridge_is_put_back(family: Family) -> None:
    make_bridge()
    ours = ip_interface(family("10.50.0.1/24"))
    async with reconciled(state(str(ours))) as it:
        assert addresses("br0") == {ours}
        ip("addr", "del", str(ours), "dev", "br0")
        await until("its return", lambda: addresses("br0") == {ours})
        await until("the report", lambda: it.health.repairs == 1)
        ip(f"-{family.version}", "route", "del", str(ours.network), "dev", "br0")
        await until("its route", lambda: ip(f"-{family.version}", "route", "show", str(ours.network)))
    assert addresses("br0") == set()


@BOTH
@in_fresh_namespace
async def test_another_programs_bridge_that_is_deleted_is_missed_until_it_is_made_again(family: Family) -> None:
    make_bridge()
    async with reconciled(state(family("10.50.0.1/24"))) as it:
        ip("link", "del", "br0")
        await until("the report", lambda: it.health.degraded and "there is no bridge br0" in it.health.degraded)
        assert names() == {"lo", "tap0"}
        with pytest.raises(HostError, match="there is no bridge br0"):
            await it.reconciler.repair()
        make_bridge()
        await it.reconciler.repair()
        assert it.health.degraded is None
        assert master("tap0") == "br0"
        assert addresses("br0") == {ip_interface(family("10.50.0.1/24"))}


@in_fresh_namespace
async def test_a_reload_moves_the_addresses_and_leaves_the_bridge_as_it_is() -> None:
    async with reconciled(state("10.50.0.1/24", create=True)) as it:
        index = ip("link", "show", "br0")[0]["ifindex"]
        await it.reconciler.apply(state("10.50.0.2/24", "fd50::2/64", create=True))
        assert addresses("br0") == {ip_interface("10.50.0.2/24"), ip_interface("fd50::2/64")}
        await it.reconciler.apply(state(create=True))
        assert addresses("br0") == set()
        assert ip("link", "show", "br0")[0]["ifindex"] == index
        assert master("tap0") == "br0"
    assert names() == {"lo"}


@in_fresh_namespace
async def test_a_bridge_of_ours_has_a_link_local_address_while_a_reload_gives_it_an_ipv6_address() -> None:
    """Although its port has had a carrier all the time, at which the kernel looks whether it makes one."""

    def has_link_local() -> bool:
        [link] = ip("addr", "show", "dev", "br0")
        return any(each["scope"] == "link" for each in link["addr_info"])

    async with reconciled(state("10.50.0.1/24", create=True)) as it:
        await until("a carrier", lambda: ip("link", "show", "br0")[0]["operstate"] == "UP")
        for given in ("fd50::1/64", "fd50::2/64"):
            await it.reconciler.apply(state("10.50.0.1/24", given, create=True))
            assert addresses("br0") == {ip_interface("10.50.0.1/24"), ip_interface(given)}
            assert has_link_local()
        await it.reconciler.apply(state("10.50.0.1/24", create=True))
        assert addresses("br0") == {ip_interface("10.50.0.1/24")}
        assert not has_link_local()
        for up in (False, True):
            it.device.set_carrier(up=up)
            await until("the carrier", lambda: (ip("link", "show", "br0")[0]["operstate"] == "UP") == up)  # noqa: B023
        assert not has_link_local(), "nor with the next carrier"
    assert names() == {"lo"}


@BOTH
@in_fresh_namespace
async def test_a_start_that_is_refused_leaves_nothing_and_another_programs_bridge_alone(family: Family) -> None:
    make_bridge()
    ip("addr", "add", family("10.50.0.1/24"), "dev", "br0", *(["nodad"] if family.version == 6 else []))

    def bridge() -> object:
        [link] = ip("addr", "show", "dev", "br0")
        return link["ifindex"], link.get("ifalias"), [each["local"] for each in link["addr_info"]]

    before = bridge()
    for desired, reason in (
        (state(family("10.50.0.1/24")), "another program gave the bridge this address"),
        (state(family("10.50.0.1/24"), create=True), "another program made it"),
    ):
        with pytest.RaisesGroup(pytest.RaisesExc(HostError, match=reason), flatten_subgroups=True):
            async with reconciled(desired):
                pytest.fail("it started")
        assert bridge() == before
        assert names() == {"lo", "br0"}


@BOTH
@in_fresh_namespace
async def test_the_transport_stays_out_of_a_network_on_the_bridge(family: Family) -> None:
    """The pushed network of the bridge's address contains the server, which is reached through the same bridge."""
    make_bridge()
    plug("eth0")
    nodad = ["nodad"] if family.version == 6 else []
    ip("addr", "add", family("192.0.2.7/24"), "dev", "br0", *nodad)
    gateway, server = family("192.0.2.1"), ip_address(family("10.50.0.99"))
    ip(f"-{family.version}", "route", "add", "default", "via", gateway)
    guard = TransportGuard(None, LOG)
    await guard.resolved([server], [str(server)])
    async with reconciled(state(family("10.50.0.1/24")), guard) as it:

        def way() -> str | None:
            [route] = ip(f"-{family.version}", "route", "get", str(server))
            found = route.get("gateway")
            assert found is None or isinstance(found, str)
            return found

        assert way() == gateway
        assert [conflict.action for conflict in guard.conflicts] == ["excepted"]
        # A directly attached network wins: the address loses its network, and keeps its place. The network is reached
        # through the bridge all the same, so there is nothing to tell.
        await it.reconciler.apply(state(family("192.0.2.50/24")))
        assert addresses("br0") == {
            ip_interface(family("192.0.2.7/24")),
            ip_interface(f"{family('192.0.2.50')}/{server.max_prefixlen}"),
        }
        assert guard.push_filter.left_out == ()
    assert addresses("br0") == {ip_interface(family("192.0.2.7/24"))}
    assert way_is_clean(server)


def way_is_clean(server: Any) -> bool:
    """No host route of ours is left."""
    return not ip(f"-{server.version}", "route", "show", str(server))


@in_fresh_namespace
async def test_a_bridge_that_is_down_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It is another program's, so it is left so. That is told at the start and later, once each."""
    told = "bridge br0 is down, so nothing passes between its other ports and this one; `ip link set br0 up`"
    caplog.set_level(logging.INFO)
    ip("link", "add", "br0", "type", "bridge")
    async with reconciled(state()) as it:
        for lines in (1, 2):
            await until("the report", lambda: it.health.degraded == told)
            assert caplog.text.count(told) == lines
            ip("link", "set", "br0", "up")
            await until("the end of it", lambda: it.health.degraded is None)
            ip("link", "set", "br0", "down")
        assert "the bridge passes on again" in caplog.text
        assert not it.health.repairs
        await until("the report", lambda: it.health.degraded == told)
    assert "UP" not in ip("link", "show", "br0")[0]["flags"]


@in_fresh_namespace
async def test_a_port_that_its_bridge_has_disabled_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """By bpdu_guard, or as another program wants it. Without a carrier that is in order."""
    make_bridge()
    ip("link", "set", "br0", "type", "bridge", "stp_state", "1")
    # IEEE 802.3 and LLC, then a configuration BPDU of IEEE 802.1D-2004, 9.3.1: a root with the best priority.
    bpdu = bytes.fromhex("0180c2000000 02005e100099 0026 424203 0000 00 00") + bytes(31) + bytes(8)
    bridge = Bridge("br0", bpdu_guard=True)
    async with reconciled(desired_for_client(InterfaceSettings(1400, ()), None, bridge)) as it:
        await until("a carrier", lambda: bridge_link("tap0")["state"] != "disabled")
        assert it.health.degraded is None
        it.device.write(memoryview(bytes(12) + bpdu))
        told = "bridge br0 has disabled this port, since a BPDU has come through the tunnel (bpdu_guard)"
        await until("the report", lambda: is_degraded(it, told))
        assert caplog.text.count(told) == 1
        for way in ("down", "up"):  # as the line says
            ip("link", "set", "tap0", way)
        await until("the end of it", lambda: it.health.degraded is None)
        assert bridge_link("tap0")["state"] != "disabled"
        it.device.set_carrier(up=False)
        await until("no carrier", lambda: bridge_link("tap0")["state"] == "disabled")
        await it.reconciler.repair()  # looks, too
        assert it.health.degraded is None
    ip("link", "set", "br0", "type", "bridge", "stp_state", "0")
    async with reconciled(state()) as it:
        await until("a carrier", lambda: bridge_link("tap0")["state"] == "forwarding")
        set_option("state", "disabled")
        told = "another program has disabled this port of bridge br0"
        await until("the report", lambda: is_degraded(it, told))
        set_option("state", "forwarding")
        await until("the end of it", lambda: it.health.degraded is None)
