"""What only IPv6 has: its settings, its silence, and where the kernel treats it otherwise than IPv4."""

from __future__ import annotations

import errno
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final
from unittest.mock import Mock

import pytest
import trio

from tapotun_trio.host import firewall
from tapotun_trio.host.firewall import dropping_forward_chains, strict_ipv6_filters
from tapotun_trio.host.interfaces import InterfaceChange
from tapotun_trio.host.ipv6 import has_ipv6, ipv6_remedy
from tapotun_trio.host.items import HostRoute, Item, ItemsRefused
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.netlink import codec
from tapotun_trio.host.netlink.codec import KernelRoute
from tapotun_trio.host.netlink.monitor import open_interface
from tapotun_trio.host.netlink.network import Netlink, open_netlink
from tapotun_trio.host.tun import MAX_FRAME_BYTES, TunDevice, open_tun

from ..descriptors import descriptors_left
from ..tables import table
from .families import Family
from .fresh_namespace import in_fresh_namespace, ip, python, sysctl
from .test_host_netlink import SO_MARK
from .test_host_tun import read_one

pytestmark = pytest.mark.netns

IPV4: Final = Family(4)
IPV6: Final = Family(6)
OFF: Final = "ipv6/conf/{}/disable_ipv6"


def items(*families: Family) -> list[Item]:
    found: list[Item] = []
    for family in families:
        found += [family.address("10.50.0.1/24"), family.route("10.60.0.0/24"), *family.marked()]
    return found


def addresses(scope: str) -> list[str]:
    return [
        info["local"] for link in IPV6.ip("addr", "show", "dev", "tun0", "scope", scope) for info in link["addr_info"]
    ]


# Silence


async def assert_silence(device: TunDevice, seconds: float = 2.5) -> None:
    """The first router solicitation would come within a second."""
    with trio.move_on_after(seconds):
        await device.wait_readable()
        frame = memoryview(bytearray(MAX_FRAME_BYTES))
        length = read_one(device, frame)
        pytest.fail(f"unasked: {frame[:length].hex()}")


@in_fresh_namespace
async def test_an_interface_with_an_ipv6_address_says_nothing_of_its_own() -> None:
    with open_tun("tun0") as device:
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", items(IPV6))
            await assert_silence(device)
            assert addresses("link") == []


@in_fresh_namespace
async def test_an_interface_that_somebody_else_sets_up_first_is_silent_too() -> None:
    with open_tun("tun0") as device:
        ip("link", "set", "tun0", "up")
        await assert_silence(device)
        assert addresses("link") == []


@in_fresh_namespace
async def test_no_link_local_address_after_an_mtu_that_is_too_small_for_ipv6() -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            ip("addr", "add", "169.254.1.1/16", "dev", "tun0", "scope", "link")
            await network.add("tun0", items(IPV6))
            await network.link_up("tun0", 1279)
            assert await network.missing("tun0", items(IPV6)) == items(IPV6)[:-1]  # the rule stays
            with pytest.raises(ItemsRefused) as info:
                await network.add("tun0", items(IPV6))
            assert "its MTU is 1279 bytes: IPv6 needs 1280" in str(info.value)
            await network.link_up("tun0", 1280)
            assert addresses("link") == []
            await network.add("tun0", items(IPV6))
            assert await network.missing("tun0", items(IPV6)) == []
            [link] = ip("-4", "addr", "show", "dev", "tun0")
            assert [info["local"] for info in link["addr_info"]] == ["169.254.1.1"]


# Addresses


@in_fresh_namespace
async def test_an_address_can_be_used_at_once() -> None:
    """On a link where the kernel would look for a duplicate first."""
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for name in ("eth0", "far0"):
        ip("link", "set", name, "up")
    async with open_netlink() as network:
        await network.add("eth0", [IPV6.address("192.0.2.7/24")])
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind((IPV6("192.0.2.7"), 0))


@in_fresh_namespace
async def test_an_address_with_another_prefix_length_is_replaced() -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            wanted = IPV6.address("10.50.0.1/24")
            for text in ("10.50.0.1/16", "10.50.0.1/32"):
                IPV6.ip("addr", "flush", "dev", "tun0")
                IPV6.ip("addr", "add", text, "dev", "tun0")
                IPV6.ip("addr", "add", "10.50.0.9/16", "dev", "tun0")  # theirs stays
                assert await network.missing("tun0", [wanted]) == [wanted]
                await network.add("tun0", [wanted])
                assert sorted(IPV6.addresses()) == sorted(IPV6.all("10.50.0.1/24", "10.50.0.9/16"))
                assert await network.missing("tun0", [wanted]) == []


