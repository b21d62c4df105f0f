"""Rotation and backoff, without a network: streams that the test ends as it likes, on a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from tapotun_trio.client import rotation
from tapotun_trio.client.ages import AgeLimits, Lifetime, StreamKind
from tapotun_trio.client.backoff import FIRST_S, LIMIT_S, NEAR_LIMIT_S, WORKED_S, Backoff
from tapotun_trio.client.rotation import RetryGate, keep_streaming
from tapotun_trio.errors import EndReason, PeerError

Clock = trio.testing.MockClock


class Script:
    """Opens streams; refuses while `refusing`. Takes notes of when."""

    def __init__(self) -> None:
        self.refusing = False
        self.attempts: list[float] = []
        self.streams: list[ScriptedStream] = []
        self.told: list[str] = []
        self.opened = trio.Event()  # the next stream was opened

    async def open(self) -> ScriptedStream:
        await trio.lowlevel.checkpoint()
        self.attempts.append(trio.current_time())
        if self.refusing:
            raise PeerError("refused", reason=EndReason.CONNECT)
        stream = ScriptedStream()
        self.streams.append(stream)
        self.opened.set()
        self.opened = trio.Event()
        return stream

    def failed(self, failure: PeerError | None, wait_s: float) -> float | None:
        return None

    def tell(self, level: int, text: str) -> None:
        self.told.append(text)


class ScriptedStream:
    def __init__(self) -> None:
        self.ended = trio.Event()
        self.failure: PeerError | None = None
        self.kind = StreamKind.DOWNLOAD
        self.base = False
        self.explained = False
        self.worked = True
        self._fall = trio.Event()
        self._began = trio.current_time()

    def lifetime(self) -> Lifetime:
        return Lifetime(trio.current_time() - self._began, 0.0)

    async def run(self, older: rotation.Stream | None) -> None:
        if isinstance(older, ScriptedStream):
            older.fall(None)  # the server ends the older one
        await self._fall.wait()
        self.ended.set()

    def fall(self, failure: PeerError | None) -> None:
        self.failure = failure
        self._fall.set()


@pytest.fixture
def hardest_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.Random, "uniform", lambda self, low, high: high)


async def start(nursery: trio.Nursery, script: Script, rotate_s: tuple[float, float], gate: RetryGate) -> None:
    async def run() -> None:
        ages = AgeLimits(rotate_s, script.tell)
        await keep_streaming(script.open, ages=ages, gate=gate, on_failure=script.failed)

    nursery.start_soon(run)


async def test_each_stream_is_replaced_in_its_time_and_the_older_one_ends(autojump_clock: Clock) -> None:
    script = Script()
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (10, 10), RetryGate())
        await trio.sleep(35)
        assert script.attempts == [0, 10, 20, 30]
        assert [stream.ended.is_set() for stream in script.streams] == [True, True, True, False]
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hardest_backoff")
async def test_a_failed_rotation_leaves_the_older_stream_and_backs_off(autojump_clock: Clock) -> None:
    """However long all was well before: a server that refuses is not asked again and again without a pause."""
    script = Script()
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (100, 100), RetryGate())
        await trio.sleep(1)
        script.refusing = True
        await trio.sleep(130)
        assert not script.streams[0].ended.is_set()
        pauses = [after - before for before, after in zip(script.attempts[1:], script.attempts[2:], strict=False)]
        assert pauses[:7] == pytest.approx([0, 0.5, 1, 2, 4, 8, LIMIT_S])
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hardest_backoff")
async def test_health_is_carried_over_rotations(autojump_clock: Clock) -> None:
    script = Script()
    async with trio.open_nursery() as nursery:
        script.refusing = True
        await start(nursery, script, (20, 20), RetryGate())
        await trio.sleep(30)  # a long history of failures
        script.refusing = False
        await trio.sleep(15 + 90)  # then a minute and a half of health, of streams that live 20 s each
        count = len(script.attempts)
        script.streams[-1].fall(PeerError("cut", reason=EndReason.BROKEN))
        await trio.sleep(0.1)
        assert len(script.attempts) == count + 1  # at once
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hardest_backoff")
async def test_a_cut_wait_is_an_attempt_at_once(autojump_clock: Clock) -> None:
    script, gate = Script(), RetryGate()
    script.refusing = True
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (20, 20), gate)
        await trio.sleep(10)  # in the pause of 8 s
        count = len(script.attempts)
        gate.wake()
        await trio.sleep(0.1)
        assert len(script.attempts) >= count + 1
        nursery.cancel_scope.cancel()


async def test_a_stream_may_be_replaced_early_although_it_is_not_lost(autojump_clock: Clock) -> None:
    gate = RetryGate()
    for replace, lost in ((gate.rotate, False), (gate.wake, True)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_after, 1.0, replace)
            assert await gate.wait(10.0, trio.Event())
        assert gate.take_woken() is lost


async def run_after(seconds: float, function: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    function()


@pytest.mark.parametrize("attempts_too", [False, True])
async def test_an_attempt_that_cannot_succeed_is_begun_again_at_once(autojump_clock: Clock, attempts_too: bool) -> None:
    """Any other goes on for a while."""
    gate, begun = RetryGate(), list[float]()

    async def open_stream() -> ScriptedStream:
        begun.append(trio.current_time())
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        ages = AgeLimits((20, 20), Script().tell)
        keep = partial(keep_streaming, ages=ages, gate=gate, on_failure=lambda _, wait_s: wait_s)
        nursery.start_soon(keep, open_stream)
        await trio.sleep(1)
        gate.wake(attempts_too=attempts_too)
        await trio.sleep(2 * rotation.ATTEMPT_S)
        first, second = begun
        assert second - first == pytest.approx(1 if attempts_too else rotation.ATTEMPT_S)
        nursery.cancel_scope.cancel()


def test_backoff_is_full_jitter_between_nothing_and_a_growing_limit() -> None:
    for seed in range(200):
        backoff = Backoff(random.Random(seed))
        assert backoff.next_s() == 0
        for limit in (FIRST_S, 1, 2, 4, 8, LIMIT_S, LIMIT_S):
            assert 0 <= backoff.next_s() <= limit
    assert max(tenth_wait(seed, near=True) for seed in range(500)) <= NEAR_LIMIT_S
    assert max(tenth_wait(seed, near=False) for seed in range(500)) > NEAR_LIMIT_S


def tenth_wait(seed: int, *, near: bool) -> float:
    backoff = Backoff(random.Random(seed))
    for _ in range(10):
        last = backoff.next_s(near=near)
    return last


def test_a_stream_that_worked_pays_back() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(10):
        backoff.next_s()
    assert backoff.next_s(lived_s=WORKED_S) == 0
    assert backoff.next_s(lived_s=0.9 * WORKED_S) <= FIRST_S


@pytest.mark.usefixtures("hardest_backoff")
async def test_streams_that_are_cut_again_and_again_cost_no_pause(autojump_clock: Clock) -> None:
    """At ages that do not agree, so that nothing is learned from them."""
    script = Script()
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (1000, 1000), RetryGate())
        for age_s in (2, 9, 4, 16, 7, 25, 12, 3, 40):
            await trio.sleep(age_s)
            count = len(script.attempts)
            script.streams[-1].fall(PeerError("cut", reason=EndReason.BROKEN))
            await trio.testing.wait_all_tasks_blocked()
            assert len(script.attempts) == count + 1
        assert script.told == []
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hardest_backoff")
async def test_streams_that_never_worked_are_not_opened_without_a_pause(autojump_clock: Clock) -> None:
    script = Script()
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (1000, 1000), RetryGate())
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
            script.streams[-1].worked = False
            script.streams[-1].fall(PeerError("refused", reason=EndReason.http(502)))
            await script.opened.wait()
        assert trio.current_time() > 15
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hardest_backoff")
async def test_two_clients_of_a_base_server_do_not_fight(autojump_clock: Clock) -> None:
    """Each new download of one ends the other's cleanly, which is to be followed by ever longer pauses."""
    script = Script()
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (1000, 1000), RetryGate())
        began = trio.current_time()
        lives_s = [1.5, 2.2, 1.1, 3.1, 2.0, 4.4, 1.4, 2.8, 3.6, 1.8]
        for life_s in lives_s:
            await trio.testing.wait_all_tasks_blocked()
            script.streams[-1].base = True
            await trio.sleep(life_s)
            script.streams[-1].fall(None)
            await script.opened.wait()
        assert trio.current_time() - began - sum(lives_s) > 20
        assert script.told == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("explained", [True, False])
async def test_the_reason_for_an_end_may_come_a_moment_later(autojump_clock: Clock, explained: bool) -> None:
    """An upload breaks before the BYE has come on the download. Then its age says nothing about the way."""

    class LateReason(Script):
        async def open(self) -> ScriptedStream:
            await trio.sleep(0.1)
            for stream in self.streams:
                stream.explained = explained
            return await super().open()

    script = LateReason()
    async with trio.open_nursery() as nursery:
        await start(nursery, script, (100, 100), RetryGate())
        for _ in range(3):
            await script.opened.wait()
            await trio.sleep(10)
            script.streams[-1].fall(PeerError("cut", reason=EndReason.BROKEN))
        await script.opened.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert len(script.told) == (0 if explained else 1)
        nursery.cancel_scope.cancel()
