"""What others take from an interface is put back within limits, and shown while it is missing."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tapotun_trio.errors import HostError, leaves
from tapotun_trio.host.items import Address, DesiredState, Item, ItemsRefused, Route, Rule
from tapotun_trio.log import interface_logger
from tapotun_trio.netconf.reconciler import Reconciler
from tapotun_trio.netconf.repair import MOST, PAUSE_S, REST_S, WINDOW_S, RepairLimit
from tapotun_trio.netconf.repairer import Health, Repairer

from ..fakes import MemoryHost, MemoryNetwork

ADDRESS: Final = Address(IPv4Interface("10.50.0.1/24"))
NETWORK: Final = Route(IPv4Network("10.60.0.0/24"))
MARKED: Final = Route(IPv4Network("0.0.0.0/0"), 100)
RULE: Final = Rule(100, 100)
ALL: Final = (ADDRESS, NETWORK, MARKED, RULE)


@pytest.fixture(autouse=True)
def nobody_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """That happens in a thread, which takes real time, while the clock of these tests jumps."""

    async def nobody(*_: object) -> str:
        return ""

    monkeypatch.setattr(Repairer, "_blame", nobody)


# The limit


def test_each_repair_within_a_minute_waits_longer() -> None:
    limit, now, pauses = RepairLimit(), 1000.0, []
    for _ in range(MOST):
        pauses.append(limit.wait_s(now))
        now += pauses[-1]
        limit.repaired(now)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, *[PAUSE_S[1]] * (MOST - 5)]
    assert limit.rests(now)
    assert limit.wait_s(now) == REST_S
    assert limit.wait_s(now + REST_S) == 0.0
    assert not limit.rests(now + REST_S)
    limit.reset()
    assert limit.wait_s(now) == 0.0


@given(st.lists(st.floats(0.0, 120.0), max_size=60))
def test_never_more_than_so_many_in_a_minute(gaps: list[float]) -> None:
    limit, now, times = RepairLimit(), 0.0, list[float]()
    for gap in gaps:
        now += gap
        if not limit.wait_s(now):
            limit.repaired(now)
            times.append(now)
    for number, at in enumerate(times):
        assert len([other for other in times[number:] if other < at + WINDOW_S]) <= MOST + 1


# The reconciler


class Case:
    """A running reconciler."""

    def __init__(self, host: MemoryHost, reconciler: Reconciler, health: Health) -> None:
        self.host = host
        self.reconciler = reconciler
        self.health = health
        self.changes = 0

    @property
    def standing(self) -> set[object]:
        return set(self.host.standing["tun0"])

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(1000):
            while not holds():  # noqa: ASYNC110 - what others do
                await trio.sleep(0.1)


@asynccontextmanager
async def running(items: tuple[Item, ...] = ALL) -> AsyncIterator[Case]:
    host = MemoryHost()
    health = Health(lambda: None)
    reconciler = Reconciler(host, "tun0", interface_logger("tun0"), health=health)
    async with trio.open_nursery() as nursery:
        await nursery.start(reconciler.run, DesiredState(1400, items))
        it = Case(host, reconciler, health)
        await it.until(lambda: host.looks)
        yield it
        nursery.cancel_scope.cancel()
    assert host.left_over == []


async def test_what_is_taken_is_put_back_and_told(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with running() as it:
        for taken, text in (
            ([RULE], "another program took away rule fwmark 100 lookup 100: put back"),
            ([ADDRESS, NETWORK], "another program took away address 10.50.0.1/24, route 10.60.0.0/24: put back"),
        ):
            caplog.clear()
            it.host.take("tun0", *taken)
            await it.until(lambda: it.standing == set(ALL))
            await it.until(lambda: text in caplog.text)  # noqa: B023
            await trio.sleep(WINDOW_S)
        caplog.clear()
        it.host.strict.add("tun0")
        it.host.tell("tun0")
        await it.until(lambda: not it.host.strict)
        await it.until(lambda: "took away the loose reverse path filter" in caplog.text)
        await trio.sleep(WINDOW_S)
        it.host.mtus["tun0"] = 1280
        it.host.tell("tun0")
        await it.until(lambda: it.host.mtus["tun0"] == 1400)
        assert it.health.repairs == 4
        assert it.health.degraded is None


async def test_a_rule_of_ipv6_does_not_mind_the_filter_that_ipv4_has(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    address, marked = Address(IPv6Interface("fd00:50::1/64")), Route(IPv6Network("::/0"), 100)
    async with running((address, marked, replace(RULE, version=6))) as it:
        it.host.strict.add("tun0")
        looks = it.host.looks
        it.host.tell("tun0")
        await it.until(lambda: it.host.looks > looks)
        await trio.sleep(WINDOW_S)
        assert (it.health.repairs, it.health.degraded) == (0, None)
        assert "another program" not in caplog.text


async def test_what_another_interface_of_ours_had_comes_back_and_nobody_is_blamed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running() as it:
        for _ in range(2 * MOST):  # more often than what other programs take is put back
            it.host.standing["tun0"].remove(NETWORK)
            it.host.tell("tun0", returned=True)
            await it.until(lambda: it.standing == set(ALL))
        assert "another interface of this program had route 10.60.0.0/24 and is gone: added here again" in caplog.text
        assert "another program" not in caplog.text
        assert (it.health.repairs, it.health.degraded) == (0, None)
        # What is taken at the same moment from this interface itself is another program's doing.
        it.host.standing["tun0"].remove(ADDRESS)
        it.host.tell("tun0", returned=True)
        await it.until(lambda: "another program took away address" in caplog.text)


async def test_a_fight_ends_after_some_rounds_and_begins_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as it:
        times: list[float] = []

        async def enemy() -> None:
            while True:
                await it.until(lambda: RULE in it.standing)
                times.append(trio.current_time())
                it.host.take("tun0", RULE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enemy)
            await trio.sleep(300)
            assert it.health.degraded is not None
            assert "rule fwmark 100 lookup 100" in it.health.degraded
            nursery.cancel_scope.cancel()
        for number, at in enumerate(times):
            assert len([other for other in times[number:] if other < at + WINDOW_S]) <= MOST + 1
        assert len(times) > MOST + 1  # it goes on after its rest
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) < 30
        assert any("again and again" in record.getMessage() for record in warnings)
        looks = it.host.looks
        assert looks < 10 * len(times)
        # The operator does not wait.
        before = trio.current_time()
        assert await it.reconciler.repair() in ([], ["put back rule fwmark 100 lookup 100"])
        assert trio.current_time() == before
        assert it.standing == set(ALL)
        assert it.health.degraded is None


async def test_our_own_changes_repair_nothing(autojump_clock: MockClock) -> None:
    async with running() as it:
        for items in ((ADDRESS,), ALL, (ADDRESS, MARKED, RULE), ALL):
            await it.reconciler.apply(DesiredState(1300, items))
            it.host.tell("tun0")
            await trio.sleep(10)
            assert it.standing == set(items)
        assert it.health.repairs == 0
        assert await it.reconciler.repair() == []


async def test_a_link_that_is_down_is_degraded_until_somebody_sets_it_up(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as it:
        it.host.set_link("tun0", up=False)
        await it.until(lambda: it.health.degraded == "another program set it down")
        await trio.sleep(300)
        assert NETWORK not in it.standing
        it.host.set_link("tun0", up=True)
        await it.until(lambda: it.standing == set(ALL))
        assert it.health.degraded is None
        it.host.set_link("tun0", up=False)
        await it.until(lambda: it.health.degraded)
        assert await it.reconciler.repair() == ["set up again"]
        assert it.standing == set(ALL)
        assert it.health.degraded is None
        assert it.health.repairs == 0  # the kernel took the routes
        assert caplog.text.count("set this interface down") == 2


async def test_a_new_name_is_followed(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with running() as it:
        it.host.renamed["tun0"] = "other0"
        it.host.tell("tun0")
        await it.until(lambda: it.health.degraded)
        assert "renamed it to other0" in (it.health.degraded or "")
        it.host.take("tun0", RULE)
        await it.until(lambda: it.health.repairs == 1)
        assert "renamed it to other0" in (it.health.degraded or "")
        assert await it.reconciler.repair() == ["renamed from other0"]
        assert it.health.degraded is None


@pytest.mark.parametrize(("moved", "text"), [(True, "moved this interface"), (False, "deleted this interface")])
async def test_an_interface_that_is_gone_ends_the_task(moved: bool, text: str, autojump_clock: MockClock) -> None:
    async def move() -> None:
        async with running() as it:
            it.host.moved.add("tun0")
            it.host.tell("tun0", moved=moved)
            await trio.sleep(1000)

    with pytest.raises(BaseExceptionGroup) as caught:
        await move()
    (error,) = leaves(caught.value)
    assert isinstance(error, HostError)
    assert text in str(error)


async def test_what_cannot_be_put_back_stays_shown(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as it:
        it.host.refused.add(NETWORK)
        it.host.take("tun0", NETWORK)
        await it.until(lambda: it.health.degraded)
        assert "refused" in (it.health.degraded or "")
        await trio.sleep(200)
        assert caplog.text.count("stays missing") == 1
        with pytest.raises(HostError, match="refused"):
            await it.reconciler.repair()
        it.host.refused.clear()
        await it.until(lambda: it.standing == set(ALL))
        await it.until(lambda: it.health.degraded is None)
        assert "in place again" in caplog.text


async def test_a_kernel_that_does_not_answer_is_asked_again(autojump_clock: MockClock) -> None:
    async with running() as it:
        it.host.ways_fail = True
        it.host.take("tun0", RULE)
        await it.until(lambda: it.health.degraded)
        assert "the kernel does not say" in (it.health.degraded or "")
        it.host.ways_fail = False
        await it.until(lambda: it.standing == set(ALL))
        await it.until(lambda: it.health.degraded is None)


async def test_what_stays_missing_delays_no_other(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A route whose place another program has taken for good is tried again and again. A rule is put back at once."""
    async with running() as it:
        it.host.refused.add(NETWORK)
        it.host.take("tun0", NETWORK)
        for rounds in range(1, 6):
            await trio.sleep(WINDOW_S + 7 * rounds)
            taken_at = trio.current_time()
            it.host.take("tun0", RULE)
            await it.until(lambda: RULE in it.standing)
            assert trio.current_time() < taken_at + 1
            await it.until(lambda: it.health.repairs == rounds)  # noqa: B023
            assert "route 10.60.0.0/24" in (it.health.degraded or "")
            assert "rule" not in (it.health.degraded or "")
        assert "took away rule fwmark 100 lookup 100: put back" in caplog.text
        assert caplog.text.count("stays missing") == 1


