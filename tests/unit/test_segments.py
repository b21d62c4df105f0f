"""host.net.segments: which losses are losses of large packets, and what size comes next; and real sockets behind it."""

from __future__ import annotations

import math
import socket
from dataclasses import replace

import pytest
import trio

from tapotun_trio.errors import EndReason
from tapotun_trio.host.net.dial import connect
from tapotun_trio.host.net.segments import GAP_S, SIZES, SegmentLimits, SegmentState, SegmentWatch, next_size
from tapotun_trio.host.net.sockets import Connection

ADDRESS = "192.0.2.1"
# All is well: everything is acknowledged, nothing is missing, and the peer was heard long ago.
IDLE = SegmentState(1448, 0, 0, 1000, 1000, gap=False, ack_age_s=1e6, rtt_s=0.02)


def looks(*steps: tuple[float, SegmentState, float]) -> list[bool]:
    """What a watch says of a connection at these moments: the state, and when something was heard elsewhere."""
    watch = SegmentWatch()
    return [watch.look(now, state, heard_at) for now, state, heard_at in steps]


def sent(retransmits: int, flying: int = 3000, acked: int = 1000) -> SegmentState:
    return replace(IDLE, retransmits=retransmits, flying_bytes=flying, acked_bytes=acked)


NEVER = -math.inf


def test_a_large_segment_is_sent_again_and_again() -> None:
    assert looks((0, IDLE, NEVER), (1, sent(1), NEVER), (2, sent(2), 1.5), (3, sent(3), 2.5), (4, sent(4), 3.5)) == [
        *(False, False, False, True),
        True,
    ]


def test_a_path_that_is_down() -> None:
    """Nothing is heard at all, however often it is tried."""
    assert not any(looks(*((float(now), sent(now), NEVER) for now in range(10))))


def test_a_path_that_comes_back() -> None:
    """Something is heard after an outage before our own segment was sent again: its next try may well pass."""
    outage = [(float(now), sent(min(now, 6)), NEVER) for now in range(14)]
    back = [(14.0 + step, sent(6), 14.0) for step in range(5)]
    assert not any(looks(*outage, *back, (20.0, sent(0, acked=4000), 19.0)))
    assert looks(*outage, *back, (26.0, sent(7), 25.0))[-1], "that try was lost, although the path is there"


def test_small_segments_are_not_lost_for_their_size() -> None:
    assert not any(looks(*((float(now), sent(now, flying=300), now - 0.5) for now in range(10))))


def test_progress_is_no_loss() -> None:
    """A slow and lossy path loses segments again and again, but not the same ones."""
    assert not any(looks(*((float(now), sent(3, acked=now * 1000), now - 0.5) for now in range(10))))


def gap(received: int = 1000) -> SegmentState:
    return replace(IDLE, gap=True, received_bytes=received)


def test_a_gap_that_is_not_filled() -> None:
    found = looks((0.0, IDLE, NEVER), *((1.0 + now / 2, gap(), 0.9 + now / 2) for now in range(10)))
    assert found.index(True) == 1 + GAP_S * 2
    far = replace(gap(), rtt_s=0.6)
    found = looks((0.0, IDLE, NEVER), *((1.0 + now / 2, far, 0.9 + now / 2) for now in range(20)))
    assert found.index(True) == 1 + 6 * 2, "ten round trips"


def test_a_gap_on_a_path_that_is_down_or_comes_back() -> None:
    down = [(float(now), gap(), NEVER) for now in range(20)]
    assert not any(looks(*down))
    # The peer's next try comes within as long as the outage was.
    assert not any(looks(*down, *((20.0 + now, gap(), 20.0) for now in range(20)), (40.0, gap(5000), 39.0)))
    assert looks(*down, *((20.0 + now, gap(), 20.0) for now in range(23)))[-1]


def test_gaps_that_come_and_go() -> None:
    assert not any(looks(*((float(now), gap(received=now), now - 0.1) for now in range(20))))
    assert not any(looks(*((float(now), gap() if now % 3 else IDLE, now - 0.1) for now in range(20))))