@in_fresh_namespace
async def test_an_address_that_inet_ntop_writes_otherwise_than_python() -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            wanted = IPV6.address("::5:1/120")
            await network.add("tun0", [wanted])
            assert await network.missing("tun0", [wanted]) == []


@pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@in_fresh_namespace
async def test_the_first_address_is_the_source_where_nothing_else_decides(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            wanted = [family.address(f"10.50.0.{number}/24") for number in (7, 1, 9)]
            await network.add("tun0", wanted)
            kind = socket.AF_INET if family.version == 4 else socket.AF_INET6
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.connect((family("10.50.0.2"), 9))
                assert sock.getsockname()[0] == family("10.50.0.7")


# Going down


@in_fresh_namespace
async def test_a_link_that_was_down_has_lost_its_ipv6_addresses_and_they_can_be_added_again() -> None:
    wanted = items(IPV4, IPV6)
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", wanted)
            keys = {item.key for item in (IPV4.route("10.60.0.0/24"), IPV6.route("10.60.0.0/24"))}
            async with open_interface(await network.index("tun0"), keys.__contains__) as changes:
                ip("link", "set", "tun0", "down")
                assert (await next_of(changes)).toggled
                lost = await network.missing("tun0", wanted)
                assert IPV6.address("10.50.0.1/24") in lost
                assert IPV4.address("10.50.0.1/24") not in lost
                ip("link", "set", "tun0", "up")
                assert (await next_of(changes)).toggled
                await network.add("tun0", wanted)
                assert await network.missing("tun0", wanted) == []
                assert addresses("link") == []
                sysctl(OFF.format("tun0"), 1)  # takes them away, too
                change = await next_of(changes)
                assert not change.toggled
                assert set(items(IPV6)[:-1]) == set(await network.missing("tun0", wanted))


async def next_of(changes: AsyncIterator[InterfaceChange]) -> InterfaceChange:
    with trio.fail_after(10):
        return await anext(changes)


# Marks


@in_fresh_namespace
async def test_marked_packets_take_the_tunnel_with_its_source_and_others_do_not() -> None:
    ip("link", "add", "uplink", "type", "veth", "peer", "name", "far")
    for name in ("uplink", "far"):
        ip("link", "set", name, "up")
    IPV6.ip("addr", "add", "192.0.2.1/24", "dev", "uplink", "nodad")
    IPV6.ip("route", "add", "default", "via", "192.0.2.2", "dev", "uplink")
    with open_tun("tun0") as device, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", [IPV6.address("10.10.0.2/24"), *IPV6.marked()])
            frame = memoryview(bytearray(MAX_FRAME_BYTES))
            sock.sendto(b"plain", (IPV6("198.51.100.1"), 9))
            assert read_one(device, frame) is None
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 100)
            sock.sendto(b"marked", (IPV6("198.51.100.1"), 9))
            with trio.fail_after(5):
                await device.wait_readable()
            packet = bytes(frame[12 : read_one(device, frame)])
            assert packet.endswith(b"marked")
            assert packet[8:40] == IPV6.host("10.10.0.2").packed + IPV6.host("198.51.100.1").packed


# Routes for packets from one network only


@in_fresh_namespace
async def test_routes_of_others_for_some_packets_are_no_obstacle_and_stay() -> None:
    """To the same network, with our metric, in the same table."""
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for name in ("eth0", "far0"):
        ip("link", "set", name, "up")
    IPV6.ip("addr", "add", "192.0.2.7/24", "dev", "eth0", "nodad")
    wanted = items(IPV6)
    theirs = ["10.60.0.0/24", "from", "192.0.2.0/24", "dev", "eth0", "metric", str(IPV6.main_metric)]

    def standing() -> int:
        return len([route for route in IPV6.ip("route", "show", "table", "main") if "from" in route])

    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            for first in (True, False):  # theirs stands first, or ours
                if first:
                    IPV6.ip("route", "add", *theirs)
                await network.add("tun0", wanted)
                if not first:
                    IPV6.ip("route", "add", *theirs)
                assert await network.missing("tun0", wanted) == []
                await network.add("tun0", wanted)
                assert (standing(), len(IPV6.routes())) == (1, 1)
                IPV6.ip("route", "del", "10.60.0.0/24", "dev", "tun0")
                assert await network.missing("tun0", wanted) == [IPV6.route("10.60.0.0/24")]  # theirs is not ours
                await network.remove("tun0", wanted[::-1])
                assert (standing(), IPV6.routes()) == (1, [])
                IPV6.ip("route", "del", *theirs)


