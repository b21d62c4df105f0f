"""The allowance of a narrow stream, against a link in arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tapotun_trio.datapath.pacing import COMPETE_S, NARROW_BYTES_S, SLACK_S, UNSENT_S, Pacing
from tapotun_trio.host.interfaces import PathState

STEP_S = 0.001


def is_held(pacing: Pacing) -> bool:
    return pacing.window_bytes is not None


class Link:
    """A bottleneck with an endless queue, and a TCP without a congestion window of its own: all of it flies."""

    def __init__(self, rate_bytes_s: float, rtt_s: float, foreign_s: float = 0.0) -> None:
        """``foreign_s``: the queue that others keep there."""
        self.rate_bytes_s = rate_bytes_s
        self.rtt_s = rtt_s
        self.foreign_s = foreign_s
        self.flying_bytes = 0.0
        self.delivered_bytes = 0.0
        self.rtts_s: list[float] = []

    def run(self, pacing: Pacing, seconds: float, start_s: float) -> None:
        """With a backlog that never ends."""
        held_until = now = start_s
        while now < start_s + seconds:
            now += STEP_S
            queued_bytes = max(0.0, self.flying_bytes - self.rate_bytes_s * self.rtt_s)
            busy_rate = min(self.rate_bytes_s, self.flying_bytes / self.rtt_s)
            self.flying_bytes -= busy_rate * STEP_S
            self.delivered_bytes += busy_rate * STEP_S
            rtt_s = self.rtt_s + self.foreign_s + queued_bytes / self.rate_bytes_s
            self.rtts_s.append(rtt_s)
            while now >= held_until:
                pacing.sample(PathState(rtt_s, self.rtt_s, busy_rate, int(self.flying_bytes), 0, 0, 0), now)
                wait_s = pacing.wait_s()
                held_until = now + wait_s
                if not wait_s:
                    # The congestion window lets a queue arise, but ends.
                    if self.flying_bytes > 4 * self.rate_bytes_s * self.rtt_s:
                        break
                    self.flying_bytes += pacing.piece_bytes


@example(2.5e5, 0.029296875)  # where the least window alone makes a queue of 36 ms
@given(st.floats(2.5e5, NARROW_BYTES_S / 3), st.floats(0.01, 0.2))
def test_the_queue_settles_at_the_slack_and_the_link_stays_busy(rate_bytes_s: float, rtt_s: float) -> None:
    link, pacing = Link(rate_bytes_s, rtt_s), Pacing()
    link.run(pacing, 3 + 40 * rtt_s, 0.0)
    link.rtts_s.clear()
    link.delivered_bytes = 0.0
    link.run(pacing, 2.0, 100.0)
    queues_s = sorted(it - rtt_s for it in link.rtts_s)
    piece_s = pacing.piece_bytes / rate_bytes_s
    # MIN_WINDOW_BYTES may be more than the path holds.
    assert queues_s[len(queues_s) // 2] < max(SLACK_S, 16384 / rate_bytes_s) + piece_s + 0.005
    assert link.delivered_bytes > 0.95 * rate_bytes_s * 2.0


def test_unsent_data_is_a_few_milliseconds() -> None:
    pacing = Pacing()
    rate = 2.5e6
    pacing.sample(PathState(0.04, 0.04, rate, 100_000, 0, 0, 0), 1.0)
    assert pacing.wait_s() == 0
    pacing.sample(PathState(0.04, 0.04, rate, 100_000, int(rate * UNSENT_S), 0, 0), 1.0)
    assert 0 < pacing.wait_s() <= 0.01
    assert pacing.window_bytes is None


def test_a_fast_stream_has_no_window() -> None:
    pacing = Pacing()
    pacing.sample(PathState(0.1, 0.0001, NARROW_BYTES_S, 10**6, 10**5, 0, 0), 1.0)
    assert not pacing.narrow
    assert not pacing.congested
    assert pacing.window_bytes is None


def test_an_unknown_path_is_fed_carefully() -> None:
    pacing = Pacing()
    pacing.sample(PathState(0.0, 0.0, 0.0, 0, 0, 0, 0), 1.0)
    assert pacing.narrow
    assert pacing.wait_s() == 0
    pacing.sample(PathState(0.0, 0.0, 0.0, 0, 10**6, 0, 0), 1.0)
    assert 0 < pacing.wait_s() <= 0.01


def test_a_queue_that_is_not_ours_is_competed_with() -> None:
    link, pacing = Link(2.5e6, 0.04, foreign_s=0.1), Pacing()
    link.run(pacing, 1.0, 0.0)
    assert is_held(pacing)
    link.run(pacing, 4.0, 1.0)
    assert not is_held(pacing)
    link.foreign_s = 0.0
    link.run(pacing, COMPETE_S, 5.0)
    assert is_held(pacing)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e5, 1e12])
def test_a_piece_is_bounded(rate: float) -> None:
    pacing = Pacing()
    pacing.sample(PathState(0.04, 0.04, rate, 0, 0, 0, 0), 1.0)
    assert 1500 <= pacing.piece_bytes <= 65536


@example(0.001, 0.017, 30e6, 0.0)
@given(st.floats(1e-4, 0.2), st.floats(0, 0.3), st.floats(0, NARROW_BYTES_S - 1), st.floats(0, 1))
def test_a_stream_with_nothing_under_way_never_waits(
    min_rtt_s: float, queue_s: float, rate: float, later: float
) -> None:
    """No acknowledgement would come that changed the state of the path, so the wait would not end. The rate may be that
    of a few segments that followed each other closely, and the round trip that of a moment when the machine was busy:
    then a piece by the rate is larger than the window."""
    pacing = Pacing()
    for now in (1.0, 1.0 + later):
        pacing.sample(PathState(min_rtt_s + queue_s, min_rtt_s, rate, 0, 0, 0, 0), now)
        assert pacing.wait_s() == 0
