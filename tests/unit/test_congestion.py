"""Which congestion control a stream uses on a path that loses packets. `test_feed` has the rules for a pause of BBR."""

from __future__ import annotations

import errno
import os
from typing import Final

import pytest

from tapotun_trio.datapath.congestion import (
    CLEAN_S,
    CLEAN_SEGMENTS,
    HARM,
    HARM_SEGMENTS,
    LOSS_BASED,
    LOSSES,
    QUEUE_S,
    RENEW_S,
    RETREAT_S,
    SETTLE_S,
    Congestion,
)
from tapotun_trio.host.interfaces import PathState

FAR_S: Final = 0.04
SAMPLE_S: Final = 0.01


class FakeSocket:
    """A socket on a host that prefers `preferred`. `refused`: what the kernel answers with which error."""

    def __init__(self, preferred: str, refused: dict[str, int] | None = None) -> None:
        self.name = "192.0.2.7:80"
        self.congestion_control = self.preferred_congestion_control = preferred
        self.refused = refused or {}
        self.asked: list[str] = []

    def path(self) -> PathState | None:
        return None

    def try_congestion_control(self, name: str) -> OSError | None:
        self.asked.append(name)
        if name in self.refused:
            return OSError(self.refused[name], os.strerror(self.refused[name]))
        self.congestion_control = name
        return None


class Stream:
    """A stream on a path. It is sampled every SAMPLE_S."""

    def __init__(self, sock: FakeSocket, *, rtt_s: float = FAR_S, sent: int = 0) -> None:
        self.sock = sock
        self.now = 100.0
        self.congestion = Congestion(sock, self.now)
        self.rtt_s = rtt_s
        self.sent, self.resent = float(sent), 0.0

    def send(
        self,
        seconds: float,
        *,
        loss: float = 0.0,
        queue_s: float = 0.001,
        per_s: float = 1000.0,
        paced: bool = False,
        until: str | None = None,
    ) -> float:
        """Send `per_s` segments a second and lose that share of them, evenly. Stop once the socket uses `until`.
        Returns how long it took."""
        begun = self.now
        while self.now - begun < seconds and (until is None or self.sock.congestion_control != until):
            self.now += SAMPLE_S
            self.sent += per_s * SAMPLE_S
            self.resent += per_s * SAMPLE_S * loss
            state = PathState(
                self.rtt_s + queue_s, self.rtt_s, 1e6, 50_000, 0, int(self.sent) & 0xFFFFFFFF, int(self.resent)
            )
            self.congestion.sample(state, self.now, paced=paced, fast=False)
        return self.now - begun

    @property
    def uses(self) -> str | None:
        return self.sock.congestion_control


def lossy(preferred: str = "cubic") -> Stream:
    """A stream whose path has lost packets, so that it uses BBR."""
    it = Stream(FakeSocket(preferred))
    it.send(20, loss=0.01, until="bbr")
    assert it.uses == "bbr"
    return it


# ------------------------------------------------------------------ to BBR


@pytest.mark.parametrize("preferred", sorted(LOSS_BASED))
@pytest.mark.parametrize("paced", [False, True])
def test_a_path_that_loses_packets_gets_bbr(preferred: str, paced: bool) -> None:
    for loss, at_most_s in ((0.001, 10), (0.01, 4), (0.1, 4)):
        it = Stream(FakeSocket(preferred))
        it.send(at_most_s, loss=loss, paced=paced)
        assert it.uses == "bbr", loss


def test_a_few_losses_are_enough_where_cubic_is_slow() -> None:
    """At 1 % and 40 ms it sends 200 segments a second."""
    it = Stream(FakeSocket("cubic"))
    it.send(4, loss=0.01, per_s=200)
    assert it.uses == "bbr"


def test_rare_losses_do_not_matter() -> None:
    """One in 10,000 leaves cubic 38 Mbit/s over 40 ms."""
    it = Stream(FakeSocket("cubic"))
    it.send(300, loss=0.0001)
    assert it.sock.asked == []


def test_a_full_link_is_no_path_that_loses_packets() -> None:
    for queue_s in (QUEUE_S + 0.001, 0.05):
        it = Stream(FakeSocket("cubic"))
        it.send(60, loss=0.01, queue_s=queue_s)
        assert it.sock.asked == []


