"""Changes of addresses, links and routes: what of the kernel's notifications is news, and what a client and a
programmer make of it. The kernel itself is in tests.netns.test_host_changes."""

from __future__ import annotations

import logging
import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError, PeerError
from tapotun_trio.host.plan import MAIN_TABLE, Address, Plan, Route, Rule
from tapotun_trio.host.ports import Change
from tapotun_trio.host.surroundings import OneLink, Surroundings, read_address, read_link
from tapotun_trio.log import interface_logger
from tapotun_trio.tunnel.frontdoor import open_front_door
from tapotun_trio.tunnel.interface import run_interface
from tapotun_trio.tunnel.programmer import Programmer
from tapotun_trio.tunnel.rotation import ATTEMPT_S, Stream, Waits, keep_streaming

from ..fakes import MemoryDevice, MemoryHost
from ..packets import ipv4
from .support import allowed, client_config, free_port, running, server_config

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
UP, RUNNING = 0x1, 0x40
TENTATIVE, OPTIMISTIC, DADFAILED = 0x40, 0x04, 0x08
REPLACE = 0x100
OURS = 116

UPWARDS = ("10.10.0.2", "10.10.0.1")
DOWNWARDS = ("10.10.0.1", "10.10.0.2")


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, body: bytes) -> memoryview:
    return memoryview(struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body)


def link(index: int = 2, name: str = "eth0", flags: int = UP | RUNNING, family: int = 0) -> memoryview:
    body = struct.pack("=BxHiII", family, 1, index, flags, 0)
    return message(NEWLINK, body + attribute(3, name.encode() + b"\0"))


def address(
    text: str, index: int = 2, prefix: int = 24, flags: int = 0, scope: int = 0, proto: int | None = None
) -> memoryview:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    packed = socket.inet_pton(family, text)
    body = struct.pack("=BBBBI", family, prefix, flags & 0xFF, scope, index) + attribute(1, packed)
    body += attribute(8, struct.pack("=I", flags))
    return message(NEWADDR, body + (b"" if proto is None else attribute(11, bytes([proto]))))


def route(
    gateway: str = "192.0.2.9",
    index: int = 2,
    prefix: int = 0,
    metric: int = 0,
    table: int = MAIN_TABLE,
    proto: int = 3,
    lifetime: int = 0,
) -> memoryview:
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    body = struct.pack("=BBBBBBBBI", family, prefix, 0, 0, table, proto, 0, 1, 0)
    body += attribute(4, struct.pack("=I", index)) + attribute(5, socket.inet_pton(family, gateway))
    body += attribute(6, struct.pack("=I", metric)) + attribute(12, struct.pack("=I", lifetime))
    return message(NEWROUTE, body)


class Kernel:
    """eth0 (index 2) is up and has 192.0.2.7, the tunnel tun0 (9) is ours."""

    def __init__(self) -> None:
        self.scene = Surroundings({"tun0"})
        self.load(link(), link(9, "tun0"), address("192.0.2.7"), address("10.10.0.2", 9))
        self.scene.news()

    def load(self, *messages: memoryview) -> None:
        links = [read_link(data) for data in messages if data[4] == NEWLINK]
        addresses = [read_address(data) for data in messages if data[4] == NEWADDR]
        self.scene.load(filter(None, links), filter(None, addresses))

    def hear(self, data: memoryview, kind: int = 0, flags: int = 0) -> bool:
        return self.scene.hear(kind or data[4], flags, data)

    def words(self) -> str | None:
        change = self.scene.news()
        assert not self.scene.stirred
        return None if change is None else change.what


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


# What is news


def test_an_address_removed_and_one_added(kernel: Kernel) -> None:
    assert kernel.hear(address("192.0.2.7"), DELADDR)
    assert kernel.hear(address("2001:db8::7", prefix=64))
    assert kernel.scene.stirred
    assert kernel.scene.news() == Change(
        "eth0: address 192.0.2.7 removed; eth0: address 2001:db8::7 added", frozenset({"10.10.0.2", "2001:db8::7"})
    )


