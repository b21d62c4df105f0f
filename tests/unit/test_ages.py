"""What is recognised of limits on the way, from nothing but how long streams lived and were silent."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.client import client as client_module
from tapotun_trio.client.ages import (
    LEAST_AGE_S,
    RETRY_LIMIT_S,
    RETRY_S,
    SHARE,
    AgeLimit,
    AgeLimits,
    Lifetime,
    Limit,
    SilenceMeter,
    StreamKind,
    agree,
    describe,
    is_cut,
    likely,
)
from tapotun_trio.client.client import TunnelClient
from tapotun_trio.errors import EndReason, PeerError
from tapotun_trio.host.interfaces import Change
from tapotun_trio.log import interface_logger

from ..fakes import MemoryHost
from .hostile import until
from .support import allowed, client_config, free_port, running, server_config

D, U, W = StreamKind.DOWNLOAD, StreamKind.UPLOAD, StreamKind.WEBSOCKET
ROTATE_S: Final = (420.0, 900.0)
STEP_S: Final = 0.1
CUT: Final = PeerError("cut", reason=EndReason.BROKEN)


@dataclass
class World:
    """A client whose streams of one kind follow one another over a path, in steps of a tenth of a second.

    Attributes:
        age_s, silence_s: the path's limits; None: it has no such limit.
        pause_s: traffic comes after a random pause of up to this; 0: all the time.
        late_s: how late at most the end of a stream is noticed.
        cuts: when each stream was ended by the path.
        told: what the client said.
    """

    seed: int
    age_s: float | None = None
    silence_s: float | None = None
    pause_s: float = 0.0
    late_s: float = 0.2
    kind: StreamKind = D
    now: float = 1000.0
    cuts: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.ages = AgeLimits(ROTATE_S, lambda level, text: self.told.append(text), self._random)

    def run(self, seconds: float) -> int:
        """Streams for so long. How many of them the path has ended."""
        before, end = len(self.cuts), self.now + seconds
        while self.now < end:
            self._stream(end)
        return len(self.cuts) - before

    def _stream(self, end: float) -> None:
        began = traffic = self.now
        meter, plan = SilenceMeter(began), self.ages.plan(self.kind, began, 0.1)
        next_traffic = began + self._random.uniform(0, self.pause_s)
        sampled = began
        while self.now < end:
            self.now += STEP_S
            late = self._random.uniform(0, self.late_s)
            age_s = self.now - late - began
            silent_s = self.now - late - traffic
            if (self.age_s is not None and age_s >= self.age_s) or (
                self.silence_s is not None and silent_s >= self.silence_s
            ):
                self.cuts.append(self.now)
                self.ages.cut(self.kind, meter.sample(self.now, None), CUT, self.now, base=False)
                return
            if self.now >= next_traffic:
                traffic = self.now
                next_traffic = self.now + self._random.uniform(0, self.pause_s)
            if self.now - sampled >= 1:
                sampled = self.now
                self.ages.observe(self.kind, meter.sample(self.now, self.now - traffic))
            if plan.left_s(meter.sample(self.now, self.now - traffic)) <= 0:
                self.ages.observe(self.kind, meter.sample(self.now, self.now - traffic))
                return


@settings(max_examples=60, deadline=None)
@given(st.integers(), st.floats(1.5, 300), st.sampled_from([0.0, 1.0, 10.0]))
def test_a_limit_of_age_costs_two_streams(seed: int, age_s: float, pause_s: float) -> None:
    world = World(seed, age_s=age_s, pause_s=pause_s)
    assert 2 <= world.run(3 * age_s) <= 3
    assert world.run(min(RETRY_S - 2 * age_s, 20 * age_s)) == 0
    assert len(world.told) == 1
    assert "ends downloads at an age of" in world.told[0]
    limit = world.ages.limit(D)
    assert limit is not None
    assert limit.age_s is not None
    assert agree(limit.age_s, age_s)


@settings(max_examples=40, deadline=None)
@given(st.integers(), st.floats(3, 60))
def test_a_limit_of_silence_is_not_taken_for_one_of_age(seed: int, silence_s: float) -> None:
    """Traffic comes at random, so streams live for very different times."""
    world = World(seed, silence_s=silence_s, pause_s=1.5 * silence_s)
    world.run(30 * silence_s)
    limit = world.ages.limit(D)
    assert limit is not None
    assert limit.silence_s is not None
    assert agree(limit.silence_s, silence_s)
    before = len(world.cuts)
    world.pause_s = 0.0  # no silence any more: the streams live as long as without a limit
    began = world.now
    world.run(RETRY_S + 3 * ROTATE_S[1])
    assert len(world.cuts) - before <= 1
    assert world.now > began


@settings(max_examples=60, deadline=None)
@given(st.integers(), st.floats(1.5, 60), st.sampled_from([0.0, 2.0]))
def test_what_is_gone_is_forgotten(seed: int, age_s: float, pause_s: float) -> None:
    world = World(seed, age_s=age_s, pause_s=pause_s)
    world.run(4 * age_s)
    assert world.ages.limit(D) is not None
    world.age_s = None
    assert world.run(max(RETRY_S, 10 * age_s) + 2 * age_s + 60) == 0
    assert world.ages.limit(D) is None
    assert "downloads are no longer ended" in world.told[-1]


@settings(max_examples=4, deadline=None)
@given(st.integers(), st.floats(2, 30))
def test_while_a_limit_stands_it_is_tried_ever_more_rarely(seed: int, age_s: float) -> None:
    world = World(seed, age_s=age_s)
    world.run(3 * age_s)
    day = world.run(86400 / 4)
    assert 1 <= day <= 8
    assert len(world.told) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(), st.floats(3, 20), st.floats(30, 200))
def test_a_limit_that_changes_is_followed(seed: int, one_s: float, other_s: float) -> None:
    world = World(seed, age_s=other_s)
    world.run(3 * other_s)
    world.age_s = one_s  # lower
    world.run(10 * one_s)
    limit = world.ages.limit(D)
    assert limit is not None
    assert limit.age_s is not None
    assert agree(limit.age_s, one_s)
    world.age_s = other_s  # higher again: found at the next attempt
    world.run(2 * max(RETRY_S, 10 * one_s) + 5 * other_s)
    limit = world.ages.limit(D)
    assert limit is not None
    assert limit.age_s is not None
    assert agree(limit.age_s, other_s)


@settings(max_examples=40, deadline=None)
@given(st.integers())
def test_a_path_that_breaks_at_random_has_no_limit_for_long(seed: int) -> None:
    """Two ends may agree by chance. What follows from that costs nothing and is forgotten."""
    chance = random.Random(seed)
    limits, told = AgeLimit(), 0
    now = 0.0
    for _ in range(100):
        age_s = chance.expovariate(1 / 200)
        plan = limits.plan(now, 600.0, 0.1, chance)
        lived_s = min(age_s, plan.age_s)
        now += lived_s
        life = Lifetime(lived_s, 0.0)
        if age_s < plan.age_s:
            told += limits.cut(life, now)
        else:
            limits.observe(life)
    assert told <= 20


@pytest.mark.parametrize(
    ("lives", "limit"),
    [
        ([(15.0, 5.0, 10.0), (15.2, 5.2, 10.0)], Limit(15.0, None)),  # keepalives every 10 s
        ([(15.0, 15.0, 0.0), (15.2, 15.2, 0.0)], Limit(15.0, 15.0)),  # nothing was sent: it may be either
        ([(7.0, 5.0, 2.0), (31.0, 5.1, 4.0)], Limit(None, 5.0)),
        ([(7.0, 5.0, 2.0), (31.0, 5.1, 9.0)], None),  # it has survived longer silences
        ([(15.0, 1.0, 1.0), (30.0, 1.0, 1.0)], None),
        ([(15.0, 1.0, 1.0)], None),
        ([(0.3, 0.3, 0.0)] * 5, None),  # streams that fail
        ([(15.0, 1.0, 1.0), (3.0, 1.0, 1.0), (15.0, 1.0, 1.0)], Limit(15.0, None)),  # another end in between
        ([(15.0, 1.0, 1.0), (60.0, 1.0, 1.0), (15.0, 1.0, 1.0)], None),  # a stream has lived longer in between
    ],
)
def test_which_is_which(lives: list[tuple[float, float, float]], limit: Limit | None) -> None:
    found = AgeLimit()
    for life in lives:
        found.cut(Lifetime(*life), 0.0)
    assert found.limit == limit


def test_a_408_says_it_at_once() -> None:
    told: list[tuple[int, str]] = []
    ages = AgeLimits(ROTATE_S, lambda level, text: told.append((level, text)))
    refused = PeerError("answered 408", reason=EndReason.http(408))
    ages.cut(U, Lifetime(305.0, 4.0, 9.0), refused, 0.0, base=False)
    assert ages.limit(U) == Limit(305.0, None)
    assert [level for level, _ in told] == [logging.WARNING]
    assert "requestTimeout" in told[0][1]
    assert ages.limit(D) is None  # which has limits of its own


def test_clean_ends_of_a_base_server_need_more() -> None:
    """Two clients with one token end each other's downloads cleanly."""
    found = AgeLimit()
    for age_s in (3.0, 3.6, 2.4, 3.1):
        assert not found.cut(Lifetime(age_s, 0.0), 0.0, clean=True)
    found.forget()
    assert [found.cut(Lifetime(age_s, 0.0), 0.0, clean=True) for age_s in (3.0, 3.05, 3.1)] == [False, False, True]