@in_fresh_namespace
async def test_the_way_where_every_default_route_is_for_packets_from_one_network() -> None:
    """As with two providers, and on OpenWrt. A push of everything must not lead the transport into the tunnel."""
    for number, name in enumerate(("eth0", "eth1")):
        ip("link", "add", name, "type", "veth", "peer", "name", f"far{number}")
        for end in (name, f"far{number}"):
            ip("link", "set", end, "up")
        IPV6.ip("addr", "add", f"192.0.{number}.7/24", "dev", name, "nodad")
        metric = str(20 - number)
        IPV6.ip("route", "add", "default", "from", f"192.0.{number}.0/24", "via", f"192.0.{number}.1", "metric", metric)
    server = IPV6.host("203.0.113.10")
    pushes: list[list[Item]] = [[], [IPV6.route("0.0.0.0/0")], [IPV6.route("203.0.113.0/24")]]
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", [IPV6.address("10.10.0.2/24")])
            for pushed in pushes:
                await network.add("tun0", pushed)
                hop = await network.next_hop("tun0", server, None)
                assert hop is not None
                assert (hop.device, hop.gateway, hop.source) == ("eth1", IPV6.host("192.0.1.1"), IPV6.host("192.0.1.7"))
                assert hop.usable
                assert not hop.above_main
                assert (hop.captured_by is not None) == bool(pushed)
                past = HostRoute(server, hop.index, hop.gateway, hop.source, hop.metrics, device=hop.device)
                await network.add("tun0", [past])
                assert not await network.leads_into("tun0", server, None)
                assert await network.next_hop("tun0", server, None, [past]) == hop
                [found] = IPV6.ip("route", "get", "203.0.113.10")
                assert (found["dev"], found["prefsrc"]) == ("eth1", IPV6("192.0.1.7"))
                await network.remove("tun0", [past, *pushed])
            # Without an address in its network a route is for nobody here, and the other provider's remains.
            IPV6.ip("addr", "del", "192.0.1.7/24", "dev", "eth1")
            hop = await network.next_hop("tun0", server, None)
            assert hop is not None
            assert hop.device == "eth0"
            IPV6.ip("addr", "del", "192.0.0.7/24", "dev", "eth0")
            assert await network.next_hop("tun0", server, None) is None