def test_with_a_peer_it_is_the_local_address() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 2)
    body += attribute(1, bytes([192, 0, 2, 1])) + attribute(2, bytes([192, 0, 2, 2]))
    found = read_address(message(NEWADDR, body))
    assert found is not None
    assert found.text == "192.0.2.2"
    assert read_address(message(NEWADDR, struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 2))) is None
    assert read_address(message(NEWADDR, struct.pack("=BBBBI", socket.AF_BRIDGE, 32, 0, 0, 2))) is None


def test_a_renewed_lifetime_is_none(kernel: Kernel) -> None:
    assert not kernel.hear(address("192.0.2.7"))
    assert kernel.words() is None


def test_an_address_that_was_away_for_a_moment(kernel: Kernel) -> None:
    kernel.hear(address("192.0.2.7"), DELADDR)
    kernel.hear(address("192.0.2.7"))
    assert kernel.words() == "eth0: address 192.0.2.7 was gone for a moment"
    kernel.hear(address("192.0.2.8"))
    kernel.hear(address("192.0.2.8"), DELADDR)
    assert kernel.words() is None


def test_an_ipv6_address_counts_when_it_can_be_used(kernel: Kernel) -> None:
    assert not kernel.hear(address("2001:db8::7", flags=TENTATIVE))
    assert not kernel.hear(address("2001:db8::8", flags=TENTATIVE | DADFAILED))
    assert kernel.hear(address("2001:db8::9", flags=TENTATIVE | OPTIMISTIC))
    assert kernel.words() == "eth0: address 2001:db8::9 added"
    assert kernel.hear(address("2001:db8::7"))
    change = kernel.scene.news()
    assert change is not None
    assert change.what == "eth0: address 2001:db8::7 added"
    # A socket may be bound to it all the same, so it is one of this machine's.
    assert "2001:db8::8" in change.addresses


def test_what_is_never_news(kernel: Kernel) -> None:
    kernel.hear(address("fe80::1", scope=253))
    kernel.hear(address("127.0.0.1", 1, scope=254))
    kernel.hear(address("10.10.0.3", 9))  # on an interface of this process
    kernel.hear(link(9, "tun0", 0))
    kernel.hear(link(9, "tun0"))
    kernel.hear(link(5, "tun5"))
    kernel.hear(address("10.20.0.1", 5, proto=OURS))  # on one of another process of ours
    kernel.hear(link(5, "tun5", 0))
    kernel.hear(link(7, "veth1234"))  # a container's: no address on this side
    kernel.hear(address("fe80::2", 7, scope=253))
    kernel.hear(link(7, "veth1234", UP))
    kernel.hear(link(7, "veth1234"), DELLINK)
    kernel.hear(link(2, "eth0", 0, family=socket.AF_BRIDGE), DELLINK)  # no longer a port of a bridge, that is all
    kernel.hear(message(99, b""))
    assert kernel.words() is None


def test_a_link_with_an_address(kernel: Kernel) -> None:
    kernel.hear(link(flags=UP))  # the cable is out
    assert kernel.words() == "eth0 is down"
    kernel.hear(link())
    assert kernel.words() == "eth0 is up"
    kernel.hear(link(flags=0))
    kernel.hear(link())
    assert kernel.words() == "eth0 was down for a moment"
    kernel.hear(link(), DELLINK)
    change = kernel.scene.news()
    assert change == Change("eth0 is gone; eth0: address 192.0.2.7 removed", frozenset({"10.10.0.2"}))


def test_a_default_route(kernel: Kernel) -> None:
    assert kernel.hear(route())
    assert kernel.words() == "default route changed"
    assert not kernel.hear(route(lifetime=1800))  # renewed
    assert kernel.hear(route("2001:db8::9"))
    assert kernel.words() == "IPv6 default route changed"
    assert kernel.hear(route(), DELROUTE)
    assert kernel.words() == "default route changed"
    assert kernel.hear(route(prefix=1))
    for other in (route(prefix=2), route(table=100), route(proto=OURS)):
        assert not kernel.hear(other)
        assert not kernel.hear(other, DELROUTE)