async def test_a_rule_that_nobody_took_is_not_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody switches IPv6 off on the interface: that takes addresses and routes, and leaves the rules."""
    add = MemoryNetwork.add

    async def as_the_kernel(self: MemoryNetwork, name: str, items: Sequence[Item]) -> None:
        refused: dict[Item, str] = dict.fromkeys(
            (item for item in items if isinstance(item, Address | Route)), "IPv6 is switched off"
        )
        refused |= {item: "not tried, as the route of its table was refused" for item in items if item not in refused}
        raise ItemsRefused(refused)

    address, marked = Address(IPv6Interface("fd00:50::1/64")), Route(IPv6Network("::/0"), 100)
    async with running((address, marked, replace(RULE, version=6))) as it:
        monkeypatch.setattr(MemoryNetwork, "add", as_the_kernel)
        it.host.take("tun0", address, marked)
        await it.until(lambda: it.health.degraded)
        missing = "missing: address fd00:50::1/64, route ::/0 in table 100; IPv6 is switched off"
        assert it.health.degraded == missing
        assert "rule" not in caplog.text
        # If the rule is taken, too, it is named.
        it.host.take("tun0", replace(RULE, version=6))
        await it.until(lambda: "rule fwmark 100" in (it.health.degraded or ""))
        monkeypatch.setattr(MemoryNetwork, "add", add)
        await it.until(lambda: it.health.degraded is None)


async def test_what_is_put_back_in_part(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with running() as it:
        it.host.refused.add(NETWORK)
        it.host.take("tun0", ADDRESS, NETWORK)
        await it.until(lambda: it.health.repairs == 1)
        assert it.standing == set(ALL) - {NETWORK}
        assert "took away address 10.50.0.1/24: put back" in caplog.text
        assert "route 10.60.0.0/24 stays missing for now" in caplog.text
        assert "address" not in (it.health.degraded or "")
