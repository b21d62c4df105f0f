"""routing.switch against a slow oracle, and what no client can make it do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.macs import BROADCAST, NO_MAC, mac_text, parse_mac
from tapotun_trio.routing import switch as module
from tapotun_trio.routing.switch import (
    AGE_S,
    ALL_MOVES_PER_S,
    BAD_MAC,
    DEVICE,
    FLOOD,
    ISOLATED,
    MAX_CLIENT_MACS,
    MAX_DEVICE_MACS,
    MOVE_S,
    MOVES_BURST,
    RESERVED_MAC,
    SAME_SIDE,
    Move,
    Row,
    Switch,
    SwitchRules,
    TableCounts,
)

OWN: Final = parse_mac("02:00:00:00:00:01")
MULTICAST: Final = parse_mac("01:00:5e:00:00:fb")
STP: Final = parse_mac("01:80:c2:00:00:00")
LLDP: Final = parse_mac("01:80:c2:00:00:0e")
NOT_RESERVED: Final = parse_mac("01:80:c2:00:00:10")


def mac(number: int) -> bytes:
    return b"\x02\xaa" + number.to_bytes(4, "big")


# -- the oracle: what the rules say, in the plainest way


@dataclass
class Oracle:
    """Remembers every frame that taught something, and looks at all of them each time."""

    rules: SwitchRules
    most: int
    seen: list[tuple[bytes, int, float]] = field(default_factory=list)
    moved: dict[bytes, float] = field(default_factory=dict)
    counts: Counter[tuple[int, str]] = field(default_factory=Counter)

    def where(self, one: bytes, now: float) -> int | None:
        if one == self.rules.own:
            return DEVICE
        if one in self.rules.pinned:
            return self.rules.pinned[one]
        for known, port, at in reversed(self.seen):
            if known == one:
                return port if now - at < AGE_S else None
        return None

    def decide(self, port: int, destination: bytes, source: bytes, now: float) -> int:
        rules = self.rules
        if source[0] & 1 or source == NO_MAC:
            return BAD_MAC
        if source == rules.own and port != DEVICE:
            return BAD_MAC
        if source in rules.pinned and rules.pinned[source] != port:
            return BAD_MAC
        if rules.pins.get(port) and source not in rules.pins[port] and source != rules.own:
            return BAD_MAC
        if destination[:5] == STP[:5] and destination[5] < 16 and not rules.forwards_reserved:
            return RESERVED_MAC
        self.learn(port, source, now)
        to = None if destination[0] & 1 else self.where(destination, now)
        if to is None:
            return FLOOD
        if to == port:
            return SAME_SIDE
        if rules.isolate and to >= 0 and port >= 0:
            return ISOLATED
        return to

    def learn(self, port: int, source: bytes, now: float) -> None:
        if source == self.rules.own or source in self.rules.pinned:
            return
        before = self.where(source, now)
        if before is not None and before != port:
            if now - self.moved.get(source, -1e9) < MOVE_S:
                return
            self.moved[source] = now
        elif before is None:
            self.moved.pop(source, None)
        if before != port:
            self.counts[port, "learned" if before is None else "moved"] += 1
        self.seen = [each for each in self.seen if each[0] != source]
        behind = [each for each in self.seen if each[1] == port]
        if len(behind) >= self.most:
            self.seen.remove(behind[0])
            if now - behind[0][2] < AGE_S:
                self.counts[port, "evicted"] += 1
        self.seen.append((source, port, now))


STATIONS: Final = [OWN, *map(mac, range(6))]
SOURCES: Final = [*STATIONS, MULTICAST, NO_MAC]
DESTINATIONS: Final = [*STATIONS, BROADCAST, MULTICAST, STP, LLDP, NOT_RESERVED]
FRAMES: Final = st.tuples(
    st.sampled_from([DEVICE, 0, 1, 2]),
    st.sampled_from(DESTINATIONS),
    st.sampled_from(SOURCES),
    st.sampled_from([0.0, 0.1, 0.5, 1.0, 30.0, AGE_S - 1, AGE_S]),
)
PINS: Final = st.sampled_from([{}, {0: (mac(0), mac(1))}, {1: (mac(2),), 2: (mac(3),)}])


def pinned(pins: Mapping[int, tuple[bytes, ...]]) -> dict[bytes, int]:
    return {each: port for port, macs in pins.items() for each in macs}


@settings(max_examples=300)
@given(st.lists(FRAMES, max_size=60), PINS, st.booleans(), st.booleans(), st.integers(1, 4))
def test_it_decides_as_the_oracle_does(
    frames: list[tuple[int, bytes, bytes, float]],
    pins: dict[int, tuple[bytes, ...]],
    isolate: bool,
    forwards_reserved: bool,
    most: int,
) -> None:
    rules = SwitchRules(OWN, pinned(pins), pins, isolate, forwards_reserved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CLIENT_MACS", most)
        patch.setattr(module, "MAX_DEVICE_MACS", most)
        switch, oracle, now = Switch(rules), Oracle(rules, most), 0.0
        for number, (port, destination, source, pause) in enumerate(frames):
            now += pause
            got = switch.decide(port, destination, source, now)
            assert got == oracle.decide(port, destination, source, now), (number, table(switch, now), oracle.seen)
            for each in STATIONS:
                assert switch.port_of(each, now) == oracle.where(each, now)
            if number % 7 == 0:
                switch.expire(now)  # changes nothing that can be seen
            consistent(switch, now)
        for what in ("learned", "moved", "evicted"):
            each_port = {port: getattr(switch.counts_of(port), what) for port in (DEVICE, 0, 1, 2)}
            assert each_port == {port: oracle.counts[port, what] for port in each_port}
            assert getattr(switch.counts, what) == sum(each_port.values())
        switch.remove_port(0, now)
        assert switch.counts_of(0) == TableCounts()


def table(switch: Switch, now: float) -> dict[str, int]:
    return {mac_text(row.mac): row.port for row in switch.rows(now)}


def consistent(switch: Switch, now: float) -> None:
    rows = list(switch.rows(now))
    assert len(rows) == len(switch) == len({row.mac for row in rows})
    for port in {row.port for row in rows} | {DEVICE, 0, 1, 2}:
        assert switch.size(port) == sum(row.port == port for row in rows)


# -- one thing at a time


def test_it_learns_and_sends_to_the_owner_only() -> None:
    switch = Switch(SwitchRules(OWN))
    assert switch.decide(0, mac(9), mac(1), 0.0) == FLOOD
    assert switch.decide(1, mac(1), mac(2), 0.0) == 0
    assert switch.decide(0, mac(2), mac(1), 0.0) == 1
    assert switch.decide(0, OWN, mac(1), 0.0) == DEVICE
    assert switch.decide(DEVICE, mac(1), OWN, 0.0) == 0
    assert switch.decide(0, BROADCAST, mac(1), 0.0) == FLOOD
    assert switch.decide(0, mac(1), mac(5), 0.0) == SAME_SIDE
    assert switch.decide(DEVICE, OWN, mac(7), 0.0) == SAME_SIDE


def test_what_is_not_used_is_forgotten_and_what_is_used_is_not() -> None:
    switch = Switch(SwitchRules(OWN))
    for port, one in ((0, mac(1)), (1, mac(2))):
        switch.decide(port, BROADCAST, one, 0.0)
    switch.decide(1, BROADCAST, mac(2), 200.0)
    switch.expire(AGE_S)
    assert table(switch, AGE_S).keys() == {mac_text(OWN), mac_text(mac(2))}
    assert switch.decide(1, mac(1), mac(2), AGE_S) == FLOOD


def test_a_frame_to_itself_goes_nowhere() -> None:
    switch = Switch(SwitchRules(OWN))
    assert switch.decide(0, mac(1), mac(1), 0.0) == SAME_SIDE
    assert not switch.stale


@pytest.mark.parametrize("source", [OWN, NO_MAC, BROADCAST, MULTICAST])
def test_sources_that_no_client_has(source: bytes) -> None:
    switch = Switch(SwitchRules(OWN))
    assert switch.decide(0, mac(1), source, 0.0) == BAD_MAC
    assert len(switch) == 1
    assert switch.is_settled(0, source), "the verdict may be kept: nothing would be learned from the next one"


def test_a_pinned_address_is_always_where_it_is_pinned() -> None:
    switch = Switch(SwitchRules(OWN, {mac(1): 0}, {0: (mac(1),)}))
    assert switch.decide(1, mac(1), mac(2), 0.0) == 0, "even before it has sent anything"
    assert switch.decide(1, BROADCAST, mac(1), 0.0) == BAD_MAC
    assert switch.decide(DEVICE, BROADCAST, mac(1), 0.0) == BAD_MAC
    assert switch.decide(0, BROADCAST, mac(3), 0.0) == BAD_MAC, "a client with pinned addresses has no others"
    assert switch.decide(0, BROADCAST, mac(1), 5.0) == FLOOD
    rows = {row.mac: row for row in switch.rows(8.0)}
    assert rows[mac(1)] == Row(mac(1), 0, 3.0, True)
    assert rows[OWN] == Row(OWN, DEVICE, None, True)
    switch.forget(0, 8.0)
    assert {row.mac: row for row in switch.rows(8.0)}[mac(1)].age_s is None


def test_new_rules_win_over_what_was_learned() -> None:
    switch = Switch(SwitchRules(OWN))
    for port, one in ((0, mac(1)), (1, mac(2)), (1, mac(3))):
        switch.decide(port, BROADCAST, one, 0.0)
    switch.set_rules(SwitchRules(mac(3), {mac(1): 1}, {1: (mac(1),)}))
    assert switch.stale
    consistent(switch, 0.0)
    assert {row.mac: row.port for row in switch.rows(0.0)} == {mac(3): DEVICE, mac(1): 1}


def test_reserved_addresses() -> None:
    closed, open_ = Switch(SwitchRules(OWN)), Switch(SwitchRules(OWN, forwards_reserved=True))
    for destination in (STP, LLDP):
        assert closed.decide(0, destination, mac(1), 0.0) == RESERVED_MAC
        assert open_.decide(0, destination, mac(1), 0.0) == FLOOD
    assert closed.decide(0, NOT_RESERVED, mac(1), 0.0) == FLOOD


def test_isolated_clients() -> None:
    switch = Switch(SwitchRules(OWN, isolate=True))
    switch.decide(0, BROADCAST, mac(1), 0.0)
    switch.decide(DEVICE, BROADCAST, mac(9), 0.0)
    assert switch.decide(1, mac(1), mac(2), 0.0) == ISOLATED
    assert switch.decide(1, mac(9), mac(2), 0.0) == DEVICE
    assert switch.decide(DEVICE, mac(1), mac(9), 0.0) == 0
    assert switch.decide(1, mac(2), mac(3), 0.0) == SAME_SIDE


# -- what a client may try


def test_ten_thousand_addresses_of_one_client_take_nothing_from_the_others() -> None:
    switch = Switch(SwitchRules(OWN))
    switch.decide(1, BROADCAST, mac(1), 0.0)
    switch.decide(DEVICE, BROADCAST, mac(2), 0.0)
    for number in range(10_000):
        assert switch.decide(0, BROADCAST, mac(100 + number), 0.0) == FLOOD
    assert switch.size(0) == MAX_CLIENT_MACS
    assert switch.port_of(mac(1), 0.0) == 1
    assert switch.port_of(mac(2), 0.0) == DEVICE
    assert switch.port_of(mac(100), 0.0) is None, "the oldest of that client went"
    assert switch.port_of(mac(10_099), 0.0) == 0
    assert (switch.stale, switch.stale_soon) == (False, False), "nor does it empty anybody's cache"
    consistent(switch, 0.0)


def test_an_address_that_made_room_for_others_is_looked_for_again() -> None:
    """Somebody may keep the verdict that it is behind this client. If it shows up elsewhere, that is no move."""
    switch = Switch(SwitchRules(OWN))
    switch.decide(0, BROADCAST, mac(1), 0.0)
    assert switch.decide(1, mac(1), mac(2), 0.0) == 0
    for number in range(MAX_CLIENT_MACS - 1):
        switch.decide(0, mac(2), mac(100 + number), 0.0)
    assert not switch.stale_soon
    switch.decide(0, mac(2), mac(99_999), 0.0)
    assert (switch.stale, switch.stale_soon) == (False, True), "with the next tick"


def test_the_device_is_bounded_too() -> None:
    switch = Switch(SwitchRules(OWN))
    for number in range(MAX_DEVICE_MACS + 10):
        switch.decide(DEVICE, BROADCAST, mac(number), 0.0)
    assert switch.size(DEVICE) == MAX_DEVICE_MACS + 1


def test_the_one_that_was_used_last_stays() -> None:
    switch = Switch(SwitchRules(OWN))
    for number in range(MAX_CLIENT_MACS):
        switch.decide(0, BROADCAST, mac(number), 0.0)
    switch.decide(0, BROADCAST, mac(0), 1.0)
    switch.decide(0, BROADCAST, mac(9999), 1.0)
    assert switch.port_of(mac(0), 1.0) == 0
    assert switch.port_of(mac(1), 1.0) is None


def test_a_move_is_believed_once_a_second() -> None:
    switch = Switch(SwitchRules(OWN))
    switch.decide(0, BROADCAST, mac(1), 0.0)
    switch.decide(1, BROADCAST, mac(1), 10.0)
    assert (switch.port_of(mac(1), 10.0), switch.stale) == (1, True)
    assert switch.moved == Move(mac(1), 0, 1)
    switch.stale, switch.moved = False, None
    assert switch.decide(0, BROADCAST, mac(1), 10.5) == FLOOD, "its frames pass all the same"
    assert (switch.port_of(mac(1), 10.5), switch.stale, switch.moved) == (1, False, None)
    assert not switch.is_settled(0, mac(1)), "so no verdict may be kept that keeps it from moving later"
    switch.decide(0, BROADCAST, mac(1), 11.0)
    assert (switch.port_of(mac(1), 11.0), switch.stale) == (0, True)


def emptied(switch: Switch) -> bool:
    was, switch.stale = switch.stale, False
    return was


def test_a_client_whose_addresses_flap_empties_caches_a_few_times_only() -> None:
    """Two clients send with the same 1,000 addresses, in turn, for a minute."""
    switch = Switch(SwitchRules(OWN))
    times = 0
    for second in range(60):
        for number in range(1000):
            switch.decide(second % 2, BROADCAST, mac(number), 2.0 * second)
            times += emptied(switch)
    assert switch.stale_soon
    # Each has its burst, and then one a second of its own time.
    assert 2 * MOVES_BURST <= times <= 2 * (MOVES_BURST + 120)
    # A client that begins now is not slowed down by what those two did.
    switch.decide(7, BROADCAST, mac(5), 200.0)
    assert emptied(switch)


def test_many_clients_whose_addresses_flap_have_a_limit_together() -> None:
    switch = Switch(SwitchRules(OWN))
    for number in range(500):
        switch.decide(0, BROADCAST, mac(number), 0.0)
    times = 0
    for number in range(500):
        switch.decide(1 + number % 100, BROADCAST, mac(number), 10.0)
        times += emptied(switch)
    assert times == ALL_MOVES_PER_S
    assert switch.stale_soon


def test_a_client_that_comes_and_goes_empties_caches_a_few_times_only() -> None:
    switch = Switch(SwitchRules(OWN))
    times = 0
    for _ in range(100):
        switch.decide(0, BROADCAST, mac(1), 0.0)
        switch.forget(0, 0.0)
        times += emptied(switch)
    assert times == MOVES_BURST
    switch.forget(0, 0.0)
    assert not emptied(switch), "nothing was behind it"


def test_what_a_port_leaves_behind() -> None:
    switch = Switch(SwitchRules(OWN))
    for port in range(1000):
        switch.decide(port, BROADCAST, mac(port % 10), 10.0 * port)
        switch.may_flood(port, 1, 10.0 * port)
        switch.remove_port(port, 10.0 * port)
    assert [switch._floods, switch._moves, switch._by_port, switch._where] == [{}] * 4


@given(st.lists(st.tuples(st.integers(1, 100), st.sampled_from([0.0, 0.001, 0.1, 1.0, 5.0])), max_size=50))
def test_the_storm_limit_holds_in_any_window(bursts: list[tuple[int, float]]) -> None:
    limit = 50
    switch, now, allowed = Switch(SwitchRules(OWN, storm_limit=limit)), 0.0, list[tuple[float, int]]()
    for frames, pause in bursts:
        now += pause
        got = switch.may_flood(0, frames, now)
        assert 0 <= got <= frames
        allowed.append((now, got))
        assert switch.may_flood(DEVICE, frames, now) == frames
        for begin, _ in allowed:
            in_window = sum(count for at, count in allowed if begin <= at)
            assert in_window <= limit + (now - begin) * limit + 1


def test_a_client_that_floods_takes_nothing_from_another() -> None:
    switch = Switch(SwitchRules(OWN, storm_limit=10))
    assert switch.may_flood(0, 1000, 0.0) == 10
    assert switch.may_flood(0, 1000, 0.0) == 0
    assert switch.may_flood(1, 5, 0.0) == 5
    switch.set_rules(SwitchRules(OWN, storm_limit=100))
    assert switch.may_flood(0, 1000, 1.0) == 100


def test_rows_in_shares() -> None:
    switch = Switch(SwitchRules(OWN))
    for number in range(1000):
        switch.decide(0, BROADCAST, mac(number), float(number) / 1000)
    switch.decide(1, BROADCAST, mac(5000), 1.0)
    rows = list(switch.rows(1.0, 10))
    assert [row.mac for row in rows if row.port == 0] == [mac(number) for number in range(999, 989, -1)]
    assert [row.mac for row in rows if row.port == 1] == [mac(5000)]


def test_it_does_not_grow_while_somebody_reads_it() -> None:
    switch = Switch(SwitchRules(OWN))
    for number in range(10):
        switch.decide(number % 3, BROADCAST, mac(number), 0.0)
    rows = switch.rows(0.0)
    next(rows), next(rows)
    switch.forget(1, 0.0)
    switch.decide(5, BROADCAST, mac(77), 0.0)
    assert len(list(rows)) <= 10


def test_a_limit_below_the_size_of_one_frame_lets_it_pass_now_and_then() -> None:
    """Otherwise a super-packet to an address that nobody knows could never pass, however often TCP repeats it."""
    switch = Switch(SwitchRules(storm_limit=10))
    passed = [switch.may_flood(1, 1, tenth / 10, 44) for tenth in range(100)]
    assert sum(passed) == 2
    assert passed.index(1) >= 34
