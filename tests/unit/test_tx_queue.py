"""`TxQueue`: nothing lost without being counted, nothing out of order, nothing too old."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.datapath.counters import DropReason
from tapotun_trio.datapath.tx_queue import MAX_AGE_S, TxQueue
from tapotun_trio.wire.frames import HEADER_BYTES


def frame(number: int, packet_bytes: int = 1500) -> bytes:
    """A frame whose packet carries a number."""
    return packet_bytes.to_bytes(2, "little") + bytes(12) + number.to_bytes(packet_bytes, "big")


def numbers(frames: bytes) -> list[int]:
    """Of whole frames."""
    found, at = [], 0
    while at < len(frames):
        end = at + HEADER_BYTES + int.from_bytes(frames[at : at + 2], "little")
        assert end <= len(frames)
        found.append(int.from_bytes(frames[at + HEADER_BYTES : end], "big"))
        at = end
    return found


def make_queue(**limits: float) -> tuple[TxQueue, Counter[str]]:
    drops: Counter[str] = Counter()
    return TxQueue(drops, **limits), drops  # type: ignore[arg-type]


def test_a_run_is_cut_between_frames() -> None:
    queue, drops = make_queue()
    queue.put(b"".join(map(frame, range(10))), 10, now=0.0)
    taken = []
    while queue:
        packets, frames = queue.take(0.0, 4000)
        assert len(frames) <= 4000
        assert packets == len(numbers(frames)) == 2
        taken += numbers(frames)
    assert taken == list(range(10))
    assert queue.depth_bytes == 0
    assert not drops


def test_a_frame_larger_than_the_limit_goes_alone() -> None:
    queue, _ = make_queue()
    queue.put(frame(1, 65535), 1, now=0.0)
    queue.put(frame(2) + frame(3, 60000), 2, now=0.0)
    assert [numbers(queue.take(0.0, 3000)[1]) for _ in range(3)] == [[1], [2], [3]]
    assert not queue


def test_whole_runs_are_not_copied() -> None:
    queue, _ = make_queue()
    batch = b"".join(map(frame, range(100)))
    queue.put(batch, 100, now=0.0)
    queue.put(batch, 100, now=0.0)
    assert queue.take(0.0, 1000, cut=False) == (100, batch)
    assert queue.take(0.0, 10**6, cut=False) == (100, batch)
    assert queue.take(0.0, 1000, cut=False) == (0, b"")


def test_a_standing_queue_is_shortened_one_packet_at_a_time() -> None:
    queue, drops = make_queue()
    for n in range(400):
        now = n / 1000
        queue.put(frame(2 * n) + frame(2 * n + 1), 2, now)
        if n >= 50:  # what comes out has waited for 50 ms
            queue.take(now, 3200)
    assert drops.keys() == {DropReason.CODEL}
    assert 3 <= drops[DropReason.CODEL] <= 10


def test_what_is_too_old_goes_with_its_run_and_is_counted_once() -> None:
    queue, drops = make_queue()
    queue.put(b"".join(map(frame, range(5))), 5, now=0.0)
    assert queue.take(0.0, 3100)[0] == 2
    assert queue.take(MAX_AGE_S * 1.01, 3100) == (0, b"")
    assert drops == {DropReason.QUEUE_AGE: 3}
    assert queue.depth_bytes == 0


def test_what_does_not_fit_costs_the_oldest() -> None:
    queue, drops = make_queue(max_bytes=4000)
    for n in range(3):
        queue.put(frame(n), 1, now=0.0)
    assert drops == {DropReason.QUEUE_FULL: 1}
    assert numbers(queue.take(0.0, 9000)[1]) == [1, 2]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.sampled_from([20, 100, 1500, 9000, 65535]), min_size=1, max_size=5)),
        st.tuples(st.just("take"), st.sampled_from([1, 1500, 3000, 10_000, 65536])),
        st.tuples(st.just("take whole"), st.sampled_from([1, 1500, 3000, 10_000, 65536])),
        st.tuples(st.just("wait"), st.sampled_from([1, 4, 20, 60])),
    ),
    max_size=150,
)


@given(STEPS)
def test_everything_comes_out_in_order_or_is_counted(steps: list[tuple[str, int | list[int]]]) -> None:
    queue, drops = make_queue(max_bytes=200_000)
    born: dict[int, float] = {}
    taken: list[int] = []
    put = 0
    now = 0.0
    for step, value in steps:
        if isinstance(value, list):
            batch = b"".join(frame(put + n, size) for n, size in enumerate(value))
            born.update(dict.fromkeys(range(put, put + len(value)), now))
            queue.put(batch, len(value), now)
            put += len(value)
        elif step == "wait":
            now += value / 1000
        else:
            packets, frames = queue.take(now, value, cut=step == "take")
            found = numbers(frames)
            assert packets == len(found)
            assert step != "take" or len(frames) <= value or packets == 1
            assert all(now - born[n] <= MAX_AGE_S for n in found)
            taken += found
        assert taken == sorted(set(taken))
        assert queue.depth_bytes <= 400_000
        assert bool(queue) == (queue.depth_bytes > 0)
    rest = 0
    while queue:
        rest += queue.take(now, 10**6)[0]
    assert len(taken) + rest + drops.total() == put
