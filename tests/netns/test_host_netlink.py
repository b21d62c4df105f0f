"""Netlink against the real kernel; what it made is read back with iproute2."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Final

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError
from tapotun_trio.host.items import Item
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.netlink.codec import FAMILIES, PROTOCOL
from tapotun_trio.host.netlink.network import SLOTS, open_netlink
from tapotun_trio.host.tun import MAX_FRAME_BYTES, open_tun

from .families import BOTH, Family
from .fresh_namespace import Json, in_fresh_namespace, ip, python, sysctl
from .test_host_tun import read_one

pytestmark = pytest.mark.netns

SO_MARK: Final = 36  # asm-generic/socket.h


IPV4: Final = Family(4)


def state() -> Json:
    """All that Netlink might have changed, but for the interfaces themselves."""
    return [
        [ip(f"-{version}", "rule", "show") for version in (4, 6)],
        [ip(f"-{version}", "route", "show", "table", "all") for version in (4, 6)],
        [(link["ifname"], link["addr_info"]) for link in ip("addr", "show")],
    ]


# Links


@BOTH
@in_fresh_namespace
async def test_link_up_sets_the_mtu_of_a_down_and_of_a_live_link(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            for mtu in (1400, 1400, 68, 65535, 1500):
                await network.link_up("tun0", mtu)
                (link,) = ip("link", "show", "tun0")
                assert (link["mtu"], "UP" in link["flags"]) == (mtu, True)
            await network.add("tun0", [family.address("10.50.0.1/24"), family.route("10.60.0.0/24")])
            await network.link_up("tun0", 1280)
            assert family.addresses() == family.all("10.50.0.1/24")
            assert len(family.routes()) == 1


@pytest.mark.parametrize("mtu", [67, 65536])
@in_fresh_namespace
async def test_link_up_with_an_impossible_mtu_names_it(mtu: int) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            with pytest.raises(HostError, match=f"tun0 with MTU {mtu}: .*mtu"):
                await network.link_up("tun0", mtu)


@in_fresh_namespace
async def test_the_kernel_says_nothing_of_its_own_into_the_tunnel() -> None:
    with open_tun("tun0") as device:
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.add("tun0", [IPV4.address("10.50.0.1/24")])
            with trio.move_on_after(2.5):  # the first router solicitation would come within a second
                await device.wait_readable()
                frame = memoryview(bytearray(MAX_FRAME_BYTES))
                length = read_one(device, frame)
                pytest.fail(f"unasked: {frame[:length].hex()}")
            assert not ip("-6", "addr", "show", "dev", "tun0")


@pytest.mark.parametrize("queues", [1, 4])
@in_fresh_namespace
async def test_a_link_holds_2000_packets_until_somebody_sets_another_number(queues: int) -> None:
    def length() -> int:
        (link,) = ip("link", "show", "dev", "tun0")
        found: int = link["txqlen"]
        return found

    with RealHost().open_device("tun0", queues):
        async with open_netlink() as network:
            assert length() == 2000
            ip("link", "set", "dev", "tun0", "txqueuelen", "777")
            for mtu in (1500, 1400):
                await network.link_up("tun0", mtu)
                assert length() == 777


@in_fresh_namespace
async def test_link_up_works_where_ipv6_is_switched_off() -> None:
    sysctl("ipv6/conf/all/disable_ipv6", 1)
    sysctl("ipv6/conf/default/disable_ipv6", 1)
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1500)
            await network.link_up("tun0", 1000)


@BOTH
@in_fresh_namespace
async def test_an_interface_that_does_not_exist(family: Family) -> None:
    async with open_netlink() as network:
        with pytest.raises(HostError, match="interface tun9 does not exist"):
            await network.link_up("tun9", 1500)
        with pytest.raises(HostError, match="interface tun9 does not exist"):
            await network.add("tun9", [])
        await network.remove("tun9", [family.address("10.0.0.1/24"), *family.marked(), family.route("10.1.0.0/16")])


# Addresses and routes


def plan(family: Family) -> list[Item]:
    return [
        family.address("10.50.0.1/24"),
        family.address("10.50.0.254/32"),
        family.address("10.50.0.7/24"),
        family.route("10.60.0.0/24"),
        family.route("10.61.0.0/24"),
        family.route("10.62.0.1/32", table=200),
        *family.marked(100, 100),
        *family.marked(0xFFFF_FFFF, 0xFFFF_FFFF),
    ]


@BOTH
@in_fresh_namespace
async def test_a_plan_stands_after_add_and_is_gone_after_remove(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            before = state()
            wanted = plan(family)
            for _ in range(2):
                await network.add("tun0", wanted)
                await network.add("tun0", wanted)  # idempotent
                expected = family.all("10.50.0.1/24", "10.50.0.254/32", "10.50.0.7/24")
                assert sorted(family.addresses()) == sorted(expected)
                assert [(r["dst"], r["dev"]) for r in family.routes()] == [
                    (family("10.60.0.0/24"), "tun0"),
                    (family("10.61.0.0/24"), "tun0"),
                ]
                for found in family.routes():
                    assert family.version == 6 or found["scope"] == "link"
                    assert found.get("metric", 0) == family.main_metric
                assert [(r["dst"], r["dev"]) for r in family.routes("200")] == [(family("10.62.0.1"), "tun0")]
                (default,) = family.routes("100")
                assert (default["dst"], default["metric"]) == ("default", SLOTS[0])
                assert [r["dst"] for r in family.routes("4294967295")] == ["default"]
                assert [(r["fwmark"], r["table"], r["protocol"]) for r in family.rules()] == [
                    ("0x64", "100", str(PROTOCOL)),
                    ("0xffffffff", "4294967295", str(PROTOCOL)),
                ]
                await network.remove("tun0", wanted[::-1])
                await network.remove("tun0", wanted)  # idempotent
                assert state() == before


@BOTH
@in_fresh_namespace
async def test_removing_an_address_leaves_the_others_of_its_subnet(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", [family.address("10.50.0.1/24"), family.address("10.50.0.2/24")])
            await network.remove("tun0", [family.address("10.50.0.1/24")])
            assert family.addresses() == family.all("10.50.0.2/24")


@BOTH
@in_fresh_namespace
async def test_our_route_through_another_interface_moves_over_and_is_not_removed_there(family: Family) -> None:
    with open_tun("tun0"), open_tun("tun1"):
        async with open_netlink() as one, open_netlink() as two:
            await one.link_up("tun0", 1400)
            await two.link_up("tun1", 1400)
            wanted = [family.route("10.60.0.0/24"), family.route("10.61.0.0/24")]
            await one.add("tun0", wanted)
            await two.add("tun1", wanted)
            assert [r["dev"] for r in family.routes()] == ["tun1", "tun1"]
            await one.remove("tun0", wanted)
            assert [r["dev"] for r in family.routes()] == ["tun1", "tun1"]


@BOTH
@in_fresh_namespace
async def test_a_route_of_somebody_else_is_never_touched(family: Family) -> None:
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    ip("link", "set", "eth0", "up")
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            # With our metric. Theirs with another metric would stay beside ours.
            metric = ("metric", "1") if family.version == 6 else ()
            family.ip("route", "add", "10.61.0.0/24", "dev", "eth0", "proto", "static", *metric)
            family.ip("route", "add", "blackhole", "10.62.0.0/24", *metric)
            family.ip("route", "add", "0.0.0.0/0", "dev", "eth0", *metric)
            halves = {4: "0.0.0.0/1 and 128.0.0.0/1", 6: "::/1 and 8000::/1"}[family.version]
            before = state()
            for theirs, words in (
                ("10.61.0.0/24", "protocol static through eth0 conflicts with it: remove it, or take"),
                ("10.62.0.0/24", "protocol boot"),
                ("0.0.0.0/0", f"through eth0 conflicts with it: route {halves} instead"),
            ):
                wanted = [family.route("10.60.0.0/24"), family.route(theirs), family.route("10.63.0.0/24")]
                with pytest.raises(HostError, match=words) as info:
                    await network.add("tun0", wanted)
                assert str(info.value).startswith(f"route {family(theirs)} dev tun0: File exists")
                await network.remove("tun0", wanted)
                assert state() == before


@BOTH
@in_fresh_namespace
async def test_the_first_failure_is_the_one_that_is_named(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            metric = ("metric", "1") if family.version == 6 else ()
            family.ip("route", "add", "10.61.0.0/24", "dev", "lo", "proto", "static", *metric)
            bad = family.route("10.61.0.0/24")  # it exists
            many = [family.route(f"10.{i}.0.0/16") for i in range(100, 250)]
            with pytest.raises(HostError, match=rf"^route {family('10.61.0.0/24')} dev tun0: File exists"):
                await network.add("tun0", [*many, bad, *many, bad])
            await network.remove("tun0", [*many, bad])
            assert not family.routes()

            ip("link", "set", "tun0", "down")
            with pytest.raises(HostError, match="is down: `ip link set tun0 up`"):
                await network.add("tun0", [family.route("10.60.0.0/24")])


@BOTH
@in_fresh_namespace
async def test_ten_thousand_routes_take_about_ten_times_as_long_as_a_thousand(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)

            async def seconds(count: int) -> float:
                many = [family.route(f"11.{i >> 8}.{i & 255}.0/24") for i in range(count)]
                start = time.perf_counter()
                await network.add("tun0", many)
                assert len(family.routes()) == count
                await network.remove("tun0", many)
                assert not family.routes()
                return time.perf_counter() - start

            few, more = [min([await seconds(count) for _ in range(3)]) for count in (1_000, 10_000)]
            print(f"{few:.3f} s and {more:.3f} s")  # measured: 0.06 s to add 10,000, 0.05 s to remove them
            assert more < 40 * few


@BOTH
@in_fresh_namespace
async def test_an_add_cancelled_anywhere_can_be_removed(family: Family) -> None:
    many: list[Item] = [family.route(f"11.{i >> 8}.{i & 255}.0/24") for i in range(400)]
    wanted = [family.address("10.50.0.1/24"), *many, *family.marked()]
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            before = state()
            checkpoint = 0
            finished = False
            while not finished:
                checkpoint += 1
                with trio.CancelScope() as scope:
                    trio.lowlevel.add_instrument(instrument := _CancelAtStep(scope, checkpoint))
                    await network.add("tun0", wanted)
                trio.lowlevel.remove_instrument(instrument)
                finished = not scope.cancelled_caught
                await network.remove("tun0", wanted[::-1])
                assert state() == before
            assert checkpoint > 10


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the n-th task step of the run begins."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps -= 1
        if not self._steps:
            self._scope.cancel()


# Marks


@BOTH
@in_fresh_namespace
async def test_two_interfaces_share_a_mark_and_leave_it_in_either_order(family: Family) -> None:
    for first_out, second_out in ((0, 1), (1, 0)):
        with open_tun("tun0"), open_tun("tun1"):
            async with open_netlink() as one, open_netlink() as two:
                owners = [(one, "tun0"), (two, "tun1")]
                before = state()
                for network, name in owners:
                    await network.link_up(name, 1400)
                    await network.add(name, family.marked())
                assert sorted(r["dev"] for r in family.routes("100")) == ["tun0", "tun1"]
                # The priority of a rule is the metric of its owner's route.
                assert [r["priority"] for r in family.rules()] == [r["metric"] for r in family.routes("100")]
                for network, name in owners:
                    await network.add(name, family.marked())
                assert len(family.rules()) == len(family.routes("100")) == 2

                network, name = owners[first_out]
                await network.remove(name, family.marked()[::-1])
                (rule,), (default,) = family.rules(), family.routes("100")
                network, name = owners[second_out]
                assert default["dev"] == name
                assert rule["priority"] == default["metric"]
                await network.remove(name, family.marked()[::-1])
                assert not family.rules()
                assert not family.routes("100")
                assert state()[0] == before[0]


@BOTH
@in_fresh_namespace
async def test_interfaces_that_start_at_the_same_time_get_a_slot_each(family: Family) -> None:
    names = {f"tun{i}" for i in range(12)}
    missing = set(names)
    ready = trio.Event()
    stop = trio.Event()

    async def live(name: str) -> None:
        with open_tun(name):
            async with open_netlink() as network:
                await network.link_up(name, 1400)
                await network.add(name, [family.route("10.0.0.0/8", 100), *family.marked()])
                missing.discard(name)
                if not missing:
                    ready.set()
                await stop.wait()
                await network.remove(name, [*family.marked()[::-1], family.route("10.0.0.0/8", 100)])

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(live, name)
        with trio.fail_after(10):
            await ready.wait()
        found = family.routes("100")
        assert sorted(r["dev"] for r in found) == sorted([*names, *names])
        slots = {(r["dev"], r["metric"]) for r in found}
        assert len(slots) == len(names)  # one slot for both routes of an interface
        assert [r["priority"] for r in family.rules()] == sorted(slot for _, slot in slots)
        stop.set()
    assert not family.rules()


@BOTH
@in_fresh_namespace
async def test_no_slot_is_left(family: Family) -> None:
    with open_tun("tun0"):
        for slot in SLOTS:
            family.ip("rule", "add", "fwmark", "1", "lookup", "7", "priority", str(slot))
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            with pytest.raises(HostError, match=r"tun0: no priority from \d+ to \d+ is free"):
                await network.add("tun0", family.marked())


@BOTH
@in_fresh_namespace
async def test_one_interface_with_two_marks_to_one_table(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            wanted: list[Item] = [family.route("0.0.0.0/0", 100), family.rule(1, 100), family.rule(2, 100)]
            await network.add("tun0", wanted)
            assert [r["fwmark"] for r in family.rules()] == ["0x1", "0x2"]
            await network.remove("tun0", [family.rule(1, 100)])
            assert [r["fwmark"] for r in family.rules()] == ["0x2"]


@BOTH
@in_fresh_namespace
async def test_a_mark_of_zero_is_not_every_mark(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", family.marked(0, 100))
            assert len(family.rules()) == 1
            await network.add("tun0", [family.address("10.10.0.2/24")])
            with socket.socket(FAMILIES[family.version], socket.SOCK_DGRAM) as sock:
                sock.connect((family("198.51.100.1"), 9))
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 1)
                with pytest.raises(OSError, match="unreachable"):
                    sock.connect((family("198.51.100.1"), 9))
            await network.remove("tun0", family.marked(0, 100)[::-1])
            assert not family.rules()


OWNER: Final = """
import sys, trio
from ipaddress import ip_network
from tapotun_trio.host.linux import RealHost
from tapotun_trio.host.items import Route, Rule