def test_an_end_somewhat_below_a_limit_lowers_it() -> None:
    """A proxy that notices with its next write that the limit is over seems to have different ones."""
    found = AgeLimit()
    found.cut(Lifetime(38.0, 8.0, 10.0), 0.0)
    assert found.cut(Lifetime(38.5, 8.0, 10.0), 0.0)
    assert not found.cut(Lifetime(30.0, 1.0, 1.0), 1.0)
    assert found.limit == Limit(30.0, None)


def test_a_stream_that_takes_long_to_open_is_opened_earlier() -> None:
    found, chance = AgeLimit(), random.Random(1)
    for _ in range(2):
        found.cut(Lifetime(15.0, 1.0, 1.0), 0.0)
    for opening_s in (0.0, 1.0, 3.0, 100.0):
        for _ in range(100):
            age_s = found.plan(0.0, 600.0, opening_s, chance).age_s
            assert age_s <= SHARE[1] * 15.0
            assert age_s + opening_s < 15.0 or opening_s == 100.0
            assert age_s >= LEAST_AGE_S


def test_a_shorter_rotation_stays() -> None:
    found = AgeLimit()
    for _ in range(2):
        found.cut(Lifetime(15.0, 1.0, 1.0), 0.0)
    assert found.plan(0.0, 2.0, 0.0, random.Random(1)).age_s == 2.0