def test_a_route_replaced_there_and_back(kernel: Kernel) -> None:
    for gateway in ("192.0.2.9", "192.0.2.8", "192.0.2.9"):
        assert kernel.hear(route(gateway), flags=REPLACE)
    assert kernel.hear(route(metric=5), flags=REPLACE)
    assert not kernel.hear(route())  # stands beside it


@pytest.mark.parametrize("loss", [lambda it: it.hear(link(flags=0)), lambda it: it.hear(address("192.0.2.7"), DELADDR)])
def test_the_kernel_does_not_say_that_a_route_went_with_its_link_or_its_address(kernel: Kernel, loss: object) -> None:
    assert callable(loss)
    kernel.hear(route())
    loss(kernel)
    assert kernel.hear(route())


def test_what_was_missed(kernel: Kernel) -> None:
    kernel.scene.lose()
    kernel.load(link(), link(9, "tun0"), address("10.10.0.2", 9))
    assert kernel.words() == "eth0: address 192.0.2.7 removed"
    kernel.scene.lose()
    kernel.load(link(), link(9, "tun0"), address("10.10.0.2", 9))
    assert kernel.words() == "more happened to addresses and routes than could be followed"
    kernel.hear(route())
    kernel.load(link())
    assert kernel.hear(route())


def test_a_long_story_is_cut_short(kernel: Kernel) -> None:
    for number in range(20):
        kernel.hear(address(f"198.51.100.{number}"))
    words = kernel.words()
    assert words is not None
    assert words.endswith("; eth0: address 198.51.100.3 added; and 16 more")


def test_a_name_is_made_fit_for_the_log(kernel: Kernel) -> None:
    kernel.hear(link(name="\x1b[2J"))
    kernel.hear(address("192.0.2.8"))
    assert kernel.words() == "\\u001b[2J: address 192.0.2.8 added"


def test_one_link() -> None:
    picture = OneLink("eth0")
    assert not picture.hear(NEWLINK, 0, link())
    assert not picture.hear(NEWLINK, 0, link(3, "eth1", 0))
    assert not picture.hear(NEWLINK, 0, link(flags=UP))  # the carrier is not somebody's doing
    assert picture.hear(NEWLINK, 0, link(flags=0))
    assert (picture.stirred, picture.news(), picture.stirred) == (True, False, False)
    picture.lose()
    picture.load(filter(None, [read_link(link())]), [])
    assert (picture.stirred, picture.news(), picture.stirred) == (True, True, False)


# The client


async def deliver(source: MemoryDevice, sink: MemoryDevice, way: tuple[str, str], text: bytes) -> None:
    source.send(ipv4(*way, text))
    assert await sink.receive_packet() == ipv4(*way, text)


async def count(caplog: pytest.LogCaptureFixture, text: str, number: int) -> None:
    """Wait for that many log lines."""
    with trio.fail_after(5):
        while sum(text in line for line in caplog.messages) < number:  # noqa: ASYNC110 - a log has no event
            await trio.sleep(0.01)


async def test_streams_whose_address_is_gone_end_and_come_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port, host = free_port(), MemoryHost()
    async with running(host, server_config(port, allowed("a", "10.10.0.2")), client_config("a", port)):
        hub, a = await host.device("hub"), await host.device("a")
        await count(caplog, "upload to", 1)
        host.change("eth0: address 127.0.0.1 removed", "192.0.2.1")
        # At INFO, a stream that replaces one is told only where that one has ended.
        await count(caplog, "download from 127", 2)
        await count(caplog, "upload to", 2)
        await deliver(a, hub, UPWARDS, b"up")
        await deliver(hub, a, DOWNWARDS, b"down")
        assert caplog.messages.count("eth0: address 127.0.0.1 removed: renewing the streams") == 1
    assert host.watchers == 0