def test_a_queue_now_and_then_does_not_hide_a_path_that_loses_packets() -> None:
    it = Stream(FakeSocket("cubic"))
    for _ in range(20):
        it.send(0.7, loss=0.01, queue_s=0.001)
        it.send(0.3, loss=0.01, queue_s=2 * QUEUE_S)
    assert it.uses == "bbr"


def test_a_queue_most_of_the_time_does() -> None:
    it = Stream(FakeSocket("cubic"))
    for _ in range(60):
        it.send(0.3, loss=0.01, queue_s=0.001)
        it.send(0.7, loss=0.01, queue_s=2 * QUEUE_S)
    assert it.uses == "cubic"


def test_what_one_moment_loses_is_one_loss() -> None:
    """As after a slow start that overshoots, or a radio link that was away."""
    it = Stream(FakeSocket("cubic"))
    for _ in range(LOSSES - 1):
        it.send(0.2, loss=0.5)
        it.send(2)
    assert it.uses == "cubic"


def test_on_a_short_path_cubic_stays_where_it_is_preferred() -> None:
    it = Stream(FakeSocket("cubic"), rtt_s=0.001)
    it.send(60, loss=0.01)
    assert it.sock.asked == []


@pytest.mark.parametrize("chosen", ["westwood", "hybla", "vegas", "lp", "dctcp"])
def test_what_somebody_has_chosen_stays(chosen: str) -> None:
    it = Stream(FakeSocket(chosen))
    it.send(60, loss=0.01)
    assert it.sock.asked == []


def test_the_kernels_counters_may_wrap() -> None:
    it = Stream(FakeSocket("cubic"), sent=0xFFFFFFFF - 1000)
    it.send(10, loss=0.01)
    assert it.uses == "bbr"
    it = Stream(FakeSocket("cubic"), sent=0xFFFFFFFF - 1000)
    it.send(300, loss=0.0001)
    assert it.sock.asked == []


# ------------------------------------------------------------------ and back


@pytest.mark.parametrize("preferred", ["cubic", "reno"])
def test_a_path_that_has_stopped_losing_packets_gets_its_own_back(preferred: str) -> None:
    it = lossy(preferred)
    seconds = CLEAN_SEGMENTS / 1000
    it.send(seconds - 1)
    assert it.uses == "bbr"
    it.send(CLEAN_S + seconds)  # the window that began with losses may have to end first
    assert it.uses == preferred
    it.send(20, loss=0.01)
    assert it.uses == "bbr", "and loses packets again"


def test_a_fast_stream_waits_for_a_while_too() -> None:
    it = lossy()
    it.send(CLEAN_S - 1, per_s=10_000)
    assert it.uses == "bbr"
    it.send(CLEAN_S, per_s=10_000)
    assert it.uses == "cubic"


def test_a_loss_now_and_then_does_not_hold_bbr() -> None:
    it = lossy()
    for _ in range(10):
        it.send(0.1, loss=0.1)
        it.send(15)
    assert it.uses == "cubic"


def test_a_stream_that_sends_little_needs_longer_to_know() -> None:
    it = lossy()
    it.send(0.8 * CLEAN_SEGMENTS / 10, per_s=10)
    assert it.uses == "bbr"


def test_a_path_that_goes_on_losing_packets_keeps_bbr() -> None:
    for loss, per_s in ((0.001, 1000.0), (0.001, 5000.0), (0.01, 1000.0), (0.1, 5000.0)):
        it = Stream(FakeSocket("cubic"))
        it.send(20, loss=loss, until="bbr")
        it.send(300, loss=loss, per_s=per_s)
        assert it.uses == "bbr", (loss, per_s)


def test_bbr_goes_where_it_makes_the_path_lose_more() -> None:
    """A full link whose queue is too short to be seen."""
    it = lossy()
    it.send(SETTLE_S, loss=0.01 + 3 * HARM, per_s=5000)
    assert it.uses == "bbr", "its start overshoots"
    it.send(5, loss=0.01 + 3 * HARM)
    assert it.uses == "cubic"
    it.send(RETREAT_S - 10, loss=0.01)
    assert it.uses == "cubic"
    it.send(20, loss=0.01)
    assert it.uses == "bbr", "it may be another path by now"


