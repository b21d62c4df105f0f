"""The control law of RFC 8289, against a plain transcription of its pseudocode."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from math import sqrt

from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.datapath.codel import INTERVAL_S, MTU_BYTES, TARGET_S, CoDel

FULL = 100 * MTU_BYTES


def drop_times(codel: CoDel, waited_s: float, seconds: Iterable[float]) -> list[float]:
    """When something is dropped, if the queue is asked at these times and always has waited so long."""
    return [now for now in seconds if codel.should_drop(waited_s, FULL, now)]


def every_ms(start_s: float, stop_s: float) -> list[float]:
    return [n / 1000 for n in range(round(start_s * 1000), round(stop_s * 1000))]


def test_a_queue_below_the_target_is_let_be() -> None:
    assert drop_times(CoDel(), TARGET_S * 0.99, every_ms(0, 10)) == []


def test_a_burst_that_drains_within_an_interval_is_let_be() -> None:
    codel = CoDel()
    for start_s in range(10):
        assert drop_times(codel, 0.05, every_ms(start_s, start_s + INTERVAL_S)) == []
        assert not codel.should_drop(0.0, FULL, start_s + INTERVAL_S)


def test_no_more_than_a_packet_is_never_dropped() -> None:
    codel = CoDel()
    assert not any(codel.should_drop(1.0, MTU_BYTES, now) for now in every_ms(0, 10))


def test_a_standing_queue_is_dropped_from_ever_more_often() -> None:
    times = drop_times(CoDel(), 0.05, every_ms(0, 2))
    assert times[0] == INTERVAL_S
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert abs(gaps[0] - INTERVAL_S) < 0.002
    for n, gap in enumerate(gaps[:20], 1):
        assert abs(gap - INTERVAL_S / sqrt(n)) < 0.002


def test_one_short_wait_ends_it() -> None:
    codel = CoDel()
    assert drop_times(codel, 0.05, every_ms(0, 1))
    assert not codel.should_drop(0.0, FULL, 1.0)
    assert not codel.dropping
    assert drop_times(codel, 0.05, every_ms(1, 1 + INTERVAL_S)) == []


def test_a_queue_that_stands_again_soon_is_dropped_from_as_often_as_before() -> None:
    codel = CoDel()
    drop_times(codel, 0.05, every_ms(0, 2))
    codel.on_empty()
    again = drop_times(codel, 0.05, every_ms(2.1, 3))
    assert again[1] - again[0] < INTERVAL_S / 2
    codel.on_empty()
    much_later = drop_times(codel, 0.05, every_ms(9, 10))
    assert abs(much_later[1] - much_later[0] - INTERVAL_S) < 0.002


class Pseudocode:
    """RFC 8289 section 5, line by line; what is said of each packet is kept in `verdicts`, True for a drop."""

    def __init__(self, queue: deque[tuple[float, int]]) -> None:
        self.queue = queue  # when put, length
        self.verdicts: list[bool] = []
        self.first_above_time = self.drop_next = 0.0
        self.count = self.lastcount = 0
        self.dropping = False

    def dodequeue(self, now: float) -> tuple[bool, bool]:
        if not self.queue:
            self.first_above_time = 0.0
            return False, False
        # The RFC compares what is left behind the packet; we, as Linux may, what there is with it.
        size = sum(length for _, length in self.queue)
        put, _ = self.queue.popleft()
        if now - put < TARGET_S or size <= MTU_BYTES:
            self.first_above_time = 0.0
            return True, False
        if self.first_above_time == 0.0:
            self.first_above_time = now + INTERVAL_S
            return True, False
        return True, now >= self.first_above_time

    def deque(self, now: float) -> None:
        packet, ok_to_drop = self.dodequeue(now)
        if self.dropping:
            if not ok_to_drop:
                self.dropping = False
            while now >= self.drop_next and self.dropping:
                self.verdicts.append(True)
                self.count += 1
                packet, ok_to_drop = self.dodequeue(now)
                if not ok_to_drop:
                    self.dropping = False
                else:
                    self.drop_next += INTERVAL_S / sqrt(self.count)
        elif ok_to_drop:
            self.verdicts.append(True)
            packet, ok_to_drop = self.dodequeue(now)
            self.dropping = True
            delta = self.count - self.lastcount
            self.count = 1
            if delta > 1 and now - self.drop_next < 16 * INTERVAL_S:
                self.count = delta
            self.drop_next = now + INTERVAL_S / sqrt(self.count)
            self.lastcount = self.count
        if packet:
            self.verdicts.append(False)


# So many packets in and out every 10 ms, for so many times: queues that grow, stand and vanish.
PHASES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 60)),
    max_size=12,
)


@given(PHASES)
def test_as_the_rfc_says(phases: list[tuple[int, int, int]]) -> None:
    ours: deque[tuple[float, int]] = deque()
    theirs = Pseudocode(deque())
    codel = CoDel()
    verdicts: list[bool] = []
    now = 1.0
    for puts, takes, repetitions in phases:
        for _ in range(repetitions):
            now += 0.01
            ours.extend([(now, MTU_BYTES)] * puts)
            theirs.queue.extend([(now, MTU_BYTES)] * puts)
            now += 0.001
            for _ in range(takes):
                theirs.deque(now)
                verdicts += take(codel, ours, now)
    assert verdicts == theirs.verdicts


def take(codel: CoDel, queue: deque[tuple[float, int]], now: float) -> list[bool]:
    """Take one packet; what the control law said of it and of those dropped before it."""
    verdicts: list[bool] = []
    while queue:
        size = sum(length for _, length in queue)
        put, _ = queue.popleft()
        verdicts.append(codel.should_drop(now - put, size, now))
        if not verdicts[-1]:
            return verdicts
    codel.on_empty()
    return verdicts