def test_proof_is_wanted_only_while_it_is_missing() -> None:
    watch = SegmentWatch()
    wanted: list[bool] = []
    missing: list[bool] = []
    for now, state, heard_at in (
        (0.0, IDLE, NEVER),
        (1.0, gap(), NEVER),
        (2.0, gap(), 1.5),
        (3.0, sent(1), NEVER),
        (4.0, IDLE, NEVER),
    ):
        watch.look(now, state, heard_at)
        wanted.append(watch.wants_proof)
        missing.append(watch.missing)
    assert wanted == [False, True, False, True, False]
    assert missing == [False, True, True, True, False]


def test_sizes_go_down_and_end() -> None:
    limits = SegmentLimits()
    assert limits.limit(ADDRESS) is None
    assert limits.smaller(ADDRESS) == SIZES
    mss = 1448
    for size in SIZES:
        failure = limits.reduce(ADDRESS, mss)
        assert failure.reason is EndReason.PATH_MTU
        assert f"segments of {mss} bytes are lost; using segments of at most {size} bytes" in str(failure)
        assert limits.limit(ADDRESS) == size
        assert all(smaller < size for smaller in limits.smaller(ADDRESS))
        mss = size - 12  # the option for timestamps
    assert "smaller ones do not help" in str(limits.reduce(ADDRESS, mss))
    assert limits.limit(ADDRESS) is None
    assert "do not help" in str(limits.problem(ADDRESS))
    assert limits.smaller(ADDRESS) == ()
    limits.reduce(ADDRESS, 1448)
    assert limits.limit(ADDRESS) is None, "it was tried in vain"
    limits.forget()
    assert limits.problem(ADDRESS) is None
    limits.reduce(ADDRESS, 1448)
    assert limits.limit(ADDRESS) == SIZES[0]
    assert limits.limit("192.0.2.2") is None


def test_an_older_connection_says_nothing_about_the_new_size() -> None:
    limits = SegmentLimits()
    limits.reduce(ADDRESS, 1448)
    limits.reduce(ADDRESS, 1448)
    assert limits.limit(ADDRESS) == SIZES[0]


def test_a_size_that_was_found() -> None:
    told: list[str] = []
    limits = SegmentLimits(told.append)
    limits.found(ADDRESS, SIZES[1])
    assert limits.limit(ADDRESS) == SIZES[1]
    assert limits.problem(ADDRESS) == told[0]


def test_addresses_are_bounded() -> None:
    limits = SegmentLimits()
    for number in range(1000):
        limits.reduce(f"2001:db8::{number:x}", 1448)
    assert sum(limits.limit(f"2001:db8::{number:x}") is not None for number in range(1000)) == 64


def test_no_size_below_the_last() -> None:
    assert next_size(SIZES[-1]) is None
    assert next_size(65483) == SIZES[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_real_connections(host: str) -> None:
    """The limit holds in both directions, and the state is what was sent and received."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()
        asked: list[str] = []

        def limit(address: str) -> int:
            asked.append(address)
            return 1000

        near = await connect(host, listener.getsockname()[1], segment_limit=limit)
        accepted, _ = listener.accept()
    assert asked == [host]
    far = Connection(accepted, "far")
    try:
        for connection in (near, far):
            state = connection.segments()
            assert state is not None
            assert 900 <= state.mss <= 1000
            assert (state.flying_bytes, state.retransmits, state.gap) == (0, 0, False)
        await near.send_all(bytes(5000))
        with trio.fail_after(10):
            await near.wait_acknowledged()
        state = far.segments()
        assert state is not None
        assert state.received_bytes == 5000
        assert not state.gap, "what waits to be read is no gap"
        await far.receive(memoryview(bytearray(10_000)))
        state = far.segments()
        assert state is not None
        assert not state.gap
    finally:
        near.close()
        far.close()
    assert near.segments() is None