@in_fresh_namespace
async def test_a_router_with_thousands_of_routes_is_asked_for_those_of_one_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of the others is decoded, and other tasks run: with every route of the Internet that would take seconds."""
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for end in ("eth0", "far0"):
        ip("link", "set", end, "up")
    IPV6.ip("addr", "add", "192.0.0.7/24", "dev", "eth0", "nodad")
    count = 4000
    run_batch(f"route add 2001:db9:{number:x}::/48 dev eth0" for number in range(count))
    IPV6.ip("route", "add", "default", "from", "192.0.0.0/24", "via", "192.0.0.1")
    decoded: list[KernelRoute] = []
    read_route = codec.read_route

    def read(message: memoryview) -> KernelRoute:
        decoded.append(read_route(message))
        return decoded[-1]

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with open_tun("tun0"):
        async with open_netlink() as network, trio.open_nursery() as nursery:
            await network.link_up("tun0", 1400)
            monkeypatch.setattr(codec, "read_route", read)
            nursery.start_soon(others)
            hop = await network.next_hop("tun0", IPV6.host("203.0.113.10"), None)
            nursery.cancel_scope.cancel()
    assert hop is not None
    assert (hop.device, hop.gateway, hop.source) == ("eth0", IPV6.host("192.0.0.1"), IPV6.host("192.0.0.7"))
    assert turns > count / 500
    assert len(decoded) < 10


def run_batch(commands: Iterable[str]) -> None:
    subprocess.run(["ip", "-6", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=60)


# Machines without IPv6


def switch_off(*names: str) -> None:
    for name in names:
        sysctl(OFF.format(name), 1)


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        (["all"], [], "on this machine"),
        (["default"], [], "for new interfaces"),
        ([], ["tun0"], "on this interface"),
        ([], ["all"], "on this machine"),
    ],
)
@in_fresh_namespace
async def test_ipv4_works_where_ipv6_is_switched_off_and_ipv6_says_what_to_do(
    before: list[str], after: list[str], where: str
) -> None:
    """``before``, ``after``: where it is switched off before and after the interface is made. What it says works for
    this interface, and for one that is made afterwards."""
    switch_off(*before)
    with open_tun("tun0"):
        switch_off(*after)
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            with pytest.raises(ItemsRefused) as info:
                await network.add("tun0", items(IPV4, IPV6))
            assert set(info.value.refused) == set(items(IPV6))
            remedy = re.search(f"IPv6 is switched off {where}: `(.*)`, or", str(info.value))
            assert remedy, info.value
            for refused in (IPV6.address("10.50.0.1/24"), IPV6.route("10.60.0.0/24")):
                assert remedy[0] in info.value.refused[refused]
            assert "not tried" in info.value.refused[IPV6.rule(100, 100)]
            assert await network.missing("tun0", items(IPV4)) == []
            assert await network.missing("tun0", items(IPV6)) == items(IPV6)
            assert not IPV6.rules()
            await network.remove("tun0", items(IPV4, IPV6)[::-1])
            assert await network.attached("tun0", [IPV6.network("10.0.0.0/8")]) == []
            assert await network.next_hop("tun0", IPV6.host("203.0.113.1"), None) is None
            run_remedy(remedy[1])
            await network.add("tun0", items(IPV4, IPV6))
            assert await network.missing("tun0", items(IPV4, IPV6)) == []
            await remove_all(network)


@pytest.mark.parametrize("scope", ["all", "default"])
@in_fresh_namespace
async def test_what_to_do_where_ipv6_is_switched_off_works_after_a_start_that_failed(scope: str) -> None:
    switch_off(scope)
    with open_tun("tun0"):
        async with open_netlink() as network:
            with pytest.raises(ItemsRefused) as info:
                await network.add("tun0", [IPV6.address("10.50.0.1/24")])
    remedy = re.search("`(.*)`", str(info.value))
    assert remedy
    run_remedy(remedy[1])
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.add("tun0", [IPV6.address("10.50.0.1/24")])


def run_remedy(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stderr


async def remove_all(network: Netlink) -> None:
    await network.remove("tun0", items(IPV4, IPV6)[::-1])
    assert not IPV4.rules() + IPV6.rules() + IPV4.routes() + IPV6.routes() + IPV6.addresses()


@pytest.mark.parametrize(
    ("off", "existing", "expected"),
    [
        ([], False, True),
        ([], True, True),
        (["all"], False, False),  # the kernel passes it on to all others
        (["default"], False, False),
        (["default"], True, True),  # it exists already, and has what "default" had then
        (["tun0"], True, False),
        (["lo"], True, True),
    ],
)
@in_fresh_namespace
async def test_has_ipv6(off: list[str], existing: bool, expected: bool) -> None:
    if existing:
        with open_tun("tun0"):
            switch_off(*off)
            assert has_ipv6("tun0") == expected
            if not expected:
                run_remedy(ipv6_remedy("tun0"))
                assert has_ipv6("tun0")
    else:
        switch_off(*off)
        assert has_ipv6("tun0") == expected
        with open_tun("tun0"):
            async with open_netlink() as network:
                await network.link_up("tun0", 1400)
                try:
                    await network.add("tun0", [IPV6.address("10.50.0.1/24")])
                except ItemsRefused:
                    assert not expected
                else:
                    assert expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [(["ipv4"], False), ([], True), (["ipv4", "ipv6/conf/all", "ipv6/conf/default"], True)],
    ids=["ipv6.disable=1", "/proc/sys is hidden", "an interface that has just gone"],
)
def test_has_ipv6_where_the_settings_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, paths: list[str], expected: bool
) -> None:
    """A kernel without IPv6 cannot be had in a namespace."""
    for path in paths:
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.setattr("tapotun_trio.host.ipv6._SETTINGS", tmp_path)
    assert has_ipv6("tun0") == expected
    if not expected:
        assert ipv6_remedy("tun0") == "start the kernel without ipv6.disable=1"


def test_has_ipv6_where_the_settings_are_hidden_and_the_kernel_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tapotun_trio.host.ipv6._SETTINGS", tmp_path)
    monkeypatch.setattr(socket, "socket", Mock(side_effect=OSError(errno.EAFNOSUPPORT, "no such family")))
    assert has_ipv6("tun0") is False


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, True), ({"all": "0", "default": "0"}, True), ({"all": "0", "default": "1"}, False)],
    ids=["/proc/sys is hidden", "on", "off"],
)
def test_has_ipv6_without_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], expected: bool
) -> None:
    """Nothing is known then, so the last answer stays."""
    for name, value in settings.items():
        (tmp_path / "ipv6/conf" / name).mkdir(parents=True)
        (tmp_path / "ipv6/conf" / name / "disable_ipv6").write_text(f"{value}\n", encoding="ascii")
    monkeypatch.setattr("tapotun_trio.host.ipv6._SETTINGS", tmp_path)
    host = RealHost()
    with descriptors_left(0):
        assert has_ipv6("tun0") is None
        assert host.has_ipv6("tun0")
    assert host.has_ipv6("tun0") == expected
    with descriptors_left(0):
        assert host.has_ipv6("tun0") == expected


# Firewalls


def nft(family: str) -> list[str]:
    return [
        f"nft add table {family} f",
        f"nft add chain {family} f c {{type filter hook forward priority 0;policy drop;}}",
    ]


LEGACY: Final = ["ip6tables-legacy -P FORWARD DROP"]


@table(
    "commands expected",
    ("legacy", LEGACY, [("chain FORWARD of ip6tables-legacy", "", {6})]),
    ("legacy IPv4", ["iptables-legacy -P FORWARD DROP"], [("chain FORWARD of iptables-legacy", "", {4})]),
    (
        "legacy with a rule",
        [*LEGACY, "ip6tables-legacy -A FORWARD -i tun0 -j ACCEPT"],
        [("chain FORWARD of ip6tables-legacy", "tun0", {6})],
    ),
    ("ip6", nft("ip6"), [("chain c of the nftables table ip6 f", "", {6})]),
    ("inet", nft("inet"), [("chain c of the nftables table inet f", "", {4, 6})]),
    ("ip", nft("ip"), [("chain c of the nftables table ip f", "", {4})]),
    ("bridge", nft("bridge"), []),
)
@in_fresh_namespace
async def test_firewalls_of_either_family(commands: list[str], expected: list[tuple[str, str, set[int]]]) -> None:
    for command in commands:
        head, brace, tail = command.partition("{")
        subprocess.run([*head.split(), *([brace + tail] if brace else [])], check=True)  # noqa: ASYNC221
    found = dropping_forward_chains(["tun0", "tun1"])
    assert [(chain.name, "".join(chain.named), set(chain.versions)) for chain in found] == expected


def prerouting(family: str, *rules: str) -> list[str]:
    return [
        f"nft add table {family} f",
        f"nft add chain {family} f c {{type filter hook prerouting priority 0;}}",
        *(f"nft add rule {family} f c {rule}" for rule in rules),
    ]


STRICT: Final = "meta nfproto ipv6 fib saddr . mark . iif oif missing drop"
"""As firewalld has it."""


@table(
    "commands expected",
    ("none", [], []),
    ("firewalld's", prerouting("inet", STRICT), [("inet f", "c", "")]),
    ("the same twice", prerouting("inet", STRICT, STRICT), [("inet f", "c", "")]),
    ("with an exception", prerouting("inet", "iifname tun0 accept", STRICT), [("inet f", "c", "tun0")]),
    ("by name", prerouting("ip6", "fib saddr . iif oifname 0 drop"), [("ip6 f", "c", "")]),
    ("NixOS's", prerouting("ip6", "fib saddr . mark . iif oif exists accept"), [("ip6 f", "c", "")]),
    ("loose", prerouting("inet", "meta nfproto ipv6 fib saddr . mark oif missing drop"), []),
    ("for IPv4", prerouting("ip", "fib saddr . iif oif missing drop"), []),
    ("of the destination", prerouting("inet", "fib daddr . iif type != local drop"), []),
    (
        "by iptables-nft",
        ["ip6tables-nft -t raw -A PREROUTING -m rpfilter --invert -j DROP"],
        [("ip6 raw", "PREROUTING", "")],
    ),
    ("for IPv4 in a table of both", prerouting("inet", "meta nfproto ipv4 fib saddr . iif oif missing drop"), []),
    ("for the protocol IPv4", prerouting("inet", "meta protocol ip fib saddr . iif oif missing drop"), []),
    ("for another interface", prerouting("inet", "iifname eth0 fib saddr . iif oif missing drop"), []),
    ("for another interface's number", prerouting("inet", "iif lo fib saddr . iif oif missing drop"), []),
    ("for other interfaces", prerouting("inet", "iifname eth* fib saddr . iif oif missing drop"), []),
    ("for one", prerouting("inet", "iifname tun1 fib saddr . iif oif missing drop"), [("inet f", "c", "tun0")]),
    ("for such", prerouting("inet", "iifname tun* fib saddr . iif oif missing drop"), [("inet f", "c", "")]),
    ("for all but one", prerouting("inet", "iifname != tun0 fib saddr . iif oif 0 drop"), [("inet f", "c", "tun0")]),
    ("that counts only", prerouting("inet", "fib saddr . iif oif missing counter"), []),
    ("that rejects", prerouting("inet", "fib saddr . iif oif missing reject"), [("inet f", "c", "")]),
    ("by a map", prerouting("inet", "fib saddr . iif oif vmap { 0 : drop }"), [("inet f", "c", "")]),
    ("with a counter by name", prerouting("inet", "iifname tun0 counter", STRICT), [("inet f", "c", "")]),
    (
        "for another interface by iptables-nft",
        ["ip6tables-nft -t raw -A PREROUTING -i eth0 -m rpfilter --invert -j DROP"],
        [],
    ),
    (
        "for one by iptables-nft",
        ["ip6tables-nft -t raw -A PREROUTING -i tun0 -m rpfilter --invert -j DROP"],
        [("ip6 raw", "PREROUTING", "tun1")],
    ),
    ("loose by iptables-nft", ["ip6tables-nft -t raw -A PREROUTING -m rpfilter --loose --invert -j DROP"], []),
)
@in_fresh_namespace
async def test_reverse_path_filters_for_ipv6(commands: list[str], expected: list[tuple[str, str, str]]) -> None:
    for command in commands:
        head, brace, tail = command.partition("{")
        subprocess.run([*head.split(), *([brace + tail] if brace else [])], check=True)  # noqa: ASYNC221
    found = strict_ipv6_filters(["tun0", "tun1"])
    assert [(each.table, each.chain, "".join(each.named)) for each in found] == expected


@in_fresh_namespace
async def test_each_rule_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may have 100,000 rules, and several chains that drop."""
    lines = [*nft("inet"), *(f"nft add rule inet f c tcp dport {port} accept" for port in range(1, 21))]
    lines += [f"nft add chain inet f c{n} {{type filter hook forward priority {n};policy drop;}}" for n in range(1, 5)]
    for line in lines:
        head, brace, tail = line.partition("{")
        subprocess.run([*head.split(), *([brace + tail] if brace else [])], check=True)  # noqa: ASYNC221
    read: list[bytes] = []
    parse = firewall._parse

    def counted(message: bytes) -> tuple[int, dict[int, bytes]]:
        read.append(message)
        return parse(message)

    monkeypatch.setattr(firewall, "_parse", counted)
    assert len(dropping_forward_chains(["tun0"])) == 5
    assert len(read) == 5 + 20