def test_one_bad_moment_of_bbr_is_no_harm() -> None:
    it = lossy()
    for _ in range(10):
        it.send(5, loss=0.01)
        it.send(0.3, loss=0.1, per_s=10_000)
    assert it.uses == "bbr"


def test_what_its_start_loses_is_no_harm() -> None:
    it = lossy()
    it.send(3 * SETTLE_S + 0.05, loss=0.01 + 3 * HARM)  # that is its start and two samples
    it.send(10, loss=0.01)
    assert it.uses == "bbr"


def test_a_few_losses_of_a_slow_stream_are_no_harm() -> None:
    it = lossy()
    it.send(0.9 * HARM_SEGMENTS / 20, loss=0.01 + 3 * HARM, per_s=20)
    assert it.uses == "bbr"


def test_with_bbr_losses_with_a_queue_count_too() -> None:
    """BBR fills the link, and the path still loses packets."""
    it = lossy()
    it.send(300, loss=0.001, queue_s=3 * QUEUE_S)
    assert it.uses == "bbr"


def test_where_bbr_is_preferred_harm_matters_while_cubic_is_the_alternative() -> None:
    it = Stream(FakeSocket("bbr"))
    it.send(1, paced=True)
    assert it.uses == "cubic"
    it.send(20, loss=0.01, paced=True)
    assert it.uses == "bbr"
    it.send(6, loss=0.01 + 3 * HARM, paced=True)
    assert it.uses == "cubic"
    it.send(0.1, loss=0.01, paced=False)
    assert it.uses == "bbr", "preferred, and not paced"


def test_bbr_is_restarted_before_its_pause() -> None:
    it = lossy()
    it.sock.asked.clear()
    it.send(60, loss=0.01)
    assert 60 / 10 < len(it.sock.asked) / 2 <= 60 / RENEW_S
    assert set(zip(it.sock.asked[::2], it.sock.asked[1::2], strict=True)) == {("cubic", "bbr")}
    it.sock.asked.clear()
    it.send(60, loss=0.01, paced=True)
    assert it.sock.asked == [], "a paced stream is not"


# ------------------------------------------------------------------ what the kernel refuses


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelname != "DEBUG"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENOENT, "this kernel has no BBR, or its module tcp_bbr is not loaded"),
        (errno.EPERM, "it is not allowed: see net.ipv4.tcp_allowed_congestion_control"),
        (errno.EBUSY, "it cannot be used: Device or resource busy"),
    ],
)
async def test_a_refusal_is_told_once_and_the_kernel_is_not_asked_again(
    error: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "tapotun")
    for _ in range(3):  # streams of one process
        it = Stream(FakeSocket("cubic", {"bbr": error}))
        it.send(60, loss=0.01)
        assert it.uses == "cubic"
        assert it.sock.asked == ["bbr"]
    (line,) = lines(caplog)
    assert told in line
    assert it.sock.name in line


async def test_nothing_is_told_while_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "tapotun")
    it = Stream(FakeSocket("cubic", {"bbr": errno.ENOENT}))
    it.send(60)
    assert caplog.records == []


async def test_nothing_is_told_of_a_path_that_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "tapotun")
    sock = FakeSocket("bbr", {"bbr": errno.EBUSY})
    sock.congestion_control = "reno"
    it = Stream(sock)
    it.send(60)
    assert it.uses == "reno"
    assert sock.asked == ["bbr"]
    assert lines(caplog) == []


def test_a_process_that_may_not_use_cubic_uses_reno_instead() -> None:
    it = Stream(FakeSocket("bbr", {"cubic": errno.EPERM}))
    it.send(2, paced=True)
    assert it.uses == "reno"
    it.send(20, loss=0.01, paced=True)
    assert it.uses == "bbr"
    it.sock.asked.clear()
    it.send(1, loss=0.01)
    assert it.sock.asked == ["cubic", "reno", "bbr"], "it is restarted"


def test_where_the_route_allows_nothing_else_nothing_else_is_tried() -> None:
    it = Stream(FakeSocket("bbr", dict.fromkeys(("bbr", "cubic", "reno"), errno.EPERM)))
    it.send(60, loss=0.01, paced=True)
    assert it.uses == "bbr"
    assert it.sock.asked == ["cubic", "reno"]
