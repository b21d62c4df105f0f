"""http.lobby: a bounded number of strangers."""

from __future__ import annotations

from tapotun_trio.http.pending import PendingConnections

from ..streams import MemoryConnection, memory_pair


def connection() -> MemoryConnection:
    return memory_pair()[1]


async def test_the_oldest_goes_for_the_newest() -> None:
    pending = PendingConnections(limit=2)
    first, second, third, fourth = (connection() for _ in range(4))
    pending.enter(first)
    pending.enter(second)
    assert (first.closed, pending.evicted) == (False, 0)
    pending.enter(third)
    assert [it.closed for it in (first, second, third)] == [True, False, False]
    pending.enter(fourth)
    assert [it.closed for it in (second, third, fourth)] == [True, False, False]
    assert pending.evicted == 2


async def test_who_showed_a_token_is_not_counted_and_not_thrown_out() -> None:
    pending = PendingConnections(limit=1)
    known, *strangers = (connection() for _ in range(4))
    pending.enter(known)
    pending.leave(known)
    pending.leave(known)
    for stranger in strangers:
        pending.enter(stranger)
    assert not known.closed
    assert [it.closed for it in strangers] == [True, True, False]


async def test_who_left_makes_room() -> None:
    pending = PendingConnections(limit=2)
    first, second, third = (connection() for _ in range(3))
    pending.enter(first)
    pending.enter(second)
    pending.leave(second)
    pending.enter(third)
    assert not first.closed
    pending.leave(third)  # one that was evicted, or never entered, may leave too
    pending.leave(third)