async def test_a_changed_default_route_renews_both_streams_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port, host = free_port(), MemoryHost()
    packets = 1000

    async def stream(source: MemoryDevice, way: tuple[str, str]) -> None:
        for number in range(packets):
            source.send(ipv4(*way, number.to_bytes(4, "big") * 100))
            await trio.sleep(0.001)

    async def check(sink: MemoryDevice, way: tuple[str, str]) -> None:
        for number in range(packets):
            assert await sink.receive_packet() == ipv4(*way, number.to_bytes(4, "big") * 100)

    async with running(host, server_config(port, allowed("a", "10.10.0.2")), client_config("a", port)):
        hub, a = await host.device("hub"), await host.device("a")
        await count(caplog, "upload to", 1)
        async with trio.open_nursery() as nursery:
            for source, sink, way in ((a, hub, UPWARDS), (hub, a, DOWNWARDS)):
                nursery.start_soon(stream, source, way)
                nursery.start_soon(check, sink, way)
            for turn in range(1, 6):
                await trio.sleep(0.1)
                host.change("default route changed", "127.0.0.1")
                await count(caplog, "download from 127", 1 + turn)
                await count(caplog, "upload to", 1 + turn)


async def test_a_client_that_cannot_watch_says_so_and_works(caplog: pytest.LogCaptureFixture) -> None:
    port, host = free_port(), MemoryHost()
    host.deaf = True
    async with running(host, server_config(port, allowed("a", "10.10.0.2")), client_config("a", port)):
        hub, a = await host.device("hub"), await host.device("a")
        await deliver(a, hub, UPWARDS, b"up")
        # The client's for its path, and each programmer for its link.
        lines = [line for line in caplog.messages if "cannot watch" in line]
        assert sorted(line.split("; ")[1][:11] for line in lines) == ["a lost path", "if somebody", "if somebody"]


