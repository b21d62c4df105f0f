"""The watching of changes against the real kernel, and what whole daemons make of them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError
from tapotun_trio.host.interfaces import Change
from tapotun_trio.host.items import ConnectedRoute, ItemsRefused, Route, RouteKey
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.netlink import monitor as module
from tapotun_trio.host.netlink.monitor import SETTLE_LIMIT_S, SETTLE_S, open_changes, open_interface
from tapotun_trio.host.netlink.network import open_netlink
from tapotun_trio.host.tun import open_tun
from tests.harness import Host, Lab, Process, ping, tapotun, wait_for_ping, wait_until

from ..descriptors import descriptors_left
from .families import BOTH, Family
from .fresh_namespace import in_fresh_namespace, ip

pytestmark = pytest.mark.netns

T = TypeVar("T")

QUIET_S: Final = SETTLE_S + 0.4  # after which a change would have been told
LINKWATCH_S: Final = 2.0  # the kernel tells of a carrier up to a second late


async def next_of(changes: AsyncIterator[T], within_s: float = SETTLE_LIMIT_S + 1) -> T:
    with trio.fail_after(within_s):
        return await anext(changes)


async def assert_silence(changes: AsyncIterator[T]) -> None:
    with trio.move_on_after(QUIET_S):
        pytest.fail(f"unexpected: {await anext(changes)}")


def no_route(_: RouteKey) -> bool:
    return False


@asynccontextmanager
async def on_eth0(own: frozenset[str] = frozenset()) -> AsyncIterator[AsyncIterator[Change]]:
    """eth0 with 192.0.2.7/24 and 2001:db8::7/64, its other end, and a watch over them once all is quiet."""
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    ip("addr", "add", "192.0.2.7/24", "dev", "eth0")
    ip("addr", "add", "2001:db8::7/64", "dev", "eth0", "nodad")
    ip("link", "set", "far0", "up")
    ip("link", "set", "eth0", "up")
    with trio.fail_after(5):
        while ip("link", "show", "eth0")[0]["operstate"] != "UP":  # noqa: ASYNC110 - it is what we are testing
            await trio.sleep(0.05)
    await trio.sleep(0.1)
    async with open_changes(own) as changes:
        yield changes


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# Changes


@in_fresh_namespace
async def test_addresses_come_and_go() -> None:
    async with on_eth0() as changes:
        await assert_silence(changes)
        ip("addr", "del", "192.0.2.7/24", "dev", "eth0")
        change = await next_of(changes)
        assert change.what == "eth0: address 192.0.2.7 removed"
        assert change.touched_addresses == {"192.0.2.7"}
        assert not change.touched_links
        assert not change.incomplete
        assert {"127.0.0.1", "::1", "2001:db8::7"} < change.addresses
        assert "192.0.2.7" not in change.addresses
        ip("addr", "add", "198.51.100.7/32", "peer", "198.51.100.1", "dev", "eth0")
        change = await next_of(changes)
        assert change.what == "eth0: address 198.51.100.7 added"
        assert "198.51.100.7" in change.addresses
        # While the kernel looks for a duplicate there is nothing to be had; one change, not two.
        ip("addr", "add", "2001:db8::8/64", "dev", "eth0")
        assert (await next_of(changes, 5)).what == "eth0: address 2001:db8::8 added"
        await assert_silence(changes)


@in_fresh_namespace
async def test_a_renewed_lease_is_no_change() -> None:
    async with on_eth0() as changes:
        for seconds in ("100", "forever"):
            for interface in ("192.0.2.7/24", "2001:db8::7/64"):
                ip("addr", "change", interface, "dev", "eth0", "valid_lft", seconds, "preferred_lft", seconds)
        await assert_silence(changes)


@in_fresh_namespace
async def test_several_at_once_are_one_change() -> None:
    """As a DHCP client does it that was given another address."""
    async with on_eth0() as changes:
        ip("addr", "flush", "dev", "eth0")
        ip("addr", "add", "192.0.2.8/24", "dev", "eth0")
        ip("route", "add", "default", "via", "192.0.2.1")
        change = await next_of(changes)
        assert change.what == (
            "eth0: address 192.0.2.7 removed; eth0: address 2001:db8::7 removed; "
            "eth0: address 192.0.2.8 added; default route changed"
        )
        await assert_silence(changes)


@in_fresh_namespace
async def test_a_link_down_and_up() -> None:
    async with on_eth0() as changes:
        ip("link", "set", "eth0", "down")
        change = await next_of(changes)
        assert change.what == "eth0 is down; eth0: address 2001:db8::7 removed"
        assert "192.0.2.7" in change.addresses
        assert change.touched_addresses >= {"192.0.2.7", "2001:db8::7"}
        assert socket.if_nametoindex("eth0") in change.touched_links
        ip("link", "set", "eth0", "up")
        change = await next_of(changes)
        assert change.what == "eth0 is up"
        assert "192.0.2.7" in change.touched_addresses
        ip("link", "set", "eth0", "down")
        ip("link", "set", "eth0", "up")
        assert (await next_of(changes)).what == "eth0 was down for a moment"
        ip("link", "set", "far0", "down")  # the cable
        assert (await next_of(changes, SETTLE_LIMIT_S + LINKWATCH_S)).what == "eth0 is down"
        ip("link", "set", "far0", "up")
        assert (await next_of(changes, SETTLE_LIMIT_S + LINKWATCH_S)).what == "eth0 is up"
        ip("link", "del", "eth0")
        assert (await next_of(changes)).what == "eth0 is gone; eth0: address 192.0.2.7 removed"


@in_fresh_namespace
async def test_default_routes() -> None:
    async with on_eth0() as changes:
        for words in (
            ("add", "default", "via", "192.0.2.1"),
            ("replace", "default", "via", "192.0.2.2"),
            ("replace", "default", "via", "192.0.2.1"),
            ("add", "default", "via", "192.0.2.2", "metric", "10"),
            ("add", "128.0.0.0/1", "via", "192.0.2.2"),
            ("replace", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "192.0.2.2"),
            ("del", "default", "metric", "10"),
            ("del", "default"),
        ):
            ip("route", *words)
            change = await next_of(changes)
            assert change.what == "default route changed", words
            assert not change.touched_addresses | change.touched_links
        ip("-6", "route", "add", "default", "via", "2001:db8::1")
        assert (await next_of(changes)).what == "IPv6 default route changed"
        ip("-6", "route", "replace", "default", "via", "2001:db8::1", "expires", "600")  # as a router renews it
        ip("route", "add", "default", "via", "192.0.2.1", "table", "100")
        ip("route", "add", "default", "via", "192.0.2.1", "table", "1000")
        await assert_silence(changes)


@in_fresh_namespace
async def test_a_default_route_that_vanished_without_a_word_is_news_when_it_is_back() -> None:
    async with on_eth0() as changes:
        for _ in range(2):
            ip("route", "add", "default", "via", "192.0.2.1")
            assert (await next_of(changes)).what == "default route changed"
            ip("link", "set", "eth0", "down")
            ip("link", "set", "eth0", "up")
            assert (await next_of(changes)).what.startswith("eth0 was down for a moment")
            assert not ip("-4", "route", "show", "default")


@pytest.mark.parametrize("filtered", [True, False])
@in_fresh_namespace
async def test_a_thousand_unrelated_routes_are_no_change(filtered: bool) -> None:
    """With the filter they do not even wake us; where there is none, they are looked at and left."""
    with pytest.MonkeyPatch.context() as patch:
        if not filtered:
            patch.setattr(module, "attach_filter", refuse)
        heard = 0
        receive = module.Notifications.receive

        async def counted(self: module.Notifications) -> Iterator[tuple[int, int, memoryview]] | None:
            nonlocal heard
            messages = await receive(self)
            heard += 1
            return messages

        patch.setattr(module.Notifications, "receive", counted)
        async with on_eth0() as changes:
            await assert_silence(changes)
            heard = 0
            for verb in ("add", "del"):
                await ip_batch("-4", [f"route {verb} 10.{n >> 8}.{n & 255}.0/24 dev eth0" for n in range(500)])
                await ip_batch("-6", [f"route {verb} 2001:db8:{n + 1:x}::/48 dev eth0" for n in range(500)])
                await assert_silence(changes)
            # The interface itself may have had something to say, late.
            assert heard < 10 if filtered else heard > 1000, heard


def refuse(*_: object) -> None:
    raise OSError(errno.ENOPROTOOPT, "no filters here")


async def ip_batch(family: str, lines: list[str]) -> None:
    """Beside this task, not in a thread: that might be in another namespace."""
    with subprocess.Popen(["ip", family, "-batch", "-"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdin is not None
        process.stdin.write("\n".join(lines).encode())  # less than a pipe holds
        process.stdin.close()
        while process.poll() is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert process.returncode == 0


@in_fresh_namespace
async def test_what_did_not_fit_is_read_anew() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RECEIVE_BUFFER_BYTES", 4096)
        async with on_eth0() as changes:
            # The loop stands still meanwhile, as everything here is blocking.
            for number in range(20):
                ip("addr", "add", f"192.0.2.{100 + number}/24", "dev", "eth0")
            ip("addr", "del", "192.0.2.119/24", "dev", "eth0")
            change = await next_of(changes)
            assert change.what.endswith("; and 15 more")
            assert "192.0.2.118" in change.addresses
            assert "192.0.2.119" not in change.addresses
            # There and back: what it was is lost, that something was is not.
            for _ in range(20):
                ip("link", "set", "eth0", "promisc", "on")
                ip("link", "set", "eth0", "promisc", "off")
            change = await next_of(changes)
            assert change.what == "more happened to addresses and routes than could be followed"
            assert change.incomplete
            await assert_silence(changes)
        async with open_interface(socket.if_nametoindex("eth0"), no_route) as own:
            for _ in range(20):
                ip("link", "set", "eth0", "promisc", "on")
                ip("link", "set", "eth0", "promisc", "off")
            lost = await next_of(own)  # it may have been anything
            assert not lost.toggled | lost.moved


@in_fresh_namespace
async def test_what_is_ours_is_not_told() -> None:
    """Interfaces of this process by their name; those of another one by our protocol number."""
    host = RealHost()
    items = [
        item
        for family in (Family(4), Family(6))
        for item in (
            family.address("10.50.0.1/24"),
            family.route("10.60.0.0/24"),
            family.route("0.0.0.0/0"),
            *family.marked(),
        )
    ]
    async with host.open_changes() as changes, open_netlink() as network:
        with host.open_device("tun0"):
            await network.link_up("tun0", 1400)
            await network.add("tun0", items)
            for text in ("10.51.0.1/24", "2001:db8:51::1/64"):
                ip("addr", "add", text, "dev", "tun0")  # without the number, as on an old kernel
            await assert_silence(changes)
            await network.remove("tun0", items[::-1])
        with open_tun("tun1"):
            await network.link_up("tun1", 1400)
            await network.add("tun1", items)
            await assert_silence(changes)
        await assert_silence(changes)
        # But a default route that a person points into our interface concerns the transport.
        with host.open_device("tun0"):
            ip("link", "set", "tun0", "up")
            ip("route", "add", "default", "dev", "tun0")
            assert (await next_of(changes)).what == "default route changed"


@in_fresh_namespace
async def test_only_the_kernel_is_heard() -> None:
    async with on_eth0() as changes:
        attacked = 0
        # RTM_DELADDR of 192.0.2.7, which stands.
        body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, socket.if_nametoindex("eth0"))
        body += struct.pack("=HH4s", 8, 2, bytes([192, 0, 2, 7]))
        forged = struct.pack("=IHHII", 16 + len(body), 21, 0, 0, 0) + body
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            for line in proc_net_netlink():
                _, protocol, port, groups, *_ = line
                if protocol == "0" and int(groups, 16):
                    attacked += 1
                    with pytest.raises(ConnectionRefusedError):
                        sock.sendto(forged, (int(port), 0))
            assert attacked == 1
            sock.sendto(forged, (0, 0x10))  # to the group
        await assert_silence(changes)


def proc_net_netlink() -> list[list[str]]:
    return [line.split() for line in Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]]


# Up and down


@in_fresh_namespace
async def test_our_link_set_down_and_up() -> None:
    with open_tun("tun0"):
        ip("link", "set", "tun0", "up")
        async with open_interface(socket.if_nametoindex("tun0"), no_route) as own:
            ip("link", "set", "tun0", "mtu", "1300")
            assert not (await next_of(own)).toggled
            ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
            ip("link", "set", "eth0", "up")
            await assert_silence(own)
            for words in (["down"], ["up"], ["down", "up"]):
                for word in words:
                    ip("link", "set", "tun0", word)
                assert (await next_of(own)).toggled
            await assert_silence(own)


@BOTH
@in_fresh_namespace
async def test_what_is_taken_from_our_interface_is_told(family: Family) -> None:
    """By others: with who it was. What is added, and what concerns other interfaces, is not."""
    addresses = [family.address("10.50.0.1/24"), family.address("10.50.0.9/24")]
    items = [*addresses, family.route("10.60.0.0/24"), family.route("10.61.0.0/24"), *family.marked()]
    ours = ("metric", "1") if family.version == 6 else ()  # a route with another metric replaces none of ours
    flushed = 2 if family.version == 6 else 5
    kernels = ("metric", "256") if family.version == 6 else ()
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    ip("link", "set", "eth0", "up")
    family.ip("addr", "add", "192.0.2.7/24", "dev", "eth0")
    with open_tun("tun0"):
        async with open_netlink() as network:
            index = await network.index("tun0")
            await network.link_up("tun0", 1400)
            connected = ConnectedRoute(addresses[0].interface)
            keys = {item.key for item in items if isinstance(item, Route)}
            keys.add(family.route("10.50.0.0/24").key)
            async with open_interface(index, keys.__contains__) as own:
                await network.add("tun0", items)
                for words in (
                    ["route", "replace", "10.62.0.0/24", "dev", "eth0"],
                    ["route", "replace", "10.62.0.0/24", "via", "192.0.2.1"],
                    ["route", "del", "10.62.0.0/24"],
                    ["route", "add", "10.63.0.0/24", "dev", "tun0"],
                    ["rule", "add", "fwmark", "7", "lookup", "7"],
                    ["rule", "del", "fwmark", "7", "lookup", "7"],
                    ["addr", "del", "192.0.2.7/24", "dev", "eth0"],
                ):
                    family.ip(*words)
                await assert_silence(own)
                assert await network.missing("tun0", items) == []
                for words, missing in (
                    (["route", "del", "10.60.0.0/24"], [items[2]]),
                    (["route", "replace", "10.61.0.0/24", "dev", "eth0", *ours], [items[3]]),
                    (["rule", "del", "fwmark", "100"], [items[-1]]),
                    (["route", "flush", "table", "100"], [items[-2]]),
                    (["route", "del", "10.50.0.0/24", "dev", "tun0"], [connected]),
                    (["route", "flush", "dev", "tun0"], [connected, items[2], items[3]]),
                    (["route", "replace", "10.50.0.0/24", "dev", "eth0", *kernels], [connected]),
                    (["addr", "del", "10.50.0.9/24", "dev", "tun0"], [items[1]]),
                    # With its last address, an interface loses its IPv4 routes.
                    (["addr", "flush", "dev", "tun0"], [item for item in items if item != items[-1]][:flushed]),
                ):
                    family.ip(*words)
                    change = await next_of(own)
                    # The kernel does not say who removed an IPv6 address.
                    assert change.senders - {0} or (family.version, words[0]) == (6, "addr"), words
                    assert not change.toggled | change.moved
                    assert await network.missing("tun0", items) == missing, words
                    if words[1] == "replace":
                        what = rf"route {family(words[2])} dev tun0: .* through eth0 conflicts"
                        with pytest.raises(ItemsRefused, match=what):
                            await network.add("tun0", missing)
                        family.ip("route", "del", words[2], "dev", "eth0")
                    await network.add("tun0", [*items, *missing])
                    assert await network.missing("tun0", items) == []
                    await assert_silence(own)


@BOTH
@in_fresh_namespace
async def test_a_route_that_another_interface_of_ours_had_and_left_is_told(family: Family) -> None:
    wanted = family.route("10.60.0.0/24")
    with open_tun("tun0"), open_tun("tun1"):
        async with open_netlink() as network, open_netlink() as other:
            await network.link_up("tun0", 1400)
            await other.link_up("tun1", 1400)
            await network.add("tun0", [wanted])
            async with open_interface(await network.index("tun0"), {wanted.key}.__contains__) as own:
                await other.add("tun1", [wanted])
                await next_of(own)
                assert await network.missing("tun0", [wanted]) == []
                await other.remove("tun1", [wanted])
                await next_of(own)
                assert await network.missing("tun0", [wanted]) == [wanted]


@BOTH
@in_fresh_namespace
async def test_what_went_with_a_link_can_be_added_again(family: Family) -> None:
    items = [family.address("10.50.0.1/24"), family.route("10.60.0.0/24"), *family.marked()]
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", items)
            before = [family.ip("route", "show", "table", "all"), family.ip("rule", "show")]
            for _ in range(3):
                ip("link", "set", "tun0", "down")
                ip("link", "set", "tun0", "up")
                await network.add("tun0", items)
                after = [family.ip("route", "show", "table", "all"), family.ip("rule", "show")]
                assert sorted(map(str, after[0])) == sorted(map(str, before[0]))
                assert after[1] == before[1]
            await network.remove("tun0", items[::-1])


# Ending


@in_fresh_namespace
async def test_nothing_is_left_open() -> None:
    async def watch_changes() -> None:
        async with open_changes(()) as changes:
            await anext(changes)

    async def watch_interface() -> None:
        async with open_interface(1, no_route) as own:
            await anext(own)

    async def cancelled_after(watch: Callable[[], Awaitable[None]], seconds: float) -> None:
        with trio.move_on_after(seconds) as scope:
            await watch()
        assert scope.cancelled_caught

    await cancelled_after(watch_changes, 0)
    before = fds()
    for watch in (watch_changes, watch_interface):
        for seconds in (0, 0.0001, 0.001, 0.01) * 10:
            await cancelled_after(watch, seconds)
    assert fds() == before


@in_fresh_namespace
async def test_a_cancelled_wait_loses_nothing() -> None:
    async with on_eth0() as changes:
        ip("addr", "del", "192.0.2.7/24", "dev", "eth0")
        for _ in range(3):
            with trio.move_on_after(SETTLE_S / 3):
                await anext(changes)
        assert (await next_of(changes)).what == "eth0: address 192.0.2.7 removed"


@in_fresh_namespace
async def test_no_socket_is_a_host_error() -> None:
    with descriptors_left(0):
        for opening in (open_changes(()), open_interface(1, no_route)):
            with pytest.raises(HostError, match=r"cannot watch for changes .*: Too many open files"):
                async with opening:
                    pass


# Whole daemons


SERVER: Final = "192.0.2.1"
CLIENT: Final = "192.0.2.2"
OTHER: Final = "192.0.2.3"
TUNNEL_SERVER: Final = "10.10.0.1"
BEHIND: Final = "10.60.0.0/24"  # the client
OURS: Final = "116"
PUSHED: Final = "10.61.0.0/24"  # behind the server

UPLOADING: Final = "upload to "  # a client's last words on its way up
RENEWED: Final = ": renewing the streams"
SECONDS: Final = 20.0


@dataclass(frozen=True)
class Tunnel:
    server: Host
    client: Host
    server_daemon: Process
    client_daemon: Process


@pytest.fixture
def it(lab: Lab) -> Iterator[Tunnel]:
    """A server and a client, connected; at the end both stop cleanly."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, f"{SERVER}/24", client, f"{CLIENT}/24")
    known = {"name": "laptop", "token": hashlib.sha1(b"test").hexdigest(), "ip": "10.10.0.2", "routes": [BEHIND]}
    serving = {
        "name": "tun0",
        "listen": SERVER,
        "port": 8080,
        "net": f"{TUNNEL_SERVER}/24",
        "push_routes": [PUSHED],
        "clients": [known],
    }
    with tapotun(server, [serving]) as server_daemon:
        server_daemon.wait_for_log("started: ")
        with tapotun(client, [{"name": "tun0", "server": f"http://{SERVER}:8080/ip", "token": "test"}]) as daemon:
            daemon.wait_for_log(UPLOADING)
            wait_until(lambda: (PUSHED, "tun0", OURS) in routes(client), SECONDS, "the routes that are pushed")
            yield Tunnel(server, client, server_daemon, daemon)
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log
        assert server_daemon.stop() == 0
        assert "Traceback" not in server_daemon.log