def test_the_pause_between_attempts_has_a_bound() -> None:
    found, now, chance = AgeLimit(), 0.0, random.Random(1)
    found.cut(Lifetime(15.0, 1.0, 1.0), now)
    found.cut(Lifetime(15.0, 1.0, 1.0), now)
    for _ in range(20):
        began = now
        while found.plan(now, 600.0, 0.0, chance).age_s < 600.0:
            now += 10.0
            assert now - began <= RETRY_LIMIT_S + 10
        found.cut(Lifetime(15.0, 1.0, 1.0), now)
    assert now > 20 * RETRY_S


@pytest.mark.parametrize(
    ("kind", "limit", "words"),
    [
        (D, Limit(15.0, None), "Envoy's route timeout"),
        (D, Limit(30.3, None), "Google's backend service"),
        (D, Limit(3.0, None), "timeouts write"),
        (U, Limit(60.0, None), "Traefik"),
        (U, Limit(5.0, 5.0), "Varnish's timeout_idle"),
        (U, Limit(None, 50.0), "HAProxy's timeout client"),
        (U, Limit(3.0, None), "timeouts read_body"),
        (W, Limit(30.0, None), "Google's backend service"),
        (W, Limit(None, 42.0), "timeout tunnel"),
    ],
)
def test_the_line_names_the_limit_and_the_setting(kind: StreamKind, limit: Limit, words: str) -> None:
    assert words in likely(kind, limit)
    line = describe(kind, limit)
    assert str(limit) in line
    assert words in line
    assert kind.value in line


