"""Which streams are fed by the spoon, and under which congestion control."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tapotun_trio.datapath.congestion import CUBIC_AFTER_S, NEAR_LOSSY_SEGMENTS, RENEW_S
from tapotun_trio.datapath.scheduler import (
    FAST_SAMPLES,
    FAST_UNSENT_BYTES,
    NARROW_SAMPLES,
    PIECE_BYTES,
    SAMPLE_S,
    UNPACE_AFTER_S,
    WATCH_S,
    SendScheduler,
)
from tapotun_trio.host.interfaces import PathState
from tapotun_trio.host.net.sockets import NOTSENT_LOWAT_BYTES

NARROW: Final = PathState(0.05, 0.04, 2.5e6, 100_000, 0, 0, 0)
CROWDED: Final = PathState(0.09, 0.04, 2.5e6, 200_000, 0, 0, 0)
FAST: Final = PathState(0.002, 0.0001, 5e8, 100_000, 100_000, 0, 0)
FAST_AND_FAR: Final = PathState(0.021, 0.02, 1e8, 100_000, 100_000, 0, 0)
NEAR: Final = PathState(0.0004, 0.0003, 2.5e6, 1_000, 0, 0, 0)
IDLE: Final = PathState(0.041, 0.04, 3e4, 0, 0, 0, 0)  # but for a ping now and then


class FakeConnection:
    """A path as the test says, on a host that prefers ``congestion_control``, be it by its route."""

    def __init__(self, state: PathState | None, congestion_control: str = "cubic", *, by_route: bool = False) -> None:
        self.name = "peer"
        self.state = state
        self.preferred_congestion_control = congestion_control
        undecided = congestion_control == "bbr" and not by_route
        self.congestion_control = "reno" if undecided else congestion_control  # `host.sockets.avoid_bbr`
        self.chosen: list[str] = []
        self.asked = 0
        self.unsent_bytes = NOTSENT_LOWAT_BYTES

    def path(self) -> PathState | None:
        self.asked += 1
        return self.state

    def try_congestion_control(self, name: str) -> OSError | None:
        self.congestion_control = name
        self.chosen.append(name)
        return None

    def limit_unsent(self, limit_bytes: int) -> None:
        self.unsent_bytes = limit_bytes


def feed(connection: FakeConnection) -> SendScheduler:
    """What was chosen at its beginning is forgotten."""
    it = SendScheduler(connection, 0.0)
    connection.chosen.clear()
    return it


def is_paced(feed: SendScheduler) -> bool:
    return feed.paced


def backlog(feed: SendScheduler, start_s: float, stop_s: float, step_s: float = 0.005) -> None:
    """There is one all the time."""
    for n in range(round((stop_s - start_s) / step_s)):
        feed.allowance(start_s + n * step_s)


def test_a_fast_stream_is_left_alone_and_seldom_asked() -> None:
    connection = FakeConnection(FAST)
    it = feed(connection)
    for n in range(1000):
        assert it.allowance(1 + n / 10_000) == (0.0, PIECE_BYTES)
    assert connection.asked <= 0.1 / SAMPLE_S + 1


def test_a_backlog_on_a_narrow_stream_is_cut_small() -> None:
    it = feed(FakeConnection(NARROW))
    backlog(it, 1.0, 1.0 + NARROW_SAMPLES * 0.02)
    assert is_paced(it)
    assert it.allowance(2.0)[1] < PIECE_BYTES / 4


def test_one_odd_sample_changes_nothing() -> None:
    connection = FakeConnection(FAST)
    it = feed(connection)
    for n in range(100):
        connection.state = NARROW if n % 5 == 0 else FAST
        it.allowance(1 + n * 0.02)
        assert not is_paced(it)


def test_a_queue_on_the_path_is_found_without_a_backlog() -> None:
    connection = FakeConnection(NARROW)
    it = feed(connection)
    it.watch(1.0)
    assert not is_paced(it)
    connection.state = CROWDED
    it.watch(1.0 + WATCH_S / 2)
    assert not is_paced(it)
    it.watch(3.0)
    assert is_paced(it)
    it.tick(3.0 + UNPACE_AFTER_S - 0.1)
    assert is_paced(it)
    it.tick(3.0 + UNPACE_AFTER_S + 0.1)
    assert not is_paced(it)


def test_no_tcp_no_pacing() -> None:
    it = feed(FakeConnection(None))
    backlog(it, 1.0, 2.0)
    it.watch(2.0)
    it.tick(2.0)
    assert not is_paced(it)


def test_bbr_pauses_while_a_stream_is_paced() -> None:
    connection = FakeConnection(NARROW, "bbr")
    it = feed(connection)
    backlog(it, 1.0, 1.0 + CUBIC_AFTER_S)
    assert connection.congestion_control == "bbr"
    backlog(it, 1.0 + CUBIC_AFTER_S, 2.5)
    assert connection.congestion_control == "cubic"
    connection.state = FAST_AND_FAR
    backlog(it, 2.5, 2.6)
    assert not is_paced(it)
    assert connection.congestion_control == "bbr"


def watched(feed: SendScheduler, start_s: float, stop_s: float) -> None:
    """Everything is taken at once, and a second passes now and then."""
    for n in range(round((stop_s - start_s) * 10)):
        feed.watch(start_s + n / 10)
        if n % 10 == 5:
            feed.tick(start_s + n / 10)


def test_bbr_begins_anew_before_it_pauses() -> None:
    """It does 10 s after it began."""
    for state in (NARROW, IDLE):
        connection = FakeConnection(state, "bbr")
        it = feed(connection)
        watched(it, 0.0, RENEW_S)
        assert connection.chosen == []
        watched(it, RENEW_S, 60.0)
        renewals = len(connection.chosen) // 2
        assert 60 / 10 < renewals <= 60 / RENEW_S
        assert connection.chosen == ["cubic", "bbr"] * renewals
        assert not is_paced(it)


def test_nor_does_it_where_nothing_is_sent_for_long() -> None:
    connection = FakeConnection(IDLE, "bbr")
    it = feed(connection)
    for second in range(9):
        it.tick(float(second))
    assert connection.chosen == ["cubic", "bbr"]


def test_a_fast_stream_far_away_keeps_its_bbr_as_it_is() -> None:
    connection = FakeConnection(FAST_AND_FAR, "bbr")
    it = feed(connection)
    watched(it, 0.0, 60.0)
    connection.state = NARROW  # as odd samples are
    watched(it, 60.0, 60.2)
    assert connection.chosen == []


def test_what_the_host_prefers_begins_at_once_but_on_a_short_path() -> None:
    for state in (NARROW, FAST_AND_FAR, IDLE, None):
        connection = FakeConnection(state, "bbr")
        SendScheduler(connection, 0.0)
        assert connection.chosen == ["bbr"]
    for near in (FAST, NEAR):
        connection = FakeConnection(near, "bbr")
        SendScheduler(connection, 0.0)
        assert connection.chosen == ["cubic"]


def test_on_a_short_path_a_stream_is_better_off_without_bbr() -> None:
    for state in (FAST, NEAR):
        connection = FakeConnection(state, "bbr")
        it = feed(connection)
        watched(it, 0.0, 60.0)
        assert connection.chosen == []
        connection.state = FAST_AND_FAR  # as it really is: the handshake was answered by something near
        watched(it, 60.0, 62.0)
        assert connection.chosen == ["bbr"]
        connection.state = state
        watched(it, 62.0, 62.0 + CUBIC_AFTER_S)
        assert connection.chosen == ["bbr"]
        watched(it, 62.0 + CUBIC_AFTER_S, 64.0)
        assert connection.chosen == ["bbr", "cubic"]
        assert not is_paced(it)


def test_where_the_route_prefers_bbr_it_has_begun_already() -> None:
    connection = FakeConnection(NEAR, "bbr", by_route=True)
    it = SendScheduler(connection, 0.0)
    assert connection.chosen == []
    watched(it, 0.0, 2.0)
    assert connection.chosen == ["cubic"]


def test_a_fast_stream_has_it_back_on_a_path_that_loses_packets() -> None:
    connection = FakeConnection(FAST, "bbr")
    it = feed(connection)
    watched(it, 0.0, 2.0)
    assert connection.chosen == []
    for n in range(400):
        connection.state = replace(FAST, sent_segments=n * 200, resent_segments=n * 2)
        it.watch(2.0 + n / 10)
    assert NEAR_LOSSY_SEGMENTS > 200
    assert connection.chosen == ["bbr"]


def test_nothing_begins_anew_where_bbr_is_not_preferred() -> None:
    for connection in (FakeConnection(NARROW, "cubic"), FakeConnection(None, "bbr")):
        watched(feed(connection), 0.0, 60.0)
        assert connection.chosen == []


def test_on_a_full_link_nothing_begins_anew() -> None:
    """There a beginning overshoots, and takes from others."""
    connection = FakeConnection(NARROW, "bbr")
    it = feed(connection)
    backlog(it, 0.1, 30.0)
    assert connection.chosen == ["cubic"]
    connection.state = FAST
    backlog(it, 30.0, 30.005)  # not paced any more
    connection.state = NARROW
    watched(it, 30.1, 30.1 + RENEW_S)
    assert connection.chosen == ["cubic", "bbr"]
    watched(it, 30.1 + RENEW_S, 30.5 + RENEW_S)
    assert connection.chosen == ["cubic", "bbr"] * 2


def test_a_few_losses_are_enough_to_see_that_a_path_loses_packets() -> None:
    """At 1 % cubic is so slow that LOSSY_SEGMENTS take long."""
    connection = FakeConnection(NARROW, "bbr")
    it = feed(connection)
    backlog(it, 1.0, 2.0)
    for n in range(40):
        connection.state = PathState(0.042, 0.04, 2.5e6, 20_000, 0, n * 40, n * 40 // 100)
        backlog(it, 2.0 + n / 10, 2.1 + n / 10)
    assert connection.chosen == ["cubic", "bbr"]
    assert is_paced(it)


def test_what_bbr_lost_is_not_held_against_the_path() -> None:
    connection = FakeConnection(NARROW, "bbr")
    it = feed(connection)
    connection.state = PathState(0.042, 0.04, 2.5e6, 20_000, 0, 6_000, 200)
    backlog(it, 1.0, 1.0 + CUBIC_AFTER_S + 0.05)
    assert connection.chosen == ["cubic"]
    for n in range(10):  # nothing in the moments in between
        connection.state = PathState(0.042, 0.04, 2.5e6, 20_000, 0, 8_000 + 2_000 * n, 200)
        it.allowance(3.0 + n)
    assert connection.chosen == ["cubic"]


def test_what_one_moment_loses_is_no_habit_of_the_path() -> None:
    connection = FakeConnection(NARROW, "bbr")
    it = feed(connection)
    backlog(it, 1.0, 10.0)
    for n in range(100):  # sent again one by one
        connection.state = PathState(0.042, 0.04, 2.5e6, 20_000, 0, 30 * n, min(n, 50))
        it.allowance(10.0 + n / 100)
    for n in range(100):
        connection.state = PathState(0.042, 0.04, 2.5e6, 20_000, 0, 3_000 + 1_000 * n, 50)
        backlog(it, 11.0 + n, 12.0 + n)
    assert connection.chosen == ["cubic"]


def test_bbr_comes_back_for_a_path_that_loses_packets() -> None:
    connection = FakeConnection(NARROW, "bbr")
    it = feed(connection)
    backlog(it, 1.0, 3.0)
    for n in range(1, 5):
        assert connection.congestion_control == "cubic"
        connection.state = PathState(0.042, 0.04, 2.5e6, 100_000, 0, n * 2_000, n * 20)
        backlog(it, 2.0 + n, 3.0 + n)
    assert is_paced(it)
    backlog(it, 6.0, 10.0)
    assert connection.congestion_control == "bbr"


def test_what_the_host_prefers_is_kept() -> None:
    connection = FakeConnection(NARROW, "reno")
    backlog(feed(connection), 1.0, 5.0)
    assert connection.congestion_control == "reno"


def test_a_fast_stream_may_have_more_in_the_kernel_until_it_is_fast_no_more() -> None:
    connection = FakeConnection(NARROW)
    it = feed(connection)
    now = 1.0
    for state in (NARROW, FAST, FAST, NARROW, FAST, FAST):  # never often enough in a row
        connection.state = state
        it.allowance(now := now + 2 * SAMPLE_S)
    assert connection.unsent_bytes == NOTSENT_LOWAT_BYTES
    it.allowance(now := now + 2 * SAMPLE_S)
    assert FAST_SAMPLES == 3
    assert connection.unsent_bytes == FAST_UNSENT_BYTES
    connection.state = NARROW
    it.allowance(now := now + 2 * SAMPLE_S)  # one sample may be wrong
    assert connection.unsent_bytes == FAST_UNSENT_BYTES
    backlog(it, now, now + 1)
    assert it.paced
    assert connection.unsent_bytes == NOTSENT_LOWAT_BYTES