def routes(host: Host) -> set[tuple[str, str, str]]:
    """Of the main table: destination, interface, protocol as a number ("" for 3, which `ip route` sets)."""
    return {(it["dst"], it.get("dev", ""), it.get("protocol", "")) for it in host.ip("-4 -N route show")}


def local_addresses(host: Host) -> list[str]:
    """This end of every connection to the server's port."""
    return [line.split()[0].rsplit(":", 1)[0] for line in _connections(host)]


def _connections(host: Host) -> list[str]:
    lines = host.run(["ss", "-Htn", "state", "established", "dport", "=", ":8080"]).stdout.splitlines()
    return [" ".join(line.split()[2:]) for line in lines]


def tell(process: Process, pattern: str) -> list[str]:
    return [line for line in process.log.splitlines() if re.search(pattern, line)]


def test_an_address_that_is_removed_takes_its_streams_along(it: Tunnel) -> None:
    it.client.sysctl("net.ipv4.conf.eth0.promote_secondaries", 1)
    it.client.ip(f"address add {OTHER}/24 dev eth0")
    assert set(local_addresses(it.client)) == {CLIENT}
    begun = time.monotonic()
    it.client.ip(f"address del {CLIENT}/24 dev eth0")
    wait_for_ping(it.client, TUNNEL_SERVER, SECONDS)
    print(f"traffic again after {time.monotonic() - begun:.2f} s")
    wait_until(lambda: local_addresses(it.client) == [OTHER, OTHER], SECONDS, "two streams from the other address")
    assert len(tell(it.client_daemon, f"eth0: address {CLIENT} removed{RENEWED}")) == 1