def test_what_counts_as_an_end_on_the_way() -> None:
    for reason in ("broken", "closed", "ended", "ws-closed", "http-408", "http-504", "bad-frame"):
        assert is_cut(PeerError("x", reason=EndReason(reason)))
    assert is_cut(None)
    for reason in ("silent", "address-gone", "replaced", "moved", "disconnected", "http-403", "internal-error"):
        assert not is_cut(PeerError("x", reason=EndReason(reason)))


def test_silence_is_measured_from_samples() -> None:
    meter = SilenceMeter(100.0)
    assert meter.sample(101.0, 1.0) == Lifetime(1.0, 1.0, 0.0)
    assert meter.sample(104.0, 0.5) == Lifetime(4.0, 0.5, 1.0)  # at least
    assert meter.sample(107.0, 3.5) == Lifetime(7.0, 3.5, 1.0)
    assert meter.sample(108.0, 0.0) == Lifetime(8.0, 0.0, 3.5)
    assert meter.sample(110.0, None) == Lifetime(10.0, 2.0, 3.5)


class _Moved:
    """A download of which the local address is gone."""

    over = False
    explained = False
    local_address = "192.0.2.7"

    def __init__(self) -> None:
        self.connection = self

    def has_lost_its_address(self, local_addresses: frozenset[str] | None) -> bool:
        return local_addresses is not None

    def end(self, because: PeerError) -> None:
        self.over = True


async def test_another_network_begins_anew() -> None:
    """What was learned on the old path says nothing about the new one. While the address stays, it is the same path."""
    client = TunnelClient(client_config("a", 1), interface_logger("a"))
    for _ in range(2):
        client._ages.cut(D, Lifetime(15.0, 1.0, 1.0), CUT, 0.0, base=False)
    client._download = _Moved()  # type: ignore[assignment]
    client.path_changed("a route changed")
    assert client._ages.limit(D) is not None
    client._follow(Change("an address changed", frozenset()), (), ())
    assert client._ages.limit(D) is None


async def test_another_network_begins_anew_where_the_streams_were_lost_first() -> None:
    """Out of reach, a client loses its streams; the address of the next network comes later."""
    host, port = MemoryHost(), free_port()
    clients: list[TunnelClient] = []

    def client(*args: Any, **options: Any) -> TunnelClient:
        clients.append(TunnelClient(*args, **options))
        return clients[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "TunnelClient", client)
        async with running(host, server_config(port, allowed("a", "10.10.0.2")), client_config("a", port)):
            await until(lambda: bool(clients) and clients[0].state == "connected", "the client to be connected")
    (client_,) = clients
    assert client_.download is not None
    assert client_.download.over
    for _ in range(2):
        client_._ages.cut(D, Lifetime(15.0, 1.0, 1.0), CUT, 0.0, base=False)
    client_._follow(Change("another address came", frozenset({"127.0.0.1", "192.0.2.7"})), (), ())
    assert client_._ages.limit(D) is not None
    client_._follow(Change("an address changed", frozenset({"192.0.2.7"})), (), ())
    assert client_._ages.limit(D) is None