async def main(name, fwmark, table, network_text="0.0.0.0/0"):
    everything = ip_network(network_text)
    host = RealHost()
    with host.open_device(name):
        async with host.open_network() as network:
            await network.link_up(name, 1400)
            await network.add(name, [Route(everything, table), Rule(fwmark, table, version=everything.version)])
            print("ready", flush=True)
            await trio.sleep_forever()

trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
"""


def start_owner(family: Family, name: str, fwmark: int, table: int) -> subprocess.Popen[str]:
    """Another process with that interface and mark; it has both when this returns."""
    command = [sys.executable, "-c", OWNER, name, str(fwmark), str(table), family("0.0.0.0/0")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=5)


@BOTH
@in_fresh_namespace
async def test_what_a_killed_process_left_is_replaced(family: Family) -> None:
    before = family.ip("rule", "show")
    for _ in range(3):  # it does not add up either
        kill(start_owner(family, "tun0", 100, 100))
        assert len(family.rules()) == 1
        assert not family.routes("100")
    kill(start_owner(family, "tun0", 100, 101))  # the same mark, as the config was before
    kill(start_owner(family, "tun0", 7, 100))  # another mark: not for us to judge
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", family.marked())
            (default,) = family.routes("100")
            assert [(r["fwmark"], r["table"]) for r in family.rules() if r["priority"] == default["metric"]] == [
                ("0x64", "100")
            ]
            assert sorted(r["fwmark"] for r in family.rules()) == ["0x64", "0x7"]
            await network.remove("tun0", family.marked()[::-1])
    kill_left = family.rules()
    assert [r["fwmark"] for r in kill_left] == ["0x7"]
    family.ip("rule", "del", "priority", str(kill_left[0]["priority"]))
    assert family.ip("rule", "show") == before


@BOTH
@in_fresh_namespace
async def test_a_live_process_keeps_its_rule_when_another_comes_and_goes(family: Family) -> None:
    process = start_owner(family, "tun1", 100, 100)
    try:
        before = family.rules()
        with open_tun("tun0"):
            async with open_netlink() as network:
                await network.link_up("tun0", 1400)
                await network.add("tun0", family.marked())
                assert len(family.rules()) == 2
                await network.remove("tun0", family.marked()[::-1])
                assert family.rules() == before
    finally:
        kill(process)


@BOTH
@in_fresh_namespace
async def test_a_rule_can_be_removed_through_another_connection(family: Family) -> None:
    process = start_owner(family, "tun1", 100, 100)
    try:
        with open_tun("tun0"):
            async with open_netlink() as network:
                await network.link_up("tun0", 1400)
                await network.add("tun0", family.marked())
            theirs = next(r["metric"] for r in family.routes("100") if r["dev"] == "tun1")
            async with open_netlink() as network:
                await network.add("tun0", family.marked())
                assert len(family.rules()) == len(family.routes("100")) == 2
            async with open_netlink() as network:
                await network.remove("tun0", family.marked()[::-1])
                assert [r["priority"] for r in family.rules()] == [theirs]
                await network.remove("tun0", family.marked()[::-1])
                assert [r["priority"] for r in family.rules()] == [theirs]
    finally:
        kill(process)
    async with open_netlink() as network:
        await network.remove("tun0", family.marked())  # the interface is gone, and the rule nobody's
    assert not family.rules()


@BOTH
@in_fresh_namespace
async def test_rules_and_routes_of_others_with_the_same_mark_are_untouched(family: Family) -> None:
    family.ip("rule", "add", "fwmark", "100", "lookup", "100")
    family.ip("rule", "add", "fwmark", "100", "lookup", "100", "priority", str(SLOTS[0]))
    family.ip("rule", "add", "fwmark", "100/0xff", "lookup", "100", "protocol", str(PROTOCOL))
    family.ip("route", "add", "blackhole", "default", "table", "100", "metric", str(SLOTS[1]))
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            before = state()
            await network.add("tun0", family.marked())
            assert [r["metric"] for r in family.routes("100")] == [SLOTS[2]]
            await network.remove("tun0", family.marked()[::-1])
            assert state() == before


@BOTH
@in_fresh_namespace
async def test_whoever_lost_its_slot_takes_another(family: Family) -> None:
    """The interface was set down, lost its routes, and somebody else came by."""
    with open_tun("tun0"), open_tun("tun1"):
        async with open_netlink() as one, open_netlink() as two:
            await one.link_up("tun0", 1400)
            await one.add("tun0", [*family.marked(), family.route("10.0.0.0/8", 100)])
            ip("link", "set", "tun0", "down")
            await two.link_up("tun1", 1400)
            await two.add("tun1", [family.route("0.0.0.0/0", 100)])
            (stolen,) = family.ip("route", "show", "table", "100")
            family.ip("route", "del", "default", "table", "100")
            family.ip("route", "add", "default", "dev", "tun1", "table", "100", "metric", str(SLOTS[0]))
            assert stolen["dev"] == "tun1"
            await one.link_up("tun0", 1400)
            await one.add("tun0", [*family.marked(), family.route("10.0.0.0/8", 100)])
            (rule,) = family.rules()
            assert {r["metric"] for r in family.routes("100")} == {rule["priority"]} != {SLOTS[0]}
            await one.remove("tun0", [family.route("10.0.0.0/8", 100), *family.marked()])
            assert not family.rules()
            assert not family.routes("100")


@in_fresh_namespace
async def test_marked_packets_take_the_tunnel_and_their_replies_pass_a_strict_filter() -> None:
    """A socket with SO_MARK, the tunnel's own source address, and rp_filter=1 everywhere."""
    ip("link", "add", "uplink", "type", "veth", "peer", "name", "far")
    ip("link", "set", "far", "up")
    ip("link", "set", "uplink", "up")
    ip("addr", "add", "192.0.2.1/24", "dev", "uplink")
    ip("route", "add", "default", "via", "192.0.2.2", "dev", "uplink")
    for interface in ("all", "default", "uplink"):
        sysctl(f"ipv4/conf/{interface}/rp_filter", 1)
    with open_tun("tun0") as device, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            await network.add("tun0", [IPV4.address("10.10.0.2/24"), *IPV4.marked()])
            assert sysctl("ipv4/conf/all/rp_filter") == sysctl("ipv4/conf/uplink/rp_filter") == 1

            frame = memoryview(bytearray(MAX_FRAME_BYTES))
            sock.settimeout(2)
            sock.sendto(b"plain", ("198.51.100.1", 9))
            assert read_one(device, frame) is None
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 100)
            sock.sendto(b"marked", ("198.51.100.1", 9))
            with trio.fail_after(2):
                await device.wait_readable()
            length = read_one(device, frame)
            packet = bytes(frame[12:length])
            assert packet.endswith(b"marked")
            assert packet[12:20] == socket.inet_aton("10.10.0.2") + socket.inet_aton("198.51.100.1")

            # Back to where it came from. The order of addresses does not change an Internet checksum.
            sport, dport = struct.unpack_from("!HH", packet, 20)
            head = packet[:12] + packet[16:20] + packet[12:16]
            udp = struct.pack("!HHHH", dport, sport, 8 + 5, 0)
            head = head[:2] + struct.pack("!H", 33) + head[4:10] + b"\0\0" + head[12:]
            total = sum(struct.unpack("!10H", head))
            total = (total & 0xFFFF) + (total >> 16)
            head = head[:10] + struct.pack("!H", total ^ 0xFFFF) + head[12:]
            assert device.write(bytes(12) + head + udp + b"reply") is True
            assert sock.recv(10) == b"reply"


# The connection


@in_fresh_namespace
async def test_without_the_capability_the_error_says_which_one() -> None:
    script = OWNER.replace("with host.open_device(name):", "if True:").replace('"0.0.0.0/0"', '"10.9.0.0/16"')
    done = python(script, "lo", "1", "1", without="net_admin")
    assert "HostError: interface lo with MTU 1400: Operation not permitted; CAP_NET_ADMIN" in done.stderr


@BOTH
@in_fresh_namespace
async def test_tasks_may_share_a_connection(family: Family) -> None:
    with open_tun("tun0"):
        async with open_netlink() as network:
            await network.link_up("tun0", 1400)
            async with trio.open_nursery() as nursery:
                for i in range(20):
                    nursery.start_soon(network.add, "tun0", [family.route(f"10.{i}.{j}.0/24") for j in range(100)])
            assert len(family.routes()) == 2000


@in_fresh_namespace
async def test_no_descriptor_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with open_netlink() as network:
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await network.remove("tun0", [])
            assert scope.cancelled_caught
        await network.remove("tun0", [])
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(trio.ClosedResourceError):
        await network.remove("tun0", [])