def test_a_cable_that_is_back_is_used_at_once(it: Tunnel) -> None:
    """Away for so long that the backoff has grown: by itself, the next attempt would take up to 10 s."""
    it.client.ip("link set eth0 down")
    it.client_daemon.wait_for_log(f"eth0 is down{RENEWED}")
    it.client.run(["ss", "-K", "dst", SERVER], check=False)
    time.sleep(8)
    it.client.ip("link set eth0 up")
    begun = time.monotonic()
    wait_for_ping(it.client, TUNNEL_SERVER, SECONDS)
    print(f"traffic again after {time.monotonic() - begun:.2f} s")
    it.client_daemon.wait_for_log(f"eth0 is up{RENEWED}")


@pytest.mark.parametrize("end", ["server", "client"])
def test_our_interface_down_and_up_has_its_routes_back(it: Tunnel, end: str) -> None:
    host, daemon = {"server": (it.server, it.server_daemon), "client": (it.client, it.client_daemon)}[end]
    assert ({"server": BEHIND, "client": PUSHED}[end], "tun0", OURS) in routes(host)
    before = [routes(host), host.ip("-4 address show tun0")]
    for turn in (1, 2):
        host.ip("link set tun0 down")
        wait_until(lambda: len(tell(daemon, "set this interface down")) == turn, SECONDS, "a line about it")  # noqa: B023
        assert not any("tun0" in it for it in routes(host))
        host.ip("link set tun0 up")
        wait_until(lambda: [routes(host), host.ip("-4 address show tun0")] == before, SECONDS, "all to be back")
        assert ping(it.client, TUNNEL_SERVER).ok
        wait_until(lambda: len(tell(daemon, "set this interface up again")) == turn, SECONDS, "a line")  # noqa: B023
    assert not tell(it.client_daemon, RENEWED)


def test_a_route_that_somebody_took_meanwhile_is_theirs(it: Tunnel) -> None:
    it.server.ip("link set tun0 down")
    it.server.ip(f"route add {BEHIND} dev eth0")
    it.server.ip("link set tun0 up")
    it.server_daemon.wait_for_log(f"not everything could be put back: route {BEHIND} dev tun0: File exists")
    time.sleep(2)
    assert len(tell(it.server_daemon, "could be put back")) == 1
    assert (BEHIND, "eth0", "") in routes(it.server)
    assert ping(it.client, TUNNEL_SERVER).ok


def test_a_thousand_unrelated_routes_renew_nothing(it: Tunnel) -> None:
    before = it.client_daemon.fds()
    batch = it.client.tmp / "batch"
    for verb in ("add", "del"):
        batch.write_text("".join(f"route {verb} 10.{n >> 8}.{n & 255}.0/24 dev eth0\n" for n in range(1000)))
        it.client.run(["ip", "-batch", batch])
    time.sleep(2)
    assert not tell(it.client_daemon, RENEWED)
    assert it.client_daemon.log.count(UPLOADING) == 1
    assert it.client_daemon.fds() == before