# Leftovers


HOST_ROUTE: Final = """
import os, signal, sys, trio
from ipaddress import ip_address
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.items import HostRoute

async def main(addresses):
    host = RealHost()
    with host.open_device("tun0"):
        async with host.open_network() as network:
            await network.link_up("tun0", 1400)
            for address in map(ip_address, addresses):
                hop = await network.next_hop("tun0", address, None)
                await network.add("tun0", [HostRoute(address, hop.index, hop.gateway, device=hop.device)])
            os.kill(os.getpid(), signal.SIGKILL)

trio.run(main, sys.argv[1:])
"""


@in_fresh_namespace
async def test_host_routes_of_a_killed_run_are_reclaimed_in_both_families() -> None:
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for name in ("eth0", "far0"):
        ip("link", "set", name, "up")
    servers = [family("203.0.113.10") for family in (IPV4, IPV6)]
    for family, nodad in ((IPV4, []), (IPV6, ["nodad"])):
        family.ip("addr", "add", "192.0.2.7/24", "dev", "eth0", *nodad)
        family.ip("route", "add", "default", "via", "192.0.2.1")
    done = python(HOST_ROUTE, *servers)
    assert done.returncode == -9, done.stderr
    assert [len(family.routes()) for family in (IPV4, IPV6)] == [1, 1]
    async with open_netlink() as network:
        assert sorted(await network.left_over()) == sorted(servers)
        assert sorted(await network.remove_left_over()) == sorted(servers)
        assert await network.left_over() == []
    assert IPV4.routes() + IPV6.routes() == []