async def test_a_change_ends_the_wait_of_a_client_without_a_server(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Full backoff is up to 10 s; a change makes it none."""
    caplog.set_level(logging.DEBUG)
    host = MemoryHost()
    async with open_front_door() as door, trio.open_nursery() as nursery:
        await nursery.start(run_interface, client_config("a", free_port()), host, door)
        await trio.sleep(60)
        for _ in range(20):
            tries = sum("trying again" in line for line in caplog.messages)
            before = trio.current_time()
            host.change("eth0 is up")
            # The first after the change, and the immediate retry of the first failure.
            await count(caplog, "trying again", tries + 2)
            assert trio.current_time() - before < 0.1
            await trio.sleep(5)
        nursery.cancel_scope.cancel()


# An attempt that a change overtakes


class Opened:
    failure: PeerError | None = None

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def run(self, older: Stream | None) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize(("age_s", "again_s"), [(0.5, ATTEMPT_S), (10.0, 10.0)])
async def test_an_attempt_into_the_void_is_begun_anew(
    age_s: float, again_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    waits, begun = Waits(), list[float]()

    async def open_stream() -> Stream:
        begun.append(trio.current_time() - start)
        if len(begun) == 1:
            await trio.sleep_forever()
        return Opened()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        keep = lambda: keep_streaming(open_stream, rotate_s=(600, 600), waits=waits, failed=lambda *_: None)  # noqa: E731
        nursery.start_soon(keep)
        await trio.sleep(age_s)
        waits.cut()
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    assert begun == [0, pytest.approx(again_s)]


async def test_no_series_of_changes_starves_a_slow_attempt(autojump_clock: trio.testing.MockClock) -> None:
    waits, opened = Waits(), trio.Event()

    async def open_stream() -> Stream:
        await trio.sleep(2)
        opened.set()
        return Opened()

    async with trio.open_nursery() as nursery:
        keep = lambda: keep_streaming(open_stream, rotate_s=(600, 600), waits=waits, failed=lambda *_: None)  # noqa: E731
        nursery.start_soon(keep)
        with trio.fail_after(10):
            while not opened.is_set():
                await trio.sleep(0.3)
                waits.cut()
        nursery.cancel_scope.cancel()


# The programmer


PLAN = Plan(
    1400,
    (
        Address(IPv4Interface("10.10.0.1/24")),
        Route(IPv4Network("10.60.0.0/24")),
        Route(IPv4Network("0.0.0.0/0"), 100),
        Rule(100, 100),
    ),
)


async def test_routes_are_put_back_when_the_link_is_up_again(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.INFO)
    host = MemoryHost()
    programmer = Programmer(host, "tun0", interface_logger("tun0"))
    async with trio.open_nursery() as nursery:
        await nursery.start(programmer.run, PLAN)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            caplog.clear()
            host.set_link("tun0", up=False)
            await trio.testing.wait_all_tasks_blocked()
            assert len(host.standing["tun0"]) == 2
            host.set_link("tun0", up=True)
            await trio.testing.wait_all_tasks_blocked()
            assert set(host.standing["tun0"]) == set(PLAN.items)
            assert len(caplog.messages) == 2
        # Afterwards a plan is applied as ever.
        await programmer.apply(replace(PLAN, items=PLAN.items[:1]))
        assert set(host.standing["tun0"]) == set(PLAN.items[:1])
        nursery.cancel_scope.cancel()
    assert host.watchers == 0
    assert host.left_over == []


async def test_what_cannot_be_put_back_is_told_once_and_not_fought_for(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    host = MemoryHost()
    programmer = Programmer(host, "tun0", interface_logger("tun0"))
    async with trio.open_nursery() as nursery:
        await nursery.start(programmer.run, PLAN)
        await trio.testing.wait_all_tasks_blocked()
        host.refused.add(PLAN.items[1])
        host.set_link("tun0", up=False)
        host.set_link("tun0", up=True)
        await trio.sleep(60)
        assert sum("could be put back" in line for line in caplog.messages) == 1
        host.refused.clear()
        host.set_link("tun0", up=False)
        host.set_link("tun0", up=True)
        await trio.testing.wait_all_tasks_blocked()
        assert set(host.standing["tun0"]) == set(PLAN.items)
        nursery.cancel_scope.cancel()


async def test_a_plan_that_fails_still_ends_the_programmer() -> None:
    host = MemoryHost()
    host.refused.add(PLAN.items[1])
    programmer = Programmer(host, "tun0", interface_logger("tun0"))
    with pytest.RaisesGroup(HostError):
        async with trio.open_nursery() as nursery:
            await nursery.start(programmer.run, PLAN)
    assert host.left_over == []


PUSHED_PLAN = replace(PLAN, pushed=frozenset({PLAN.items[1]}))


async def test_a_pushed_route_that_is_refused_costs_that_route_only(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    host, route = MemoryHost(), PLAN.items[1]
    host.refused.add(route)
    programmer = Programmer(host, "tun0", interface_logger("tun0"))
    others = set(PLAN.items) - {route}

    def told() -> int:
        return sum("goes on without" in line for line in caplog.messages)

    async with trio.open_nursery() as nursery:
        await nursery.start(programmer.run, PUSHED_PLAN)
        assert set(host.standing["tun0"]) == others
        assert told() == 1
        await programmer.apply(replace(PUSHED_PLAN, mtu=1300))  # still refused, and not told again
        host.set_link("tun0", up=False)
        host.set_link("tun0", up=True)
        await trio.testing.wait_all_tasks_blocked()
        assert set(host.standing["tun0"]) == others
        assert told() == 1
        assert not any("could be put back" in line for line in caplog.messages)
        host.refused.clear()
        await programmer.apply(replace(PUSHED_PLAN, mtu=1200))
        assert set(host.standing["tun0"]) == set(PLAN.items)
        nursery.cancel_scope.cancel()
    assert host.left_over == []


async def test_a_put_back_that_fails_as_a_whole_is_not_called_done(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an item refused, but netlink itself, or an interface that is gone."""
    caplog.set_level(logging.INFO)
    host = MemoryHost()

    async def fail(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise HostError("interface tun0 does not exist (any more)")

    programmer = Programmer(host, "tun0", interface_logger("tun0"))
    async with trio.open_nursery() as nursery:
        await nursery.start(programmer.run, PUSHED_PLAN)
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("tests.fakes.MemoryNetwork.add", fail)
        host.set_link("tun0", up=True)
        await trio.testing.wait_all_tasks_blocked()
        assert sum("not everything could be put back" in line for line in caplog.messages) == 1
        assert not any("put its addresses" in line for line in caplog.messages)
        nursery.cancel_scope.cancel()
    assert host.left_over == []
